"""Whose request it is: found once, never mixed up, whatever runs at the same time."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any
from uuid import UUID

import pytest
from asgi_driver import drive
from counting import guard, used
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tier_middleware import NO_ORG, UNMETERED, AsyncTier, ConfigurationError, InvalidRequest
from tier_middleware.asgi import Requirement, TierMiddleware, requires_feature
from tier_middleware.fastapi import RequiresFeature

ID = UUID("12345678-1234-5678-1234-567812345678")


async def name(request: Request) -> Response:
    return PlainTextResponse(str(request.state.tier.org))


def app_for(org: Any, tier: AsyncTier, handler: Any = name) -> TierMiddleware:
    app = Starlette(routes=[Route("/", requires_feature("feature:convert")(handler))])
    return TierMiddleware(app, tier=tier, org=org)


def answering(value: Any, is_async: bool) -> Any:
    async def asynchronous(request: Request) -> Any:
        await asyncio.sleep(0)
        return value

    return asynchronous if is_async else lambda request: value


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("handler", [name, lambda request: PlainTextResponse(str(request.state.tier.org))])
@pytest.mark.parametrize(
    ("value", "org"),
    [
        ("acme", "org:acme"),
        ("org:acme", "org:acme"),
        (7, "org:7"),
        (0, "org:0"),
        (ID, f"org:{ID}"),
        ("a b/ü", "org:a b/ü"),
        ("7", "org:7"),
    ],
)
async def test_an_id_gets_the_prefix(tier: AsyncTier, value: Any, org: str, is_async: bool, handler: Any) -> None:
    sent = await drive(app_for(answering(value, is_async), tier, handler))
    assert sent.body.decode() == org
    assert await used(tier, org=org) == (1, 0)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("value", ["", "org:", True, 1.5, b"acme", ["acme"], {"id": 1}, object(), "x" * 2000, "\ud800"])
async def test_what_is_no_id_is_an_error(tier: AsyncTier, value: Any, is_async: bool) -> None:
    with pytest.raises(InvalidRequest, match="org"):
        await drive(app_for(answering(value, is_async), tier))


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(("value", "status"), [(None, 401), (NO_ORG, 403), (UNMETERED, 200)])
async def test_no_org(tier: AsyncTier, value: Any, status: int, is_async: bool) -> None:
    sent = await drive(app_for(answering(value, is_async), tier))
    assert sent.status == status


async def test_the_unmetered_see_usages_that_count_nothing(tier: AsyncTier) -> None:
    async def handler(request: Request) -> Response:
        usage = request.state.tier["feature:convert"]
        usage.set(5)
        await usage.take(100)
        assert (usage.used, usage.limit, usage.remaining) == (0, None, None)
        assert request.state.tier.answers["feature:convert"].ok
        return Response("x")

    assert (await drive(app_for(lambda request: UNMETERED, tier, handler))).status == 200
    assert tier.counts == {}


class Counted:
    """An org callable that counts its calls."""

    def __init__(self, value: Any = "acme") -> None:
        self.calls = 0
        self.value = value

    def __call__(self, request: Request) -> Any:
        self.calls += 1
        return self.value


@pytest.mark.parametrize("value", ["acme", 7, "awaitable"])
async def test_it_is_asked_once_per_request(tier: AsyncTier, value: Any) -> None:
    async def later() -> str:
        return "acme"

    org = Counted(value)
    if value == "awaitable":
        org = Counted()
        plain = org.__call__

        def asked(request: Request) -> Any:
            plain(request)
            return later()

        given: Any = asked
    else:
        given = org
    second = requires_feature("feature:pages")(name)
    both = requires_feature("feature:convert")(second)

    async def apart(request: Request) -> Response:
        await both(request)
        return await requires_feature("feature:top")(name)(request)

    app = TierMiddleware(
        Starlette(routes=[Route("/", apart)]), tier=tier, org=given, routes={"GET /": ["feature:calls", "feature:sso"]}
    )
    assert (await drive(app)).status == 200
    assert org.calls == 1


async def test_an_ungated_request_is_not_asked(tier: AsyncTier) -> None:
    org = Counted()
    app = TierMiddleware(Response("x"), tier=tier, org=org, routes={"POST /": "feature:convert"})
    await drive(app)
    await drive(app, "OPTIONS")
    assert org.calls == 0


async def test_a_requirements_own_org_wins(tier: AsyncTier) -> None:
    own = requires_feature("feature:convert", org=lambda request: "own")(name)
    sent = await drive(TierMiddleware(Starlette(routes=[Route("/", own)]), tier=tier, org=guard))
    assert sent.body == b"org:own"


@pytest.mark.parametrize("second", ["other", None, UNMETERED, NO_ORG])
async def test_different_orgs_in_one_request_are_an_error(tier: AsyncTier, second: Any) -> None:
    needs = [Requirement("feature:convert"), Requirement("feature:pages", org=lambda request: second)]
    with pytest.raises(ConfigurationError, match="must agree on its org, got 'org:acme'"):
        await drive(TierMiddleware(Response("x"), tier=tier, org=guard, routes={"GET /": needs}))
    assert await used(tier) == (0, 0)


async def test_different_orgs_in_two_gates_are_too(tier: AsyncTier) -> None:
    other = requires_feature("feature:convert", org=lambda request: "other")(name)
    app = Starlette(routes=[Route("/", other)])
    with pytest.raises(ConfigurationError, match="must agree"):
        await drive(TierMiddleware(app, tier=tier, org=guard, routes={"GET /": "feature:convert"}))
    assert await used(tier) == (0, 0)
    assert await used(tier, org="org:other") == (0, 0)


async def test_two_callables_that_agree_are_fine(tier: AsyncTier) -> None:
    needs = [Requirement("feature:convert"), Requirement("feature:pages", org=lambda request: "org:acme")]
    assert (await drive(TierMiddleware(Response("x"), tier=tier, org=guard, routes={"GET /": needs}))).status == 200


async def test_what_the_callable_raises_is_the_applications_own(tier: AsyncTier) -> None:
    class Own(Exception):
        pass

    error = Own()

    def fails(request: Request) -> str:
        raise error

    with pytest.raises(Own) as raised:
        await drive(app_for(fails, tier))
    assert raised.value is error


async def test_no_header_of_the_client_is_trusted(tier: AsyncTier) -> None:
    headers = [(name, b"org:victim") for name in (b"x-org", b"x-tier-org", b"tier-org", b"org", b"authorization")]
    assert (await drive(app_for(lambda request: None, tier), headers=headers)).status == 401
    assert await used(tier, org="org:victim") == (0, 0)


# ---- many at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False], ids=["tasks", "threads"])
async def test_200_requests_and_a_limit_of_50(any_tier: AsyncTier, is_async: bool) -> None:
    await any_tier.push({"plans": {"plan:fifty@1": {"features": {"feature:convert": {"tiers": [{"upto": 50}]}}}}})
    await any_tier.subscribe("org:acme", "plan:fifty@1")
    ran: Counter[str] = Counter()

    def work(request: Request) -> Response:
        ran["all"] += 1
        return Response("x", 500 if request.headers.get("fail") else 200)

    async def work_async(request: Request) -> Response:
        await asyncio.sleep(0)
        return work(request)

    app = app_for(guard, any_tier, work_async if is_async else work)
    sent = await asyncio.gather(*[drive(app) for _ in range(200)])
    assert Counter(one.status for one in sent) == {200: 50, 402: 150}
    assert ran["all"] == 50
    assert await used(any_tier) == (50, 0)
    assert any_tier.counts == {}


async def test_200_requests_of_which_a_third_fail(any_tier: AsyncTier) -> None:
    await any_tier.push({"plans": {"plan:fifty@1": {"features": {"feature:convert": {"tiers": [{"upto": 50}]}}}}})
    await any_tier.subscribe("org:acme", "plan:fifty@1")

    async def work(request: Request) -> Response:
        await asyncio.sleep(0)
        return Response("x", int(request.query_params["status"]))

    app = app_for(guard, any_tier, work)
    sent = await asyncio.gather(*[drive(app, query=f"status={500 if i % 3 == 0 else 200}") for i in range(200)])
    codes = Counter(one.status for one in sent)
    assert codes[200] <= 50
    assert await used(any_tier) == (codes[200], 0)


@pytest.mark.parametrize("is_async", [True, False], ids=["tasks", "threads"])
@pytest.mark.parametrize("face", ["starlette", "fastapi"])
async def test_a_hundred_orgs_are_never_mixed_up(any_tier: AsyncTier, is_async: bool, face: str) -> None:
    """Each request sees its own org before and after others have run, and each org is counted its own units."""
    barrier = threading.Semaphore(0)

    async def handler(request: Request) -> Response:
        mine = request.headers["x-org"]
        usage = request.state.tier["feature:pages"]
        usage.set(int(mine))
        for _ in range(3):
            await asyncio.sleep(0)
            assert request.state.tier.org == f"org:{mine}"
            assert usage.n == int(mine)
        return PlainTextResponse(request.state.tier.org)

    def in_thread(request: Request) -> Response:
        mine = request.headers["x-org"]
        request.state.tier["feature:pages"].set(int(mine))
        barrier.release()
        barrier.acquire(timeout=0.01)
        assert request.state.tier.org == f"org:{mine}"
        return PlainTextResponse(request.state.tier.org)

    plain: Any = handler if is_async else in_thread
    app: Any
    if face == "starlette":
        app = Starlette(routes=[Route("/", requires_feature("feature:pages")(plain))])
    else:
        app = FastAPI()
        gate = Depends(RequiresFeature("feature:pages", org=of_request))
        app.get("/", dependencies=[gate], response_class=PlainTextResponse)(plain)
    app = TierMiddleware(app, tier=any_tier, org=guard)
    sent = await asyncio.gather(*[drive(app, headers=[(b"x-org", str(i % 100).encode())]) for i in range(200)])
    assert [one.body.decode() for one in sent] == [f"org:{i % 100}" for i in range(200)]
    for i in (0, 1, 2, 17, 50):
        assert await used(any_tier, "feature:pages", f"org:{i}") == (2 * i, 0)


def of_request(request: Request) -> Any:
    return guard(request)
