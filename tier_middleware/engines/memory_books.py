"""What the engine in memory keeps: orgs, their usage with its ledger, keys, and whose limits have changed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from msgspec import Struct

from ..ledger import Change
from ..model import Phase, Plan
from ..ops import Changes, ClockRecord, ReadChanges
from ..orginfo import NO_INFO, OrgInfo
from ..policy import Entitlement
from .changes import EVERYBODY, MAX_CHANGES, position_in

__all__ = ["Books", "ChangeLog", "Counter", "Keys", "Open", "Org"]


class Open(Struct, gc=False):
    """A hold as the engine keeps it. ``n`` is 0 once its capacity was taken back (and for levels).

    ``counted`` is what renewals have counted of it.
    """

    entitlement: Entitlement
    n: int
    expires_ms: int
    counted: int = 0


@dataclass(slots=True, eq=False)
class Counter:
    """The usage of one org, feature, plan and billing period. ``place`` is its number, never used again."""

    place: int
    used: int = 0
    reserved: int = 0
    open: dict[int, Open] = field(default_factory=dict)
    entries: deque[Change] = field(default_factory=deque)
    days: dict[int, int] = field(default_factory=dict)

    def changes(self) -> Iterator[Change]:
        """The ledger of this usage, the oldest first: days that were rolled up, then entries."""
        for day_ms, n in sorted(self.days.items()):
            yield Change("day", n, day_ms, day_ms)
        yield from sorted(self.entries, key=attrgetter("recorded_ms"))


@dataclass(slots=True, eq=False)
class Org:
    created_ms: int
    changed_ms: int
    info: OrgInfo = NO_INFO
    phases: tuple[Phase, ...] = ()
    counters: dict[tuple[str, str, int], Counter] = field(default_factory=dict)
    current: dict[str, tuple[Entitlement, Counter]] = field(default_factory=dict)

    def present(self, now_ms: int) -> int:
        """Now, and never before the last change of the org's phases."""
        return max(now_ms, self.changed_ms)


Keys: TypeAlias = dict[str, tuple[str, int]]
"""Keys that count once, in order of age: what was sent with each, and until when it is remembered."""


class Books(NamedTuple):
    """All that the engine keeps.

    Under each test clock keys and entries age by that clock (the time without one is under ``""``). A ledger mentions a
    counter once for each of its entries, in the order in which they are to be rolled up.
    """

    plans: dict[str, Plan]
    clocks: dict[str, ClockRecord]
    orgs: dict[str, Org]
    counters: dict[int, Counter]
    keys: defaultdict[str, Keys]
    ledgers: defaultdict[str, deque[Counter]]


class ChangeLog:
    """Whose limits have changed, in order; an empty org is everybody."""

    def __init__(self, created_ms: int) -> None:
        self._created_ms = created_ms
        self._number = 0
        self._orgs: dict[str, int] = {}

    def add(self, org: str = EVERYBODY) -> None:
        self._number += 1
        self._orgs.pop(org, None)
        self._orgs[org] = self._number

    def forget(self, org: str) -> None:
        self._orgs.pop(org, None)

    def read(self, op: ReadChanges) -> Changes:
        cursor = f"{self._created_ms}-{self._number}"
        if op.since is None:
            return Changes(cursor)
        position = position_in(op.since, cursor)
        if position is None:
            return Changes(cursor, is_everything=True)
        recent = takewhile(lambda org: self._orgs[org] > int(position), reversed(self._orgs))
        orgs = tuple(islice(recent, MAX_CHANGES + 1))
        if EVERYBODY in orgs or len(orgs) > MAX_CHANGES:
            return Changes(cursor, is_everything=True)
        return Changes(cursor, orgs)
