"""Paperlane, a small document converter that sells plans: ``uvicorn example_fastapi.main:app``."""
