"""What engines must answer, worked out from a list of everything that has happened, from its first event each time.

Written from the words of the design and sharing no code with the library: plain loops over datetimes, no indexes, no
milliseconds, nothing remembered between two questions but the list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

DAY = timedelta(days=1)
AHEAD = timedelta(minutes=5)

Place = tuple[str, str, datetime | None]  # feature, plan, start of the period; perpetual ones have no plan or period


class Mistake(Exception):
    """An error that must be raised: its class, and the path or code that it names."""

    def __init__(self, kind: str, where: str) -> None:
        super().__init__(kind, where)
        self.answer = (kind, where)


# ---- time -----------------------------------------------------------------------------------------------------------


def after(anchor: datetime, interval: str, count: int) -> datetime:
    """The anchor so many intervals later; a day that a month has not got is its last."""
    if interval in ("@daily", "@weekly"):
        return anchor + count * DAY * (1 if interval == "@daily" else 7)
    month = anchor.month - 1 + count * (1 if interval == "@monthly" else 12)
    for day in (anchor.day, 30, 29, 28):
        try:
            return anchor.replace(year=anchor.year + month // 12, month=month % 12 + 1, day=min(day, anchor.day))
        except ValueError:
            continue
    raise AssertionError(anchor)


def period(anchor: datetime, interval: str, at: datetime) -> tuple[datetime, datetime]:
    """The period that contains a moment, found by going through all of them."""
    count = 0
    while after(anchor, interval, count + 1) <= at:
        count += 1
    return after(anchor, interval, count), after(anchor, interval, count + 1)


# ---- what has happened ----------------------------------------------------------------------------------------------


@dataclass
class Scheduled:
    org: str
    now: datetime
    phases: list[tuple[datetime | None, list[str], bool]]
    is_end: bool = False  # a cancellation shortens what is pending, or moves an earlier one; a schedule replaces it


@dataclass
class Reserved:
    org: str
    feature: str
    n: int
    id: int
    now: datetime
    expires: datetime


@dataclass
class Pressed:
    """Somebody needed room, so what had expired was taken back."""

    org: str
    place: Place
    now: datetime


@dataclass
class Committed:
    id: int
    n: int
    is_capped: bool
    now: datetime


@dataclass
class Renewed:
    id: int
    n: int
    is_capped: bool
    now: datetime
    expires: datetime


@dataclass
class Released:
    id: int
    now: datetime


@dataclass
class Reported:
    org: str
    feature: str
    n: int
    key: str
    now: datetime
    at: datetime | None
    clobber: bool


@dataclass
class Adjusted:
    org: str
    feature: str
    delta: int
    key: str
    now: datetime


@dataclass
class Deleted:
    org: str


@dataclass
class Pushed:
    plans: dict[str, Any]


# ---- what that comes to ---------------------------------------------------------------------------------------------


@dataclass
class Phase:
    start: datetime
    anchor: datetime
    entries: list[str]
    trial: bool


@dataclass
class Right:
    """What an org may use: ``kind`` is the aggregate, or ``"on/off"``."""

    kind: str
    limit: int | None
    place: Place
    resets: datetime | None

    def fits(self, used: int, reserved: int, n: int) -> bool:
        if self.limit is None:
            return True
        if self.kind == "sum":
            return used + reserved + max(n, 1) <= self.limit
        return n <= self.limit if n else used < self.limit

    def reason(self, n: int) -> str:
        return "limit_reached" if self.limit is None or n <= self.limit else "amount_exceeds_limit"


@dataclass
class Hold:
    right: Right
    n: int
    expires: datetime
    counted: int = 0  # before its end


@dataclass
class Org:
    changed: datetime
    phases: list[Phase] = field(default_factory=list)
    used: dict[Place, int] = field(default_factory=dict)
    changes: list[tuple[str, datetime, int]] = field(default_factory=list)  # of what, when, by how much
    holds: dict[int, Hold] = field(default_factory=dict)


class World:
    """All that follows from the events so far."""

    def __init__(self) -> None:
        self.plans: dict[str, Any] = {}
        self.orgs: dict[str, Org] = {}
        self.keys: dict[str, object] = {}
        self.settled: dict[int, tuple[int, int]] = {}  # what a commit let pass, and left out

    def happen(self, event: Any) -> None:
        match event:
            case Pushed(plans):
                self.plans |= plans
            case Scheduled():
                self._schedule(event)
            case Deleted(org):
                del self.orgs[org]
            case Reserved(name, feature, n, id, now, expires):
                org, right = self.orgs[name], self.right_now(name, feature, now)
                if right is not None and right.kind != "on/off":
                    org.holds[id] = Hold(right, n if right.kind == "sum" else 0, expires)
            case Pressed(name, place, now):
                for hold in self.orgs[name].holds.values():
                    if hold.right.place == place and hold.expires <= now:
                        hold.n = 0
            case Committed(id, n, is_capped, now):
                self._commit(id, n, is_capped, now)
            case Renewed():
                self._renew(event)
            case Released(id, now):
                for org in self.orgs.values():
                    found = org.holds.pop(id, None)
                    if found is not None and found.counted:
                        self._count(org, found.right, -found.counted, now, is_set=False)
            case Reported(name, feature, n, key, now, at, clobber):
                right = self.right_at(name, feature, at or self.present(name, now))
                assert right is not None
                self._count(self.orgs[name], right, n, at or now, is_set=clobber)
                self.keys[key] = contents(event)
            case Adjusted(name, feature, delta, key, now):
                right = self.right_now(name, feature, now)
                assert right is not None
                before = self.orgs[name].used.get(right.place, 0)
                self._count(self.orgs[name], right, max(0, before + delta), now, is_set=True)
                self.keys[key] = contents(event)

    def _schedule(self, event: Scheduled) -> None:
        org = self.orgs.setdefault(event.org, Org(event.now))
        if not event.phases:
            return
        org.changed = self.present(event.org, event.now)
        kept_until = max(org.changed, event.phases[0][0] or org.changed) if event.is_end else org.changed
        org.phases = [phase for phase in org.phases if phase.start <= kept_until]
        while event.is_end and org.phases and org.phases[-1].start > org.changed and not org.phases[-1].entries:
            org.phases.pop()
        for start, entries, trial in event.phases:
            start = start or org.changed
            before = org.phases[-1] if org.phases else None
            if before and (before.entries, before.trial) == (entries, trial):
                continue
            anchor = before.anchor if before and before.entries else start
            org.phases = [phase for phase in org.phases if phase.start != start]
            org.phases.append(Phase(start, anchor, entries, trial))

    def _commit(self, id: int, n: int, is_capped: bool, now: datetime) -> None:
        self.settled[id] = (0, 0)
        for org in self.orgs.values():
            hold = org.holds.pop(id, None)
            if hold is None:
                continue
            n -= hold.counted
            counted = self._let_in(org, hold, n) if is_capped else n
            before = org.used.get(hold.right.place, 0)
            self._count(org, hold.right, counted, now, is_set=False)
            self.settled[id] = (passed(hold.right.limit, before, org.used[hold.right.place]), n - counted)

    def _renew(self, event: Renewed) -> None:
        self.settled[event.id] = (0, 0)
        for org in self.orgs.values():
            hold = org.holds.get(event.id)
            if hold is None:
                continue
            if hold.expires > event.now:
                hold.expires = max(hold.expires, event.expires)
            n = event.n - hold.counted
            if hold.right.kind != "sum" or n <= 0:
                continue
            del org.holds[event.id]
            counted = self._let_in(org, hold, n) if event.is_capped else n
            org.holds[event.id] = hold
            before = org.used.get(hold.right.place, 0)
            self._count(org, hold.right, counted, event.now, is_set=False)
            hold.counted += counted
            hold.n = max(0, hold.n - counted)
            self.settled[event.id] = (passed(hold.right.limit, before, org.used[hold.right.place]), 0)

    def _let_in(self, org: Org, hold: Hold, n: int) -> int:
        """How much of n a cap lets in of a hold that is not among the org's any more."""
        right = hold.right
        if right.limit is None:
            return n
        others = sum(other.n for other in org.holds.values() if other.right.place == right.place)
        left = right.limit - org.used.get(right.place, 0) - others if right.kind == "sum" else right.limit
        return min(n, max(hold.n, left))

    def _count(self, org: Org, right: Right, n: int, at: datetime, *, is_set: bool) -> None:
        before = org.used.get(right.place, 0)
        if not is_set and right.kind == "sum":
            n = max(0, before + n)
        elif not is_set and right.kind == "max":
            n = max(before, n)
        org.used[right.place] = n
        org.changes.append((right.place[0], at, n - before))

    def present(self, org: str, now: datetime) -> datetime:
        return max(now, self.orgs[org].changed) if org in self.orgs else now

    def phase_at(self, org: str, at: datetime) -> Phase | None:
        found = None
        for phase in self.orgs[org].phases:
            if phase.start <= at:
                found = phase
        return found

    def right_now(self, org: str, feature: str, now: datetime) -> Right | None:
        return self.right_at(org, feature, self.present(org, now)) if org in self.orgs else None

    def right_at(self, org: str, feature: str, at: datetime) -> Right | None:
        """What the org may use of a feature at a moment: of several plans that have it, the largest limit."""
        phase, best = self.phase_at(org, at), None
        for entry in phase.entries if phase else []:
            one, _, plan = entry.partition("@plan:")
            plan = f"plan:{plan}" if one.startswith("feature:") else entry
            if feature not in self.plans[plan]["features"] or (one.startswith("feature:") and one != feature):
                continue
            assert phase is not None
            kind, limit = self.plans[plan]["features"][feature]
            start, end = period(phase.anchor, self.plans[plan]["interval"], at)
            right = Right(kind, limit, (feature, plan, start), None if kind == "on/off" else end)
            if kind == "perpetual":
                right = Right(kind, limit, (feature, "", None), None)
            if best is None or (best.limit is not None and (limit is None or limit > best.limit)):
                best = right
        return best

    def reserved(self, org: str, place: Place, now: datetime | None) -> int:
        """What is held at a place; by reservations that live now, where a time is given."""
        total = 0
        for hold in self.orgs[org].holds.values():
            if hold.right.place == place and (now is None or hold.expires > now):
                total += hold.n
        return total


