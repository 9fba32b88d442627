"""Stands in for an engine that could not be opened, so that the same policies answer for it."""

from __future__ import annotations

from typing import TypeVar

from ..errors import TierError
from ..ops import Op

__all__ = ["AwayEngine"]

R = TypeVar("R")


class AwayEngine:
    """Answers every operation with the error that opening ended in."""

    def __init__(self, error: TierError) -> None:
        self._error = error

    def open(self) -> None:
        raise self._error

    def attempt(self, op: Op[R]) -> R:
        raise self._error

    def close(self) -> None:
        pass
