"""All endpoints, by method and path. A path is matched as it is: there are no patterns, and no slashes to add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from starlette.responses import Response

from . import account, checkout, clocks, plans, sharing, subscriptions, usage
from .endpoint import Call, Endpoint
from .forms import Done
from .openapi import described

__all__ = ["ENDPOINTS", "allowed_at", "extensions", "routes"]


async def describe(call: Call[None]) -> Response:
    service = call.service
    document = described(ENDPOINTS, service.public_url or call.url, has_key=service.has_key)
    return Response(msgspec.json.encode(document), media_type=JSON)


JSON: Final = "application/json"
ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    *usage.ENDPOINTS,
    *subscriptions.ENDPOINTS,
    *checkout.ENDPOINTS,
    *plans.ENDPOINTS,
    *clocks.ENDPOINTS,
    *account.ENDPOINTS,
    *sharing.ENDPOINTS,
    Endpoint("GET", "/openapi.json", describe, "This document.", Done, is_open=True, is_documented=False),
)


def routes() -> Mapping[tuple[str, str], Endpoint]:
    return {(one.method, one.path): one for one in ENDPOINTS}


def allowed_at(path: str) -> str:
    """The methods at a path, as the header ``Allow`` lists them; empty where there is nothing."""
    methods = [one.method for one in ENDPOINTS if one.path == path]
    return ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])


def extensions() -> tuple[str, ...]:
    """What the endpoints add to Tier's API, each once, in their order."""
    return tuple(dict.fromkeys(one.extension for one in ENDPOINTS if one.extension))
