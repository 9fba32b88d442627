"""How a no is said: the body, the status, the headers, and to whom which format."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.clock import milliseconds_of
from tier_middleware.errors import EngineUnavailable
from tier_middleware.model import Feature, Model, Plan
from tier_middleware.ops import Shortfall
from tier_middleware.pricing import read_model
from tier_middleware.refusal import Refusal, close_reason, no_org, refusal_for, text_for, unavailable

NOW = milliseconds_of(datetime(2023, 3, 23, 12, tzinfo=UTC), "now")
RESET = milliseconds_of(datetime(2023, 4, 1, tzinfo=UTC), "reset")

KEYS = ["type", "title", "status", "detail", "code", "feature", "used", "limit", "remaining", "requested", "resets_at", "upgrade"]  # fmt: skip  # noqa: E501  # one row of words


def model(**limits: int | None) -> Model:
    """Plans with a limit for feature:x each, and a fixed price in the order given."""
    plans: dict[str, Any] = {}
    for i, (name, limit) in enumerate(limits.items()):
        tier = {} if limit is None else {"upto": limit}
        plans[f"plan:{name}@1"] = {"features": {"feature:x": {"tiers": [tier]}, "feature:seat": {"base": 100 * i}}}
    return read_model({"plans": plans})


def shortfall(**more: Any) -> Shortfall:
    given: dict[str, Any] = {
        "org": "org:acme", "feature": "feature:x", "requested": 2, "used": 7, "reserved": 2, "limit": 10,
        "reason": "limit_reached", "code": "limit_reached", "resets_at_ms": RESET, **more,
    }  # fmt: skip
    return Shortfall(**given)


def absent(code: str = "feature_not_found") -> Shortfall:
    return shortfall(requested=1, used=0, reserved=0, limit=0, reason="no_entitlement", code=code, resets_at_ms=None)


# ---- what it says ---------------------------------------------------------------------------------------------------


def test_the_body() -> None:
    refusal = refusal_for(shortfall(), model(free=10, pro=100), "/pricing", NOW)
    assert refusal.problem() == {
        "type": "urn:tier-middleware:limit_reached",
        "title": "Limit reached",
        "status": 402,
        "detail": "feature:x: 7 of 10 used, 2 in use by requests that are running, 2 requested.",
        "code": "limit_reached",
        "feature": "feature:x",
        "used": 7,
        "limit": 10,
        "remaining": 1,
        "requested": 2,
        "resets_at": "2023-04-01T00:00:00Z",
        "upgrade": {"url": "/pricing", "plans": ["plan:pro@1"]},
    }


EVERY = [
    refusal_for(shortfall(), model(free=10, pro=100), "/pricing", NOW),
    refusal_for(shortfall(), model(free=10), "/pricing", NOW),
    refusal_for(absent(), model(free=10), None, NOW),
    refusal_for(absent("org_not_found"), model(free=10), "/pricing", NOW),
    refusal_for(
        shortfall(requested=11, reason="amount_exceeds_limit", code="amount_exceeds_limit"), model(), None, NOW
    ),
    no_org("feature:x", is_known=False),
    no_org("feature:x", is_known=True),
    unavailable("feature:x", 3, "org:acme", EngineUnavailable("secret: /var/lib/tier.db is locked")),
]
STATUSES = [402, 429, 402, 402, 402, 401, 403, 503]


@pytest.mark.parametrize(
    ("refusal", "status"), list(zip(EVERY, STATUSES, strict=True)), ids=lambda value: str(value)[:40]
)
@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
def test_for_a_machine(refusal: Refusal, status: int, accept: str | None) -> None:
    text = text_for(refusal, accept)
    body = json.loads(text.body)
    assert text.status == body["status"] == refusal.status == status
    assert list(body) == KEYS
    assert text.headers["content-type"] == "application/problem+json"
    assert text.headers["cache-control"] == "no-store"
    assert "www-authenticate" not in text.headers
    assert body["code"] == refusal.code
    assert body["title"]
    assert body["detail"]
    assert ("retry-after" in text.headers) == (status in (429, 503))


@pytest.mark.parametrize("refusal", EVERY, ids=lambda refusal: refusal.code)
def test_nothing_of_the_inside_is_said(refusal: Refusal) -> None:
    for accept in (None, "text/html"):
        text = text_for(refusal, accept)
        said = text.body.decode() + repr(text.headers)
        assert "secret" not in said
        assert "org:acme" not in said
        assert "payment" not in said.lower()


@pytest.mark.parametrize("code", ["feature_not_found", "org_not_found"])
def test_the_developer_is_told_how_to_subscribe(code: str) -> None:
    detail = refusal_for(absent(code), model(free=10), None, NOW).detail
    assert "subscribe()" in detail
    assert "TIER_DEFAULT_PLAN" in detail


def test_a_feature_that_no_plan_has_is_said_to_be_in_none() -> None:
    assert "TIER_PRICING" in refusal_for(absent("org_not_found"), Model(), None, NOW).detail
    other = Model({"plan:free@1": Plan("plan:free@1", features={"feature:other": Feature()})})
    assert "misspelt" in refusal_for(absent("feature_not_found"), other, None, NOW).detail


# ---- 402 or 429 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fallen", "limits", "status", "retry_after"),
    [
        (shortfall(), {"free": 10}, 429, 734_400),
        (shortfall(), {"free": 10, "pro": 100}, 402, None),
        (shortfall(), {"free": 10, "pro": 10}, 429, 734_400),  # no more than it has
        (shortfall(), {"free": 10, "pro": 11}, 402, None),
        (shortfall(requested=3), {"free": 10, "pro": 11}, 429, 734_400),  # 7 + 2 + 3 do not fit either
        (shortfall(), {"free": 10, "pro": None}, 402, None),
        (shortfall(resets_at_ms=None), {"free": 10}, 402, None),  # perpetual: waiting does not help
        (shortfall(requested=11, reason="amount_exceeds_limit"), {"free": 10}, 402, None),
        (shortfall(resets_at_ms=NOW + 1), {"free": 10}, 429, 1),
        (shortfall(resets_at_ms=NOW + 1001), {"free": 10}, 429, 2),
        (shortfall(resets_at_ms=NOW), {"free": 10}, 429, 1),
        (shortfall(resets_at_ms=NOW - 5000), {"free": 10}, 429, 1),
        (absent(), {"free": 10}, 402, None),
    ],
)
def test_429_only_where_waiting_is_all_there_is(
    fallen: Shortfall, limits: dict[str, int | None], status: int, retry_after: int | None
) -> None:
    refusal = refusal_for(fallen, model(**limits), "/pricing", NOW)
    assert (refusal.status, refusal.retry_after) == (status, retry_after)
    headers = text_for(refusal, None).headers
    assert headers.get("retry-after") == (None if retry_after is None else str(retry_after))


def test_plans_are_offered_cheapest_first() -> None:
    offered = refusal_for(shortfall(), model(free=10, cheap=50, dear=20, dearest=None), None, NOW).plans
    assert offered == ("plan:cheap@1", "plan:dear@1", "plan:dearest@1")


def test_remaining_is_never_below_zero() -> None:
    assert refusal_for(shortfall(used=30), model(free=10), None, NOW).remaining == 0


# ---- browsers -------------------------------------------------------------------------------------------------------

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"  # noqa: E501
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
JQUERY = "application/json, text/javascript, */*; q=0.01"

HTML = [
    CHROME, FIREFOX, "text/html", "text/html;q=0.1", "text/html, */*;q=0.9", "TEXT/HTML", "text/html;charset=utf-8",
    "application/json;q=0.8, text/html", "text/html;q=0.9,application/json;q=0.8", " text/html ; q=0.5 , */*;q=0.1",
    "text/html;level=1;q=0.7,*/*;q=0.5", "text/html,application/problem+json;q=0.9",
    "text/html;q=0.5,application/json;q=0,*/*;q=0.4", "text/html,application/json;q=0",
]  # fmt: skip
MACHINES = [
    None, "", "*/*", "application/json", "application/problem+json", "application/json, text/plain, */*", JQUERY,
    "text/html, */*", "text/html,application/json", "application/json,text/html;q=0.9", "text/html;q=0",
    "text/html;q=0,*/*", "text/plain", "text/*", "image/png", "text/html;q=nope", "text/html;q=", "text/html;q=nan",
    "text/event-stream", "application/xhtml+xml", "xtext/html", "text/htmlx", ",,;;==,", "html", ";q=1", "\x00", "*",
    "application/*", "text/html;q=0.5,application/*", "*/*;q=0.9,text/html;q=0.8", "application/problem+json,text/html",
]  # fmt: skip


@pytest.mark.parametrize("accept", HTML)
def test_who_prefers_html(accept: str) -> None:
    refusal = EVERY[0]
    to_page = text_for(refusal, accept)
    assert (to_page.status, to_page.headers["location"], to_page.body) == (303, "/pricing", b"")
    assert to_page.headers["cache-control"] == "no-store"
    page = text_for(refusal_for(shortfall(), model(pro=100), None, NOW), accept)
    assert (page.status, page.headers["content-type"]) == (402, "text/html; charset=utf-8")


@pytest.mark.parametrize("accept", MACHINES)
def test_who_does_not(accept: str | None) -> None:
    text = text_for(EVERY[0], accept)
    assert (text.status, text.headers["content-type"]) == (402, "application/problem+json")


def test_caches_are_told_that_it_depends() -> None:
    for accept in (None, "text/html"):
        assert text_for(EVERY[0], accept).headers["vary"] == "Accept"


@pytest.mark.parametrize("refusal", EVERY, ids=lambda refusal: refusal.code)
def test_only_what_is_sold_goes_to_the_upgrade_page(refusal: Refusal) -> None:
    text = text_for(dataclasses.replace(refusal, upgrade_url="/pricing"), CHROME)
    is_sold = refusal.code in ("no_entitlement", "limit_reached", "amount_exceeds_limit")
    assert (text.status == 303) == is_sold
    if not is_sold:
        assert text.status == refusal.status
        assert "location" not in text.headers
        assert text.headers["content-type"].startswith("text/html")


def test_a_browser_is_not_told_to_wait_for_the_upgrade_page() -> None:
    """Retry-After on a 303 says how long to wait before following it."""
    to_page = text_for(EVERY[1], CHROME)
    assert to_page.status == 303
    assert "retry-after" not in to_page.headers
    assert text_for(refusal_for(shortfall(), model(free=10), None, NOW), CHROME).headers["retry-after"] == "734400"


def test_the_page_is_escaped() -> None:
    evil = shortfall(feature='feature:x<script>alert("1")</script>&')
    page = text_for(refusal_for(evil, model(), None, NOW), "text/html").body.decode()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;" in page
    assert page.startswith("<!doctype html>")


@given(st.text(max_size=200))
def test_any_accept_header_is_answered(accept: str) -> None:
    assert text_for(EVERY[0], accept).status in (303, 402)


@given(st.lists(st.sampled_from(["text/html", "application/json", "*/*", "text/html;q=0.5", "*/*;q=0.1"]), max_size=6))
def test_the_order_of_an_accept_header_says_nothing(parts: list[str]) -> None:
    unique = list(dict.fromkeys(part.split(";")[0] for part in parts))
    weights = [next(part for part in parts if part.startswith(kind)) for kind in unique]
    forwards = text_for(EVERY[0], ",".join(weights))
    assert forwards == text_for(EVERY[0], ",".join(reversed(weights)))


@pytest.mark.parametrize("feature", ["feature:x", "feature:" + "long" * 15, "feature:" + "é" * 30, "f" * 10_000, None])
def test_the_reason_of_a_close_has_room_for_what_fits(feature: str | None) -> None:
    """RFC 6455 leaves 123 bytes for it."""
    refusal = Refusal("amount_exceeds_limit", 402, "detail", feature=feature, used=2**62, limit=2**62)
    reason = close_reason(refusal)
    assert len(reason.encode()) <= 123
    said = json.loads(reason)
    assert said["code"] == "amount_exceeds_limit"
    assert said.get("feature", feature) == feature
    assert close_reason(Refusal("limit_reached", 402, "", feature="feature:x", used=3, limit=3)) == (
        '{"code":"limit_reached","feature":"feature:x","limit":3,"used":3}'
    )
