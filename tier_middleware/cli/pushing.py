"""What a push does, or would do, plan by plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..model import Difference, Model
from ..names import feature_plan
from ..ops import PushResult

__all__ = ["PlanFate", "fates", "pushed"]


@dataclass(frozen=True, slots=True)
class PlanFate:
    """What becomes of one plan; ``differences`` are all places where a conflict differs from what is stored."""

    plan: str
    status: Literal["new", "created", "unchanged", "conflict"]
    differences: tuple[Difference, ...] = ()


def fates(stored: Model, model: Model) -> tuple[PlanFate, ...]:
    """What a push of the model would do."""
    found = stored.diff(model)
    return tuple(
        PlanFate(name, "new")
        if name not in stored.plans
        else _fate(name, tuple(difference for difference in found if difference.plan == name))
        for name in sorted(model.plans)
    )


def _fate(name: str, differences: tuple[Difference, ...]) -> PlanFate:
    return PlanFate(name, "conflict" if differences else "unchanged", differences)


def pushed(results: Iterable[PushResult]) -> tuple[PlanFate, ...]:
    """What a push did: its results come feature by feature."""
    created = {feature_plan(result.feature).plan: result.status == "ok" for result in results}
    return tuple(PlanFate(name, "created" if created[name] else "unchanged") for name in sorted(created))
