"""What every face promises, told once: what is counted, what is refused, and what is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from counting import used
from face_apps import FACES, Face

from tier_middleware import AsyncTier, EngineUnavailable
from tier_middleware.core import Core
from tier_middleware.engines.away import AwayEngine
from tier_middleware.settings import Settings


class Visitor:
    """A client of one face's application. ``ran`` lists the handlers that ran."""

    def __init__(self, face: Face, tier: AsyncTier, **options: Any) -> None:
        self.face = face
        self.tier = tier
        self.ran: list[str] = []
        self.app = face.app(tier, self.ran, **options)

    async def visit(self, url: str, method: str = "GET", org: str = "acme", **headers: str) -> httpx.Response:
        answer: httpx.Response = await self.face.visit(self.app, method, url, {"x-org": org, **headers})
        return answer

    async def used(self, feature: str = "feature:convert") -> tuple[int, int]:
        return await used(self.tier, feature)


@pytest.fixture(params=FACES, ids=lambda face: face.name)
async def visitor(request: pytest.FixtureRequest, tier: AsyncTier) -> Visitor:
    return Visitor(request.param, tier)


@pytest.fixture(params=[face for face in FACES if face.is_async], ids=lambda face: face.name)
async def async_visitor(request: pytest.FixtureRequest, tier: AsyncTier) -> Visitor:
    return Visitor(request.param, tier)


# ---- what is counted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 201, 202, 204, 302, 304])
async def test_a_success_is_counted_once(visitor: Visitor, code: int) -> None:
    answer = await visitor.visit(f"/status?code={code}")
    assert answer.status_code == code
    assert await visitor.used() == (1, 0)


@pytest.mark.parametrize("code", [400, 401, 402, 404, 409, 422, 429, 500, 503])
async def test_a_failure_is_not(visitor: Visitor, code: int) -> None:
    answer = await visitor.visit(f"/status?code={code}")
    assert answer.status_code == code
    assert visitor.ran == ["/status"]
    assert await visitor.used() == (0, 0)


async def test_nor_is_an_exception(visitor: Visitor) -> None:
    assert (await visitor.visit("/fail")).status_code == 500
    assert visitor.ran == ["/fail"]
    assert await visitor.used() == (0, 0)


async def test_post_is_as_good_as_get(visitor: Visitor) -> None:
    assert (await visitor.visit("/status", "POST")).status_code == 200
    assert await visitor.used() == (1, 0)


async def test_options_is_never_gated(visitor: Visitor) -> None:
    answer = await visitor.visit("/audit", "OPTIONS", org="nobody")  # a preflight carries no credentials
    assert answer.status_code == 200
    assert await visitor.visit("/say?set=3", "OPTIONS")
    assert await visitor.used() == (0, 0)


async def test_head_is_checked_and_not_counted(visitor: Visitor) -> None:
    assert (await visitor.visit("/status", "HEAD")).status_code == 200
    assert (await visitor.visit("/audit", "HEAD")).status_code == 402
    assert visitor.ran == ["/status"]
    assert await visitor.used() == (0, 0)


async def test_report_if_decides_what_a_success_is(visitor: Visitor) -> None:
    for code in (200, 404, 500):
        assert (await visitor.visit(f"/counts-404?code={code}")).status_code == code
    assert await visitor.used() == (1, 0)


async def test_an_ungated_route_costs_nothing(visitor: Visitor) -> None:
    assert (await visitor.visit("/ungated", org="nobody")).status_code == 200
    assert await visitor.used() == (0, 0)


# ---- how much -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("url", "n"), [("/three", 3), ("/n?n=4", 4), ("/n-async?n=5", 5), ("/zero", 0), ("/n?n=0", 0)])
async def test_the_amount(visitor: Visitor, url: str, n: int) -> None:
    assert (await visitor.visit(url)).status_code == 200
    assert await visitor.used() == (n, 0)


async def test_an_amount_of_0_asks_that_anything_is_left(visitor: Visitor) -> None:
    await visitor.tier.subscribe("org:acme", "plan:free@1")
    await visitor.tier.report("org:acme", "feature:convert", 10)
    assert (await visitor.visit("/zero")).status_code == 402
    assert visitor.ran == []


@pytest.mark.parametrize("n", ["-1", "1.5", "x"])
async def test_an_amount_that_is_none_fails_the_request(visitor: Visitor, n: str) -> None:
    assert (await visitor.visit(f"/n?n={n}")).status_code == 500
    assert visitor.ran == []
    assert await visitor.used() == (0, 0)


@pytest.mark.parametrize(
    ("url", "n"),
    [
        ("/say", 2),
        ("/say?set=5", 5),
        ("/say?set=0", 0),
        ("/say?add=3", 3),  # the first replaces the estimate
        ("/say?set=3&add=4", 7),
        ("/say?add=4&set=3", 3),
        ("/say?skip=1", 0),
        ("/say?skip=1&add=4", 4),
        ("/say?add=4&skip=1", 0),
        ("/say?set=40", 40),  # the work was done
    ],
)
async def test_what_the_handler_says(visitor: Visitor, url: str, n: int) -> None:
    assert (await visitor.visit(url)).status_code == 200
    assert await visitor.used() == (n, 0)


