"""What happens when an engine takes in an export: decided once, for every engine that can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from ..errors import InvalidRequest, PricingError
from ..ledger import Change
from ..model import Aggregate, Phase, Plan
from ..ops import ClockRecord
from ..orginfo import OrgInfo
from ..policy import checked_features
from ..pricing import plan_conflict
from ..transfer import (
    ClockLine,
    DayLine,
    EntryLine,
    KeyLine,
    Line,
    OrgLine,
    PlanLine,
    UsageLine,
    change_of_line,
    info_of_line,
    key_of_line,
    phases_of_line,
    plan_of_line,
)
from ..transfer_checks import on_line

__all__ = ["Target", "take_in"]


class Target(Protocol):
    """Where an export goes. The caller sees to it that all of it is kept, or nothing."""

    def plans(self) -> Mapping[str, Plan]: ...
    def add_plan(self, plan: Plan) -> None: ...
    def clock(self, id: str) -> ClockRecord | None: ...
    def set_clock(self, clock: ClockRecord) -> None:
        """Add a clock, or set one that is there."""
        ...

    def has_org(self, name: str) -> bool: ...
    def drop_org(self, name: str) -> None: ...
    def add_org(
        self, name: str, created_ms: int, changed_ms: int, phases: tuple[Phase, ...], info: OrgInfo
    ) -> None: ...
    def add_usage(self, feature: str, plan: str, start_ms: int, aggregate: Aggregate, used: int) -> None:
        """Of the org that was added last."""
        ...

    def add_change(self, change: Change) -> None:
        """To the usage that was added last."""
        ...

    def contents_of_key(self, key: str, clock: str) -> str | None: ...
    def add_key(self, line: KeyLine) -> None: ...


def take_in(lines: Iterable[Line], target: Target, *, replace: bool) -> None:
    """Add what the lines of an export say.

    Raises `InvalidRequest` that names the line: for what is not in the model, for a plan that is stored with other
    content, and for an org or a key that is known already, unless these are to be replaced.
    """
    plans = dict(target.plans())
    for number, line in enumerate(lines, 2):  # the header was the first
        try:
            _take(line, plans, target, replace=replace)
        except (InvalidRequest, PricingError) as error:
            raise on_line(number, error) from error


def _take(line: Line, plans: dict[str, Plan], target: Target, *, replace: bool) -> None:
    match line:
        case PlanLine():
            _take_plan(line, plans, target)
        case ClockLine():
            _take_clock(line, target, replace)
        case OrgLine():
            _take_org(line, plans, target, replace)
        case UsageLine():
            target.add_usage(line.feature, line.plan, line.period_ms, _aggregate(line, plans), line.used)
        case DayLine() | EntryLine():
            target.add_change(change_of_line(line))
        case KeyLine():
            _check_clock(line, target)
            known = target.contents_of_key(line.key, line.clock)
            if known not in (None, line.contents) and not replace:
                raise InvalidRequest(f"key: {line.key!r} was used here before with other contents", path="key")
            target.add_key(line)


def _take_plan(line: PlanLine, plans: dict[str, Plan], target: Target) -> None:
    plan = plan_of_line(line)
    if plan.name in plans:
        conflict = plan_conflict(plans[plan.name], plan)
        if conflict is not None:
            raise conflict
        return
    plans[plan.name] = plan
    target.add_plan(plan)


def _take_clock(line: ClockLine, target: Target, replace: bool) -> None:
    clock, known = ClockRecord(line.id, line.name, line.present_ms), target.clock(line.id)
    if known not in (None, clock) and not replace:
        raise InvalidRequest(f"id: {line.id!r} is here already, and elsewhere in time or name", path="id")
    target.set_clock(clock)


def _check_clock(line: OrgLine | KeyLine, target: Target) -> None:
    if line.clock and target.clock(line.clock) is None:
        raise InvalidRequest(f"clock: is no clock of this export or engine, got {line.clock!r}", path="clock")


def _take_org(line: OrgLine, plans: Mapping[str, Plan], target: Target, replace: bool) -> None:
    _check_clock(line, target)
    phases, key = phases_of_line(line), key_of_line(line)
    for phase in phases:
        checked_features(phase.features, plans)
    if target.has_org(key):
        if not replace:
            raise InvalidRequest(f"org: {line.org!r} is here already; it is replaced only when told to", path="org")
        target.drop_org(key)
    target.add_org(key, line.created_ms, line.changed_ms, phases, info_of_line(line))


def _aggregate(line: UsageLine, plans: Mapping[str, Plan]) -> Aggregate:
    if not line.plan:
        return "perpetual"
    plan = plans.get(line.plan)
    if plan is None:
        raise InvalidRequest(f"plan: is no plan of this export or engine, got {line.plan!r}", path="plan")
    if line.feature not in plan.features:
        raise InvalidRequest(f"feature: is not in {line.plan!r}, got {line.feature!r}", path="feature")
    return plan.features[line.feature].aggregate
