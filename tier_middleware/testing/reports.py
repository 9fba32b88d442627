"""Usage that is reported, set or corrected."""

from __future__ import annotations

from ..errors import InvalidRequest, NotEntitled, OrgNotFound
from ..names import MAX_UNITS
from ..ops import Commit, Committed, Describe, Kept, Recorded
from ..policy import KEY_LIFETIME_MS
from .bench import CALLS, MAILS, SEATS, START, Suite, raised

__all__ = ["Reporting"]


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
