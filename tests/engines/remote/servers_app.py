"""A gated application for the servers of test_http_workers.py; made before they fork, as with gunicorn --preload."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tier_middleware import sync_tier, tier
from tier_middleware.asgi import TierMiddleware, requires_feature


@requires_feature("feature:calls")
async def call(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(os.getpid()))


if os.environ.get("REPORTS_BEFORE_FORK"):
    sync_tier.report("org:acme", "feature:calls")  # the parent's reporter runs when the workers are forked

app = Starlette(routes=[Route("/call", call)])
app.add_middleware(TierMiddleware, tier=tier, org=lambda request: "org:acme")
