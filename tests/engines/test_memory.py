"""The reference engine does what every engine must do."""

from __future__ import annotations

from tier_middleware.clock import Milliseconds
from tier_middleware.engines.memory import MemoryEngine
from tier_middleware.testing.conformance import EngineConformance


class TestMemoryEngine(EngineConformance):
    def engine(self, now_ms: Milliseconds) -> MemoryEngine:
        return MemoryEngine(now_ms)
