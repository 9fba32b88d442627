"""Time: the only module that asks the machine for it.

Inside, moments are whole milliseconds since the Unix epoch, cut off and never rounded: a rounded start of a
subscription can land usage in the month before. Outside, they are aware datetimes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from .errors import ConfigurationError, InvalidRequest

__all__ = [
    "DAY_MS",
    "MILLISECOND",
    "Clock",
    "ManualClock",
    "Milliseconds",
    "Seldom",
    "milliseconds",
    "milliseconds_of",
    "moment",
    "monotonic",
    "rfc3339",
    "sleep",
    "whole_seconds",
]

Clock: TypeAlias = Callable[[], datetime]
"""What ``Tier(clock=...)`` takes: answers the present as an aware datetime."""

Milliseconds: TypeAlias = Callable[[], int]

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)
DAY_MS: Final = 86_400_000
LAST_YEAR: Final = 3000  # of a test clock: a ledger orders times up to the year 3084

LOG_SECONDS: Final = 60.0

monotonic = time.monotonic
sleep = time.sleep


class Seldom:
    """What happens again and again, as while a server is away, is worth a line in the log once per interval."""

    def __init__(self, seconds: float = LOG_SECONDS) -> None:
        self._seconds = seconds
        self._at: dict[str, float] = {}

    def is_due(self, what: str = "") -> bool:
        now = monotonic()
        if now - self._at.get(what, -self._seconds) < self._seconds:
            return False
        self._at[what] = now
        return True


class ManualClock:
    """A clock that stands still until it is told to move: for tests and rehearsals."""

    def __init__(self, start: datetime) -> None:
        milliseconds_of(start, "start")
        self._now = start

    def __call__(self) -> datetime:
        return self._now

    def set(self, now: datetime) -> None:
        milliseconds_of(now, "now")
        self._now = now

    def advance(self, delta: timedelta) -> None:
        self._now += delta


def milliseconds(clock: Clock | None) -> Milliseconds:
    """The clock as the engines read it; None is the machine's own."""
    if clock is None:
        return lambda: time.time_ns() // 1_000_000
    if not callable(clock):
        raise ConfigurationError(f"clock: must be a callable that returns an aware datetime, got {clock!r}")
    return lambda: milliseconds_of(clock(), "clock")


def milliseconds_of(value: object, field: str) -> int:
    """An aware datetime in milliseconds; anything else is an `InvalidRequest` that names the field."""
    if not isinstance(value, datetime):
        raise InvalidRequest(f"{field}: must be an aware datetime, got {value!r}", path=field)
    if value.utcoffset() is None:
        raise InvalidRequest(f"{field}: must be an aware datetime (with a tzinfo), got {value!r}", path=field)
    return (value - EPOCH) // MILLISECOND


def whole_seconds(value: object, field: str) -> int:
    """The present of a test clock in milliseconds, cut off to whole seconds as Tier does."""
    ms = milliseconds_of(value, field)
    if not 0 <= ms < milliseconds_of(datetime(LAST_YEAR, 1, 1, tzinfo=UTC), field):
        raise InvalidRequest(f"{field}: must lie in the years from 1970 to {LAST_YEAR - 1}, got {value!s}", path=field)
    return ms // 1000 * 1000


def moment(ms: int) -> datetime:
    return EPOCH + ms * MILLISECOND


def rfc3339(ms: int) -> str:
    """A moment for people and for the wire: in UTC, with a Z, with milliseconds only where there are any."""
    try:
        at = moment(ms)
    except OverflowError:  # a first of January of the year 1 in an eastern zone lies before all that datetime knows
        return f"{ms} ms after 1970"
    return at.isoformat(timespec="milliseconds" if ms % 1000 else "seconds").replace("+00:00", "Z")
