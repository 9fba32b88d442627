"""One application, told to every face: the same routes, requirements and handlers. `test_contract.py` visits it.

To add a face: write a function that takes `ROUTES`, a client and the middleware's options and returns an ASGI
application (or a WSGI one, with ``transport=wsgi``), and put it into `FACES`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import django_project
import httpx
from counting import guard
from django.contrib.auth.models import AnonymousUser
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path as django_path
from django.utils.decorators import method_decorator
from django.views import View
from fastapi import Depends, FastAPI
from rest_framework.authentication import BaseAuthentication
from rest_framework.views import APIView
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tier_middleware import AsyncTier
from tier_middleware import django as tier_django
from tier_middleware.asgi import Requirement, TierContext, TierMiddleware, requires_feature
from tier_middleware.django.drf import HasFeature
from tier_middleware.fastapi import RequiresFeature

METHODS = ["GET", "HEAD", "POST", "OPTIONS"]


@dataclass
class Reply:
    """What a handler answers, in no framework's words."""

    status: int = 200
    content: bytes | Iterator[bytes] | AsyncIterator[bytes] = b"done"


Handler = Callable[[Mapping[str, str], TierContext], Any]


@dataclass
class Gated:
    """A route: what it requires (arguments of `Requirement`), and its handler."""

    path: str
    needs: tuple[dict[str, Any], ...]
    handler: Handler


def need(feature: str = "feature:convert", amount: Any = None, **more: Any) -> dict[str, Any]:
    return {"feature": feature, **more} if amount is None else {"feature": feature, "amount": amount, **more}


def query_of(request: Any) -> Mapping[str, str]:
    return cast("Mapping[str, str]", getattr(request, "query_params", None) or request.GET)


def n_of(request: Any) -> int:
    return int(query_of(request)["n"])


async def n_of_async(request: Any) -> int:
    return int(query_of(request)["n"])


def status(query: Mapping[str, str], tier: TierContext) -> Reply:
    return Reply(int(query.get("code", "200")), b"" if query.get("code") in ("204", "304") else b"done")


def fail(query: Mapping[str, str], tier: TierContext) -> Reply:
    raise ZeroDivisionError("the handler's own")


def say(query: Mapping[str, str], tier: TierContext) -> Reply:
    """What a handler may say about its usage: ``/say?set=3&add=1``, in this order."""
    usage = tier["feature:convert"]
    for word, n in query.items():
        if word == "skip":
            usage.skip()
        else:
            getattr(usage, word)(int(n))
    return Reply(int(query.get("code", "200")) if "code" in query else 200)


async def take(query: Mapping[str, str], tier: TierContext) -> Reply:
    await tier["feature:convert"].take(int(query["n"]))
    return Reply()


def numbers(query: Mapping[str, str], tier: TierContext) -> Reply:
    usage = tier["feature:convert"]
    return Reply(content=f"{usage.used} {usage.limit} {usage.remaining} {tier.org}".encode())


def whose(query: Mapping[str, str], tier: TierContext) -> Reply:
    """While others run, too: whose it is, and how much was said to be its usage."""
    tier["feature:pages"].set(int(query["n"]))
    for _ in range(5):
        time.sleep(0)  # another thread's turn
    return Reply(content=f"{tier.org} {tier['feature:pages'].n}".encode())


async def whose_async(query: Mapping[str, str], tier: TierContext) -> Reply:
    tier["feature:pages"].set(int(query["n"]))
    for _ in range(5):
        await asyncio.sleep(0)  # another task's turn
    return Reply(content=f"{tier.org} {tier['feature:pages'].n}".encode())


DURING: dict[str, Callable[[], object]] = {}
"""What a test wants to happen while a handler runs, by name."""


def during(query: Mapping[str, str], tier: TierContext) -> Reply:
    DURING[query["do"]]()
    return Reply()


async def stream(query: Mapping[str, str], tier: TierContext) -> Reply:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(int(query["n"])):
            tier["feature:convert"].add(1)
            yield b"chunk"
        if "fail" in query:
            raise ZeroDivisionError("in mid-stream")

    return Reply(content=chunks())


ROUTES = (
    Gated("/status", (need(),), status),
    Gated("/fail", (need(),), fail),
    Gated("/three", (need(amount=3),), status),
    Gated("/n", (need(amount=n_of),), status),
    Gated("/n-async", (need(amount=n_of_async),), status),
    Gated("/zero", (need(amount=0),), status),
    Gated("/say", (need(amount=2),), say),
    Gated("/take", (need(),), take),
    Gated("/numbers", (need(),), numbers),
    Gated("/during", (need(),), during),
    Gated("/stream", (need(),), stream),
    Gated("/whose", (need("feature:pages"),), whose),
    Gated("/whose-async", (need("feature:pages"),), whose_async),
    Gated("/two", (need("feature:top"), need("feature:convert")), status),
    Gated("/twice", (need(amount=2), need(amount=3)), status),
    Gated("/sso", (need("feature:sso"),), status),
    Gated("/audit", (need("feature:audit"),), status),
    Gated("/calls", (need("feature:calls", amount=n_of),), status),
    Gated("/seats", (need("feature:seats", amount=n_of),), status),
    Gated("/seats-unsaid", (need("feature:seats"),), status),
    Gated("/counts-404", (need(report_if=lambda request, status: status == 404),), status),
    Gated("/cap", (need(overage="cap"),), say),
    Gated("/ungated", (), status),
)


