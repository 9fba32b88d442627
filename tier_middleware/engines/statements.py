"""What the embedded engine's operations do, in SQL. Every method runs inside a transaction that its caller began."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from msgspec.structs import replace

from ..ledger import Change, History
from ..names import MAX_UNITS, clock_of
from ..ops import (
    UNPLACED,
    Adjust,
    AdvanceClock,
    Check,
    Checked,
    Commit,
    Committed,
    DeleteOrg,
    Demand,
    Describe,
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
from ..policy import (
    KEY_LIFETIME_MS,
    Entitlement,
    entitlement_for,
    entitlements_for,
    has_room,
    used_adjusted,
    used_after,
)
from ..transfer import Line
from . import verdicts
from .catalogue import Catalogue, StoredOrg
from .changes import add_change, read_changes
from .connection import Connection
from .keys import find_key, forget_keys, remember_key
from .ledger import ENTER_COMMIT, Ledger
from .sqlite_transfer import SqliteTarget, lines_of
from .transfer import take_in

__all__ = ["COUNT", "PLACES_KEPT", "RESERVE", "NeedsWrite", "Perform", "Statements"]

Perform: TypeAlias = Callable[[Connection, Any], Any]

PLACES_KEPT: Final = 100_000  # remembered rows; about 20 MB

# The straight path: one row answers whether a feature is current, and whether n more fit.
RESERVE: Final = (
    "UPDATE units SET reserved = reserved + ? "
    "WHERE usage_id = ? AND id = 0 AND from_ms <= ? AND until_ms > ? AND n + reserved + ? <= limit_units"
)
# A reservation that is sent again finds its hold there.
HOLD: Final = "INSERT INTO units (usage_id, id, n, until_ms) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
# With its limit: the counter of a perpetual level outlives the plan that it was reserved in.
HOLD_LEVEL: Final = (
    "INSERT INTO units (usage_id, id, n, until_ms, limit_units) VALUES (?, ?, 0, ?, ?) ON CONFLICT DO NOTHING"
)
SETTLE: Final = "DELETE FROM units WHERE usage_id = ? AND id = ? AND n = ? AND until_ms > ?"
COUNT: Final = (
    "UPDATE units SET n = n + ?, reserved = reserved - ? WHERE usage_id = ? AND id = 0 AND n + ? <= limit_units"
)
# The way of everything else.
HELD: Final = "SELECT n, until_ms, limit_units, reserved FROM units WHERE usage_id = ? AND id = ?"
RENEW: Final = "UPDATE units SET n = ?, reserved = ?, until_ms = ? WHERE usage_id = ? AND id = ?"
COUNTER: Final = (
    "SELECT aggregate, limit_units, n, reserved FROM usage JOIN units ON units.usage_id = usage.id "
    "WHERE usage.id = ? AND units.id = 0"
)
SET_COUNTER: Final = "UPDATE units SET n = ?, reserved = ? WHERE usage_id = ? AND id = 0"
GIVE_BACK: Final = "UPDATE units SET reserved = reserved - ? WHERE usage_id = ? AND id = 0"

PLACE_OF: Final = (
    "SELECT usage.id FROM orgs JOIN usage ON org_id = orgs.id JOIN units ON usage_id = usage.id AND units.id = ? "
    "WHERE orgs.name = ? AND feature = ?"
)


class NeedsWrite(Exception):
    """A question turned out to need an answer that writes: do ``perform`` in a writing transaction instead."""

    def __init__(self, perform: Perform) -> None:
        super().__init__()
        self.perform = perform


@dataclass(slots=True)
class _Row:
    """A row of usage; without an id it has not been written yet."""

    id: int | None
    used: int
    reserved: int
    watched_ms: int | None = None


class _Settled(NamedTuple):
    """What a reservation kept when it was taken out of the books; ``limit_units`` of levels, else 0."""

    n: int
    expires_ms: int
    limit_units: int
    counted: int


class Statements:
    """The operations on one database, and what may be remembered between them: plans, and where usage is counted."""

    def __init__(self, catalogue: Catalogue, ledger: Ledger, places: dict[tuple[str, str], int]) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._places = places
        self._performs: dict[type[Op[Any]], tuple[Perform, bool]] = {
            Reserve: (self._reserve, True),
            Commit: (self._commit, True),
            Renew: (self._renew, True),
            Release: (self._release, True),
            Record: (self._record, True),
            Adjust: (self._adjust, True),
            Check: (self._check, False),
            LookUp: (self._look_up, False),
            LookUpKeys: (self._look_up_keys, False),
            ReadHistory: (self._read_history, False),
            ReadChanges: (read_changes, False),
            LookUpPhases: (self._catalogue.look_up_phases, False),
            Schedule: (self._catalogue.schedule, True),
            Describe: (self._catalogue.describe, False),
            LookUpPaymentMethods: (self._catalogue.payment_methods, False),
            UpdateOrg: (self._catalogue.update_org, True),
            DeleteOrg: (self._catalogue.delete_org, True),
            Push: (self._push, False),
            Pull: (self._catalogue.pull, False),
            MakeClock: (self._catalogue.make_clock, True),
            AdvanceClock: (self._catalogue.advance_clock, True),
            LookUpClock: (self._catalogue.look_up_clock, False),
            Identify: (self._catalogue.identify, False),
        }

    def of(self, op: Op[Any]) -> tuple[Perform, bool]:
        """How to perform an operation, and whether it writes."""
        return self._performs[type(op)]

    def committed(self, reply: object) -> None:
        """Remember where usage is counted; only once it is certain that the row is there."""
        if type(reply) is Granted:
            for hold in reply.holds:
                if hold is not None and hold.n:
                    if len(self._places) >= PLACES_KEPT:
                        self._places.clear()
                    self._places[hold.org, hold.feature] = hold.place

    # ---- reservations -----------------------------------------------------------------------------------------------

    def _reserve(self, db: Connection, op: Reserve) -> Granted | Shortfall:
        return self.reserve_at_once(db, op) or self.reserve_all(db, op)

    def reserve_at_once(self, db: Connection, op: Reserve) -> Granted | None:
        """The straight path: one demand, of a counter that is known and has room. None where anything is otherwise."""
        if len(op.demands) != 1:
            return None
        feature, n = op.demands[0].feature, op.demands[0].n
        place = self._places.get((op.org, feature))
        if place is None or not db.execute(RESERVE, (n, place, op.now_ms, op.now_ms, n or 1)).rowcount:
            return None
        if not db.execute(HOLD, (place, op.ids[0], n, op.expires_ms)).rowcount:
            db.execute(GIVE_BACK, (n, place))
            return None
        return Granted((Hold(op.ids[0], op.org, feature, n, place),))

    def reserve_all(self, db: Connection, op: Reserve) -> Granted | Shortfall:
        org = self._catalogue.with_default_plan(db, op.org, op.default_plan, op.now_ms)
        found: list[tuple[Entitlement, int]] = []
        for id, demand in zip(op.ids, op.demands, strict=True):
            entitlement = self._entitlement(db, org, demand.feature, op.now_ms)
            if org is None or entitlement is None:
                return verdicts.shortfall_of(op.org, demand, None, is_known=org is not None)
            verdicts.checked_demand(demand, entitlement)
            row = self._current_row(db, org, entitlement, op.now_ms)
            assert row.id is not None
            if not has_room(entitlement, row.used, row.reserved, demand.n):
                row.reserved -= self._expire(db, row.id, op.now_ms)
                has_none = not has_room(entitlement, row.used, row.reserved, demand.n)
                if has_none and not self._is_held(db, row.id, id, demand, op.now_ms):
                    return verdicts.shortfall_of(op.org, demand, entitlement, row.used, row.reserved)
            found.append((entitlement, row.id))
        return Granted(
            tuple(
                self._hold(db, op, id, demand, *place)
                for id, demand, place in zip(op.ids, op.demands, found, strict=True)
            )
        )

    def _hold(
        self, db: Connection, op: Reserve, id: int, demand: Demand, entitlement: Entitlement, place: int
    ) -> Hold | None:
        if not entitlement.is_metered:
            return None
        if entitlement.is_level:
            db.execute(HOLD_LEVEL, (place, id, op.expires_ms, _units(entitlement.limit)))
            return Hold(id, op.org, demand.feature, 0, place)
        hold = Hold(id, op.org, demand.feature, demand.n, place)
        if not db.execute(HOLD, (place, id, demand.n, op.expires_ms)).rowcount:
            if self._is_held(db, place, id, demand, op.now_ms):
                return hold
            expired = _Settled(*db.execute(HELD, (place, id)).fetchone())
            db.execute(GIVE_BACK, (expired.n, place))
            db.execute(RENEW, (demand.n, expired.counted, op.expires_ms, place, id))
        db.execute(GIVE_BACK, (-demand.n, place))
        return hold

    def _is_held(self, db: Connection, place: int, id: int, demand: Demand, now_ms: int) -> bool:
        """Whether a reservation was sent before, and holds what it asks for."""
        row = db.execute(HELD, (place, id)).fetchone()
        held = None if row is None else _Settled(*row)
        if held is None or held.expires_ms <= now_ms:
            return False
        if not held.counted:  # else less is held by now
            verdicts.same_hold(id, held.n, demand)
        return True

    def _commit(self, db: Connection, op: Commit) -> tuple[Committed, ...]:
        return tuple([self._commit_one(db, kept, op.now_ms) for kept in op.kept])

    def _commit_one(self, db: Connection, kept: Kept, now_ms: int) -> Committed:
        if kept.key and not self._is_first(db, kept, now_ms):
            return Committed()
        hold, n = kept.hold, kept.n
        if 0 < n <= hold.n:  # nearly always: what was reserved, or less, and in time
            entry = self._ledger.new_id(db, hold.org, now_ms)
            as_made = (hold.place, hold.id, hold.n, now_ms)
            way, parameters = (SETTLE, as_made) if entry is None else (ENTER_COMMIT, (entry, n, *as_made))
            if db.execute(way, parameters).rowcount:
                if db.execute(COUNT, (n, hold.n, hold.place, n)).rowcount:
                    return Committed()
                as_held = _Settled(hold.n, 0, 0, 0)
                return self._count(db, kept, as_held, now_ms)[0]  # a cap lets through what was held: the entry says n
        kept = self._found(db, kept)
        hold = kept.hold
        settled = self._settle(db, hold)
        if settled is None:
            return Committed()
        committed, change = self._count(db, kept, settled, now_ms)
        self._ledger.enter(db, hold.org, hold.place, change)
        return replace(committed, has_expired=settled.expires_ms <= now_ms)

    def _count(self, db: Connection, kept: Kept, settled: _Settled, now_ms: int) -> tuple[Committed, Change]:
        """Count a hold that was taken out of the books, where its units are still reserved.

        The limit is that of the hold; where it has none of its own the counter's has not changed since.
        """
        hold, n = kept.hold, kept.n - settled.counted
        aggregate, limit_units, used, reserved = db.execute(COUNTER, (hold.place,)).fetchone()
        limit, reserved = _limit(settled.limit_units or limit_units), reserved - settled.n
        allowed = verdicts.counted(aggregate, limit, used, reserved, settled.n, n) if kept.is_capped else n
        after = used_after(aggregate, used, allowed)
        db.execute(SET_COUNTER, (after, reserved, hold.place))
        level = None if aggregate == "sum" else allowed
        change = Change("commit", after - used, now_ms, now_ms, hold.id, level)
        return Committed(verdicts.over(limit, used, after), n - allowed), change

    def _renew(self, db: Connection, op: Renew) -> tuple[Committed, ...]:
        return tuple([self._renew_one(db, kept, op) for kept in op.kept])

    def _renew_one(self, db: Connection, kept: Kept, op: Renew) -> Committed:
        kept = self._found(db, kept)
        place = (kept.hold.place, kept.hold.id)
        row = db.execute(HELD, place).fetchone()
        if row is None:
            return Committed()
        held = _Settled(*row)
        aggregate, limit_units, used, reserved = db.execute(COUNTER, (kept.hold.place,)).fetchone()
        limit, others = _limit(limit_units), reserved - held.n
        n = verdicts.counted_so_far(
            aggregate, limit, used, others, held.n, kept.n - held.counted, is_capped=kept.is_capped
        )
        has_expired, rest = held.expires_ms <= op.now_ms, max(0, held.n - n)
        until_ms = held.expires_ms if has_expired else max(held.expires_ms, op.expires_ms)
        db.execute(RENEW, (rest, held.counted + n, until_ms, *place))
        if n:
            self._set_used_so_far(db, kept.hold, used, used + n, others + rest, op.now_ms)
        return Committed(verdicts.over(limit, used, used + n), has_expired=has_expired)

    def _set_used_so_far(self, db: Connection, hold: Hold, before: int, used: int, reserved: int, now_ms: int) -> None:
        """Change a usage for a hold that is not at its end, or that is taken back."""
        db.execute(SET_COUNTER, (used, reserved, hold.place))
        self._ledger.enter(db, hold.org, hold.place, Change("commit", used - before, now_ms, now_ms, hold.id))

    def _release(self, db: Connection, op: Release) -> None:
        for hold in op.holds:
            self._let_go(db, self._placed(db, hold), op.now_ms)

    def _let_go(self, db: Connection, hold: Hold, now_ms: int) -> None:
        settled = self._settle(db, hold)
        if settled is not None and settled.counted:
            _, _, used, reserved = db.execute(COUNTER, (hold.place,)).fetchone()
            after = used_adjusted(used, -settled.counted)
            self._set_used_so_far(db, hold, used, after, reserved - settled.n, now_ms)
        elif settled is not None and settled.n:
            db.execute(GIVE_BACK, (settled.n, hold.place))

    def _found(self, db: Connection, kept: Kept) -> Kept:
        return kept if kept.hold.place != UNPLACED else replace(kept, hold=self._placed(db, kept.hold))

    def _placed(self, db: Connection, hold: Hold) -> Hold:
        """A hold with the place where it was reserved, if it was."""
        if hold.place != UNPLACED:
            return hold
        row = db.execute(PLACE_OF, (hold.id, hold.org, hold.feature)).fetchone()
        return hold if row is None else replace(hold, place=row[0])

    def _settle(self, db: Connection, hold: Hold) -> _Settled | None:
        """Take a reservation out of the books: what it kept; None where that has been done before."""
        place = (hold.place, hold.id)
        row = db.execute(HELD, place).fetchone()
        if row is None:
            return None
        db.execute("DELETE FROM units WHERE usage_id = ? AND id = ?", place)
        return _Settled(*row)

    def _expire(self, db: Connection, place: int, now_ms: int) -> int:
        """Take back what expired reservations hold: how much that was."""
        freed = _expired(db, place, now_ms)
        if freed:
            db.execute("UPDATE units SET n = 0 WHERE usage_id = ? AND id > 0 AND until_ms <= ?", (place, now_ms))
            db.execute(GIVE_BACK, (freed, place))
            # what expired so long ago is not committed any more
            forgotten = (place, now_ms - KEY_LIFETIME_MS)
            db.execute("DELETE FROM units WHERE usage_id = ? AND id > 0 AND until_ms <= ?", forgotten)
        return freed

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _record(self, db: Connection, op: Record) -> Recorded:
        if self._is_known_key(db, op):
            return Recorded(is_new=False)
        org = self._catalogue.with_default_plan(db, op.org, op.default_plan, op.now_ms)
        entitlement, row = self._reported(db, op, org)
        return self._set_used(
            db, op, entitlement, row, op.n if op.clobber else used_after(entitlement.aggregate, row.used, op.n)
        )

    def _adjust(self, db: Connection, op: Adjust) -> Recorded:
        if self._is_known_key(db, op):
            return Recorded(is_new=False)
        entitlement, row = self._reported(db, op, self._catalogue.find(db, op.org))
        return self._set_used(db, op, entitlement, row, used_adjusted(row.used, op.delta))

    def _is_known_key(self, db: Connection, op: Record | Adjust) -> bool:
        clock = clock_of(op.org)
        forget_keys(db, clock, op.now_ms)
        known = find_key(db, clock, op.key)
        if known is not None:
            verdicts.same_contents(op.key, known.contents, verdicts.contents_of(op))
        return known is not None

    def _is_first(self, db: Connection, kept: Kept, now_ms: int) -> bool:
        """Whether a key has not counted yet, which from now on it has; else its hold is given back."""
        hold = self._found(db, kept).hold
        if db.execute(HELD, (hold.place, hold.id)).fetchone() is None:
            return True  # it was settled before, and is passed over
        clock = clock_of(hold.org)
        forget_keys(db, clock, now_ms)
        if find_key(db, clock, kept.key) is None:
            remember_key(db, clock, kept.key, verdicts.ONCE, now_ms)
            return True
        self._let_go(db, hold, now_ms)
        return False

    def _look_up_keys(self, db: Connection, op: LookUpKeys) -> tuple[bool, ...]:
        found = [find_key(db, clock_of(op.org), key) for key in op.keys]
        return tuple([known is not None and known.expires_ms > op.now_ms for known in found])

    def _reported(self, db: Connection, op: Record | Adjust, org: StoredOrg | None) -> tuple[Entitlement, _Row]:
        if org is None:
            raise verdicts.unknown_org(op.org)
        entitlement = verdicts.reported_entitlement(op, org.phases, self._catalogue.plan_of(db), org.present(op.now_ms))
        return entitlement, self._existing_row(db, org, entitlement, op.now_ms)

    def _set_used(
        self, db: Connection, op: Record | Adjust, entitlement: Entitlement, row: _Row, used: int
    ) -> Recorded:
        db.execute("UPDATE units SET n = ? WHERE usage_id = ? AND id = 0", (used, row.id))
        remember_key(db, clock_of(op.org), op.key, verdicts.contents_of(op), op.now_ms)
        assert row.id is not None
        self._ledger.enter(db, op.org, row.id, verdicts.change_of(op, entitlement.aggregate, row.used, used))
        return Recorded(verdicts.over(entitlement.limit, row.used, used))

    # ---- questions --------------------------------------------------------------------------------------------------

    def _check(self, db: Connection, op: Check) -> Checked:
        org = self._catalogue.find(db, op.org)
        if op.default_plan is not None and (org is None or not org.phases):
            raise NeedsWrite(self._check_with_default_plan)
        return self._checked(db, op, org)

    def _check_with_default_plan(self, db: Connection, op: Check) -> Checked:
        return self._checked(db, op, self._catalogue.with_default_plan(db, op.org, op.default_plan, op.now_ms))

    def _checked(self, db: Connection, op: Check, org: StoredOrg | None) -> Checked:
        entitlement = self._entitlement(db, org, op.demand.feature, op.now_ms)
        if org is None or entitlement is None:
            return verdicts.not_checked(op.org, op.demand, is_known=org is not None)
        verdicts.checked_demand(op.demand, entitlement)
        row = self._live_row(db, org, entitlement, op.now_ms)
        usage = verdicts.usage_of(entitlement, row.used, row.reserved)
        if has_room(entitlement, row.used, row.reserved, op.demand.n):
            return Checked(usage, None)
        return Checked(usage, verdicts.shortfall_of(op.org, op.demand, entitlement, row.used, row.reserved))

    def shortfall(self, db: Connection, op: Reserve) -> Shortfall | None:
        """Why a reservation would be refused at this moment. None where it would not, or where that cannot be known
        without writing.
        """
        org = self._catalogue.find(db, op.org)
        if op.default_plan is not None and (org is None or not org.phases):
            return None
        for id, demand in zip(op.ids, op.demands, strict=True):
            entitlement = self._entitlement(db, org, demand.feature, op.now_ms)
            if org is None or entitlement is None:
                return verdicts.shortfall_of(op.org, demand, None, is_known=org is not None)
            verdicts.checked_demand(demand, entitlement)
            row = self._live_row(db, org, entitlement, op.now_ms)
            has_none = not has_room(entitlement, row.used, row.reserved, demand.n)
            if has_none and (row.id is None or not self._is_held(db, row.id, id, demand, op.now_ms)):
                return verdicts.shortfall_of(op.org, demand, entitlement, row.used, row.reserved)
        return None

    def _look_up(self, db: Connection, op: LookUp) -> tuple[Usage, ...]:
        org = self._catalogue.known(db, op.org)
        found = entitlements_for(org.phases, self._catalogue.plan_of(db), org.present(op.now_ms))
        rows = {name: self._live_row(db, org, found[name], op.now_ms) for name in sorted(found)}
        return tuple(verdicts.usage_of(found[name], row.used, row.reserved) for name, row in rows.items())

    def _push(self, db: Connection, op: Push) -> tuple[PushResult, ...]:
        """Pushing what is there already, as every start does, waits for nobody."""
        if not self._catalogue.has_all(db, op.model):
            raise NeedsWrite(self._catalogue.push)
        return self._catalogue.push(db, op)

    def _read_history(self, db: Connection, op: ReadHistory) -> History:
        org = self._catalogue.known(db, op.org)
        return verdicts.history_of(op, self._ledger.entries(db, org.id, op.feature, op.since_ms))

    # ---- moving -----------------------------------------------------------------------------------------------------

    def lines(self, db: Connection) -> Iterator[Line]:
        return lines_of(db, self._catalogue, self._ledger)

    def take_in(self, db: Connection, lines: Iterable[Line], now_ms: int, *, replace: bool) -> None:
        target = SqliteTarget(db, self._catalogue, now_ms)
        take_in(lines, target, replace=replace)
        target.finish()
        add_change(db)

    # ---- usage rows -------------------------------------------------------------------------------------------------

    def _entitlement(self, db: Connection, org: StoredOrg | None, feature: str, now_ms: int) -> Entitlement | None:
        return (
            None
            if org is None
            else entitlement_for(feature, org.phases, self._catalogue.plan_of(db), org.present(now_ms))
        )

    def _row(self, db: Connection, org: StoredOrg, entitlement: Entitlement) -> _Row:
        row = db.execute(
            "SELECT usage.id, n, reserved, at_ms FROM usage JOIN units ON units.usage_id = usage.id AND units.id = 0 "
            "WHERE org_id = ? AND feature = ? AND plan = ? AND start_ms = ?",
            (org.id, entitlement.feature, entitlement.plan, entitlement.period.start_ms),
        ).fetchone()
        return _Row(None, 0, 0) if row is None else _Row(*row)

    def _live_row(self, db: Connection, org: StoredOrg, entitlement: Entitlement, now_ms: int) -> _Row:
        """The row as a reader sees it: what has expired is free, though nobody has written that down yet."""
        row = self._row(db, org, entitlement)
        if row.id is not None and row.reserved:
            row.reserved -= _expired(db, row.id, now_ms)
        return row

    def _existing_row(self, db: Connection, org: StoredOrg, entitlement: Entitlement, now_ms: int) -> _Row:
        row = self._row(db, org, entitlement)
        if row.id is None:
            row.id = db.execute(
                "INSERT INTO usage (org_id, feature, plan, start_ms, aggregate) VALUES (?, ?, ?, ?, ?)",
                (
                    org.id,
                    entitlement.feature,
                    entitlement.plan,
                    entitlement.period.start_ms,
                    entitlement.aggregate,
                ),
            ).lastrowid
            limit_units = _units(entitlement.limit)
            db.execute("INSERT INTO units (usage_id, id, n, limit_units) VALUES (?, 0, 0, ?)", (row.id, limit_units))
        if row.watched_ms is None and self._ledger.kept_ms:
            assert row.id is not None
            self._ledger.watch(db, org.clock, row.id, self._ledger.due_ms(now_ms))
        return row

    def _current_row(self, db: Connection, org: StoredOrg, entitlement: Entitlement, now_ms: int) -> _Row:
        """The row, written down as the one that answers for the feature until the entitlement ends."""
        row = self._existing_row(db, org, entitlement, now_ms)
        current = (_units(entitlement.limit), entitlement.from_ms, entitlement.until_ms)
        db.execute(
            "UPDATE units SET limit_units = ?, from_ms = ?, until_ms = ? "
            "WHERE usage_id = ? AND id = 0 AND (limit_units, from_ms, until_ms) <> (?, ?, ?)",
            (*current, row.id, *current),
        )
        return row


def _expired(db: Connection, place: int, now_ms: int) -> int:
    """What is still held by reservations that have expired."""
    (n,) = db.execute(
        "SELECT coalesce(sum(n), 0) FROM units WHERE usage_id = ? AND id > 0 AND until_ms <= ?", (place, now_ms)
    ).fetchone()
    return int(n)


def _units(limit: int | None) -> int:
    return MAX_UNITS if limit is None else limit


def _limit(units: int) -> int | None:
    return None if units == MAX_UNITS else units
