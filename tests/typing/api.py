"""Every public name as an application uses it, for mypy --strict. It is checked, and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import tier_middleware
from tier_middleware import (
    NO_ORG,
    UNMETERED,
    Answer,
    AsyncAnswer,
    AsyncTier,
    ConfigurationError,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    ManualClock,
    NotEntitled,
    OrgNotFound,
    PricingError,
    Refused,
    Tier,
    TierError,
    Usage,
    UsageLost,
)
from tier_middleware.answers import HistoryEntry, HistoryStep, PaymentMethods, PhaseView
from tier_middleware.asgi import FeatureUsage, Refusal, Requirement, TierContext, TierMiddleware, requires_feature
from tier_middleware.client import AsyncClockedTier, ClockedTier
from tier_middleware.django import RequiresFeatureMixin
from tier_middleware.django import requires_feature as requires_feature_in_django
from tier_middleware.django import sync_tier as project_tier
from tier_middleware.django import tier as async_project_tier
from tier_middleware.django.drf import HasFeature
from tier_middleware.fastapi import RequiresFeature
from tier_middleware.model import Model
from tier_middleware.orginfo import OrgInfo


def forgetting(tier: Tier, other: AsyncTier) -> None:
    assert_type(tier.forget("org:acme"), None)
    assert_type(other.forget("org:acme"), None)
    assert_type(tier.checkout("org:acme", "https://app/paid", features="plan:pro@1", trial_days=14), str)
    Tier("https://tier.example.com", "key", on_error="stale", outbox="outbox.db")


def sync() -> None:
    tier = Tier("memory://", pricing={"plans": {}}, default_plan="plan:free@1", timeout=1, on_error="deny")
    answer = tier.can("org:acme", "feature:convert", n=2)
    assert_type(answer, Answer)
    assert_type(answer.ok, bool)
    assert_type(answer.err, TierError | None)
    assert_type(answer.used, int)
    assert_type(answer.limit, int | None)
    assert_type(answer.remaining, int | None)
    answer.report()
    answer.report(2, at=datetime(2023, 3, 23, tzinfo=UTC), clobber=True)
    tier.report("org:acme", "feature:convert", 1, at=datetime(2023, 3, 23, tzinfo=UTC), clobber=True, key="k")
    tier.adjust("org:acme", "feature:convert", -3, note="refund")
    with tier.reserve("org:acme", "feature:convert", n=1) as reservation:
        reservation.set(2)
        assert_type(reservation.n, int)
    tier.report("org:acme", "feature:convert", note="a note")
    assert_type(tier.history("org:acme", "feature:convert"), tuple[HistoryEntry, ...])
    since = datetime(2023, 3, 23, tzinfo=UTC)
    assert_type(tier.history("org:acme", "feature:convert", since, step="day"), tuple[HistoryStep, ...])
    tier.load(tier.export(), replace=True)
    usage = tier.lookup_limit("org:acme", "feature:convert")
    assert_type(usage, Usage)
    assert_type(usage.remaining, int | None)
    assert_type(list(tier.lookup_limits("org:acme")), list[Usage])
    tier.subscribe("org:acme", ["plan:pro@1", "feature:x@plan:y@1"])
    later = datetime(2023, 4, 23, tzinfo=UTC)
    tier.subscribe("org:acme", "plan:pro@1", trial_days=14, effective=later, info={"name": "A"}, payment_method_id="pm")
    tier.schedule("org:acme", [{"features": ["plan:pro@1"], "trial": True}, {"effective": later}], info=OrgInfo())
    tier.cancel("org:acme", at=later)
    tier.update_org("org:acme", {"email": "a@example.com", "metadata": {"k": "v"}})
    assert_type(tier.lookup_phase("org:acme"), PhaseView | None)
    assert_type(tier.lookup_phases("org:acme").phases, tuple[PhaseView, ...])
    assert_type(tier.lookup_org("org:acme").email, str)
    assert_type(tier.lookup_payment_methods("org:acme"), PaymentMethods)
    assert_type(tier.pull_latest(), Model)
    assert_type(tier.counts, dict[str, int])
    clocked = tier.with_clock("rehearsal", datetime(2023, 3, 23, tzinfo=UTC))
    assert_type(clocked, ClockedTier)
    assert_type(tier.on_clock(clocked.clock.id), ClockedTier)
    assert_type(clocked.clock.present, datetime)
    clocked.advance(datetime(2023, 4, 23, tzinfo=UTC))
    assert_type(clocked.can("org:acme", "feature:convert"), Answer)
    with Tier(on_error=open_for) as other:
        assert_type(other, Tier)
    assert_type(tier_middleware.sync_tier, Tier)


def open_for(request: Any, error: Exception) -> bool:
    return isinstance(error, EngineUnavailable)


async def asynchronous() -> None:
    tier = AsyncTier(clock=ManualClock(datetime(2023, 3, 23, tzinfo=UTC)), on_loss="fail")
    answer = await tier.can("org:acme", "feature:convert")
    assert_type(answer, AsyncAnswer)
    if answer.ok:
        await answer.report()
    async with tier.reserve("org:acme", "feature:convert") as reservation:
        reservation.add(1)
    assert_type(await tier.lookup_limit("org:acme", "feature:convert"), Usage)
    step = timedelta(minutes=5)
    assert_type(await tier.history("org:acme", "feature:convert", step=step), tuple[HistoryStep, ...])
    await tier.load([line async for line in tier.export()])
    async with AsyncTier() as other:
        assert_type(other, AsyncTier)
    clocked = await tier.with_clock("rehearsal", datetime(2023, 3, 23, tzinfo=UTC))
    assert_type(clocked, AsyncClockedTier)
    assert_type(await tier.on_clock(clocked.clock.id), AsyncClockedTier)
    await clocked.advance(datetime(2023, 4, 23, tzinfo=UTC))
    TierMiddleware(FastAPI(), tier=clocked)
    assert_type(tier_middleware.tier, AsyncTier)
    assert_type(Tier.on(tier.core), Tier)
    ManualClock(datetime(2023, 3, 23, tzinfo=UTC)).advance(timedelta(days=1))


def errors(error: TierError) -> None:
    assert_type(error.code, str | None)
    match error:
        case LimitReached() | NotEntitled() | OrgNotFound():
            assert_type(error.limit, int | None)
            refused: Refused = error
            assert_type(refused.resets_at, datetime | None)
        case InvalidRequest():
            value: ValueError = error
            value.add_note(error.message)
        case UsageLost():
            assert_type(error.reason, str)
        case ConfigurationError() | PricingError():
            assert_type(error.path, str | None)


# ---- the faces ------------------------------------------------------------------------------------------------------


def org_of(request: Request) -> Any:
    user = request.user
    if user.is_staff:
        return UNMETERED
    return user.org_id if user.is_member else NO_ORG


async def amount_of(request: Request, kwargs: dict[str, Any]) -> int:
    return len(kwargs)


async def refused(request: Request, refusal: Refusal) -> Response | None:
    assert_type(refusal.plans, tuple[str, ...])
    return PlainTextResponse(refusal.detail, refusal.status)


@requires_feature(
    "feature:convert",
    amount=amount_of,
    org=org_of,
    on_refused=refused,
    on_error="deny",
    overage="cap",
    on_disconnect="estimate",
    per="request",
    idempotency="header",
)
async def handler(request: Request, id: int, *, word: str = "w") -> Response:
    context: TierContext = request.state.tier
    usage = context["feature:convert"]
    assert_type(usage, FeatureUsage)
    usage.set(2)
    usage.add(1)
    await usage.take(3)
    usage.skip()
    context.settle()
    assert_type(usage.used, int)
    assert_type(usage.limit, int | None)
    assert_type(context.answers, dict[str, AsyncAnswer])
    return PlainTextResponse(f"{id}{word}")


@requires_feature("feature:convert", 2, report_if=lambda request, status: status == 200)
def sync_handler(request: Request) -> Response:
    return PlainTextResponse("x")


@requires_feature("feature:convert")
async def generator(n: int) -> AsyncIterator[str]:
    yield "x"


class Endpoint(HTTPEndpoint):
    @requires_feature("feature:convert")
    async def get(self, request: Request) -> Response:
        return PlainTextResponse("x")


async def the_decorator_keeps_the_type(request: Request) -> None:
    assert_type(await handler(request, 1, word="x"), Response)
    assert_type(sync_handler(request), Response)
    assert_type(generator(3), AsyncIterator[str])
    keeps: Callable[[Request], Response] = sync_handler
    awaits: Callable[[Request, int], Awaitable[Response]] = handler
    assert_type(keeps(request), Response)
    assert_type(await awaits(request, 1), Response)
    await handler(request, "no number")  # type: ignore[arg-type]  # and its mistakes


app = FastAPI()
gate = RequiresFeature("feature:convert", amount=lambda request: 1, org=org_of)


@app.get("/")
async def route(usage: Annotated[FeatureUsage, Depends(gate)]) -> int:
    assert_type(usage.n, int)
    return usage.n


app.add_middleware(
    TierMiddleware,
    tier=AsyncTier(),
    org=org_of,
    upgrade_url="/pricing",
    routes={"POST /x": "feature:x", "GET /{id}": [Requirement("feature:x", 2), "feature:y"]},
    on_refused=refused,
    on_error="allow",
)
wrapped = TierMiddleware(Starlette(), tier=AsyncTier())
Starlette(middleware=[]).add_middleware(TierMiddleware, org=org_of)


def django_view(request: Any, pages: int) -> str:
    return str(pages)


class DjangoView(RequiresFeatureMixin):
    feature_required = ("feature:convert", Requirement("feature:export"))

    def feature_amount(self, request: Any) -> int:
        return 1


async def django() -> None:
    decorate = requires_feature_in_django("feature:convert", lambda request, kwargs: 2, on_error="deny", overage="cap")
    assert_type(decorate(django_view)(None, 3), str)
    assert_type(project_tier.can("org:acme", "feature:convert"), Answer)
    assert_type(await async_project_tier.can("org:acme", "feature:convert"), AsyncAnswer)
    assert_type(DjangoView().get_requirements(), tuple[Requirement, ...])
    HasFeature("feature:convert", 2, actions=["create"])
