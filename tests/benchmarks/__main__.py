"""What a gated route costs: CPU microseconds added to a bare Starlette route, all subjects interleaved in one run.

Each subject is driven in this process, without sockets: one task, one request after the other, with the process's CPU
time. A round runs every subject once in a shuffled order and takes the difference to the bare route of the same round;
printed are the median and the 10th and 90th percentile of those differences. The twin is the bare route again: what it
"costs" is the noise of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slowapi import Limiter
from slowapi.util import get_remote_address
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature
from tier_middleware.engines.http.engine import FRESH_SECONDS
from tier_middleware.engines.sqlite import CHECKPOINT_EVERY, PAGE_SIZE

SERVER = Path(__file__).parent.parent / "engines" / "remote" / "tier_server.py"

App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

MODEL = {"plans": {"plan:free@1": {"features": {"feature:x": {"tiers": [{"upto": 1_000_000_000}]}}}}}
RAW = "UPDATE counter SET n = n + 1 WHERE id = 1"


class NoOp:
    """The least that a pure-ASGI middleware can do: wrap ``send``."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def wrapped(message: Any) -> None:
            await send(message)

        await self.app(scope, receive, wrapped)


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def bare() -> App:
    return Starlette(routes=[Route("/", hello)])


def slow() -> App:
    limiter = Limiter(key_func=get_remote_address)

    @limiter.limit("1000000000/minute")
    async def limited(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", limited)])
    app.state.limiter = limiter
    return app


def gated(base_url: str) -> App:
    return gated_by(AsyncTier(base_url, pricing=MODEL, default_plan="plan:free@1"))


def gated_by(tier: AsyncTier) -> App:
    handler = requires_feature("feature:x")(hello)
    app = Starlette(routes=[Route("/", handler)])
    app.add_middleware(TierMiddleware, tier=tier, org=lambda request: "org:acme")
    return app


@contextmanager
def tier_server(folder: Path) -> Iterator[str]:
    """A Tier server in a process of its own."""
    command = [sys.executable, str(SERVER), "0", str(folder / "counted.log")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


@contextmanager
def our_server(folder: Path) -> Iterator[str]:
    """``tier-middleware serve`` in a process of its own."""
    command = [sys.executable, "-m", "tier_middleware", "serve", "--addr", "127.0.0.1:0"]
    command += ["--base-url", f"sqlite:///{folder}/served.db"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.communicate()


def checks_of(server: str) -> int:
    """How many calls a Tier server was asked that are not reports."""
    with urllib.request.urlopen(f"{server}/test/requests") as answer:
        return sum(one["path"] not in ("/v1/report", "/test/requests") for one in json.load(answer)["requests"])


def ungated() -> App:
    app = Starlette(routes=[Route("/", hello)])
    app.add_middleware(TierMiddleware, tier=AsyncTier("memory://"), org=lambda request: "org:acme")
    return app


def raw_update(folder: Path, times: int) -> App:
    """A handler that runs raw UPDATE transactions on a database set up as the engine's is."""
    database = sqlite3.connect(folder / "raw.db", isolation_level=None)
    for pragma in (f"page_size = {PAGE_SIZE}", "journal_mode = WAL", "synchronous = NORMAL"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    database.execute("CREATE TABLE counter (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
    database.execute("INSERT INTO counter VALUES (1, 0)")

    async def updating(request: Request) -> PlainTextResponse:
        for _ in range(times):
            database.execute(RAW)
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", updating)])


def scope() -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"localhost"), (b"accept", b"*/*"), (b"user-agent", b"bench")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def microseconds(app: App, requests: int) -> float:
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scopes = [scope() for _ in range(requests)]
    started = time.process_time()
    while scopes:
        await app(scopes.pop(), receive, send)  # dropped with its request, as servers do
    spent = time.process_time() - started
    assert statuses == [200] * requests, f"not every request succeeded: {set(statuses)}"
    return spent / requests * 1e6


async def run(rounds: int, requests: int, folder: Path, server: str, ours: str) -> tuple[dict[str, list[float]], int]:
    remote = AsyncTier(server, pricing=MODEL, default_plan="plan:free@1", outbox=folder / "outbox.db")
    exact = AsyncTier(ours, pricing=MODEL, default_plan="plan:free@1", outbox=folder / "outbox-of-ours.db")
    subjects: dict[str, App] = {
        "bare Starlette route": bare(),
        "its twin (the noise)": bare(),
        "no-op ASGI middleware": NoOp(bare()),
        "TierMiddleware, route not gated": ungated(),
        "slowapi, in memory": slow(),
        "gated, memory://": gated("memory://"),
        "1 raw UPDATE transaction": raw_update(folder, 1),
        "gated, sqlite://": gated(f"sqlite:///{folder}/tier.db"),
        "gated, http:// (warm)": gated_by(remote),
        "gated, http:// of ours, exact": gated_by(exact),
    }
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for name, app in subjects.items():
        await microseconds(app, requests)  # warm: opens engines, fills caches
        del name
    asked, began = checks_of(server), time.monotonic()
    for _ in range(rounds):
        gc.collect()
        for name in random.sample(list(subjects), len(subjects)):
            taken[name].append(await microseconds(subjects[name], requests))
    refreshes = int((time.monotonic() - began) // FRESH_SECONDS)  # which run beside the requests
    asked_now = checks_of(server)
    await remote.aclose()
    await exact.aclose()
    return taken, max(0, asked_now - asked - refreshes)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=300, help="requests of each subject in a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, tier_server(Path(name)) as server, our_server(Path(name)) as ours:
        taken, asked = asyncio.run(run(options.rounds, options.requests, Path(name), server, ours))
    bare_times = taken["bare Starlette route"]
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, "
          f"{options.rounds} rounds of {options.requests} requests; page_size {PAGE_SIZE}, synchronous NORMAL, "
          f"a checkpoint in a thread every {CHECKPOINT_EVERY} transactions")  # fmt: skip
    print(f"bare Starlette route: {statistics.median(bare_times):.1f} us of CPU; added to it:")
    print(f"{'':34}{'median':>9}{'p10':>9}{'p90':>9}")
    added: dict[str, float] = {}
    for name, times in taken.items():
        differences = [one - base for one, base in zip(times, bare_times, strict=True)]
        deciles = statistics.quantiles(differences, n=10)
        added[name] = statistics.median(differences)
        if name != "bare Starlette route":
            print(f"{name:34}{added[name]:9.1f}{deciles[0]:9.1f}{deciles[-1]:9.1f}")
    ratio = added["gated, sqlite://"] / added["1 raw UPDATE transaction"]
    print(f"gated on sqlite:// costs {ratio:.2f} raw UPDATE transactions (to be at most 4)")
    print(f"gated on http:// asked the server {asked} times besides reporting and refreshing in threads (to be 0)")
    print(f"gated on memory:// costs {added['gated, memory://'] / added['slowapi, in memory']:.2f} of slowapi")


if __name__ == "__main__":
    sys.exit(main())
