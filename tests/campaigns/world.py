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
SOCKET: Final = "/socket"
"""The route of a WebSocket, which Django has not got."""

WORK: Final = "work"
FAIL: Final = "fail"
BYE: Final = "bye"
"""What is said on it: the last is answered by its close."""

WORK_SECONDS: Final = 0.01
STUCK_SECONDS: Final = 60.0

BROKEN: Final = "broken"
"""It was sent, and its answer never came, or not all of it: the worker that had it is gone."""

FAILED: Final = "failed"
"""The same of a request that was asked to fail: a stream breaks off then, whoever has it."""

ANSWERED: Final = "answered"
"""A message that was answered, on a connection that broke before the answer that tells that it was counted."""

UNSENT: Final = "unsent"
STUCK: Final = "stuck"


def reservation_seconds() -> float:
    return float(os.environ.get("CAMPAIGN_RESERVATION_SECONDS", "900"))
