"""Billing periods, phases and limits, against computations that are slower and obviously right."""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.errors import InvalidRequest
from tier_middleware.model import Aggregate, Interval, Phase, Plan
from tier_middleware.names import MAX_UNITS, FeaturePlan, feature_plan
from tier_middleware.policy import (
    AHEAD_MS,
    FOREVER,
    Entitlement,
    Period,
    PlannedPhase,
    checked_features,
    current_phase,
    entitlement_for,
    entitlements_for,
    has_room,
    period_at,
    phases_after,
    reason_for,
    reported_at,
    used_adjusted,
    used_after,
)
from tier_middleware.pricing import read_model

DAY_MS = 86_400_000


def ms(year: int, month: int, day: int, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp()) * 1000


# ---- periods --------------------------------------------------------------------------------------------------------


def start_after(anchor: datetime, months: int) -> datetime:
    """The anchor so many months later, counted on the fingers: a day that a month has not got is its last."""
    year, month = anchor.year, anchor.month
    for _ in range(months):
        month += 1
        if month == 13:
            year, month = year + 1, 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, monthrange(year, month)[1]))


def stepped(anchor: datetime, step: int, at: datetime) -> tuple[datetime, datetime]:
    """The period that contains ``at``, found by walking there month by month."""
    months = 0
    while start_after(anchor, months + step) <= at:
        months += step
    return start_after(anchor, months), start_after(anchor, months + step)


