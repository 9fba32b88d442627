"""Entitlements and usage for Python web frameworks: a route asks for a feature, and the rest is done.

`AsyncTier` and `Tier` are the clients; ``tier_middleware.tier`` and ``tier_middleware.sync_tier`` are those of the
process, set up by ``TIER_BASE_URL, TIER_API_KEY, TIER_PRICING, TIER_DEFAULT_PLAN`` when first asked for. The faces of
the frameworks are in `tier_middleware.asgi` and `tier_middleware.fastapi`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .answers import Answer, AsyncAnswer
from .client import AsyncTier, Tier
from .clock import ManualClock
from .errors import (
    ConfigurationError,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    NotEntitled,
    OrgNotFound,
    PricingError,
    Refused,
    TierError,
    UsageLost,
)
from .names import NO_ORG, UNMETERED
from .ops import Usage

if TYPE_CHECKING:
    tier: AsyncTier
    sync_tier: Tier

__all__ = [
    "NO_ORG",
    "UNMETERED",
    "Answer",
    "AsyncAnswer",
    "AsyncTier",
    "ConfigurationError",
    "EngineUnavailable",
    "InvalidRequest",
    "LimitReached",
    "ManualClock",
    "NotEntitled",
    "OrgNotFound",
    "PricingError",
    "Refused",
    "Tier",
    "TierError",
    "Usage",
    "UsageLost",
    "sync_tier",
    "tier",
]

__version__ = "0.1.0"

_making = threading.Lock()


def __getattr__(name: str) -> object:
    """The process-wide clients, made when first asked for; the twins share one engine."""
    if name not in ("tier", "sync_tier"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _making:
        if "tier" not in globals():
            made = AsyncTier()
            globals().update(tier=made, sync_tier=Tier.on(made.core))
    return globals()[name]
