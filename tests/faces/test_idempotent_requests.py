"""A request that is sent again with its Idempotency-Key counts once, and its handler runs each time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from counting import guard, used
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path
from django_project import Site
from fastapi import Depends, FastAPI, Request
from rest_framework.response import Response as RestResponse
from rest_framework.views import APIView
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from test_asgi_cancellation import locked

from tier_middleware import AsyncTier, ConfigurationError
from tier_middleware.asgi import Requirement, TierMiddleware, requires_feature
from tier_middleware.django import requires_feature as requires_feature_in_django
from tier_middleware.django.drf import HasFeature
from tier_middleware.fastapi import RequiresFeature

ACME = "org:acme"
ran: list[str] = []


async def handler(request: Any) -> Response:
    """Does what the query says."""
    ran.append(request.url.path)
    usage = request.state.tier["feature:convert"]
    asked = request.query_params
    if "set" in asked:
        usage.set(int(asked["set"]))
    if "take" in asked:
        await usage.take(int(asked["take"]))
    return PlainTextResponse("done", int(asked.get("code", "200")))


def decorated(tier: AsyncTier) -> Any:
    gated = requires_feature("feature:convert", 4, idempotency="header")(handler)
    app = Starlette(routes=[Route("/", gated, methods=["GET", "POST"]), Route("/other", gated, methods=["POST"])])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    return app


def of_middleware(tier: AsyncTier) -> Any:
    gated = requires_feature("feature:convert", 4)(handler)
    app = Starlette(routes=[Route("/", gated, methods=["GET", "POST"]), Route("/other", gated, methods=["POST"])])
    app.add_middleware(TierMiddleware, tier=tier, org=guard, idempotency="header")
    return app


def table(tier: AsyncTier) -> Any:
    app = Starlette(routes=[Route("/", handler, methods=["GET", "POST"]), Route("/other", handler, methods=["POST"])])
    need = Requirement("feature:convert", 4, idempotency="header")
    routes = {"POST /": need, "GET /": need, "POST /other": need}
    app.add_middleware(TierMiddleware, tier=tier, org=guard, routes=routes)
    return app


def dependency(tier: AsyncTier) -> Any:
    def org(request: Request) -> Any:
        return guard(request)

    app = FastAPI()
    gate = Depends(RequiresFeature("feature:convert", 4, org=org, idempotency="header"))
    for url in ("/", "/other"):

        @app.api_route(url, methods=["GET", "POST"], dependencies=[gate])
        async def route(request: Request) -> Any:
            return await handler(request)

    app.add_middleware(TierMiddleware, tier=tier)
    return app


@pytest.fixture(params=[decorated, of_middleware, table, dependency], ids=lambda face: face.__name__)
async def client(request: pytest.FixtureRequest, any_tier: AsyncTier) -> AsyncIterator[httpx.AsyncClient]:
    ran.clear()
    transport = httpx.ASGITransport(request.param(any_tier), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers={"x-org": "acme"}) as client:
        yield client


def key(value: str) -> dict[str, str]:
    return {"idempotency-key": value}


async def test_a_request_that_is_sent_again_counts_once_and_runs_each_time(
    client: httpx.AsyncClient, any_tier: AsyncTier
) -> None:
    for _ in range(5):  # 5 * 4 would not fit
        assert (await client.post("/", headers=key('"k-1"'))).status_code == 200
    assert ran == ["/"] * 5
    assert await used(any_tier) == (4, 0)
    assert any_tier.counts == {}
    assert len(await any_tier.history(ACME, "feature:convert")) == 1


async def test_bare_and_quoted_are_the_same_key(client: httpx.AsyncClient, any_tier: AsyncTier) -> None:
    await client.post("/", headers=key("k-1"))
    await client.post("/", headers=key('"k-1"'))
    assert await used(any_tier) == (4, 0)


async def test_without_a_key_or_with_another_it_counts(client: httpx.AsyncClient, any_tier: AsyncTier) -> None:
    await client.post("/", headers=key("k-1"))
    await client.post("/")
    assert await used(any_tier) == (8, 0)
    assert (await client.post("/", headers=key("k-2"))).status_code == 402
    assert (await client.post("/", headers=key("k-1"))).status_code == 200  # it has paid


async def test_it_is_scoped_to_org_and_route(client: httpx.AsyncClient, any_tier: AsyncTier) -> None:
    await client.post("/", headers=key("k"))
    await client.post("/?set=3", headers=key("k"))  # a retry may have another query
    assert await used(any_tier) == (4, 0)
    await client.post("/", headers={**key("k"), "x-org": "globex"})
    assert await used(any_tier, org="org:globex") == (4, 0)
    await client.post("/other?set=2", headers=key("k"))
    await client.get("/?set=1", headers=key("k"))
    assert await used(any_tier) == (7, 0)


async def test_a_failure_leaves_the_key_unused(client: httpx.AsyncClient, any_tier: AsyncTier) -> None:
    assert (await client.post("/?code=500", headers=key("k"))).status_code == 500
    assert await used(any_tier) == (0, 0)
    for _ in range(2):
        assert (await client.post("/", headers=key("k"))).status_code == 200
    assert await used(any_tier) == (4, 0)
    assert (await client.post("/?code=500", headers=key("k"))).status_code == 500
    assert await used(any_tier) == (4, 0)


async def test_what_the_handler_says_is_of_the_first_try(client: httpx.AsyncClient, any_tier: AsyncTier) -> None:
    await client.post("/?set=7", headers=key("k"))
    await client.post("/?set=2", headers=key("k"))
    assert await used(any_tier) == (7, 0)


async def test_what_was_taken_counts_once_too(client: httpx.AsyncClient, any_tier: AsyncTier) -> None:
    await any_tier.subscribe(ACME, "plan:free@1")
    for _ in range(3):
        assert (await client.post("/?take=6", headers=key("k"))).status_code == 200
        assert await used(any_tier) == (6, 0)
    assert (await client.post("/?take=7", headers=key("l"))).status_code == 500  # LimitReached


async def test_tries_at_once_count_once(client: httpx.AsyncClient, any_tier: AsyncTier) -> None:
    await any_tier.subscribe(ACME, "plan:pro@1")
    answers = await asyncio.gather(*[client.post("/", headers=key("k")) for _ in range(20)])
    assert {answer.status_code for answer in answers} == {200}
    assert await used(any_tier) == (4, 0)


@pytest.mark.parametrize("value", ['"open', "a b", "x" * 256, "", '"a", "b"'])
async def test_a_bad_key_is_a_400_and_runs_nothing(client: httpx.AsyncClient, any_tier: AsyncTier, value: str) -> None:
    answer = await client.post("/", headers=key(value))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["title"]) == ("invalid_idempotency_key", "Bad Idempotency-Key")
    assert problem["detail"].startswith("The header Idempotency-Key ")
    assert ran == []
    assert await used(any_tier) == (0, 0)


async def test_two_headers_are_a_bad_key(client: httpx.AsyncClient) -> None:
    answer = await client.post("/", headers=[("idempotency-key", "a"), ("idempotency-key", "b")])
    assert answer.status_code == 400


async def test_it_is_off_by_default_and_can_be_switched_off(tier: AsyncTier) -> None:
    for options, own in (({}, None), ({"idempotency": "header"}, "off"), ({"idempotency": "off"}, None)):
        app = Starlette(routes=[Route("/", requires_feature("feature:convert", idempotency=own)(handler))])
        app.add_middleware(TierMiddleware, tier=tier, org=guard, **options)
        before, _ = await used(tier)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for value in ("k", "k", "not a key"):
                assert (await client.get("/", headers={"x-org": "acme", **key(value)})).status_code == 200
        assert await used(tier) == (before + 3, 0)


@pytest.mark.parametrize("value", ["headers", True, 1])
def test_a_bad_value_is_named(tier: AsyncTier, value: Any) -> None:
    for make in (
        lambda: requires_feature("feature:convert", idempotency=value),
        lambda: requires_feature_in_django("feature:convert", idempotency=value),
        lambda: RequiresFeature("feature:convert", idempotency=value),
        lambda: HasFeature("feature:convert", idempotency=value),
        lambda: TierMiddleware(handler, tier=tier, idempotency=value),
    ):
        with pytest.raises(ConfigurationError) as raised:
            make()
        assert raised.value.path == "idempotency"
        assert repr(value) in raised.value.message


async def test_of_two_features_each_counts_once(tier: AsyncTier) -> None:
    gates = [requires_feature("feature:pages", 5), requires_feature("feature:convert", 4, idempotency="header")]
    gated = gates[0](gates[1](handler))
    app = Starlette(routes=[Route("/", gated)])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for _ in range(3):
            assert (await client.get("/", headers={"x-org": "acme", **key("k")})).status_code == 200
    assert (await used(tier), await used(tier, "feature:pages")) == ((4, 0), (15, 0))


async def test_a_stream_with_a_key_is_counted_at_its_end_and_once(any_tier: AsyncTier) -> None:
    """Were it counted on the way, a killed process and a second try would count it twice."""
    seen: list[tuple[int, int]] = []

    async def streams(request: Any) -> Response:
        usage = request.state.tier["feature:convert"]

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                usage.add(1)
                yield b"x"
                any_tier.core.tend()
                seen.append(await used(any_tier))

        return StreamingResponse(parts())

    app = Starlette(routes=[Route("/", requires_feature("feature:convert", 2, idempotency="header")(streams))])
    app.add_middleware(TierMiddleware, tier=any_tier, org=guard)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for _ in range(2):
            assert (await client.get("/", headers={"x-org": "acme", **key("k")})).content == b"xxx"
    assert seen == [(0, 2)] * 3 + [(3, 0)] * 3
    assert await used(any_tier) == (3, 0)


async def test_while_the_engine_is_away_tries_count_once_as_well(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.02) as tier:
        await tier.subscribe(ACME, "plan:free@1")
        lock = locked(tmp_path / "tier.db")

        async def unlocks(request: Any) -> Response:
            if "x-unlock" in request.headers:
                lock.__exit__(None, None, None)
            request.state.tier["feature:convert"].set(int(request.query_params["n"]))
            return PlainTextResponse("done")

        app = Starlette(routes=[Route("/", requires_feature("feature:convert", idempotency="header")(unlocks))])
        app.add_middleware(TierMiddleware, tier=tier, org=guard)
        transport, headers = httpx.ASGITransport(app), {"x-org": "acme", **key("k")}
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
            lock.__enter__()
            assert (await client.get("/?n=3", headers={"x-unlock": "1"})).status_code == 200  # reported
            assert await used(tier) == (3, 0)
            assert (await client.get("/?n=3")).status_code == 200
            lock = locked(tmp_path / "tier.db")
            lock.__enter__()
            assert (await client.get("/?n=5", headers={"x-unlock": "1"})).status_code == 200
        assert await used(tier) == (3, 0)
        assert "lost.invalid_request" not in tier.counts


# ---- Django ---------------------------------------------------------------------------------------------------------


@requires_feature_in_django("feature:convert", 4, idempotency="header")
def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse("done", status=int(request.GET.get("code", "200")))


@requires_feature_in_django("feature:convert", 4)
async def aview(request: HttpRequest) -> HttpResponse:
    return HttpResponse("done")


@requires_feature_in_django("feature:convert", 4, idempotency="header")
def streaming(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(parts())


def parts() -> Iterator[bytes]:
    yield b"x"


class Rest(APIView):
    permission_classes = (HasFeature("feature:convert", 4, idempotency="header"),)

    def post(self, request: Any) -> RestResponse:
        return RestResponse({})


@pytest.mark.parametrize("url", ["view/", "streaming/", "rest/"])
def test_in_django(site: Site, url: str) -> None:
    site.serve(also=[path("view/", view), path("streaming/", streaming), path("rest/", Rest.as_view())])
    for value, n in (("k", 4), ("k", 4), ("k", 4), ("l", 8), ("k", 8)):
        answer = site.get(f"/{url}", "POST", **key(value))
        assert answer.status_code == 200
        assert b"".join(answer.streaming_content if answer.streaming else [answer.content])
        answer.close()
        assert site.used() == (n, 0)
    assert site.get(f"/{url}", "POST", **key("m")).status_code == 402
    bad = site.get(f"/{url}", "POST", **key("a b"))
    assert (bad.status_code, json.loads(bad.content)["code"]) == (400, "invalid_idempotency_key")


async def test_in_an_async_view_by_the_setting(site: Site) -> None:
    site.serve(aview, IDEMPOTENCY="header")
    for _ in range(3):
        assert (await site.aget("/", "POST", **key("k"))).status_code == 200
    assert site.used() == (4, 0)