moments = st.datetimes(datetime(1999, 12, 1), datetime(2030, 1, 1)).map(
    lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000, tzinfo=UTC)
)
month_ends = st.builds(
    lambda year, month, hour: datetime(year, month, monthrange(year, month)[1], hour, tzinfo=UTC),
    st.integers(2000, 2029),
    st.integers(1, 12),
    st.integers(0, 23),
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


@given(
    st.one_of(moments, month_ends),
    st.sampled_from([1, 12]),
    st.one_of(st.integers(0, 40_000_000), st.integers(-2, 2)),
    st.integers(0, 70),
)
def test_months_and_years_are_those_found_by_stepping_there(
    anchor: datetime, step: int, away: int, months: int
) -> None:
    at = max(anchor, start_after(anchor, months * step // 2) + timedelta(milliseconds=away))
    start, end = stepped(anchor, step, at)
    interval: Interval = "@monthly" if step == 1 else "@yearly"
    period = period_at(milliseconds(anchor), interval, milliseconds(at))
    assert period == Period(milliseconds(start), milliseconds(end))


@given(st.integers(0, 2**41), st.integers(0, 2**41), st.sampled_from([1, 7]))
def test_days_and_weeks_are_multiples_of_their_length(anchor_ms: int, since_ms: int, days: int) -> None:
    interval: Interval = "@daily" if days == 1 else "@weekly"
    start_ms, end_ms = period_at(anchor_ms, interval, anchor_ms + since_ms)
    assert end_ms - start_ms == days * DAY_MS
    assert (start_ms - anchor_ms) % (days * DAY_MS) == 0
    assert start_ms <= anchor_ms + since_ms < end_ms


@given(
    st.one_of(moments, month_ends),
    st.one_of(moments, month_ends),
    st.sampled_from(["@daily", "@weekly", "@monthly", "@yearly"]),
)
def test_periods_contain_their_moment_and_touch_each_other(one: datetime, other: datetime, interval: Interval) -> None:
    anchor_ms, at_ms = milliseconds(one), milliseconds(other)  # in any order
    period = period_at(anchor_ms, interval, at_ms)
    assert period.start_ms <= at_ms < period.end_ms
    assert period_at(anchor_ms, interval, period.end_ms).start_ms == period.end_ms
    assert period_at(anchor_ms, interval, period.start_ms - 1).end_ms == period.start_ms


@pytest.mark.parametrize(
    ("anchor", "interval", "at", "start", "end"),
    [
        (ms(2023, 1, 31), "@monthly", ms(2023, 2, 27), ms(2023, 1, 31), ms(2023, 2, 28)),
        (ms(2023, 1, 31), "@monthly", ms(2023, 2, 28), ms(2023, 2, 28), ms(2023, 3, 31)),
        (ms(2024, 1, 31), "@monthly", ms(2024, 2, 29), ms(2024, 2, 29), ms(2024, 3, 31)),
        (ms(2024, 1, 31), "@monthly", ms(2024, 4, 1), ms(2024, 3, 31), ms(2024, 4, 30)),
        (ms(2023, 12, 31, 23), "@monthly", ms(2024, 2, 29, 22), ms(2024, 1, 31, 23), ms(2024, 2, 29, 23)),
        (ms(2024, 2, 29), "@yearly", ms(2025, 2, 28), ms(2025, 2, 28), ms(2026, 2, 28)),
        (ms(2024, 2, 29), "@yearly", ms(2028, 2, 28), ms(2027, 2, 28), ms(2028, 2, 29)),
        (ms(2024, 2, 29), "@yearly", ms(2028, 2, 29), ms(2028, 2, 29), ms(2029, 2, 28)),
        (ms(2024, 1, 31, 10), "@daily", ms(2024, 3, 1, 9), ms(2024, 2, 29, 10), ms(2024, 3, 1, 10)),
        (ms(2024, 1, 31), "@weekly", ms(2024, 2, 14), ms(2024, 2, 14), ms(2024, 2, 21)),
    ],
)
def test_the_ends_of_months_and_leap_years(anchor: int, interval: Interval, at: int, start: int, end: int) -> None:
    assert period_at(anchor, interval, at) == Period(start, end)


# ---- phases ---------------------------------------------------------------------------------------------------------

FREE, PRO = (feature_plan("plan:free@1"),), (feature_plan("plan:pro@1"),)


@pytest.mark.parametrize(
    ("stored", "planned", "now_ms", "expected"),
    [
        # the first subscription starts its periods
        ([], [PlannedPhase(5, FREE)], 5, [Phase(5, 5, FREE)]),
        ([], [PlannedPhase(None, FREE)], 5, [Phase(5, 5, FREE)]),
        # a switch keeps them
        ([Phase(5, 5, FREE)], [PlannedPhase(8, PRO)], 8, [Phase(5, 5, FREE), Phase(8, 5, PRO)]),
        # the same again changes nothing
        ([Phase(5, 5, FREE)], [PlannedPhase(8, FREE)], 8, [Phase(5, 5, FREE)]),
        # a trial that ends is a change
        (
            [Phase(5, 5, FREE, trial=True)],
            [PlannedPhase(8, FREE)],
            8,
            [Phase(5, 5, FREE, trial=True), Phase(8, 5, FREE)],
        ),
        # a cancellation ends them, and what follows starts its own
        ([Phase(5, 5, FREE)], [PlannedPhase(8, ())], 8, [Phase(5, 5, FREE), Phase(8, 5, ())]),
        (
            [Phase(5, 5, FREE), Phase(8, 5, ())],
            [PlannedPhase(9, FREE)],
            9,
            [Phase(5, 5, FREE), Phase(8, 5, ()), Phase(9, 9, FREE)],
        ),
        ([Phase(5, 5, FREE), Phase(8, 5, ())], [PlannedPhase(8, FREE)], 8, [Phase(5, 5, FREE), Phase(8, 8, FREE)]),
        # what was pending is replaced, what has been is kept
        ([Phase(5, 5, FREE), Phase(9, 5, PRO)], [], 8, [Phase(5, 5, FREE)]),
        ([Phase(5, 5, FREE), Phase(8, 5, PRO)], [], 8, [Phase(5, 5, FREE), Phase(8, 5, PRO)]),
        (
            [Phase(5, 5, FREE), Phase(9, 5, ())],
            [PlannedPhase(12, PRO)],
            8,
            [Phase(5, 5, FREE), Phase(12, 5, PRO)],
        ),
        # several at once, in any order
        (
            [],
            [PlannedPhase(9, ()), PlannedPhase(5, FREE, trial=True), PlannedPhase(7, PRO)],
            5,
            [Phase(5, 5, FREE, trial=True), Phase(7, 5, PRO), Phase(9, 5, ())],
        ),
        # in the same millisecond the last word counts
        ([Phase(5, 5, FREE)], [PlannedPhase(5, PRO)], 5, [Phase(5, 5, PRO)]),
        # one in the past takes the place of what came after it
        ([Phase(2, 2, FREE), Phase(6, 2, PRO)], [PlannedPhase(4, ())], 8, [Phase(2, 2, FREE), Phase(4, 2, ())]),
        ([Phase(2, 2, FREE), Phase(6, 2, PRO)], [PlannedPhase(4, FREE)], 8, [Phase(2, 2, FREE)]),
        ([Phase(6, 6, PRO)], [PlannedPhase(4, FREE)], 8, [Phase(4, 4, FREE)]),
    ],
)
def test_phases_after_a_schedule(
    stored: list[Phase], planned: list[PlannedPhase], now_ms: int, expected: list[Phase]
) -> None:
    assert list(phases_after(stored, planned, now_ms)) == expected


@pytest.mark.parametrize(
    ("stored", "planned", "now_ms", "expected"),
    [
        # what begins before it stays, what comes after it goes
        (
            [Phase(5, 5, FREE, trial=True), Phase(9, 5, FREE), Phase(20, 5, PRO)],
            [PlannedPhase(12, ())],
            6,
            [Phase(5, 5, FREE, trial=True), Phase(9, 5, FREE), Phase(12, 5, ())],
        ),
        # it takes the place of what would begin in its millisecond
        ([Phase(5, 5, FREE), Phase(9, 5, PRO)], [PlannedPhase(9, ())], 6, [Phase(5, 5, FREE), Phase(9, 5, ())]),
        # a cancellation is moved, not kept
        ([Phase(5, 5, FREE), Phase(9, 5, ())], [PlannedPhase(12, ())], 6, [Phase(5, 5, FREE), Phase(12, 5, ())]),
        ([Phase(5, 5, FREE), Phase(9, 5, ())], [PlannedPhase(7, ())], 6, [Phase(5, 5, FREE), Phase(7, 5, ())]),
        # one that has been stays, and so does the gap before what is pending
        ([Phase(5, 5, FREE), Phase(6, 5, ())], [PlannedPhase(7, ())], 6, [Phase(5, 5, FREE), Phase(6, 5, ())]),
        (
            [Phase(5, 5, FREE), Phase(7, 5, ()), Phase(9, 9, PRO)],
            [PlannedPhase(12, ())],
            6,
            [Phase(5, 5, FREE), Phase(7, 5, ()), Phase(9, 9, PRO), Phase(12, 9, ())],
        ),
        # now: all that is pending goes
        ([Phase(5, 5, FREE), Phase(9, 5, PRO)], [PlannedPhase(None, ())], 6, [Phase(5, 5, FREE), Phase(6, 5, ())]),
        ([Phase(9, 9, PRO)], [PlannedPhase(None, ())], 6, [Phase(6, 6, ())]),
        ([], [PlannedPhase(12, ())], 6, [Phase(12, 12, ())]),
        # with more phases, or none
        (
            [Phase(5, 5, FREE), Phase(9, 5, PRO), Phase(20, 5, ())],
            [PlannedPhase(15, ()), PlannedPhase(12, FREE)],
            6,
            [Phase(5, 5, FREE), Phase(9, 5, PRO), Phase(12, 5, FREE), Phase(15, 5, ())],
        ),
        ([Phase(5, 5, FREE), Phase(9, 5, PRO)], [], 6, [Phase(5, 5, FREE)]),
    ],
)
def test_phases_after_a_schedule_that_keeps_what_is_pending(
    stored: list[Phase], planned: list[PlannedPhase], now_ms: int, expected: list[Phase]
) -> None:
    assert list(phases_after(stored, planned, now_ms, keeps_pending=True)) == expected


features = st.sampled_from([(), FREE, PRO, FREE + PRO])
schedules = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.lists(st.builds(PlannedPhase, st.none() | st.integers(0, 60), features, st.booleans()), max_size=3),
        st.booleans(),
    ),
    max_size=6,
)


@given(schedules)
def test_phases_stay_in_order_and_anchors_never_lie_ahead(steps: list[tuple[int, list[PlannedPhase], bool]]) -> None:
    phases: Sequence[Phase] = ()
    now_ms = 0
    for passed, planned, keeps_pending in steps:
        now_ms += passed
        phases = phases_after(phases, planned, now_ms, keeps_pending=keeps_pending)
        times = [phase.effective_ms for phase in phases]
        assert times == sorted(set(times))
        assert all(phase.anchor_ms <= phase.effective_ms for phase in phases)
        if planned:
            begins = [now_ms if plan.effective_ms is None else plan.effective_ms for plan in planned]
            last = [plan for plan, begin in zip(planned, begins, strict=True) if begin == max(begins)][-1]
            in_force, until_ms = current_phase(phases, max(now_ms, *begins))
            assert in_force is not None
            assert (in_force.features, in_force.trial, until_ms) == (last.features, last.trial, FOREVER)


def test_the_current_phase_begins_at_its_millisecond_and_ends_where_the_next_begins() -> None:
    phases = [Phase(5, 5, FREE), Phase(9, 5, PRO)]
    assert current_phase(phases, 4) == (None, 5)
    assert current_phase(phases, 5) == (phases[0], 9)
    assert current_phase(phases, 8) == (phases[0], 9)
    assert current_phase(phases, 9) == (phases[1], FOREVER)
    assert current_phase([], 9) == (None, FOREVER)


# ---- entitlements ---------------------------------------------------------------------------------------------------

MODEL = read_model(
    {
        "plans": {
            "plan:free@1": {"features": {"feature:a": {"tiers": [{"upto": 3}]}, "feature:on": {}}},
            "plan:pro@1": {
                "features": {"feature:a": {"tiers": [{"upto": 5}, {"upto": 10}]}, "feature:b": {"tiers": [{}]}}
            },
            "plan:yearly@1": {"interval": "@yearly", "features": {"feature:b": {"tiers": [{"upto": 7}]}}},
            "plan:seats@1": {"features": {"feature:s": {"tiers": [{"upto": 4}], "aggregate": "perpetual"}}},
        }
    }
)


def plan_of(name: str) -> Plan:
    return MODEL.plans[name]


def subscribed(*entries: str, effective_ms: int = ms(2024, 1, 31), anchor_ms: int = ms(2024, 1, 31)) -> Phase:
    return Phase(effective_ms, anchor_ms, tuple(feature_plan(entry) for entry in entries))


def test_an_entitlement_holds_to_the_end_of_the_period() -> None:
    found = entitlement_for("feature:a", [subscribed("plan:free@1")], plan_of, ms(2024, 2, 10))
    period = Period(ms(2024, 1, 31), ms(2024, 2, 29))
    expected = Entitlement("feature:a", "plan:free@1", 3, True, "sum", period, period.start_ms, period.end_ms)
    assert found == expected
    assert expected.resets_at_ms == period.end_ms
    assert not expected.is_level


def test_an_entitlement_holds_to_the_next_phase_where_that_is_earlier() -> None:
    switch = ms(2024, 2, 10)
    phases = [subscribed("plan:free@1"), subscribed("plan:pro@1", effective_ms=switch)]
    before = entitlement_for("feature:a", phases, plan_of, switch - 1)
    after = entitlement_for("feature:a", phases, plan_of, switch)
    assert before is not None
    assert after is not None
    assert (before.plan, before.limit, before.until_ms) == ("plan:free@1", 3, switch)
    assert (after.plan, after.limit, after.from_ms) == ("plan:pro@1", 10, switch)
    assert before.period == after.period == Period(ms(2024, 1, 31), ms(2024, 2, 29))


@pytest.mark.parametrize(
    ("entries", "limits"),
    [
        (["plan:free@1"], {"feature:a": 3, "feature:on": None}),
        (["plan:free@1", "plan:pro@1"], {"feature:a": 10, "feature:on": None, "feature:b": None}),
        (["plan:pro@1", "plan:free@1"], {"feature:a": 10, "feature:on": None, "feature:b": None}),
        (["plan:yearly@1", "plan:pro@1"], {"feature:a": 10, "feature:b": None}),
        (["plan:pro@1", "plan:yearly@1"], {"feature:a": 10, "feature:b": None}),
        (["feature:a@plan:pro@1"], {"feature:a": 10}),
        (["feature:a@plan:pro@1", "plan:free@1"], {"feature:a": 10, "feature:on": None}),
        ([], {}),
    ],
)
def test_the_entitlements_of_a_phase(entries: list[str], limits: dict[str, int | None]) -> None:
    phases = [subscribed(*entries)]
    at_ms = ms(2024, 2, 10)
    found = entitlements_for(phases, plan_of, at_ms)
    assert {name: entitlement.limit for name, entitlement in found.items()} == limits
    for name in (*MODEL.features, "feature:unheard-of"):
        assert entitlement_for(name, phases, plan_of, at_ms) == found.get(name)


def test_nothing_is_entitled_before_the_first_phase() -> None:
    assert entitlements_for([subscribed("plan:free@1")], plan_of, ms(2024, 1, 31) - 1) == {}
    assert entitlement_for("feature:a", [], plan_of, 0) is None


def test_a_perpetual_feature_is_kept_in_one_place_for_all_plans_and_times() -> None:
    found = entitlement_for("feature:s", [subscribed("plan:seats@1")], plan_of, ms(2024, 2, 10))
    assert found is not None
    assert (found.plan, found.period, found.resets_at_ms, found.is_level) == ("", Period(0, FOREVER), None, True)


def test_an_on_off_feature_never_resets() -> None:
    found = entitlement_for("feature:on", [subscribed("plan:free@1")], plan_of, ms(2024, 2, 10))
    assert found is not None
    assert (found.is_metered, found.limit, found.resets_at_ms) == (False, None, None)


# ---- room -----------------------------------------------------------------------------------------------------------


def entitled(limit: int | None, aggregate: Aggregate = "sum") -> Entitlement:
    return Entitlement("feature:a", "plan:a@1", limit, True, aggregate, Period(0, 1), 0, 1)


units = st.integers(0, 12)


@given(st.integers(1, 10), units, units, units)
def test_room_for_a_sum_is_what_is_neither_used_nor_reserved(limit: int, used: int, reserved: int, n: int) -> None:
    left = max(0, limit - used - reserved)
    assert has_room(entitled(limit), used, reserved, n) == (n in range(left + 1) and left > 0)


@given(st.integers(1, 10), units, units, units, st.sampled_from(["max", "last", "perpetual"]))
def test_room_for_a_level_is_the_limit_itself(limit: int, used: int, reserved: int, n: int, level: Aggregate) -> None:
    assert has_room(entitled(limit, level), used, reserved, n) == (n <= limit if n > 0 else used < limit)


def test_there_is_always_room_without_a_limit_as_far_as_can_be_counted() -> None:
    assert has_room(entitled(None), 2**40, 2**40, 2**60)
    assert has_room(entitled(None), 0, 0, MAX_UNITS)
    assert not has_room(entitled(None), 1, 0, MAX_UNITS)
    assert not has_room(entitled(None), 0, MAX_UNITS, 0)
    assert has_room(entitled(None, "max"), MAX_UNITS, 0, MAX_UNITS)


def test_the_reason_says_whether_waiting_for_an_empty_period_would_help() -> None:
    assert reason_for(entitled(3), 3) == "limit_reached"
    assert reason_for(entitled(3), 0) == "limit_reached"
    assert reason_for(entitled(3), 4) == "amount_exceeds_limit"
    assert reason_for(entitled(None), MAX_UNITS) == "limit_reached"


# ---- usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("aggregate", "used", "n", "after"),
    [("sum", 3, 2, 5), ("sum", 3, 0, 3), ("max", 3, 2, 3), ("max", 3, 4, 4), ("last", 3, 2, 2), ("perpetual", 3, 0, 0)],
)
def test_usage_after_a_report(aggregate: Aggregate, used: int, n: int, after: int) -> None:
    assert used_after(aggregate, used, n) == after


