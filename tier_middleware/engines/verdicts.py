"""What engines answer when the answer is no, and the checks they share: written once, so that engines cannot differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from ..clock import moment, rfc3339
from ..errors import ConfigurationError, InvalidRequest, LimitReached, NotEntitled, OrgNotFound, Refused
from ..ledger import Change, Entry, History, entries_in, sums_in
from ..model import Aggregate, Model, Phase, Plan
from ..names import MAX_UNITS, org_name
from ..ops import Adjust, Checked, ClockRecord, Demand, PhasesInfo, PushResult, ReadHistory, Record, Shortfall, Usage
from ..policy import Entitlement, PlanOf, current_phase, entitlement_for, phases_from, reason_for, reported_at

__all__ = [
    "ONCE",
    "advanced",
    "change_of",
    "checked_demand",
    "checked_moment",
    "contents_of",
    "counted",
    "counted_so_far",
    "history_of",
    "not_checked",
    "over",
    "phases_info",
    "push_results",
    "refused",
    "reported_entitlement",
    "same_contents",
    "same_hold",
    "shortfall_of",
    "unknown_clock",
    "unknown_default_plan",
    "unknown_org",
    "usage_of",
]

ONCE: Final = "once"
"""The contents of a key that a commit has left: of another hold of the same request they may be others."""


def unknown_org(org: str) -> OrgNotFound:
    name = org_name(org)
    return OrgNotFound(f"org not found: {name!r} was never subscribed; call subscribe()", org=name)


def unknown_clock(id: str) -> InvalidRequest:
    return InvalidRequest(f"clock: {id!r} is not known; make one with with_clock()", path="clock")


def advanced(clock: ClockRecord, present_ms: int) -> ClockRecord:
    """A clock, moved forwards."""
    if present_ms <= clock.present_ms:
        raise InvalidRequest(
            f"to: must be after {rfc3339(clock.present_ms)}, where {clock.id!r} stands, got {rfc3339(present_ms)}",
            path="to",
        )
    return clock._replace(present_ms=present_ms)


def unknown_default_plan(plan: str) -> ConfigurationError:
    return ConfigurationError(f"TIER_DEFAULT_PLAN: {plan!r} is not in the pricing model", path="TIER_DEFAULT_PLAN")


def usage_of(entitlement: Entitlement, used: int, reserved: int) -> Usage:
    if not entitlement.is_metered:
        return Usage(entitlement.feature, used=1, limit=None)
    resets_at_ms = entitlement.resets_at_ms
    resets_at = None if resets_at_ms is None else moment(resets_at_ms)
    return Usage(entitlement.feature, used, entitlement.limit, reserved, resets_at)


def checked_demand(demand: Demand, entitlement: Entitlement) -> None:
    if entitlement.is_level and entitlement.is_metered and not demand.is_given:
        raise InvalidRequest(
            f"amount: must be given for {demand.feature!r}, whose aggregate is {entitlement.aggregate!r} "
            "(a level is set, not counted up), got nothing",
            path="amount",
        )


def shortfall_of(
    org: str,
    demand: Demand,
    entitlement: Entitlement | None,
    used: int = 0,
    reserved: int = 0,
    *,
    is_known: bool = True,
) -> Shortfall:
    """Why a demand was refused: without an entitlement, because the org (if known) has not got the feature."""
    org = org_name(org)
    if entitlement is None:
        code = "feature_not_found" if is_known else "org_not_found"
        return Shortfall(org, demand.feature, demand.n, 0, 0, 0, "no_entitlement", code)
    reason = reason_for(entitlement, demand.n)
    return Shortfall(
        org, demand.feature, demand.n, used, reserved, entitlement.limit, reason, reason, entitlement.resets_at_ms
    )


def refused(shortfall: Shortfall) -> Refused:
    """The error that says what a shortfall says."""
    kind: type[Refused] = LimitReached
    text = f"{shortfall.used} of {shortfall.limit} used"
    if shortfall.reserved:
        text += f", {shortfall.reserved} more reserved"
    if shortfall.code == "org_not_found":
        kind, text = OrgNotFound, "the org was never subscribed; call subscribe()"
    elif shortfall.code == "feature_not_found":
        kind, text = NotEntitled, "it is not in the org's plan"
    return kind(
        f"{shortfall.org!r} cannot use {shortfall.requested} of {shortfall.feature!r}: {text}",
        org=shortfall.org,
        feature=shortfall.feature,
        requested=shortfall.requested,
        used=shortfall.used,
        limit=shortfall.limit,
        reason=shortfall.reason,
        code=shortfall.code,
        resets_at=None if shortfall.resets_at_ms is None else moment(shortfall.resets_at_ms),
    )


def not_checked(org: str, demand: Demand, *, is_known: bool) -> Checked:
    """The check's answer for an org that has not got the feature."""
    return Checked(Usage(demand.feature, 0, 0), shortfall_of(org, demand, None, is_known=is_known))


