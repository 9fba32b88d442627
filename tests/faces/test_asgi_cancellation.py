"""A cancelled request gives back what it held, also when the engine is locked and the release has to wait."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from asgi_driver import drive, http_scope
from counting import guard, used
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tier_middleware import AsyncTier, EngineUnavailable, LimitReached
from tier_middleware.asgi import TierMiddleware, requires_feature


@contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Another connection is writing, until told to stop."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:
        db.execute("BEGIN IMMEDIATE")

        def unlock() -> None:
            if db.in_transaction:
                db.execute("ROLLBACK")

        try:
            yield unlock
        finally:
            unlock()


def gated(handler: Any, tier: AsyncTier) -> TierMiddleware:
    return TierMiddleware(handler, tier=tier, org=guard, routes={"GET /": "feature:convert"})


class Stuck:
    """An application that waits for ever, once it has begun."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.begun = asyncio.Event()
        self.messages = messages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        for message in self.messages:
            await send(message)
        self.begun.set()
        await asyncio.Event().wait()


STREAMING = (
    {"type": "http.response.start", "status": 200, "headers": []},
    {"type": "http.response.body", "body": b"x", "more_body": True},
)


BEFORE_OR_IN_MID_STREAM = pytest.mark.parametrize(
    ("messages", "n"), [((), 0), (STREAMING, 1)], ids=["before", "in mid-stream"]
)
"""What has not begun counts nothing; of what has, ``on_disconnect`` says what it counts."""


@BEFORE_OR_IN_MID_STREAM
async def test_a_cancelled_task(any_tier: AsyncTier, messages: Any, n: int) -> None:
    app = Stuck(*messages)
    task = asyncio.ensure_future(drive(gated(app, any_tier)))
    await app.begun.wait()
    assert await used(any_tier) == (0, 1)
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError, match="why"):
        await task
    assert task.cancelled()
    assert await used(any_tier) == (n, 0)


async def test_a_timeout_of_asyncio(any_tier: AsyncTier) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await drive(gated(Stuck(), any_tier))
    assert await used(any_tier) == (0, 0)


async def test_a_scope_of_anyio(any_tier: AsyncTier) -> None:
    with anyio.move_on_after(0) as scope:
        await drive(gated(Stuck(*STREAMING), any_tier))
    assert scope.cancelled_caught
    assert await used(any_tier) == (1, 0)


def _cancel_task(task: asyncio.Task[Any], scope: anyio.CancelScope) -> None:
    task.cancel()


def _cancel_task_twice(task: asyncio.Task[Any], scope: anyio.CancelScope) -> None:
    task.cancel()
    asyncio.get_running_loop().call_later(0.02, task.cancel)


def _cancel_scope(task: asyncio.Task[Any], scope: anyio.CancelScope) -> None:
    scope.cancel()


def _cancel_both(task: asyncio.Task[Any], scope: anyio.CancelScope) -> None:
    scope.cancel()
    asyncio.get_running_loop().call_later(0.02, task.cancel)


@pytest.mark.parametrize("cancel", [_cancel_task, _cancel_task_twice, _cancel_scope, _cancel_both])
@BEFORE_OR_IN_MID_STREAM
async def test_the_settlement_waits_for_a_locked_file(
    make_tier: Any,
    tmp_path: Path,
    messages: Any,
    n: int,
    cancel: Callable[[asyncio.Task[Any], anyio.CancelScope], None],
) -> None:
    async with make_tier("sqlite") as tier:
        app = Stuck(*messages)
        scope = anyio.CancelScope()

        async def request() -> None:
            with scope:
                await drive(gated(app, tier))

        task = asyncio.ensure_future(request())
        await app.begun.wait()
        with locked(tmp_path / "tier.db") as unlock:
            cancel(task, scope)
            done, _ = await asyncio.wait([task], timeout=0.1)
            assert not done  # waits for the writer rather than leak
            unlock()
            await asyncio.wait([task])
        assert task.cancelled() or scope.cancelled_caught
        assert await used(tier) == (n, 0)


