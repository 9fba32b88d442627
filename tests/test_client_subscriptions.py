"""`Tier` and `AsyncTier`: subscriptions with trials and starts to come, schedules, cancellations, and info of orgs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tier_middleware import InvalidRequest, ManualClock, OrgNotFound, TierError
from tier_middleware.answers import OrgDetails, PaymentMethods, PeriodView
from tier_middleware.orginfo import OrgInfo

ORG = "org:acme"
CALLS = "feature:calls"
PRICING: dict[str, Any] = {
    "plans": {
        "plan:free@1": {"features": {CALLS: {"tiers": [{"upto": 3}]}}},
        "plan:free@2": {"features": {CALLS: {"tiers": [{"upto": 4}]}}},
        "plan:free@10": {"features": {CALLS: {"tiers": [{"upto": 5}]}}},
        "plan:pro@1": {"features": {CALLS: {"tiers": [{"upto": 10}]}, "feature:sso": {}}},
        "plan:weekly@1": {"interval": "@weekly", "features": {CALLS: {"tiers": [{"upto": 10}]}}},
    }
}
START = datetime(2024, 1, 31, 10, 30, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def tier(make: Any, url: str, clock: ManualClock) -> Any:
    return make(url, pricing=PRICING, clock=clock)


def outlined(tier: Any) -> list[tuple[timedelta, timedelta | None, str, bool]]:
    """The org's phases as a test writes them: from when to when, counted from START, on what, and whether on trial."""
    return [
        (
            phase.effective - START,
            phase.end and phase.end - START,
            " ".join((*phase.plans, *phase.fragments)),
            phase.trial,
        )
        for phase in tier.lookup_phases(ORG).phases
    ]


# ---- trials ---------------------------------------------------------------------------------------------------------


def test_a_trial_comes_first_and_its_usage_stays(tier: Any, clock: ManualClock) -> None:
    tier.subscribe(ORG, "plan:pro@1", trial_days=14)
    assert outlined(tier) == [(0 * DAY, 14 * DAY, "plan:pro@1", True), (14 * DAY, None, "plan:pro@1", False)]
    tier.report(ORG, CALLS, 4)
    assert tier.lookup_phase(ORG).trial
    clock.set(START + 14 * DAY)
    phase = tier.lookup_phase(ORG)
    assert (phase.trial, phase.effective, phase.end) == (False, START + 14 * DAY, None)
    assert phase.current == PeriodView(START, datetime(2024, 2, 29, 10, 30, tzinfo=UTC))
    tier.report(ORG, CALLS, 1, at=START + 13 * DAY)
    assert tier.lookup_limit(ORG, CALLS).used == 5


def test_a_trial_may_begin_later(tier: Any, clock: ManualClock) -> None:
    tier.subscribe(ORG, ["plan:pro@1"], trial_days=2, effective=START + 5 * DAY)
    assert outlined(tier) == [(5 * DAY, 7 * DAY, "plan:pro@1", True), (7 * DAY, None, "plan:pro@1", False)]
    assert tier.lookup_phase(ORG) is None
    assert not tier.can(ORG, CALLS).ok
    clock.set(START + 5 * DAY)
    assert tier.can(ORG, CALLS).ok


def test_a_cancelled_trial_is_never_paid(tier: Any, clock: ManualClock) -> None:
    tier.subscribe(ORG, "plan:pro@1", trial_days=14)
    tier.cancel(ORG, at=START + 14 * DAY)
    assert outlined(tier) == [(0 * DAY, 14 * DAY, "plan:pro@1", True)]
    clock.set(START + 14 * DAY)
    assert tier.lookup_phase(ORG) is None


# ---- starts, switches and ends to come ------------------------------------------------------------------------------


