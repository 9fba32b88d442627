"""The ledger: what changed a usage, entry by entry, and what becomes of entries when somebody asks. Pure.

Every commit, report and adjustment that counts leaves one entry. All entries of a billing period add up to its usage,
where none of it was counted while ``ledger_days`` was 0. What was counted before there was a ledger is one ``day``.
Times are whole milliseconds since the Unix epoch. Steps are cut in UTC, which has no daylight saving time: every day
has 24 hours, and a step begins at a whole multiple of its length since 1970-01-01T00:00:00Z.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct

from .clock import DAY_MS, MILLISECOND, milliseconds_of
from .errors import InvalidRequest

__all__ = [
    "DEFAULT_LEDGER_DAYS",
    "KINDS",
    "LAST_MS",
    "MAX_HISTORY",
    "Change",
    "Entry",
    "History",
    "Kind",
    "Step",
    "Sum",
    "day_of",
    "entries_in",
    "key_of",
    "step_ms_for",
    "sums_in",
]

Kind: TypeAlias = Literal["commit", "report", "clobber", "adjust", "day"]
"""What changed a usage. ``day`` is the sum of a UTC day whose entries were rolled up."""

KINDS: Final = ("commit", "report", "clobber", "adjust", "day")

Step: TypeAlias = Literal["hour", "day"] | timedelta

LAST_MS: Final = 2**45 - 1  # that a ledger tells from others: in the year 3084
FIRST_MS: Final = milliseconds_of(datetime.min.replace(tzinfo=UTC), "min")
END_MS: Final = milliseconds_of(datetime.max.replace(tzinfo=UTC), "max")
DEFAULT_LEDGER_DAYS: Final = 400  # the longest billing period, a year, and a month in which to ask about its bill
MAX_HISTORY: Final = 10_000  # entries or steps of one answer


class Change(Struct, frozen=True, gc=False):
    """One entry: the usage changed by ``n``. ``level`` is what was set, where something was set rather than added."""

    kind: Kind
    n: int
    at_ms: int
    recorded_ms: int
    key: str | int | None = None  # an int is the id of a reservation
    level: int | None = None
    note: str = ""


class Entry(NamedTuple):
    """A change and where it was counted: in a plan (none for what all plans share) and the period from a moment on."""

    plan: str
    start_ms: int
    change: Change


class Sum(NamedTuple):
    """By how much the usage changed from ``start_ms`` up to, not including, ``end_ms``."""

    start_ms: int
    end_ms: int
    n: int


History: TypeAlias = tuple[Entry, ...] | tuple[Sum, ...]


def key_of(change: Change) -> str | None:
    """The key that made it count once; a commit's names its reservation."""
    return f"reservation:{change.key}" if isinstance(change.key, int) else change.key


def day_of(at_ms: int) -> int:
    """When the UTC day of a moment began."""
    return at_ms - at_ms % DAY_MS


def step_ms_for(step: object) -> int:
    """The length of a step; an `InvalidRequest` for what is none."""
    if step == "day":
        return DAY_MS
    if step == "hour":
        return DAY_MS // 24
    if isinstance(step, timedelta) and step > timedelta() and not step % MILLISECOND:
        return step // MILLISECOND
    raise InvalidRequest(
        f"step: must be 'day', 'hour' or a timedelta of whole milliseconds > 0, got {step!r}", path="step"
    )


def entries_in(entries: Iterable[Entry], since_ms: int | None, until_ms: int | None) -> tuple[Entry, ...]:
    """The entries of a span, in the order of their times. More than `MAX_HISTORY` are refused, never cut off."""
    found: list[Entry] = []
    for entry in entries:
        if _is_within(entry.change.at_ms, since_ms, until_ms):
            found.append(entry)
            if len(found) > MAX_HISTORY:
                raise InvalidRequest(
                    f"history: there are more than {MAX_HISTORY} entries; ask for a shorter time with since and until, "
                    "or for sums with step",
                    path="since",
                )
    return tuple(sorted(found, key=attrgetter("change.at_ms")))


def sums_in(
    entries: Iterable[Entry], step_ms: int, since_ms: int | None, until_ms: int | None, now_ms: int
) -> tuple[Sum, ...]:
    """What a usage changed by, step by step, also in steps in which nothing happened.

    From the step of ``since_ms`` (None: of the first entry) to that of ``until_ms`` (None: of the last entry, or now).
    The first and the last hold what lies in the span, which may be less than the step.
    """
    sums: defaultdict[int, int] = defaultdict(int)
    for entry in entries:
        at_ms = entry.change.at_ms
        if _is_within(at_ms, since_ms, until_ms):
            sums[at_ms // step_ms] += entry.change.n
    if since_ms is None and not sums:
        return ()
    first = min(sums) if since_ms is None else since_ms // step_ms
    last = max(now_ms // step_ms, first, *sums) if until_ms is None else (until_ms - 1) // step_ms
    if last - first >= MAX_HISTORY:
        raise InvalidRequest(
            f"step: there are more than {MAX_HISTORY} steps; ask for longer ones, or for a shorter time", path="step"
        )
    if first * step_ms < FIRST_MS or (last + 1) * step_ms > END_MS:
        raise InvalidRequest(
            "step: steps must begin and end in the years from 1 to 9999; ask for shorter ones, or for an earlier time",
            path="step",
        )
    return tuple(Sum(i * step_ms, (i + 1) * step_ms, sums.get(i, 0)) for i in range(first, last + 1))


def _is_within(at_ms: int, since_ms: int | None, until_ms: int | None) -> bool:
    return (since_ms is None or since_ms <= at_ms) and (until_ms is None or at_ms < until_ms)
