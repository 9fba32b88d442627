"""The ASGI application of the campaigns: an async, a sync, a streaming and a WebSocket handler, which can fail.

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
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature

from .world import BYE, CALLS, FAIL, MODEL, SOCKET, WORK_SECONDS, reservation_seconds

tier = AsyncTier(
    pricing=None if "TIER_PRICING" in os.environ else MODEL,
    default_plan="plan:wide@1",
    on_error="deny",
    reservation_seconds=reservation_seconds(),
)


def org_of(request: HTTPConnection) -> str:
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


@requires_feature(CALLS, per="message")
async def talk(socket: WebSocket) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await asyncio.sleep(WORK_SECONDS)
        if text == FAIL:
            raise ZeroDivisionError("as asked")
        if text == BYE:
            await socket.close()
            return
        await socket.send_text("done")


app = Starlette(
    routes=[
        Route("/async", coroutine, methods=["POST"]),
        Route("/sync", function, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
        WebSocketRoute(SOCKET, talk),
    ]
)
app.add_middleware(TierMiddleware, tier=tier, org=org_of)
print(f"worker {os.getpid()} is ready", flush=True)  # the campaigns wait for this line
