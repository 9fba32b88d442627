"""Schedules as applications give them: what is read, and that every mistake names its field and value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.clock import DAY_MS, milliseconds_of
from tier_middleware.errors import InvalidRequest
from tier_middleware.names import feature_plan
from tier_middleware.policy import AHEAD_MS, PlannedPhase
from tier_middleware.schedules import (
    MAX_DAYS_AHEAD,
    effective_from,
    listed_features,
    planned_phases,
    trial_length,
)

NOW = datetime(2024, 1, 31, 10, 30, tzinfo=UTC)
NOW_MS = milliseconds_of(NOW, "now")
LATER = NOW + timedelta(days=10)
LATER_MS = NOW_MS + 10 * DAY_MS
FREE, PRO = (feature_plan("plan:free@1"),), (feature_plan("plan:pro@1"),)
CALLS_OF_PRO = feature_plan("feature:calls@plan:pro@1")


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        ([{"features": ["plan:free@1"]}], [PlannedPhase(None, FREE)]),
        ([{"features": "plan:free@1"}], [PlannedPhase(None, FREE)]),
        ([{"features": ("plan:free@1", "feature:calls@plan:pro@1")}], [PlannedPhase(None, (*FREE, CALLS_OF_PRO))]),
        ([{"features": ["plan:free@1"], "trial": True}], [PlannedPhase(None, FREE, trial=True)]),
        ([{"features": ["plan:free@1"], "effective": LATER}], [PlannedPhase(LATER_MS, FREE)]),
        # without features it cancels
        ([{}], [PlannedPhase(None, ())]),
        ([{"features": []}], [PlannedPhase(None, ())]),
        ([{"features": None, "effective": None}], [PlannedPhase(None, ())]),
        ([{"effective": LATER}], [PlannedPhase(LATER_MS, ())]),
        # several
        (
            [
                {"features": ["plan:pro@1"], "trial": True},
                {"features": ["plan:pro@1"], "effective": LATER},
                {"effective": LATER + timedelta(milliseconds=1)},
            ],
            [PlannedPhase(None, PRO, trial=True), PlannedPhase(LATER_MS, PRO), PlannedPhase(LATER_MS + 1, ())],
        ),
        # a moment ago is now, in any zone
        ([{"features": "plan:free@1", "effective": NOW - timedelta(minutes=5)}], [PlannedPhase(None, FREE)]),
        ([{"effective": NOW.astimezone(timezone(timedelta(hours=9)))}], [PlannedPhase(None, ())]),
    ],
)
def test_phases_that_are_read(phases: list[dict[str, Any]], expected: list[PlannedPhase]) -> None:
    assert planned_phases(phases, NOW_MS) == tuple(expected)


@pytest.mark.parametrize(
    ("phases", "path", "said"),
    [
        ([], "phases", "got []"),
        (None, "phases", "got None"),
        ({}, "phases", "got {}"),
        ("plan:free@1", "phases", "got 'plan:free@1'"),
        ({"features": ["plan:free@1"]}, "phases", "must be a list of at least one phase"),
        (["plan:free@1"], "phases[0]", "must be a mapping, got 'plan:free@1'"),
        ([{"features": ["plan:free@1"]}, None], "phases[1]", "must be a mapping, got None"),
        ([{"feature": ["plan:free@1"]}], "phases[0]", "unknown field 'feature', did you mean 'features'?"),
        ([{"zzz": 1}], "phases[0]", "unknown field 'zzz'"),
        ([{1: 1}], "phases[0]", "unknown field 1"),
        ([{"features": 7}], "phases[0].features", "got 7"),
        ([{"features": {"plan:free@1": 1}}], "phases[0].features", "got {'plan:free@1': 1}"),
        ([{"features": ""}], "phases[0].features", "must start with 'plan:', got ''"),
        ([{"features": [""]}], "phases[0].features", "must start with 'plan:', got ''"),
        ([{"features": [None]}], "phases[0].features", "must start with 'plan:', got None"),
        ([{"features": False}], "phases[0].features", "got False"),
        ([{"features": ["free"]}], "phases[0].features", "must start with 'plan:', got 'free'"),
        ([{"features": ["plan:free"]}], "phases[0].features", "must have a version, as in 'plan:free@1'"),
        ([{"features": ["feature:calls"]}], "phases[0].features", "must start with 'plan:', got 'feature:calls'"),
        ([{"features": ["feature:@plan:free@1"]}], "phases[0].features", "got 'feature:'"),
        ([{"features": ["plan:free@1"], "trial": 1}], "phases[0].trial", "must be True or False, got 1"),
        ([{"features": ["plan:free@1"], "trial": None}], "phases[0].trial", "got None"),
        ([{"features": ["plan:free@1"], "trial": "no"}], "phases[0].trial", "got 'no'"),
        ([{"effective": "tomorrow"}], "phases[0].effective", "must be an aware datetime, got 'tomorrow'"),
        ([{"effective": 0}], "phases[0].effective", "must be an aware datetime, got 0"),
        ([{"effective": LATER.replace(tzinfo=None)}], "phases[0].effective", "with a tzinfo"),
        ([{"effective": NOW - timedelta(minutes=5, milliseconds=1)}], "phases[0].effective", "got 2024-01-31T10:24:59"),
        ([{}, {}], "phases[1].effective", "must be given for every phase but the first"),
        ([{}, {"effective": None}], "phases[1].effective", "must be given"),
        ([{}, {"effective": NOW}], "phases[1].effective", "must be after 2024-01-31T10:30:00Z"),
        ([{}, {"effective": NOW - timedelta(minutes=1)}], "phases[1].effective", "got 2024-01-31T10:29:00"),
        ([{"effective": LATER}, {"effective": LATER}], "phases[1].effective", "must be after 2024-02-10T10:30:00Z"),
        ([{}, {"effective": LATER}, {"effective": LATER - timedelta(days=1)}], "phases[2].effective", "2024-02-09"),
        (
            [{"effective": datetime.max.replace(tzinfo=UTC)}],
            "phases[0].effective",
            "at most 36525 days ahead, got 9999",
        ),
    ],
)
def test_mistakes_name_the_phase_the_field_and_the_value(phases: Any, path: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        planned_phases(phases, NOW_MS)
    error = caught.value
    assert (error.status, error.code, error.path) == (400, "invalid_request", path)
    assert error.message.startswith(f"{path}: ")
    assert said in error.message


@given(st.lists(st.integers(1, 40 * DAY_MS), max_size=5), st.none() | st.integers(-AHEAD_MS, DAY_MS))
def test_what_is_read_is_in_order_and_never_in_the_past(gaps: list[int], first: int | None) -> None:
    begins = max(0, first or 0)
    phases: list[dict[str, Any]] = [{} if first is None else {"effective": NOW + timedelta(milliseconds=first)}]
    for gap in gaps:
        begins += gap
        phases.append({"effective": NOW + timedelta(milliseconds=begins), "features": "plan:free@1"})
    read = planned_phases(phases, NOW_MS)
    times = [NOW_MS if phase.effective_ms is None else phase.effective_ms for phase in read]
    assert times == sorted(set(times))
    assert times[0] == NOW_MS + max(0, first or 0)
    assert times[-1] == NOW_MS + begins


@pytest.mark.parametrize(
    ("effective", "expected"),
    [
        (NOW, None),
        (NOW - timedelta(minutes=5), None),
        (NOW + timedelta(microseconds=999), None),  # cut off
        (NOW + timedelta(milliseconds=1), NOW_MS + 1),
        (NOW + timedelta(days=MAX_DAYS_AHEAD), NOW_MS + MAX_DAYS_AHEAD * DAY_MS),
    ],
)
def test_when_a_phase_begins(effective: datetime, expected: int | None) -> None:
    assert effective_from(effective, NOW_MS) == expected


@pytest.mark.parametrize(
    "effective",
    [NOW - timedelta(minutes=5, milliseconds=1), datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)],
)
def test_the_past_and_what_is_beyond_a_century_are_refused(effective: datetime) -> None:
    with pytest.raises(InvalidRequest, match=r"^at: must .*, got ") as caught:
        effective_from(effective, NOW_MS, "at")
    assert caught.value.path == "at"


def test_features_may_come_as_a_text_or_any_number_of_them() -> None:
    assert listed_features("plan:free@1") == FREE
    assert listed_features(name for name in ("plan:free@1", "feature:calls@plan:pro@1")) == (*FREE, CALLS_OF_PRO)
    assert listed_features([]) == ()


@pytest.mark.parametrize(("days", "expected"), [(0, 0), (1, DAY_MS), (MAX_DAYS_AHEAD, MAX_DAYS_AHEAD * DAY_MS)])
def test_the_length_of_a_trial(days: int, expected: int) -> None:
    assert trial_length(days) == expected


@pytest.mark.parametrize("days", [-1, 1.0, True, "14", None, MAX_DAYS_AHEAD + 1, 2**63, 10**30])
def test_a_trial_of_no_whole_number_of_days_or_of_a_century_is_refused(days: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^trial_days: must ") as caught:
        trial_length(days)
    assert (caught.value.path, caught.value.code) == ("trial_days", "invalid_request")
    assert repr(days) in caught.value.message