def test_usage_ends_where_counting_does() -> None:
    assert used_after("sum", MAX_UNITS - 1, 1) == MAX_UNITS
    assert used_adjusted(MAX_UNITS - 1, 1) == MAX_UNITS
    with pytest.raises(InvalidRequest, match=str(MAX_UNITS)):
        used_after("sum", MAX_UNITS, 1)
    with pytest.raises(InvalidRequest, match=str(MAX_UNITS)):
        used_adjusted(MAX_UNITS, 1)


@given(st.integers(0, MAX_UNITS), st.integers(-MAX_UNITS, 0))
def test_a_correction_never_goes_below_0(used: int, delta: int) -> None:
    assert used_adjusted(used, delta) == max(used + delta, 0)


def test_a_report_may_speak_of_the_past_and_of_five_minutes_ahead() -> None:
    now_ms = ms(2024, 2, 10)
    assert reported_at(None, now_ms) == now_ms
    assert reported_at(0, now_ms) == 0
    assert reported_at(now_ms + AHEAD_MS, now_ms) == now_ms + 5 * 60_000
    with pytest.raises(InvalidRequest, match=r"2024-02-10T00:05:00\.001") as caught:
        reported_at(now_ms + AHEAD_MS + 1, now_ms)
    assert caught.value.path == "at"


