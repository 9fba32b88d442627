"""What is sold in these tests, how they ask what was counted, and the guards that they log in with."""

from __future__ import annotations

from typing import Any

from tier_middleware import NO_ORG, UNMETERED, AsyncTier, OrgNotFound
from tier_middleware.ops import Usage

PRICING: dict[str, Any] = {
    "plans": {
        "plan:free@1": {
            "features": {
                "feature:convert": {"tiers": [{"upto": 10}]},
                "feature:pages": {"tiers": [{"upto": 100}]},
                "feature:seats": {"tiers": [{"upto": 5}], "aggregate": "max"},
                "feature:calls": {"tiers": [{}]},
                "feature:top": {"tiers": [{"upto": 3}]},
                "feature:sso": {},
            }
        },
        "plan:pro@1": {
            "features": {
                "feature:convert": {"tiers": [{"upto": 1000}]},
                "feature:pages": {"tiers": [{"upto": 1000}]},
                "feature:audit": {},
            }
        },
    }
}

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
