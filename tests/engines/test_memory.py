"""The reference engine does what every engine must do."""

from __future__ import annotations

from tier_middleware.clock import ManualClock, Milliseconds, milliseconds
from tier_middleware.engines.memory import MemoryEngine
from tier_middleware.ops import Push, ReadChanges
from tier_middleware.testing.bench import ACME, MODEL, START, Bench
from tier_middleware.testing.conformance import EngineConformance


def test_an_import_is_a_change_of_everybody() -> None:
    bench = Bench(MemoryEngine(milliseconds(clock := ManualClock(START))), clock)
    bench.do(Push(MODEL, bench.now_ms()))
    bench.subscribe(ACME, "plan:free@1")
    cursor = bench.do(ReadChanges()).cursor
    engine = bench.engine
    assert isinstance(engine, MemoryEngine)
    _, *lines = engine.export()
    engine.load(lines, replace=True)
    found = bench.do(ReadChanges(cursor))
    assert found.is_everything
    assert bench.do(ReadChanges(found.cursor)).orgs == ()


class TestMemoryEngine(EngineConformance):
    def engine(self, now_ms: Milliseconds) -> MemoryEngine:
        return MemoryEngine(now_ms)
