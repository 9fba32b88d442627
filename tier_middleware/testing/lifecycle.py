"""Opening and closing, and what an operation leaves behind that raises."""

from __future__ import annotations

from typing import Any

from ..errors import TierError
from ..names import MAX_UNITS, feature_plan
from ..ops import Adjust, DeleteOrg, Demand, Op, Pull, Push, Record, Recorded, Reserve, Schedule
from ..policy import AHEAD_MS, PlannedPhase
from ..pricing import read_model
from .bench import ACME, CALLS, EXPORT, MAILS, MODEL, SEATS, Suite, raised, together

__all__ = ["Lifecycle"]


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
