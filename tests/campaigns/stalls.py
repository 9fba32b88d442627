"""How long the event loops of four processes stand still while all of them count in one SQLite file.

A heartbeat in each loop wants to be called every millisecond, and notes by how much each call is late. The same is
noted in the same run of processes that answer as many requests without a gate: what those show is the machine. And
each attempt of the engine is timed, since it is all of ours that holds a loop.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tier_middleware import AsyncTier, Tier
from tier_middleware.asgi import TierMiddleware, requires_feature
from tier_middleware.clock import milliseconds
from tier_middleware.core import Core
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.settings import Settings

from .world import CALLS, MODEL

PROCESSES: Final = 4
BEAT_SECONDS: Final = 0.001
ORGS: Final = 50
AIM_MS: Final = 5.0


class Attempt(NamedTuple):
    """How long it took, and how often the thread gave up the processor by itself meanwhile: to wait for something."""

    ms: float
    waits: int


class Noted(NamedTuple):
    """By how many milliseconds each beat was late, each attempt, and the number of requests that were made."""

    late: list[float]
    attempts: list[Attempt]
    requests: int


class Timing:
    """An engine whose attempts are timed."""

    def __init__(self, engine: SqliteEngine) -> None:
        self._engine = engine
        self.attempts: list[Attempt] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def attempt(self, op: Any) -> Any:
        waits, began = waits_until_now(), time.perf_counter()
        try:
            return self._engine.attempt(op)
        finally:
            self.attempts.append(Attempt((time.perf_counter() - began) * 1000, waits_until_now() - waits))


def waits_until_now() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def process(path: Path, is_gated: bool, seconds: float, rate: float, begins: float) -> Noted:
    engine = Timing(SqliteEngine(path, milliseconds(None)))
    settings = Settings(f"sqlite:///{path}", on_error="deny", timeout=30)
    tier = AsyncTier.on(Core(settings, None, engine))

    async def handler(request: Request) -> Response:
        return PlainTextResponse("done")

    endpoint = requires_feature(CALLS)(handler) if is_gated else handler
    app = Starlette(routes=[Route("/call", endpoint)])
    gated = TierMiddleware(app, tier=tier, org=lambda request: f"org:{request.query_params['org']}")
    late, requests = asyncio.run(driven(gated, tier, seconds, rate, begins))
    return Noted(late, engine.attempts, requests)


async def driven(app: Any, tier: AsyncTier, seconds: float, rate: float, begins: float) -> tuple[list[float], int]:
    late: list[float] = []
    async with tier, asyncio.TaskGroup() as group:
        await tier.open()
        await asyncio.sleep(max(0, begins - time.monotonic()))  # all of them at once
        until = time.monotonic() + seconds
        group.create_task(beating(late, until))
        requests = 0
        while time.monotonic() < until:
            group.create_task(visit(app, random.randrange(ORGS)))
            requests += 1
            await asyncio.sleep(random.expovariate(rate))
    return late, requests


async def beating(late: list[float], until: float) -> None:
    while (due := time.monotonic() + BEAT_SECONDS) < until:
        await asyncio.sleep(BEAT_SECONDS)
        late.append((time.monotonic() - due) * 1000)


async def visit(app: Any, org: int) -> None:
    scope = {
        "type": "http", "method": "GET", "path": "/call", "query_string": b"org=%d" % org, "headers": [],
        "http_version": "1.1", "scheme": "http", "server": ("shop", 80), "root_path": "",
    }  # fmt: skip
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        statuses.extend([message["status"]] if message["type"] == "http.response.start" else [])

    await app(scope, receive, send)
    assert statuses == [200], statuses


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def shown(values: Sequence[float]) -> str:
    steps = ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))
    return (
        ", ".join(f"{name} {percentile(values, share):.2f}" for share, name in steps) + f", most {max(values):.1f} ms"
    )


def measured(folder: Path, is_gated: bool, options: argparse.Namespace) -> list[Noted]:
    path = folder / f"{'gated' if is_gated else 'bare'}.db"
    with Tier(f"sqlite:///{path}", pricing=MODEL) as tier:
        for org in range(ORGS):
            tier.subscribe(f"org:{org}", "plan:wide@1")
    begins = time.monotonic() + 3
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        arguments = (path, is_gated, options.seconds, options.rate, begins)
        noted = [one.result() for one in [pool.submit(process, *arguments) for _ in range(PROCESSES)]]
    if is_gated:
        with Tier(f"sqlite:///{path}") as tier:
            used = sum(tier.lookup_limit(f"org:{org}", CALLS).used for org in range(ORGS))
        assert used == sum(one.requests for one in noted), (used, noted)
    return noted


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=float, default=200, help="requests a second of each process")


def run(options: argparse.Namespace) -> Iterator[str]:
    yield f"{PROCESSES} processes, {options.rate:.0f} requests a second each, {options.seconds} s; milliseconds late:"
    with tempfile.TemporaryDirectory() as folder:
        for is_gated in (False, True):
            noted = measured(Path(folder), is_gated, options)
            for number, one in enumerate(noted, 1):
                name = "gated" if is_gated else "without a gate"
                yield f"{name}, loop {number}: {shown(one.late)} ({one.requests} requests)"
            if is_gated:
                attempts = [attempt for one in noted for attempt in one.attempts]
                slow = [attempt for attempt in attempts if attempt.ms > AIM_MS]
                yield f"{len(attempts)} attempts of the engine: {shown([attempt.ms for attempt in attempts])}"
                yield (
                    f"over {AIM_MS} ms: {sum(one.waits > 0 for one in slow)} that waited for a disk or a lock, "
                    f"{sum(one.waits == 0 for one in slow)} whose processor was given to somebody else"
                )
                worst = max(percentile(one.late, 0.999) for one in noted)
                yield f"p99.9 of the worst loop: {worst:.2f} ms; aimed at: {AIM_MS}"