def test_a_switch_to_come_leaves_what_is_until_then(tier: Any, clock: ManualClock) -> None:
    tier.subscribe(ORG, "plan:free@1")
    tier.subscribe(ORG, ["plan:pro@1"], effective=START + 3 * DAY)
    assert outlined(tier) == [(0 * DAY, 3 * DAY, "plan:free@1", False), (3 * DAY, None, "plan:pro@1", False)]
    assert tier.lookup_limit(ORG, CALLS).limit == 3
    clock.set(START + 3 * DAY)
    assert tier.lookup_limit(ORG, CALLS).limit == 10
    assert tier.lookup_limit(ORG, CALLS).resets_at == datetime(2024, 2, 29, 10, 30, tzinfo=UTC)


def test_times_may_be_in_any_zone_and_a_moment_ago_is_now(tier: Any, clock: ManualClock) -> None:
    tier.subscribe(ORG, "plan:free@1", effective=datetime.fromisoformat("2024-01-31T19:28:00+09:00"))
    assert tier.lookup_phase(ORG).effective == START
    tier.cancel(ORG, at=datetime.fromisoformat("2024-02-01T19:30:00+09:00"))
    assert tier.lookup_phase(ORG).end == START + DAY


def test_a_schedule_of_several_phases(tier: Any, clock: ManualClock) -> None:
    tier.schedule(
        ORG,
        [
            {"features": ["plan:pro@1"], "trial": True},
            {"features": ["plan:free@1", "feature:sso@plan:pro@1"], "effective": START + 7 * DAY},
            {"effective": START + 9 * DAY},
        ],
    )
    assert outlined(tier) == [
        (0 * DAY, 7 * DAY, "plan:pro@1", True),
        (7 * DAY, 9 * DAY, "plan:free@1 feature:sso@plan:pro@1", False),
    ]
    found = tier.lookup_phases(ORG)
    assert found.org == ORG
    assert found.current == found.phases[0].current
    first, second = found.phases
    assert first.features == ("feature:calls@plan:pro@1", "feature:sso@plan:pro@1")
    assert second.features == ("feature:calls@plan:free@1", "feature:sso@plan:pro@1")
    assert (second.plans, second.fragments) == (("plan:free@1",), ("feature:sso@plan:pro@1",))
    clock.set(START + 8 * DAY)
    assert tier.lookup_phase(ORG) == tier.lookup_phases(ORG).phases[0]
    assert {usage.feature for usage in tier.lookup_limits(ORG)} == {CALLS, "feature:sso"}
    clock.set(START + 9 * DAY)
    assert (tier.lookup_phase(ORG), tier.lookup_phases(ORG).phases, tier.lookup_phases(ORG).current) == (None, (), None)


def test_a_schedule_replaces_what_was_pending(tier: Any) -> None:
    tier.subscribe(ORG, "plan:free@1")
    tier.subscribe(ORG, "plan:pro@1", effective=START + DAY)
    tier.schedule(ORG, [{"features": "plan:weekly@1", "effective": START + 2 * DAY}])
    assert outlined(tier) == [(0 * DAY, 2 * DAY, "plan:free@1", False), (2 * DAY, None, "plan:weekly@1", False)]
    tier.subscribe(ORG, "plan:free@1")
    assert outlined(tier) == [(0 * DAY, None, "plan:free@1", False)]


def test_a_start_that_is_only_pending(tier: Any, clock: ManualClock) -> None:
    tier.subscribe(ORG, "plan:weekly@1", effective=START + 2 * DAY)
    found = tier.lookup_phases(ORG)
    assert found.current is None
    (phase,) = found.phases
    assert phase.current == PeriodView(START + 2 * DAY, START + 9 * DAY)
    assert tier.lookup_phase(ORG) is None
    assert list(tier.lookup_limits(ORG)) == []


@pytest.mark.parametrize("at", [None, START + DAY, START + 2 * DAY])
def test_what_is_pending_can_be_cancelled_before_it_starts(tier: Any, clock: ManualClock, at: datetime | None) -> None:
    tier.subscribe(ORG, "plan:free@1", effective=START + 2 * DAY)
    tier.cancel(ORG, at=at)
    assert tier.lookup_phases(ORG).phases == ()
    clock.set(START + 3 * DAY)
    assert tier.lookup_phase(ORG) is None


