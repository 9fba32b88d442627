"""What renewals do: reservations of long work stay alive, and what it has used so far is counted, once."""

from __future__ import annotations

from ..clock import milliseconds_of
from ..errors import InvalidRequest
from ..ledger import Change, Entry
from ..names import MAX_UNITS, org_key
from ..ops import Commit, Committed, DeleteOrg, Hold, Kept, MakeClock, Recorded, Renew
from ..policy import KEY_LIFETIME_MS
from .bench import ACME, CALLS, DISK, MAILS, PEAK, SEATS, START, Bench, Suite, raised, together

__all__ = ["Renewals"]

START_MS = milliseconds_of(START, "START")


class Renewals(Suite):
    """``n`` is the total of a hold so far: what is sent again, late, or out of order counts nothing twice."""

    def test_a_renewed_reservation_expires_later(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=3, seconds=60)
        for _ in range(5):
            bench.pass_(seconds=59)
            assert bench.renew(hold, seconds=60) == Committed()
        assert bench.usage() == (0, 3)
        bench.pass_(seconds=60, milliseconds=-1)
        bench.refusal()
        bench.pass_(milliseconds=1)
        assert bench.usage() == (0, 0)
        bench.hold(n=3)

    def test_a_renewal_never_shortens_a_reservation(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=3, seconds=600)
        bench.renew(hold, seconds=1)
        bench.pass_(seconds=599)
        assert bench.usage() == (0, 3)

    def test_what_was_only_renewed_is_committed_as_ever(self) -> None:
        bench = self.bench("plan:free@1")
        for n, capped in ((2, False), (1, True)):
            hold = bench.hold(n=n)
            bench.renew(hold, is_capped=capped)
            assert bench.commit(hold, is_capped=capped) == Committed()
        assert bench.usage() == (3, 0)
        assert [entry.change.n for entry in bench.entries()] == [2, 1]

    def test_what_is_counted_so_far_is_taken_out_of_what_is_reserved(self) -> None:
        bench = self.bench("plan:pro@1")
        hold = bench.hold(n=5)
        assert bench.renew(hold, 2) == Committed()
        assert bench.usage() == (2, 3)
        assert bench.renew(hold, 5) == Committed()
        assert bench.usage() == (5, 0)
        assert bench.renew(hold, 7) == Committed()
        assert bench.usage() == (7, 0)

    def test_partial_counts_never_double(self) -> None:
        bench = self.bench("plan:pro@1")
        hold = bench.hold(n=5)
        for n in (2, 2, 1, 0, 4, 4, 3):
            bench.renew(hold, n)
        assert bench.usage() == (4, 1)
        assert bench.commit(hold, 6) == Committed()
        assert bench.usage() == (6, 0)

    def test_the_commit_is_the_total(self) -> None:
        bench = self.bench("plan:pro@1")
        for so_far, total in ((2, 5), (5, 5), (0, 5), (5, 2), (3, 0)):
            hold = bench.hold(n=5)
            bench.renew(hold, so_far)
            before = bench.used() - so_far
            assert bench.commit(hold, total) == Committed(), (so_far, total)
            assert bench.usage() == (before + total, 0), (so_far, total)
            bench.adjust(-total)

    def test_the_rest_of_a_commit_is_given_back(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=3)
        bench.renew(hold, 1)
        bench.commit(hold, 2)
        assert bench.usage() == (2, 0)
        bench.hold(n=1)

    def test_a_release_takes_back_what_was_counted(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=3)
        bench.renew(hold, 2)
        bench.release(hold)
        assert bench.usage() == (0, 0)
        bench.release(hold)
        bench.commit(hold)
        assert bench.usage() == (0, 0)
        bench.hold(n=3)

    def test_usage_never_gets_below_0(self) -> None:
        bench = self.bench("plan:free@1")
        released, less = bench.hold(n=2), bench.hold()
        bench.renew(released, 2)
        bench.record(1, clobber=True)
        bench.release(released)
        assert bench.usage() == (0, 1)
        bench.renew(less, 3)
        bench.record(1, clobber=True)
        bench.commit(less, 0)
        assert bench.usage() == (0, 0)
        assert sum(entry.change.n for entry in bench.entries()) == 0

    def test_a_settled_hold_is_passed_over(self) -> None:
        bench = self.bench("plan:free@1")
        committed, released = bench.hold(), bench.hold()
        bench.commit(committed)
        bench.release(released)
        for hold in (committed, released):
            assert bench.renew(hold, 3) == Committed()
        assert bench.usage() == (1, 0)
        assert len(bench.entries()) == 1

    def test_what_passes_the_limit_is_said_by_the_renewal_that_counts_it(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold()
        assert bench.renew(hold, 4) == Committed(over=1)
        assert bench.renew(hold, 4) == Committed()
        assert bench.commit(hold, 6) == Committed(over=2)
        assert bench.usage() == (6, 0)

    def test_a_cap_leaves_out_and_the_commit_says_it(self) -> None:
        bench = self.bench("plan:free@1")
        mine, _ = bench.hold(), bench.hold()
        assert bench.renew(mine, 5, is_capped=True) == Committed()
        assert bench.usage() == (2, 1)
        assert bench.renew(mine, 6, is_capped=True) == Committed()
        assert bench.commit(mine, 6, is_capped=True) == Committed(capped=4)
        assert bench.usage() == (2, 1)

    def test_what_a_cap_left_out_is_counted_once_there_is_room(self) -> None:
        bench = self.bench("plan:free@1")
        mine, other = bench.hold(), bench.hold()
        bench.renew(mine, 3, is_capped=True)
        assert bench.usage() == (2, 1)
        bench.release(other)
        bench.renew(mine, 3, is_capped=True)
        assert bench.usage() == (3, 0)
        assert bench.commit(mine, 3, is_capped=True) == Committed()

    def test_one_that_has_expired_is_counted_once_and_stays_expired(self) -> None:
        bench = self.bench("plan:free@1")
        late = bench.hold(n=2, seconds=60)
        bench.pass_(seconds=60)
        assert bench.renew(late, 1) == Committed(has_expired=True)
        assert bench.usage() == (1, 0)
        other = bench.hold(n=2)
        assert bench.renew(late, 1) == Committed(has_expired=True)
        assert bench.renew(late, 2) == Committed(has_expired=True)
        assert bench.usage() == (2, 2)
        assert bench.commit(late) == Committed(has_expired=True)
        assert bench.commit(other) == Committed(over=1)
        assert bench.usage() == (4, 0)

    def test_what_was_counted_of_one_that_expired_stays_and_its_commit_adds_the_rest(self) -> None:
        bench = self.bench("plan:free@1")
        killed = bench.hold(n=3, seconds=60)
        bench.renew(killed, 2, seconds=60)
        bench.pass_(seconds=61)
        assert bench.usage() == (2, 0)
        bench.refusal(n=2)  # takes back what it held
        bench.hold(n=1)
        assert bench.commit(killed, 3).has_expired
        assert bench.usage() == (3, 1)

    def test_one_that_was_renewed_is_remembered_from_its_last_end(self) -> None:
        bench = self.bench("plan:open@1")
        hold = bench.hold(n=2, seconds=60)
        bench.pass_(seconds=30)
        bench.renew(hold, 1, seconds=60)
        bench.pass_(milliseconds=KEY_LIFETIME_MS - 60_000)
        assert bench.commit(hold, 2).has_expired
        assert bench.entries()[-1].change.n == 1

    def test_levels_are_kept_alive_and_counted_at_their_end(self) -> None:
        bench = self.bench("plan:team@1")
        for feature in (SEATS, PEAK, DISK):
            hold = bench.hold(feature, 3, seconds=60)
            bench.pass_(seconds=59)
            assert bench.renew(hold, 4, seconds=60) == Committed()
            assert bench.usage(feature) == (0, 0)
            bench.pass_(seconds=59)
            assert bench.commit(hold, 3) == Committed()
            assert bench.used(feature) == 3

    def test_each_partial_count_leaves_its_entry_and_history_adds_up(self) -> None:
        bench = self.bench("plan:pro@1")
        hold = bench.hold(n=5)
        changes = []
        for n, delta in ((2, 2), (2, 0), (3, 1)):
            bench.pass_(seconds=5)
            bench.renew(hold, n)
            if delta:
                changes.append(Change("commit", delta, bench.now_ms(), bench.now_ms(), hold.id))
        bench.pass_(seconds=5)
        bench.commit(hold, 7)
        changes.append(Change("commit", 4, bench.now_ms(), bench.now_ms(), hold.id))
        assert bench.entries() == [Entry("plan:pro@1", START_MS, change) for change in changes]

    def test_what_is_taken_back_leaves_an_entry(self) -> None:
        bench = self.bench("plan:pro@1")
        released, less = bench.hold(n=2), bench.hold(n=3)
        bench.renew(released, 2)
        bench.renew(less, 3)
        bench.pass_(seconds=1)
        bench.release(released)
        bench.pass_(seconds=1)
        bench.commit(less, 1)
        assert [entry.change.n for entry in bench.entries()][2:] == [-2, -2]
        assert sum(entry.change.n for entry in bench.entries()) == bench.used() == 1

    def test_a_count_lands_in_the_period_and_plan_of_its_reservation(self) -> None:
        bench = self.bench("plan:daily@1")
        hold = bench.hold(n=2)
        bench.pass_(days=1, seconds=-1)
        bench.renew(hold, seconds=60)
        bench.pass_(seconds=2)
        bench.renew(hold, 1)
        assert bench.usage() == (0, 0)
        bench.subscribe(ACME, "plan:pro@1")
        bench.commit(hold, 2)
        assert bench.usage() == (0, 0)
        assert [(entry.plan, entry.start_ms, entry.change.n) for entry in bench.entries()] == [
            ("plan:daily@1", START_MS, 1),
            ("plan:daily@1", START_MS, 1),
        ]

    def test_several_holds_are_renewed_in_one_operation(self) -> None:
        bench = self.bench("plan:free@1")
        calls, mails, settled = bench.hold(CALLS, 2), bench.hold(MAILS, 2), bench.hold(CALLS, 1)
        bench.release(settled)
        now_ms = bench.now_ms()
        kept = (Kept(calls, 1), Kept(settled, 1), Kept(mails, 2))
        assert bench.do(Renew(kept, now_ms, now_ms + 900_000)) == (Committed(),) * 3
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((1, 1), (2, 0))

    def test_what_cannot_be_counted_is_left_to_the_commit(self) -> None:
        bench = self.bench("plan:open@1")
        hold = bench.hold(n=2)
        assert bench.record(MAX_UNITS - 1) == Recorded()
        assert bench.renew(hold, 2) == Committed()
        assert bench.used() == MAX_UNITS
        raised(InvalidRequest, bench.do, Commit((Kept(hold, 2),), bench.now_ms()))
        bench.adjust(-5)
        bench.commit(hold, 2)
        assert bench.used() == MAX_UNITS - 4

    def test_a_deleted_orgs_holds_are_settled(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold()
        bench.do(DeleteOrg(ACME))
        assert bench.renew(hold, 1) == Committed()
        bench.subscribe(ACME, "plan:free@1")
        assert bench.usage() == (0, 0)

    def test_orgs_under_a_clock_are_renewed_in_its_time(self) -> None:
        bench = self.bench("plan:free@1")
        bench.do(MakeClock("clock_1", "", START_MS))
        org = org_key(ACME, "clock_1")
        bench.subscribe(org, "plan:free@1")
        hold = bench.hold(n=2, org=org)
        bench.renew(hold, 1)
        assert (bench.usage(org=org), bench.usage()) == ((1, 1), (0, 0))
        bench.commit(hold)
        assert (bench.usage(org=org), bench.usage()) == ((2, 0), (0, 0))
        assert [entry.change.n for entry in bench.entries(org=org)] == [1, 1]

    def test_threads_that_renew_and_settle_at_once_count_the_total(self) -> None:
        bench = self.bench("plan:open@1")
        held = [bench.hold(n=4) for _ in range(8)]

        def work(index: int) -> None:
            hold = held[index // 3]
            _way(bench, hold, index % 3)

        together(24, work)
        assert bench.usage() == (8 * 5, 0)
        assert sum(entry.change.n for entry in bench.entries()) == 8 * 5


def _way(bench: Bench, hold: Hold, way: int) -> None:
    if way == 2:
        bench.commit(hold, 5)
    for n in range(1, 5):
        bench.renew(hold, n)
