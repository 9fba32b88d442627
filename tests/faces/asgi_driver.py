"""Drives an ASGI application message by message, as a server would, and lets a test look around at each message."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

ORG = (b"x-org", b"acme")


@dataclass
class Sent:
    """What the server got."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def kinds(self) -> list[str]:
        return [message["type"].removeprefix("http.response.") for message in self.messages]

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == "http.response.start"]

    @property
    def status(self) -> int:
        (start,) = self.starts
        return int(start["status"])

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        (start,) = self.starts
        return [(name.lower(), value) for name, value in start.get("headers", [])]

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def chunks(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.messages if message["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def http_scope(
    method: str = "GET",
    path: str = "/",
    headers: Iterable[tuple[bytes, bytes]] = (ORG,),
    root_path: str = "",
    query: str = "",
    **more: Any,
) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": root_path,
        "headers": list(headers),
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 1),
        **more,
    }


async def never() -> dict[str, Any]:
    raise AssertionError("receive() was called")


def body_of(*parts: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    """A ``receive`` that hands over a request body in parts, then says that the client is gone."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        if not left:
            return {"type": "http.disconnect"}
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return receive


async def drive(
    app: Any,
    method: str = "GET",
    path: str = "/",
    *,
    receive: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    at_message: Callable[[dict[str, Any]], Awaitable[None]] | None = None,
    gone_at: int | None = None,
    raising: bool = True,
    **scope: Any,
) -> Sent:
    """One request. ``at_message`` runs before the server takes a message; at message ``gone_at`` the peer is gone."""
    sent = Sent()

    async def send(message: dict[str, Any]) -> None:
        if at_message is not None:
            await at_message(message)
        if gone_at is not None and len(sent.messages) >= gone_at:
            raise OSError("the peer is gone")
        sent.messages.append(dict(message))

    try:
        await app(http_scope(method, path, **scope), receive or body_of(b""), send)
    except Exception as error:
        if raising:
            raise
        sent.error = error
    return sent


class Lifespan:
    """A server's side of the lifespan protocol, one step at a time."""

    def __init__(self, app: Any, state: dict[str, Any] | None = None) -> None:
        self.scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        if state is not None:
            self.scope["state"] = state
        self.app = app
        self.messages: list[dict[str, Any]] = []

    async def __aenter__(self) -> Lifespan:
        import asyncio

        self._asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task = asyncio.ensure_future(self.app(self.scope, self._asked.get, self._told.put))
        await self._step("startup")
        return self

    async def _step(self, name: str) -> None:
        import asyncio

        await self._asked.put({"type": f"lifespan.{name}"})
        answer = asyncio.ensure_future(self._told.get())
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await self._task  # raises what the application raised
            raise AssertionError(f"no answer to {name}")
        self.messages.append(answer.result())

    async def __aexit__(self, *error: object) -> None:
        if not self._task.done():
            await self._step("shutdown")
        await self._task

    @property
    def kinds(self) -> list[str]:
        return [message["type"].removeprefix("lifespan.") for message in self.messages]