def test_a_cancellation_to_come_can_be_moved_and_taken_back(tier: Any) -> None:
    tier.subscribe(ORG, "plan:free@1")
    for days in (3, 5, 1):
        tier.cancel(ORG, at=START + days * DAY)
        assert outlined(tier) == [(0 * DAY, days * DAY, "plan:free@1", False)]
    tier.subscribe(ORG, "plan:free@1")
    assert outlined(tier) == [(0 * DAY, None, "plan:free@1", False)]


def test_what_a_cancellation_and_a_new_subscription_do_to_usage(tier: Any, clock: ManualClock) -> None:
    tier.subscribe(ORG, "plan:free@1")
    tier.report(ORG, CALLS, 3)
    tier.cancel(ORG, at=START + DAY)
    clock.set(START + DAY)
    assert tier.lookup_limit(ORG, CALLS).limit == 0
    clock.set(START + 2 * DAY)
    tier.subscribe(ORG, "plan:free@1")
    assert (tier.lookup_limit(ORG, CALLS).used, tier.can(ORG, CALLS, 3).ok) == (0, True)
    tier.report(ORG, CALLS, 1, at=START)
    with pytest.raises(InvalidRequest, match=r"^at: must lie in a period of the subscription"):
        tier.report(ORG, CALLS, 1, at=START + DAY)
    assert tier.lookup_limit(ORG, CALLS).used == 0


# ---- info -----------------------------------------------------------------------------------------------------------


def test_what_is_known_of_an_org(tier: Any, clock: ManualClock) -> None:
    tier.update_org(ORG, {"email": "a@example.com", "name": "Acme", "metadata": {"k": "v", "n": "1"}})
    clock.advance(DAY)
    tier.update_org(ORG, OrgInfo(email="", name="Acme Ltd", phone="555", metadata={"k": ""}))
    expected = OrgDetails(ORG, "", START, "a@example.com", "Acme Ltd", "", "555", {"n": "1"}, "")
    assert tier.lookup_org(ORG) == expected
    assert tier.whois(ORG).org == ORG
    assert (list(tier.lookup_limits(ORG)), tier.lookup_phase(ORG), tier.lookup_phases(ORG).phases) == ([], None, ())


def test_a_subscription_may_bring_info_and_a_payment_method(tier: Any) -> None:
    tier.subscribe(ORG, "plan:free@1", info={"name": "Acme"}, payment_method_id="pm_1")
    assert tier.lookup_phase(ORG).plans == ("plan:free@1",)
    assert (tier.lookup_org(ORG).name, tier.lookup_org(ORG).default_payment_method) == ("Acme", "pm_1")
    tier.subscribe(ORG, payment_method_id="pm_2")
    tier.schedule(ORG, [{"features": "plan:pro@1"}], info={"phone": "555"})
    assert tier.lookup_phase(ORG).plans == ("plan:pro@1",)
    details = tier.lookup_org(ORG)
    assert (details.name, details.phone, details.default_payment_method) == ("Acme", "555", "pm_2")
    tier.schedule(ORG, [{}], payment_method_id="pm_3")
    assert tier.lookup_org(ORG).default_payment_method == "pm_3"


def test_a_subscription_to_nothing_with_nothing_does_nothing(tier: Any) -> None:
    tier.subscribe(ORG)
    with pytest.raises(OrgNotFound):
        tier.whois(ORG)
    tier.subscribe(ORG, info={})
    assert tier.lookup_org(ORG).email == ""


