"""What the vectors do not tell of the endpoints: exact prices, mistakes in models, clocks, what a failure keeps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from served import MODEL

from tier_middleware import AsyncTier, PricingError
from tier_middleware.server import TierServer

CLOCK_START = "2024-01-31T00:00:00Z"


@pytest.fixture
async def tier(url: str) -> AsyncIterator[AsyncTier]:
    async with AsyncTier(url) as tier:
        await tier.push(MODEL)
        yield tier


@pytest.fixture
async def client(tier: AsyncTier) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(TierServer(tier))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client


async def asked(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(client: httpx.AsyncClient, path: str, content: str) -> tuple[str, str]:
    answer = await client.post(path, content=content)
    assert answer.status_code == 400, answer.text
    return answer.json()["code"], answer.json()["message"]


def model(feature: str) -> str:
    return '{"plans": {"plan:x@1": {"features": {"feature:x": ' + feature + "}}}}"


# ---- the pricing model ----------------------------------------------------------------------------------------------


async def test_prices_are_exact_both_ways(client: httpx.AsyncClient) -> None:
    pushed = model('{"tiers": [{"upto": 9007199254740993, "price": 0.123456789012}, {"price": 0.1}]}')
    assert (await client.post("/v1/push", content=pushed)).status_code == 200
    pulled = (await client.get("/v1/pull")).text
    assert '"price": 0.123456789012' in pulled
    assert "9007199254740993" in pulled


@pytest.mark.parametrize(
    "text",
    [
        '{"plans": {"plan:x@1": {"title": "a // b, ] /* c */", "features": {"feature:x": {},}, /* , */ }, } } // end',
        '// begin\n{"plans": {"plan:x@1": {"title": "a // b, ] /* c */", "features": {"feature:x": {}}}}}',
        '{"plans": {"plan:x@1": {"title": "a // b, ] /* c */", "features": {"feature:x": {"tiers": []\n,}}}}}',
    ],
)
async def test_comments_and_trailing_commas_are_none_within_texts(client: httpx.AsyncClient, text: str) -> None:
    assert (await client.post("/v1/push", content=text)).status_code == 200
    assert (await client.get("/v1/pull")).json()["plans"]["plan:x@1"]["title"] == "a // b, ] /* c */"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (model('{"base": -1}'), "base"),
        (model('{"base": 1e999999999999999999999}'), "a number"),
        (model('{"base": 1, "tiers": [{}]}'), "base"),
        (model('{"mode": "nope", "tiers": [{}]}'), "nope"),
        (model('{"aggregate": "nope", "tiers": [{}]}'), "nope"),
        (model('{"tiers": {}}'), "tiers"),
        (model('{"tiers": [{"upto": 1.5}]}'), "upto"),
        (model('{"nope": 1}'), "nope"),
        (model('{"base": NaN}'), "invalid json syntax"),
        (model("1"), "object"),
        ('{"plans": {"plan:x@1": {"interval": "@quarterly"}}}', "@quarterly"),
        ('{"plans": {"plan:x": {}}}', "plan:x"),
        ('{"plans": {"plan:x@1": {"features": {"x": {}}}}}', "feature:"),
        ('{"plans": []}', "plans"),
        ("[]", "object"),
        ('"pricing.json"', "object"),
        ('"{}"', "object"),
        ("", "invalid json syntax"),
        ("{'plans': {}}", "invalid json syntax"),
        ('{"plans": {}', "invalid json syntax"),
        ("/* no end", "invalid json syntax"),
        ('{"plans": {}} {}', "invalid json syntax"),
    ],
)
async def test_a_mistake_in_a_model_is_said_and_nothing_is_kept(
    client: httpx.AsyncClient, text: str, said: str
) -> None:
    before = (await client.get("/v1/pull")).text
    code, message = await refused(client, "/v1/push", text)
    assert code == "invalid_request"
    assert said in message
    assert (await client.get("/v1/pull")).text == before


async def test_a_large_model_does_not_keep_others_waiting(client: httpx.AsyncClient) -> None:
    plans = {f"plan:p{n}@1": {"features": {"feature:x": {"tiers": [{"upto": n + 1}]}}} for n in range(2000)}
    text = "// many\n" + json.dumps({"plans": plans})
    assert len(text) > 100_000
    answer = await client.post("/v1/push", content=text)
    assert len(answer.json()["results"]) == 2000


async def test_a_plan_that_somebody_else_pushes_meanwhile(
    client: httpx.AsyncClient, tier: AsyncTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is stored and the push, another process stores the same plan with other content."""
    pull, others = AsyncTier.pull, [{"plans": {"plan:x@1": {"features": {"feature:other": {}}}}}]

    async def raced(self: AsyncTier) -> Any:
        found = await pull(self)
        if others:
            await tier.push(others.pop())
        return found

    monkeypatch.setattr(AsyncTier, "pull", raced)
    answer = (await client.post("/v1/push", content=model("{}"))).json()
    assert answer["results"] == [{"feature": "feature:x@plan:x@1", "status": "failed", "reason": "plan already exists"}]


