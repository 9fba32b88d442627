"""Paperlane: a document converter whose routes are sold by plan.

    uvicorn example_fastapi.main:app --workers 4

``EXAMPLE_DB`` is the file of its users (default ``example.db``), ``EXAMPLE_SECRET`` signs cookies (default: one that
is made once and kept in that file), ``EXAMPLE_HTTPS=1`` keeps cookies off plain HTTP, and ``EXAMPLE_ON_ERROR`` is what
to do while the engine is away, ``allow`` or ``deny``. ``TIER_BASE_URL`` and ``TIER_PRICING`` are those of the library.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final, cast

from fastapi import Depends, FastAPI, Form, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.middleware.sessions import SessionMiddleware

from tier_middleware import AsyncTier, EngineUnavailable, OrgNotFound, Usage
from tier_middleware.asgi import FeatureUsage
from tier_middleware.fastapi import RequiresFeature, TierMiddleware, requires_feature
from tier_middleware.prices import fixed_price, newest_plans
from tier_middleware.settings import OnError

from . import documents
from .accounts import LOGIN_SECONDS, EmailTaken, UnknownInvitation, User
from .auth import accounts, current_org, current_user, not_from_elsewhere, org_of_request, own_org, visitor
from .pages import pricing_page

FREE_PLAN: Final = "plan:free@1"
SUMMARY_TOKENS: Final = 100  # the most that one summary takes

tier = AsyncTier(
    pricing=os.environ.get("TIER_PRICING") or Path(__file__).with_name("pricing.json"),
    on_error=cast("OnError", os.environ.get("EXAMPLE_ON_ERROR") or "allow"),  # which AsyncTier checks
)

app = FastAPI(title="Paperlane", dependencies=[Depends(not_from_elsewhere)])
app.add_middleware(TierMiddleware, tier=tier, org=org_of_request, upgrade_url="/pricing")
app.add_middleware(
    SessionMiddleware,
    secret_key=os.environ.get("EXAMPLE_SECRET") or accounts.signing_key(),
    max_age=LOGIN_SECONDS,
    https_only=os.environ.get("EXAMPLE_HTTPS") == "1",
)


class Document(BaseModel):
    document: str = Field(min_length=1, max_length=100_000)


class Login(BaseModel):
    email: str = Field(max_length=254)
    password: str = Field(max_length=200)


class SignUp(Login):
    email: str = Field(max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")
    password: str = Field(min_length=10, max_length=200)
    organisation: str = Field("", max_length=100)
    invitation: str = Field("", max_length=100)


# ---- what the plans sell --------------------------------------------------------------------------------------------


@app.post("/convert")
async def convert(
    document: Document,
    usage: Annotated[FeatureUsage, Depends(RequiresFeature("feature:convert", org=current_org))],
) -> dict[str, str]:
    """One conversion each. A document that cannot be converted raises, and is not counted."""
    if documents.is_html(document.document):
        usage.skip()  # nothing to do, nothing to count
        return {"html": document.document}
    return {"html": documents.as_html(document.document)}


@app.post("/ocr", dependencies=[Depends(current_user)])
@requires_feature("feature:ocr-pages", amount=lambda request, arguments: arguments["pages"])
async def ocr(pages: Annotated[int, Query(ge=1, le=100)]) -> dict[str, list[str]]:
    """As many units as the request asks for. A decorated route: the amount may be any function of its arguments."""
    return {"pages": documents.recognised(pages)}


@app.post("/summarize")
async def summarize(
    document: Document,
    usage: Annotated[
        FeatureUsage, Depends(RequiresFeature("feature:summary-tokens", amount=SUMMARY_TOKENS, org=current_org))
    ],
) -> StreamingResponse:
    """Holds the most that an answer can take, and counts what it took once its stream has ended."""

    async def events() -> AsyncIterator[str]:
        async for token in documents.summary(document.document, SUMMARY_TOKENS):
            usage.add(1)
            yield f"data: {token}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.get("/export", dependencies=[Depends(RequiresFeature("feature:export", org=current_org))])
async def export(org: Annotated[str, Depends(own_org)]) -> Response:
    """The month's usage as CSV: a feature that a plan has or has not, and that nobody counts."""
    rows = [(one.feature, one.used, one.limit) for one in await usage_of(org)]
    return Response(documents.as_csv(("feature", "used", "limit"), rows), media_type="text/csv")


# ---- plans and usage ------------------------------------------------------------------------------------------------