def test_info_is_kept_where_the_schedule_is_refused_as_in_tier(tier: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tier.subscribe(ORG, "plan:nope@1", info={"name": "Acme"})
    assert caught.value.code == "TERR1020"
    assert tier.lookup_org(ORG).name == "Acme"


def test_payment_methods_are_none_without_payments(tier: Any) -> None:
    tier.subscribe(ORG, payment_method_id="pm_1")
    assert tier.lookup_payment_methods(ORG) == PaymentMethods(ORG, ())


def test_all_of_it_is_there_for_the_next_client(make: Any, url: str, clock: ManualClock) -> None:
    tier = make(url, pricing=PRICING, clock=clock)
    tier.subscribe(ORG, "plan:pro@1", trial_days=14, info={"email": "a@example.com", "metadata": {"k": "v"}})
    before = (tier.lookup_phases(ORG), tier.lookup_org(ORG))
    tier.close()
    if url != "memory://":  # what that holds ends with its client
        tier = make(url, clock=clock)
    assert (tier.lookup_phases(ORG), tier.lookup_org(ORG)) == before


def test_an_org_that_nobody_named_is_not_found(tier: Any) -> None:
    asks = (tier.lookup_phase, tier.lookup_phases, tier.lookup_org, tier.lookup_payment_methods, tier.cancel)
    for ask in asks:
        with pytest.raises(OrgNotFound) as caught:
            ask("org:nobody")
        assert (caught.value.status, caught.value.code, caught.value.org) == (400, "org_not_found", "org:nobody")
    with pytest.raises(OrgNotFound):
        tier.cancel("org:nobody", at=START + DAY)


# ---- the model ------------------------------------------------------------------------------------------------------


def test_the_newest_version_of_each_plan(tier: Any) -> None:
    assert set(tier.pull_latest().plans) == {"plan:free@10", "plan:pro@1", "plan:weekly@1"}
    assert tier.pull_latest().plans["plan:free@10"] == tier.pull().plans["plan:free@10"]
    tier.push({"plans": {"plan:free@11": {"features": {CALLS: {}}}}})
    assert set(tier.pull_latest().plans) == {"plan:free@11", "plan:pro@1", "plan:weekly@1"}


# ---- mistakes -------------------------------------------------------------------------------------------------------

NAIVE = datetime(2024, 2, 10)
PAST = START - timedelta(minutes=6)
LATER = START + DAY

MISTAKES: list[tuple[str, Callable[[Any], Any], str, str, str]] = [
    # what it is, the call, Tier's code, the field, the value as the message shows it
    ("org", lambda t: t.subscribe("acme", "plan:pro@1"), "invalid_request", "org", "'acme'"),
    ("org without plans", lambda t: t.subscribe("acme"), "invalid_request", "org", "'acme'"),
    ("org of info", lambda t: t.update_org("acme", {}), "invalid_request", "org", "'acme'"),
    ("org of a schedule", lambda t: t.schedule("", [{}]), "invalid_request", "org", "''"),
    ("org of a cancellation", lambda t: t.cancel("acme"), "invalid_request", "org", "'acme'"),
    ("org that is looked up", lambda t: t.lookup_phases("acme"), "invalid_request", "org", "'acme'"),
    ("org that is described", lambda t: t.lookup_org(None), "invalid_request", "org", "None"),
    ("org that pays", lambda t: t.lookup_payment_methods("acme"), "invalid_request", "org", "'acme'"),
    ("plan", lambda t: t.subscribe(ORG, "pro"), "invalid_request", "features", "'pro'"),
    ("empty plan", lambda t: t.subscribe(ORG, ""), "invalid_request", "features", "''"),
    ("number for plans", lambda t: t.subscribe(ORG, 7), "invalid_request", "features", "7"),
    ("unknown plan", lambda t: t.subscribe(ORG, "plan:prp@1"), "TERR1020", "features", "'plan:prp@1'"),
    ("unknown plan after a trial", lambda t: t.subscribe(ORG, "plan:x@1", trial_days=1), "TERR1020", "features", "x@1"),
    ("unknown feature", lambda t: t.subscribe(ORG, "feature:x@plan:pro@1"), "TERR1020", "features", "'feature:x@plan"),
    ("plan twice", lambda t: t.subscribe(ORG, ["plan:pro@1"] * 2), "feature_not_found", "features", "'plan:pro@1'"),
    (
        "unknown plan in a later phase",
        lambda t: t.schedule(ORG, [{"features": "plan:free@1"}, {"effective": LATER, "features": "plan:prp@1"}]),
        "TERR1020",
        "features",
        "'plan:prp@1'",
    ),
    ("trial", lambda t: t.subscribe(ORG, "plan:pro@1", trial_days=-1), "invalid_request", "trial_days", "-1"),
    ("half a day", lambda t: t.subscribe(ORG, "plan:pro@1", trial_days=0.5), "invalid_request", "trial_days", "0.5"),
    ("endless trial", lambda t: t.subscribe(ORG, "plan:pro@1", trial_days=10**9), "invalid_request", "trial_days", "0"),
    ("naive", lambda t: t.subscribe(ORG, "plan:pro@1", effective=NAIVE), "invalid_request", "effective", "2024, 2, 10"),
    ("past", lambda t: t.subscribe(ORG, "plan:pro@1", effective=PAST), "invalid_request", "effective", "T10:24:00Z"),
    ("no time", lambda t: t.subscribe(ORG, "plan:pro@1", effective="now"), "invalid_request", "effective", "'now'"),
    ("naive end", lambda t: t.cancel(ORG, at=NAIVE), "invalid_request", "at", "2024, 2, 10"),
    ("past end", lambda t: t.cancel(ORG, at=PAST), "invalid_request", "at", "T10:24:00Z"),
    ("phases", lambda t: t.schedule(ORG, []), "invalid_request", "phases", "[]"),
    ("one phase", lambda t: t.schedule(ORG, {"features": []}), "invalid_request", "phases", "{'features': []}"),
    ("phase", lambda t: t.schedule(ORG, ["plan:pro@1"]), "invalid_request", "phases[0]", "'plan:pro@1'"),
    (
        "phase in the past",
        lambda t: t.schedule(ORG, [{"effective": PAST}]),
        "invalid_request",
        "phases[0].effective",
        "T10:24:00Z",
    ),
    (
        "naive phase",
        lambda t: t.schedule(ORG, [{}, {"effective": NAIVE}]),
        "invalid_request",
        "phases[1].effective",
        "2024, 2, 10",
    ),
    (
        "unordered phases",
        lambda t: t.schedule(ORG, [{"effective": LATER + DAY}, {"effective": LATER}]),
        "invalid_request",
        "phases[1].effective",
        "2024-02-01T10:30:00",
    ),
    ("no info", lambda t: t.update_org(ORG, None), "invalid_request", "info", "None"),
    ("field", lambda t: t.update_org(ORG, {"emial": "a@b"}), "invalid_request", "info.emial", "'a@b'"),
    ("e-mail", lambda t: t.update_org(ORG, {"email": "nope"}), "invalid_email", "info.email", "'nope'"),
    (
        "reserved metadata",
        lambda t: t.update_org(ORG, {"metadata": {"tier.org": "x"}}),
        "invalid_metadata",
        "info.metadata",
        "'tier.org'",
    ),
    (
        "e-mail of a subscription",
        lambda t: t.subscribe(ORG, "plan:pro@1", info={"email": "nope"}),
        "invalid_email",
        "info.email",
        "'nope'",
    ),
    (
        "payment method",
        lambda t: t.subscribe(ORG, "plan:pro@1", payment_method_id=7),
        "invalid_request",
        "payment_method_id",
        "7",
    ),
    ("clobber", lambda t: t.report(ORG, CALLS, 1, clobber="no"), "invalid_request", "clobber", "'no'"),
]


@pytest.mark.parametrize(
    ("call", "code", "field", "value"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES]
)
def test_mistakes_name_the_field_and_the_value_and_change_nothing(
    tier: Any, call: Callable[[Any], Any], code: str, field: str, value: str
) -> None:
    def everything() -> Any:
        return tier.lookup_org(ORG), tier.lookup_phases(ORG), tier.lookup_limits(ORG)

    tier.subscribe(ORG, "plan:free@1", info={"name": "Acme"})
    tier.subscribe(ORG, "plan:weekly@1", effective=LATER)
    tier.report(ORG, CALLS, 2)
    before = everything()
    with pytest.raises(TierError) as caught:
        call(tier)
    error = caught.value
    assert isinstance(error, InvalidRequest)
    assert (error.status, error.code, error.path) == (400, code, field)
    assert error.message.startswith(f"{field}: ")
    assert value in error.message
    assert everything() == before
