"""What an org may use, and when: pure decisions that every engine makes in the same way.

Nothing here reads a clock, a file or a database. Times are whole milliseconds since the Unix epoch.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, Literal, NamedTuple, TypeAlias

from .clock import DAY_MS, milliseconds_of, moment, rfc3339
from .errors import InvalidRequest
from .model import Aggregate, Feature, Interval, Phase, Plan
from .names import MAX_UNITS, FeaturePlan, nearest

__all__ = [
    "AHEAD_MS",
    "FOREVER",
    "KEY_LIFETIME_MS",
    "Entitlement",
    "Period",
    "PlanOf",
    "PlannedPhase",
    "Reason",
    "checked_features",
    "current_phase",
    "entitlement_for",
    "entitlements_for",
    "has_room",
    "period_at",
    "phases_after",
    "phases_from",
    "reason_for",
    "reported_at",
    "used_adjusted",
    "used_after",
]

Reason: TypeAlias = Literal["no_org", "no_entitlement", "limit_reached", "amount_exceeds_limit", "engine_unavailable"]
"""Why a request was refused, or (``engine_unavailable``) why nobody knows."""

AHEAD_MS: Final = 5 * 60 * 1000  # how far a reported time may be ahead: clocks of two machines differ
KEY_LIFETIME_MS: Final = 35 * DAY_MS  # how long a key is remembered: longer than a month's outage of a reporter
FOREVER: Final = 2**62  # ends what has no end; leaves room to add to it

PlanOf: TypeAlias = Callable[[str], Plan]


class Period(NamedTuple):
    """A billing period: from ``start_ms`` up to, not including, ``end_ms``."""

    start_ms: int
    end_ms: int


class PlannedPhase(NamedTuple):
    """A phase that a schedule asks for, from a moment on (None: from now); no features cancels."""

    effective_ms: int | None
    features: tuple[FeaturePlan, ...]
    trial: bool = False


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What one org may use of one feature from ``from_ms`` up to ``until_ms``.

    ``plan`` and ``period`` say where its usage is kept. A ``perpetual`` feature keeps one usage for all plans
    and times: an upgrade does not empty the seats that are taken.
    """

    feature: str
    plan: str
    limit: int | None
    is_metered: bool
    aggregate: Aggregate
    period: Period
    from_ms: int
    until_ms: int
    is_level: bool = field(init=False)
    """Levels (seats, storage) are set, not added to: nothing is reserved for them."""
    is_counter: bool = field(init=False)
    """What is neither on/off nor a level."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_level", self.aggregate != "sum")
        object.__setattr__(self, "is_counter", self.is_metered and not self.is_level)

    @property
    def resets_at_ms(self) -> int | None:
        return None if self.aggregate == "perpetual" or not self.is_metered else self.period.end_ms


def period_at(anchor_ms: int, interval: Interval, at_ms: int) -> Period:
    """The billing period that contains ``at_ms``, counted from the start of the subscription.

    Month ends go as calendars do: 31 Jan, 28 or 29 Feb, 31 Mar; a 29 Feb is a 28 Feb in other years.
    """
    if interval in ("@daily", "@weekly"):
        length = DAY_MS if interval == "@daily" else 7 * DAY_MS
        start = anchor_ms + (at_ms - anchor_ms) // length * length
        return Period(start, start + length)
    step = 1 if interval == "@monthly" else 12
    anchor, at = moment(anchor_ms), moment(at_ms)
    count = ((at.year - anchor.year) * 12 + at.month - anchor.month) // step
    if _months_after(anchor_ms, count * step) > at_ms:
        count -= 1
    elif _months_after(anchor_ms, (count + 1) * step) <= at_ms:
        count += 1
    return Period(_months_after(anchor_ms, count * step), _months_after(anchor_ms, (count + 1) * step))


def _months_after(anchor_ms: int, months: int) -> int:
    anchor = moment(anchor_ms)
    year, month = divmod(anchor.year * 12 + anchor.month - 1 + months, 12)
    day = min(anchor.day, monthrange(year, month + 1)[1])
    return milliseconds_of(anchor.replace(year=year, month=month + 1, day=day), "anchor")


def current_phase(phases: Sequence[Phase], at_ms: int) -> tuple[Phase | None, int]:
    """The phase at a moment, and when the next one begins. ``phases`` are in order of their effective times."""
    index = bisect_right(phases, at_ms, key=lambda phase: phase.effective_ms)
    until = phases[index].effective_ms if index < len(phases) else FOREVER
    return (phases[index - 1] if index else None), until


def phases_from(phases: Sequence[Phase], at_ms: int) -> tuple[Phase, ...]:
    """The phase at a moment and those after it; none where neither it nor they have features."""
    index = bisect_right(phases, at_ms, key=lambda phase: phase.effective_ms)
    coming = tuple(phases[max(0, index - 1) :])
    return coming if any(phase.features for phase in coming) else ()


def entitlements_for(phases: Sequence[Phase], plan_of: PlanOf, at_ms: int) -> dict[str, Entitlement]:
    """All that an org with these phases may use at a moment, by feature."""
    phase, until_ms = current_phase(phases, at_ms)
    found: dict[str, Entitlement] = {}
    for entry in phase.features if phase else ():
        plan = plan_of(entry.plan)
        for name in plan.features if entry.feature is None else (entry.feature,):
            assert phase is not None
            offered = _entitlement(name, plan, phase, until_ms, at_ms)
            if name not in found or _is_larger(offered, found[name]):
                found[name] = offered
    return found


def entitlement_for(feature: str, phases: Sequence[Phase], plan_of: PlanOf, at_ms: int) -> Entitlement | None:
    """What the org may use of one feature at a moment; of two plans that have it, the larger limit."""
    phase, until_ms = current_phase(phases, at_ms)
    best: Entitlement | None = None
    for entry in phase.features if phase else ():
        plan = plan_of(entry.plan)
        if feature in plan.features and entry.feature in (None, feature):
            assert phase is not None
            offered = _entitlement(feature, plan, phase, until_ms, at_ms)
            if best is None or _is_larger(offered, best):
                best = offered
    return best


def _entitlement(name: str, plan: Plan, phase: Phase, until_ms: int, at_ms: int) -> Entitlement:
    feature: Feature = plan.features[name]
    period = period_at(phase.anchor_ms, plan.interval, at_ms)
    from_ms, until_ms = max(period.start_ms, phase.effective_ms), min(period.end_ms, until_ms)
    plan_name = plan.name
    if feature.aggregate == "perpetual":
        plan_name, period = "", Period(0, FOREVER)
    return Entitlement(name, plan_name, feature.limit, feature.is_metered, feature.aggregate, period, from_ms, until_ms)


def _is_larger(one: Entitlement, other: Entitlement) -> bool:
    return other.limit is not None and (one.limit is None or one.limit > other.limit)


def has_room(entitlement: Entitlement, used: int, reserved: int, n: int) -> bool:
    """Whether n more units fit. An n of 0 asks whether anything is left. Unlimited ends where counting does."""
    limit = MAX_UNITS if entitlement.limit is None else entitlement.limit
    if not entitlement.is_level:
        return used + reserved + (n or 1) <= limit
    return n <= limit if n else used < limit


def reason_for(entitlement: Entitlement, n: int) -> Reason:
    """Why n units did not fit: ``amount_exceeds_limit`` where an empty period would not hold them either."""
    too_many = entitlement.limit is not None and n > entitlement.limit
    return "amount_exceeds_limit" if too_many else "limit_reached"


def used_after(aggregate: Aggregate, used: int, n: int) -> int:
    """The usage after n units were reported, or of a sum taken back (n < 0)."""
    if aggregate == "sum":
        return used_adjusted(used, n)
    return max(used, n) if aggregate == "max" else n


def used_adjusted(used: int, delta: int) -> int:
    """The usage after a correction; never below 0."""
    return _bounded(max(0, used + delta))


def _bounded(used: int) -> int:
    if used > MAX_UNITS:
        raise InvalidRequest(f"n: the usage of a period must be at most {MAX_UNITS}, would be {used}", path="n")
    return used


def reported_at(at_ms: int | None, now_ms: int) -> int:
    """The moment a report speaks of: at most five minutes ahead."""
    if at_ms is None:
        return now_ms
    if at_ms > now_ms + AHEAD_MS:
        raise InvalidRequest(
            f"at: must be at most five minutes ahead of {rfc3339(now_ms)}, got {rfc3339(at_ms)}",
            path="at",
        )
    return at_ms


def phases_after(
    phases: Sequence[Phase], planned: Sequence[PlannedPhase], now_ms: int, *, keeps_pending: bool = False
) -> tuple[Phase, ...]:
    """An org's phases once a schedule is in force: what was pending is replaced, what has been is kept.

    With ``keeps_pending`` only what was pending after the first planned phase is replaced, and a cancellation right
    before it. A phase that follows one with features belongs to the same subscription and keeps its anchor; one that
    follows a cancellation, or nothing, starts a subscription of its own.
    """
    dated = [(now_ms if plan.effective_ms is None else plan.effective_ms, plan) for plan in planned]
    until_ms = max(now_ms, min((begin_ms for begin_ms, _ in dated), default=now_ms)) if keeps_pending else now_ms
    kept = [phase for phase in phases if phase.effective_ms <= until_ms]
    while kept and kept[-1].effective_ms > now_ms and not kept[-1].features:
        kept.pop()
    for effective_ms, plan in sorted(dated, key=itemgetter(0)):
        while kept and kept[-1].effective_ms > effective_ms:  # a phase in the past replaces what came after it
            kept.pop()
        before = kept[-1] if kept else None
        if before is not None and before.features == plan.features and before.trial == plan.trial:
            continue
        anchor = before.anchor_ms if before is not None and before.features else effective_ms
        if kept and kept[-1].effective_ms == effective_ms:
            kept.pop()
        kept.append(Phase(effective_ms, anchor, plan.features, plan.trial))
    return tuple(kept)


def checked_features(features: Sequence[FeaturePlan], plans: Mapping[str, Plan]) -> None:
    """Refuse references to plans or features that are not in the model, and repeated ones, with Tier's codes."""
    seen: set[tuple[str, str]] = set()
    for entry in features:
        plan = plans.get(entry.plan)
        if plan is None or (entry.feature is not None and entry.feature not in plan.features):
            known = [str(FeaturePlan(f, p.name)) for p in plans.values() for f in (None, *p.features)]
            hint = nearest(str(entry), known)
            raise InvalidRequest(
                f"features: {str(entry)!r} is not in the pricing model" + (f", did you mean {hint!r}?" if hint else ""),
                code="TERR1020",
                path="features",
            )
        for name in plan.features if entry.feature is None else (entry.feature,):
            if (name, plan.name) in seen:
                raise InvalidRequest(
                    f"features: {str(entry)!r} lists {name!r} of {plan.name!r} twice",
                    code="feature_not_found",
                    path="features",
                )
            seen.add((name, plan.name))
