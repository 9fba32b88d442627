"""Drives a WebSocket application message by message, as a server would, and lets a test look around at each."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

DENIAL = {"websocket.http.response": {}}


def socket_scope(path: str = "/ws", org: str = "acme", **more: Any) -> dict[str, Any]:
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"x-org", org.encode())],
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 1),
        "subprotocols": [],
        "extensions": DENIAL,
        **more,
    }


class Peer:
    """A client of one connection. ``sent`` is what the server got; ``error`` what the application raised."""

    def __init__(self, app: Any, **scope: Any) -> None:
        self._app = app
        self._scope = socket_scope(**scope)
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._news = asyncio.Event()
        self.waiting = 0  # how often the application has asked for a message
        self.sent: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.is_gone = False
        self.at_message: Any = None  # runs before the server takes a message
        self._to_app.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as error:
            self.error = error
        finally:
            self._news.set()

    async def _receive(self) -> dict[str, Any]:
        self.waiting += 1
        self._news.set()
        return await self._to_app.get()

    async def _send(self, message: dict[str, Any]) -> None:
        if self.at_message is not None:
            await self.at_message(message)
        if self.is_gone:
            raise OSError("the peer is gone")
        self.sent.append(dict(message))
        if message["type"] == "websocket.close" or self._is_denied(message):
            self._to_app.put_nowait({"type": "websocket.disconnect", "code": message.get("code", 1006)})
        self._news.set()

    @staticmethod
    def _is_denied(message: dict[str, Any]) -> bool:
        return message["type"] == "websocket.http.response.body" and not message.get("more_body", False)

    async def until(self, condition: Any) -> None:
        while not condition():
            assert not self.task.done(), (self.sent, self.error)
            self._news.clear()
            if condition():
                return
            await asyncio.wait_for(self._news.wait(), 10)

    async def accepted(self) -> Peer:
        await self.until(lambda: "websocket.accept" in self.kinds)
        return self

    async def send(self, text: str = "x") -> None:
        """Send, and wait until the application wants more, or is done."""
        before = self.waiting
        self._to_app.put_nowait({"type": "websocket.receive", "text": text})
        with suppress(AssertionError):
            await self.until(lambda: self.waiting > before)

    async def leave(self, code: int = 1001) -> None:
        self.is_gone = True
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": code})
        await self.ended()

    async def ended(self) -> Peer:
        await asyncio.wait([self.task], timeout=10)
        assert self.task.done(), self.sent
        return self

    @property
    def kinds(self) -> list[str]:
        return [message["type"] for message in self.sent]

    @property
    def closed(self) -> dict[str, Any]:
        (close,) = [message for message in self.sent if message["type"] == "websocket.close"]
        return close
