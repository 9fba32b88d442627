"""Commits with a key: work that is done twice, in two reservations, counts once."""

from __future__ import annotations

from ..errors import InvalidRequest
from ..names import MAX_UNITS, org_key
from ..ops import Commit, Committed, Kept, MakeClock, Recorded
from ..policy import KEY_LIFETIME_MS
from .bench import ACME, CALLS, MAILS, SEATS, Suite, raised, together
from .ledgers import START_MS

__all__ = ["Once"]


class Once(Suite):
    """A key that has counted gives back what other holds would have counted for it."""

    def test_two_holds_with_one_key_count_once(self) -> None:
        bench = self.bench("plan:free@1")
        first, again = bench.hold(n=1), bench.hold(n=2)
        assert bench.known("k", "other") == (False, False)
        assert bench.commit(first, key="k") == Committed()
        assert bench.known("k", "other") == (True, False)
        assert bench.usage() == (1, 2)
        assert bench.commit(again, key="k") == Committed()
        assert bench.usage() == (1, 0)
        assert [entry.change.n for entry in bench.entries()] == [1]

    def test_the_same_commit_sent_again_counts_once(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        for _ in range(3):
            assert bench.commit(hold, key="k") == Committed()
        assert bench.usage() == (2, 0)

    def test_other_keys_and_none_count(self) -> None:
        bench = self.bench("plan:pro@1")
        for key in ("k", "l", "", ""):
            bench.commit(bench.hold(), key=key)
        assert bench.usage() == (4, 0)
        assert bench.known("") == (False,)

    def test_a_release_leaves_the_key_unused(self) -> None:
        bench = self.bench("plan:free@1")
        failed = bench.hold()
        bench.release(failed)
        bench.commit(failed, key="k")  # settled before: it counts nothing, for no key
        assert bench.known("k") == (False,)
        bench.commit(bench.hold(), key="k")
        assert bench.usage() == (1, 0)

    def test_one_that_has_expired_counts_once_too(self) -> None:
        bench = self.bench("plan:free@1")
        late, again = bench.hold(seconds=60), bench.hold(seconds=6000)
        bench.pass_(seconds=60)
        bench.commit(again, key="k")
        assert bench.commit(late, key="k") == Committed()
        assert bench.usage() == (1, 0)
        late = bench.hold(seconds=60)
        bench.pass_(seconds=61)
        assert bench.commit(late, key="l") == Committed(has_expired=True)
        bench.commit(bench.hold(), key="l")
        assert bench.usage() == (2, 0)

    def test_a_report_with_the_key_has_counted_for_it(self) -> None:
        bench = self.bench("plan:free@1")
        assert bench.record(1, key="k") == Recorded()
        assert bench.known("k") == (True,)
        assert bench.commit(bench.hold(n=2), key="k") == Committed()
        assert bench.usage() == (1, 0)
        bench.commit(bench.hold(), key="l")
        assert raised(InvalidRequest, lambda: bench.record(1, key="l")).path == "key"
        assert bench.usage() == (2, 0)

    def test_a_key_is_remembered_for_35_days(self) -> None:
        bench = self.bench("plan:open@1")
        bench.commit(bench.hold(), key="k")
        bench.pass_(milliseconds=KEY_LIFETIME_MS - 1)
        assert bench.known("k") == (True,)
        bench.pass_(milliseconds=1)
        assert bench.known("k") == (False,)
        bench.commit(bench.hold(n=2), key="k")
        assert bench.used() == 2  # in another month
        assert bench.known("k") == (True,)

    def test_each_hold_of_several_has_its_own(self) -> None:
        bench = self.bench("plan:free@1")
        bench.commit(bench.hold(), key="calls")
        calls, mails = bench.hold(CALLS), bench.hold(MAILS)
        kept = (Kept(calls, 1, key="calls"), Kept(mails, 1, key="mails"))
        assert bench.do(Commit(kept, bench.now_ms())) == (Committed(), Committed())
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((1, 0), (1, 0))

    def test_of_several_of_which_one_cannot_be_counted_no_key_is_used(self) -> None:
        bench = self.bench("plan:free@1")
        bench.commit(bench.hold(), key="known")
        calls, known, mails = bench.hold(CALLS), bench.hold(CALLS), bench.hold(MAILS)
        bench.record(MAX_UNITS - 1, MAILS)
        kept = (Kept(calls, 1, key="new"), Kept(known, 1, key="known"), Kept(mails, 2, key="mails"))
        raised(InvalidRequest, bench.do, Commit(kept, bench.now_ms()))
        assert bench.known("new", "known", "mails") == (False, True, False)
        assert bench.usage() == (1, 2)
        assert len(bench.entries()) == 1
        bench.do(Commit(kept[:2], bench.now_ms()))
        assert bench.usage() == (2, 0)

    def test_what_renewals_have_counted_is_taken_back_from_the_second(self) -> None:
        bench = self.bench("plan:free@1")
        first, again = bench.hold(), bench.hold(n=2)
        bench.renew(again, 1)
        bench.commit(first, key="k")
        bench.commit(again, key="k")
        assert bench.usage() == (1, 0)

    def test_levels_are_set_once(self) -> None:
        bench = self.bench("plan:team@1")
        first, again = bench.hold(SEATS, 3), bench.hold(SEATS, 4)
        bench.commit(first, 3, key="k")
        bench.commit(again, 4, key="k")
        assert bench.used(SEATS) == 3

    def test_keys_under_a_clock_are_apart(self) -> None:
        bench = self.bench("plan:free@1")
        bench.do(MakeClock("clock_1", "", START_MS))
        org = org_key(ACME, "clock_1")
        bench.subscribe(org, "plan:free@1")
        bench.commit(bench.hold(org=org), key="k")
        assert (bench.known("k", org=org), bench.known("k")) == ((True,), (False,))
        bench.commit(bench.hold(), key="k")
        assert (bench.usage(org=org), bench.usage()) == ((1, 0), (1, 0))

    def test_of_threads_that_commit_with_one_key_one_counts(self) -> None:
        bench = self.bench("plan:open@1")
        holds = [bench.hold() for _ in range(20)]
        together(20, lambda index: bench.commit(holds[index], key="k"))
        assert bench.usage() == (1, 0)