async def test_overage_is_recorded_and_counted_by_reason(visitor: Visitor) -> None:
    await visitor.visit("/say?set=13")
    assert await visitor.used() == (13, 0)
    assert visitor.tier.counts["over_limit.overage"] == 3


async def test_overage_can_be_capped(visitor: Visitor) -> None:
    await visitor.visit("/cap?set=13")
    assert await visitor.used() == (10, 0)
    assert visitor.tier.counts["lost.capped"] == 3


async def test_taking_more_reserves_it_first(async_visitor: Visitor) -> None:
    assert (await async_visitor.visit("/take?n=9")).status_code == 200
    assert await async_visitor.used() == (9, 0)
    assert (await async_visitor.visit("/take?n=1")).status_code == 500  # LimitReached, which the handler lets out
    assert await async_visitor.used() == (9, 0)


async def test_the_handler_sees_the_numbers(visitor: Visitor) -> None:
    await visitor.visit("/three")
    answer = await visitor.visit("/numbers")
    assert answer.text == "3 10 6 org:acme"  # its own unit is held


async def test_the_same_feature_twice_adds(visitor: Visitor) -> None:
    assert (await visitor.visit("/twice")).status_code == 200
    assert await visitor.used() == (5, 0)
    await visitor.visit("/twice")
    assert (await visitor.visit("/status")).status_code == 402
    assert await visitor.used() == (10, 0)


async def test_a_level_is_set(visitor: Visitor) -> None:
    for n, status in ((3, 200), (5, 200), (2, 200), (6, 402)):
        assert (await visitor.visit(f"/seats?n={n}")).status_code == status
    assert await visitor.used("feature:seats") == (5, 0)


async def test_a_level_needs_an_amount(visitor: Visitor) -> None:
    assert (await visitor.visit("/seats-unsaid")).status_code == 500
    assert visitor.ran == []
    assert await visitor.used("feature:seats") == (0, 0)


async def test_an_on_off_feature_is_asked_for_and_not_counted(visitor: Visitor) -> None:
    assert (await visitor.visit("/sso")).status_code == 200
    assert (await visitor.visit("/audit")).status_code == 402
    assert visitor.ran == ["/sso"]
    assert visitor.tier.counts == {}


# ---- refusals -------------------------------------------------------------------------------------------------------


async def test_who_is_refused_runs_no_handler(visitor: Visitor) -> None:
    for _ in range(10):
        assert (await visitor.visit("/status")).status_code == 200
    answer = await visitor.visit("/status")
    assert answer.status_code == 402
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "limit_reached"
    assert answer.json()["upgrade"]["plans"] == ["plan:pro@1"]
    assert len(visitor.ran) == 10
    assert await visitor.used() == (10, 0)


async def test_a_request_that_asks_too_much_gets_nothing(visitor: Visitor) -> None:
    answer = await visitor.visit("/n?n=11")
    assert (answer.status_code, answer.json()["code"]) == (402, "amount_exceeds_limit")
    assert answer.json()["requested"] == 11
    assert await visitor.used() == (0, 0)


@pytest.mark.parametrize("n", [2**63 - 1, 2**63, 10**40])
async def test_an_absurd_amount_is_refused(visitor: Visitor, n: int) -> None:
    answer = await visitor.visit(f"/n?n={n}")
    told = answer.json()
    assert (answer.status_code, told["code"], told["limit"]) == (402, "amount_exceeds_limit", 10)
    assert told["requested"] == min(n, 2**63)
    assert visitor.ran == []
    assert await visitor.used() == (0, 0)


@pytest.mark.parametrize("n", [2**63, 10**40])
async def test_more_than_can_be_counted_is_refused_without_a_limit_too(visitor: Visitor, n: int) -> None:
    page = await visitor.visit(f"/calls?n={n}", accept="text/html")
    answer = await visitor.visit(f"/calls?n={n}")
    assert (page.status_code, answer.status_code, answer.json()["code"]) == (400, 400, "amount_exceeds_limit")
    assert (answer.json()["limit"], answer.json()["upgrade"]["plans"]) == (None, [])
    assert await visitor.used("feature:calls") == (0, 0)
    assert (await visitor.visit("/calls?n=1")).status_code == 200
    full = await visitor.visit(f"/calls?n={2**63 - 1}")
    assert (full.status_code, full.json()["code"]) == (429, "limit_reached")
    assert "1 of what can be counted used" in full.json()["detail"]


@pytest.mark.parametrize("first", ["feature:top", "feature:convert"])
async def test_two_features_all_or_none(visitor: Visitor, first: str) -> None:
    await visitor.tier.subscribe("org:acme", "plan:free@1")
    full = {"feature:top": 3, "feature:convert": 10}
    await visitor.tier.report("org:acme", first, full[first])
    assert (await visitor.visit("/two")).status_code in (402, 429)
    assert visitor.ran == []
    for feature, n in full.items():
        assert await visitor.used(feature) == (n if feature == first else 0, 0)


