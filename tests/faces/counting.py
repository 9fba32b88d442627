"""How these tests ask what was counted, and the guards that they log in with."""

from __future__ import annotations

from typing import Any

from tier_middleware import NO_ORG, UNMETERED, AsyncTier, OrgNotFound
from tier_middleware.ops import Usage

MARKS = {"nobody": None, "no-org": NO_ORG, "staff": UNMETERED}


def guard(request: Any) -> Any:
    """The test's auth guard: believes the header, as no real one may."""
    name = request.headers.get("x-org", "nobody")
    return MARKS.get(name, name)


async def usage_of(tier: AsyncTier, feature: str = "feature:convert", org: str = "org:acme") -> Usage:
    try:
        return await tier.lookup_limit(org, feature)
    except OrgNotFound:
        return Usage(feature, 0, 0)


async def used(tier: AsyncTier, feature: str = "feature:convert", org: str = "org:acme") -> tuple[int, int]:
    """Units counted, and units still held."""
    usage = await usage_of(tier, feature, org)
    return usage.used, usage.reserved
