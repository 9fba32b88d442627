"""Four processes of many tasks on a limit that keeps being raised: nothing is granted above it, and nobody is refused
while there is room.

Each process notes when it asked the engine for what, and when the answer was there, by a clock that all share. What an
operation did, it did at some moment between the two. So at every moment what was held lies between two bounds:

* the least: what certainly had been granted, without what may have been given back. Where that is above the limit,
  units were granted above it.
* the most: what may have been granted, without what certainly had been given back. A refusal of n units is wrongful if
  the most and n fit into the limit at every moment at which it may have been decided; or if it speaks of a plan that
  another one certainly had taken the place of.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import sqlite3
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from tier_middleware import AsyncTier, LimitReached, Tier
from tier_middleware.clock import milliseconds
from tier_middleware.core import Core
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.ops import Adjust, Commit, Granted, Op, Release, Schedule, Shortfall
from tier_middleware.settings import Settings

from .world import CALLS

ORG: Final = "org:acme"
PROCESSES: Final = 4
FIRST_LIMIT: Final = 300
RAISE: Final = 10  # from one plan to the next
REFUND: Final = 40  # units that are taken back of what was used: room on the same counter
RAISE_SECONDS: Final = 0.2
TIMEOUT: Final = 60.0


class Event(NamedTuple):
    """Between two moments, in nanoseconds of the machine: so many units more (or fewer) held at a place."""

    began: int
    ended: int
    place: int
    n: int


class Refused(NamedTuple):
    began: int
    ended: int
    n: int
    used: int
    reserved: int
    limit: int


class Raised(NamedTuple):
    began: int
    ended: int
    limit: int


class Notes(NamedTuple):
    """What one process saw."""

    events: list[Event]
    refusals: list[Refused]
    raises: list[Raised]


class Noting:
    """An engine that notes what the one behind it has done, and when."""

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine
        self.notes = Notes([], [], [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def attempt(self, op: Op[Any]) -> Any:
        began = time.monotonic_ns()
        reply = self._engine.attempt(op)
        self._note(op, reply, began, time.monotonic_ns())
        return reply

    def _note(self, op: Op[Any], reply: Any, began: int, ended: int) -> None:
        events, refusals, raises = self.notes
        if isinstance(reply, Granted):
            events += [Event(began, ended, hold.place, hold.n) for hold in reply.holds if hold]
        elif isinstance(reply, Shortfall):
            refusals.append(Refused(began, ended, reply.requested, reply.used, reply.reserved, reply.limit or 0))
        elif isinstance(op, Commit):
            events += [Event(began, ended, kept.hold.place, kept.n - kept.hold.n) for kept in op.kept]
        elif isinstance(op, Release):
            events += [Event(began, ended, hold.place, -hold.n) for hold in op.holds]
        elif isinstance(op, Adjust):
            events.append(Event(began, ended, 0, op.delta))  # its place is the one in force: nobody else raises
        elif isinstance(op, Schedule):
            (feature,) = op.phases[0].features
            raises.append(Raised(began, ended, limit_of(feature.plan)))


def plan_of(number: int) -> str:
    return f"plan:raised{number}@1"


def limit_of(plan: str) -> int:
    return FIRST_LIMIT + RAISE * int(plan.removeprefix("plan:raised").removesuffix("@1"))


def model_for(seconds: float) -> dict[str, Any]:
    plans = [plan_of(number) for number in range(int(seconds / RAISE_SECONDS) + 2)]
    return {"plans": {plan: {"features": {CALLS: {"tiers": [{"upto": limit_of(plan)}]}}} for plan in plans}}


# ---- the processes ---------------------------------------------------------------------------------------------------


def process(path: Path, number: int, tasks: int, seconds: float, seed: int) -> Notes:
    engine = Noting(SqliteEngine(path, milliseconds(None)))
    settings = Settings(f"sqlite:///{path}", on_error="deny", timeout=TIMEOUT)
    tier = AsyncTier.on(Core(settings, None, engine))
    asyncio.run(work(tier, number, tasks, seconds, random.Random(seed + number)))
    return engine.notes


async def work(tier: AsyncTier, number: int, tasks: int, seconds: float, chance: random.Random) -> None:
    until = time.monotonic() + seconds
    async with tier, asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(reserving(tier, until, chance))
        if number == 0:
            group.create_task(raising(tier, until))


async def reserving(tier: AsyncTier, until: float, chance: random.Random) -> None:
    """Take what is to be had; commit all of it, or less, or nothing."""
    while time.monotonic() < until:
        n = chance.randint(1, 3)
        try:
            async with tier.reserve(ORG, CALLS, n) as reservation:
                await asyncio.sleep(chance.uniform(0, 0.02))
                reservation.set(chance.randint(1, n))
                if chance.random() < 0.2:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            continue
        except LimitReached:
            await asyncio.sleep(chance.uniform(0, 0.1))


async def raising(tier: AsyncTier, until: float) -> None:
    number = 0
    while time.monotonic() < until - RAISE_SECONDS:
        await asyncio.sleep(RAISE_SECONDS / 2)
        if (await tier.lookup_limit(ORG, CALLS)).used >= REFUND:
            await tier.adjust(ORG, CALLS, -REFUND)
        await asyncio.sleep(RAISE_SECONDS / 2)
        number += 1
        await tier.subscribe(ORG, plan_of(number))


# ---- what it comes to ------------------------------------------------------------------------------------------------


class Level:
    """A number over time, made of steps."""

    def __init__(self, steps: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(steps, key=lambda step: (step[0], -step[1]))
        self._times = [at for at, _ in ordered]
        self._values = [0, *accumulate(n for _, n in ordered)]

    def highest(self, began: int = 0, ended: int | None = None) -> int:
        first = bisect_left(self._times, began)
        last = len(self._times) if ended is None else bisect_right(self._times, ended)
        return max(self._values[first : last + 1])

    def lowest(self, began: int, ended: int) -> int:
        return min(self._values[bisect_left(self._times, began) : bisect_right(self._times, ended) + 1])


NOTHING: Final = Level(())


def least(events: Iterable[Event]) -> Level:
    return Level((event.ended if event.n > 0 else event.began, event.n) for event in events)


def most(events: Iterable[Event]) -> Level:
    return Level((event.began if event.n > 0 else event.ended, event.n) for event in events)


class Verdict(NamedTuple):
    granted: int
    above: int
    refusals: int
    wrongful: int
    contradictions: int
    in_doubt: int
    raises: int

    def lines(self) -> list[str]:
        return [
            f"{self.granted} units granted on {self.raises} limits, each higher than the one before; "
            f"{self.above} granted above a limit",
            f"{self.refusals} refusals, {self.wrongful} of them wrongful, {self.contradictions} with numbers that the "
            f"books never had; what others did meanwhile leaves at most {self.in_doubt} units of one in doubt",
        ]


def judged(notes: list[Notes], limits: dict[int, int]) -> Verdict:
    """``limits`` are those of the places where units were counted."""
    raises = sorted(raised for one in notes for raised in one.raises)
    by_limit: dict[int, list[Event]] = defaultdict(list)
    for event in (event for one in notes for event in one.events):
        by_limit[limits[event.place] if event.place else in_force(raises, event)].append(event)
    floors = {limit: least(events) for limit, events in by_limit.items()}
    ceilings = {limit: most(events) for limit, events in by_limit.items()}
    refusals = [refusal for one in notes for refusal in one.refusals]
    replaced = {raised.limit: after.ended for raised, after in pairwise(raises)}
    wrongful = contradictions = in_doubt = 0
    for refusal in refusals:
        span = refusal.began, refusal.ended
        high = ceilings.get(refusal.limit, NOTHING).highest(*span)
        low = floors.get(refusal.limit, NOTHING).lowest(*span)
        is_late = replaced.get(refusal.limit, refusal.ended) < refusal.began
        wrongful += high + refusal.n <= refusal.limit or is_late
        said = refusal.used + refusal.reserved
        contradictions += said + refusal.n <= refusal.limit or not low <= said <= high
        in_doubt = max(in_doubt, high - low)
    granted = sum(event.n for events in by_limit.values() for event in events if event.n > 0)
    above = sum(max(0, floor.highest() - limit) for limit, floor in floors.items())
    return Verdict(granted, above, len(refusals), wrongful, contradictions, in_doubt, len(by_limit))


def in_force(raises: list[Raised], event: Event) -> int:
    """The limit at the time of what the one who raises them did itself."""
    return max((raised for raised in raises if raised.ended <= event.began), key=lambda raised: raised.began).limit


def campaign(path: Path, tasks: int, seconds: float, seed: int) -> Verdict:
    with Tier(f"sqlite:///{path}", pricing=model_for(seconds)) as tier:
        began = time.monotonic_ns()
        tier.subscribe(ORG, plan_of(0))
        first = Raised(began, time.monotonic_ns(), FIRST_LIMIT)
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(process, path, number, tasks, seconds, seed) for number in range(PROCESSES)]
        notes = [one.result() for one in running]
    with closing(sqlite3.connect(path)) as database:
        limits = {place: limit_of(plan) for place, plan in database.execute("SELECT id, plan FROM usage")}
        for used, reserved, place in database.execute("SELECT n, reserved, usage_id FROM units WHERE id = 0"):
            assert used <= limits[place], (used, limits[place])
            assert reserved == 0, (reserved, limits[place])
    return judged([*notes, Notes([], [], [first])], limits)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tasks", type=int, default=200, help="in each process")
    parser.add_argument("--seed", type=int, default=int(time.time()))


def run(options: argparse.Namespace) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        verdict = campaign(Path(folder) / "tier.db", options.tasks, options.seconds, options.seed)
    yield f"seed {options.seed}, {PROCESSES} processes of {options.tasks} tasks for {options.seconds} s"
    yield from verdict.lines()
    assert verdict.granted > 0
    assert verdict.refusals > 0
    assert (verdict.above, verdict.wrongful, verdict.contradictions) == (0, 0, 0), verdict