@app.get("/")
async def home() -> RedirectResponse:
    return RedirectResponse("/pricing")


@app.get("/pricing")
async def pricing(user: Annotated[User | None, Depends(visitor)]) -> Response:
    plans = sorted(newest_plans(await tier.pull()), key=fixed_price)
    if user is None or user.org is None:
        return pricing_page(plans, (), user, ())
    return pricing_page(plans, await plans_of(user.org), user, await usage_of(user.org))


@app.post("/upgrade")
async def upgrade(request: Request, plan: Annotated[str, Form()], org: Annotated[str, Depends(own_org)]) -> Response:
    """Put the organisation on a plan, from now on. No payment is taken here: a shop would ask for it first."""
    if plan not in [one.name for one in newest_plans(await tier.pull())]:
        raise HTTPException(422, f"{plan!r} is not for sale.")
    await tier.subscribe(org, plan)
    return RedirectResponse("/pricing", 303) if is_browser(request) else JSONResponse({"plan": plan})


@app.get("/usage")
async def usage(org: Annotated[str, Depends(own_org)]) -> dict[str, object]:
    numbers = [
        {
            "feature": one.feature,
            "used": one.used,
            "limit": one.limit,
            "remaining": one.remaining,
            "resets_at": one.resets_at,
        }
        for one in await usage_of(org)
    ]
    return {"org": org, "plans": await plans_of(org), "usage": numbers}


async def plans_of(org: str) -> tuple[str, ...]:
    try:
        phase = await tier.lookup_phase(org)
    except OrgNotFound:
        return ()
    return () if phase is None else phase.plans


async def usage_of(org: str) -> tuple[Usage, ...]:
    try:
        return (await tier.lookup_limits(org)).usage
    except OrgNotFound:
        return ()


@app.exception_handler(EngineUnavailable)
async def engine_is_away(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "Plans cannot be looked up right now; try again soon."}, 503)


# ---- signing up and logging in --------------------------------------------------------------------------------------


@app.post("/signup")
async def sign_up(request: Request, form: Annotated[SignUp, Form()]) -> Response:
    """Founds an organisation on the free plan, or joins one with an invitation; with neither, a user has no plan."""
    try:
        if form.invitation:
            user_id = await run_in_threadpool(accounts.join_org, form.invitation, form.email, form.password)
        elif form.organisation:
            user_id = await found_org(form)
        else:
            user_id = await run_in_threadpool(accounts.add_loner, form.email, form.password)
    except EmailTaken:
        raise HTTPException(409, "This address has signed up before.") from None
    except UnknownInvitation:
        raise HTTPException(422, "There is no such invitation, or it was used before.") from None
    return await logged_in(request, user_id, 201)


async def found_org(form: SignUp) -> int:
    org = f"org:{uuid.uuid4().hex}"
    # the plan first: a plan without users harms nobody, users without a plan are locked out
    await tier.subscribe(org, FREE_PLAN)
    try:
        return await run_in_threadpool(accounts.found_org, org, form.organisation, form.email, form.password)
    except EmailTaken:
        await tier.delete_org(org)
        raise


@app.post("/login")
async def log_in(request: Request, form: Annotated[Login, Form()]) -> Response:
    user_id = await run_in_threadpool(accounts.checked_password, form.email, form.password)
    if user_id is None:
        raise HTTPException(401, "Wrong e-mail address or password.")
    return await logged_in(request, user_id, 200)


@app.post("/logout")
async def log_out(request: Request) -> Response:
    token = request.session.pop("token", None)
    if token is not None:
        await run_in_threadpool(accounts.log_out, token)
    return RedirectResponse("/pricing", 303)


@app.post("/invitations", status_code=201)
def invite(org: Annotated[str, Depends(own_org)]) -> dict[str, str]:
    """A code with which a colleague signs up; they share the organisation's plan."""
    return {"invitation": accounts.invite(org)}


async def logged_in(request: Request, user_id: int, status: int) -> Response:
    """A program gets a bearer token, a browser has the same token in its session cookie and never sees it."""
    token = await run_in_threadpool(accounts.log_in, user_id)
    if not is_browser(request):
        return JSONResponse({"token": token, "token_type": "bearer"}, status, {"cache-control": "no-store"})
    request.session["token"] = token
    return RedirectResponse("/pricing", 303)


def is_browser(request: Request) -> bool:
    return "text/html" in request.headers.get("accept", "")
