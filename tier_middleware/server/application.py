"""The server as an ASGI application: from a request to the handler of an endpoint, and back."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

import anyio
import msgspec
from starlette.responses import Response

from ..client import AsyncTier
from ..clock import monotonic
from ..errors import ConfigurationError, TierError
from ..extension.forms import EXTENSIONS_HEADER
from ..names import shown
from ..operations import new_key
from ..settings import checked_url
from ..wire import CLOCK_HEADER
from .clocks import clock_named
from .endpoint import Call, Endpoint, Service
from .faults import Fault, fault_for, method_not_allowed, not_found, unexpected
from .guard import admit
from .reading import read_query
from .routes import allowed_at, extensions, routes

__all__ = ["TierServer", "checked_api_key", "checked_public_url"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

logger: Final = logging.getLogger("tier_middleware.server")

REQUEST_ID_HEADER: Final = "x-request-id"
MAX_LENGTH_DIGITS: Final = 15
MAX_BODY_BYTES: Final = 1_000_000
SMALL_BYTES: Final = 20_000  # are read on the event loop; more would keep others waiting
BODY_SECONDS: Final = 30.0

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


class _Gone(Exception):
    """The client left before it had said what it wants."""


class TierServer:
    """Serves an engine as Tier's API. Mount it, or run it by itself (``tier-middleware serve``).

    ``api_key`` (``TIER_API_KEY``) is the user name of HTTP Basic authentication that requests must bring. Without one
    only this machine may ask, unless ``is_guarded`` says that the application around this one checks who does.
    ``public_url`` is where people reach the server; None: where the request that asks for a page reached it. ``secret``
    signs addresses of pages: by default it follows from the key, or is this object's own. Bodies have at most
    ``max_body_bytes``, and must be there within ``body_seconds``.

    The client is opened and closed with the application's lifespan; mounted, it is opened by the first request.
    """

    def __init__(
        self,
        tier: AsyncTier,
        *,
        api_key: str | None = None,
        is_guarded: bool = False,
        public_url: str | None = None,
        secret: bytes | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        key = checked_api_key(api_key if api_key is not None else os.environ.get("TIER_API_KEY") or None)
        self._key = None if key is None else key.encode()
        self._is_guarded = is_guarded
        self._service = Service(
            tier, secret or self._key or new_key().encode(), checked_public_url(public_url), key is not None
        )
        self._max_body_bytes = max_body_bytes
        self._body_seconds = body_seconds
        self._routes: Mapping[tuple[str, str], Endpoint] = routes()
        offered = ", ".join(extensions())
        self._headers = [
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *([(EXTENSIONS_HEADER.encode(), offered.encode())] if offered else []),
        ]

    def end_waits(self) -> None:
        """Answer those who wait for changes (``/v1/changes``) now: a server ends when all requests have. May be called
        by a signal handler.
        """
        self._service.watch.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _Exchange(self, scope, receive, send).serve()
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})  # before it was accepted: 403

    async def _live(self, receive: Receive, send: Send) -> None:
        tier = self._service.tier
        await receive()
        try:
            await tier.open()
        except TierError as error:
            await send({"type": "lifespan.startup.failed", "message": error.message})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.end_waits()
        await tier.aclose()
        await send({"type": "lifespan.shutdown.complete"})


def checked_api_key(key: str | None) -> str | None:
    if key is not None and not (key and key.isascii() and key.isprintable()):
        raise ConfigurationError("TIER_API_KEY: must be printable ASCII (it is not shown here)", path="TIER_API_KEY")
    return key


def checked_public_url(url: str | None) -> str | None:
    """Where people reach the pages, without a slash at its end."""
    if not url:
        return None
    if str(checked_url(url, "TIER_PUBLIC_URL")).startswith("/"):
        raise ConfigurationError(f"TIER_PUBLIC_URL: must be an http(s) URL, got {url!r}", path="TIER_PUBLIC_URL")
    return url.rstrip("/")


class _Exchange:
    """One request and its answer."""

    def __init__(self, server: TierServer, scope: Scope, receive: Receive, send: Send) -> None:
        self._server = server
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = _headers(scope)
        self._path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        self._endpoint: Endpoint | None = None
        self._org: object = None
        self._id = _request_id(self._headers)
        self._started = monotonic()

    async def serve(self) -> None:
        try:
            response = await self._answered()
        except _Gone:
            self._log(499)
            return
        for name, value in (*self._server._headers, (REQUEST_ID_HEADER.encode(), self._id.encode())):
            response.raw_headers.append((name, value))
        if self._scope["method"] == "HEAD":
            response.body = b""
        self._log(response.status_code)
        await response(self._scope, self._receive, self._send)

    async def _answered(self) -> Response:
        try:
            return await self._handled()
        except TierError as error:
            fault = fault_for(error)
            if fault.body.status >= 500:
                logger.error("tier: id=%s: %s: %s", self._id, type(error).__name__, error)
            return _fault_response(fault)
        except Fault as fault:
            return _fault_response(fault)
        except _Gone:
            raise
        except Exception:  # whatever it is, the client gets an answer, which says nothing of the inside
            logger.exception("tier: id=%s: unexpected", self._id)
            return _fault_response(unexpected())

    async def _handled(self) -> Response:
        server, endpoint = self._server, self._found()
        if endpoint is None or not endpoint.is_open:
            client = self._scope.get("client")
            admit(self._headers, client[0] if client else None, server._key, is_guarded=server._is_guarded)
        if endpoint is None:
            raise self._nowhere()
        asked = await self._asked(endpoint)
        self._org = getattr(asked, "org", None)
        tier: AsyncTier = server._service.tier
        clock = self._headers.get(CLOCK_HEADER) if endpoint.is_clocked else None
        if clock:
            tier = await clock_named(tier, clock, CLOCK_HEADER)
        call = Call(asked, tier, server._service, self._headers, self._url)
        answer = await endpoint.handler(call)
        if isinstance(answer, Response):
            return answer
        return Response(msgspec.json.encode(answer), 200, call.answer_headers, endpoint.media)

    def _found(self) -> Endpoint | None:
        method = self._scope["method"]
        self._endpoint = self._server._routes.get(("GET" if method == "HEAD" else method, self._path))
        return self._endpoint

    def _nowhere(self) -> Fault:
        allowed = allowed_at(self._path)
        return method_not_allowed(allowed) if allowed else not_found()

    async def _asked(self, endpoint: Endpoint) -> Any:
        if endpoint.body is not None:
            body = await self._body()
            if len(body) <= SMALL_BYTES:
                return endpoint.read(body, endpoint.body)
            return await anyio.to_thread.run_sync(endpoint.read, body, endpoint.body)
        if endpoint.query is not None:
            return read_query(self._scope["query_string"], endpoint.query)
        return None

    async def _body(self) -> bytes:
        limit = self._server._max_body_bytes
        declared = self._headers.get("content-length", "")
        if declared.isdigit() and (len(declared) > MAX_LENGTH_DIGITS or int(declared) > limit):
            raise _too_large(limit)
        parts, size = [], 0
        with anyio.move_on_after(self._server._body_seconds):
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise _too_large(limit)
                if not message.get("more_body", False):
                    return b"".join(parts)
        raise Fault(408, "request_timeout", "the body did not arrive in time", {"connection": "close"})

    @property
    def _url(self) -> str:
        host = self._headers.get("host", "")
        if not _HOST.fullmatch(host):
            name, port = self._scope.get("server") or ("localhost", None)
            host = name if port is None else f"{name}:{port}"
        return f"{self._scope.get('scheme', 'http')}://{host}{self._scope.get('root_path', '')}".rstrip("/")

    def _log(self, status: int) -> None:
        """One line a request; what comes from outside is quoted, and the key is never in it."""
        method, path = self._scope["method"], self._path
        if self._endpoint is None:
            method, path = shown(method), shown(path)
        milliseconds = (monotonic() - self._started) * 1000
        org = f" org={shown(self._org)}" if self._org else ""
        line = f"{method} {path} {status} {milliseconds:.1f}ms id={self._id}{org}"
        key = self._server._key
        logger.info("%s", line if key is None else line.replace(key.decode(), "***"))


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; what is given twice is joined, so that a second key or clock is none."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if _REQUEST_ID.fullmatch(given) else new_key()


def _fault_response(fault: Fault) -> Response:
    return Response(msgspec.json.encode(fault.body), fault.body.status, fault.headers, "application/json")


def _too_large(limit: int) -> Fault:
    return Fault(413, "request_too_large", f"body: must have at most {limit} bytes", {"connection": "close"})
