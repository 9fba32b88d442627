"""The endpoints about the pricing model."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from ..client import AsyncTier
from ..errors import PricingError
from ..model import Model
from ..ops import PushResult
from ..pricing import dumps
from .endpoint import Call, Endpoint
from .models import ModelBody, PushAnswer, PushEntry
from .reading import read_model_body

__all__ = ["ENDPOINTS"]

TRIES: Final = 3  # others may push the same plan meanwhile


async def push(call: Call[Model]) -> PushAnswer:
    """Store the plans that are new. Those that are there stay as they are, whatever is pushed: as in Tier."""
    for _ in range(TRIES - 1):
        try:
            return _answer(await _pushed(call.tier, call.asked))
        except PricingError:
            continue
    return _answer(await _pushed(call.tier, call.asked))


async def _pushed(tier: AsyncTier, model: Model) -> list[PushResult]:
    stored = (await tier.pull()).plans
    done = await tier.push(Model({name: plan for name, plan in model.plans.items() if name not in stored}))
    known = [plan for name, plan in model.plans.items() if name in stored]
    kept = [
        PushResult(f"{feature}@{plan.name}", "failed", "plan already exists")
        for plan in known
        for feature in plan.features
    ]
    return sorted([*done, *kept])


def _answer(results: list[PushResult]) -> PushAnswer:
    return PushAnswer([PushEntry(one.feature, one.status, one.reason) for one in results])


async def pull(call: Call[None]) -> Response:
    """As text, since prices are exact."""
    return Response(dumps(await call.tier.pull()), media_type="application/json")


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/push",
        push,
        "Store the plans of a pricing model; comments and trailing commas are fine.",
        PushAnswer,
        body=ModelBody,
        read=read_model_body,
    ),
    Endpoint("GET", "/v1/pull", pull, "All plans that were ever pushed.", ModelBody),
)
