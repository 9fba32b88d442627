"""Export and import of the engine in memory. What is taken in goes into copies of its books."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter

from ..ledger import Change
from ..model import Aggregate, Phase, Plan
from ..names import clock_of
from ..ops import ClockRecord
from ..orginfo import OrgInfo
from ..transfer import ClockLine, KeyLine, Line, UsageLine, change_line, org_line, plan_line
from .memory_books import Books, Counter, Keys, Org

__all__ = ["MemoryTarget", "lines_of"]


def lines_of(books: Books) -> Iterator[Line]:
    """Everything but the header."""
    yield from (plan_line(books.plans[name]) for name in sorted(books.plans))
    yield from (ClockLine(*books.clocks[id]) for id in sorted(books.clocks))
    for name, org in sorted(books.orgs.items()):
        yield org_line(name, org.created_ms, org.changed_ms, org.phases, org.info)
        for place, counter in sorted(org.counters.items(), key=itemgetter(0)):
            if counter.used or counter.entries or counter.days:
                yield UsageLine(*place, counter.used)
                yield from map(change_line, counter.changes())
    for clock, remembered in sorted(books.keys.items()):
        keys = ((expires_ms, key, contents) for key, (contents, expires_ms) in remembered.items())
        yield from (KeyLine(key, contents, expires_ms, clock) for expires_ms, key, contents in sorted(keys))


class MemoryTarget:
    """Where `tier_middleware.engines.transfer.take_in` puts what it reads."""

    def __init__(self, books: Books, new_place: Callable[[], int]) -> None:
        keys: defaultdict[str, Keys] = defaultdict(dict, {clock: dict(keys) for clock, keys in books.keys.items()})
        self._books = Books(
            dict(books.plans), dict(books.clocks), dict(books.orgs), dict(books.counters), keys, defaultdict(deque)
        )
        self._new_place = new_place
        self._org = Org(0, 0)
        self._counter = Counter(0)

    def plans(self) -> Mapping[str, Plan]:
        return self._books.plans

    def add_plan(self, plan: Plan) -> None:
        self._books.plans[plan.name] = plan

    def clock(self, id: str) -> ClockRecord | None:
        return self._books.clocks.get(id)

    def set_clock(self, clock: ClockRecord) -> None:
        self._books.clocks[clock.id] = clock

    def has_org(self, name: str) -> bool:
        return name in self._books.orgs

    def drop_org(self, name: str) -> None:
        for counter in self._books.orgs.pop(name).counters.values():
            del self._books.counters[counter.place]

    def add_org(self, name: str, created_ms: int, changed_ms: int, phases: tuple[Phase, ...], info: OrgInfo) -> None:
        self._org = self._books.orgs[name] = Org(created_ms, changed_ms, info, phases)

    def add_usage(self, feature: str, plan: str, start_ms: int, aggregate: Aggregate, used: int) -> None:
        self._counter = self._org.counters[feature, plan, start_ms] = Counter(self._new_place(), used)
        self._books.counters[self._counter.place] = self._counter

    def add_change(self, change: Change) -> None:
        if change.kind == "day":
            self._counter.days[change.at_ms] = change.n
        else:
            self._counter.entries.append(change)

    def contents_of_key(self, key: str, clock: str) -> str | None:
        known = self._books.keys[clock].get(key)
        return None if known is None else known[0]

    def add_key(self, line: KeyLine) -> None:
        self._books.keys[line.clock][line.key] = (line.contents, line.expires_ms)

    def finished(self) -> Books:
        """The books with all that was added. What is due next comes first in them."""
        books = self._books
        made: defaultdict[str, list[tuple[int, Counter]]] = defaultdict(list)
        for name, org in books.orgs.items():
            for counter in org.counters.values():
                made[clock_of(name)] += [(change.recorded_ms, counter) for change in counter.entries]
        for clock, entries in made.items():
            books.ledgers[clock].extend(counter for _, counter in sorted(entries, key=itemgetter(0)))
        for clock, keys in books.keys.items():
            books.keys[clock] = dict(sorted(keys.items(), key=lambda item: item[1][1]))
        return books
