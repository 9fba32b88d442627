"""Usage that a request leaves to a task: the response does not wait for it, and it is counted by how the task ends."""

from __future__ import annotations

import asyncio
import gc
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from asgi_driver import drive
from counting import guard, used
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.testclient import TestClient
from forking import exit_status, forked
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from waiting import auntil

from tier_middleware import AsyncTier, LimitReached, ManualClock
from tier_middleware.asgi import Requirement, TierMiddleware, requires_feature
from tier_middleware.detached import AsyncDetached, Detached
from tier_middleware.fastapi import RequiresFeature


class Own(Exception):
    pass


def app_of(handler: Any, tier: AsyncTier, *gates: Any) -> Any:
    for gate in gates or (requires_feature("feature:convert", 4),):
        handler = gate(handler)
    app = Starlette(routes=[Route("/", handler)])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    return app


def leaving(work: Any, *, is_sync: bool = False, status: int = 200) -> Any:
    """A handler that leaves its usage to a task."""

    async def handler(request: Any) -> Response:
        usage = request.state.tier["feature:convert"]
        later = usage.detach_sync() if is_sync else usage.detach()
        return PlainTextResponse("done", status, background=BackgroundTask(work, later))

    return handler


async def succeeds(later: AsyncDetached) -> None:
    async with later:
        later.add(1)
        later.add(1)


async def says_nothing(later: AsyncDetached) -> None:
    async with later:
        pass


async def fails(later: AsyncDetached) -> None:
    async with later:
        later.add(3)
        raise Own


async def settles(later: AsyncDetached) -> None:
    later.set(5)
    await later.settle()
    assert later.is_settled


async def releases(later: AsyncDetached) -> None:
    async with later:
        later.add(1)
        await later.release()


async def takes(later: AsyncDetached) -> None:
    async with later:
        await later.take(6)
        with pytest.raises(LimitReached):
            await later.take(5)


def sync_succeeds(later: Detached) -> None:
    with later:
        later.add(2)


def sync_fails(later: Detached) -> None:
    with later:
        raise Own


def sync_settles(later: Detached) -> None:
    later.settle()


def sync_releases(later: Detached) -> None:
    later.release()


@pytest.mark.parametrize(
    ("work", "n"),
    [
        *((succeeds, 2), (says_nothing, 4), (fails, 0), (settles, 5), (releases, 0), (takes, 6)),
        *((sync_succeeds, 2), (sync_fails, 0), (sync_settles, 4), (sync_releases, 0)),
    ],
)
@pytest.mark.parametrize("status", [200, 500])
async def test_it_counts_by_how_the_task_ends(any_tier: AsyncTier, work: Any, n: int, status: int) -> None:
    """Whatever became of the response."""
    seen: list[tuple[int, int]] = []

    async def look(message: dict[str, Any]) -> None:
        seen.append(await used(any_tier))

    is_sync = not asyncio.iscoroutinefunction(work)
    app = app_of(leaving(work, is_sync=is_sync, status=status), any_tier)
    sent = await drive(app, at_message=look, raising=False)
    assert sent.body == b"done"
    assert isinstance(sent.error, Own | None)
    assert seen == [(0, 4), (0, 4)]  # the response does not wait
    assert await used(any_tier) == (n, 0)
    assert not any_tier.core.live


async def test_other_features_are_the_requests(tier: AsyncTier) -> None:
    kept: list[AsyncDetached] = []

    async def handler(request: Any) -> Response:
        kept.append(request.state.tier["feature:convert"].detach())
        request.state.tier["feature:pages"].add(7)
        return PlainTextResponse("done")

    gates = [
        requires_feature("feature:convert", 1),
        requires_feature("feature:pages"),
        requires_feature("feature:convert", 2),
    ]
    await drive(app_of(handler, tier, *gates))
    assert (await used(tier), await used(tier, "feature:pages")) == ((0, 3), (7, 0))
    (later,) = kept
    assert (later.n, later.feature, later.org) == (3, "feature:convert", "org:acme")
    await later.settle()
    assert await used(tier) == (3, 0)


