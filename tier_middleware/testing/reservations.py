"""What is reserved, and what becomes of it: committed, released, or expired."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from ..clock import milliseconds_of
from ..errors import InvalidRequest
from ..names import MAX_UNITS
from ..ops import Checked, Commit, Committed, Demand, Granted, Kept, Recorded, Release, Shortfall, Usage
from .bench import ACME, CALLS, EXPORT, MAILS, SEATS, Suite, raised

__all__ = ["Reserving", "Settling"]


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
