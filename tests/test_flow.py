"""Flows, driven by hand: what they ask of an engine, and what they make of its answers and failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from tier_middleware.errors import ConfigurationError, EngineUnavailable, InvalidRequest, OrgNotFound, TierError
from tier_middleware.flow import (
    Admitted,
    Denied,
    Flow,
    Outcome,
    Settlement,
    admit,
    check,
    do,
    insisted,
    settle,
    start,
)
from tier_middleware.model import Model
from tier_middleware.ops import (
    Check,
    Checked,
    ClockRecord,
    Commit,
    Committed,
    Demand,
    Granted,
    Hold,
    Kept,
    LookUpClock,
    Op,
    Pause,
    Pull,
    Push,
    Record,
    Recorded,
    Release,
    Reserve,
    Shortfall,
    UnderClock,
    Usage,
)
from tier_middleware.pricing import read_model

R = TypeVar("R")

MODEL = read_model(
    {"plans": {"plan:free@1": {"features": {"feature:x": {}}}, "plan:pro@1": {"features": {"feature:x": {}}}}}
)
AWAY = EngineUnavailable("away")
RESERVE = Reserve("org:a", (Demand("feature:x", 1),), (1,), 0, 900)
CHECK = Check("org:a", Demand("feature:x", 1), 0)
HOLD = Hold(1, "org:a", "feature:x", 1, 0)
OTHER = Hold(2, "org:a", "feature:x", 1, 0)
KEPT = Kept(HOLD, 1)
NO = Shortfall("org:a", "feature:x", 1, 3, 0, 3, "limit_reached", "limit_reached")


def driven(flow: Flow[R], *replies: object) -> tuple[list[Op[Any]], R]:
    """What a flow asked for, given these replies and errors in turn, and what it answered."""
    asked: list[Op[Any]] = []
    given = iter(replies)
    reply: object = None
    step: Callable[[Any], Op[Any]] = flow.send
    try:
        while True:
            asked.append(step(reply))
            reply = next(given)
            step = flow.throw if isinstance(reply, BaseException) else flow.send
    except StopIteration as stop:
        assert next(given, "all replies") == "all replies", "the flow did not ask for all"
        return asked, stop.value


def failed(flow: Flow[Any], kind: type[TierError], *replies: object) -> TierError:
    with pytest.raises(kind) as caught:
        driven(flow, *replies)
    return caught.value


def always(answer: bool) -> Callable[[TierError], bool]:
    def policy(error: TierError) -> bool:
        assert error is AWAY
        return answer

    return policy


def never_asked(error: TierError) -> bool:
    raise AssertionError(f"the policy was asked about {error!r}")


def test_one_operation_is_asked_for_and_its_reply_answered() -> None:
    assert driven(do(RESERVE), NO) == ([RESERVE], NO)


# ---- under a test clock ---------------------------------------------------------------------------------------------

LOOK = LookUpClock("clock_1")


def stands_at(now_ms: int) -> ClockRecord:
    return ClockRecord("clock_1", "rehearsal", now_ms)


def clocked_check(now_ms: int) -> Check:
    return Check("clock_1/org:a", Demand("feature:x", 1), now_ms)


CLOCKED_CHECK = UnderClock("clock_1", clocked_check)


def test_under_a_clock_an_operation_is_made_of_its_present() -> None:
    assert driven(do(CLOCKED_CHECK), stands_at(7), NO) == ([LOOK, clocked_check(7)], NO)


@pytest.mark.parametrize("replies", [(AWAY,), (stands_at(7), AWAY)])
def test_a_clock_that_cannot_be_asked_is_an_engine_that_is_away(replies: tuple[object, ...]) -> None:
    _, answer = driven(check(CLOCKED_CHECK, always(True)), *replies)
    assert answer == Admitted(None, AWAY)


def test_each_try_asks_the_clock_again() -> None:
    tries = (AWAY, None, stands_at(7), AWAY, None, stands_at(8), NO)
    asked, answer = driven(insisted(CLOCKED_CHECK), *tries)
    operations = [op for op in asked if not isinstance(op, Pause)]
    assert (operations, answer) == ([LOOK, LOOK, clocked_check(7), LOOK, clocked_check(8)], NO)


def test_a_settlement_under_a_clock_is_dated_when_it_is_performed() -> None:
    settlement = Settlement((KEPT,), (OTHER,), (RECORD,))
    steps = settle(settlement, lambda make: UnderClock("clock_1", make))
    replies = (stands_at(8), (Committed(),), stands_at(9), Recorded(over=2), stands_at(10), None)
    asked, outcome = driven(steps, *replies)
    assert asked == [LOOK, Commit((KEPT,), 8), LOOK, replace(RECORD, now_ms=9), LOOK, Release((OTHER,), 10)]
    assert outcome == Outcome(committed=(Committed(),), over_reported=2)


# ---- start ----------------------------------------------------------------------------------------------------------


def test_a_start_with_a_model_pushes_it_and_answers_all_that_is_stored() -> None:
    pushed = Model({"plan:pro@1": MODEL.plans["plan:pro@1"]})
    assert driven(start(pushed, None, 7), Model(), ()) == ([Pull(), Push(pushed, 7)], pushed)
    assert driven(start(pushed, "plan:free@1", 7), MODEL, ())[1].plans.keys() == MODEL.plans.keys() | {"plan:pro@1"}


def test_a_start_that_fails_has_pushed_nothing() -> None:
    """Plans are immutable: one that was stored by mistake could not be mended under its name."""
    error = failed(start(MODEL, "plan:fre@1", 7), ConfigurationError, Model())
    assert "did you mean 'plan:free@1'?" in error.message


def test_a_start_without_a_model_pushes_nothing() -> None:
    assert driven(start(None, "plan:free@1", 7), MODEL) == ([Pull()], MODEL)


def test_a_default_plan_that_is_not_stored_is_a_mistake_in_the_configuration() -> None:
    error = failed(start(None, "plan:fre@1", 7), ConfigurationError, MODEL)
    assert error.path == "TIER_DEFAULT_PLAN"
    assert "'plan:fre@1'" in error.message
    assert "did you mean 'plan:free@1'?" in error.message
    error = failed(start(None, "plan:free@1", 7), ConfigurationError, Model())
    assert "TIER_PRICING" in error.message


@pytest.mark.parametrize("replies", [(AWAY,), (Model(), AWAY)])
def test_a_start_fails_where_the_engine_is_away(replies: tuple[object, ...]) -> None:
    assert failed(start(MODEL, None, 7), EngineUnavailable, *replies) is AWAY


# ---- check and admit ------------------------------------------------------------------------------------------------


def test_a_check_answers_what_the_engine_does() -> None:
    checked = Checked(Usage("feature:x", 0, 3), None)
    assert driven(check(CHECK, never_asked), checked) == ([CHECK], checked)


def test_a_check_of_an_engine_that_is_away_is_answered_by_the_policy() -> None:
    assert driven(check(CHECK, always(True)), AWAY) == ([CHECK], Admitted(None, AWAY))
    assert driven(check(CHECK, always(False)), AWAY) == ([CHECK], Denied(AWAY))


def test_a_reservation_that_is_granted_admits_with_its_holds() -> None:
    assert driven(admit(RESERVE, never_asked), Granted((HOLD, None))) == ([RESERVE], Admitted((HOLD, None)))


def test_a_reservation_that_is_refused_is_a_definite_no() -> None:
    assert driven(admit(RESERVE, never_asked), NO) == ([RESERVE], NO)


def test_a_reservation_without_an_engine_is_answered_by_the_policy() -> None:
    assert driven(admit(RESERVE, always(True)), AWAY) == ([RESERVE], Admitted(None, AWAY))
    assert driven(admit(RESERVE, always(False)), AWAY) == ([RESERVE], Denied(AWAY))


def test_an_engine_that_cannot_be_opened_never_fails_open() -> None:
    mistake = ConfigurationError("a newer file")
    assert driven(admit(RESERVE, never_asked), mistake) == ([RESERVE], Denied(mistake))
    assert failed(check(CHECK, never_asked), ConfigurationError, mistake) is mistake


def test_a_mistake_of_the_caller_passes_through() -> None:
    mistake = InvalidRequest("amount: must be given")
    assert failed(admit(RESERVE, never_asked), InvalidRequest, mistake) is mistake
    assert failed(check(CHECK, never_asked), InvalidRequest, mistake) is mistake


# ---- insist ---------------------------------------------------------------------------------------------------------

RECORD = Record("org:a", "feature:x", 2, "key", 7)


def pauses(asked: list[Op[Any]]) -> list[float]:
    return [op.seconds for op in asked if isinstance(op, Pause)]


def test_insisting_asks_once_where_that_is_enough() -> None:
    assert driven(insisted(RECORD), Recorded()) == ([RECORD], Recorded())


@pytest.mark.parametrize("failures", [1, 2])
def test_insisting_tries_the_same_operation_again_after_growing_pauses(failures: int) -> None:
    asked, answer = driven(insisted(RECORD), *[AWAY, None] * failures, Recorded(over=1))
    assert answer == Recorded(over=1)
    assert [op for op in asked if not isinstance(op, Pause)] == [RECORD] * (failures + 1)
    assert len(pauses(asked)) == failures
    assert pauses(asked) == sorted(pauses(asked))


def test_insisting_gives_up_after_a_bounded_time() -> None:
    last = EngineUnavailable("still away")
    flow = insisted(RECORD)
    assert failed(flow, EngineUnavailable, AWAY, None, AWAY, None, last) is last


def test_insisting_does_not_repeat_what_can_never_work() -> None:
    mistake = OrgNotFound("who?", org="org:a")
    assert failed(insisted(RECORD), OrgNotFound, mistake) is mistake


# ---- settle ---------------------------------------------------------------------------------------------------------

ALL_AWAY = [AWAY, None, AWAY, None, AWAY]
MISTAKE = InvalidRequest("too much to count")


def done(*replies: object, **settlement: Any) -> tuple[list[Op[Any]], Outcome]:
    asked, outcome = driven(settle(Settlement(**settlement), lambda make: make(7)), *replies)
    return [op for op in asked if not isinstance(op, Pause)], outcome


def test_an_empty_settlement_asks_for_nothing() -> None:
    assert Settlement().is_empty
    assert done() == ([], Outcome())


def test_a_settlement_counts_then_reports_then_gives_back() -> None:
    settlement: dict[str, Any] = {"kept": (KEPT,), "records": (RECORD,), "released": (OTHER,)}
    assert not Settlement(**settlement).is_empty
    asked, outcome = done((Committed(over=1),), Recorded(over=2), None, **settlement)
    assert asked == [Commit((KEPT,), 7), RECORD, Release((OTHER,), 7)]
    assert outcome == Outcome(committed=(Committed(over=1),), over_reported=2)


def test_a_commit_that_fails_at_first_is_sent_again() -> None:
    asked, outcome = done(AWAY, None, (Committed(),), kept=(KEPT,))
    assert asked == [Commit((KEPT,), 7)] * 2
    assert outcome == Outcome(committed=(Committed(),))


MANY = tuple([Kept(Hold(id, "org:a", "feature:x", 1, 0), 1) for id in range(1, 251)])
LEFT = tuple([kept.hold for kept in MANY])


def test_many_reservations_are_settled_some_at_a_time() -> None:
    counted = [Committed(over=n) for n in range(250)]
    replies = (counted[:100], None, counted[100:200], None, counted[200:], None, None, None, None, None)
    asked, outcome = driven(settle(Settlement(MANY, LEFT), lambda make: make(7)), *replies)
    assert [type(op) for op in asked] == [Commit, Pause, Commit, Pause, Commit, Release, Pause, Release, Pause, Release]
    commits, releases = asked[:5:2], asked[5::2]
    assert max(len(op.kept) for op in commits if isinstance(op, Commit)) == 100
    assert [kept for op in commits if isinstance(op, Commit) for kept in op.kept] == list(MANY)
    assert [hold for op in releases if isinstance(op, Release) for hold in op.holds] == list(LEFT)
    assert outcome == Outcome(tuple(counted))


def test_once_some_cannot_be_counted_those_after_them_are_not_tried() -> None:
    asked, outcome = done([Committed()] * 100, None, AWAY, None, AWAY, None, AWAY, kept=MANY)
    first, *tries = [op.kept for op in asked if isinstance(op, Commit)]
    assert (first, tries) == (MANY[:100], [MANY[100:200]] * 3)
    assert outcome == Outcome(committed=(Committed(),) * 100, lost_kept=MANY[100:], error=AWAY)


@pytest.mark.parametrize(("replies", "error"), [(ALL_AWAY, AWAY), ([MISTAKE], MISTAKE)])
def test_a_commit_that_cannot_be_made_is_answered_as_lost_and_the_rest_is_still_done(
    replies: list[object], error: TierError
) -> None:
    asked, outcome = done(*replies, Recorded(over=1), None, kept=(KEPT,), records=(RECORD,), released=(OTHER,))
    assert asked[-2:] == [RECORD, Release((OTHER,), 7)]
    assert outcome == Outcome(over_reported=1, lost_kept=(KEPT,), error=error)


def test_each_report_that_cannot_be_made_is_answered_as_lost_and_no_other() -> None:
    first, second, third = (Record("org:a", "feature:x", n, f"key:{n}", 7) for n in (1, 2, 3))
    asked, outcome = done(Recorded(over=1), MISTAKE, Recorded(over=3), records=(first, second, third))
    assert asked == [first, second, third]
    assert outcome == Outcome(over_reported=4, lost_records=(second,), error=MISTAKE)


def test_a_release_that_fails_is_an_error_and_no_loss() -> None:
    _, outcome = done((Committed(),), *ALL_AWAY, kept=(KEPT,), released=(OTHER,))
    assert outcome == Outcome(committed=(Committed(),), error=AWAY)


def test_a_settlement_without_any_engine_loses_all_and_raises_nothing() -> None:
    settlement = {"kept": (KEPT,), "records": (RECORD,), "released": (OTHER,)}
    asked, outcome = done(*ALL_AWAY * 3, **settlement)
    assert len(asked) == 9
    assert outcome == Outcome(lost_kept=(KEPT,), lost_records=(RECORD,), error=AWAY)
