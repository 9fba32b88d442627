"""Schedules: phases that follow each other, trials, what is pending, and what all of that does to usage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from ..clock import milliseconds_of, moment
from ..errors import InvalidRequest, OrgNotFound
from ..model import Phase
from ..ops import Demand, Granted, LookUpPhases, Recorded, Schedule
from .bench import ACME, CALLS, MAILS, MODEL, START, Bench, Suite, planned, raised

__all__ = ["Schedules"]

DAY: Final = timedelta(days=1)
MILLISECOND: Final = timedelta(milliseconds=1)


def outlined(phases: tuple[Phase, ...]) -> list[tuple[timedelta, str, bool]]:
    """Phases as a test writes them: when they begin, counted from START, on what, and whether on trial."""
    return [(moment(phase.effective_ms) - START, " ".join(map(str, phase.features)), phase.trial) for phase in phases]


def anchors(bench: Bench) -> list[timedelta]:
    return [moment(phase.anchor_ms) - START for phase in bench.phases()]


class Schedules(Suite):
    """Phases that are planned ahead."""

    # ---- phases that follow each other ------------------------------------------------------------------------------

    def test_phases_follow_each_other_to_the_millisecond(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1"), planned("plan:pro@1", at=START + DAY), planned(at=START + 3 * DAY))
        assert bench.usages()[CALLS].limit == 3
        bench.use(n=3)
        bench.clock.set(START + DAY - MILLISECOND)
        bench.refusal()
        bench.clock.set(START + DAY)
        bench.hold(n=10)
        bench.clock.set(START + 3 * DAY - MILLISECOND)
        assert bench.usages()[CALLS].limit == 10
        bench.clock.set(START + 3 * DAY)
        assert bench.usages() == {}
        assert bench.refusal().code == "feature_not_found"

    def test_what_is_asked_of_phases_is_the_current_one_and_those_to_come(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1"), planned("plan:pro@1", at=START + DAY), planned(at=START + 3 * DAY))
        free, pro, end = (0 * DAY, "plan:free@1", False), (DAY, "plan:pro@1", False), (3 * DAY, "", False)
        assert outlined(bench.phases()) == [free, pro, end]
        bench.clock.set(START + DAY - MILLISECOND)
        assert outlined(bench.phases()) == [free, pro, end]
        bench.clock.set(START + DAY)
        assert outlined(bench.phases()) == [pro, end]
        bench.clock.set(START + 3 * DAY)
        assert bench.phases() == ()

    def test_phases_come_with_the_plans_they_name_and_the_orgs_present(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1"), planned(f"{CALLS}@plan:pro@1", at=START + DAY))
        info = bench.do(LookUpPhases(ACME, bench.now_ms()))
        assert dict(info.model.plans) == {name: MODEL.plans[name] for name in ("plan:free@1", "plan:pro@1")}
        assert info.present_ms == bench.now_ms()
        bench.clock.set(START - DAY)
        assert bench.do(LookUpPhases(ACME, bench.now_ms())).present_ms == milliseconds_of(START, "start")

    def test_what_is_only_pending_is_shown_and_grants_nothing(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1", at=START + DAY))
        assert outlined(bench.phases()) == [(DAY, "plan:free@1", False)]
        assert bench.usages() == {}
        assert bench.refusal().code == "feature_not_found"
        assert bench.check(default_plan="plan:pro@1").shortfall is not None

    def test_orgs_without_a_phase_have_none_and_unknown_ones_are_refused(self) -> None:
        bench = self.bench()
        bench.update(name="Acme")
        assert bench.phases() == ()
        raised(OrgNotFound, bench.phases, "org:nobody")

    def test_a_start_to_come_counts_its_periods_from_then(self) -> None:
        bench = self.bench()
        start = datetime(2024, 3, 31, 8, tzinfo=UTC)
        bench.schedule(planned("plan:free@1", at=start))
        bench.clock.set(start)
        bench.use(n=2)
        assert bench.resets_at() == datetime(2024, 4, 30, 8, tzinfo=UTC)
        bench.clock.set(datetime(2024, 4, 30, 8, tzinfo=UTC))
        assert bench.usage() == (0, 0)

    def test_the_same_again_is_no_phase_of_its_own(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(days=1)
        bench.schedule(planned("plan:free@1"), planned("plan:free@1", at=START + 2 * DAY))
        assert outlined(bench.phases()) == [(0 * DAY, "plan:free@1", False)]

    # ---- what a new schedule does to the one before -----------------------------------------------------------------

    def test_a_schedule_replaces_all_that_was_pending(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1"), planned("plan:pro@1", at=START + DAY), planned(at=START + 2 * DAY))
        bench.schedule(planned("plan:open@1", at=START + 5 * DAY))
        assert outlined(bench.phases()) == [(0 * DAY, "plan:free@1", False), (5 * DAY, "plan:open@1", False)]
        bench.pass_(days=3)
        assert bench.usages()[CALLS].limit == 3
        bench.pass_(days=2)
        assert bench.usages()[CALLS].limit is None

    def test_what_has_been_is_kept_so_that_reports_of_it_still_land_there(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(days=1)
        bench.subscribe(ACME, "plan:pro@1")
        bench.pass_(days=1)
        bench.schedule(planned("plan:open@1"), planned(at=START + 9 * DAY))
        bench.record(2, at=START)
        bench.record(5, at=START + DAY)
        raised(InvalidRequest, lambda: bench.record(1, at=START - MILLISECOND))
        bench.subscribe(ACME, "plan:free@1")
        assert bench.usage() == (2, 0)
        bench.subscribe(ACME, "plan:pro@1")
        assert bench.usage() == (5, 0)

    def test_a_schedule_of_which_a_later_phase_is_refused_changes_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        bench.schedule(planned("plan:pro@1", at=START + DAY))
        before = bench.everything(ACME, "org:new")
        for org in (ACME, "org:new"):
            last = planned("plan:no@1", at=START + 2 * DAY)
            op = Schedule(org, (planned("plan:open@1"), last), bench.now_ms())
            assert raised(InvalidRequest, bench.do, op).code == "TERR1020"
        assert bench.everything(ACME, "org:new") == before

    def test_what_was_granted_at_once_is_not_granted_beyond_a_new_schedule(self) -> None:
        """Engines may remember what is current: a schedule is what ends that."""
        bench = self.bench("plan:open@1")
        bench.use(n=5)
        bench.schedule(planned("plan:free@1", at=START + DAY))
        bench.use(n=5)
        bench.clock.set(START + DAY)
        assert bench.refusal(n=4).reason == "amount_exceeds_limit"
        bench.schedule(planned("plan:pro@1", at=START + 2 * DAY))
        bench.use(n=3)
        bench.refusal()
        bench.clock.set(START + 2 * DAY)
        bench.use(n=10)
        bench.refusal()

    # ---- cancellations to come --------------------------------------------------------------------------------------

    def test_a_cancellation_to_come_ends_what_is_current_then(self) -> None:
        bench = self.bench("plan:free@1")
        bench.cancel(at=START + DAY)
        assert outlined(bench.phases()) == [(0 * DAY, "plan:free@1", False), (DAY, "", False)]
        bench.clock.set(START + DAY - MILLISECOND)
        hold = bench.hold()
        bench.clock.set(START + DAY)
        assert bench.refusal().code == "feature_not_found"
        bench.commit(hold)
        bench.record(1, at=START)
        raised(InvalidRequest, lambda: bench.record(1, at=START + DAY))
        assert bench.check(default_plan="plan:pro@1").shortfall is not None

    def test_a_cancellation_to_come_keeps_what_begins_before_it_and_drops_what_comes_after(self) -> None:
        bench = self.bench()
        trial, paid = planned("plan:pro@1", trial=True), planned("plan:pro@1", at=START + 14 * DAY)
        bench.schedule(trial, paid, planned("plan:open@1", at=START + 60 * DAY))
        bench.cancel(at=START + 29 * DAY)
        first = [(0 * DAY, "plan:pro@1", True), (14 * DAY, "plan:pro@1", False)]
        assert outlined(bench.phases()) == [*first, (29 * DAY, "", False)]
        bench.cancel(at=START + 14 * DAY)
        assert outlined(bench.phases()) == [*first[:1], (14 * DAY, "", False)]

    def test_a_pending_cancellation_is_moved_by_another(self) -> None:
        bench = self.bench("plan:free@1")
        bench.cancel(at=START + 3 * DAY)
        for days in (7, 2):
            bench.cancel(at=START + days * DAY)
            assert outlined(bench.phases()) == [(0 * DAY, "plan:free@1", False), (days * DAY, "", False)]

    def test_a_cancellation_now_drops_all_that_is_pending(self) -> None:
        bench = self.bench("plan:free@1")
        bench.schedule(planned("plan:pro@1", at=START + DAY))
        bench.cancel()
        assert bench.phases() == ()
        bench.pass_(days=2)
        assert bench.usages() == {}

    def test_what_is_pending_can_be_cancelled_before_it_starts(self) -> None:
        bench = self.bench()
        for org, at in (("org:now", None), ("org:before", START + DAY), ("org:then", START + 2 * DAY)):
            bench.schedule(planned("plan:free@1", at=START + 2 * DAY), org=org)
            bench.cancel(org, at=at)
            assert bench.phases(org) == ()
        bench.pass_(days=3)
        for org in ("org:now", "org:before", "org:then"):
            assert bench.usages(org) == {}
            assert bench.refusal(org=org).code == "feature_not_found"

    def test_a_pending_cancellation_is_taken_back_by_subscribing(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=2)
        bench.cancel(at=START + DAY)
        bench.subscribe(ACME, "plan:free@1")
        assert outlined(bench.phases()) == [(0 * DAY, "plan:free@1", False)]
        bench.pass_(days=2)
        assert bench.usage() == (2, 0)

    def test_a_cancellation_wants_a_known_org(self) -> None:
        bench = self.bench()
        raised(OrgNotFound, bench.cancel)
        raised(OrgNotFound, bench.described)

    # ---- trials -----------------------------------------------------------------------------------------------------

    def test_a_trial_grants_what_its_plan_does(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1", trial=True), planned("plan:free@1", at=START + 14 * DAY))
        assert outlined(bench.phases()) == [(0 * DAY, "plan:free@1", True), (14 * DAY, "plan:free@1", False)]
        bench.hold(n=3)
        bench.refusal()

    def test_a_trials_end_keeps_its_usage_and_the_period(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1", trial=True), planned("plan:free@1", at=START + 14 * DAY))
        bench.use(n=2)
        hold = bench.hold()
        bench.clock.set(START + 14 * DAY)
        (phase,) = bench.phases()
        assert (phase.trial, moment(phase.anchor_ms)) == (False, START)
        assert bench.usage()[0] == 2
        bench.commit(hold)
        assert bench.usage() == (3, 0)
        assert bench.resets_at() == datetime(2024, 2, 29, 10, 30, tzinfo=UTC)

    def test_a_trial_may_end_in_another_plan_or_in_none(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:pro@1", trial=True), planned("plan:free@1", at=START + DAY))
        bench.use(n=7)
        bench.clock.set(START + DAY)
        assert (bench.usage(), bench.usages()[CALLS].limit) == ((0, 0), 3)
        bench.schedule(planned("plan:pro@1", trial=True), planned(at=START + 2 * DAY))
        assert bench.usage() == (7, 0)
        bench.clock.set(START + 2 * DAY)
        assert bench.usages() == {}

    def test_a_trial_that_is_cancelled_in_its_course_ends_at_once(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:pro@1", trial=True), planned("plan:pro@1", at=START + 14 * DAY))
        bench.pass_(days=1)
        bench.cancel()
        bench.pass_(days=14)
        assert bench.usages() == {}

    # ---- usage and anchors ------------------------------------------------------------------------------------------

    def test_a_planned_switch_and_the_switch_back_find_each_plans_usage(self) -> None:
        bench = self.bench()
        bench.schedule(
            planned("plan:free@1"), planned("plan:pro@1", at=START + DAY), planned("plan:free@1", at=START + 2 * DAY)
        )
        bench.use(n=2)
        bench.use(MAILS)
        bench.clock.set(START + DAY)
        assert bench.usage() == (0, 0)
        bench.use(n=9)
        bench.clock.set(START + 2 * DAY)
        assert (bench.usage(), bench.usage(MAILS)) == ((2, 0), (1, 0))
        bench.clock.set(datetime(2024, 2, 29, 10, 30, tzinfo=UTC))
        assert (bench.usage(), bench.usage(MAILS)) == ((0, 0), (0, 0))

    def test_work_that_spans_a_planned_switch_is_counted_where_it_was_reserved(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1"), planned("plan:pro@1", at=START + DAY))
        bench.clock.set(START + DAY - MILLISECOND)
        hold = bench.hold(n=2)
        bench.clock.set(START + DAY)
        bench.commit(hold)
        assert bench.usage() == (0, 0)
        bench.subscribe(ACME, "plan:free@1")
        assert bench.usage() == (2, 0)

    def test_all_phases_of_a_subscription_share_its_anchor(self) -> None:
        bench = self.bench()
        bench.schedule(
            planned("plan:pro@1", trial=True),
            planned("plan:pro@1", at=START + DAY),
            planned("plan:free@1", at=START + 3 * DAY),
            planned("plan:weekly@1", at=START + 5 * DAY),
        )
        assert anchors(bench) == [0 * DAY] * 4
        bench.clock.set(START + 5 * DAY)
        assert bench.resets_at() == START + 7 * DAY
        bench.schedule(planned("plan:daily@1"))
        assert bench.resets_at() == START + 6 * DAY

    def test_what_follows_a_gap_is_a_subscription_of_its_own(self) -> None:
        bench = self.bench()
        bench.schedule(
            planned("plan:free@1"),
            planned(at=START + 10 * DAY),
            planned("plan:free@1", at=START + 12 * DAY),
            planned("plan:pro@1", at=START + 13 * DAY),
        )
        bench.use(n=3)
        assert anchors(bench) == [0 * DAY, 0 * DAY, 12 * DAY, 12 * DAY]
        bench.clock.set(START + 12 * DAY)
        assert (bench.usage(), bench.resets_at()) == ((0, 0), datetime(2024, 3, 12, 10, 30, tzinfo=UTC))
        bench.use(n=1)
        assert bench.record(4, clobber=True, at=START) == Recorded(over=1)
        raised(InvalidRequest, lambda: bench.record(1, at=START + 11 * DAY))
        assert bench.usage() == (1, 0)

    def test_a_cancellation_and_a_new_subscription_within_the_period_start_from_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=3)
        bench.refusal()
        bench.pass_(days=1)
        bench.cancel()
        bench.pass_(milliseconds=1)
        bench.subscribe(ACME, "plan:free@1")
        assert (bench.usage(), anchors(bench)) == ((0, 0), [DAY + MILLISECOND])
        bench.hold(n=3)

    def test_a_schedule_survives_a_restart(self) -> None:
        bench = self.bench()
        bench.schedule(planned("plan:free@1", f"{CALLS}@plan:pro@1", trial=True))
        bench.schedule(planned("plan:pro@1", at=START + DAY), planned(at=START + 2 * DAY))
        before = bench.phases()
        assert [phase.trial for phase in before] == [True, False, False]
        bench.restart()
        assert bench.phases() == before
        bench.clock.set(START + DAY)
        assert isinstance(bench.reserve(Demand(CALLS, 10)), Granted)
