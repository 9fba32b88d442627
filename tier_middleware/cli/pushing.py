"""What a push does, or would do, plan by plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..model import Model
from ..names import feature_plan
from ..ops import PushResult
from ..pricing import plan_conflict

__all__ = ["PlanFate", "fates", "pushed"]


@dataclass(frozen=True, slots=True)
class PlanFate:
    """What becomes of one plan; ``path`` and ``message`` say where and how a conflict differs from what is stored."""

    plan: str
    status: Literal["new", "created", "unchanged", "conflict"]
    path: str | None = None
    message: str | None = None


def fates(stored: Model, model: Model) -> tuple[PlanFate, ...]:
    """What a push of the model would do."""
    return tuple(_fate(name, stored, model) for name in sorted(model.plans))


def _fate(name: str, stored: Model, model: Model) -> PlanFate:
    if name not in stored.plans:
        return PlanFate(name, "new")
    conflict = plan_conflict(stored.plans[name], model.plans[name])
    return PlanFate(name, "unchanged") if conflict is None else PlanFate(name, "conflict", conflict.path, str(conflict))


def pushed(results: Iterable[PushResult]) -> tuple[PlanFate, ...]:
    """What a push did: its results come feature by feature."""
    created = {feature_plan(result.feature).plan: result.status == "ok" for result in results}
    return tuple(PlanFate(name, "created" if created[name] else "unchanged") for name in sorted(created))
