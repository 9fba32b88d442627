"""The checkout page: what it shows, who can confirm what, and where people are sent."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from served import MODEL

from tier_middleware import AsyncTier, ManualClock
from tier_middleware.server import TierServer

NOW = datetime(2024, 5, 1, tzinfo=UTC)
KEY = "a-key"
SHOP = "https://shop.example.com/welcome?a=1&b=2"
BODY = {"org": "org:acme", "success_url": SHOP, "features": "plan:pro@1", "cancel_url": "https://shop.example.com/no"}


class Shop:
    """A server with a key, a client that has it, and a browser that has not."""

    def __init__(self, tier: AsyncTier, clock: ManualClock, **options: Any) -> None:
        self.tier = tier
        self.clock = clock
        transport = httpx.ASGITransport(TierServer(tier, **{"api_key": KEY, **options}))
        url = "http://tier.example.com"
        self.api = httpx.AsyncClient(transport=transport, base_url=url, auth=(KEY, ""))
        self.browser = httpx.AsyncClient(transport=transport, base_url=url)

    async def link(self, **changes: Any) -> str:
        answer = await self.asked(**changes)
        assert answer.status_code == 200, answer.text
        url: str = answer.json()["url"]
        return url

    async def asked(self, **changes: Any) -> httpx.Response:
        body = {**BODY, "features": ["plan:pro@1"], **changes}
        return await self.api.post("/v1/checkout", json={k: v for k, v in body.items() if v is not None})

    async def plans(self, org: str = "org:acme") -> tuple[str, ...]:
        phase = await self.tier.lookup_phase(org)
        return () if phase is None else phase.plans


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
async def tier(url: str, clock: ManualClock) -> AsyncIterator[AsyncTier]:
    async with AsyncTier(url, clock=clock) as tier:
        await tier.push(MODEL)
        yield tier


@pytest.fixture
def shop(tier: AsyncTier, clock: ManualClock) -> Shop:
    return Shop(tier, clock)


def fields(page: str) -> dict[str, str]:
    return {name: html.unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', page)}


async def confirmed(shop: Shop, link: str, **headers: str) -> httpx.Response:
    """What a browser gets that opens the link and presses the button."""
    page = await shop.browser.get(link)
    assert page.status_code == 200
    return await shop.browser.post("/checkout", data=fields(page.text), headers=headers)


async def test_confirming_subscribes_and_then_says_where_it_leads(shop: Shop) -> None:
    link = await shop.link()
    page = await shop.browser.get(link)
    assert "No payment is taken here" in page.text
    assert "Pro" in page.text
    assert "acme" in page.text
    assert html.escape(SHOP) in page.text
    assert "https://shop.example.com/no" in page.text
    done = await confirmed(shop, link)
    assert done.status_code == 303
    assert await shop.plans() == ("plan:pro@1",)
    after = await shop.browser.get(done.headers["location"])
    assert f'href="{html.escape(SHOP)}"' in after.text
    assert "<form" not in after.text


async def test_with_a_trial(shop: Shop) -> None:
    link = await shop.link(trial_days=14)
    assert "Free for 14 days" in (await shop.browser.get(link)).text
    await confirmed(shop, link)
    phases = (await shop.tier.lookup_phases("org:acme")).phases
    assert [(phase.trial, phase.end) for phase in phases] == [(True, NOW + timedelta(days=14)), (False, None)]


async def test_a_trial_cannot_be_begun_anew_by_confirming_again(shop: Shop) -> None:
    link = await shop.link(trial_days=14)
    page = await shop.browser.get(link)
    for _ in range(2):
        assert (await shop.browser.post("/checkout", data=fields(page.text))).status_code == 303
        shop.clock.advance(timedelta(hours=10))
    assert (await shop.tier.lookup_phases("org:acme")).phases[0].end == NOW + timedelta(days=14)


async def test_who_has_cancelled_for_later_can_confirm_to_stay(shop: Shop) -> None:
    await shop.tier.subscribe("org:acme", "plan:pro@1")
    await shop.tier.cancel("org:acme", at=NOW + timedelta(days=3))
    assert (await confirmed(shop, await shop.link())).status_code == 303
    assert (await shop.tier.lookup_phases("org:acme")).phases[-1].end is None


async def test_without_features_it_only_makes_the_org_known(shop: Shop) -> None:
    done = await confirmed(shop, await shop.link(features=None))
    assert "Continue" in (await shop.browser.get(done.headers["location"])).text
    assert await shop.plans() == ()
    assert (await shop.tier.whois("org:acme")).org == "org:acme"


async def test_under_a_test_clock(shop: Shop) -> None:
    clocked = await shop.tier.with_clock("c", datetime(2020, 1, 1, tzinfo=UTC))
    shop.api.headers["Tier-Clock"] = clocked.clock.id
    await confirmed(shop, await shop.link())
    phase = await clocked.lookup_phase("org:acme")
    assert phase is not None
    assert phase.effective == datetime(2020, 1, 1, tzinfo=UTC)


# ---- addresses ------------------------------------------------------------------------------------------------------


async def test_an_address_works_in_other_workers_and_after_a_restart(shop: Shop, clock: ManualClock) -> None:
    link = await shop.link()
    other = Shop(shop.tier, clock)
    assert (await confirmed(other, link)).status_code == 303


async def test_an_address_of_another_key_is_none(shop: Shop, clock: ManualClock) -> None:
    link = await shop.link()
    other = Shop(shop.tier, clock, api_key="another")
    assert (await other.browser.get(link)).status_code == 404


@pytest.mark.parametrize("change", ["", "x", ".", "x.x", "é", "a" * 5000])
async def test_an_address_that_was_not_made_here(shop: Shop, change: str) -> None:
    answer = await shop.browser.get("/checkout", params={"token": change})
    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/html")


async def test_an_address_that_was_changed(shop: Shop) -> None:
    token = parse_qs(urlsplit(await shop.link()).query)["token"][0]
    for index in range(0, len(token), 7):
        other = "A" if token[index] != "A" else "B"
        changed = token[:index] + other + token[index + 1 :]
        assert (await shop.browser.get("/checkout", params={"token": changed})).status_code == 404


async def test_an_address_expires(shop: Shop) -> None:
    link = await shop.link()
    page = await shop.browser.get(link)
    shop.clock.advance(timedelta(days=1))
    for answer in (await shop.browser.get(link), await shop.browser.post("/checkout", data=fields(page.text))):
        assert answer.status_code == 410
    assert (await shop.api.get("/v1/whois?org=org:acme")).status_code == 400


async def test_two_addresses_for_the_same_are_two(shop: Shop) -> None:
    assert await shop.link() != await shop.link()


async def test_people_may_reach_it_elsewhere(shop: Shop, clock: ManualClock) -> None:
    assert (await shop.link()).startswith("http://tier.example.com/checkout?token=")
    public = Shop(shop.tier, clock, public_url="https://pay.example.com/tier/")
    assert (await public.link()).startswith("https://pay.example.com/tier/checkout?token=")


@pytest.mark.parametrize("host", ["evil.example/x", 'x"><script>', "a b", ""])
async def test_a_host_that_is_none_is_not_repeated(shop: Shop, host: str) -> None:
    answer = await shop.api.post("/v1/checkout", json={**BODY, "features": None}, headers={"host": host})
    assert answer.json()["url"].startswith("http://tier.example.com/checkout?token=")


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"success_url": "javascript:alert(1)"}, "invalid_request", "success_url"),
        ({"success_url": "//evil.example"}, "invalid_request", "success_url"),
        ({"success_url": "/welcome"}, "invalid_request", "success_url"),
        ({"success_url": "https://shop.example.com@evil.example/"}, "invalid_request", "success_url"),
        ({"success_url": "https://"}, "invalid_request", "success_url"),
        ({"success_url": "https://["}, "invalid_request", "success_url"),
        ({"success_url": "https://a.example/\r\nset-cookie: a=b"}, "invalid_request", "success_url"),
        ({"success_url": "https:\\\\evil.example"}, "invalid_request", "success_url"),
        ({"success_url": "https://a.example/" + "x" * 3000}, "invalid_request", "success_url"),
        ({"success_url": None}, "invalid_request", "success_url: must be given"),
        ({"cancel_url": "data:text/html,x"}, "invalid_request", "cancel_url"),
        ({"features": ["plan:nope@1"]}, "TERR1020", "feature or plan not found"),
        ({"features": ["plan:pro@1", "plan:pro@1"]}, "feature_not_found", "feature not found"),
        ({"features": ["pro"]}, "invalid_request", "plan name must start with 'plan:'"),
        ({"features": None, "trial_days": 3}, "invalid_request", "trial_days"),
        ({"trial_days": -1}, "invalid_request", "trial_days"),
        ({"trial_days": 10**9}, "invalid_request", "trial_days"),
        ({"org": "acme"}, "invalid_request", "org must be prefixed"),
        ({"expires_ms": 1}, "invalid_request", 'unknown field "expires_ms"'),
        ({"features": ["feature:calls@plan:pro@1"] * 400}, "feature_not_found", "feature not found"),
    ],
)
async def test_a_mistake_is_said(shop: Shop, changes: dict[str, Any], code: str, said: str) -> None:
    answer = await shop.asked(**changes)
    assert answer.status_code == 400
    assert answer.json()["code"] == code
    assert said in answer.json()["message"]


async def test_what_does_not_fit_an_address(shop: Shop) -> None:
    long = "https://a.example/" + "x" * 1900
    assert (await shop.asked(success_url=long, cancel_url=long, org="org:" + "x" * 1000)).status_code == 400


# ---- attacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
)
async def test_another_page_cannot_press_the_button(shop: Shop, headers: dict[str, str]) -> None:
    answer = await confirmed(shop, await shop.link(), **headers)
    assert answer.status_code == 403
    assert (await shop.api.get("/v1/whois?org=org:acme")).status_code == 400


async def test_the_button_is_of_the_browser_that_was_shown_it(shop: Shop) -> None:
    page = await shop.browser.get(await shop.link())
    shown = fields(page.text)
    for cookie in ("", "tier_checkout=", "tier_checkout=another"):
        shop.browser.cookies.clear()
        answer = await shop.browser.post("/checkout", data=shown, headers={"cookie": cookie})
        assert answer.status_code == 403
    for csrf in ("", "x", "é"):
        assert (await shop.browser.post("/checkout", data={**shown, "csrf": csrf})).status_code == 403


async def test_no_script_reads_the_cookie_and_no_other_page_sends_it(shop: Shop, clock: ManualClock) -> None:
    cookie = (await shop.browser.get(await shop.link())).headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    public = Shop(shop.tier, clock, public_url="https://pay.example.com")
    page = await public.browser.get("/checkout?" + urlsplit(await public.link()).query)
    assert "Secure" in page.headers["set-cookie"]


async def test_behind_a_proxy_the_public_origin_is_its_own(shop: Shop, clock: ManualClock) -> None:
    public = Shop(shop.tier, clock, public_url="http://pay.example.com/tier")
    link = "/checkout?" + urlsplit(await public.link()).query
    assert (await confirmed(public, link, origin="http://other.example.com")).status_code == 403
    done = await confirmed(public, link, origin="http://pay.example.com")
    assert (done.status_code, done.headers["location"].partition("?")[0]) == (303, "checkout")


async def test_the_page_loads_nothing_and_cannot_be_framed(shop: Shop) -> None:
    page = await shop.browser.get(await shop.link())
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"


async def test_everything_on_it_is_escaped(shop: Shop) -> None:
    script = "<script>alert(1)</script>"
    feature = {"title": script, "tiers": [{"upto": 3}]}
    await shop.tier.push({"plans": {"plan:x@1": {"title": script, "features": {"feature:x": feature}}}})
    link = await shop.link(
        org=f"org:{script}",
        features=["plan:x@1"],
        success_url="https://a.example/?'><script>",
        cancel_url='https://a.example/?"><script>',
    )
    page = await shop.browser.get(link)
    done = await confirmed(shop, link)
    after = await shop.browser.get(done.headers["location"])
    for text in (page.text, after.text):
        assert "<script" not in text
        assert "&lt;script&gt;" in text


async def test_an_address_may_not_be_asked_for_without_the_key(shop: Shop) -> None:
    assert (await shop.browser.post("/v1/checkout", json=BODY)).status_code == 401