def passed(limit: int | None, before: int, now: int) -> int:
    """How many units of a change passed the limit."""
    return 0 if limit is None else max(0, now - max(limit, before))


def contents(event: Reported | Adjusted) -> object:
    if isinstance(event, Reported):
        return event.org, event.feature, event.n, event.at, event.clobber
    return event.org, event.feature, event.delta


# ---- what is asked --------------------------------------------------------------------------------------------------


class Oracle:
    """Asked before the engines are. A `Mistake` is an error that they must raise, having done nothing."""

    def __init__(self, default_plan: str | None) -> None:
        self.default_plan = default_plan
        self.events: list[Any] = []

    def world(self) -> World:
        world = World()
        for event in self.events:
            world.happen(event)
        return world

    def push(self, plans: dict[str, Any]) -> list[tuple[str, str]]:
        world = self.world()
        for name, plan in plans.items():
            if world.plans.get(name, plan) != plan:
                raise Mistake("PricingError", name)
        self.events.append(Pushed(plans))
        return sorted(
            (f"{feature}@{name}", "failed" if name in world.plans else "ok")
            for name, plan in plans.items()
            for feature in plan["features"]
        )

    # ---- subscriptions ----------------------------------------------------------------------------------------------

    def schedule(
        self,
        org: str,
        phases: list[tuple[datetime | None, list[str], bool]],
        now: datetime,
        *,
        is_end: bool = False,
    ) -> None:
        world = self.world()
        dated = []
        for start, entries, trial in phases:
            if start is not None and start < now - AHEAD:
                raise Mistake("InvalidRequest", "at" if is_end else "effective")
            dated.append((None if start is not None and start <= now else start, entries, trial))
        for _, entries, _ in dated:
            for entry in entries:
                one, _, plan = entry.partition("@plan:")
                plan = f"plan:{plan}" if one.startswith("feature:") else entry
                wanted = [one] if one.startswith("feature:") else []
                if plan not in world.plans or any(name not in world.plans[plan]["features"] for name in wanted):
                    raise Mistake("InvalidRequest", "features")
        if is_end and org not in world.orgs:
            raise Mistake("OrgNotFound", org)
        self.events.append(Scheduled(org, now, dated, is_end))

    def introduce(self, org: str, now: datetime) -> None:
        """Known by name, and subscribed to nothing yet."""
        self.events.append(Scheduled(org, now, []))

    def delete(self, org: str) -> None:
        self._known(self.world(), org)
        self.events.append(Deleted(org))

    # ---- reservations -----------------------------------------------------------------------------------------------

    def reserve(
        self, org: str, demands: list[tuple[str, int, bool]], ids: list[int], now: datetime, expires: datetime
    ) -> tuple[Any, ...]:
        """("granted", what each holds) or ("refused", ...)."""
        before = len(self.events)
        self._default(org, now)
        held: list[int | None] = []
        for feature, n, is_given in demands:
            world = self.world()
            right = world.right_now(org, feature, now)
            if right is None:
                code = "feature_not_found" if org in world.orgs else "org_not_found"
                return "refused", feature, 0, 0, 0, "no_entitlement", code, None
            if not is_given and right.kind not in ("sum", "on/off"):
                del self.events[before:]
                raise Mistake("InvalidRequest", "amount")
            used = world.orgs[org].used.get(right.place, 0)
            if not right.fits(used, world.reserved(org, right.place, None), n):
                self.events.append(Pressed(org, right.place, now))
                reserved = world.reserved(org, right.place, now)
                if not right.fits(used, reserved, n):
                    reason = right.reason(n)
                    return "refused", feature, used, reserved, right.limit, reason, reason, right.resets
            held.append(None if right.kind == "on/off" else n if right.kind == "sum" else 0)
        for (feature, n, _), id in zip(demands, ids, strict=True):
            self.events.append(Reserved(org, feature, n, id, now, expires))
        return "granted", held

    def commit(self, kept: list[tuple[int, int, bool]], now: datetime) -> list[tuple[int, int, bool]]:
        """For each: units that passed the limit, units that a cap left out, whether it was late."""
        answers = []
        for id, n, is_capped in kept:
            late = [org.holds[id].expires <= now for org in self.world().orgs.values() if id in org.holds]
            self.events.append(Committed(id, n, is_capped, now))
            answers.append((*self.world().settled[id], any(late)))
        return answers

    def renew(self, id: int, n: int, is_capped: bool, now: datetime, expires: datetime) -> tuple[int, int, bool]:
        late = [org.holds[id].expires <= now for org in self.world().orgs.values() if id in org.holds]
        self.events.append(Renewed(id, n, is_capped, now, expires))
        return (*self.world().settled[id], any(late))

    def release(self, ids: list[int], now: datetime) -> None:
        self.events += [Released(id, now) for id in ids]

    # ---- reports ----------------------------------------------------------------------------------------------------

    def report(self, event: Reported) -> int:
        """The units that passed the limit."""
        if self._is_sent_again(event):
            return 0
        before = len(self.events)
        self._default(event.org, event.now)
        try:
            self._check_report(event, event.at)
        except Mistake:
            del self.events[before:]
            raise
        world = self.world()
        right = world.right_at(event.org, event.feature, event.at or world.present(event.org, event.now))
        assert right is not None
        self.events.append(event)
        place, org = right.place, event.org
        return passed(right.limit, world.orgs[org].used.get(place, 0), self.world().orgs[org].used[place])

    def adjust(self, event: Adjusted) -> None:
        if not self._is_sent_again(event):
            self._check_report(event, None)
            self.events.append(event)

    def _is_sent_again(self, event: Reported | Adjusted) -> bool:
        known = self.world().keys.get(event.key)
        if known is not None and known != contents(event):
            raise Mistake("InvalidRequest", "key")
        return known is not None

    def _check_report(self, event: Reported | Adjusted, at: datetime | None) -> None:
        world = self.world()
        self._known(world, event.org)
        present = world.present(event.org, event.now)
        if at is not None:
            phase = world.phase_at(event.org, at)
            if at > present + AHEAD or phase is None or not phase.entries:
                raise Mistake("InvalidRequest", "at")
        right = world.right_at(event.org, event.feature, at or present)
        if right is None:
            raise Mistake("NotEntitled", event.feature)
        if right.kind == "on/off":
            raise Mistake("InvalidRequest", "feature")

    # ---- questions --------------------------------------------------------------------------------------------------

    def can(self, org: str, feature: str, n: int, now: datetime) -> tuple[Any, ...]:
        """ok, used, limit, remaining, reason."""
        self._default(org, now)
        world = self.world()
        right = world.right_now(org, feature, now)
        if right is None:
            return False, 0, 0, 0, "no_entitlement"
        used, reserved = world.orgs[org].used.get(right.place, 0), world.reserved(org, right.place, now)
        ok = right.fits(used, reserved, n)
        remaining = None if right.limit is None else max(0, right.limit - used - reserved)
        return ok, 1 if right.kind == "on/off" else used, right.limit, remaining, None if ok else right.reason(n)

    def limits(self, org: str, now: datetime) -> dict[str, tuple[Any, ...]]:
        """By feature: used, reserved, limit, remaining, resets_at."""
        world = self.world()
        self._known(world, org)
        answers: dict[str, tuple[Any, ...]] = {}
        for feature in {name for plan in world.plans.values() for name in plan["features"]}:
            right = world.right_now(org, feature, now)
            if right is not None and right.kind == "on/off":
                answers[feature] = (1, 0, None, None, None)
            elif right is not None:
                used, reserved = world.orgs[org].used.get(right.place, 0), world.reserved(org, right.place, now)
                remaining = None if right.limit is None else max(0, right.limit - used - reserved)
                answers[feature] = (used, reserved, right.limit, remaining, right.resets)
        return answers

    def phases(self, org: str, now: datetime) -> list[tuple[Any, ...]]:
        """The current phase and those to come: effective, end, entries, trial, billing period."""
        world = self.world()
        self._known(world, org)
        present, phases = world.present(org, now), world.orgs[org].phases
        answers = []
        for index, phase in enumerate(phases):
            end = phases[index + 1].start if index + 1 < len(phases) else None
            if phase.entries and (end is None or end > present):
                interval = world.plans["plan:" + phase.entries[0].partition("plan:")[2]]["interval"]
                billing = period(phase.anchor, interval, max(present, phase.start))
                answers.append((phase.start, end, sorted(phase.entries), phase.trial, *billing))
        return answers

    def weeks(self, org: str, feature: str) -> dict[datetime, int]:
        """By how much the usage changed in each week that changed it; weeks begin on Thursdays, as time did in 1970."""
        world = self.world()
        self._known(world, org)
        sums: dict[datetime, int] = {}
        for what, at, n in world.orgs[org].changes:
            if what == feature:
                start = datetime(1970, 1, 1, tzinfo=UTC)
                start += (at - start) // (7 * DAY) * 7 * DAY
                sums[start] = sums.get(start, 0) + n
        return {start: n for start, n in sums.items() if n}

    def _known(self, world: World, org: str) -> None:
        if org not in world.orgs:
            raise Mistake("OrgNotFound", org)

    def _default(self, org: str, now: datetime) -> None:
        """The default plan, for an org that never had a phase."""
        orgs = self.world().orgs
        if self.default_plan is not None and (org not in orgs or not orgs[org].phases):
            self.events.append(Scheduled(org, now, [(None, [self.default_plan], False)]))
