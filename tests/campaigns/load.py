"""Clients in a process of their own, which note every answer that they got.

    python -m tests.campaigns.load http://127.0.0.1:8000

It is told what to do line by line on its standard input: an `Order` as JSON begins, ``end`` lets every visitor finish
its request, and answers how often each came about, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from . import sockets
from .world import BROKEN, FAILED, SOCKET, STUCK, STUCK_SECONDS, UNSENT

ROOT: Final = Path(__file__).parents[2]
AGAIN_SECONDS: Final = 0.05
BEGUN: Final = "begun"
FAILURES: Final = ("raise", "500", "raise")
MESSAGES: Final = 4
"""At most so many before the last one of a connection."""


class Seen(NamedTuple):
    """What became of the requests of one org: by route and status, `BROKEN`, `FAILED`, `UNSENT` or `STUCK`."""

    by_route: Counter[tuple[str, str]]

    def of(self, outcome: str) -> int:
        return sum(n for (_, found), n in self.by_route.items() if found == outcome)

    @property
    def successes(self) -> int:
        return self.of("200")

    @property
    def statuses(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for (_, outcome), n in self.by_route.items():
            counted[outcome] += n
        return counted


class Load:
    """The process, as a campaign holds it."""

    def __init__(self, url: str, *, visitors: int = 16, failing: float = 0.2) -> None:
        self._options = {"visitors": visitors, "failing": failing}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.load", url],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def begin(self, routes: Mapping[str, Sequence[str]], seed: int) -> None:
        """Let them visit: for each org, these routes. Back once one of them has seen a success."""
        self._say(json.dumps({"routes": routes, "seed": seed, **self._options}))
        assert self._heard() == BEGUN

    def end(self) -> dict[str, Seen]:
        self._say("end")
        found = json.loads(self._heard())
        return {org: Seen(Counter({(route, to): n for route, to, n in rows})) for org, rows in found.items()}

    def _heard(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


class Visitor:
    """One client with one connection: a request after the other, none ever sent again."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def outcome(self, target: str) -> str:
        try:
            async with asyncio.timeout(STUCK_SECONDS):
                return await self._requested(target)
        except TimeoutError:
            self._close()
            return STUCK

    async def _requested(self, target: str) -> str:
        if self._streams is None:
            try:
                self._streams = await asyncio.open_connection(self._host, self._port)
            except OSError:
                return UNSENT
        reader, writer = self._streams
        try:
            writer.write(f"POST {target} HTTP/1.1\r\nhost: {self._host}\r\ncontent-length: 0\r\n\r\n".encode())
            await writer.drain()
            status, is_reusable = await answer_from(reader)
        except (OSError, EOFError, ValueError):  # ValueError: cut off in the middle of a number
            self._close()
            return BROKEN
        if not is_reusable:
            self._close()
        return status

    def _close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def answer_from(reader: asyncio.StreamReader) -> tuple[str, bool]:
    """The status of an answer that was read to its end, and whether the connection may be used again."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, headers = head[9:12], dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    is_closed = headers.get("connection") == "close" or status == "500"  # uvicorn hangs up after an exception
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        raise EOFError("without a length nobody can tell whether it is all there")
    return status, not is_closed


async def visits(url: str, order: dict[str, Any], is_over: asyncio.Event) -> dict[str, Counter[tuple[str, str]]]:
    host, _, port = url.removeprefix("http://").partition(":")
    chance = random.Random(order["seed"])
    routes: dict[str, list[str]] = order["routes"]
    seen: dict[str, Counter[tuple[str, str]]] = {org: Counter() for org in routes}
    has_begun = False

    def note(org: str, route: str, outcome: str) -> None:
        nonlocal has_begun
        seen[org][route, outcome] += 1
        if outcome == "200" and not has_begun:
            has_begun = True
            print(BEGUN, flush=True)

    def is_to_fail() -> bool:
        return chance.random() < float(order["failing"])

    async def request(client: Visitor, route: str, org: str) -> list[str]:
        fail = f"&fail={chance.choice(FAILURES)}" if is_to_fail() else ""
        outcome = await client.outcome(f"{route}?org={org}{fail}")
        return [FAILED if fail and outcome == BROKEN else outcome]

    async def connection(route: str, org: str) -> list[str]:
        fails = [is_to_fail() for _ in range(chance.randint(0, MESSAGES))]
        return await sockets.outcomes(f"ws://{host}:{port}{route}?org={org}", fails)

    async def visitor() -> None:
        client = Visitor(host, int(port))
        while not is_over.is_set():
            org = chance.choice(list(routes))
            route = chance.choice(routes[org])
            outcomes = await (connection(route, org) if route == SOCKET else request(client, route, org))
            for outcome in outcomes:
                note(org, route, outcome)
            if UNSENT in outcomes:
                await asyncio.sleep(AGAIN_SECONDS)
        client._close()

    async with asyncio.TaskGroup() as group:
        for _ in range(order["visitors"]):
            group.create_task(visitor())
    return seen


async def obey(url: str) -> None:
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        is_over = asyncio.Event()
        visiting = asyncio.create_task(visits(url, json.loads(line), is_over))
        await orders.readline()
        is_over.set()
        seen = await visiting
        rows = {org: [(route, to, n) for (route, to), n in counted.items()] for org, counted in seen.items()}
        print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    asyncio.run(obey(sys.argv[1]))