async def test_a_timeout_is_still_a_timeout_after_a_release_that_waited(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite") as tier:
        app = Stuck()

        async def lock_and_unlock(timeout: asyncio.Timeout) -> None:
            await app.begun.wait()
            with locked(tmp_path / "tier.db"):
                timeout.reschedule(0)  # now
                await asyncio.wait([current], timeout=0.05)

        current = asyncio.current_task()
        assert current is not None
        timeout = asyncio.timeout(None)
        locking = asyncio.ensure_future(lock_and_unlock(timeout))
        with pytest.raises(TimeoutError):
            async with timeout:
                await drive(gated(app, tier))
        assert current.cancelling() == 0
        await asyncio.sleep(0)  # no cancellation is left over
        await locking
        assert await used(tier) == (0, 0)


async def test_a_commit_that_has_to_wait_is_finished_though_cancelled(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite") as tier:
        locks = []
        completing = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            lock = locked(tmp_path / "tier.db")
            locks.append((lock, lock.__enter__()))
            completing.set()
            await Response("done")(scope, receive, send)

        task = asyncio.ensure_future(drive(gated(app, tier)))
        await completing.wait()
        done, _ = await asyncio.wait([task], timeout=0.05)
        assert not done
        task.cancel()
        ((lock, unlock),) = locks
        unlock()
        lock.__exit__(None, None, None)
        await asyncio.wait([task])
        assert task.cancelled()
        assert await used(tier) == (1, 0)  # it was on its way: counted once, and nothing is held


async def test_an_admission_that_has_to_wait_can_be_cancelled(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite") as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        ran = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            ran.append(scope)

        with locked(tmp_path / "tier.db"):
            task = asyncio.ensure_future(drive(gated(app, tier)))
            done, _ = await asyncio.wait([task], timeout=0.05)
            assert not done
            task.cancel()
            await asyncio.wait([task], timeout=1)
            assert task.cancelled()
        assert ran == []
        assert await used(tier) == (0, 0)


async def test_a_sync_handlers_admission_that_outlives_its_request(make_tier: Any, tmp_path: Path) -> None:
    """A thread cannot be cancelled: what it reserves when its request is over has to go back."""
    async with make_tier("sqlite") as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        begun, over = threading.Event(), threading.Event()
        ran = []

        @requires_feature("feature:convert")
        def handler(request: Request) -> Response:
            ran.append(request)
            return Response("done")

        def noted(request: Request) -> Any:
            begun.set()
            try:
                return handler(request)
            finally:
                over.set()

        app = Starlette(routes=[Route("/", noted)])
        app.add_middleware(TierMiddleware, tier=tier, org=guard)
        with locked(tmp_path / "tier.db"):
            task = asyncio.ensure_future(drive(app))
            assert await asyncio.to_thread(begun.wait, 5)
            await asyncio.wait([task], timeout=0.05)  # the thread is waiting for the file
            task.cancel()
            await asyncio.wait([task], timeout=1)
            assert task.cancelled()
        assert await asyncio.to_thread(over.wait, 5)
        assert ran == []
        assert await used(tier) == (0, 0)


@pytest.mark.parametrize("spec", ["take", "reserve"])
async def test_more_that_is_taken_can_be_cancelled(make_tier: Any, tmp_path: Path, spec: str) -> None:
    async with make_tier("sqlite") as tier:
        taking = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            with locked(tmp_path / "tier.db"):
                taking.set()
                if spec == "take":
                    await scope["state"]["tier"]["feature:convert"].take(3)
                else:
                    async with tier.reserve("org:acme", "feature:convert", 3):
                        pass

        task = asyncio.ensure_future(drive(gated(app, tier)))
        await taking.wait()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=1)
        assert task.cancelled()
        assert await used(tier) == (0, 0)


async def test_waiting_for_a_lock_is_no_outage(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", on_error="deny") as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        with locked(tmp_path / "tier.db") as unlock:
            task = asyncio.ensure_future(drive(gated(Response("done"), tier)))
            await asyncio.wait([task], timeout=0.1)
            assert not task.done()
            unlock()
            sent = await task
        assert sent.status == 200
        assert await used(tier) == (1, 0)
        assert tier.counts == {}


async def test_other_requests_go_on_while_one_waits(make_tier: Any, tmp_path: Path) -> None:
    """The loop is not blocked by a locked file."""
    async with make_tier("sqlite") as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        app = gated(Response("done"), tier)
        with locked(tmp_path / "tier.db"):
            waiting = asyncio.ensure_future(drive(app))
            for _ in range(20):
                sent = await asyncio.wait_for(drive(app, path="/ungated"), 1)
                assert sent.status == 200
                await asyncio.sleep(0)
            assert not waiting.done()
        assert (await waiting).status == 200


async def test_reserve_is_released_when_cancelled_behind_a_lock(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite") as tier:
        begun = asyncio.Event()

        async def work() -> None:
            async with tier.reserve("org:acme", "feature:convert", 3):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(work())
        await begun.wait()
        with locked(tmp_path / "tier.db") as unlock:
            task.cancel()
            done, _ = await asyncio.wait([task], timeout=0.05)
            assert not done
            unlock()
            await asyncio.wait([task])
        assert task.cancelled()
        assert await used(tier) == (0, 0)


async def test_a_release_that_waits_too_long_is_no_error_of_the_request(make_tier: Any, tmp_path: Path) -> None:
    class Own(Exception):
        pass

    async with make_tier("sqlite", timeout=0.02) as tier:
        lock = locked(tmp_path / "tier.db")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            lock.__enter__()
            raise Own

        with pytest.raises(Own):
            await drive(gated(app, tier))
        lock.__exit__(None, None, None)
        assert await used(tier) == (0, 1)  # it expires


def test_on_trio(make_tier: Any, tmp_path: Path) -> None:
    """The same on the other event loop: whole requests, cancellation, and a release that waits."""
    trio = pytest.importorskip("trio")

    async def main() -> None:
        async with make_tier("sqlite") as tier:
            sent = await drive(gated(Response("done"), tier))
            assert sent.status == 200
            assert await used(tier) == (1, 0)

            begun = trio.Event()

            async def stuck(scope: Any, receive: Any, send: Any) -> None:
                begun.set()
                await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()

                async def request() -> None:
                    with scope:
                        await gated(stuck, tier)(http_scope(), None, None)  # type: ignore[arg-type]

                nursery.start_soon(request)
                await begun.wait()
                with locked(tmp_path / "tier.db") as unlock:
                    scope.cancel()
                    await trio.sleep(0.05)
                    unlock()
            assert scope.cancelled_caught
            assert await used(tier) == (1, 0)
            with pytest.raises(LimitReached):
                async with tier.reserve("org:acme", "feature:convert", 10):
                    raise AssertionError("the body ran")

    trio.run(main)


async def test_an_error_of_the_engine_is_no_error_of_python(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.02) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        with locked(tmp_path / "tier.db"), pytest.raises(EngineUnavailable, match="locked"):
            await tier.subscribe("org:acme", "plan:pro@1")
