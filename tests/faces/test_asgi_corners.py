"""What a gate does where two of them meet, or where an application's own callable is odd."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import pytest
from asgi_driver import drive
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from tier_middleware import AsyncTier, OrgNotFound, Tier
from tier_middleware.asgi import TierMiddleware, requires_feature
from tier_middleware.fastapi import RequiresFeature

MODEL = {"plans": {"plan:free@1": {"features": {"feature:a": {"tiers": [{}]}, "feature:b": {"tiers": [{}]}}}}}


def current_org() -> str:
    return "acme"


def test_a_decorator_takes_the_org_that_a_dependency_has_found() -> None:
    tier = AsyncTier("memory://", pricing=MODEL, default_plan="plan:free@1")
    app = FastAPI()
    app.add_middleware(TierMiddleware, tier=tier)

    @app.get("/")
    @requires_feature("feature:b")
    async def both(usage: Annotated[Any, Depends(RequiresFeature("feature:a", org=current_org))]) -> str:
        return "ok"

    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    usage = Tier.on(tier.core).lookup_limits("org:acme")
    assert (usage["feature:a"].used, usage["feature:b"].used) == (1, 1)


@dataclass
class OrgOfHeader:
    """A callable that cannot be hashed, as dataclasses are."""

    header: str

    def __call__(self, request: Request) -> str | None:
        return request.headers.get(self.header)


def test_an_org_callable_need_not_be_hashable() -> None:
    tier = AsyncTier("memory://", pricing=MODEL, default_plan="plan:free@1")
    handler = requires_feature("feature:a")(lambda request: Response("ok"))
    app = TierMiddleware(Starlette(routes=[Route("/", handler)]), tier=tier, org=OrgOfHeader("x-org"))
    with TestClient(app) as client:
        assert client.get("/", headers={"x-org": "acme"}).status_code == 200
        assert client.get("/").status_code == 401


def test_an_on_loss_that_raises_is_logged_and_the_response_goes_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_loss(reports: object, reason: str) -> None:
        raise ZeroDivisionError("on_loss is broken")

    path = tmp_path / "tier.db"
    options: Any = {"pricing": MODEL, "default_plan": "plan:free@1", "timeout": 0.01, "on_loss": on_loss}
    tier = AsyncTier(f"sqlite:///{path}", outbox=tmp_path / "no folder" / "outbox.db", **options)

    @requires_feature("feature:a")
    async def handler(request: Request) -> Response:
        locker.execute("BEGIN IMMEDIATE")  # from here on nothing can be written
        return Response("done")

    app = TierMiddleware(Starlette(routes=[Route("/", handler)]), tier=tier, org=lambda request: "acme")
    with TestClient(app) as client:
        locker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        with caplog.at_level(logging.ERROR):
            answer = client.get("/")
        locker.execute("ROLLBACK")
        locker.close()
        assert (answer.status_code, answer.text) == (200, "done")
    assert "on_loss is broken" in caplog.text
    assert tier.counts["lost.engine_unavailable"] == 1


# ---- what is still under way when its request has ended -------------------------------------------------------------


@pytest.mark.parametrize("slow_part", ["org", "decorator outside"])
async def test_a_sync_handlers_thread_that_outlives_its_request_holds_nothing(tmp_path: Path, slow_part: str) -> None:
    tier = AsyncTier(f"sqlite:///{tmp_path}/tier.db", pricing=MODEL, default_plan="plan:free@1")
    await tier.open()
    go_on, done = threading.Event(), threading.Event()

    def org(request: Request) -> str:
        if slow_part == "org":
            go_on.wait(10)
        return "acme"

    def outside(handler: Any) -> Any:
        @wraps(handler)
        def waits(*args: Any, **kwargs: Any) -> Any:
            if slow_part != "org":
                go_on.wait(10)
            try:
                return handler(*args, **kwargs)
            finally:
                done.set()

        return waits

    @outside
    @requires_feature("feature:a", org=org)
    def handler(request: Request) -> Response:
        return Response("too late")

    app = TierMiddleware(Starlette(routes=[Route("/", handler)]), tier=tier)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await drive(app)
    go_on.set()
    await asyncio.to_thread(done.wait, 10)
    usage = (await tier.lookup_limits("org:acme"))["feature:a"] if await is_known(tier) else None
    assert usage is None or (usage.used, usage.reserved) == (0, 0)
    await tier.aclose()


async def is_known(tier: AsyncTier) -> bool:
    try:
        return bool(await tier.whois("org:acme"))
    except OrgNotFound:
        return False


async def test_a_take_that_waits_while_its_request_ends_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tier.db"
    tier = AsyncTier(f"sqlite:///{path}", pricing=MODEL, default_plan="plan:free@1")
    await tier.open()
    locker = sqlite3.connect(path, isolation_level=None)
    taking: list[asyncio.Task[None]] = []

    @requires_feature("feature:a")
    async def handler(request: Request) -> Response:
        locker.execute("BEGIN IMMEDIATE")
        taking.append(asyncio.create_task(request.state.tier["feature:a"].take(2)))
        await asyncio.sleep(0)  # it has begun, and waits for the lock
        asyncio.get_running_loop().call_soon(locker.execute, "ROLLBACK")
        return Response("done", 404)  # ends the request at its first message

    app = TierMiddleware(Starlette(routes=[Route("/", handler)]), tier=tier, org=lambda request: "acme")
    assert (await drive(app)).status == 404
    ended = (await asyncio.gather(*taking, return_exceptions=True))[0]
    usage = await tier.lookup_limit("org:acme", "feature:a")
    assert (usage.used, usage.reserved) == (0, 0), ended
    locker.close()
    await tier.aclose()


def test_what_is_gated_after_the_request_is_over_is_an_error_and_holds_nothing() -> None:
    tier = AsyncTier("memory://", pricing=MODEL, default_plan="plan:free@1")
    raised: list[BaseException] = []

    @requires_feature("feature:b")
    async def gated(request: Request) -> None:
        pass

    @requires_feature("feature:a")
    async def handler(request: Request) -> Response:
        async def afterwards() -> None:
            try:
                await gated(request)
            except RuntimeError as error:
                raised.append(error)

        return Response("done", background=BackgroundTask(afterwards))

    app = TierMiddleware(Starlette(routes=[Route("/", handler)]), tier=tier, org=lambda request: "acme")
    with TestClient(app) as client:
        assert client.get("/").text == "done"
    assert "over" in str(raised[0])
    usage = Tier.on(tier.core).lookup_limits("org:acme")
    assert (usage["feature:a"].used, usage["feature:b"].used, usage["feature:b"].reserved) == (1, 0, 0)
