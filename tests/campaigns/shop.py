"""The ASGI application of the campaigns: an async, a sync and a streaming handler, of which some fail when asked to.

    uvicorn tests.campaigns.shop:app --workers 4

Who asks is in the query, since whoever asks here is the campaign. ``TIER_BASE_URL`` and the other variables are those
of the library.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature

from .world import CALLS, MODEL, WORK_SECONDS, reservation_seconds

tier = AsyncTier(
    pricing=None if "TIER_PRICING" in os.environ else MODEL,
    default_plan="plan:wide@1",
    on_error="deny",
    reservation_seconds=reservation_seconds(),
)


def org_of(request: Request) -> str:
    return request.query_params["org"]


def ended(request: Request) -> Response:
    """The end that the campaign asked for."""
    fail = request.query_params.get("fail")
    if fail == "raise":
        raise ZeroDivisionError("as asked")
    return PlainTextResponse("done", 500 if fail else 200)


@requires_feature(CALLS)
async def coroutine(request: Request) -> Response:
    await asyncio.sleep(WORK_SECONDS)
    return ended(request)


@requires_feature(CALLS)
def function(request: Request) -> Response:
    time.sleep(WORK_SECONDS)  # work that takes a thread
    return ended(request)


@requires_feature(CALLS)
async def stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(3):
            await asyncio.sleep(WORK_SECONDS / 3)
            if number == 2 and "fail" in request.query_params:
                raise ZeroDivisionError("in mid-stream, as asked")
            yield b"chunk"

    return StreamingResponse(chunks())


app = Starlette(
    routes=[
        Route("/async", coroutine, methods=["POST"]),
        Route("/sync", function, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
    ]
)
app.add_middleware(TierMiddleware, tier=tier, org=org_of)
print(f"worker {os.getpid()} is ready", flush=True)  # the campaigns wait for this line
