"""The endpoints about the server itself: who it is, whether it lives, and whether it can work."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from .endpoint import Call, Endpoint
from .forms import WhoamiAnswer, whoami_answer

__all__ = ["ENDPOINTS"]


class Health(Struct):
    status: str


async def whoami(call: Call[None]) -> WhoamiAnswer:
    return whoami_answer(await call.tier.whoami(), call.service.public_url or call.url)


async def healthz(call: Call[None]) -> Health:
    return Health("ok")


async def readyz(call: Call[None]) -> Health:
    """Asks the engine, which says whether it can be read now; 503 where it cannot."""
    await call.tier.whoami()
    return Health("ready")


ENDPOINTS: Final = (
    Endpoint("GET", "/v1/whoami", whoami, "Which server answers.", WhoamiAnswer),
    Endpoint("GET", "/healthz", healthz, "Whether the process lives.", Health, is_open=True),
    Endpoint("GET", "/readyz", readyz, "Whether the engine can be asked; 503 if not.", Health, is_open=True),
)
