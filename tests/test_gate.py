"""Admission and settlement with no engine at all: the flow is driven by hand, and its operations are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware import (
    NO_ORG,
    UNMETERED,
    AsyncTier,
    ConfigurationError,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
)
from tier_middleware.context import UNRESOLVED, TierContext
from tier_middleware.gate import admission
from tier_middleware.gate_options import GateOptions
from tier_middleware.model import Model
from tier_middleware.ops import Ask, Demand, Granted, Hold, Pull, Release, Reserve, Shortfall
from tier_middleware.requirement import Requirement


@dataclass
class FakeRequest:
    method: str = "GET"


def org(request: Any) -> str:
    return "acme"


def context(method: str = "GET", on_error: Any = "allow", **options: Any) -> TierContext:
    tier = AsyncTier("memory://", on_error=on_error)
    return TierContext(tier.core, GateOptions(**{"org": org, **options}), FakeRequest(method))


class Driver:
    """Answers the operations of a flow from a list; an exception is thrown in."""

    def __init__(self, steps: Any) -> None:
        self.steps = steps
        self.ops: list[Any] = []
        self.result: Any = None
        self.is_done = False

    def run(self, *replies: Any) -> Driver:
        left = list(replies)
        try:
            op = next(self.steps)
            while True:
                self.ops.append(op)
                if isinstance(op, Ask):
                    op = self.steps.send(op.function(*op.arguments))
                    continue
                reply = left.pop(0)
                op = self.steps.throw(reply) if isinstance(reply, BaseException) else self.steps.send(reply)
        except StopIteration as stop:
            self.result = stop.value
            self.is_done = True
        assert not left
        return self

    @property
    def kinds(self) -> list[str]:
        return [type(op).__name__ for op in self.ops]


def hold(feature: str, n: int, id: int = 1) -> Hold:
    return Hold(id, "org:acme", feature, n, 0)


def needs(*declared: Any) -> list[Requirement]:
    return [Requirement(*one) if isinstance(one, tuple) else Requirement(one) for one in declared]


def shortfall(feature: str, reason: Any = "limit_reached") -> Shortfall:
    return Shortfall("org:acme", feature, 1, 10, 0, 10, reason, reason, None)


# ---- admission ------------------------------------------------------------------------------------------------------


def test_all_features_are_reserved_in_one_operation() -> None:
    here = context()
    declared = needs(("feature:a", 2), "feature:b", ("feature:a", 3))
    driver = Driver(admission(here, declared, {})).run(Granted((hold("feature:a", 5), hold("feature:b", 1, 2))))
    assert driver.kinds == ["Ask", "Reserve"]
    reserve = driver.ops[1]
    assert reserve.org == "org:acme"
    assert reserve.demands == (Demand("feature:a", 5, True), Demand("feature:b", 1, False))
    assert len(set(reserve.ids)) == 2
    assert reserve.expires_ms - reserve.now_ms == 900_000
    assert driver.result is None
    assert here.org == "org:acme"
    assert (here["feature:a"].n, here["feature:b"].n) == (5, 1)


def test_amounts_are_asked_for_before_anything_is_reserved() -> None:
    def amount(request: Any, kwargs: Any) -> int:
        return len(kwargs["text"])

    driver = Driver(
        admission(context(), needs(("feature:a", amount), ("feature:b", lambda request: 7)), {"text": "abc"})
    )
    driver.run(Granted((hold("feature:a", 3), hold("feature:b", 7, 2))))
    assert driver.kinds == ["Ask", "Ask", "Ask", "Reserve"]
    assert [demand.n for demand in driver.ops[-1].demands] == [3, 7]


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "3"])
def test_a_bad_amount_reserves_nothing(value: Any) -> None:
    driver = Driver(admission(context(), needs(("feature:a", lambda request: value)), {}))
    with pytest.raises(InvalidRequest, match="amount"):
        driver.run()
    assert "Reserve" not in driver.kinds


def test_options_asks_nobody() -> None:
    here = context("OPTIONS", org=None)
    driver = Driver(admission(here, needs("feature:a"), {})).run()
    assert driver.ops == []
    assert driver.result is None
    assert here["feature:a"].n == 0
    assert here.settlement(200).is_empty


@pytest.mark.parametrize(("value", "status"), [(None, 401), (NO_ORG, 403)])
def test_no_org_is_refused_without_the_engine(value: Any, status: int) -> None:
    driver = Driver(admission(context(), needs("feature:a"), {}, value)).run()
    assert driver.ops == []
    assert (driver.result.refusal.status, driver.result.refusal.code) == (status, "no_org")


def test_the_unmetered_pass_without_the_engine() -> None:
    here = context()
    driver = Driver(admission(here, needs("feature:a", "feature:b"), {}, UNMETERED)).run()
    assert driver.ops == []
    here["feature:b"].set(9)
    assert here.settlement(200).is_empty


def test_a_shortfall_is_refused_with_the_newest_model() -> None:
    here = context()
    driver = Driver(admission(here, needs("feature:a", "feature:b"), {})).run(shortfall("feature:b"), Model())
    assert driver.kinds == ["Ask", "Reserve", "Pull"]
    assert (driver.result.refusal.code, driver.result.refusal.feature) == ("limit_reached", "feature:b")
    assert here.settlement(200).is_empty
    assert here.admitted == []  # whoever asks again is asked again


def test_a_refusal_does_without_the_model_where_the_engine_is_gone() -> None:
    driver = Driver(admission(context(), needs("feature:a"), {}))
    driver.run(shortfall("feature:a"), EngineUnavailable("away"))
    assert driver.result.refusal.code == "limit_reached"


def asked(answer: bool, log: list[Any]) -> Any:
    def on_error(request: Any, error: Exception) -> bool:
        log.append((request, error))
        return answer

    return on_error


@pytest.mark.parametrize("route", [None, "allow", "deny", "open", "closed"])
@pytest.mark.parametrize("middleware", [None, "allow", "deny", "open", "closed"])
@pytest.mark.parametrize("tier", ["allow", "deny", "open", "closed"])
def test_who_decides_when_the_engine_is_away(route: str | None, middleware: str | None, tier: str) -> None:
    log: list[Any] = []
    policies = {"open": asked(True, log), "closed": asked(False, log)}
    policy = [policies.get(name or "", name) for name in (route, middleware, tier)]
    here = context(on_error=policy[2])
    here.options = GateOptions(org, on_error=policy[1])
    requirement = Requirement("feature:a", on_error=policy[0])
    error = EngineUnavailable("away")
    driver = Driver(admission(here, [requirement], {})).run(error)
    decider = route or middleware or tier
    is_open = decider in ("allow", "open")
    assert (driver.result is None) == is_open
    if not is_open:
        assert (driver.result.refusal.status, driver.result.refusal.error) == (503, error)
    assert here.core.counts == {"fail_open" if is_open else "fail_closed": 1}
    assert log == ([(here.request, error)] if decider in policies else [])


async def closed(request: Any, error: Exception) -> bool:
    return False


@pytest.mark.parametrize("route", [None, lambda request, error: closed(request, error)])
def test_a_policy_that_nobody_awaits_opens_nothing(route: Any) -> None:
    here = context(on_error=lambda request, error: closed(request, error))
    driver = Driver(admission(here, [Requirement("feature:a", on_error=route)], {})).run(EngineUnavailable("away"))
    assert driver.result.refusal.status == 503
    assert here.core.counts == {"fail_closed": 1}


def test_a_configuration_error_never_opens() -> None:
    here = context(on_error="allow")
    driver = Driver(admission(here, needs("feature:a"), {})).run(ConfigurationError("corrupt"))
    assert driver.result.refusal.status == 503
    assert here.core.counts == {}


def test_who_is_let_through_while_it_is_away_is_reported_later() -> None:
    here = context()
    Driver(admission(here, needs(("feature:a", 4)), {})).run(EngineUnavailable("away"))
    settlement = here.settlement(200)
    assert (settlement.kept, settlement.released) == ((), ())
    ((report),) = settlement.records
    assert (report.org, report.feature, report.n) == ("org:acme", "feature:a", 4)


def test_a_request_that_ended_meanwhile_gives_back() -> None:
    """A thread waited at the gate when its request was cancelled."""
    here = context()
    steps = admission(here, needs("feature:a"), {})
    next(steps)
    reserve = steps.send("acme")
    assert isinstance(reserve, Reserve)
    here.settlement(None)  # the middleware's, on the other thread
    held = hold("feature:a", 1)
    release = steps.send(Granted((held,)))
    assert isinstance(release, Release)
    assert release.holds == (held,)
    with pytest.raises(RuntimeError, match="feature:a"):
        steps.send(None)


def test_the_model_is_asked_for_once_only() -> None:
    driver = Driver(admission(context(), needs("feature:a"), {})).run(shortfall("feature:a", "no_entitlement"), Model())
    assert [op for op in driver.ops if isinstance(op, Pull)] == [driver.ops[-1]]


def test_a_given_org_needs_no_callable() -> None:
    driver = Driver(admission(context(org=None), needs("feature:a"), {}, 7)).run(Granted((hold("feature:a", 1),)))
    assert driver.kinds == ["Reserve"]
    assert driver.ops[0].org == "org:7"


def test_nobody_to_say_the_org() -> None:
    with pytest.raises(ConfigurationError, match="nobody says for whom"):
        Driver(admission(context(org=None), needs("feature:a"), {}, UNRESOLVED)).run()


# ---- settlement -----------------------------------------------------------------------------------------------------


def admitted(*holds: Hold | None, declared: list[Requirement] | None = None) -> TierContext:
    """A request that was let through with these holds."""
    here = context()
    wanted = declared or [Requirement(held.feature, held.n) for held in holds if held is not None]
    Driver(admission(here, wanted, {})).run(Granted(holds))
    return here


def test_a_success_keeps_what_was_reserved() -> None:
    here = admitted(hold("feature:a", 2), hold("feature:b", 3, 2))
    settlement = here.settlement(200)
    assert [(kept.hold.feature, kept.n) for kept in settlement.kept] == [("feature:a", 2), ("feature:b", 3)]
    assert settlement.released == ()


@pytest.mark.parametrize(
    ("status", "is_counted"), [(400, True), (500, True), (None, True), (200, False), (None, False)]
)
def test_anything_else_releases_it(status: int | None, is_counted: bool) -> None:
    here = admitted(hold("feature:a", 2))
    settlement = here.settlement(status, is_counted=is_counted)
    assert settlement.kept == ()
    assert [held.feature for held in settlement.released] == ["feature:a"]


def test_nothing_can_be_said_afterwards() -> None:
    here = admitted(hold("feature:a", 2))
    usage = here["feature:a"]
    here.settlement(200)
    for say in (lambda: usage.set(1), lambda: usage.add(1), usage.skip):
        with pytest.raises(RuntimeError, match="settled already"):
            say()


@pytest.mark.parametrize("n", [-1, 1.5, True, None, "1"])
def test_what_a_handler_says_is_checked(n: Any) -> None:
    usage = admitted(hold("feature:a", 2))["feature:a"]
    for say in (usage.set, usage.add):
        with pytest.raises(InvalidRequest, match=f"n: must be a whole number >= 0, got {n!r}"):
            say(n)
    assert usage.n == 2


@given(
    held=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    said=st.lists(
        st.one_of(st.just(("skip", 0)), st.tuples(st.sampled_from(["set", "add"]), st.integers(0, 30))), max_size=5
    ),
    status=st.sampled_from([200, 204, 302, 404, 500]),
    reports=st.lists(st.sampled_from([None, True, False]), min_size=4, max_size=4),
)
def test_whatever_is_said_every_hold_is_settled_once_and_the_total_is_what_was_said(
    held: list[int], said: list[tuple[str, int]], status: int, reports: list[bool | None]
) -> None:
    """One feature, gates one after the other: as by a table, a decorator, and more that was taken."""
    here = context()
    rules = [None if report is None else ruled(report) for report in reports]
    for i, n in enumerate(held):
        declared = [Requirement("feature:a", n, report_if=rules[i])]
        Driver(admission(here, declared, {})).run(Granted((hold("feature:a", n, i + 1),)))
    usage = here["feature:a"]
    for word, n in said:
        usage.skip() if word == "skip" else getattr(usage, word)(n)
    settlement = here.settlement(status)
    settled = [kept.hold.id for kept in settlement.kept] + [released.id for released in settlement.released]
    assert sorted(settled) == list(range(1, len(held) + 1))
    counting = [n for i, n in enumerate(held) if (status < 400 if reports[i] is None else reports[i])]
    expected = sum(counting)
    if counting and said:
        total = 0
        for word, n in said:
            total = {"skip": total, "set": n, "add": total + n}[word]
        expected = 0 if said[-1][0] == "skip" else total
    assert sum(kept.n for kept in settlement.kept) == expected


def ruled(answer: bool) -> Any:
    return lambda request, status: answer


def test_what_is_skipped_is_released() -> None:
    here = admitted(hold("feature:a", 2), hold("feature:b", 1, 2))
    here["feature:a"].skip()
    settlement = here.settlement(200)
    assert [kept.hold.feature for kept in settlement.kept] == ["feature:b"]
    assert [held.feature for held in settlement.released] == ["feature:a"]


def test_a_level_can_be_set_to_nothing() -> None:
    here = admitted(hold("feature:seats", 0), declared=[Requirement("feature:seats", 5)])
    here["feature:seats"].set(0)
    assert [kept.n for kept in here.settlement(200).kept] == [0]


def test_an_on_off_feature_settles_nothing() -> None:
    here = admitted(None, declared=[Requirement("feature:sso")])
    here["feature:sso"].add(3)
    assert here.settlement(200).is_empty


def test_a_cap_is_passed_on() -> None:
    here = admitted(hold("feature:a", 2), declared=[Requirement("feature:a", 2, overage="cap")])
    here["feature:a"].set(20)
    ((kept),) = here.settlement(200).kept
    assert (kept.n, kept.is_capped) == (20, True)


# ---- with an engine -------------------------------------------------------------------------------------------------

PRICING = {"plans": {"plan:free@1": {"features": {"feature:a": {"tiers": [{"upto": 5}]}}}}}


async def test_taking_more_than_is_left() -> None:
    async with AsyncTier("memory://", pricing=PRICING, default_plan="plan:free@1") as tier:
        here = TierContext(tier.core, GateOptions(org), FakeRequest())
        assert await tier.run(admission(here, needs(("feature:a", 2)), {})) is None
        usage = here["feature:a"]
        await usage.take(3)
        with pytest.raises(LimitReached) as refused:
            await usage.take(1)
        assert (refused.value.org, refused.value.feature, refused.value.requested) == ("org:acme", "feature:a", 1)
        assert usage.n == 3
        with pytest.raises(InvalidRequest):
            await usage.take(-1)
        settlement = here.settlement(200)
        assert sum(kept.n for kept in settlement.kept) == 3


async def test_the_answers() -> None:
    async with AsyncTier("memory://", pricing=PRICING, default_plan="plan:free@1") as tier:
        here = TierContext(tier.core, GateOptions(org), FakeRequest())
        await tier.run(admission(here, needs(("feature:a", 2)), {}))
        answer = here.answers["feature:a"]
        assert (answer.ok, answer.err, answer.reason) == (True, None, None)
        assert (answer.used, answer.limit, answer.remaining) == (0, 5, 3)
        await answer.report(1)
        assert here["feature:a"].used == 1
