"""How a no is said over HTTP: which status, which words, which upgrade. Pure; faces turn it into responses.

Machines get ``application/problem+json`` (RFC 9457), browsers the upgrade page or a small page of ours.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, Literal, TypeAlias

from .clock import moment
from .errors import TierError
from .model import Model
from .names import MAX_UNITS
from .ops import Shortfall
from .policy import Reason
from .prices import upgrades_for

__all__ = [
    "Code",
    "Refusal",
    "RefusalText",
    "bad_key",
    "close_reason",
    "no_org",
    "refusal_for",
    "text_for",
    "unavailable",
]

Code: TypeAlias = Reason | Literal["invalid_idempotency_key"]
"""Why a request is refused: for its plan, or for what is wrong with it."""

TITLES: Final[Mapping[str, str]] = {
    "invalid_idempotency_key": "Bad Idempotency-Key",
    "no_org": "No organisation",
    "no_entitlement": "Not in your plan",
    "limit_reached": "Limit reached",
    "amount_exceeds_limit": "More than your plan allows",
    "engine_unavailable": "Cannot be checked right now",
}
MAX_CLOSE_REASON: Final = 123  # bytes
SOLD: Final = frozenset({"no_entitlement", "limit_reached", "amount_exceeds_limit"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """The no to one request, as ``on_refused`` gets it and as the client sees it.

    ``code`` is one of `Code`. ``plans`` are those that would allow the request, cheapest first. ``retry_after`` is in
    seconds, None where waiting does not help. ``error`` is set for ``engine_unavailable``.
    """

    code: Code
    status: int
    detail: str
    org: str | None = None
    feature: str | None = None
    requested: int = 0
    used: int = 0
    limit: int | None = 0
    remaining: int | None = 0
    resets_at: datetime | None = None
    retry_after: int | None = None
    upgrade_url: str | None = None
    plans: tuple[str, ...] = ()
    error: TierError | None = None

    @property
    def title(self) -> str:
        return TITLES[self.code]

    def problem(self) -> dict[str, Any]:
        """The body of the answer, as RFC 9457 has it."""
        return {
            "type": f"urn:tier-middleware:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "feature": self.feature,
            "used": self.used,
            "limit": self.limit,
            "remaining": self.remaining,
            "requested": self.requested,
            "resets_at": None if self.resets_at is None else _rfc3339(self.resets_at),
            "upgrade": {"url": self.upgrade_url, "plans": list(self.plans)},
        }


@dataclass(frozen=True, slots=True)
class RefusalText:
    """A refusal as HTTP: status, headers and body, for whatever makes a face's responses."""

    status: int
    headers: dict[str, str]
    body: bytes


