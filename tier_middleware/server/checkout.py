"""The checkout: where nobody takes payments, a page of the server's own on which a person confirms a plan."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

from msgspec import Meta, Struct, to_builtins
from starlette.responses import RedirectResponse, Response

from ..client import AsyncClockedTier, AsyncTier
from ..engines import Remote
from ..errors import OrgNotFound
from ..operations import new_key
from ..policy import checked_features
from ..schedules import MAX_DAYS_AHEAD, listed_features, trial_length
from .clocks import clock_named
from .endpoint import Call, Endpoint
from .faults import bad_request
from .forms import Done, Org, org_named
from .guard import is_of_other_page
from .offers import LIFETIME_MS, NoOffer, Offer, csrf_for, offer_in, signed
from .orgs import TaxBody
from .pages import page, plan_views, sorry
from .reading import read_form
from .subscriptions import listed

__all__ = ["ENDPOINTS"]

PATH: Final = "/checkout"
ACTION: Final = "checkout"  # relative: whatever is in front of this server may have put something before the path
COOKIE: Final = "tier_checkout"
MAX_URL: Final = 2048  # characters
MAX_TOKEN: Final = 6000  # characters, of an address that browsers and proxies take

_URL: Final = Meta(max_length=MAX_URL, description="An http(s) address", extra_json_schema={"pattern": "^https?://"})


class CheckoutBody(Struct, forbid_unknown_fields=True):
    """``require_billing_address`` and ``tax`` are for payment providers."""

    org: Org
    success_url: Annotated[str, _URL]
    features: list[str] | None = None
    trial_days: Annotated[int, Meta(ge=0, le=MAX_DAYS_AHEAD)] | None = None
    cancel_url: Annotated[str, _URL] | None = None
    require_billing_address: bool | None = None
    tax: TaxBody | None = None


class CheckoutAnswer(Struct):
    """The address of a page to send the person to."""

    url: str


class PageQuery(Struct):
    token: str
    done: str = ""


class PageForm(Struct):
    token: str
    csrf: str = ""


async def checkout(call: Call[CheckoutBody]) -> CheckoutAnswer:
    """With an engine in front of a server that takes payments, the page is that server's."""
    asked, tier, service = call.asked, call.tier, call.service
    org, features = org_named(asked.org), listed(asked.features or ())
    success_url, cancel_url = _page_url(asked.success_url, "success_url"), _page_url(asked.cancel_url, "cancel_url")
    if asked.trial_days and not features:
        raise bad_request(f"trial_days: must come with features, got {asked.trial_days}")
    if isinstance(tier.core.engine, Remote):
        return CheckoutAnswer(await _elsewhere(call, org, features))
    trial_length(asked.trial_days or 0)
    checked_features(listed_features(features), (await tier.pull()).plans)
    clock = tier.clock.id if isinstance(tier, AsyncClockedTier) else ""
    expires_ms = service.tier.core.now_ms() + LIFETIME_MS
    offer = Offer(org, tuple(features), asked.trial_days or 0, success_url, cancel_url, expires_ms, new_key(), clock)
    token = signed(offer, service.secret)
    if len(token) > MAX_TOKEN:
        raise bad_request("features: with these addresses they are too many for one page")
    return CheckoutAnswer(f"{service.public_url or call.url}{PATH}?token={token}")


async def _elsewhere(call: Call[CheckoutBody], org: str, features: Sequence[str]) -> str:
    asked = call.asked
    tax = None if asked.tax is None else to_builtins(asked.tax)
    return await call.tier.checkout(
        org,
        asked.success_url,
        features=features or None,
        trial_days=asked.trial_days or 0,
        cancel_url=asked.cancel_url,
        require_billing_address=bool(asked.require_billing_address),
        tax=tax,
    )


