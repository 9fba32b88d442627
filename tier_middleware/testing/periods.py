"""Billing periods: where they begin and end, and in which of them usage is counted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ..clock import milliseconds_of
from ..errors import InvalidRequest, NotEntitled
from ..ops import Recorded
from ..policy import AHEAD_MS
from .bench import ACME, CALLS, START, Suite, raised

__all__ = ["Periods"]


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
