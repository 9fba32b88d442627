"""A gated application in this process, and clients that note what they saw: what faults happen to."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tier_middleware import AsyncTier, Tier
from tier_middleware.asgi import TierMiddleware, requires_feature

from .world import CALLS, MODEL

ORG: Final = "org:acme"
DELIVERY_SECONDS: Final = 30.0


@dataclass
class Counted:
    """The application, its engine's file, and everything that was seen of it: answers, and losses told to ``on_loss``.

    A request for ``/slow`` waits until ``go_on`` is set.
    """

    path: Path
    http: httpx.AsyncClient
    tier: AsyncTier
    go_on: asyncio.Event
    lost: list[Any]
    statuses: Counter[int] = field(default_factory=Counter)

    async def call(self, times: int = 1, path: str = "/call") -> Counter[int]:
        """So many requests, one after the other: how often each status came."""
        found: Counter[int] = Counter()
        for _ in range(times):
            found[(await self.http.post(path)).status_code] += 1
        self.statuses += found
        return found

    async def begin_slow(self) -> asyncio.Task[Counter[int]]:
        """A request that holds its reservation already."""
        before = await self.reserved()
        task = asyncio.create_task(self.call(path="/slow"))
        while await self.reserved() == before:  # noqa: ASYNC110  # what is waited for is in the database
            await asyncio.sleep(0)
        return task

    async def reserved(self) -> int:
        return (await self.tier.lookup_limit(ORG, CALLS)).reserved

    @property
    def units_lost(self) -> int:
        return sum(report.n for reports, _ in self.lost for report in reports)

    async def balance(self) -> str:
        """Hold the books to it: what succeeded was counted, once it was delivered, or is known to be lost; and nothing
        else is.
        """
        with Tier(f"sqlite:///{self.path}", on_error="deny") as reader:
            deadline = time.monotonic() + DELIVERY_SECONDS
            while reader.lookup_limit(ORG, CALLS).used + self.units_lost < self.statuses[200]:
                assert time.monotonic() < deadline, (self.statuses, reader.lookup_limit(ORG, CALLS), self.tier.counts)
                await asyncio.sleep(0.01)  # a thread delivers
            usage = reader.lookup_limit(ORG, CALLS)
            entered = sum(entry.n for entry in reader.history(ORG, CALLS))
        told = sum(n for reason, n in self.tier.counts.items() if reason.startswith("lost."))
        assert told == self.units_lost, (self.tier.counts, self.lost)
        assert usage.used == entered, (usage, entered)
        assert self.statuses[200] == usage.used + self.units_lost, (self.statuses, usage, self.lost)
        statuses = ", ".join(f"{n} {status}" for status, n in sorted(self.statuses.items()))
        return f"{statuses}; counted {usage.used}, lost {self.units_lost}, left reserved {usage.reserved}"


@asynccontextmanager
async def counting(
    path: Path, *, on_error: str = "deny", timeout: float = 5, outbox: Path | None = None, plan: str = "plan:wide@1"
) -> AsyncIterator[Counted]:
    lost: list[Any] = []
    tier = AsyncTier(
        f"sqlite:///{path}", pricing=MODEL, default_plan=plan, on_error=on_error, timeout=timeout, outbox=outbox,
        on_loss=lambda reports, reason: lost.append((reports, reason)),
    )  # fmt: skip
    go_on = asyncio.Event()

    @requires_feature(CALLS)
    async def call(request: Request) -> Response:
        return PlainTextResponse("done")

    @requires_feature(CALLS)
    async def slow(request: Request) -> Response:
        await go_on.wait()
        return PlainTextResponse("done")

    async def free(request: Request) -> Response:
        return PlainTextResponse("done")

    routes = [Route("/call", call, methods=["POST"]), Route("/slow", slow, methods=["POST"]), Route("/free", free)]
    app = TierMiddleware(Starlette(routes=routes), tier=tier, org=lambda request: ORG)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as http:
        try:
            yield Counted(path, http, tier, go_on, lost)
        finally:
            await tier.aclose()