async def test_a_plan_that_is_always_somebody_elses_is_a_400(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: AsyncTier, model: Any) -> Any:
        raise PricingError("stored with other content")

    monkeypatch.setattr(AsyncTier, "push", never)
    assert (await refused(client, "/v1/push", model("{}")))[0] == "invalid_request"


# ---- subscriptions --------------------------------------------------------------------------------------------------


async def test_a_trial_then_the_plan_then_an_end(client: httpx.AsyncClient) -> None:
    clock = (await asked(client, "/v1/clock", name="c", present=CLOCK_START))["id"]
    client.headers["Tier-Clock"] = clock
    phases = [
        {"features": ["plan:pro@1"], "trial": True},
        {"features": ["plan:pro@1"], "effective": "2024-02-14T00:00:00Z"},
    ]
    await asked(client, "/v1/subscribe", org="org:a", phases=phases, info={"email": "a@example.com"})
    await asked(client, "/v1/subscribe", org="org:a", phases=[{"effective": "2024-03-01T00:00:00Z"}])
    found = (await client.get("/v1/phases?org=org:a")).json()
    assert [(phase["effective"], phase.get("end"), phase.get("trial")) for phase in found["phases"]] == [
        ("2024-01-31T00:00:00Z", "2024-02-14T00:00:00Z", True),
        ("2024-02-14T00:00:00Z", "2024-03-01T00:00:00Z", None),
    ]
    await asked(client, "/v1/clock", id=clock, present="2024-03-02T00:00:00Z")
    assert (await client.get("/v1/phase?org=org:a")).status_code == 404
    assert (await client.get("/v1/limits?org=org:a")).json() == {"org": "org:a", "usage": []}


async def test_a_cancellation_of_nobody(client: httpx.AsyncClient) -> None:
    assert await refused(client, "/v1/subscribe", '{"org": "org:nobody", "phases": [{}]}') == (
        "org_not_found",
        "org not found",
    )


async def test_a_cancellation_with_info_keeps_the_info(client: httpx.AsyncClient) -> None:
    await asked(client, "/v1/subscribe", org="org:a", phases=[{"features": ["plan:pro@1"]}])
    await asked(client, "/v1/subscribe", org="org:a", phases=[{}], info={"name": "A"}, payment_method_id="pm_1")
    found = (await client.get("/v1/whois?org=org:a&include=info")).json()
    assert (found["name"], found["invoice_settings"]) == ("A", {"default_payment_method": "pm_1"})
    assert (await client.get("/v1/limits?org=org:a")).json()["usage"] == []


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"phases": [{"features": ["plan:free@1"], "effective": "2001-01-01T00:00:00Z"}]}, "invalid_request", "past"),
        ({"phases": [{"features": ["plan:free@1"]}, {"features": ["plan:pro@1"]}]}, "invalid_request", "effective"),
        ({"phases": [{"features": "plan:free@1"}]}, "invalid_request", "phases[0].features: must be a list"),
        ({"phases": [{"features": [1]}]}, "invalid_request", "phases[0].features[0]: must be a text, got 1"),
        ({"phases": {}}, "invalid_request", "phases: must be a list"),
        ({"phases": [{"trial": "yes"}]}, "invalid_request", "phases[0].trial: must be true or false"),
        ({"info": {"metadata": {"a": 1}}}, "invalid_metadata", "got 1"),
        ({"info": {"name": "x" * 2000}}, "invalid_request", "info.name"),
        ({"info": []}, "invalid_request", "info: must be an object"),
        ({"info": {"stripe_id": "cus_1"}}, "invalid_request", 'unknown field "stripe_id"'),
        ({"info": {"email": "a@b", "name": "\u0000"}}, "invalid_request", "info.name"),
    ],
)
async def test_a_mistake_in_a_subscription_names_the_field_and_the_value(
    client: httpx.AsyncClient, body: dict[str, Any], code: str, said: str
) -> None:
    found = await refused(client, "/v1/subscribe", json.dumps({"org": "org:a", **body}))
    assert found[0] == code
    assert said in found[1]
    assert (await client.get("/v1/whois?org=org:a")).json()["code"] == "org_not_found"