def refusal_for(shortfall: Shortfall, model: Model, upgrade_url: str | None, now_ms: int) -> Refusal:
    """The refusal of an org that may not: 429 where no plan gives more and waiting helps, 400 where nothing can."""
    taken = shortfall.used + shortfall.reserved
    is_countable = shortfall.requested <= MAX_UNITS
    plans = upgrades_for(model, shortfall.feature, taken, shortfall.requested, shortfall.limit) if is_countable else ()
    resets_at_ms = shortfall.resets_at_ms
    has_to_wait = shortfall.reason == "limit_reached" and resets_at_ms is not None and not plans
    is_senseless = shortfall.reason == "amount_exceeds_limit" and shortfall.limit is None  # no plan allows more
    retry_after = None
    if has_to_wait and resets_at_ms is not None:
        retry_after = max(1, -(-(resets_at_ms - now_ms) // 1000))
    return Refusal(
        code=shortfall.reason,
        status=429 if has_to_wait else 400 if is_senseless else 402,
        detail=_detail(shortfall, model),
        org=shortfall.org,
        feature=shortfall.feature,
        requested=shortfall.requested,
        used=shortfall.used,
        limit=shortfall.limit,
        remaining=None if shortfall.limit is None else max(0, shortfall.limit - taken),
        resets_at=None if resets_at_ms is None else moment(resets_at_ms),
        retry_after=retry_after,
        upgrade_url=upgrade_url,
        plans=tuple(plan.name for plan in plans),
    )


def no_org(feature: str, *, is_known: bool) -> Refusal:
    """Nobody is logged in (401), or somebody who belongs to no org (403)."""
    detail = "You belong to no organisation." if is_known else "Log in first: this needs an organisation's plan."
    return Refusal("no_org", 403 if is_known else 401, detail, feature=feature)


def bad_key(feature: str, problem: str) -> Refusal:
    """An ``Idempotency-Key`` that cannot be used (400): to count without it might count twice."""
    return Refusal("invalid_idempotency_key", 400, f"The header Idempotency-Key {problem}.", feature=feature)


def unavailable(feature: str, requested: int, org: str | None, error: TierError) -> Refusal:
    """Nobody knows: 503, never 402, or a client would pay for our outage. The error's text is not for clients."""
    detail = "Your plan cannot be checked right now. Nothing was counted; try again soon."
    return Refusal(
        "engine_unavailable",
        503,
        detail,
        org,
        feature,
        requested,
        limit=None,
        remaining=None,
        retry_after=5,
        error=error,
    )


def _detail(shortfall: Shortfall, model: Model) -> str:
    feature = shortfall.feature
    if shortfall.reason == "no_entitlement" and feature not in model.features:
        advice = "set TIER_PRICING, or push a pricing model" if not model.plans else "is its name misspelt?"
        return f"{feature} is in no plan. (For the developer: {advice}.)"
    if shortfall.code == "org_not_found":
        return (
            f"{feature} needs a plan, and this organisation was never subscribed to one. "
            "(For the developer: call subscribe() when an org signs up, or set TIER_DEFAULT_PLAN.)"
        )
    if shortfall.reason == "no_entitlement":
        return (
            f"{feature} is not part of this organisation's plan. "
            "(For the developer: subscribe() it to a plan that has the feature, or set TIER_DEFAULT_PLAN.)"
        )
    if shortfall.requested > MAX_UNITS:
        allowed = "" if shortfall.limit is None else f", and the plan allows {shortfall.limit} per period"
        return f"{feature}: more was requested than can be counted{allowed}."
    if shortfall.reason == "amount_exceeds_limit":
        return f"{feature}: {shortfall.requested} requested, and the plan allows {shortfall.limit} per period."
    limit = "what can be counted" if shortfall.limit is None else shortfall.limit
    text = f"{feature}: {shortfall.used} of {limit} used"
    if shortfall.reserved:
        text += f", {shortfall.reserved} in use by requests that are running"
    return f"{text}, {shortfall.requested} requested."


def close_reason(refusal: Refusal) -> str:
    """Why a WebSocket is closed, as JSON in the 123 bytes that RFC 6455 leaves for it: as much as there is room for."""
    known = {"code": refusal.code, "feature": refusal.feature, "limit": refusal.limit, "used": refusal.used}
    while True:
        text = json.dumps(known, separators=(",", ":"))
        if len(text) <= MAX_CLOSE_REASON:  # of ASCII, which json.dumps makes of everything
            return text
        known.popitem()


def text_for(refusal: Refusal, accept: str | None) -> RefusalText:
    """The answer for a client that sent this ``Accept`` header."""
    headers = {"cache-control": "no-store", "vary": "Accept"}
    is_page = _prefers_html(accept)
    if is_page and refusal.upgrade_url is not None and refusal.code in SOLD and refusal.status != 400:
        return RefusalText(HTTPStatus.SEE_OTHER, {**headers, "location": refusal.upgrade_url}, b"")
    if refusal.retry_after is not None:  # on a redirect it would say when to follow that
        headers["retry-after"] = str(refusal.retry_after)
    if not is_page:
        headers["content-type"] = "application/problem+json"
        return RefusalText(refusal.status, headers, json.dumps(refusal.problem()).encode())
    headers["content-type"] = "text/html; charset=utf-8"
    return RefusalText(refusal.status, headers, _page(refusal).encode())


def _page(refusal: Refusal) -> str:
    title, detail = html.escape(refusal.title), html.escape(refusal.detail)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<body style="font-family:sans-serif;margin:3em auto;max-width:40em"><h1>{title}</h1><p>{detail}</p></body>'
        "</html>"
    )


def _prefers_html(accept: str | None) -> bool:
    """Whether a client would rather have HTML than JSON: by RFC 9110's weights, and JSON where both weigh the same."""
    if accept is None or "html" not in accept.lower():
        return False
    weights = dict(_weights(accept))
    other = weights.get("application/*", weights.get("*/*", 0.0))
    json_weight = max(weights.get(kind, 0.0) for kind in ("application/json", "application/problem+json"))
    return weights.get("text/html", 0.0) > max(json_weight, other if json_weight == 0.0 else 0.0)


def _weights(accept: str) -> list[tuple[str, float]]:
    found = []
    for part in accept[:4096].split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        found.append((kind, weight))
    return found


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
