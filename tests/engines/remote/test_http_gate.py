"""A gated application whose engine is a Tier server: what its users see."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx2 as httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tier_servers import MODEL, TierServer

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature
from tier_middleware.clock import monotonic
from tier_middleware.engines.http import engine

ACME = "org:acme"
CALLS = "feature:calls"


@requires_feature(CALLS)
async def call(request: Request) -> Response:
    if request.query_params.get("fail"):
        return Response(status_code=500)
    usage = request.state.tier[CALLS]
    return JSONResponse({"used": usage.used, "limit": usage.limit, "remaining": usage.remaining})


@requires_feature(CALLS, amount=2)
def blocking(request: Request) -> Response:
    return Response()


@requires_feature(CALLS)
async def plain(request: Request) -> Response:
    return Response()


def app_of(tier: AsyncTier) -> Any:
    routes = [Route("/call", call), Route("/blocking", blocking), Route("/plain", plain)]
    app = Starlette(routes=routes)
    app.add_middleware(TierMiddleware, tier=tier, org=lambda request: request.headers.get("org"))
    return app


@asynccontextmanager
async def client_of(tier: AsyncTier) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app_of(tier))
    async with httpx.AsyncClient(transport=transport, base_url="http://app", headers={"org": "acme"}) as client:
        yield client
    await tier.aclose()


@pytest.fixture
async def make(server: TierServer) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def client(**options: Any) -> tuple[AsyncTier, httpx.AsyncClient]:
            tier = AsyncTier(server.url, **options)
            return tier, await stack.enter_async_context(client_of(tier))

        yield client


async def flushed(tier: AsyncTier) -> None:
    assert isinstance(tier.core.engine, engine.HttpEngine)
    assert tier.core.engine.reporter.flush(10)


async def test_what_is_granted_refused_and_counted(make: Callable[..., Any], server: TierServer) -> None:
    tier, client = await make(pricing=MODEL)
    server.subscribe(ACME, "plan:free@1")
    first = await client.get("/call")
    assert first.json() == {"used": 0, "limit": 3, "remaining": 2}
    assert (await client.get("/call", params={"fail": 1})).status_code == 500
    assert (await client.get("/blocking")).status_code == 200
    refused = await client.get("/plain")
    assert refused.status_code == 402
    problem = refused.json()
    assert (problem["code"], problem["used"], problem["limit"]) == ("limit_reached", 3, 3)
    assert problem["upgrade"]["plans"] == ["plan:open@1", "plan:pro@1"]
    assert problem["resets_at"] is not None
    assert (await client.get("/plain", headers={"org": "nobody"})).status_code == 402
    await flushed(tier)
    assert server.counted == {ACME: 3}


async def test_a_warm_route_asks_the_server_nothing(make: Callable[..., Any], server: TierServer) -> None:
    tier, client = await make()
    server.subscribe(ACME, "plan:pro@1")
    await client.get("/plain")
    await flushed(tier)
    before = len(server.requests())
    for _ in range(50):
        assert (await client.get("/plain")).status_code == 200
    await flushed(tier)
    assert {one["path"] for one in server.requests()[before:]} == {"/v1/report"}
    assert server.counted == {ACME: 51}


async def test_the_response_waits_for_the_outbox_and_not_for_the_server(
    make: Callable[..., Any], server: TierServer
) -> None:
    tier, client = await make()
    server.subscribe(ACME, "plan:pro@1")
    await client.get("/plain")
    server.kill()
    begun = monotonic()
    for _ in range(50):
        assert (await client.get("/plain")).status_code == 200
    assert monotonic() - begun < 2
    held = tier.core.engine.outbox.undelivered(ACME)
    assert sum(batch.n for batch in held) + server.counted[ACME] == 51


async def test_a_server_away_from_the_start_opens_or_closes_the_gate_and_usage_is_kept(
    make: Callable[..., Any], server: TierServer
) -> None:
    server.kill()
    opening, through = await make(outbox="a.db", timeout=1.0)
    _, closed = await make(outbox="b.db", timeout=1.0, on_error="deny")
    assert (await through.get("/blocking")).status_code == 200
    assert (await closed.get("/plain")).status_code == 503
    assert opening.counts["fail_open"] == 1
    assert [batch.n for batch in opening.core.engine.outbox.undelivered(ACME)] == [2]


async def test_an_outbox_that_is_full_is_a_loss_that_can_fail_the_response(
    make: Callable[..., Any], server: TierServer
) -> None:
    lost: list[Any] = []
    telling, client = await make(outbox="a.db", on_loss=lambda reports, reason: lost.append((reports[0].n, reason)))
    failing, strict = await make(outbox="b.db", on_loss="fail")
    server.subscribe(ACME, "plan:pro@1")
    for tier, one in ((telling, client), (failing, strict)):
        await one.get("/plain")
        await flushed(tier)
        connection = tier.core.engine.outbox._file._front.connection
        connection.execute("PRAGMA query_only = ON")  # what a file answers that cannot be written any more
    assert (await client.get("/plain")).status_code == 200
    assert lost == [(1, "outbox_unavailable")]
    assert telling.counts["lost.outbox_unavailable"] == 1
    assert (await strict.get("/plain")).status_code == 503


async def test_a_shutdown_delivers_what_is_there(server: TierServer) -> None:
    tier = AsyncTier(server.url)
    server.subscribe(ACME, "plan:pro@1")
    async with client_of(tier) as client:
        for _ in range(5):
            await client.get("/plain")
    assert server.counted == {ACME: 5}