# ---- what a subscription may name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries",
    [[], ["plan:free@1"], ["plan:free@1", "plan:pro@1"], ["feature:a@plan:free@1", "feature:on@plan:free@1"]],
)
def test_features_that_are_in_the_model_are_accepted(entries: list[str]) -> None:
    checked_features([feature_plan(entry) for entry in entries], MODEL.plans)


@pytest.mark.parametrize(
    ("entries", "code", "message"),
    [
        (["plan:fre@1"], "TERR1020", "did you mean 'plan:free@1'?"),
        (["plan:free@1", "feature:b@plan:free@1"], "TERR1020", "'feature:b@plan:free@1' is not in the pricing model"),
        (["feature:on@plan:fre@1"], "TERR1020", "did you mean 'feature:on@plan:free@1'?"),
        (["plan:free@1", "plan:free@1"], "feature_not_found", "twice"),
        (["plan:free@1", "feature:a@plan:free@1"], "feature_not_found", "'feature:a' of 'plan:free@1' twice"),
    ],
)
def test_features_that_are_not_or_are_repeated_are_refused(entries: list[str], code: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked_features([feature_plan(entry) for entry in entries], MODEL.plans)
    assert (caught.value.code, caught.value.path) == (code, "features")
    assert message in caught.value.message


def test_an_empty_model_has_no_hint_to_give() -> None:
    nothing: dict[str, Any] = {}
    with pytest.raises(InvalidRequest, match=r"not in the pricing model$"):
        checked_features([FeaturePlan(None, "plan:x@1")], nothing)
