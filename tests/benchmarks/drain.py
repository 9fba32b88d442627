"""What a long drain does to the application beside it: latency of a gated route while the outbox is emptied, and not.

    python -m tests.benchmarks.drain [--reports 100000]

Reports of 500 orgs that must not be added up are queued while the Tier server is away: the longest queue there can be.
When it is back, a gated route of this process is asked without a pause, in turns of so many seconds: while the reporter
sends, and while it rests. Printed are the quantiles of both, their ratios, what was delivered meanwhile, and how much
memory the whole took. Then the rest is delivered, and what the server has counted is compared with what was queued.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware
from tier_middleware.engines.http import HttpEngine
from tier_middleware.reporting.batches import Entry

REMOTE = Path(__file__).parent.parent / "engines" / "remote"
sys.path.insert(0, str(REMOTE))
from tier_servers import MODEL, TierServer  # noqa: E402  # where the tests of the remote engine have it

CALLS, ORGS = "feature:calls", [f"org:{number}" for number in range(500)]
QUANTILES = (50, 90, 99)


def queue(engine: HttpEngine, reports: int) -> None:
    """What a server that is away is owed."""
    at_once = len(ORGS)
    for begin in range(0, reports, at_once):
        size = min(at_once, reports - begin)
        engine.outbox.append([Entry(org, CALLS, 1, is_alone=True) for org in ORGS[:size]])


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Client:
    """Asks the route, one request after the other: microseconds of each."""

    def __init__(self, tier: AsyncTier) -> None:
        self.app = TierMiddleware(hello, tier=tier, org=lambda request: "org:app", routes={"GET /": CALLS})
        self.asked = 0

    async def turn(self, seconds: float) -> list[float]:
        found: list[float] = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "root_path": "", "scheme": "http"}
            scope |= {"query_string": b"", "headers": [], "http_version": "1.1", "state": {}}
            began = time.perf_counter()
            await self.app(scope, self._receive, self._send)
            found.append((time.perf_counter() - began) * 1e6)
            self.asked += 1
            await asyncio.sleep(0)  # as a server does between two requests
        return found

    async def _receive(self) -> Any:
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        assert message.get("status", 200) == 200, message


def quantiles(values: Sequence[float]) -> list[float]:
    cut = statistics.quantiles(values, n=100)
    return [cut[q - 1] for q in QUANTILES]


@contextmanager
def serving(folder: Path) -> Iterator[TierServer]:
    server = TierServer(folder)
    try:
        yield server
    finally:
        server.kill()


def subscribe(server: TierServer) -> None:
    server.call("/v1/push", MODEL)
    for org in (*ORGS, "org:app"):
        server.subscribe(org, "plan:open@1")


async def measured(tier: AsyncTier, engine: HttpEngine, turns: int, seconds: float) -> dict[str, list[list[float]]]:
    client = Client(tier)
    await client.turn(seconds)  # warm
    engine.reporter.stop()
    found: dict[str, list[list[float]]] = {"sending": [], "resting": []}
    for number in range(2 * turns):
        name = ("sending", "resting")[number % 2]
        if name == "sending":
            engine.reporter.wake()
        gc.collect()
        found[name].append(quantiles(await client.turn(seconds)))
        await asyncio.to_thread(engine.reporter.stop)
    found["asked"] = [[float(client.asked)]]
    return found


def shown(found: dict[str, list[list[float]]]) -> None:
    print(f"{'us':10}" + "".join(f"{f'p{q}':>9}" for q in QUANTILES))
    for name in ("resting", "sending"):
        print(f"{name:10}" + "".join(f"{statistics.median(column):9.0f}" for column in zip(*found[name], strict=True)))
    pairs = zip(found["sending"], found["resting"], strict=True)
    ratios = [[one / other for one, other in zip(*pair, strict=True)] for pair in pairs]
    print(f"{'ratio':10}" + "".join(f"{statistics.median(column):9.2f}" for column in zip(*ratios, strict=True)))


def drain(engine: HttpEngine) -> float:
    """Deliver what is left: batches a second."""
    began, total = time.monotonic(), engine.outbox.stock()["sealed"].batches
    with Progress(disable=not sys.stdout.isatty()) as progress:
        task = progress.add_task("delivering", total=total)
        for _ in count():
            is_done = engine.reporter.flush(1)
            left = sum(part.batches for part in engine.outbox.stock().values())
            progress.update(task, completed=total - left)
            if is_done:
                break
    return total / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
        tier = AsyncTier(server.url, outbox=Path(folder) / "outbox.db")
        engine: Any = tier.core.engine
        server.kill()  # away
        queue(engine, options.reports)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        server.start()
        subscribe(server)
        found = asyncio.run(measured(tier, engine, options.turns, options.seconds))
        asked = int(found.pop("asked")[0][0])
        print(f"Python {platform.python_version()}, {options.reports:,} reports queued, {asked:,} requests beside them")
        shown(found)
        sent = options.reports - engine.outbox.stock()["sealed"].batches
        rate = drain(engine)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(f"delivered meanwhile: {sent:,}; the rest at {rate:.0f} a second; peak memory grew by {grown:.1f} MiB")
        tier.core.close()
        assert sum(server.counted.values()) == options.reports + asked, server.counted
        print("the server has counted each of them once")


if __name__ == "__main__":
    main()
