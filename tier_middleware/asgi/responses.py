"""Refusals as Starlette's responses, and how a request finds the context that the middleware made for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, cast

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from ..context import RefusedRequest, TierContext
from ..errors import ConfigurationError
from ..refusal import text_for

__all__ = ["ASGIApp", "Message", "Receive", "Scope", "Send", "context_of", "response_for"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def context_of(connection: HTTPConnection) -> TierContext:
    """The request's context; a clear error where nobody made one."""
    try:
        context = connection.scope["state"]["tier"]
    except KeyError:
        context = None
    if type(context) is TierContext:
        if context.is_over:
            raise RuntimeError("this request is over: nothing can be held or counted for it any more")
        if isinstance(connection, Request):
            context.request = connection  # the handler's own: it finds again what a callable reads
        elif context.request is None:
            context.request = Request(connection.scope)
        return context
    if connection.scope["type"] != "http":
        raise ConfigurationError(
            f"requires_feature: this version gates HTTP requests, not a {connection.scope['type']!r} connection "
            f"({connection.scope.get('path')!r})"
        )
    raise ConfigurationError(
        f"TierMiddleware is missing: {connection.scope.get('path')!r} requires a feature, and nothing would count it; "
        "add app.add_middleware(TierMiddleware, tier=tier, org=...)"
    )


def response_for(refused: RefusedRequest, connection: HTTPConnection) -> Response:
    """The application's own response where it made one, else ours."""
    if callable(refused.response):
        return cast("Response", refused.response)  # any ASGI application will do
    if refused.response is not None:  # a framework would send it with 200
        raise ConfigurationError(
            f"on_refused: must return a response or None, got {refused.response!r}", path="on_refused"
        )
    text = text_for(refused.refusal, connection.headers.get("accept"))
    return Response(text.body, text.status, text.headers)
