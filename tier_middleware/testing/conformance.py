"""What every engine must do, as tests. Whoever writes an engine runs them in four lines:

    class TestMyEngine(EngineConformance):
        def engine(self, now_ms):
            return MyEngine("my://localhost", now_ms)

Nothing sleeps: time is the clock that the test moves, and expiry is stored data compared with it. Operations go through
`tier_middleware.drive.perform`, as they do in programs, so an engine may answer `Busy` when others write.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Final

from msgspec.structs import replace

from ..clock import milliseconds_of
from ..errors import ConfigurationError, InvalidRequest, NotEntitled, OrgNotFound, PricingError, TierError
from ..model import Model
from ..names import MAX_UNITS, feature_plan
from ..ops import (
    Adjust,
    Check,
    Checked,
    Commit,
    Committed,
    DeleteOrg,
    Demand,
    Describe,
    EngineInfo,
    Granted,
    Identify,
    Kept,
    LookUp,
    LookUpPhases,
    Op,
    Pull,
    Push,
    Record,
    Recorded,
    Release,
    Reserve,
    Schedule,
    Shortfall,
    Usage,
)
from ..policy import AHEAD_MS, KEY_LIFETIME_MS, PlannedPhase
from ..pricing import read_model
from .bench import (
    ACME,
    CALLS,
    DISK,
    EXPORT,
    MAILS,
    MODEL,
    PEAK,
    SEATS,
    START,
    Suite,
    metered,
    raised,
    together,
)
from .clocks import Clocks
from .ledgers import Ledgers
from .likeness import Likeness
from .once import Once
from .orgs import Orgs
from .renewals import Renewals
from .schedules import Schedules
from .sharing import Changing, Resending

__all__ = ["EngineConformance"]


class Reserving(Suite):
    """What is granted and what is refused."""

    def test_an_unknown_org_is_refused_with_its_own_code(self) -> None:
        bench = self.bench()
        expected = Shortfall(ACME, CALLS, 2, 0, 0, 0, "no_entitlement", "org_not_found")
        assert bench.refusal(n=2) == expected
        assert bench.check(n=2) == Checked(Usage(CALLS, 0, 0), expected)

    def test_a_feature_that_the_phase_has_not_got_is_refused(self) -> None:
        bench = self.bench("plan:free@1")
        expected = Shortfall(ACME, SEATS, 1, 0, 0, 0, "no_entitlement", "feature_not_found")
        assert bench.refusal(SEATS) == expected
        assert bench.check(SEATS) == Checked(Usage(SEATS, 0, 0), expected)
        assert bench.refusal("feature:unheard-of").code == "feature_not_found"

    def test_it_grants_up_to_the_limit_and_not_one_more(self) -> None:
        bench = self.bench("plan:free@1")
        for _ in range(3):
            bench.hold()
        assert bench.usage() == (0, 3)
        refusal = bench.refusal()
        assert (refusal.used, refusal.reserved, refusal.limit) == (0, 3, 3)
        assert (refusal.reason, refusal.code) == ("limit_reached", "limit_reached")
        assert refusal.resets_at_ms == milliseconds_of(datetime(2024, 2, 29, 10, 30, tzinfo=UTC), "expected")
        assert bench.usage() == (0, 3)

    def test_with_nothing_left_even_the_first_of_a_process_is_refused(self) -> None:
        bench = self.bench("plan:free@1")
        bench.record(3)  # nobody has reserved yet
        assert bench.refusal().reason == "limit_reached"
        assert bench.check().shortfall == bench.refusal()

    def test_an_n_of_0_is_granted_while_anything_is_left_and_refused_after(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=0)
        assert bench.usage() == (0, 0)
        assert bench.commit(hold, 0) == Committed()
        bench.use(n=2)
        assert bench.check(n=0).shortfall is None
        bench.use()
        assert bench.refusal(n=0).reason == "limit_reached"
        shortfall = bench.check(n=0).shortfall
        assert shortfall is not None
        assert shortfall.requested == 0
        assert bench.used() == 3

    def test_more_than_remains_is_refused_whole(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=2)
        assert bench.refusal(n=2).reason == "limit_reached"
        assert bench.usage() == (2, 0)
        bench.hold(n=1)

    def test_more_than_the_limit_is_refused_as_too_large_an_amount(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.refusal(n=4).reason == "amount_exceeds_limit"
        assert bench.refusal(n=MAX_UNITS).reason == "amount_exceeds_limit"
        assert bench.usage() == (0, 0)

    def test_several_demands_are_granted_together(self) -> None:
        bench = self.bench("plan:free@1")
        reply = bench.reserve(Demand(CALLS, 2), Demand(EXPORT, 1), Demand(MAILS, 1))
        assert isinstance(reply, Granted)
        assert [hold and (hold.feature, hold.n) for hold in reply.holds] == [(CALLS, 2), None, (MAILS, 1)]
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 2), (0, 1))

    def test_of_several_demands_one_that_does_not_fit_leaves_all_unreserved(self) -> None:
        bench = self.bench("plan:free@1")
        for too_much in (Demand(MAILS, 3), Demand(SEATS, 1)):
            for demands in ((Demand(CALLS, 1), too_much), (too_much, Demand(CALLS, 1))):
                reply = bench.reserve(*demands)
                assert isinstance(reply, Shortfall)
                assert reply.feature == too_much.feature
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 0), (0, 0))

    def test_an_unlimited_feature_is_counted_and_never_refused(self) -> None:
        bench = self.bench("plan:open@1")
        bench.use(n=2**40)
        bench.hold(n=2**50)
        usage = bench.usages()[CALLS]
        assert (usage.used, usage.reserved, usage.limit, usage.remaining) == (2**40, 2**50, None, None)
        assert bench.check(n=2**60).shortfall is None

    def test_an_on_off_feature_is_granted_without_a_hold_and_never_counted(self) -> None:
        bench = self.bench("plan:free@1")
        for n in (0, 1, MAX_UNITS, 1):
            assert bench.reserve(Demand(EXPORT, n)) == Granted((None,))
            assert bench.check(EXPORT, n) == Checked(Usage(EXPORT, used=1, limit=None), None)

    def test_an_on_off_feature_cannot_be_reported(self) -> None:
        bench = self.bench("plan:free@1")
        assert raised(InvalidRequest, bench.record, 1, EXPORT).path == "feature"
        assert raised(InvalidRequest, bench.adjust, 1, EXPORT).path == "feature"

    def test_a_check_holds_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        for _ in range(5):
            assert bench.check(n=3).shortfall is None
        bench.hold(n=3)


class Settling(Suite):
    """What becomes of reservations: counted once, given back once, expired."""

    def test_a_commit_keeps_what_was_reserved(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.commit(bench.hold(n=2)) == Committed()
        assert bench.usage() == (2, 0)

    def test_a_commit_of_fewer_gives_back_the_rest(self) -> None:
        bench = self.bench("plan:free@1")
        bench.commit(bench.hold(n=3), 1)
        assert bench.usage() == (1, 0)
        bench.hold(n=2)

    def test_a_commit_of_0_counts_nothing_and_gives_back_all(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.commit(bench.hold(n=3), 0) == Committed()
        assert bench.usage() == (0, 0)

    def test_a_commit_of_more_counts_all_and_says_what_passed_the_limit(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.commit(bench.hold(), 2) == Committed()
        assert bench.commit(bench.hold(), 3) == Committed(over=2)
        assert bench.usage() == (5, 0)

    def test_a_capped_commit_counts_up_to_the_limit_and_says_what_it_left_out(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.commit(bench.hold(), 5, is_capped=True) == Committed(capped=2)
        assert bench.usage() == (3, 0)

    def test_a_capped_commit_leaves_what_others_hold(self) -> None:
        bench = self.bench("plan:free@1")
        mine, other = bench.hold(), bench.hold()
        assert bench.commit(mine, 3, is_capped=True) == Committed(capped=1)
        assert bench.commit(other) == Committed()
        assert bench.usage() == (3, 0)

    def test_a_cap_takes_nothing_away_from_what_was_reserved(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        bench.record(3)
        assert bench.commit(hold, 3, is_capped=True) == Committed(over=2, capped=1)
        assert bench.used() == 5

    def test_a_commit_says_what_passed_the_limit_because_of_reports_before_it(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        assert bench.record(2) == Recorded()
        assert bench.commit(hold) == Committed(over=1)
        assert bench.used() == 4

    def test_a_release_gives_back_what_was_reserved(self) -> None:
        bench = self.bench("plan:free@1")
        first, second = bench.hold(n=1), bench.hold(n=2)
        bench.release(first, second)
        assert bench.usage() == (0, 0)
        bench.hold(n=3)

    def test_an_expired_reservation_gives_its_capacity_back_at_that_millisecond(self) -> None:
        bench = self.bench("plan:free@1")
        bench.hold(n=3, seconds=60)
        bench.pass_(seconds=60, milliseconds=-1)
        bench.refusal()
        assert bench.usage() == (0, 3)
        bench.pass_(milliseconds=1)
        assert bench.usage() == (0, 0)
        assert bench.check(n=3).shortfall is None
        bench.hold(n=3)

    def test_only_what_has_expired_is_taken_back(self) -> None:
        bench = self.bench("plan:free@1")
        bench.hold(n=1, seconds=60)
        long = bench.hold(n=2, seconds=600)
        bench.pass_(seconds=60)
        bench.use()
        bench.refusal()
        bench.commit(long)
        assert bench.usage() == (3, 0)

    def test_a_commit_after_expiry_counts_once(self) -> None:
        bench = self.bench("plan:free@1")
        late = bench.hold(n=2, seconds=60)
        bench.pass_(seconds=61)
        assert bench.commit(late) == Committed(has_expired=True)
        assert bench.commit(late) == Committed()
        assert bench.usage() == (2, 0)

    def test_a_commit_after_its_capacity_went_to_others_counts_once_and_says_so(self) -> None:
        bench = self.bench("plan:free@1")
        late = bench.hold(n=2, seconds=60)
        bench.pass_(seconds=60)
        other = bench.hold(n=3)
        assert bench.commit(late) == Committed(has_expired=True)
        assert bench.usage() == (2, 3)
        assert bench.commit(other) == Committed(over=2)
        assert bench.commit(late) == Committed()
        assert bench.usage() == (5, 0)

    def test_a_capped_commit_after_expiry_takes_nothing_from_others(self) -> None:
        bench = self.bench("plan:free@1")
        late = bench.hold(n=2, seconds=60)
        bench.pass_(seconds=60)
        bench.hold(n=3)
        assert bench.commit(late, is_capped=True) == Committed(capped=2, has_expired=True)
        assert bench.usage() == (0, 3)

    def test_a_question_takes_nothing_back_from_what_has_expired(self) -> None:
        bench = self.bench("plan:free@1")
        late = bench.hold(n=2, seconds=60)
        bench.adjust(2)
        bench.pass_(seconds=60)
        assert bench.check().shortfall is None
        assert bench.usage() == (2, 0)
        assert bench.commit(late, 7, is_capped=True) == Committed(over=1, capped=5, has_expired=True)

    def test_a_reservation_that_raises_takes_nothing_back_from_what_has_expired(self) -> None:
        bench = self.bench("plan:free@1", "plan:team@1")
        late = bench.hold(n=3, seconds=60)
        bench.record(1)
        bench.pass_(seconds=60)
        nobody_said = Demand(SEATS, 1, is_given=False)
        raised(InvalidRequest, bench.reserve, Demand(CALLS, 1), nobody_said)
        assert bench.commit(late, is_capped=True) == Committed(over=1, has_expired=True)

    def test_a_release_after_expiry_changes_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        late = bench.hold(n=2, seconds=60)
        bench.pass_(seconds=60)
        bench.hold(n=3)
        bench.release(late)
        bench.release(late)
        assert bench.usage() == (0, 3)

    def test_a_reservation_that_expired_a_month_ago_still_counts_where_it_was_made(self) -> None:
        bench = self.bench("plan:free@1")
        late = bench.hold(n=2, seconds=60)
        bench.pass_(days=34)
        bench.use(n=3)
        assert bench.commit(late).has_expired
        assert bench.used() == 3

    def test_commits_and_releases_that_are_sent_again_count_once(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold()
        bench.commit(hold)
        bench.commit(hold)
        bench.release(hold)
        assert bench.usage() == (1, 0)
        hold = bench.hold()
        bench.release(hold)
        bench.release(hold)
        bench.commit(hold)
        assert bench.usage() == (1, 0)

    def test_the_same_hold_twice_in_one_operation_counts_once(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold()
        assert bench.do(Commit((Kept(hold, 1), Kept(hold, 1)), bench.now_ms())) == (Committed(), Committed())
        other = bench.hold(n=2)
        bench.do(Release((other, other), bench.now_ms()))
        assert bench.usage() == (1, 0)

    def test_several_holds_are_settled_in_one_operation(self) -> None:
        bench = self.bench("plan:free@1")
        calls, mails = bench.hold(CALLS, 2), bench.hold(MAILS, 2)
        committed = bench.do(Commit((Kept(calls, 4), Kept(mails, 3, is_capped=True)), bench.now_ms()))
        assert committed == (Committed(over=1), Committed(capped=1))
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((4, 0), (2, 0))

    def test_holds_that_nobody_made_are_passed_over(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold()
        stranger = replace(hold, id=10**15)
        assert bench.commit(stranger) == Committed()
        bench.release(stranger)
        assert bench.usage() == (0, 1)


class Reporting(Suite):
    """Usage that is reported, set and corrected."""

    def test_a_report_adds_and_is_never_refused_for_being_over_the_limit(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.record(2) == Recorded()
        assert bench.record(2) == Recorded(over=1)
        assert bench.record(5) == Recorded(over=5)
        usage = bench.usages()[CALLS]
        assert (usage.used, usage.remaining) == (9, 0)
        assert bench.refusal(n=0).used == 9

    def test_a_report_of_0_counts_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.record(0) == Recorded()
        assert bench.used() == 0

    def test_a_report_leaves_open_reservations(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        bench.record(1)
        assert bench.usage() == (1, 2)
        bench.commit(hold)
        assert bench.usage() == (3, 0)

    def test_a_report_for_an_unknown_org_or_feature_is_refused(self) -> None:
        bench = self.bench("plan:free@1")
        for report in (bench.record, bench.adjust):
            assert raised(OrgNotFound, lambda report=report: report(1, org="org:nobody")).org == "org:nobody"
            assert raised(NotEntitled, report, 1, SEATS).feature == SEATS
        raised(OrgNotFound, lambda: bench.do(Describe("org:nobody")))

    def test_the_same_key_counts_once(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.record(2, key="k") == Recorded()
        assert bench.record(2, key="k") == Recorded(is_new=False)
        bench.pass_(days=20)
        assert bench.record(2, key="k") == Recorded(is_new=False)
        assert bench.used() == 2
        assert bench.adjust(-1, key="a") == Recorded()
        assert bench.adjust(-1, key="a") == Recorded(is_new=False)
        assert bench.used() == 1

    def test_a_known_key_with_other_contents_is_refused(self) -> None:
        bench = self.bench("plan:free@1")
        bench.subscribe("org:other", "plan:free@1")
        bench.record(1, key="k")
        bench.adjust(1, key="a")
        for other in (
            lambda: bench.record(2, key="k"),
            lambda: bench.record(1, MAILS, key="k"),
            lambda: bench.record(1, key="k", clobber=True),
            lambda: bench.record(1, key="k", at=START),
            lambda: bench.record(1, key="k", org="org:other"),
            lambda: bench.adjust(1, key="k"),
            lambda: bench.record(1, key="a"),
            lambda: bench.adjust(2, key="a"),
            lambda: bench.adjust(1, key="a", org="org:other"),
        ):
            assert raised(InvalidRequest, other).path == "key"
        assert (bench.used(), bench.used(MAILS), bench.used(org="org:other")) == (2, 0, 0)

    def test_a_key_is_remembered_for_35_days(self) -> None:
        bench = self.bench("plan:open@1")
        for n in range(5):
            bench.record(1, key=f"key:{n}")
        bench.pass_(milliseconds=KEY_LIFETIME_MS - 1)
        for n in range(5):
            bench.record(1)
            assert bench.record(1, key=f"key:{n}") == Recorded(is_new=False)

    def test_a_report_that_failed_leaves_its_key_unused(self) -> None:
        bench = self.bench("plan:free@1")
        raised(NotEntitled, lambda: bench.record(1, SEATS, key="k"))
        assert bench.record(1, key="k") == Recorded()

    def test_clobber_makes_n_the_whole_usage(self) -> None:
        bench = self.bench("plan:free@1")
        bench.record(7)
        assert bench.record(2, clobber=True) == Recorded()
        assert bench.used() == 2
        assert bench.record(5, clobber=True) == Recorded(over=2)
        assert bench.record(0, clobber=True) == Recorded()
        assert bench.used() == 0

    def test_clobber_leaves_open_reservations_and_their_commits_add(self) -> None:
        bench = self.bench("plan:free@1")
        bench.record(1)
        hold = bench.hold(n=2)
        bench.record(1, clobber=True)
        assert bench.usage() == (1, 2)
        assert bench.commit(hold) == Committed()
        assert bench.usage() == (3, 0)

    def test_an_adjustment_goes_up_and_down_and_never_below_0(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.adjust(2) == Recorded()
        assert bench.adjust(3) == Recorded(over=2)
        assert bench.used() == 5
        assert bench.adjust(-4) == Recorded()
        assert bench.used() == 1
        bench.adjust(-2)
        assert bench.used() == 0
        bench.adjust(0)
        bench.hold(n=3)

    def test_usage_beyond_what_can_be_counted_is_refused_and_changes_nothing(self) -> None:
        bench = self.bench("plan:open@1")
        hold = bench.hold(n=2)
        bench.record(MAX_UNITS, clobber=True)
        for passing in (
            lambda: bench.record(1),
            lambda: bench.record(MAX_UNITS),
            lambda: bench.adjust(1),
            lambda: bench.commit(hold, 1),
            lambda: bench.commit(hold, 3),
            lambda: bench.commit(hold, MAX_UNITS),
        ):
            assert raised(InvalidRequest, passing).path == "n"
            assert bench.usage() == (MAX_UNITS, 2)
        bench.record(MAX_UNITS - 2, clobber=True)
        assert bench.commit(hold) == Committed()
        assert bench.usage() == (MAX_UNITS, 0)
        assert bench.adjust(-MAX_UNITS) == Recorded()

    def test_capacity_beyond_what_can_be_counted_is_not_granted(self) -> None:
        bench = self.bench("plan:open@1")
        hold = bench.hold(n=MAX_UNITS)
        assert bench.refusal(n=1).limit is None
        assert bench.check().shortfall is not None
        assert bench.usage() == (0, MAX_UNITS)
        bench.release(hold)
        bench.use(n=1)
        bench.refusal(n=MAX_UNITS)
        bench.hold(n=MAX_UNITS - 1)

    def test_a_commit_of_several_holds_of_which_one_cannot_be_counted_counts_none(self) -> None:
        bench = self.bench("plan:open@1", "feature:mails@plan:free@1")
        mails, calls = bench.hold(MAILS), bench.hold(CALLS)
        bench.record(MAX_UNITS, clobber=True)
        for kept in ((Kept(mails, 1), Kept(calls, 1)), (Kept(calls, 1), Kept(mails, 1), Kept(mails, 1))):
            raised(InvalidRequest, bench.do, Commit(kept, bench.now_ms()))
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((MAX_UNITS, 1), (0, 1))
        bench.release(calls, mails)
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((MAX_UNITS, 0), (0, 0))


class Periods(Suite):
    """Billing periods, and reports that speak of another time."""

    def test_a_report_for_an_earlier_period_counts_there(self) -> None:
        bench = self.bench("plan:free@1")
        bench.record(1)
        bench.pass_(days=35)
        bench.record(2, at=START + timedelta(days=3))
        assert bench.used() == 0
        bench.clock.set(START + timedelta(days=28))
        assert bench.used() == 3

    def test_clobber_sets_the_period_that_contains_its_time_and_no_other(self) -> None:
        bench = self.bench("plan:daily@1")
        for _ in range(3):
            bench.record(2)
            bench.pass_(days=1)
        bench.record(7, at=START + timedelta(days=1, hours=23), clobber=True)
        seen = []
        for day in range(4):
            bench.clock.set(START + timedelta(days=day))
            seen.append(bench.used())
        assert seen == [2, 7, 2, 0]

    def test_a_report_for_a_time_before_the_subscription_is_refused(self) -> None:
        bench = self.bench("plan:free@1")
        assert raised(InvalidRequest, lambda: bench.record(1, at=START - timedelta(milliseconds=1))).path == "at"
        assert bench.record(1, at=START) == Recorded()
        bench.pass_(days=3)
        bench.cancel()
        bench.pass_(days=3)
        bench.subscribe(ACME, "plan:free@1")
        assert raised(InvalidRequest, lambda: bench.record(1, at=START + timedelta(days=4))).path == "at"
        assert bench.used() == 0

    def test_a_report_for_a_time_after_the_cancellation_is_refused(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(days=3)
        bench.cancel()
        assert raised(InvalidRequest, lambda: bench.record(1, at=START + timedelta(days=3))).path == "at"
        raised(NotEntitled, bench.record, 1)
        raised(NotEntitled, bench.adjust, 1)
        assert bench.record(1, at=START + timedelta(days=2)) == Recorded()

    def test_a_report_may_be_five_minutes_ahead_and_not_more(self) -> None:
        bench = self.bench("plan:free@1")
        ahead = timedelta(milliseconds=AHEAD_MS)
        assert bench.record(1, at=START + ahead) == Recorded()
        late = START + ahead + timedelta(milliseconds=1)
        assert raised(InvalidRequest, lambda: bench.record(1, at=late)).path == "at"
        assert bench.used() == 1

    def test_a_report_ahead_counts_in_the_period_it_speaks_of(self) -> None:
        bench = self.bench("plan:daily@1")
        bench.pass_(hours=23, minutes=58)
        bench.record(2, at=START + timedelta(days=1))
        assert bench.used() == 0
        bench.pass_(minutes=2)
        assert bench.used() == 2

    def test_periods_of_days_weeks_and_years_begin_anew_to_the_millisecond(self) -> None:
        ends = {
            "plan:daily@1": START + timedelta(days=1),
            "plan:weekly@1": START + timedelta(days=7),
            "plan:yearly@1": START.replace(year=2025),
        }
        bench = self.bench()
        for plan, end in ends.items():
            org = f"org:{plan}"
            bench.clock.set(START)
            bench.subscribe(org, plan)
            bench.use(n=3, org=org)
            assert bench.usages(org)[CALLS].resets_at == end
            bench.clock.set(end - timedelta(milliseconds=1))
            assert bench.refusal(org=org).resets_at_ms == milliseconds_of(end, "end")
            bench.clock.set(end)
            assert bench.used(org=org) == 0
            bench.use(n=3, org=org)
            bench.refusal(org=org)

    def test_months_that_begin_on_the_31st_end_as_calendars_do(self) -> None:
        bench = self.bench("plan:free@1")
        for month, day in ((2, 29), (3, 31), (4, 30), (5, 31), (6, 30)):
            end = datetime(2024, month, day, 10, 30, tzinfo=UTC)
            bench.clock.set(end - timedelta(milliseconds=1))
            bench.use(n=3)
            bench.refusal()
            assert bench.usages()[CALLS].resets_at == end
            bench.clock.set(end)
            assert bench.used() == 0

    def test_february_has_28_days_in_other_years(self) -> None:
        bench = self.bench()
        bench.clock.set(datetime(2025, 1, 31, tzinfo=UTC))
        bench.subscribe(ACME, "plan:free@1")
        assert bench.usages()[CALLS].resets_at == datetime(2025, 2, 28, tzinfo=UTC)
        bench.pass_(days=28)
        assert bench.usages()[CALLS].resets_at == datetime(2025, 3, 31, tzinfo=UTC)

    def test_a_year_that_begins_on_29_february_ends_on_the_28th(self) -> None:
        bench = self.bench()
        bench.clock.set(datetime(2024, 2, 29, tzinfo=UTC))
        bench.subscribe(ACME, "plan:yearly@1")
        for year in (2025, 2026, 2027):
            assert bench.usages()[CALLS].resets_at == datetime(year, 2, 28, tzinfo=UTC)
            bench.clock.set(datetime(year, 2, 28, tzinfo=UTC))
        assert bench.usages()[CALLS].resets_at == datetime(2028, 2, 29, tzinfo=UTC)

    def test_a_commit_lands_in_the_period_in_which_it_was_reserved(self) -> None:
        bench = self.bench("plan:daily@1")
        hold = bench.hold(n=2)
        bench.pass_(days=1)
        bench.use()
        bench.commit(hold)
        assert bench.usage() == (1, 0)
        bench.clock.set(START)
        assert bench.usage() == (2, 0)

    def test_a_reservation_holds_nothing_in_the_next_period(self) -> None:
        bench = self.bench("plan:daily@1")
        bench.pass_(hours=23, minutes=59)
        hold = bench.hold(n=3)
        bench.pass_(minutes=1)
        other = bench.hold(n=3)
        bench.release(hold)
        assert bench.usage() == (0, 3)
        bench.release(other)


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
            Schedule(
                ACME,
                (PlannedPhase(milliseconds_of(later, "at"), (feature_plan("plan:pro@1"),)),),
                bench.now_ms(),
            )
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


class Levels(Suite):
    """Seats, storage, peaks: what is set and compared, not added up."""

    def test_a_level_is_compared_with_the_limit_and_holds_nothing(self) -> None:
        bench = self.bench("plan:team@1")
        for feature in (SEATS, PEAK, DISK):
            for _ in range(3):
                assert bench.hold(feature, 5).n == 0
            assert bench.usage(feature) == (0, 0)
            assert bench.refusal(feature, 6).reason == "amount_exceeds_limit"

    def test_a_max_level_keeps_the_highest_a_last_level_the_latest(self) -> None:
        bench = self.bench("plan:team@1")
        expected = {SEATS: 2, PEAK: 4, DISK: 2}
        for feature, level in expected.items():
            for n in (3, 4, 2):
                bench.use(feature, n)
            assert bench.used(feature) == level
        for feature, level in expected.items():
            for n in (3, 4, 2):
                bench.record(n, feature)
            assert bench.used(feature) == level

    def test_a_level_may_be_reported_over_the_limit(self) -> None:
        bench = self.bench("plan:team@1")
        assert bench.record(7, DISK) == Recorded(over=2)
        assert bench.record(8, DISK) == Recorded(over=1)
        assert bench.commit(bench.hold(PEAK, 5), 9) == Committed(over=4)
        assert bench.commit(bench.hold(SEATS, 5), 9, is_capped=True) == Committed(capped=4)
        assert {name: usage.used for name, usage in bench.usages().items()} == {DISK: 8, PEAK: 9, SEATS: 5}

    def test_a_level_is_held_against_the_limit_of_the_plan_that_it_was_reserved_in(self) -> None:
        bench = self.bench("plan:team@1")
        first, second = bench.hold(SEATS, 5), bench.hold(SEATS, 5)
        bench.pass_(seconds=1)
        bench.subscribe(ACME, "plan:company@1")
        bench.hold(SEATS, 10)
        assert bench.commit(first, 7) == Committed(over=2)
        assert bench.commit(second, 9, is_capped=True) == Committed(capped=4)
        assert bench.used(SEATS) == 5

    def test_a_level_needs_a_given_amount(self) -> None:
        bench = self.bench("plan:team@1")
        for feature in (SEATS, PEAK, DISK):
            nobody_said = Demand(feature, 1, is_given=False)
            assert raised(InvalidRequest, bench.reserve, nobody_said).path == "amount"
            assert raised(InvalidRequest, bench.do, Check(ACME, nobody_said, bench.now_ms())).path == "amount"
        bench.subscribe(ACME, "plan:free@1")
        assert isinstance(bench.reserve(Demand(CALLS, 1, is_given=False)), Granted)
        assert isinstance(bench.reserve(Demand(EXPORT, 1, is_given=False)), Granted)

    def test_an_n_of_0_asks_whether_the_level_is_below_the_limit(self) -> None:
        bench = self.bench("plan:team@1")
        bench.record(4, SEATS)
        assert bench.check(SEATS, 0).shortfall is None
        bench.record(5, SEATS)
        assert bench.refusal(SEATS, 0).reason == "limit_reached"
        bench.hold(SEATS, 5)

    def test_a_level_can_be_clobbered_and_adjusted(self) -> None:
        bench = self.bench("plan:team@1")
        for feature in (SEATS, PEAK, DISK):
            bench.record(4, feature)
            bench.record(2, feature, clobber=True)
            assert bench.used(feature) == 2
            bench.adjust(-1, feature)
            assert bench.used(feature) == 1
            bench.adjust(-5, feature)
            assert bench.used(feature) == 0

    def test_levels_begin_anew_with_a_period_but_perpetual_ones_never(self) -> None:
        bench = self.bench("plan:team@1")
        for feature in (SEATS, PEAK, DISK):
            bench.use(feature, 4)
        usages = bench.usages()
        assert usages[SEATS].resets_at is None
        assert usages[PEAK].resets_at == usages[DISK].resets_at == datetime(2024, 2, 29, 10, 30, tzinfo=UTC)
        assert bench.refusal(SEATS, 6).resets_at_ms is None
        bench.pass_(days=40)
        assert {name: usage.used for name, usage in bench.usages().items()} == {SEATS: 4, PEAK: 0, DISK: 0}

    def test_a_perpetual_level_survives_a_switch_of_plans_and_a_cancellation(self) -> None:
        bench = self.bench("plan:team@1")
        bench.use(SEATS, 4)
        bench.pass_(days=1)
        bench.subscribe(ACME, "plan:company@1")
        usage = bench.usages()[SEATS]
        assert (usage.used, usage.limit) == (4, 10)
        bench.use(SEATS, 8)
        bench.pass_(days=1)
        bench.cancel()
        bench.pass_(days=100)
        bench.subscribe(ACME, "plan:team@1")
        usage = bench.usages()[SEATS]
        assert (usage.used, usage.limit, usage.remaining) == (8, 5, 0)
        assert bench.refusal(SEATS, 8).limit == 5
        bench.use(SEATS, 3)
        assert bench.used(SEATS) == 3


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


class Isolation(Suite):
    """Nobody's usage is anybody else's."""

    ORGS: Final = (
        ACME,
        "org:acm",
        "org:acme:",
        "org:acme:x",
        "org:org:acme",
        "org:ACME",
        "org: acme",
        "org:acme ",
        "org:acme\n",
        "org:acme\0x",
        "org:ac'me",
        'org:ac"me',
        "org:acme'; DROP TABLE orgs; --",
        "org:{acme}",
        "org:*",
        "org:%",
        "org:acme/x?y=z#w",
        "org:\u00e9",
        "org:e\u0301",  # looks like the one before
        "org:\U0001f600",
        "org:1",
        "org:01",
        "org:" + "x" * 1020,
    )

    def test_orgs_with_similar_and_strange_names_are_counted_apart(self) -> None:
        bench = self.bench()
        for org in self.ORGS:
            bench.subscribe(org, "plan:open@1")
        for n, org in enumerate(self.ORGS, 1):
            bench.use(n=n, org=org)
            bench.record(100, org=org)
        assert [bench.used(org=org) for org in self.ORGS] == [n + 100 for n in range(1, len(self.ORGS) + 1)]

    def test_features_and_orgs_whose_names_run_together_are_counted_apart(self) -> None:
        model = read_model(
            {"plans": {"plan:a@1": {"features": {f"feature:{name}": metered(None) for name in ("a", "a:b", "b", "A")}}}}
        )
        bench = self.bench()
        bench.do(Push(model, bench.now_ms()))
        places = list(product(("org:x", "org:x:feature:a", "org:x:a"), sorted(model.features)))
        for org in {org for org, _ in places}:
            bench.subscribe(org, "plan:a@1")
        for n, (org, feature) in enumerate(places, 1):
            bench.use(feature, n, org=org)
        assert [bench.used(feature, org=org) for org, feature in places] == list(range(1, len(places) + 1))

    def test_strange_keys_are_told_apart(self) -> None:
        bench = self.bench("plan:open@1")
        keys = [
            "k",
            "K",
            "k ",
            " k",
            "k'",
            "k\n",
            "k\0",
            "k\uf8ff0",
            "k\uf8ff",
            "\u00e9",
            "e\u0301",
            "org:acme",
            "*",
            "x" * 1024,
        ]
        assert [bench.record(1, key=key).is_new for key in keys] == [True] * len(keys)
        assert [bench.record(1, key=key).is_new for key in keys] == [False] * len(keys)
        assert bench.used() == len(keys)


class Models(Suite):
    """Plans that are pushed and pulled."""

    def test_what_was_pushed_is_pulled(self) -> None:
        bench = self.bench()
        assert dict(bench.do(Pull()).plans) == dict(MODEL.plans)

    def test_a_push_says_what_it_did_with_each_feature(self) -> None:
        bench = self.bench()
        more = read_model({"plans": {"plan:new@1": {"features": {CALLS: {}, EXPORT: {}}}}})
        model = Model({**more.plans, "plan:pro@1": MODEL.plans["plan:pro@1"]})
        first = [tuple(result) for result in bench.do(Push(model, bench.now_ms()))]
        known = [
            ("feature:audit@plan:pro@1", "failed", "plan already exists"),
            ("feature:calls@plan:pro@1", "failed", "plan already exists"),
        ]
        assert first == [
            ("feature:calls@plan:new@1", "ok", "created"),
            ("feature:export@plan:new@1", "ok", "created"),
            *known,
        ]
        second = bench.do(Push(model, bench.now_ms()))
        assert {result.reason for result in second} == {"plan already exists"}
        assert bench.do(Pull()).plans["plan:new@1"] == more.plans["plan:new@1"]

    def test_a_conflicting_push_names_the_plan_and_stores_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        conflicting = read_model(
            {
                "plans": {
                    "plan:a@1": {"features": {CALLS: {}}},
                    "plan:free@1": {"features": {CALLS: metered(4), MAILS: metered(2), EXPORT: {}}},
                    "plan:z@1": {"features": {CALLS: {}}},
                }
            }
        )
        before = bench.everything(ACME)
        error = raised(PricingError, bench.do, Push(conflicting, bench.now_ms()))
        assert "plan:free@1" in error.message
        assert error.path == 'plans["plan:free@1"].features["feature:calls"].tiers[0].upto'
        assert bench.everything(ACME) == before
        raised(InvalidRequest, bench.subscribe, ACME, "plan:a@1")

    def test_one_push_by_twenty_threads_stores_each_plan_once(self) -> None:
        bench = self.bench()
        model = read_model({"plans": {f"plan:p{n}@1": {"features": {CALLS: {}}} for n in range(5)}})
        results = together(20, lambda _: bench.do(Push(model, bench.now_ms())))
        created = [result.feature for done in results for result in done if result.status == "ok"]
        assert sorted(created) == [f"feature:calls@plan:p{n}@1" for n in range(5)]

    def test_an_engine_says_what_it_is_and_since_when(self) -> None:
        bench = self.bench()
        bench.pass_(days=1)
        info = bench.do(Identify())
        assert isinstance(info, EngineInfo)
        assert info.kind
        assert "://" in info.url
        assert info.created_ms == milliseconds_of(START, "start")


class Deleting(Suite):
    """Orgs that are forgotten."""

    def test_a_deleted_org_is_unknown(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use()
        bench.do(DeleteOrg(ACME))
        for question in (LookUp(ACME, bench.now_ms()), LookUpPhases(ACME, bench.now_ms()), Describe(ACME)):
            raised(OrgNotFound, bench.do, question)
        raised(OrgNotFound, bench.do, DeleteOrg(ACME))
        assert bench.refusal().code == "org_not_found"

    def test_a_new_org_of_the_same_name_starts_empty(self) -> None:
        bench = self.bench("plan:free@1", "plan:team@1")
        bench.use(n=2)
        bench.hold(n=1)
        bench.use(SEATS, 4)
        bench.do(DeleteOrg(ACME))
        bench.subscribe(ACME, "plan:free@1", "plan:team@1")
        assert (bench.usage(), bench.usage(SEATS)) == ((0, 0), (0, 0))
        bench.hold(n=3)

    def test_its_open_holds_are_settled(self) -> None:
        bench = self.bench("plan:free@1")
        calls, mails = bench.hold(CALLS, 2), bench.hold(MAILS)
        bench.do(DeleteOrg(ACME))
        assert bench.commit(calls) == Committed()
        bench.subscribe(ACME, "plan:free@1")
        other = bench.hold(CALLS)
        assert bench.commit(calls, 5) == Committed()
        bench.release(mails)
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 1), (0, 0))
        bench.commit(other)

    def test_other_orgs_stay(self) -> None:
        bench = self.bench("plan:free@1")
        bench.subscribe("org:acme2", "plan:free@1")
        bench.use(n=2, org="org:acme2")
        hold = bench.hold(org="org:acme2")
        bench.do(DeleteOrg(ACME))
        bench.commit(hold)
        assert bench.usage(org="org:acme2") == (3, 0)


class Races(Suite):
    """Many at once."""

    def test_twenty_threads_against_a_limit_of_3_are_granted_exactly_3(self) -> None:
        bench = self.bench("plan:free@1")
        replies = together(20, lambda _: bench.reserve(Demand(CALLS, 1)))
        assert sum(isinstance(reply, Granted) for reply in replies) == 3
        assert bench.usage() == (0, 3)

    def test_twenty_threads_that_want_two_features_are_granted_the_scarcer_one(self) -> None:
        bench = self.bench("plan:free@1")
        both = (Demand(CALLS, 1), Demand(MAILS, 1))
        replies = together(20, lambda index: bench.reserve(*(both if index % 2 else both[::-1])))
        assert sum(isinstance(reply, Granted) for reply in replies) == 2
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 2), (0, 2))

    def test_threads_that_reserve_commit_release_and_report_lose_nothing(self) -> None:
        bench = self.bench("plan:open@1")

        def work(index: int) -> None:
            for _ in range(10):
                bench.commit(bench.hold(n=2), 3)
                bench.release(bench.hold(n=7))
                bench.record(1)

        together(8, work)
        assert bench.usage() == (8 * 10 * 4, 0)

    def test_a_commit_that_many_threads_send_counts_once(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        together(20, lambda index: bench.commit(hold) if index % 2 else bench.record(1, key="once"))
        assert bench.usage() == (3, 0)

    def test_capacity_that_expired_is_given_out_once(self) -> None:
        bench = self.bench("plan:free@1")
        bench.hold(n=3, seconds=60)
        bench.pass_(seconds=60)
        replies = together(20, lambda _: bench.reserve(Demand(CALLS, 1)))
        assert sum(isinstance(reply, Granted) for reply in replies) == 3


class Lifecycle(Suite):
    """Opening and closing, and errors that must leave everything as it was."""

    def test_opening_and_closing_are_idempotent(self) -> None:
        bench = self.bench("plan:free@1")
        for _ in range(2):
            bench.engine.open()
        for _ in range(2):
            bench.engine.close()
        bench.engine.open()

    def test_after_closing_it_opens_again_and_knows_everything(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=2)
        hold = bench.hold()
        bench.record(1, MAILS, key="k")
        bench.engine.close()
        assert bench.usage() == (2, 1)
        bench.engine.close()
        bench.commit(hold)
        assert bench.record(1, MAILS, key="k") == Recorded(is_new=False)
        assert (bench.usage(), bench.usage(MAILS)) == ((3, 0), (1, 0))
        assert dict(bench.do(Pull()).plans) == dict(MODEL.plans)

    def test_threads_may_go_on_while_it_is_closed(self) -> None:
        bench = self.bench("plan:open@1")

        def work(index: int) -> None:
            for _ in range(10):
                bench.engine.close() if index == 0 else bench.use()

        together(6, work)
        assert bench.usage() == (50, 0)

    def test_what_raises_changes_nothing(self) -> None:
        bench = self.bench("plan:free@1", "plan:team@1")
        bench.use(n=2)
        bench.hold()
        bench.record(1, MAILS, key="k")
        before = bench.everything(ACME, "org:nobody")
        now_ms, expires_ms = bench.now_ms(), bench.now_ms() + 1000
        nobody_said = Demand(SEATS, 1, is_given=False)
        model = read_model({"plans": {"plan:free@1": {"features": {CALLS: {}}}, "plan:x@1": {"features": {CALLS: {}}}}})
        failing: list[Op[Any]] = [
            Reserve(ACME, (Demand(MAILS, 1), nobody_said), (1, 2), now_ms, expires_ms),
            Reserve("org:nobody", (Demand(CALLS, 1),), (3,), now_ms, expires_ms, "plan:gone@1"),
            Record(ACME, CALLS, MAX_UNITS, "x", now_ms),
            Record(ACME, EXPORT, 1, "x", now_ms),
            Record(ACME, CALLS, 1, "k", now_ms),
            Record(ACME, CALLS, 1, "x", now_ms, now_ms + AHEAD_MS + 1),
            Adjust(ACME, CALLS, MAX_UNITS, "x", now_ms),
            Adjust("org:nobody", CALLS, 1, "x", now_ms),
            Schedule(ACME, (PlannedPhase(now_ms, ()), PlannedPhase(now_ms + 1, (feature_plan("plan:no@1"),))), now_ms),
            Push(model, now_ms),
            DeleteOrg("org:nobody"),
        ]
        for op in failing:
            raised(TierError, bench.do, op)
            assert bench.everything(ACME, "org:nobody") == before, op
        assert bench.record(1, key="x") == Recorded()


class EngineConformance(
    Reserving,
    Settling,
    Renewals,
    Once,
    Reporting,
    Periods,
    Subscriptions,
    Schedules,
    Orgs,
    Levels,
    Ledgers,
    DefaultPlan,
    Isolation,
    Models,
    Deleting,
    Races,
    Lifecycle,
    Clocks,
    Likeness,
    Changing,
    Resending,
):
    """All of it. A subclass gives ``engine(self, now_ms)``: an engine of its own, empty, for each test."""