def response(reply: Reply) -> Response:
    if isinstance(reply.content, bytes):
        return Response(reply.content, reply.status)
    return StreamingResponse(reply.content, reply.status)


async def asgi(app: Any, method: str, url: str, headers: Mapping[str, str]) -> httpx.Response:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, url, headers=headers)


async def wsgi(app: Any, method: str, url: str, headers: Mapping[str, str]) -> httpx.Response:
    """In a thread of its own, as a server calls it."""

    def visit() -> httpx.Response:
        transport = httpx.WSGITransport(app, raise_app_exceptions=False)
        with httpx.Client(transport=transport, base_url="http://test") as client:
            return client.request(method, url, headers=headers)

    return await asyncio.to_thread(visit)


class Face:
    """How one way to write a gated route is visited. ``is_async``: its handlers are."""

    def __init__(
        self, name: str, build: Callable[..., Any], *, is_async: bool = True, transport: Callable[..., Any] = asgi
    ) -> None:
        self.name = name
        self.build = build
        self.is_async = is_async
        self.visit = transport

    def app(self, tier: AsyncTier, ran: list[str], **options: Any) -> Any:
        handlers = [route for route in ROUTES if self.is_async or not inspect.iscoroutinefunction(route.handler)]
        return self.build(handlers, tier, ran, {"org": guard, **options})


def _decorated(handler: Any, route: Gated) -> Any:
    for arguments in reversed(route.needs):
        handler = requires_feature(**arguments)(handler)
    return handler


def _async(route: Gated, ran: list[str]) -> Any:
    async def handler(request: Request) -> Response:
        ran.append(route.path)
        reply = route.handler(request.query_params, request.state.tier)
        return response(await reply if inspect.isawaitable(reply) else reply)

    return handler


def _sync(route: Gated, ran: list[str]) -> Any:
    def handler(request: Request) -> Response:
        ran.append(route.path)
        return response(route.handler(request.query_params, request.state.tier))

    return handler


def _starlette(kind: Callable[[Gated, list[str]], Any]) -> Any:
    def build(routes: list[Gated], tier: AsyncTier, ran: list[str], options: dict[str, Any]) -> Any:
        app = Starlette(
            routes=[Route(route.path, _decorated(kind(route, ran), route), methods=METHODS) for route in routes]
        )
        app.add_middleware(TierMiddleware, tier=tier, **options)
        return app

    return build


def _endpoints(routes: list[Gated], tier: AsyncTier, ran: list[str], options: dict[str, Any]) -> Any:
    def endpoint(route: Gated) -> type[HTTPEndpoint]:
        plain = _async(route, ran)

        async def method(self: HTTPEndpoint, request: Request) -> Response:
            return await plain(request)

        gated = _decorated(method, route)
        return type("Endpoint", (HTTPEndpoint,), {"get": gated, "head": gated, "post": gated, "options": gated})

    app = Starlette(routes=[Route(route.path, endpoint(route)) for route in routes])
    app.add_middleware(TierMiddleware, tier=tier, **options)
    return app


def _table(routes: list[Gated], tier: AsyncTier, ran: list[str], options: dict[str, Any]) -> Any:
    table = {
        f"{method} {route.path}": [Requirement(**arguments) for arguments in route.needs]
        for route in routes
        for method in ("GET", "POST", "OPTIONS")
        if route.needs
    }
    app = Starlette(routes=[Route(route.path, _async(route, ran), methods=METHODS) for route in routes])
    app.add_middleware(TierMiddleware, tier=tier, routes=table, **options)
    return app


def _fastapi(kind: Callable[[Gated, list[str]], Any]) -> Any:
    def build(routes: list[Gated], tier: AsyncTier, ran: list[str], options: dict[str, Any]) -> Any:
        app = FastAPI()
        for route in routes:
            app.api_route(route.path, methods=METHODS, include_in_schema=False)(_decorated(kind(route, ran), route))
        app.add_middleware(TierMiddleware, tier=tier, **options)
        return app

    return build


def _dependencies(routes: list[Gated], tier: AsyncTier, ran: list[str], options: dict[str, Any]) -> Any:
    def current_org(request: Request) -> Any:
        return guard(request)

    org = options.pop("org")
    app = FastAPI()
    for route in routes:
        gates = [Depends(RequiresFeature(**arguments, org=current_org)) for arguments in route.needs]
        app.api_route(route.path, methods=METHODS, include_in_schema=False, dependencies=gates)(_async(route, ran))
    assert org is guard
    app.add_middleware(TierMiddleware, tier=tier, **options)
    return app


# ---- Django ---------------------------------------------------------------------------------------------------------

DjangoView = Callable[[Gated, list[str]], Any]


