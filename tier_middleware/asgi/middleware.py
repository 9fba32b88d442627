"""`TierMiddleware`: gives every request its context, gates the routes of its table, and settles at the end."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from starlette.requests import HTTPConnection, Request
from starlette.routing import compile_path
from starlette.websockets import WebSocket

import tier_middleware

from .. import drive
from ..client import AsyncTier
from ..context import RefusedRequest, TierContext
from ..errors import ConfigurationError, EngineUnavailable, InvalidRequest, TierError
from ..gate import admission
from ..gate_options import GateOptions
from ..requirement import (
    Idempotency,
    Needs,
    OnDisconnect,
    OnRefused,
    OrgOf,
    Requirement,
    checked_method,
    requirements_of,
)
from ..settings import OnError
from .exchange import Exchange
from .responses import ASGIApp, Message, Receive, Scope, Send, response_for
from .sockets import SocketExchange, refuse

__all__ = ["TierMiddleware"]

logger: Final = logging.getLogger("tier_middleware")

METHOD: Final = re.compile(r"[A-Z]+")
SOCKET: Final = "WEBSOCKET"
"""The method of WebSockets in ``routes``."""


class GatedRoute(NamedTuple):
    """One line of ``routes=``."""

    method: str
    path: re.Pattern[str]
    requirements: tuple[Requirement, ...]


class TierMiddleware:
    """ASGI middleware: put it inside of what authenticates, outside of the routes.

    ``tier`` is an `AsyncTier` (default: the process-wide one), opened at the lifespan's startup or at first use and
    closed at shutdown. ``org`` is a callable of the request that answers whose request it is. ``upgrade_url`` is
    where browsers are sent and clients are pointed to: a path or an http(s) URL. ``routes`` gates handlers that
    cannot be decorated: ``{"POST /convert/{id}": "feature:convert"}``, with `Requirement` or lists as values, and with
    ``WEBSOCKET`` as the method of those; it checks before the application runs. ``on_refused``, ``on_error``,
    ``on_disconnect`` and ``idempotency`` (see `requires_feature`) hold for every route that has none of its own. Raises
    `ConfigurationError`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tier: AsyncTier | None = None,
        org: OrgOf | None = None,
        upgrade_url: str | None = None,
        routes: Mapping[str, Needs] | None = None,
        on_refused: OnRefused | None = None,
        on_error: OnError | None = None,
        on_disconnect: OnDisconnect | None = None,
        idempotency: Idempotency | None = None,
    ) -> None:
        self.app = app
        self.tier = tier_middleware.tier if tier is None else tier
        if not isinstance(self.tier, AsyncTier):
            raise ConfigurationError(f"tier: must be an AsyncTier, got {self.tier!r}", path="tier")
        self.options = GateOptions(org, upgrade_url, on_refused, on_error, on_disconnect, idempotency)
        if not isinstance(routes, Mapping | None):
            raise ConfigurationError(f"routes: must be a dict of patterns, got {routes!r}", path="routes")
        self.routes = tuple(_gated_route(pattern, needs) for pattern, needs in (routes or {}).items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            others = {"lifespan": self._lifespan, "websocket": self._socket}
            await others.get(scope["type"], self.app)(scope, receive, send)
            return
        context = TierContext(self.tier.core, self.options)
        state = scope.setdefault("state", {})
        outer = state.get("tier")  # of a TierMiddleware around a mounted application that has its own
        state["tier"] = context
        exchange = Exchange(context, scope, send)
        try:
            refused = await self._gate(context, scope) if self.routes else None
            if refused is None:
                await self.app(scope, receive, exchange.send)
            else:
                await response_for(refused, context.request)(scope, receive, send)
        except BaseException as error:
            context.is_over = True  # first: a sync handler's thread looks at it once it holds something
            if not context.is_idle and not exchange.is_settled:
                await exchange.failed(error)
            raise
        else:
            if not context.is_idle and not exchange.is_settled:
                await exchange.returned()
        finally:
            context.is_over = True
            context.request = None  # a cycle (the request's scope has the context) would wait for the collector
            if outer is not None:
                state["tier"] = outer

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = TierContext(self.tier.core, self.options, is_socket=True)
        state = scope.setdefault("state", {})
        outer, state["tier"] = state.get("tier"), context
        exchange = SocketExchange(context, scope, receive, send)
        try:
            refused = await self._gate(context, scope) if self.routes else None
            if refused is None:
                await self.app(scope, exchange.receive, exchange.send)
            else:
                await refuse(refused, WebSocket(scope, receive, send))
        except BaseException as error:
            context.is_over = True
            await exchange.failed(error)
            raise
        else:
            await exchange.returned()
        finally:
            context.is_over = True
            context.request = None
            if outer is not None:
                state["tier"] = outer

    async def _gate(self, context: TierContext, scope: Scope) -> RefusedRequest | None:
        method, path = scope.get("method", SOCKET), _path(scope)
        found: list[Requirement] = []
        for route in self.routes:
            if route.method in (method, "GET" if method == "HEAD" else method) and route.path.match(path):
                found.extend(route.requirements)
        if not found:
            return None
        context.request = HTTPConnection(scope) if context.is_socket else Request(scope)
        return await self.tier.run(admission(context, found, {}))

    # ---- lifespan ---------------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open before the application starts; close after it has shut down, and what it holds is settled or has had
        its time. What cannot be opened fails the start.
        """
        message = await receive()
        try:
            await self.tier.open()
        except TierError as error:
            if not isinstance(error, EngineUnavailable):
                logger.error("tier: cannot start: %s", error)
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            logger.error("tier: the engine is away at start and will be tried again at first use: %s", error)
        self._warn_of_unknown(scope)
        replayed = [message]

        async def receive_again() -> Message:
            return replayed.pop() if replayed else await receive()

        async def send_after_close(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed", "lifespan.startup.failed"):
                try:  # a server that has cancelled its requests does not wait for them
                    await drive.awaited(lambda: self.tier.core.is_at_rest, self.tier.core.timeout)
                finally:
                    await self.tier.aclose()
            await send(message)

        await self.app(scope, receive_again, send_after_close)

    def _warn_of_unknown(self, scope: Scope) -> None:
        core = self.tier.core
        named = [requirement for route in self.routes for requirement in route.requirements]
        named += _declared(_routes_of(scope.get("app", self.app)))
        if core.is_open:
            for requirement in named:
                core.warn_of_unknown(requirement.feature, core.model)


def _declared(routes: Sequence[Any]) -> Iterator[Requirement]:
    """The requirements of Starlette's and FastAPI's routes, mounted and included ones too."""
    for route in routes:
        endpoint = getattr(route, "endpoint", None)
        for handler in vars(endpoint).values() if isinstance(endpoint, type) else (endpoint,):
            yield from getattr(handler, "__tier_requirements__", ())
        yield from _of_dependencies(getattr(route, "dependant", None))
        yield from _declared(_routes_of(route))


def _routes_of(app: Any) -> Sequence[Any]:
    """The routes of an application or a mount, behind any middleware; or those that FastAPI made of a router."""
    if hasattr(app, "effective_route_contexts"):
        return tuple(app.effective_route_contexts())
    while not getattr(app, "routes", None) and hasattr(app, "app"):
        app = app.app
    return getattr(app, "routes", None) or ()


def _of_dependencies(dependant: Any) -> Iterator[Requirement]:
    for dependency in getattr(dependant, "dependencies", ()):
        yield from getattr(dependency.call, "__tier_requirements__", ())
        yield from _of_dependencies(dependency)


def _gated_route(pattern: str, needs: Needs) -> GatedRoute:
    method, _, path = pattern.partition(" ") if isinstance(pattern, str) else ("", "", "")
    if not METHOD.fullmatch(method) or not path.startswith("/"):
        raise ConfigurationError(f"routes: must be keyed like 'POST /convert/{{id}}', got {pattern!r}", path="routes")
    try:
        return GatedRoute(checked_method(method, SOCKET), compile_path(path)[0], requirements_of(needs))
    except (InvalidRequest, AssertionError, ValueError) as error:
        raise ConfigurationError(f"routes[{pattern!r}]: {error}", path=f"routes[{pattern!r}]") from error


def _path(scope: Scope) -> str:
    """The path as the application sees it, without what the server or a mount above has cut off."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    rest = path.removeprefix(root) or "/"
    return rest if rest.startswith("/") else path  # as Starlette's router does it: what is routed is what is gated