# ---- test clocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": "c"}, "present: must be given"),
        ({"present": "0001-01-01T00:00:00Z"}, "present: must be given"),
        ({"present": "1969-12-31T23:59:59Z"}, "present: must lie in the years"),
        ({"present": "3000-01-01T00:00:00Z"}, "present: must lie in the years"),
        ({"present": "2024-01-31T00:00:00"}, "present: must be an RFC 3339 time with a timezone component"),
        ({"present": CLOCK_START, "id": "clock_nope"}, "id: there is no test clock 'clock_nope'"),
        ({"present": CLOCK_START, "id": "../x"}, "id: there is no test clock '../x'"),
        ({"present": CLOCK_START, "name": "x" * 2000}, "name"),
    ],
)
async def test_a_mistake_in_a_clock_names_the_field(client: httpx.AsyncClient, body: dict[str, Any], said: str) -> None:
    code, message = await refused(client, "/v1/clock", json.dumps(body))
    assert code == "invalid_request"
    assert said in message


async def test_a_clock_goes_forwards_only(client: httpx.AsyncClient) -> None:
    clock = (await asked(client, "/v1/clock", present=CLOCK_START))["id"]
    for present in (CLOCK_START, "2024-01-30T00:00:00Z"):
        _, message = await refused(client, "/v1/clock", json.dumps({"id": clock, "present": present}))
        assert message.startswith("present: must be after 2024-01-31T00:00:00Z")


async def test_the_link_of_a_clock_leads_to_it(client: httpx.AsyncClient) -> None:
    made = await asked(client, "/v1/clock", present=CLOCK_START)
    assert (await client.get(made["link"])).json() == {**made, "status": "ready"}


async def test_orgs_of_two_clocks_are_apart(client: httpx.AsyncClient) -> None:
    one, two = [(await asked(client, "/v1/clock", present=CLOCK_START))["id"] for _ in range(2)]
    body = {"org": "org:a", "phases": [{"features": ["plan:free@1"]}]}
    assert (await client.post("/v1/subscribe", json=body, headers={"Tier-Clock": one})).status_code == 200
    report = {"org": "org:a", "feature": "feature:calls", "n": 1}
    for clock in (two, f"{one}/org:a", "clock_x/../" + one, f"{one}, {two}"):
        answer = await client.post("/v1/report", json=report, headers={"Tier-Clock": clock})
        assert answer.status_code == 400
    found = (await client.get("/v1/limits?org=org:a", headers={"Tier-Clock": one})).json()
    assert found["usage"][0]["used"] == 0


async def test_an_org_named_like_one_of_a_clock_is_another(client: httpx.AsyncClient) -> None:
    clock = (await asked(client, "/v1/clock", present=CLOCK_START))["id"]
    body = {"org": "org:a", "phases": [{"features": ["plan:free@1"]}]}
    await client.post("/v1/subscribe", json=body, headers={"Tier-Clock": clock})
    for org in (f"{clock}/org:a", f"org:{clock}/org:a"):
        assert (await client.get("/v1/limits", params={"org": org})).status_code == 400
