"""Which plans an org is on, and since when; and which it is given where nobody has said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ..clock import milliseconds_of
from ..errors import ConfigurationError, InvalidRequest, NotEntitled, OrgNotFound
from ..names import feature_plan
from ..ops import (
    Check,
    Committed,
    Demand,
    Describe,
    Granted,
    LookUp,
    LookUpPhases,
    Record,
    Recorded,
    Reserve,
    Schedule,
    Shortfall,
)
from ..policy import PlannedPhase
from .bench import ACME, CALLS, EXPORT, MAILS, MODEL, PEAK, SEATS, START, Suite, raised, together

__all__ = ["DefaultPlan", "Subscriptions"]


class Subscriptions(Suite):
    """Plans that change, end, come back, and are combined."""

    def test_a_commit_lands_in_the_plan_in_which_it_was_reserved(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        bench.pass_(minutes=1)
        bench.subscribe(ACME, "plan:pro@1")
        assert bench.usage() == (0, 0)
        bench.hold(n=10)
        assert bench.commit(hold) == Committed()
        assert bench.usage() == (0, 10)
        bench.pass_(minutes=1)
        bench.subscribe(ACME, "plan:free@1")
        assert bench.usage() == (2, 0)

    def test_coming_back_to_a_plan_within_the_period_finds_its_usage(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=3)
        bench.pass_(hours=1)
        bench.subscribe(ACME, "plan:pro@1")
        bench.use(n=4)
        bench.pass_(hours=1)
        bench.subscribe(ACME, "plan:free@1")
        assert bench.used() == 3
        bench.refusal()
        bench.pass_(hours=1)
        bench.subscribe(ACME, "plan:pro@1")
        assert bench.used() == 4

    def test_a_change_within_one_millisecond_is_in_force_at_once(self) -> None:
        bench = self.bench("plan:free@1")
        bench.hold(n=3)
        bench.subscribe(ACME, "plan:pro@1")
        bench.hold(n=10)
        bench.subscribe(ACME, "plan:free@1")
        bench.refusal()

    def test_a_switch_of_plans_keeps_the_anchor(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(days=10)
        bench.subscribe(ACME, "plan:pro@1")
        assert bench.usages()[CALLS].resets_at == datetime(2024, 2, 29, 10, 30, tzinfo=UTC)

    def test_a_switch_to_another_interval_counts_from_the_same_anchor(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(days=10, hours=5)
        bench.subscribe(ACME, "plan:weekly@1")
        assert bench.usages()[CALLS].resets_at == START + timedelta(days=14)

    def test_a_cancelled_org_is_refused_and_still_known(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use()
        bench.pass_(hours=1)
        bench.cancel()
        assert bench.refusal().code == "feature_not_found"
        assert bench.usages() == {}
        assert bench.do(LookUpPhases(ACME, bench.now_ms())).phases == ()

    def test_work_that_was_reserved_before_a_cancellation_is_counted(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        bench.pass_(minutes=1)
        bench.cancel()
        assert bench.commit(hold, 5) == Committed(over=2)
        assert bench.commit(hold, 5) == Committed()

    def test_a_subscription_after_a_cancellation_starts_a_new_period(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=3)
        bench.pass_(days=3)
        bench.cancel()
        bench.pass_(days=2)
        bench.subscribe(ACME, "plan:free@1")
        assert bench.used() == 0
        assert bench.usages()[CALLS].resets_at == datetime(2024, 3, 5, 10, 30, tzinfo=UTC)

    def test_a_pending_phase_begins_when_its_time_comes(self) -> None:
        bench = self.bench("plan:free@1")
        later = START + timedelta(days=2)
        bench.do(
            Schedule(ACME, (PlannedPhase(milliseconds_of(later, "at"), (feature_plan("plan:pro@1"),)),), bench.now_ms())
        )
        bench.use(n=3)
        now, pending = bench.do(LookUpPhases(ACME, bench.now_ms())).phases
        assert (str(now.features[0]), pending.effective_ms) == ("plan:free@1", milliseconds_of(later, "at"))
        bench.clock.set(later - timedelta(milliseconds=1))
        bench.refusal()
        bench.clock.set(later)
        bench.hold(n=10)
        info = bench.do(LookUpPhases(ACME, bench.now_ms()))
        (now,) = info.phases
        assert (now.effective_ms, now.anchor_ms) == (bench.now_ms(), milliseconds_of(START, "at"))
        assert info.model.plans == {"plan:pro@1": MODEL.plans["plan:pro@1"]}

    def test_a_pending_cancellation_ends_the_subscription_when_its_time_comes(self) -> None:
        bench = self.bench("plan:free@1")
        bench.hold()
        bench.subscribe(ACME, at=START + timedelta(days=2))
        bench.hold()
        bench.pass_(days=2)
        bench.refusal()

    def test_a_new_schedule_replaces_what_was_pending(self) -> None:
        bench = self.bench("plan:free@1")
        bench.subscribe(ACME, at=START + timedelta(days=1))
        bench.subscribe(ACME, "plan:free@1", "feature:audit@plan:pro@1")
        bench.pass_(days=2)
        assert set(bench.usages()) == {CALLS, MAILS, EXPORT, "feature:audit"}

    def test_a_subscription_that_has_not_begun_grants_nothing(self) -> None:
        bench = self.bench()
        bench.subscribe(ACME, "plan:free@1", at=START + timedelta(days=1))
        reply = bench.reserve(Demand(CALLS, 1), default_plan="plan:pro@1")
        assert isinstance(reply, Shortfall)
        assert reply.code == "feature_not_found"
        bench.pass_(days=1)
        bench.hold(n=3)

    def test_of_two_plans_with_one_feature_the_larger_limit_counts(self) -> None:
        bench = self.bench("plan:free@1", "plan:pro@1")
        assert bench.usages()[CALLS].limit == 10
        assert set(bench.usages()) == {CALLS, MAILS, EXPORT, "feature:audit"}
        bench.hold(n=10)
        bench.refusal()
        bench.subscribe("org:turned", "plan:pro@1", "plan:free@1")
        assert bench.usages("org:turned")[CALLS].limit == 10
        bench.subscribe("org:open", "plan:open@1", "plan:pro@1")
        assert bench.usages("org:open")[CALLS].limit is None

    def test_a_fragment_of_a_plan_grants_that_feature_only(self) -> None:
        bench = self.bench("feature:mails@plan:free@1", "feature:calls@plan:pro@1")
        assert {name: usage.limit for name, usage in bench.usages().items()} == {CALLS: 10, MAILS: 2}
        assert bench.refusal(EXPORT).code == "feature_not_found"

    def test_a_subscription_to_what_is_not_in_the_model_is_refused_and_changes_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        before = bench.everything(ACME, "org:new")
        for org in (ACME, "org:new"):
            for features in (["plan:fre@1"], ["plan:free@1", "feature:seats@plan:free@1"], ["plan:free@1"] * 2):
                assert raised(InvalidRequest, bench.subscribe, org, *features).path == "features"
        assert bench.everything(ACME, "org:new") == before

    def test_a_schedule_that_wants_a_known_org_refuses_others(self) -> None:
        bench = self.bench()
        op = Schedule(ACME, (PlannedPhase(bench.now_ms(), ()),), bench.now_ms(), must_exist=True)
        raised(OrgNotFound, bench.do, op)
        raised(OrgNotFound, bench.do, Describe(ACME))

    def test_a_machine_whose_clock_is_behind_sees_the_last_change(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(seconds=30)
        bench.subscribe(ACME, "plan:pro@1")
        bench.clock.set(START)
        assert bench.usages()[CALLS].limit == 10
        bench.hold(n=10)
        now_ms = bench.now_ms()
        bench.do(Schedule(ACME, (PlannedPhase(None, (feature_plan("plan:free@1"),)),), now_ms))
        bench.hold(n=3)
        bench.refusal()

    def test_an_org_is_as_old_as_its_first_mention(self) -> None:
        bench = self.bench()
        bench.do(Schedule(ACME, (), bench.now_ms()))
        bench.pass_(days=1)
        bench.subscribe(ACME, "plan:free@1")
        assert bench.do(Describe(ACME)).created_ms == milliseconds_of(START, "start")


class DefaultPlan(Suite):
    """The plan of orgs that never had one."""

    def test_it_is_given_to_an_unknown_org_by_a_reservation_a_check_and_a_report(self) -> None:
        bench = self.bench()
        assert isinstance(bench.reserve(Demand(CALLS, 3), org="org:1", default_plan="plan:free@1"), Granted)
        checked = bench.check(org="org:2", default_plan="plan:free@1")
        assert (checked.shortfall, checked.usage.limit) == (None, 3)
        assert bench.record(2, org="org:3", default_plan="plan:free@1") == Recorded()
        assert [bench.usage(org=f"org:{n}") for n in (1, 2, 3)] == [(0, 3), (0, 0), (2, 0)]
        assert bench.do(Describe("org:2")).created_ms == bench.now_ms()

    def test_its_periods_count_from_that_moment(self) -> None:
        bench = self.bench()
        bench.pass_(days=1)
        bench.check(default_plan="plan:free@1")
        bench.pass_(days=10)
        bench.check(default_plan="plan:pro@1")
        usage = bench.usages()[CALLS]
        assert (usage.limit, usage.resets_at) == (3, datetime(2024, 3, 1, 10, 30, tzinfo=UTC))

    def test_it_is_given_to_a_known_org_without_a_phase(self) -> None:
        bench = self.bench()
        bench.do(Schedule(ACME, (), bench.now_ms()))
        assert bench.refusal().code == "feature_not_found"
        assert bench.check(default_plan="plan:free@1").shortfall is None
        bench.hold(n=3)

    def test_it_is_kept_even_when_the_request_is_refused(self) -> None:
        bench = self.bench()
        assert isinstance(bench.reserve(Demand(CALLS, 4), default_plan="plan:free@1"), Shortfall)
        assert bench.check(SEATS, default_plan="plan:free@1").shortfall is not None
        assert bench.usages()[CALLS].limit == 3

    def test_it_is_never_given_by_a_look_up(self) -> None:
        bench = self.bench()
        raised(OrgNotFound, bench.do, LookUp(ACME, bench.now_ms()))
        raised(OrgNotFound, bench.do, LookUpPhases(ACME, bench.now_ms()))
        raised(OrgNotFound, bench.do, Describe(ACME))

    def test_it_is_not_given_after_a_cancellation(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(days=1)
        bench.cancel()
        assert isinstance(bench.reserve(Demand(CALLS, 1), default_plan="plan:free@1"), Shortfall)
        assert bench.check(default_plan="plan:free@1").shortfall is not None
        raised(NotEntitled, lambda: bench.record(1, default_plan="plan:free@1"))
        assert bench.usages() == {}

    def test_it_does_not_replace_another_plan(self) -> None:
        bench = self.bench("plan:pro@1")
        assert isinstance(bench.reserve(Demand(CALLS, 10), default_plan="plan:free@1"), Granted)
        assert bench.usages()[CALLS].limit == 10

    def test_one_that_is_not_in_the_model_is_a_mistake_in_the_configuration(self) -> None:
        bench = self.bench()
        for mistaken in (
            lambda: bench.reserve(Demand(CALLS, 1), default_plan="plan:gone@1"),
            lambda: bench.check(default_plan="plan:gone@1"),
            lambda: bench.record(1, default_plan="plan:gone@1"),
        ):
            assert "plan:gone@1" in raised(ConfigurationError, mistaken).message
        raised(OrgNotFound, bench.do, Describe(ACME))

    def test_what_raises_gives_none(self) -> None:
        bench = self.bench()
        plan = "plan:team@1"
        nobody_said = Demand(SEATS, 1, is_given=False)
        bench.do(Schedule("org:known", (), bench.now_ms()))
        before = bench.everything(ACME, "org:known")
        for org in (ACME, "org:known"):
            for failing in (
                Reserve(org, (Demand(PEAK, 1), nobody_said), (1, 2), bench.now_ms(), bench.now_ms() + 1000, plan),
                Check(org, nobody_said, bench.now_ms(), plan),
                Record(org, EXPORT, 1, "k", bench.now_ms(), None, False, "plan:free@1"),
                Record(org, PEAK, 1, "k", bench.now_ms(), bench.now_ms() - 1, False, plan),
            ):
                raised(InvalidRequest, bench.do, failing)
            raised(NotEntitled, bench.do, Record(org, CALLS, 1, "k", bench.now_ms(), None, False, plan))
        assert bench.everything(ACME, "org:known") == before
        for feature in (PEAK, SEATS):
            assert bench.refusal(feature, org="org:known").code == "feature_not_found"

    def test_twenty_threads_that_bring_it_count_in_one_subscription(self) -> None:
        bench = self.bench()

        def first_contact(index: int) -> object:
            match index % 3:
                case 0:
                    return bench.reserve(Demand(CALLS, 1), default_plan="plan:free@1")
                case 1:
                    return bench.record(1, key=f"thread:{index}", default_plan="plan:open@1")
                case _:
                    return bench.check(default_plan="plan:pro@1")

        together(20, first_contact)
        (phase,) = bench.do(LookUpPhases(ACME, bench.now_ms())).phases
        assert len(phase.features) == 1
        used, reserved = bench.usage()
        assert used == 7
        assert reserved <= 7
