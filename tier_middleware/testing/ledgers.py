"""What every engine must write down of what it counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ..clock import milliseconds_of
from ..errors import InvalidRequest, NotEntitled, OrgNotFound
from ..ledger import MAX_HISTORY, Change, Entry, Sum
from ..names import MAX_UNITS, org_key
from ..ops import Commit, Committed, DeleteOrg, Kept, MakeClock, ReadHistory
from .bench import ACME, CALLS, DISK, MAILS, PEAK, SEATS, START, Suite, raised, together

__all__ = ["START_MS", "Ledgers"]

DAY = timedelta(days=1)
START_MS = milliseconds_of(START, "START")


class Ledgers(Suite):
    """The ledger: one entry for each commit, report and adjustment that counted."""

    def test_a_commit_leaves_an_entry_that_names_its_reservation(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        bench.pass_(seconds=5)
        bench.commit(hold)
        now_ms = bench.now_ms()
        assert bench.entries() == [Entry("plan:free@1", START_MS, Change("commit", 2, now_ms, now_ms, hold.id))]

    def test_reports_and_adjustments_leave_entries_with_their_key_time_and_note(self) -> None:
        bench = self.bench("plan:free@1")
        bench.pass_(days=2)
        at = START + DAY
        bench.record(4, key="one", at=at, note="from the log")
        bench.record(1, key="two", clobber=True)
        bench.adjust(-5, key="three")
        now_ms, at_ms = bench.now_ms(), milliseconds_of(at, "at")
        assert [entry.change for entry in bench.entries()] == [
            Change("report", 4, at_ms, now_ms, "one", None, "from the log"),
            Change("clobber", -3, now_ms, now_ms, "two", 1),
            Change("adjust", -1, now_ms, now_ms, "three", None, "a correction"),  # never below 0
        ]

    def test_what_a_commit_changed_is_written_down_however_it_came_about(self) -> None:
        bench = self.bench("plan:free@1")
        less, late = bench.hold(n=2), bench.hold(n=1, seconds=1)
        bench.commit(less, 1)
        bench.pass_(seconds=1)
        bench.commit(late)
        bench.commit(bench.hold(), 0)
        assert [entry.change.n for entry in bench.entries()] == [1, 1, 0]
        assert bench.used() == 2

    def test_a_commit_that_passes_the_limit_is_written_down_with_what_it_counted(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        bench.record(2)
        assert bench.commit(hold) == Committed(over=1)
        bench.adjust(-3)
        more, capped = bench.hold(), bench.hold()
        bench.commit(more, 2)
        bench.commit(capped, 5, is_capped=True)
        assert [entry.change.n for entry in bench.entries()] == [2, 2, -3, 2, 1]
        assert bench.used() == 4

    def test_what_was_set_is_written_down_of_levels(self) -> None:
        bench = self.bench("plan:team@1")
        for feature in (SEATS, PEAK, DISK):
            bench.use(feature, 3)
            bench.record(2, feature)
            bench.adjust(1, feature)
        changes = {
            feature: [(entry.change.n, entry.change.level) for entry in bench.entries(feature)]
            for feature in (SEATS, PEAK, DISK)
        }
        assert changes == {
            SEATS: [(3, 3), (-1, 2), (1, None)],
            PEAK: [(3, 3), (0, 2), (1, None)],
            DISK: [(3, 3), (-1, 2), (1, None)],
        }
        assert {(entry.plan, entry.start_ms) for entry in bench.entries(SEATS)} == {("", 0)}

    def test_what_does_not_count_leaves_no_entry(self) -> None:
        bench = self.bench("plan:free@1")
        hold = bench.hold(n=2)
        bench.commit(hold)
        bench.record(1, key="k")
        before = bench.entries()
        bench.commit(hold)
        bench.record(1, key="k")
        raised(InvalidRequest, bench.record, MAX_UNITS)
        raised(NotEntitled, bench.record, 1, SEATS)
        bench.refusal()
        bench.check()
        mail = bench.hold(MAILS)
        bench.release(mail)
        bench.commit(mail)
        assert bench.entries() == before
        assert len(before) == 2
        assert bench.entries(MAILS) == []

    def test_of_several_holds_of_which_one_cannot_be_counted_none_leaves_an_entry(self) -> None:
        bench = self.bench("plan:free@1")
        calls, mails = bench.hold(CALLS), bench.hold(MAILS)
        bench.record(MAX_UNITS - 1, MAILS)
        raised(InvalidRequest, bench.do, Commit((Kept(calls, 1), Kept(mails, 2)), bench.now_ms()))
        assert bench.entries(CALLS) == []
        assert len(bench.entries(MAILS)) == 1
        bench.do(Commit((Kept(calls, 1), Kept(mails, 1)), bench.now_ms()))
        assert (len(bench.entries(CALLS)), len(bench.entries(MAILS))) == (1, 2)

    def test_entries_are_of_the_plan_and_period_in_which_it_was_counted(self) -> None:
        bench = self.bench("plan:daily@1")
        first = bench.hold()
        bench.pass_(days=1)
        bench.commit(first)
        for plan in ("plan:daily@1", "plan:pro@1"):
            bench.pass_(milliseconds=1)
            bench.subscribe(ACME, plan)
            bench.use()
        day_ms = DAY // timedelta(milliseconds=1)
        assert [(entry.plan, entry.start_ms - START_MS) for entry in bench.entries()] == [
            ("plan:daily@1", 0),
            ("plan:daily@1", day_ms),
            ("plan:pro@1", 0),
        ]

    def test_a_history_has_what_lies_between_its_ends_in_order(self) -> None:
        bench = self.bench("plan:open@1")
        for n in range(1, 6):
            bench.pass_(days=1)
            bench.record(n)
        bench.record(10, at=START + timedelta(days=2, hours=1))
        ns = [entry.change.n for entry in bench.entries()]
        assert ns == [1, 2, 10, 3, 4, 5]
        within = bench.entries(since=START + timedelta(days=2), until=START + timedelta(days=4))
        assert [entry.change.n for entry in within] == [2, 10, 3]
        assert bench.entries(since=START + timedelta(days=6)) == []
        assert bench.entries(until=START) == []

    def test_sums_are_by_step_and_name_the_empty_ones(self) -> None:
        bench = self.bench("plan:open@1")
        bench.use(n=1)
        bench.pass_(days=2)
        bench.use(n=2)
        bench.adjust(-1)
        midnight = milliseconds_of(START.replace(hour=0, minute=0), "midnight")
        day_ms = DAY // timedelta(milliseconds=1)
        assert bench.sums(DAY) == [
            Sum(midnight + i * day_ms, midnight + (i + 1) * day_ms, n) for i, n in enumerate((1, 0, 1))
        ]
        assert [part.n for part in bench.sums(timedelta(hours=1))] == [1, *[0] * 47, 1]
        assert [part.n for part in bench.sums(DAY, since=START + DAY, until=START + 2 * DAY)] == [0, 0]
        assert bench.sums(DAY, MAILS) == []

    def test_more_than_one_answer_holds_is_refused_and_never_cut_off(self) -> None:
        bench = self.bench("plan:open@1")
        bench.record(1)
        bench.pass_(milliseconds=MAX_HISTORY - 1)
        assert len(bench.sums(timedelta(milliseconds=1))) == MAX_HISTORY
        bench.pass_(milliseconds=1)
        assert raised(InvalidRequest, bench.sums, timedelta(milliseconds=1)).path == "step"

    def test_an_unknown_org_has_no_history_and_one_that_used_nothing_an_empty_one(self) -> None:
        bench = self.bench("plan:free@1")
        raised(OrgNotFound, bench.do, ReadHistory("org:nobody", CALLS, bench.now_ms()))
        assert bench.entries() == []
        assert bench.entries("feature:unheard-of") == []

    def test_a_deleted_org_takes_its_ledger_with_it(self) -> None:
        bench = self.bench("plan:free@1")
        bench.subscribe("org:other", "plan:free@1")
        for org in (ACME, "org:other"):
            bench.use(org=org)
            bench.record(1, org=org)
        bench.do(DeleteOrg(ACME))
        raised(OrgNotFound, bench.entries)
        bench.subscribe(ACME, "plan:free@1")
        assert bench.entries() == []
        assert len(bench.entries(org="org:other")) == 2
        bench.use(n=1)
        bench.use(n=1, org="org:other")
        assert (len(bench.entries()), len(bench.entries(org="org:other"))) == (1, 3)

    def test_entries_that_were_rolled_up_are_still_summed_exactly(self) -> None:
        bench = self.bench("plan:yearly@1", f"{SEATS}@plan:team@1")
        for n in range(100):
            bench.record(n)
            bench.pass_(hours=1)
        bench.record(5, SEATS)
        before, used = bench.sums(DAY, until=bench.clock()), bench.used()
        assert len(before) > 4
        bench.pass_(days=500)
        later = bench.clock()
        for _ in range(100):
            bench.record(1)
        assert bench.sums(DAY, until=START + timedelta(hours=100)) == before
        assert len(bench.entries()) < 200, "nothing was rolled up in 100 reports"
        assert sum(part.n for part in bench.sums(timedelta(days=7), until=later)) == used
        assert sum(entry.change.n for entry in bench.entries()) == used + 100
        assert sum(entry.change.n for entry in bench.entries(SEATS)) == 5

    def test_days_that_were_rolled_up_are_those_of_utc(self) -> None:
        bench = self.bench("plan:open@1")
        bench.clock.set(datetime(2024, 2, 10, 23, 59, 59, 999_000, tzinfo=UTC))
        bench.record(1)
        bench.pass_(milliseconds=1)
        bench.record(2)
        bench.record(4, at=START)
        bench.pass_(days=401)
        for _ in range(40):
            bench.record(0)
        days = [entry.change for entry in bench.entries() if entry.change.kind == "day"]
        assert [(change.at_ms // 86_400_000 * 86_400_000 == change.at_ms, change.n) for change in days] == [
            (True, 4),
            (True, 1),
            (True, 2),
        ]

    def test_entries_under_a_clock_are_rolled_up_by_that_clock(self) -> None:
        bench, here = self.bench("plan:open@1"), org_key(ACME, "clock_1")
        bench.do(MakeClock("clock_1", "rehearsal", bench.now_ms()))
        bench.subscribe(here, "plan:open@1")
        for org in (ACME, here):
            bench.use(org=org)
        bench.pass_(days=401)  # for those without a clock: the other one's stands still
        for _ in range(40):
            bench.use()
        assert bench.entries()[0].change.kind == "day"
        assert [entry.change.kind for entry in bench.entries(org=here)] == ["commit"]
        for _ in range(40):
            bench.use(org=here)
        assert bench.entries(org=here)[0].change.kind == "day"

    def test_threads_leave_an_entry_each(self) -> None:
        bench = self.bench("plan:open@1")

        def work(n: int) -> None:
            for _ in range(10):
                if n % 2:
                    bench.use()
                else:
                    bench.record(1)

        together(8, work)
        entries = bench.entries()
        assert len(entries) == 80
        assert len({entry.change.key for entry in entries}) == 80
        assert bench.used() == 80
