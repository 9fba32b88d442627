"""Threads that want the same at once."""

from __future__ import annotations

from ..ops import Demand, Granted
from .bench import CALLS, MAILS, Suite, together

__all__ = ["Races"]


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