async def test_what_the_handler_has_said_before_goes_with_it_and_what_it_says_later_too(tier: AsyncTier) -> None:
    kept: list[AsyncDetached] = []

    async def handler(request: Any) -> Response:
        usage = request.state.tier["feature:convert"]
        usage.add(1)
        kept.append(usage.detach())
        request.state.tier["feature:convert"].add(1)
        return PlainTextResponse("done")

    await drive(app_of(handler, tier))
    (later,) = kept
    later.add(1)
    assert later.n == 3
    await later.settle()
    assert await used(tier) == (3, 0)


async def test_a_task_that_is_cancelled_gives_it_back(any_tier: AsyncTier) -> None:
    begun = asyncio.Event()

    async def waits(later: AsyncDetached) -> None:
        async with later:
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(drive(app_of(leaving(waits), any_tier)))
    await begun.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await used(any_tier) == (0, 0)


async def test_it_is_renewed_while_somebody_has_it_and_given_back_when_it_is_forgotten(make_tier: Any) -> None:
    clock = ManualClock(datetime(2024, 1, 31, tzinfo=UTC))
    kept: list[AsyncDetached] = []

    async def handler(request: Any) -> Response:
        kept.append(request.state.tier["feature:convert"].detach())
        return PlainTextResponse("done")

    async with make_tier("sqlite", clock=clock) as tier:
        await drive(app_of(handler, tier))
        for _ in range(6):
            clock.advance(timedelta(seconds=300))
            tier.core.tend()
        kept[0].add(2)
        tier.core.tend()
        assert await used(tier) == (0, 4)  # a task that fails counts nothing, so nothing is counted on the way
        kept.clear()
        gc.collect()
        assert not tier.core.live
        tier.core.tend()
        assert await used(tier) == (0, 0)


@pytest.mark.parametrize("is_sync", [False, True])
async def test_a_request_that_fails_before_its_task_begins_gives_back(make_tier: Any, is_sync: bool) -> None:
    """By the keeper's own thread, at its own time."""

    async def handler(request: Any) -> Response:
        usage = request.state.tier["feature:convert"]
        BackgroundTask(succeeds, usage.detach_sync() if is_sync else usage.detach())
        raise Own

    async with make_tier("sqlite", flush_seconds=0.02) as tier:
        with pytest.raises(Own):
            await drive(app_of(handler, tier))
        gc.collect()
        await auntil(lambda: is_given_back(tier))
        assert not tier.core.live


async def is_given_back(tier: AsyncTier) -> bool:
    return await used(tier) == (0, 0)


async def test_what_is_forgotten_is_given_back_when_the_engine_is_closed(make_tier: Any) -> None:
    async def handler(request: Any) -> Response:
        request.state.tier["feature:convert"].detach()
        return PlainTextResponse("done")

    tier = make_tier("sqlite")
    await drive(app_of(handler, tier))
    gc.collect()
    assert await used(tier) == (0, 4)
    await tier.aclose()
    assert await used(tier) == (0, 0)
    await tier.aclose()


async def test_a_child_gives_back_nothing_of_its_parents(make_tier: Any) -> None:
    kept: list[AsyncDetached] = []

    async def handler(request: Any) -> Response:
        kept.append(request.state.tier["feature:convert"].detach())
        return PlainTextResponse("done")

    def forgets() -> bool:
        kept.clear()
        gc.collect()
        tier.core.tend()
        return True

    async with make_tier("sqlite") as tier:
        await drive(app_of(handler, tier))
        assert exit_status(forked(forgets)) == 0
        assert await used(tier) == (0, 4)
        await kept.pop().settle()
        assert await used(tier) == (4, 0)


async def test_it_can_be_settled_once_and_detached_once(tier: AsyncTier) -> None:
    kept: list[AsyncDetached] = []

    async def handler(request: Any) -> Response:
        kept.append(request.state.tier["feature:convert"].detach())
        return PlainTextResponse("done")

    await drive(app_of(handler, tier))
    (later,) = kept
    assert repr(later) == "AsyncDetached('feature:convert', n=4)"
    await later.settle()
    for again in (later.settle, later.release):
        with pytest.raises(RuntimeError, match="settled already"):
            await again()
    with pytest.raises(RuntimeError, match="settled already"):
        later.add(1)
    assert await used(tier) == (4, 0)