def checked_moment(at_ms: int, now_ms: int) -> None:
    """Refuse the time of a report that lies too far ahead."""
    reported_at(at_ms, now_ms)


def reported_entitlement(op: Record | Adjust, phases: Sequence[Phase], plan_of: PlanOf, present_ms: int) -> Entitlement:
    """Where a report or a correction counts; raises what `Record` says where it cannot."""
    asked = op.at_ms if isinstance(op, Record) else None
    at_ms = reported_at(asked, present_ms)
    phase, _ = current_phase(phases, at_ms)
    if asked is not None and (phase is None or not phase.features):
        raise InvalidRequest(
            f"at: must lie in a period of the subscription of {org_name(op.org)!r}, got {rfc3339(at_ms)}", path="at"
        )
    entitlement = entitlement_for(op.feature, phases, plan_of, at_ms)
    if entitlement is None:
        org = org_name(op.org)
        raise NotEntitled(f"feature not found: {org!r} has not got {op.feature!r}", org=org, feature=op.feature)
    if not entitlement.is_metered:
        raise InvalidRequest(
            f"feature not reportable: {op.feature!r} is on/off in {entitlement.plan!r}", path="feature"
        )
    return entitlement


def phases_info(phases: Sequence[Phase], plan_of: PlanOf, present_ms: int) -> PhasesInfo:
    coming = phases_from(phases, present_ms)
    plans = {entry.plan: plan_of(entry.plan) for phase in coming for entry in phase.features}
    return PhasesInfo(coming, Model(plans), present_ms)


def push_results(model: Model, stored: Mapping[str, Plan]) -> tuple[PushResult, ...]:
    """What a push of plans that do not conflict does, feature by feature, in Tier's words."""
    return tuple(
        PushResult(f"{feature}@{name}", "failed", "plan already exists")
        if name in stored
        else PushResult(f"{feature}@{name}", "ok", "created")
        for name, plan in sorted(model.plans.items())
        for feature in sorted(plan.features)
    )


def contents_of(op: Record | Adjust) -> str:
    """What must be the same when a key is sent again: a digest, so that a deleted org's name is not kept in it."""
    parts: tuple[Any, ...] = ("report", op.org, op.feature)
    parts += (op.n, op.at_ms, op.clobber) if isinstance(op, Record) else ("adjust", op.delta)
    return sha256(repr(parts).encode()).hexdigest()


def change_of(op: Record | Adjust, aggregate: Aggregate, before: int, used: int) -> Change:
    """The entry of a report or a correction that changed a usage."""
    if isinstance(op, Adjust):
        return Change("adjust", used - before, op.now_ms, op.now_ms, op.key, None, op.note)
    level = op.n if op.clobber or aggregate != "sum" else None
    at_ms = op.now_ms if op.at_ms is None else op.at_ms
    return Change("clobber" if op.clobber else "report", used - before, at_ms, op.now_ms, op.key, level, op.note)


def history_of(op: ReadHistory, entries: Iterable[Entry]) -> History:
    if op.step_ms is None:
        return entries_in(entries, op.since_ms, op.until_ms)
    return sums_in(entries, op.step_ms, op.since_ms, op.until_ms, op.now_ms)


def same_contents(key: str, known: str, sent: str) -> None:
    if known != sent:
        raise InvalidRequest(f"key: {key!r} was used before with other contents", path="key")


def same_hold(id: int, held: int, demand: Demand) -> None:
    """A reservation that is sent again asks for what it asked for before."""
    if held != demand.n:
        raise InvalidRequest(f"ids: {id} holds {held} of {demand.feature!r} already, got {demand.n}", path="ids")


def counted(aggregate: Aggregate, limit: int | None, used: int, reserved: int, held: int, n: int) -> int:
    """How many of n units a cap lets through: what was ``held`` in any case. ``reserved`` is what others hold."""
    if limit is None:
        return n
    return min(n, max(held, limit - used - reserved) if aggregate == "sum" else limit)


def counted_so_far(
    aggregate: Aggregate, limit: int | None, used: int, reserved: int, held: int, n: int, *, is_capped: bool
) -> int:
    """How many of n units that a hold has newly used are counted before its end. Never more than can be."""
    if aggregate != "sum" or n <= 0:
        return 0
    return min(counted(aggregate, limit, used, reserved, held, n) if is_capped else n, MAX_UNITS - used)


def over(limit: int | None, before: int, after: int) -> int:
    """How many units of a change passed the limit."""
    return 0 if limit is None else max(0, after - max(limit, before))
