"""``http://``, ``https://``: a server that speaks Tier's API. Needs the extra ``http``."""

from __future__ import annotations

from .engine import HttpEngine

__all__ = ["HttpEngine"]
