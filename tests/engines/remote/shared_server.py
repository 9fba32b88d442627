"""One of our own servers in this process, on a real socket, and the HTTP engine in front of it."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import uvicorn

from tier_middleware import AsyncTier, Tier
from tier_middleware.clock import Milliseconds, moment, monotonic
from tier_middleware.core import Core
from tier_middleware.engines.http import HttpEngine
from tier_middleware.engines.memory import MemoryEngine
from tier_middleware.errors import InvalidRequest, NotEntitled, OrgNotFound, TierError
from tier_middleware.ops import Commit, Op, Record, Release
from tier_middleware.reporting.batches import Batch
from tier_middleware.reporting.outbox import Outbox
from tier_middleware.server import TierServer

R = TypeVar("R")

DEADLINE_SECONDS = 20.0


class SharedServer:
    """Serves one engine after the other, so that a test need not start a server."""

    def __init__(self) -> None:
        # with its protocol: else asyncio leaves Nagle on, and each answer takes 40 ms
        self._listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._listening.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._server: TierServer | None = None
        self.engine = MemoryEngine(lambda: 0)
        self.asked: Counter[str] = Counter()
        self.behave: Callable[[Any, Any, Any], Awaitable[None]] | None = None
        config = uvicorn.Config(
            self._app, log_config=None, lifespan="off", interface="asgi3", timeout_graceful_shutdown=5
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, args=([self._listening],))
        self._thread.start()
        deadline = monotonic() + DEADLINE_SECONDS
        while not self._uvicorn.started:
            assert monotonic() < deadline, "it did not start"
            threading.Event().wait(0.01)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        assert self._server is not None
        self.asked[scope["path"]] += 1
        await (self.behave or self._server)(scope, receive, send)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """As the server itself does; for ``behave``."""
        assert self._server is not None
        await self._server(scope, receive, send)

    def serve(self, now_ms: Milliseconds) -> MemoryEngine:
        """An empty engine, in the time that is given."""
        if self._server is not None:
            self._server.end_waits()
        engine = MemoryEngine(now_ms)
        core = Core(Tier("memory://").core.settings, lambda: moment(now_ms()), engine)
        self._server = TierServer(AsyncTier.on(core))
        self.asked.clear()
        self.behave = None
        return engine

    def end(self) -> None:
        if self._server is not None:
            self._server.end_waits()
        self._uvicorn.should_exit = True
        self._thread.join()


class DeliveringEngine(HttpEngine):
    """Each operation is over when the server has what it left in the outbox, and answers what the server said of it."""

    def __init__(self, url: str, now_ms: Milliseconds, folder: Path) -> None:
        super().__init__(url, now_ms, Outbox(folder / "outbox.db", now_ms, server=url), is_loopback=True)
        self._said: list[Any] = []
        self._one_at_a_time = threading.Lock()
        self._shared.late = self._said.append  # type: ignore[method-assign]  # what the application is told by counts

    def attempt(self, op: Op[R]) -> R:
        if not isinstance(op, Commit | Record | Release):
            return super().attempt(op)
        with self._one_at_a_time:
            self._said.clear()
            reply = super().attempt(op)
            deadline = monotonic() + DEADLINE_SECONDS
            while not self.reporter.flush(1):  # others may be leaving something at any time
                assert monotonic() < deadline
            refused = self.outbox.listed(["buried"])
            if refused:
                self.outbox.remove([batch.id for batch in refused])
                raise _error_of(refused[0])
            if isinstance(op, Record):
                return cast("R", self._said[0] if self._said else reply)
            return cast("R", tuple(self._said)) if self._said else reply


def _error_of(batch: Batch) -> TierError:
    if batch.code == "org_not_found":
        return OrgNotFound(batch.reason, org=batch.org)
    if batch.code == "feature_not_found":
        return NotEntitled(batch.reason, org=batch.org, feature=batch.feature)
    return InvalidRequest(batch.reason, code=batch.code)
