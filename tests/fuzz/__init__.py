"""Malformed requests over raw sockets: ``python -m tests.fuzz``."""
