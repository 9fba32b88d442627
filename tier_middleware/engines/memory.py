"""``memory://``: everything in dictionaries under one lock. The reference: the shortest correct engine."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any, Final, TypeVar

from .. import forks
from ..clock import DAY_MS, Milliseconds
from ..errors import InvalidRequest, TierError
from ..ledger import DEFAULT_LEDGER_DAYS, Change, Entry, History, day_of
from ..model import Model, Plan
from ..names import FeaturePlan, clock_of
from ..ops import (
    UNPLACED,
    Adjust,
    AdvanceClock,
    Check,
    Checked,
    ClockRecord,
    Commit,
    Committed,
    DeleteOrg,
    Demand,
    Describe,
    EngineInfo,
    Granted,
    Hold,
    Identify,
    Kept,
    LookUp,
    LookUpClock,
    LookUpKeys,
    LookUpPaymentMethods,
    LookUpPhases,
    MakeClock,
    Op,
    OrgRecord,
    PhasesInfo,
    Pull,
    Push,
    PushResult,
    ReadChanges,
    ReadHistory,
    Record,
    Recorded,
    Release,
    Renew,
    Reserve,
    Schedule,
    Shortfall,
    UpdateOrg,
    Usage,
)
from ..orginfo import updated
from ..policy import (
    KEY_LIFETIME_MS,
    Entitlement,
    PlannedPhase,
    checked_features,
    entitlement_for,
    entitlements_for,
    has_room,
    phases_after,
    used_adjusted,
    used_after,
)
from ..pricing import plan_conflict
from ..transfer import Line, header
from . import verdicts
from .memory_books import Books, ChangeLog, Counter, Keys, Open, Org
from .memory_transfer import MemoryTarget, lines_of
from .transfer import take_in

__all__ = ["MemoryEngine"]

R = TypeVar("R")

ROLL_UP_EVERY: Final = 16  # entries; not at each one, since to look costs as much as to make one
COMMITTED: Final = Committed()


class MemoryEngine:
    """Keeps everything in this process. What it holds ends with it.

    Entries of the ledger are kept for ``ledger_days``; with 0 none are made.
    """

    def __init__(self, now_ms: Milliseconds, *, ledger_days: int = DEFAULT_LEDGER_DAYS) -> None:
        self._lock = threading.Lock()
        forks.watch(self)
        self._plans: dict[str, Plan] = {}
        self._orgs: dict[str, Org] = {}
        self._counters: dict[int, Counter] = {}
        self._places = count()
        self._keys: defaultdict[str, Keys] = defaultdict(dict)
        self._clocks: dict[str, ClockRecord] = {}
        self._ledgers: defaultdict[str, deque[Counter]] = defaultdict(deque)
        self._ledger_ms = ledger_days * DAY_MS
        self._created_ms = now_ms()
        self._defaulted: tuple[str, int | None] | None = None
        self._changes = ChangeLog(self._created_ms)
        self._perform: dict[type[Op[Any]], Callable[[Any], Any]] = {
            Reserve: self._reserve,
            Commit: self._commit,
            Renew: lambda op: tuple([self._renew_one(kept, op) for kept in op.kept]),
            Release: self._release,
            Record: self._record,
            Adjust: self._adjust,
            Check: self._check,
            LookUp: self._look_up,
            LookUpKeys: self._look_up_keys,
            ReadHistory: self._read_history,
            ReadChanges: self._changes.read,
            LookUpPhases: self._look_up_phases,
            Schedule: self._schedule,
            Describe: self._describe,
            LookUpPaymentMethods: self._payment_methods,
            UpdateOrg: self._update_org,
            DeleteOrg: self._delete_org,
            Push: self._push,
            Pull: lambda op: Model(dict(self._plans)),
            MakeClock: lambda op: self._clocks.setdefault(op.id, ClockRecord(op.id, op.name, op.present_ms)),
            AdvanceClock: self._advance_clock,
            LookUpClock: self._look_up_clock,
            Identify: lambda op: EngineInfo("memory", "memory://", self._created_ms),
        }

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self, *, is_child: bool) -> None:
        self._lock.release()

    def attempt(self, op: Op[R]) -> R:
        with self._lock:
            try:
                reply: R = self._perform[type(op)](op)
                return reply
            except TierError:
                self._undo_default_plan()  # what raises has done nothing
                raise
            finally:
                self._defaulted = None

    # ---- moving -----------------------------------------------------------------------------------------------------

    def export(self) -> Generator[Line, None, None]:
        with self._lock:
            lines = list(lines_of(self._books()))
        yield header(len(lines))
        yield from lines

    def load(self, lines: Iterable[Line], *, replace: bool = False) -> None:
        staged = list(lines)  # which may take its time, and may come from this engine
        with self._lock:
            target = MemoryTarget(self._books(), self._places.__next__)
            take_in(staged, target, replace=replace)
            self._plans, self._clocks, self._orgs, self._counters, self._keys, self._ledgers = target.finished()
            self._changes.add()

    def _books(self) -> Books:
        return Books(self._plans, self._clocks, self._orgs, self._counters, self._keys, self._ledgers)

    # ---- reservations -----------------------------------------------------------------------------------------------

    def _reserve(self, op: Reserve) -> Granted | Shortfall:
        org, now_ms = self._orgs.get(op.org), op.now_ms
        if org is not None and len(op.demands) == 1:  # nearly always: what is remembered, and room
            (demand,) = op.demands
            current = org.current.get(demand.feature)
            if current is not None:
                entitlement, counter = current
                n, is_current = demand.n, entitlement.from_ms <= now_ms < entitlement.until_ms
                id, is_new = op.ids[0], op.ids[0] not in counter.open
                if (
                    is_current
                    and is_new
                    and entitlement.is_counter
                    and has_room(entitlement, counter.used, counter.reserved, n)
                ):
                    counter.reserved += n
                    counter.open[id] = Open(entitlement, n, op.expires_ms)
                    return Granted((Hold(id, op.org, demand.feature, n, counter.place),))
        return self._reserve_all(op)

    def _reserve_all(self, op: Reserve) -> Granted | Shortfall:
        org = self._with_default_plan(op.org, op.default_plan, op.now_ms)
        found: list[tuple[Entitlement, Counter]] = []
        pressed: list[Counter] = []
        shortfall: Shortfall | None = None
        for id, demand in zip(op.ids, op.demands, strict=True):
            current = self._current(org, demand.feature, op.now_ms)
            if current is None:
                shortfall = verdicts.shortfall_of(op.org, demand, None, is_known=org is not None)
            else:
                if not _is_held(current[1], id, demand, op.now_ms):
                    shortfall = self._shortfall(op.org, demand, current, op.now_ms, pressed)
                found.append(current)
            if shortfall is not None:
                break
        for counter in pressed:  # only now: an operation that raises has taken nothing back
            self._expire(counter, op.now_ms)
        if shortfall is not None:
            return shortfall
        return Granted(tuple([self._hold(op, index, *current) for index, current in enumerate(found)]))

    def _shortfall(
        self, name: str, demand: Demand, current: tuple[Entitlement, Counter], now_ms: int, pressed: list[Counter]
    ) -> Shortfall | None:
        """Why a demand does not fit. Counters that must take back what has expired are added to ``pressed``."""
        entitlement, counter = current
        if not demand.is_given:
            verdicts.checked_demand(demand, entitlement)
        if has_room(entitlement, counter.used, counter.reserved, demand.n):
            return None
        pressed.append(counter)
        reserved = self._reserved(counter, now_ms)
        if has_room(entitlement, counter.used, reserved, demand.n):
            return None
        return verdicts.shortfall_of(name, demand, entitlement, counter.used, reserved)

    def _hold(self, op: Reserve, index: int, entitlement: Entitlement, counter: Counter) -> Hold | None:
        id, demand = op.ids[index], op.demands[index]
        if not entitlement.is_metered:
            return None
        n = 0 if entitlement.is_level else demand.n
        before = counter.open.get(id)
        if before is None or before.expires_ms <= op.now_ms:  # else it was sent before
            counter.reserved += n if before is None else n - before.n
            counter.open[id] = Open(entitlement, n, op.expires_ms, 0 if before is None else before.counted)
        return Hold(id, op.org, demand.feature, n, counter.place)

    def _find(self, hold: Hold) -> tuple[Counter, Open] | None:
        """A hold in the books; None where it has been settled before."""
        counter = self._counters.get(hold.place)
        if hold.place == UNPLACED and (org := self._orgs.get(hold.org)) is not None:
            of_feature = (found for (feature, *_), found in org.counters.items() if feature == hold.feature)
            counter = next((found for found in of_feature if hold.id in found.open), None)
        held = None if counter is None else counter.open.get(hold.id)
        return None if counter is None or held is None else (counter, held)

    def _commit(self, op: Commit) -> tuple[Committed, ...]:
        if len(op.kept) == 1:
            return (self._commit_one(op.kept[0], op.now_ms),)
        if not op.kept:
            return ()
        found = [(kept.hold.id, *place) for kept in op.kept if (place := self._find(kept.hold))]
        before = [(counter, counter.used, counter.reserved) for _, counter, _ in found]
        keys = self._keys[clock_of(op.kept[0].hold.org)]
        new_keys = {kept.key for kept in op.kept} - set(keys)
        try:
            return tuple([self._commit_one(kept, op.now_ms) for kept in op.kept])
        except InvalidRequest:  # a usage beyond what can be counted: all or none
            for counter, used, reserved in before:
                counter.used, counter.reserved = used, reserved
            for id, counter, held in reversed(found):
                if id not in counter.open and counter.entries and counter.entries[-1].key == id:
                    self._ledgers[clock_of(op.kept[0].hold.org)].pop()
                    counter.entries.pop()
                counter.open[id] = held
            for key in new_keys:
                keys.pop(key, None)
            raise

    def _commit_one(self, kept: Kept, now_ms: int) -> Committed:
        found, n = self._find(kept.hold), kept.n
        if found is None:
            return COMMITTED
        counter, held = found
        if kept.key and not self._is_first(kept, now_ms):
            self._let_go(kept.hold, counter, held, now_ms)
            return COMMITTED
        limit, aggregate = held.entitlement.limit, held.entitlement.aggregate
        others = counter.reserved - held.n
        is_whole = 0 < n <= held.n and now_ms < held.expires_ms and not held.counted
        if is_whole and limit is not None and counter.used + n <= limit:
            del counter.open[kept.hold.id]  # nearly always: what was reserved, or less, and in time
            counter.reserved = others
            counter.used += n
            if self._ledger_ms:
                self._enter(kept.hold.org, counter, Change("commit", n, now_ms, now_ms, kept.hold.id))
            return COMMITTED
        n -= held.counted
        allowed = verdicts.counted(aggregate, limit, counter.used, others, held.n, n) if kept.is_capped else n
        used = used_after(aggregate, counter.used, allowed)
        del counter.open[kept.hold.id]
        counter.reserved = others
        passed = verdicts.over(limit, counter.used, used)
        if self._ledger_ms:
            level = None if aggregate == "sum" else allowed
            change = Change("commit", used - counter.used, now_ms, now_ms, kept.hold.id, level)
            self._enter(kept.hold.org, counter, change)
        counter.used = used
        return Committed(passed, n - allowed, held.expires_ms <= now_ms)

    def _renew_one(self, kept: Kept, op: Renew) -> Committed:
        found = self._find(kept.hold)
        if found is None:
            return COMMITTED
        counter, held = found
        limit, others = held.entitlement.limit, counter.reserved - held.n
        has_expired = held.expires_ms <= op.now_ms
        if not has_expired:
            held.expires_ms = max(held.expires_ms, op.expires_ms)
        n = verdicts.counted_so_far(
            held.entitlement.aggregate, limit, counter.used, others, held.n, kept.n - held.counted,
            is_capped=kept.is_capped,
        )  # fmt: skip
        held.counted += n
        held.n = max(0, held.n - n)
        counter.reserved = others + held.n
        passed = verdicts.over(limit, counter.used, counter.used + n)
        self._count_hold(kept.hold, counter, n, op.now_ms)
        return Committed(passed, has_expired=has_expired)

    def _count_hold(self, hold: Hold, counter: Counter, n: int, now_ms: int) -> None:
        """Count n units of a hold that is not at its end, or take them back (n < 0)."""
        used = used_adjusted(counter.used, n)
        if n and self._ledger_ms:
            self._enter(hold.org, counter, Change("commit", used - counter.used, now_ms, now_ms, hold.id))
        counter.used = used

    def _release(self, op: Release) -> None:
        for hold in op.holds:
            found = self._find(hold)
            if found is not None:
                self._let_go(hold, *found, op.now_ms)

    def _let_go(self, hold: Hold, counter: Counter, held: Open, now_ms: int) -> None:
        del counter.open[hold.id]
        counter.reserved -= held.n
        if held.counted:
            self._count_hold(hold, counter, -held.counted, now_ms)

    def _expire(self, counter: Counter, now_ms: int) -> None:
        for id, held in list(counter.open.items()):
            if held.expires_ms <= now_ms:
                counter.reserved -= held.n
                held.n = 0
                if held.expires_ms + KEY_LIFETIME_MS <= now_ms:
                    del counter.open[id]

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _record(self, op: Record) -> Recorded:
        if self._is_known_key(op):
            return Recorded(is_new=False)
        org = self._with_default_plan(op.org, op.default_plan, op.now_ms)
        entitlement, counter = self._reported(op, org)
        used = op.n if op.clobber else used_after(entitlement.aggregate, counter.used, op.n)
        return self._count(op, entitlement, counter, used)

    def _adjust(self, op: Adjust) -> Recorded:
        if self._is_known_key(op):
            return Recorded(is_new=False)
        entitlement, counter = self._reported(op, self._orgs.get(op.org))
        return self._count(op, entitlement, counter, used_adjusted(counter.used, op.delta))

    def _aged_keys(self, org: str, now_ms: int) -> Keys:
        """The keys under an org's clock, two out for each one in."""
        keys = self._keys[clock_of(org)]
        for key, (_, expires_ms) in list(islice(keys.items(), 2)):  # in order of age
            if expires_ms <= now_ms:
                del keys[key]
        return keys

    def _is_first(self, kept: Kept, now_ms: int) -> bool:
        """Whether a key has not counted yet; from now on it has."""
        keys = self._aged_keys(kept.hold.org, now_ms)
        return keys.setdefault(kept.key, made := (verdicts.ONCE, now_ms + KEY_LIFETIME_MS)) is made

    def _look_up_keys(self, op: LookUpKeys) -> tuple[bool, ...]:
        keys = self._keys[clock_of(op.org)]
        return tuple([key in keys and keys[key][1] > op.now_ms for key in op.keys])

    def _is_known_key(self, op: Record | Adjust) -> bool:
        known = self._aged_keys(op.org, op.now_ms).get(op.key)
        if known is not None:
            verdicts.same_contents(op.key, known[0], verdicts.contents_of(op))
        return known is not None

    def _reported(self, op: Record | Adjust, org: Org | None) -> tuple[Entitlement, Counter]:
        if org is None:
            raise verdicts.unknown_org(op.org)
        entitlement = verdicts.reported_entitlement(op, org.phases, self._plans.__getitem__, org.present(op.now_ms))
        return entitlement, self._counter(org, entitlement)

    def _count(self, op: Record | Adjust, entitlement: Entitlement, counter: Counter, used: int) -> Recorded:
        passed = verdicts.over(entitlement.limit, counter.used, used)
        if self._ledger_ms:
            self._enter(op.org, counter, verdicts.change_of(op, entitlement.aggregate, counter.used, used))
        counter.used = used
        self._keys[clock_of(op.org)][op.key] = (verdicts.contents_of(op), op.now_ms + KEY_LIFETIME_MS)
        return Recorded(passed)

    # ---- the ledger -------------------------------------------------------------------------------------------------

    def _enter(self, org: str, counter: Counter, change: Change) -> None:
        ledger = self._ledgers[clock_of(org)]
        if not len(ledger) % ROLL_UP_EVERY:
            self._roll_up(ledger, change.recorded_ms)
        counter.entries.append(change)
        ledger.append(counter)

    def _roll_up(self, ledger: deque[Counter], now_ms: int) -> None:
        """Add the oldest entries to the sums of their days: two out for each one in."""
        for _ in range(2 * ROLL_UP_EVERY):
            if not ledger:
                return
            counter = ledger[0]
            if counter.entries:  # else its org was deleted
                if counter.entries[0].recorded_ms + self._ledger_ms > now_ms:
                    return
                change = counter.entries.popleft()
                day_ms = day_of(change.at_ms)
                counter.days[day_ms] = counter.days.get(day_ms, 0) + change.n
            ledger.popleft()

    # ---- questions --------------------------------------------------------------------------------------------------

    def _check(self, op: Check) -> Checked:
        org = self._with_default_plan(op.org, op.default_plan, op.now_ms)
        current = self._current(org, op.demand.feature, op.now_ms)
        if current is None:
            return verdicts.not_checked(op.org, op.demand, is_known=org is not None)
        entitlement, counter = current
        verdicts.checked_demand(op.demand, entitlement)
        used, reserved = counter.used, self._reserved(counter, op.now_ms)
        usage = verdicts.usage_of(entitlement, used, reserved)
        if has_room(entitlement, used, reserved, op.demand.n):
            return Checked(usage, None)
        return Checked(usage, verdicts.shortfall_of(op.org, op.demand, entitlement, used, reserved))

    def _look_up(self, op: LookUp) -> tuple[Usage, ...]:
        org = self._known(op.org)
        found = entitlements_for(org.phases, self._plans.__getitem__, org.present(op.now_ms))
        return tuple(self._usage(found[name], self._counter(org, found[name]), op.now_ms) for name in sorted(found))

    def _usage(self, entitlement: Entitlement, counter: Counter, now_ms: int) -> Usage:
        return verdicts.usage_of(entitlement, counter.used, self._reserved(counter, now_ms))

    def _reserved(self, counter: Counter, now_ms: int) -> int:
        """As a reader sees it: what has expired is free, though nobody has taken it back yet."""
        return counter.reserved - sum(held.n for held in counter.open.values() if held.expires_ms <= now_ms)

    def _read_history(self, op: ReadHistory) -> History:
        return verdicts.history_of(op, self._entries(self._known(op.org), op.feature))

    def _entries(self, org: Org, feature: str) -> Iterator[Entry]:
        for (name, plan, start_ms), counter in sorted(org.counters.items(), key=lambda item: (item[0][2], item[0][1])):
            if name == feature:
                yield from (Entry(plan, start_ms, change) for change in counter.changes())

    def _look_up_phases(self, op: LookUpPhases) -> PhasesInfo:
        org = self._known(op.org)
        return verdicts.phases_info(org.phases, self._plans.__getitem__, org.present(op.now_ms))

    # ---- orgs and plans ---------------------------------------------------------------------------------------------

    def _schedule(self, op: Schedule) -> None:
        for planned in op.phases:
            checked_features(planned.features, self._plans)
        org = self._known(op.org) if op.must_exist else self._orgs.get(op.org)
        if org is None:
            org = self._orgs[op.org] = Org(op.now_ms, op.now_ms)
        org.changed_ms = org.present(op.now_ms)
        org.phases = phases_after(org.phases, op.phases, org.changed_ms, keeps_pending=op.keeps_pending)
        org.current.clear()
        self._changes.add(op.org)

    def _with_default_plan(self, name: str, plan: str | None, now_ms: int) -> Org | None:
        org = self._orgs.get(name)
        if plan is None or (org is not None and org.phases):
            return org
        if plan not in self._plans:
            raise verdicts.unknown_default_plan(plan)
        self._defaulted = (name, None if org is None else org.changed_ms)
        self._schedule(Schedule(name, (PlannedPhase(None, (FeaturePlan(None, plan),)),), now_ms))
        return self._orgs[name]

    def _undo_default_plan(self) -> None:
        if self._defaulted is not None:
            name, changed_ms = self._defaulted
            org = self._orgs[name]
            if changed_ms is None:
                del self._orgs[name]
            else:
                org.phases, org.changed_ms = (), changed_ms
                org.current.clear()

    def _known(self, name: str) -> Org:
        org = self._orgs.get(name)
        if org is None:
            raise verdicts.unknown_org(name)
        return org

    def _current(self, org: Org | None, feature: str, now_ms: int) -> tuple[Entitlement, Counter] | None:
        """What the org may use of the feature now; remembered for as long as that cannot change."""
        if org is None:
            return None
        now_ms = org.present(now_ms)
        current = org.current.get(feature)
        if current is None or not current[0].from_ms <= now_ms < current[0].until_ms:
            entitlement = entitlement_for(feature, org.phases, self._plans.__getitem__, now_ms)
            if entitlement is None:
                return None
            current = org.current[feature] = (entitlement, self._counter(org, entitlement))
        return current

    def _counter(self, org: Org, entitlement: Entitlement) -> Counter:
        place = (entitlement.feature, entitlement.plan, entitlement.period.start_ms)
        counter = org.counters.get(place)
        if counter is None:
            counter = org.counters[place] = Counter(next(self._places))
            self._counters[counter.place] = counter
        return counter

    def _describe(self, op: Describe) -> OrgRecord:
        org = self._known(op.org)
        return OrgRecord(org.created_ms, org.info)

    def _payment_methods(self, op: LookUpPaymentMethods) -> tuple[Mapping[str, Any], ...]:
        self._known(op.org)
        return ()

    def _update_org(self, op: UpdateOrg) -> None:
        org = self._orgs.get(op.org) or Org(op.now_ms, op.now_ms)
        org.info = updated(org.info, op.info)
        self._orgs[op.org] = org  # only now: an update that is refused makes no org

    def _delete_org(self, op: DeleteOrg) -> None:
        for counter in self._known(op.org).counters.values():
            del self._counters[counter.place]
            counter.entries.clear()
        del self._orgs[op.org]
        self._changes.forget(op.org)
        self._changes.add()

    def _push(self, op: Push) -> tuple[PushResult, ...]:
        for name, plan in op.model.plans.items():
            conflict = plan_conflict(self._plans[name], plan) if name in self._plans else None
            if conflict is not None:
                raise conflict
        results = verdicts.push_results(op.model, self._plans)
        self._plans.update(op.model.plans)
        return results

    # ---- test clocks ------------------------------------------------------------------------------------------------

    def _advance_clock(self, op: AdvanceClock) -> ClockRecord:
        clock = self._clocks[op.id] = verdicts.advanced(self._look_up_clock(op), op.present_ms)
        return clock

    def _look_up_clock(self, op: LookUpClock | AdvanceClock) -> ClockRecord:
        clock = self._clocks.get(op.id)
        if clock is None:
            raise verdicts.unknown_clock(op.id)
        return clock


def _is_held(counter: Counter, id: int, demand: Demand, now_ms: int) -> bool:
    """Whether a reservation was sent before, and holds what it asks for."""
    held = counter.open.get(id)
    if held is None or held.expires_ms <= now_ms:
        return False
    if not held.entitlement.is_level and not held.counted:  # else less is held by now
        verdicts.same_hold(id, held.n, demand)
    return True