async def test_a_second_task_has_nothing_of_its_own(tier: AsyncTier) -> None:
    """It would hold nothing, and what each settles would depend on which ends first."""

    async def handler(request: Any) -> Response:
        usage = request.state.tier["feature:convert"]
        later = usage.detach()
        for detach in (usage.detach, usage.detach_sync):
            with pytest.raises(RuntimeError, match="left to a task already"):
                detach()
        return PlainTextResponse("done", background=BackgroundTask(succeeds, later))

    await drive(app_of(handler, tier))
    assert await used(tier) == (2, 0)


async def test_after_the_request_it_is_too_late_to_detach(tier: AsyncTier) -> None:
    usages: list[Any] = []

    async def handler(request: Any) -> Response:
        usages.append(request.state.tier["feature:convert"])
        return PlainTextResponse("done")

    await drive(app_of(handler, tier))
    with pytest.raises(RuntimeError, match="settled already"):
        usages[0].detach()
    assert await used(tier) == (4, 0)


async def test_staff_and_what_was_let_through_without_the_engine(tier: AsyncTier) -> None:
    sent = await drive(app_of(leaving(succeeds), tier), headers=[(b"x-org", b"staff")])
    assert sent.body == b"done"
    assert await used(tier) == (0, 0)


async def test_report_if_is_about_responses(tier: AsyncTier) -> None:
    gate = requires_feature("feature:convert", 4, report_if=lambda request, status: request.url.path == "/never")
    await drive(app_of(leaving(says_nothing), tier, gate))
    assert await used(tier) == (4, 0)


async def test_an_on_off_feature_has_nothing_to_count(tier: AsyncTier) -> None:
    async def handler(request: Any) -> Response:
        later = request.state.tier["feature:sso"].detach()
        await later.settle()
        return PlainTextResponse("done")

    sent = await drive(app_of(handler, tier, requires_feature("feature:sso")))
    assert sent.body == b"done"


def test_with_fastapi_a_dependency_and_a_thread(make_tier: Any) -> None:
    tier = make_tier("sqlite")
    app = FastAPI()
    app.add_middleware(TierMiddleware, tier=tier, org=guard, routes={"GET /table": Requirement("feature:pages", 3)})
    ended = threading.Event()

    def org(request: Request) -> Any:
        return guard(request)

    gate = Depends(RequiresFeature("feature:convert", 2, org=org))

    def work(later: Detached) -> None:
        with later:
            later.add(5)
        ended.set()

    @app.get("/thread")
    def starts(usage: Any = gate) -> Response:
        threading.Thread(target=work, args=(usage.detach_sync(),)).start()
        return JSONResponse({})

    @app.get("/table")
    async def tabled(request: Request, tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(succeeds, request.state.tier["feature:pages"].detach())
        return {}

    with TestClient(app, headers={"x-org": "acme"}) as client:
        assert client.get("/thread").status_code == 200
        assert ended.wait(10)
        assert client.get("/table").status_code == 200
        from tier_middleware import Tier

        sync = Tier.on(tier.core)
        assert sync.lookup_limit("org:acme", "feature:convert").used == 5
        assert sync.lookup_limit("org:acme", "feature:pages").used == 2


async def test_while_the_engine_was_away_it_is_reported(make_tier: Any, tmp_path: Any) -> None:
    from test_asgi_cancellation import locked

    async with make_tier("sqlite", timeout=0.02) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        kept: list[AsyncDetached] = []

        async def handler(request: Any) -> Response:
            kept.append(request.state.tier["feature:convert"].detach())
            return PlainTextResponse("done")

        with locked(tmp_path / "tier.db"):
            assert (await drive(app_of(handler, tier))).body == b"done"
        kept[0].add(3)
        await kept[0].settle()
        assert await used(tier) == (3, 0)
