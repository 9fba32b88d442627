"""What the applications of the campaigns sell, and the variables by which a campaign sets them up."""

from __future__ import annotations

import os
from typing import Any, Final

CALLS: Final = "feature:calls"
NARROW: Final = 60
"""The limit that a round reaches."""

WIDE: Final = 1_000_000
MODEL: Final[dict[str, Any]] = {
    "plans": {
        "plan:narrow@1": {"features": {CALLS: {"tiers": [{"upto": NARROW}]}}},
        "plan:wide@1": {"features": {CALLS: {"tiers": [{"upto": WIDE}]}}},
    }
}
SYNC: Final = "/sync"
ROUTES: Final = ("/async", SYNC, "/stream")
WORK_SECONDS: Final = 0.01


def reservation_seconds() -> float:
    return float(os.environ.get("CAMPAIGN_RESERVATION_SECONDS", "900"))