def _django_response(reply: Reply) -> HttpResponseBase:
    if isinstance(reply.content, bytes):
        return HttpResponse(reply.content, status=reply.status)
    return StreamingHttpResponse(reply.content, status=reply.status)


def _django_plain(route: Gated, ran: list[str]) -> Any:
    def view(request: HttpRequest) -> HttpResponseBase:
        ran.append(route.path)
        return _django_response(route.handler(request.GET, request.tier))

    return view


def _django_async_plain(route: Gated, ran: list[str]) -> Any:
    async def view(request: HttpRequest) -> HttpResponseBase:
        ran.append(route.path)
        reply = route.handler(request.GET, request.tier)
        return _django_response(await reply if inspect.isawaitable(reply) else reply)

    return view


def _django_decorated(plain: DjangoView) -> DjangoView:
    def view(route: Gated, ran: list[str]) -> Any:
        gated = plain(route, ran)
        for arguments in reversed(route.needs):
            gated = tier_django.requires_feature(**arguments)(gated)
        return gated

    return view


def _django_class(plain: DjangoView, *, has_mixin: bool) -> DjangoView:
    def view(route: Gated, ran: list[str]) -> Any:
        call = plain(route, ran)

        if inspect.iscoroutinefunction(call):

            async def method(self: View, request: HttpRequest) -> Any:
                return await call(request)

        else:

            def method(self: View, request: HttpRequest) -> Any:
                return call(request)

        methods = dict.fromkeys(("get", "head", "post", "options"), method)
        if has_mixin:
            needs = [Requirement(**arguments) for arguments in route.needs]
            bases = (tier_django.RequiresFeatureMixin, View) if needs else (View,)
            return type("Class", bases, {**methods, "feature_required": needs or None}).as_view()
        gates = [tier_django.requires_feature(**arguments) for arguments in route.needs]
        made = type("Class", (View,), methods)
        return (method_decorator(gates, name="dispatch")(made) if gates else made).as_view()

    return view


class HeaderAuthentication(BaseAuthentication):
    """The framework's own guard: nobody is known before it has run, inside of the view."""

    def authenticate(self, request: Any) -> Any:
        return (AnonymousUser(), request.headers["x-org"]) if "x-org" in request.headers else None


def _rest(route: Gated, ran: list[str]) -> Any:
    plain = _django_plain(route, ran)

    def method(self: APIView, request: Any) -> HttpResponseBase:
        return plain(request)

    gates = [HasFeature(**arguments) for arguments in route.needs]
    also = {"permission_classes": gates, "authentication_classes": [HeaderAuthentication]}
    return type("Rest", (APIView,), {"get": method, "post": method, **also}).as_view()


def _django(handler: type, view: DjangoView, *, has_table: bool = False) -> Callable[..., Any]:
    def build(routes: list[Gated], tier: AsyncTier, ran: list[str], options: dict[str, Any]) -> Any:
        table = {route.path: [Requirement(**needs) for needs in route.needs] for route in routes if route.needs}
        given = {
            "TIER": tier,
            "ROUTES": table if has_table else {},
            **{name.upper(): options[name] for name in options},
        }
        patterns = [django_path(route.path.removeprefix("/"), view(route, ran)) for route in routes]
        django_project.change(TIER=given, ROOT_URLCONF=django_project.urls(patterns))
        return handler()

    return build


FACES = (
    Face("starlette", _starlette(_async)),
    Face("starlette-sync", _starlette(_sync), is_async=False),
    Face("starlette-endpoint", _endpoints),
    Face("routes", _table),
    Face("fastapi", _fastapi(_async)),
    Face("fastapi-sync", _fastapi(_sync), is_async=False),
    Face("fastapi-depends", _dependencies),
    Face("django-sync", _django(WSGIHandler, _django_decorated(_django_plain)), is_async=False, transport=wsgi),
    Face("django-async", _django(ASGIHandler, _django_decorated(_django_async_plain))),
    Face("django-sync-on-asgi", _django(ASGIHandler, _django_decorated(_django_plain)), is_async=False),
    Face(
        "django-class", _django(WSGIHandler, _django_class(_django_plain, has_mixin=False)), is_async=False,
        transport=wsgi,
    ),
    Face("django-async-class", _django(ASGIHandler, _django_class(_django_async_plain, has_mixin=False))),
    Face(
        "django-mixin", _django(WSGIHandler, _django_class(_django_plain, has_mixin=True)), is_async=False,
        transport=wsgi,
    ),
    Face("django-async-mixin", _django(ASGIHandler, _django_class(_django_async_plain, has_mixin=True))),
    Face("django-routes", _django(WSGIHandler, _django_plain, has_table=True), is_async=False, transport=wsgi),
    Face("rest-framework", _django(WSGIHandler, _rest), is_async=False, transport=wsgi),
    Face("rest-framework-on-asgi", _django(ASGIHandler, _rest), is_async=False),
    Face("django-async-routes", _django(ASGIHandler, _django_async_plain, has_table=True)),
)  # fmt: skip
