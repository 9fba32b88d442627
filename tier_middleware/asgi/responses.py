"""Refusals as Starlette's responses, and how a request finds the context that the middleware made for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from copy import copy
from typing import Any, Final, TypeAlias, cast

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from ..context import RefusedRequest, TierContext
from ..errors import ConfigurationError
from ..refusal import text_for

__all__ = ["ASGIApp", "Message", "Receive", "Scope", "Send", "context_of", "marked", "response_for", "unmarked"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
MARK: Final = b"tier-refused"
"""A header of the response with which a decorated handler is refused; never leaves the middleware."""

REQUESTS: Final = (Request, WebSocket)  # a tuple: a union would be made anew for every request

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
        if isinstance(connection, REQUESTS):
            context.request = connection  # the handler's own: it finds again what a callable reads
        elif context.request is None:
            context.request = Request(connection.scope)
        return context
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


def marked(response: Response) -> Response:
    """The response, known again when it is sent: a handler around the gate may send another one."""
    if isinstance(response, Response):
        ours = copy(response)  # the application may have but one, for all requests
        vars(ours).pop("_headers", None)  # a view of the original's
        ours.raw_headers = [*response.raw_headers, (MARK, b"")]
        return ours

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (MARK, b"")]}
            await send(message)

        await response(scope, receive, send_marked)

    return cast("Response", app)


def unmarked(start: Message) -> bool:
    """Take the mark off again; whether there was one."""
    headers = list(start.get("headers", ()))
    kept = [(name, value) for name, value in headers if name.lower() != MARK]
    if len(kept) == len(headers):
        return False
    start["headers"] = kept
    return True
