"""One application, told to every face: the same routes, requirements and handlers. `test_contract.py` visits it.

To add a face: write a function that takes `ROUTES`, a client and the middleware's options and returns an ASGI
application, and put it into `FACES`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from counting import guard
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tier_middleware import AsyncTier
from tier_middleware.asgi import Requirement, TierContext, TierMiddleware, requires_feature
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


def n_of(request: Any) -> int:
    return int(request.query_params["n"])


async def n_of_async(request: Any) -> int:
    return int(request.query_params["n"])


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
    Gated("/stream", (need(),), stream),
    Gated("/two", (need("feature:top"), need("feature:convert")), status),
    Gated("/twice", (need(amount=2), need(amount=3)), status),
    Gated("/sso", (need("feature:sso"),), status),
    Gated("/audit", (need("feature:audit"),), status),
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


class Face:
    """How one way to write a gated route is visited. ``is_async``: its handlers are."""

    def __init__(self, name: str, build: Callable[..., Any], *, is_async: bool = True) -> None:
        self.name = name
        self.build = build
        self.is_async = is_async

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


FACES = (
    Face("starlette", _starlette(_async)),
    Face("starlette-sync", _starlette(_sync), is_async=False),
    Face("starlette-endpoint", _endpoints),
    Face("routes", _table),
    Face("fastapi", _fastapi(_async)),
    Face("fastapi-sync", _fastapi(_sync), is_async=False),
    Face("fastapi-depends", _dependencies),
)