def _page_url(url: str | None, field: str) -> str:
    """An address to send people to, which shows where it leads; empty for none."""
    if url is None:
        return ""
    try:
        parts = urlsplit(url)
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        is_fit = False
    if not is_fit or not url.isascii() or not url.isprintable() or {" ", "\\"} & set(url):
        raise bad_request(f"{field}: must be an http(s) address, without a user in it, got {url[:100]!r}")
    return url


async def show(call: Call[PageQuery]) -> Response:
    """The page. Once the org has what is offered it says so, however often it is opened."""
    offer = _offer(call, call.asked.token)
    if isinstance(offer, Response):
        return offer
    tier = await _client(call, offer)
    views = plan_views(await tier.pull(), listed_features(offer.features))
    values = {"org": offer.org.removeprefix("org:"), "plans": views, "success_url": offer.success_url}
    if await _has_it(tier, offer) or (call.asked.done and not offer.features):
        return page("done.html", **values)
    cookie = _cookies(call.headers).get(COOKIE) or new_key()
    shown = page(
        "confirm.html",
        **values,
        cancel_url=offer.cancel_url,
        trial_days=offer.trial_days,
        action=ACTION,
        token=call.asked.token,
        csrf=csrf_for(call.asked.token, cookie, call.service.secret),
    )
    is_secure = (call.service.public_url or call.url).startswith("https:")
    shown.set_cookie(COOKIE, cookie, path=None, secure=is_secure, httponly=True, samesite="strict")
    return shown


async def confirm(call: Call[PageForm]) -> Response:
    """Subscribe the org, and go back to the page: reloading it confirms nothing again."""
    token = call.asked.token
    offer = _offer(call, token)
    if isinstance(offer, Response):
        return offer
    cookie = _cookies(call.headers).get(COOKIE, "")
    expected = csrf_for(token, cookie, call.service.secret)
    if (
        not cookie
        or is_of_other_page(call.headers, call.service.public_url)
        or not hmac.compare_digest(call.asked.csrf.encode(), expected.encode())
    ):
        return sorry(403, "Not confirmed", "Open the link again and confirm there; this page needs cookies for that.")
    tier = await _client(call, offer)
    if not offer.features:
        await tier.update_org(offer.org, {})
    elif not await _has_it(tier, offer):
        await tier.subscribe(offer.org, offer.features, trial_days=offer.trial_days)
    return RedirectResponse(f"{ACTION}?token={quote(token)}&done=1", 303)


def _offer(call: Call[Any], token: str) -> Offer | Response:
    try:
        return offer_in(token, call.service.secret, call.service.tier.core.now_ms())
    except NoOffer as no:
        if no.has_expired:
            return sorry(410, "This link has expired", "Go back to where you found it, and ask for a new one.")
        return sorry(404, "No such page", "This link is not complete, or not one of ours.")


async def _client(call: Call[Any], offer: Offer) -> AsyncTier:
    tier = call.service.tier
    return await clock_named(tier, offer.clock) if offer.clock else tier


async def _has_it(tier: AsyncTier, offer: Offer) -> bool:
    """Whether the org has what is offered, from now on and for good: then confirming would only begin a trial anew."""
    try:
        phases = (await tier.lookup_phases(offer.org)).phases
    except OrgNotFound:
        return False
    wanted = set(offer.features)
    is_it = bool(wanted) and all({*phase.plans, *phase.fragments} == wanted for phase in phases)
    return is_it and bool(phases) and phases[-1].end is None and await tier.lookup_phase(offer.org) is not None


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return {name: value for name, _, value in pairs}


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/checkout",
        checkout,
        "The address of a page on which a person confirms a plan for an org.",
        CheckoutAnswer,
        body=CheckoutBody,
        is_clocked=True,
    ),
    Endpoint("GET", PATH, show, "The page.", Done, query=PageQuery, is_open=True, is_documented=False),
    Endpoint(
        "POST",
        PATH,
        confirm,
        "Its button.",
        Done,
        body=PageForm,
        read=read_form,
        is_open=True,
        is_documented=False,
    ),
)
