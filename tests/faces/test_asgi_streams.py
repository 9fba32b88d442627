"""Responses that take long: unbuffered, counted on the way, and what becomes of those that are never finished."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgi_driver import drive, never
from counting import guard, used
from starlette.responses import StreamingResponse
from waiting import auntil

from tier_middleware import AsyncTier, ConfigurationError, LimitReached
from tier_middleware.asgi import Requirement, TierMiddleware, requires_feature
from tier_middleware.fastapi import RequiresFeature

START = {"type": "http.response.start", "status": 200, "headers": []}
MORE = {"type": "http.response.body", "body": b"x", "more_body": True}


def gated(app: Any, tier: AsyncTier, needs: Any = "feature:pages", **options: Any) -> TierMiddleware:
    return TierMiddleware(app, tier=tier, org=guard, routes={"GET /": needs}, **options)


# ---- a response that is never finished ------------------------------------------------------------------------------


class Own(Exception):
    pass


async def left(app: Any) -> None:
    """The client has gone: the server says so when it is given the next part."""
    await drive(app, gone_at=2, raising=False)


async def cancelled(app: Any) -> None:
    """The server cancels."""
    task = asyncio.ensure_future(drive(app))
    await app.app.begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def timed_out(app: Any) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await drive(app)


async def returned(app: Any) -> None:
    app.app.ends = "returns"
    await drive(app)


async def failed(app: Any) -> None:
    app.app.ends = "raises"
    with pytest.raises(Own):
        await drive(app)


ENDS = [left, cancelled, timed_out, returned]


class Streaming:
    """Sends a part, says what it has used, and never gets to its end."""

    def __init__(self, say: Any = None) -> None:
        self.begun = asyncio.Event()
        self.say = say
        self.ends = "waits"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MORE)
        if self.say is not None:
            said = self.say(scope["state"]["tier"]["feature:pages"])
            if said is not None:
                await said
        self.begun.set()
        if self.ends == "waits":
            await send(MORE)
            await asyncio.Event().wait()
        elif self.ends == "raises":
            raise Own


SAYINGS = {
    "nothing": (None, {"report": 5, "estimate": 5, "release": 0}),
    "less": (lambda usage: usage.add(2), {"report": 2, "estimate": 5, "release": 0}),
    "more": (lambda usage: usage.add(9), {"report": 9, "estimate": 9, "release": 0}),
    "set": (lambda usage: usage.set(1), {"report": 1, "estimate": 5, "release": 0}),
    "skipped": (lambda usage: usage.skip(), {"report": 0, "estimate": 0, "release": 0}),
    "taken": (lambda usage: usage.take(2), {"report": 2, "estimate": 5, "release": 0}),
    "much taken": (lambda usage: usage.take(8), {"report": 8, "estimate": 8, "release": 0}),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("says", SAYINGS)
@pytest.mark.parametrize("policy", ["report", "estimate", "release"])
async def test_what_an_unfinished_response_counts(tier: AsyncTier, end: Any, says: str, policy: Any) -> None:
    say, counted = SAYINGS[says]
    await end(gated(Streaming(say), tier, Requirement("feature:pages", 5, on_disconnect=policy)))
    assert await used(tier, "feature:pages") == (counted[policy], 0)


@pytest.mark.parametrize("end", ENDS)
async def test_without_a_policy_it_reports_what_was_added(any_tier: AsyncTier, end: Any) -> None:
    await end(gated(Streaming(lambda usage: usage.add(2)), any_tier, Requirement("feature:pages", 5)))
    assert await used(any_tier, "feature:pages") == (2, 0)


@pytest.mark.parametrize("end", ENDS)
async def test_the_middlewares_policy_holds_for_routes_without_one(tier: AsyncTier, end: Any) -> None:
    await end(gated(Streaming(), tier, Requirement("feature:pages", 5), on_disconnect="release"))
    assert await used(tier, "feature:pages") == (0, 0)
    own = Requirement("feature:pages", 5, on_disconnect="estimate")
    await end(gated(Streaming(lambda usage: usage.add(1)), tier, own, on_disconnect="release"))
    assert await used(tier, "feature:pages") == (5, 0)


async def test_each_feature_has_its_own_policy(tier: AsyncTier) -> None:
    needs = [
        Requirement("feature:pages", 5, on_disconnect="release"),
        Requirement("feature:convert", 2, on_disconnect="estimate"),
        Requirement("feature:calls", 3),
    ]
    await left(gated(Streaming(), tier, needs))
    for feature, n in (("feature:pages", 0), ("feature:convert", 2), ("feature:calls", 3)):
        assert await used(tier, feature) == (n, 0)


@pytest.mark.parametrize("policy", ["report", "estimate", "release"])
async def test_an_exception_counts_nothing_whatever_the_policy(any_tier: AsyncTier, policy: Any) -> None:
    """Nor what was counted on the way."""
    app = Streaming(lambda usage: usage.add(2))
    need = Requirement("feature:pages", 5, on_disconnect=policy)

    async def then(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            any_tier.core.tend()
            assert await used(any_tier, "feature:pages") == (2, 3)

    gate = gated(then, any_tier, need)
    app.ends = "raises"
    with pytest.raises(Own):
        await drive(gate)
    assert await used(any_tier, "feature:pages") == (0, 0)


async def test_before_the_response_has_begun_a_cancellation_counts_nothing(any_tier: AsyncTier) -> None:
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["tier"]["feature:pages"].add(3)
        begun.set()
        await asyncio.Event().wait()

    need = Requirement("feature:pages", 5, on_disconnect="estimate")
    task = asyncio.ensure_future(drive(gated(app, any_tier, need)))
    await begun.wait()
    any_tier.core.tend()
    assert await used(any_tier, "feature:pages") == (0, 5)
    task.cancel()
    await asyncio.wait([task])
    assert await used(any_tier, "feature:pages") == (0, 0)


async def test_a_finished_response_counts_as_ever(tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(MORE)
        scope["state"]["tier"]["feature:pages"].add(2)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await drive(gated(app, tier, Requirement("feature:pages", 5, on_disconnect="release")))
    assert await used(tier, "feature:pages") == (2, 0)


@pytest.mark.parametrize("value", ["reports", "", True, 1, len])
def test_a_policy_that_is_none_is_named(tier: AsyncTier, value: Any) -> None:
    for make in (
        lambda: requires_feature("feature:pages", on_disconnect=value),
        lambda: RequiresFeature("feature:pages", on_disconnect=value),
        lambda: Requirement("feature:pages", on_disconnect=value),
        lambda: TierMiddleware(never, tier=tier, on_disconnect=value),
    ):
        with pytest.raises(ConfigurationError) as raised:
            make()
        assert raised.value.path == "on_disconnect"
        assert repr(value) in raised.value.message


# ---- counted on the way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["memory://", "sqlite"])
async def test_a_stream_is_counted_and_renewed_while_it_runs(make_tier: Any, url: str) -> None:
    """By the keeper's own thread, at its own time."""
    async with make_tier(url, reservation_seconds=0.3, flush_seconds=0.02) as tier:
        go_on, ended = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            usage = scope["state"]["tier"]["feature:pages"]

            async def chunks() -> AsyncIterator[bytes]:
                usage.add(3)
                yield b"x"
                await go_on.wait()
                await usage.take(4)
                yield b"y"

            await StreamingResponse(chunks())(scope, receive, send)
            ended.set()

        async def connected() -> dict[str, Any]:
            await ended.wait()
            return {"type": "http.disconnect"}

        streaming = asyncio.ensure_future(drive(gated(app, tier, Requirement("feature:pages", 90)), receive=connected))
        await auntil(lambda: counted(tier, 3, 87))
        expires_ms = tier.core.now_ms() + 600
        await auntil(lambda: has_passed(tier, expires_ms))
        with pytest.raises(LimitReached):
            async with tier.reserve("org:acme", "feature:pages", 11):
                raise AssertionError("never gets here")
        assert await used(tier, "feature:pages") == (3, 87)
        go_on.set()
        assert (await streaming).body == b"xy"
        assert await used(tier, "feature:pages") == (7, 0)
        assert sum(one.n for one in await tier.history("org:acme", "feature:pages")) == 7


