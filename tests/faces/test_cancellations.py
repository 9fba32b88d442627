"""Whatever ends a request from outside, on asyncio and trio: it is settled or given back, also behind a locked file.

Each kind of request is ended in each way. What is held afterwards is nothing, and what is counted is what was done.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from asgi_driver import http_scope
from counting import guard, used
from socket_driver import socket_scope
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature

START = {"type": "http.response.start", "status": 200, "headers": []}
PART = {"type": "http.response.body", "body": b"x", "more_body": True}


class Case:
    """A request that gets to where it is to be ended, says so, and waits for ever."""

    def __init__(self) -> None:
        self.begun = anyio.Event()
        self.sent: list[dict[str, Any]] = []
        self._messages = iter([{"type": "websocket.connect"}, *[{"type": "websocket.receive", "text": "x"}] * 2])

    async def waits(self) -> None:
        self.begun.set()
        await anyio.sleep_forever()

    async def receive(self) -> dict[str, Any]:
        message = next(self._messages, None)
        if message is None:
            await self.waits()
        return message or {}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def http(handler: Any) -> Any:
    return Route("/", requires_feature("feature:convert", 3)(handler))


def before_it_answers(case: Case) -> Any:
    async def handler(request: Request) -> Response:
        request.state.tier["feature:convert"].add(2)
        await case.waits()
        raise AssertionError("never gets here")

    return http(handler)


def in_mid_stream(case: Case) -> Any:
    async def handler(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            request.state.tier["feature:convert"].add(2)
            yield b"x"
            await case.waits()

        return StreamingResponse(parts())

    return http(handler)


def in_mid_stream_of_a_sync_generator(case: Case) -> Any:
    """Starlette runs it in a thread, which nobody can end."""

    async def handler(request: Request) -> Response:
        usage = request.state.tier["feature:convert"]
        once = iter([b"x"])

        class Parts:
            async def __aiter__(self) -> AsyncIterator[bytes]:
                yield await anyio.to_thread.run_sync(lambda: next(once))
                await anyio.to_thread.run_sync(lambda: usage.add(2))
                await case.waits()

        return StreamingResponse(Parts())

    return http(handler)


def after_its_response(case: Case) -> Any:
    async def handler(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(case.waits))

    return http(handler)


def in_a_task_that_settles_by_itself(case: Case) -> Any:
    async def work(later: Any) -> None:
        async with later:
            later.add(2)
            await case.waits()

    async def handler(request: Request) -> Response:
        later = request.state.tier["feature:convert"].detach()
        return PlainTextResponse("done", background=BackgroundTask(work, later))

    return http(handler)


def while_it_takes_more(case: Case) -> Any:
    async def handler(request: Request) -> Response:
        usage = request.state.tier["feature:convert"]
        await usage.take(2)
        await usage.take(2)
        await case.waits()
        raise AssertionError("never gets here")

    return http(handler)


def before_the_handshake(case: Case) -> Any:
    @requires_feature("feature:convert", 3)
    async def handler(ws: WebSocket) -> None:
        await case.waits()

    return WebSocketRoute("/", handler)


def on_a_socket(case: Case) -> Any:
    @requires_feature("feature:convert", 3)
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            ws.scope["state"]["tier"]["feature:convert"].add(1)

    return WebSocketRoute("/", handler)


def between_two_messages(case: Case) -> Any:
    @requires_feature("feature:convert", 3, per="message")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            pass

    return WebSocketRoute("/", handler)


def with_a_message_in_hand(case: Case) -> Any:
    @requires_feature("feature:convert", 3, per="message")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        await ws.receive_text()
        await case.waits()

    return WebSocketRoute("/", handler)


KINDS: dict[Callable[[Case], Any], int] = {
    before_it_answers: 0,
    in_mid_stream: 2,
    in_mid_stream_of_a_sync_generator: 2,
    after_its_response: 3,
    in_a_task_that_settles_by_itself: 0,
    while_it_takes_more: 0,
    before_the_handshake: 0,
    on_a_socket: 2,
    between_two_messages: 6,
    with_a_message_in_hand: 3,
}


class Ending:
    """What is around the request, and how it is told to end."""

    def __init__(self, request: Callable[[], Any], case: Case, end: Callable[[], Any]) -> None:
        self.request = request
        self.case = case
        self.end = end

    async def by_a_scope(self) -> None:
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(self._then, scope.cancel)
                await self.request()
            assert scope.cancelled_caught

    async def by_a_deadline(self) -> None:
        """A server's timeout."""
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:

                def strike() -> None:
                    scope.deadline = anyio.current_time()

                group.start_soon(self._then, strike)
                await self.request()
            assert scope.cancelled_caught

    async def by_a_timeout_error(self) -> None:
        scopes: list[anyio.CancelScope] = []

        def strike() -> None:
            scopes[0].deadline = anyio.current_time()

        async def request() -> None:
            with anyio.fail_after(60) as scope:
                scopes.append(scope)
                await self.request()

        async with anyio.create_task_group() as group:
            group.start_soon(self._then, strike)
            with pytest.raises(TimeoutError):
                await request()

    async def by_a_sibling_that_fails(self) -> None:
        def fail() -> None:
            raise ZeroDivisionError

        with suppress(ExceptionGroup):
            async with anyio.create_task_group() as group:
                group.start_soon(self.request)
                group.start_soon(self._then, fail)

    async def by_its_group(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self.request)
            await self._then(group.cancel_scope.cancel)

    async def by_its_task(self) -> None:
        """As asyncio's servers do where the client has left."""
        task = asyncio.ensure_future(self.request())
        await self._then(task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()

    async def by_a_timeout_of_asyncio(self) -> None:
        loop = asyncio.get_running_loop()
        timeout = asyncio.timeout(None)
        ending = asyncio.ensure_future(self._then(lambda: timeout.reschedule(loop.time())))
        with pytest.raises(TimeoutError):
            async with timeout:
                await self.request()
        await ending

    async def _then(self, strike: Callable[[], Any]) -> None:
        await self.case.begun.wait()
        self.end()
        strike()


ANYWHERE = ["by_a_scope", "by_a_deadline", "by_a_timeout_error", "by_a_sibling_that_fails", "by_its_group"]
WAYS = [("trio", way) for way in ANYWHERE]
WAYS += [("asyncio", way) for way in [*ANYWHERE, "by_its_task", "by_a_timeout_of_asyncio"]]


def tier_of(folder: Path) -> AsyncTier:
    plan = {"features": {"feature:convert": {"tiers": [{"upto": 10}]}}}
    url = f"sqlite:///{folder}/tier.db"
    return AsyncTier(url, pricing={"plans": {"plan:free@1": plan}}, default_plan="plan:free@1")


@pytest.mark.parametrize("is_locked", [False, True], ids=["", "behind a locked file"])
@pytest.mark.parametrize(("loop", "way"), WAYS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_it_is_settled_or_given_back(tmp_path: Path, kind: Any, loop: str, way: str, is_locked: bool) -> None:
    async def main() -> None:
        case = Case()
        app = Starlette(routes=[kind(case)])
        async with tier_of(tmp_path) as tier:
            app.add_middleware(TierMiddleware, tier=tier, org=guard)
            is_socket = isinstance(app.routes[0], WebSocketRoute)
            scope = socket_scope("/") if is_socket else http_scope()
            scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}

            async def request() -> None:
                await app(scope, case.receive if is_socket else forever, case.send)

            with closing(sqlite3.connect(tmp_path / "tier.db", isolation_level=None, check_same_thread=False)) as db:
                unlocking = threading.Timer(0.05, db.execute, ["ROLLBACK"])

                def end() -> None:
                    if is_locked:  # by somebody who lets go of it when what ends has begun to wait
                        db.execute("BEGIN IMMEDIATE")
                        unlocking.start()

                with anyio.fail_after(20):
                    await getattr(Ending(request, case, end), way)()
                if is_locked:
                    unlocking.join()
            assert await used(tier) == (KINDS[kind], 0)
            assert not tier.core.live
            assert tier.counts == {}

    anyio.run(main, backend=loop)


async def forever() -> Any:
    await anyio.sleep_forever()


# ---- timeouts inside of ours ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(("answers", "n"), [(504, 0), (200, 2), (None, 0)])
def test_a_timeout_around_the_handlers_own_work(tmp_path: Path, loop: str, answers: int | None, n: int) -> None:
    """It is the application's: what it makes of it is what counts, and an error that it lets out is its failure."""

    async def main() -> None:
        async def handler(request: Request) -> Response:
            request.state.tier["feature:convert"].add(2)
            try:
                with anyio.fail_after(0):
                    await anyio.sleep_forever()
            except TimeoutError:
                if answers is None:
                    raise
            return PlainTextResponse("late", answers or 0)

        async with tier_of(tmp_path) as tier:
            app = Starlette(routes=[http(handler)])
            app.add_middleware(TierMiddleware, tier=tier, org=guard)
            with suppress(TimeoutError):
                await app(http_scope(), forever, Case().send)
            assert await used(tier) == (n, 0)
            assert not tier.core.live

    anyio.run(main, backend=loop)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_tasks_of_the_handler_that_end_each_other(tmp_path: Path, loop: str) -> None:
    """A group of its own in which one fails: an error of the application, though the others were cancelled."""

    async def main() -> None:
        async def handler(request: Request) -> Response:
            async def fails() -> None:
                raise ZeroDivisionError

            async def parts() -> AsyncIterator[bytes]:
                request.state.tier["feature:convert"].add(2)
                yield b"x"
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep_forever)
                    group.start_soon(fails)

            return StreamingResponse(parts())

        async with tier_of(tmp_path) as tier:
            app = Starlette(routes=[http(handler)])
            app.add_middleware(TierMiddleware, tier=tier, org=guard)
            with suppress(ExceptionGroup):
                await app(http_scope(), forever, Case().send)
            assert await used(tier) == (0, 0)
            assert not tier.core.live

    anyio.run(main, backend=loop)
