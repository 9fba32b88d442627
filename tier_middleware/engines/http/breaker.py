"""A circuit breaker: a server that does not answer is left alone for a while, and what it is asked fails at once."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ... import forks
from ...clock import Seldom, monotonic
from ...errors import EngineUnavailable
from ...reporting.backoff import server_backoff_seconds

__all__ = ["Breaker"]

logger: Final = logging.getLogger("tier_middleware")

PATIENCE: Final = 3  # failures in a row before it opens


class Breaker:
    """Counts failures in a row. While it is open nobody asks, save for one try at the end of each pause."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._was_reached = False
        self._seldom = Seldom()
        self._failures = 0
        self._closed_from = 0.0
        self._problem = ""
        self.after_fork(is_child=True)
        forks.watch(self)

    def check(self) -> None:
        """Raises `EngineUnavailable` while the server is left alone."""
        with self._lock:
            now = monotonic()
            if now < self._closed_from:
                raise EngineUnavailable(f"{self._name} is away, and not asked again for a moment: {self._problem}")
            if self._failures >= PATIENCE:
                self._pause(now)  # for all others, until this try has an answer

    @property
    def is_open(self) -> bool:
        return monotonic() < self._closed_from

    def succeeded(self) -> bool:
        """An answer came; whether the one before it did not."""
        with self._lock:
            was_away = self._failures > 0
            self._was_reached = True
            self._failures = 0
            self._closed_from = 0.0
        return was_away

    def failed(self, error: EngineUnavailable) -> None:
        with self._lock:
            now = monotonic()
            self._failures += 1
            self._problem = error.message
            if self._failures >= PATIENCE:
                self._pause(now)
            is_due = self._seldom.is_due()
        if is_due:
            since = "does not answer" if self._was_reached else "has never answered: is TIER_BASE_URL right?"
            logger.error("tier: %s %s (%s)", self._name, since, error)

    def _pause(self, now: float) -> None:
        self._closed_from = now + server_backoff_seconds(self._failures)

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, is_child: bool) -> None:
        if is_child:
            self._lock = threading.Lock()
