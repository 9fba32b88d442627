"""Schedules as applications give them: a list of phases, checked before anything is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from .clock import DAY_MS, milliseconds_of, rfc3339
from .errors import InvalidRequest
from .names import FeaturePlan, checked_units, feature_plan, nearest
from .policy import AHEAD_MS, PlannedPhase

__all__ = ["MAX_DAYS_AHEAD", "effective_from", "listed_features", "planned_phases", "trial_length"]

FIELDS: Final = ("effective", "features", "trial")
MAX_DAYS_AHEAD: Final = 36_525  # a century: beyond it calendars end, and somebody mistook seconds for days


def planned_phases(phases: Sequence[Mapping[str, Any]], now_ms: int) -> tuple[PlannedPhase, ...]:
    """Phases in the form of Tier's API: ``{"effective"?: datetime, "features"?: [text], "trial"?: bool}``, in order.

    The first may leave out when it begins (now), the others may not. One without features cancels. Raises
    `InvalidRequest` that names the phase, the field and the value.
    """
    if isinstance(phases, str | Mapping) or not isinstance(phases, Sequence) or not phases:
        raise InvalidRequest(f"phases: must be a list of at least one phase, got {phases!r}", path="phases")
    planned: list[PlannedPhase] = []
    before_ms = now_ms - 1
    for index, phase in enumerate(phases):
        path = f"phases[{index}]"
        planned.append(_planned(phase, path, now_ms, is_first=index == 0))
        effective_ms = planned[-1].effective_ms
        begins_ms = now_ms if effective_ms is None else effective_ms
        if begins_ms <= before_ms:
            raise InvalidRequest(
                f"{path}.effective: must be after {rfc3339(before_ms)}, where the phase before it begins, "
                f"got {phase['effective'].isoformat()}",
                path=f"{path}.effective",
            )
        before_ms = begins_ms
    return tuple(planned)


def _planned(phase: Mapping[str, Any], path: str, now_ms: int, *, is_first: bool) -> PlannedPhase:
    if not isinstance(phase, Mapping):
        raise InvalidRequest(f"{path}: must be a mapping, got {phase!r}", path=path)
    for name in phase:
        if name not in FIELDS:
            hint = nearest(str(name), FIELDS)
            raise InvalidRequest(
                f"{path}: unknown field {name!r}" + (f", did you mean {hint!r}?" if hint else ""), path=path
            )
    effective, trial = phase.get("effective"), phase.get("trial", False)
    if effective is None and not is_first:
        raise InvalidRequest(f"{path}.effective: must be given for every phase but the first", path=f"{path}.effective")
    if not isinstance(trial, bool):
        raise InvalidRequest(f"{path}.trial: must be True or False, got {trial!r}", path=f"{path}.trial")
    listed = phase.get("features")
    features = () if listed is None else listed_features(listed, f"{path}.features")
    effective_ms = None if effective is None else effective_from(effective, now_ms, f"{path}.effective")
    return PlannedPhase(effective_ms, features, trial)


def listed_features(features: object, field: str = "features") -> tuple[FeaturePlan, ...]:
    """What a phase lists: one plan as a text, or any number of plans and features of plans."""
    if isinstance(features, str):
        return (feature_plan(features, field),)
    if isinstance(features, Mapping) or not isinstance(features, Iterable):
        raise InvalidRequest(f"{field}: must be a plan, or a list of plans and features, got {features!r}", path=field)
    return tuple(feature_plan(entry, field) for entry in features)


def trial_length(trial_days: int) -> int:
    """How long a trial lasts, in milliseconds."""
    if checked_units(trial_days, "trial_days") > MAX_DAYS_AHEAD:
        raise InvalidRequest(f"trial_days: must be at most {MAX_DAYS_AHEAD}, got {trial_days!r}", path="trial_days")
    return trial_days * DAY_MS


def effective_from(effective: datetime, now_ms: int, field: str = "effective") -> int | None:
    """When a phase begins; None for now. What has been cannot be changed, so the past is refused.

    A moment of less than five minutes ago is now: clocks of two machines differ.
    """
    effective_ms = milliseconds_of(effective, field)
    if effective_ms < now_ms - AHEAD_MS:
        raise InvalidRequest(
            f"{field}: must not lie in the past (it is {rfc3339(now_ms)}), got {rfc3339(effective_ms)}", path=field
        )
    if effective_ms > now_ms + MAX_DAYS_AHEAD * DAY_MS:
        raise InvalidRequest(
            f"{field}: must be at most {MAX_DAYS_AHEAD} days ahead, got {rfc3339(effective_ms)}", path=field
        )
    return None if effective_ms <= now_ms else effective_ms
