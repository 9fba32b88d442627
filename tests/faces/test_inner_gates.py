"""A handler that calls another gated one and is refused there: what it makes of the no decides what is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgi_driver import ORG, Sent, drive
from counting import guard, used
from django.http import HttpResponse
from django_project import Site
from fastapi import FastAPI
from rest_framework.exceptions import APIException
from rest_framework.views import APIView
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tier_middleware import AsyncTier
from tier_middleware import django as tier_django
from tier_middleware.asgi import TierMiddleware, requires_feature
from tier_middleware.django.drf import HasFeature

CASES = pytest.mark.parametrize(
    ("makes", "status", "units"),
    [
        ("its own", 200, 1),
        ("the refusal", 303, 0),
        ("the refusal of the application", 200, 0),
        ("its own for the application's", 200, 1),
        ("a failure", 404, 0),
    ],
)
OURS = PlainTextResponse("upgrade!")  # one for all requests


async def as_it_comes(request: Request, call_next: Any) -> Any:
    return await call_next(request)


def starlette(handler: Any) -> Any:
    return Starlette(routes=[Route("/{makes}", handler)])


def behind_another_middleware(handler: Any) -> Any:
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=as_it_comes)]
    return Starlette(routes=[Route("/{makes}", handler)], middleware=middleware)


def fastapi(handler: Any) -> Any:
    app = FastAPI()
    app.get("/{makes}")(handler)
    return app


async def no_application(scope: Any, receive: Any, send: Any) -> None:
    """Any ASGI application may be the answer."""
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"upgrade!"})


def asgi_answer(makes: str, refused: Any, has_stream: bool) -> Any:
    if makes.startswith("its own"):
        return StreamingResponse(chunks()) if has_stream else PlainTextResponse("plain")
    return PlainTextResponse("nothing here", 404) if makes == "a failure" else refused


async def chunks() -> Any:
    yield b"plain"


@CASES
@pytest.mark.parametrize(
    ("app", "own", "has_stream"),
    [
        (starlette, OURS, False),
        (starlette, no_application, True),
        (behind_another_middleware, OURS, False),
        (fastapi, OURS, True),
    ],
)
@pytest.mark.parametrize("is_async", [True, False])
async def test_asgi(
    tier: AsyncTier, app: Any, own: Any, has_stream: bool, is_async: bool, makes: str, status: int, units: int
) -> None:
    def on_refused(request: Any, refusal: Any) -> Any:
        return own if "application" in makes else None

    audit, convert = requires_feature("feature:audit", on_refused=on_refused), requires_feature("feature:convert")

    @audit
    async def apremium(request: Request) -> Response:
        raise AssertionError("ran")

    @audit
    def premium(request: Request) -> Response:
        raise AssertionError("ran")

    @convert
    async def apage(request: Request) -> Any:
        return asgi_answer(makes, await apremium(request), has_stream)

    @convert
    def page(request: Request) -> Any:
        return asgi_answer(makes, premium(request), has_stream)

    inner = app(apage if is_async else page)
    sent: Sent = await drive(
        TierMiddleware(inner, tier=tier, org=guard, upgrade_url="/pricing"),
        path="/x",
        headers=[ORG, (b"accept", b"text/html")],
    )
    assert sent.status == status
    assert sent.header(b"tier-refused") is None
    assert await used(tier) == (units, 0)
    assert OURS.raw_headers == PlainTextResponse("upgrade!").raw_headers


def django_answer(makes: str, refused: Any) -> Any:
    if makes.startswith("its own"):
        return HttpResponse("plain")
    return HttpResponse("nothing here", status=404) if makes == "a failure" else refused


@CASES
@pytest.mark.parametrize("is_async", [True, False])
async def test_django(site: Site, is_async: bool, makes: str, status: int, units: int) -> None:
    def on_refused(request: Any, refusal: Any) -> Any:
        return HttpResponse("upgrade!") if "application" in makes else None

    audit = tier_django.requires_feature("feature:audit", on_refused=on_refused)
    convert = tier_django.requires_feature("feature:convert")

    @audit
    async def apremium(request: Any) -> HttpResponse:
        raise AssertionError("ran")

    @audit
    def premium(request: Any) -> HttpResponse:
        raise AssertionError("ran")

    @convert
    async def apage(request: Any) -> Any:
        return django_answer(makes, await apremium(request))

    @convert
    def page(request: Any) -> Any:
        return django_answer(makes, premium(request))

    site.serve(apage if is_async else page, UPGRADE_URL="/pricing/")
    assert (await site.aget(accept="text/html")).status_code == status
    assert site.used() == (units, 0)
    answer = await asyncio.to_thread(site.get, accept="text/html")
    assert answer.status_code == status
    assert site.used() == (2 * units, 0)


def test_rest_framework(site: Site) -> None:
    """A view that asks a permission to know what to show, or goes on where it may not."""
    Audit = HasFeature("feature:audit")

    class Asks(APIView):
        permission_classes = (HasFeature("feature:convert"),)

        def get(self, request: Any) -> HttpResponse:
            return HttpResponse("more" if Audit().has_permission(request, self) else "plain")

    class GoesOn(Asks):
        def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
            super().initial(request, *args, **kwargs)
            try:
                if not Audit().has_permission(request, self):
                    self.permission_denied(request)
            except APIException:
                self.is_plain = True

    for count, view in enumerate((Asks, GoesOn), 1):
        site.serve(view.as_view())
        answer = site.get()
        assert (answer.status_code, answer.content) == (200, b"plain")
        assert site.used() == (count, 0)
