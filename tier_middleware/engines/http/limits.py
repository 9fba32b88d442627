"""What this process knows of an org on a server: its limits, what was counted there, and what it did here since.

Values and decisions, without locks and without a network: `tier_middleware.engines.http.orgs` has those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, NamedTuple

from msgspec.structs import replace

from ...clock import milliseconds_of, moment
from ...model import Aggregate, Model
from ...names import MAX_UNITS
from ...ops import Checked, Committed, Demand, Granted, Hold, Renew, Reserve, Shortfall, Usage
from ...policy import FOREVER, KEY_LIFETIME_MS, Entitlement, Period, has_room, used_after
from ...reporting.batches import Batch
from .. import verdicts

__all__ = ["Event", "OpenHold", "OrgView"]

ANYWHERE: Final = Period(0, FOREVER)  # a billing period that nobody has told us


class Event(NamedTuple):
    """Something that this process counted: ``is_set`` for a clobber."""

    feature: str
    n: int
    is_set: bool = False


class OpenHold(NamedTuple):
    feature: str
    n: int
    expires_ms: int
    counted: int = 0
    """What renewals have counted of it."""


def after(used: int, event: Event, aggregate: Aggregate) -> int:
    """The usage after an event; a server may have let it grow beyond what can be counted."""
    if event.is_set or aggregate != "sum":
        return event.n if event.is_set else used_after(aggregate, used, event.n)
    return min(MAX_UNITS, used + event.n)


@dataclass(slots=True, eq=False)
class OrgView:
    """An org as the last answer of the server and this process's own work show it.

    ``asked_at`` is when that answer was asked for (never: -inf), on the monotonic clock: what was counted here since is
    in ``used``, and so is what had not been delivered then.
    """

    asked_at: float = -inf
    not_before: float = -inf
    """When the server may be asked again beside the requests: one that is away is not asked with each of them."""
    has_answer: bool = False
    is_known: bool = False
    has_period: bool = False
    entitlements: dict[str, Entitlement] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    reserved: Counter[str] = field(default_factory=Counter)
    holds: dict[int, OpenHold] = field(default_factory=dict)
    since: list[Event] | None = None
    """What was counted while the server was being asked; None where it is not."""

    # ---- what the server said, and what was done here ---------------------------------------------------------------

    def begin(self) -> None:
        """From here on an answer may not include what is counted."""
        self.since = []

    def learn(
        self,
        asked_at: float,
        usages: Sequence[Usage] | None,
        undelivered: Sequence[Batch],
        model: Model,
        period: Period | None,
    ) -> None:
        """An answer (None: the server does not know the org), and what it could not include."""
        self.asked_at, self.has_answer, self.is_known = asked_at, True, usages is not None
        self.has_period = period is not None or any(usage.resets_at is not None for usage in usages or ())
        known = usages or ()
        self.entitlements = {usage.feature: _entitlement(usage, model, period or ANYWHERE) for usage in known}
        self.used = {usage.feature: usage.used for usage in known}
        since, self.since = self.since or (), None
        events = [Event(one.feature, one.n, one.clobber) for one in undelivered if not (one.clobber and one.at_ms)]
        for event in (*events, *since):
            self.count(event)

    def count(self, event: Event) -> None:
        """Take note of what this process has reported."""
        entitlement = self.entitlements.get(event.feature)
        if entitlement is not None and entitlement.is_metered:
            self.used[event.feature] = after(self.used[event.feature], event, entitlement.aggregate)
        if self.since is not None:
            self.since.append(event)

    def let_go(self, id: int) -> OpenHold | None:
        """End a hold; None where it has ended before."""
        hold = self.holds.pop(id, None)
        if hold is not None:
            self.reserved[hold.feature] -= hold.n
        return hold

    def take(self, granted: Granted, expires_ms: int) -> None:
        """Note what the server has reserved for this process."""
        for hold in granted.holds:
            if hold is not None:
                self.holds[hold.id] = OpenHold(hold.feature, hold.n, expires_ms)
                self.reserved[hold.feature] += hold.n

    def renew(self, id: int, n: int, op: Renew) -> Committed:
        """Keep an open hold alive, of which n units more were counted."""
        hold, limit = self.holds[id], self.entitlements.get(self.holds[id].feature)
        has_expired, rest = hold.expires_ms <= op.now_ms, max(0, hold.n - n)
        expires_ms = hold.expires_ms if has_expired else max(hold.expires_ms, op.expires_ms)
        self.holds[id] = hold._replace(n=rest, expires_ms=expires_ms, counted=hold.counted + n)
        self.reserved[hold.feature] -= hold.n - rest
        if not n or limit is None:
            return Committed(has_expired=has_expired)
        before = self.used[hold.feature]
        self.count(Event(hold.feature, n))
        return Committed(verdicts.over(limit.limit, before, self.used[hold.feature]), has_expired=has_expired)

    def expire(self, now_ms: int) -> None:
        """Take back the capacity of holds that are over, and forget those whose commit would come too late."""
        for id, hold in list(self.holds.items()):
            if hold.expires_ms + KEY_LIFETIME_MS <= now_ms:
                self.let_go(id)
            elif hold.n and hold.expires_ms <= now_ms:
                self.let_go(id)
                self.holds[id] = hold._replace(n=0)

    # ---- decisions --------------------------------------------------------------------------------------------------

    def usage(self, feature: str) -> Usage:
        entitlement = self.entitlements.get(feature)
        if entitlement is None:
            return Usage(feature, used=0, limit=0)
        if not entitlement.is_metered:
            return Usage(feature, used=1, limit=None)
        resets_at_ms = entitlement.resets_at_ms if self.has_period else None
        resets_at = None if resets_at_ms is None else moment(resets_at_ms)
        return Usage(feature, self.used[feature], entitlement.limit, self.reserved[feature], resets_at)

    def all_usage(self) -> tuple[Usage, ...]:
        return tuple(self.usage(feature) for feature in sorted(self.entitlements))

    def shortfall(self, org: str, demand: Demand, now_ms: int) -> Shortfall | None:
        """Why a demand does not fit."""
        entitlement = self.entitlements.get(demand.feature)
        if entitlement is None:
            return verdicts.shortfall_of(org, demand, None, is_known=self.is_known)
        verdicts.checked_demand(demand, entitlement)
        used = self.used[demand.feature]
        if not entitlement.is_metered or has_room(entitlement, used, self.reserved[demand.feature], demand.n):
            return None
        self.expire(now_ms)
        reserved = self.reserved[demand.feature]
        if has_room(entitlement, used, reserved, demand.n):
            return None
        found = verdicts.shortfall_of(org, demand, entitlement, used, reserved)
        return found if self.has_period else replace(found, resets_at_ms=None)

    def checked(self, org: str, demand: Demand, now_ms: int) -> Checked:
        self.expire(now_ms)
        shortfall = self.shortfall(org, demand, now_ms)
        return Checked(self.usage(demand.feature), shortfall)

    def reserve(self, op: Reserve) -> Granted | Shortfall:
        for demand in op.demands:
            shortfall = self.shortfall(op.org, demand, op.now_ms)
            if shortfall is not None:
                return shortfall
        return Granted(tuple([self._hold(op, *pair) for pair in zip(op.ids, op.demands, strict=True)]))

    def _hold(self, op: Reserve, id: int, demand: Demand) -> Hold | None:
        entitlement = self.entitlements[demand.feature]
        if not entitlement.is_metered:
            return None
        n = 0 if entitlement.is_level else demand.n
        self.holds[id] = OpenHold(demand.feature, n, op.expires_ms)
        self.reserved[demand.feature] += n
        return Hold(id, op.org, demand.feature, n, 0)


def _entitlement(usage: Usage, model: Model, period: Period) -> Entitlement:
    if usage.resets_at is not None:
        period = Period(0, milliseconds_of(usage.resets_at, "resets_at"))
    is_metered = not model.is_on_off(usage.feature)
    aggregate = model.aggregate_of(usage.feature)  # a server's limits do not say of which plan they are
    return Entitlement(usage.feature, "", usage.limit, is_metered, aggregate, period, 0, FOREVER)
