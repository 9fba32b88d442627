"""Features that have a level, such as seats, instead of a sum."""

from __future__ import annotations

from datetime import UTC, datetime

from ..errors import InvalidRequest
from ..ops import Check, Committed, Demand, Granted, Recorded
from .bench import ACME, CALLS, DISK, EXPORT, PEAK, SEATS, Suite, raised

__all__ = ["Levels"]


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
