"""What runs on each of several machines: one gated route, which nobody may pass while the server is away."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature

ACME = "org:acme"
CALLS = "feature:calls"

tier = AsyncTier(on_error="deny", timeout=2)


@requires_feature(CALLS, org=lambda request: ACME)
async def call(request: Request) -> Response:
    return JSONResponse({"limit": request.state.tier[CALLS].limit})


async def limit(request: Request) -> Response:
    """What this process shows of the limit, without asking anybody."""
    return JSONResponse({"limit": tier.core.glance(ACME, CALLS).limit})


async def counts(request: Request) -> Response:
    return JSONResponse(tier.counts)


app = Starlette(routes=[Route("/call", call), Route("/limit", limit), Route("/counts", counts)])
app.add_middleware(TierMiddleware, tier=tier)
