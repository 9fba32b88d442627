"""The edges of billing periods under load: threads and tasks hold units while one day after the other ends."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tier_middleware import AsyncTier, LimitReached, ManualClock, Tier
from tier_middleware.clock import milliseconds, milliseconds_of
from tier_middleware.core import Core
from tier_middleware.engines.memory import MemoryEngine
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.ops import Granted, Op
from tier_middleware.settings import Settings
from tier_middleware.testing.bench import together

ORG, CALLS = "org:acme", "feature:calls"
LIMIT = 40
MODEL: Any = {"plans": {"plan:free@1": {"interval": "@daily", "features": {CALLS: {"tiers": [{"upto": LIMIT}]}}}}}
START = datetime(2024, 2, 25, 23, 59, 59, 999000, tzinfo=UTC)  # with a leap day among the days that follow
DAYS = 6
STEPS = 6  # of a day
WORKERS = 8


class Noting:
    """What was granted by the day of the moment at which it was asked for."""

    def __init__(self, engine: MemoryEngine | SqliteEngine) -> None:
        self.engine = engine
        self.granted: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def attempt(self, op: Op[Any]) -> Any:
        reply = self.engine.attempt(op)
        if isinstance(reply, Granted):
            with self._lock:
                self.granted[(op.now_ms - milliseconds_of(START, "start")) // 86_400_000] += op.demands[0].n  # type: ignore[attr-defined]
        return reply


@pytest.fixture(params=["memory", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Core, Noting, ManualClock]:
    clock = ManualClock(START)
    now_ms = milliseconds(clock)
    noting = Noting(MemoryEngine(now_ms) if request.param == "memory" else SqliteEngine(tmp_path / "tier.db", now_ms))
    settings = Settings("memory://", pricing=MODEL, on_error="deny", timeout=60, reservation_seconds=10 * 86_400)
    core = Core(settings, clock, noting)
    Tier.on(core).subscribe(ORG, "plan:free@1")
    return core, noting, clock


def is_as_granted(core: Core, noting: Noting, clock: ManualClock) -> None:
    """Each day has what was granted in it, whenever that was counted."""
    tier = Tier.on(core)
    used = {}
    for day in range(DAYS + 1):
        clock.set(START + timedelta(days=day))
        usage = tier.lookup_limit(ORG, CALLS)
        assert usage.reserved == 0
        used[day] = usage.used
    assert used == {day: noting.granted[day] for day in range(DAYS + 1)}
    assert max(used.values()) <= LIMIT
    assert sum(n > 0 for n in used.values()) > DAYS // 2
    tier.close()


def passing(clock: ManualClock, work: Callable[[], object]) -> None:
    """Let the days pass, a step after each piece of work."""
    while clock() < START + timedelta(days=DAYS):
        work()
        clock.advance(timedelta(days=1) / STEPS)


def test_threads(shop: tuple[Core, Noting, ManualClock]) -> None:
    core, noting, clock = shop
    is_over = threading.Event()
    tier = Tier.on(core)

    def work(number: int) -> None:
        if number == 0:
            passing(clock, lambda: use(0))
            is_over.set()
            return
        while not is_over.is_set():
            use(number)

    def use(number: int) -> None:
        try:
            with tier.reserve(ORG, CALLS):
                threading.Event().wait(random.random() / 1000)  # others go on, and the day may end
        except LimitReached:
            pass

    together(WORKERS, work)
    is_as_granted(core, noting, clock)


async def test_tasks(shop: tuple[Core, Noting, ManualClock]) -> None:
    core, noting, clock = shop
    tier = AsyncTier.on(core)

    async def use() -> None:
        while clock() < START + timedelta(days=DAYS):
            try:
                async with tier.reserve(ORG, CALLS):
                    for _ in range(random.randrange(50)):
                        await asyncio.sleep(0)  # others go on, and the day may end
            except LimitReached:
                await asyncio.sleep(0)

    async def pass_days() -> None:
        while clock() < START + timedelta(days=DAYS):
            for _ in range(20):
                await asyncio.sleep(0)
            clock.advance(timedelta(days=1) / STEPS)

    await asyncio.gather(pass_days(), *(use() for _ in range(WORKERS)))
    is_as_granted(core, noting, clock)
