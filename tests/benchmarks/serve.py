"""What the server does in a second, and how long a request takes, beside a trivial Starlette app.

    python -m tests.benchmarks.serve [--seconds 2 --rounds 3]

Each server is one process, ``tier-middleware serve`` with one worker and uvicorn with an app that reads the body and
answers ``{}``, both without an access log. The client is one more process, which sends the next request of a
connection as soon as it has the answer, on 1 to 200 connections. All subjects are measured in turns, in one run;
printed are the medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from served import serving  # its folder is on the path since the line above

from tier_middleware import Tier  # likewise

ORGS = 100
MODEL = {"plans": {"plan:free@1": {"features": {"feature:x": {"tiers": [{"upto": 1_000_000_000}]}}}}}
CONNECTIONS = (1, 10, 50, 200)
ids = count(1)

TRIVIAL = """
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
async def answer(request):
    await request.body()
    return Response(b"{}", media_type="application/json")
app = Starlette(routes=[Route("/", answer, methods=["POST"])])
"""


class Subject(NamedTuple):
    """Something to ask: where, and the request of a number."""

    name: str
    port: int
    method: str
    path: str
    body: str = ""

    def request(self, number: int) -> bytes:
        org = f"org:{number % ORGS}"
        path, body = self.path.replace("ORG", org), self.body.replace("ORG", org).replace("ID", str(next(ids)))
        head = f"{self.method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        return (head + body).encode()


class Client(asyncio.Protocol):
    """One connection: a request at a time, until it is told to stop."""

    def __init__(self, subject: Subject, until: float) -> None:
        self.subject = subject
        self.until = until
        self.latencies: list[float] = []
        self.failed = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.data = b""
        self._send()

    def _send(self) -> None:
        self.sent = perf_counter()
        self.transport.write(self.subject.request(len(self.latencies)))

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, separator, body = self.data.partition(b"\r\n\r\n")
        if not separator or len(body) < int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]):
            return
        now = perf_counter()
        self.latencies.append(now - self.sent)
        self.failed += not head.startswith(b"HTTP/1.1 200")
        self.data = b""
        if now < self.until:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def asked(subject: Subject, connections: int, seconds: float) -> list[float]:
    """The latencies of all requests of some seconds."""
    loop, until = asyncio.get_running_loop(), perf_counter() + seconds
    clients = [
        (await loop.create_connection(lambda: Client(subject, until), "127.0.0.1", subject.port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(client.done for client in clients))
    failed = sum(client.failed for client in clients)
    assert not failed, f"{subject.name}: {failed} requests failed"
    return [latency for client in clients for latency in client.latencies]


@contextmanager
def trivial(folder: Path) -> Iterator[int]:
    (folder / "trivial.py").write_text(TRIVIAL)
    command = [sys.executable, "-m", "uvicorn", "trivial:app", "--port", "0", "--no-access-log"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "running on" in line)
        yield int(line.partition("127.0.0.1:")[2].split()[0])
    finally:
        process.terminate()
        process.wait(10)


def subjects(bare: int, served: int) -> list[Subject]:
    usage = '{"org": "ORG", "feature": "feature:x", "n": 1}'
    demands = '{"org": "ORG", "demands": [{"feature": "feature:x", "n": 1}], "ids": [ID], "reservation_seconds": 60}'
    found = [
        Subject("a trivial Starlette app", bare, "POST", "/", usage),
        Subject("GET /v1/limits", served, "GET", "/v1/limits?org=ORG"),
        Subject("POST /v1/report", served, "POST", "/v1/report", usage),
    ]
    reserve = Subject("POST /v1/reserve", served, "POST", "/v1/reserve", demands)
    return [*found, *([reserve] if has(served, "/v1/reserve") else [])]


def has(port: int, path: str) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json") as answer:
        return path in json.load(answer)["paths"]


def measured(found: Sequence[Subject], rounds: int, seconds: float) -> None:
    print(f"{'':26}{'connections':>12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}")
    for connections in CONNECTIONS:
        taken: dict[str, list[tuple[float, float, float]]] = {subject.name: [] for subject in found}
        for _ in range(rounds):
            for subject in found:
                latencies = sorted(asyncio.run(asked(subject, connections, seconds)))
                p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
                taken[subject.name].append((len(latencies) / seconds, p50 * 1000, p99 * 1000))
        for name, rounds_of in taken.items():
            rate, p50, p99 = (statistics.median(values) for values in zip(*rounds_of, strict=True))
            print(f"{name:26}{connections:>12}{rate:>12.0f}{p50:>9.2f}{p99:>9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serve")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}; one server process and one client process")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        with Tier(f"sqlite:///{folder}/tier.db") as tier:
            tier.push(MODEL)
            for number in range(ORGS):
                tier.subscribe(f"org:{number}", "plan:free@1")
        bare, served = stack.enter_context(trivial(folder)), stack.enter_context(serving(folder))
        measured(subjects(bare, served.port), options.rounds, options.seconds)


if __name__ == "__main__":
    main()