async def counted(tier: AsyncTier, n: int, held: int) -> bool:
    return await used(tier, "feature:pages") == (n, held)


async def has_passed(tier: AsyncTier, ms: int) -> bool:
    return tier.core.now_ms() > ms


# ---- unbuffered -----------------------------------------------------------------------------------------------------

CHUNK = 64 * 1024
GIGABYTE = 1024**3
SERVER = """
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature

PRICING = {"plans": {"plan:free@1": {"features": {"feature:bytes": {"tiers": [{}]}}}}}
part = b"x" * 65536


@requires_feature("feature:bytes")
async def download(request):
    usage = request.state.tier["feature:bytes"]

    async def parts():
        for _ in range(16384):
            usage.add(len(part))
            yield part

    return StreamingResponse(parts())


app = Starlette(routes=[Route("/", download)])
tier = AsyncTier(sys.argv[1], pricing=PRICING, default_plan="plan:free@1", flush_seconds=0.05)
app.add_middleware(TierMiddleware, tier=tier, org=lambda request: "acme")
config = uvicorn.Config(app, log_level="error", ws="none")
uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[2]))])
"""


@asynccontextmanager
async def served(url: str) -> AsyncIterator[tuple[Any, Any, int]]:
    """A stream of a gigabyte from a real server in a process of its own: the connection, and the server's pid."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, url, str(fd), pass_fds=[fd])
        try:
            reader, writer = await asyncio.open_connection(*listener.getsockname(), limit=4 * CHUNK)
            yield reader, writer, process.pid
            writer.close()
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 20)


def memory_kib(pid: int) -> int:
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
async def test_a_gigabyte_passes_through_unbuffered(tmp_path: Path) -> None:
    """The first part is there before there could be a second, memory stays flat, and all of it is counted."""
    url = f"sqlite:///{tmp_path}/tier.db"
    async with served(url) as (reader, writer, pid):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert b"200 OK" in head
        assert await asyncio.wait_for(reader.read(1), 30)
        early, got = memory_kib(pid), 0
        while part := await reader.read(4 * CHUNK):
            got += len(part)
        assert got > GIGABYTE
        assert memory_kib(pid) - early < 32 * 1024
        async with AsyncTier(url) as tier:
            assert (await tier.lookup_limit("org:acme", "feature:bytes")).used == GIGABYTE
            entries = await tier.history("org:acme", "feature:bytes")
        assert len(entries) > 3  # it was counted on the way
        assert sum(entry.n for entry in entries) == GIGABYTE


async def test_a_part_is_on_its_way_before_the_next_is_made(tier: AsyncTier) -> None:
    """Each message is with the server when ``send`` returns."""
    got: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for number, message in enumerate((START, MORE, MORE, {**MORE, "more_body": False})):
            await send(message)
            assert len(got) == number + 1

    async def note(message: dict[str, Any]) -> None:
        got.append(message["type"])

    await drive(gated(app, tier), at_message=note)
    assert len(got) == 4