async def test_two_features_are_both_counted(visitor: Visitor) -> None:
    assert (await visitor.visit("/two")).status_code == 200
    assert await visitor.used("feature:top") == (1, 0)
    assert await visitor.used("feature:convert") == (1, 0)


async def test_who_asks(visitor: Visitor) -> None:
    anonymous = await visitor.visit("/status", org="nobody")
    assert (anonymous.status_code, anonymous.json()["code"]) == (401, "no_org")
    assert "payment" not in anonymous.headers.get("www-authenticate", "").lower()
    assert (await visitor.visit("/status", org="no-org")).status_code == 403
    assert visitor.ran == []
    for _ in range(12):
        assert (await visitor.visit("/status", org="staff")).status_code == 200
    assert (await visitor.visit("/say?set=3&add=1", org="staff")).status_code == 200
    assert len(visitor.ran) == 13
    assert await visitor.used() == (0, 0)
    assert visitor.tier.counts == {}


async def test_browsers_are_sent_to_the_upgrade_page(request: pytest.FixtureRequest, tier: AsyncTier) -> None:
    for face in FACES:
        visitor = Visitor(face, tier, upgrade_url="/pricing?from=app")
        answer = await visitor.visit("/audit", accept="text/html,application/xhtml+xml,*/*;q=0.8")
        assert (answer.status_code, answer.headers["location"]) == (303, "/pricing?from=app"), face.name
        machine = await visitor.visit("/audit")
        assert machine.json()["upgrade"] == {"url": "/pricing?from=app", "plans": ["plan:pro@1"]}, face.name


async def test_browsers_get_a_page_where_there_is_none(visitor: Visitor) -> None:
    answer = await visitor.visit("/audit", accept="text/html")
    assert (answer.status_code, answer.headers["content-type"]) == (402, "text/html; charset=utf-8")
    assert "feature:audit" in answer.text


async def test_the_private_header_stays_inside(visitor: Visitor) -> None:
    for url in ("/status", "/audit", "/fail"):
        answer = await visitor.visit(url, **{"tier-refusal": "limit_reached"})
        assert "tier-refusal" not in answer.headers
    assert await visitor.used() == (1, 0)  # nor can a client say anything with it


# ---- streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_counts_what_it_added(async_visitor: Visitor) -> None:
    answer = await async_visitor.visit("/stream?n=4")
    assert answer.content == b"chunk" * 4
    assert await async_visitor.used() == (4, 0)


async def test_a_stream_that_fails_counts_nothing(async_visitor: Visitor) -> None:
    answer = await async_visitor.visit("/stream?n=4&fail=1")
    assert answer.content == b"chunk" * 4
    assert await async_visitor.used() == (0, 0)


# ---- many at once ---------------------------------------------------------------------------------------------------


async def test_as_many_as_the_limit_allows_and_no_more(visitor: Visitor) -> None:
    answers = await asyncio.gather(*[visitor.visit("/status") for _ in range(40)])
    codes = [answer.status_code for answer in answers]
    assert (codes.count(200), codes.count(402)) == (10, 30)
    assert await visitor.used() == (10, 0)


async def test_the_org_of_one_request_never_shows_in_another(visitor: Visitor) -> None:
    url = "/whose-async" if visitor.face.is_async else "/whose"
    orgs = [*range(100), *range(100)]
    answers = await asyncio.gather(*[visitor.visit(f"{url}?n={i % 10}", org=f"team-{i}") for i in orgs])
    assert [answer.text for answer in answers] == [f"org:team-{i} {i % 10}" for i in orgs]
    for i in range(100):
        assert await used(visitor.tier, "feature:pages", f"org:team-{i}") == (2 * (i % 10), 0)


@pytest.mark.parametrize(("policy", "code"), [("allow", 200), ("deny", 503), (lambda request, error: False, 503)])
@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
async def test_while_the_engine_is_away_the_policy_decides(face: Face, policy: Any, code: int) -> None:
    tier = AsyncTier.on(Core(Settings("memory://", on_error=policy), None, AwayEngine(EngineUnavailable("away"))))
    visitor = Visitor(face, tier)
    answer = await visitor.visit("/status")
    assert (answer.status_code, len(visitor.ran)) == (code, code == 200)
    assert code == 200 or answer.json()["code"] == "engine_unavailable"
    assert tier.counts["fail_open" if code == 200 else "fail_closed"] == 1


async def test_a_failing_third_leaves_room_for_others(visitor: Visitor) -> None:
    codes = []
    for i in range(18):
        codes.append((await visitor.visit(f"/status?code={500 if i % 3 == 0 else 200}")).status_code)
    assert codes.count(200) == 10
    assert await visitor.used() == (10, 0)
