"""What every endpoint of the server has in common: routes, the key, bodies, ids, headers, and the log."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from served import MODEL

from tier_middleware import AsyncTier, ConfigurationError
from tier_middleware.server import TierServer

KEY = "sk_test_of_the_server"


def basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


@asynccontextmanager
async def client_of(url: str = "memory://", **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with AsyncTier(url) as tier:
        await tier.push(MODEL)
        await tier.subscribe("org:acme", "plan:free@1")
        transport = httpx.ASGITransport(TierServer(tier, **options))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            yield client


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(url) as client:
        yield client


@pytest.fixture
async def keyed() -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(api_key=KEY) as client:
        yield client


def error(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, which is in the form that Tier's errors have."""
    body = response.json()
    assert set(body) == {"status", "code", "message"}
    assert body["status"] == response.status_code
    assert "Traceback" not in response.text
    return body["status"], body["code"]


async def test_limits_and_report(client: httpx.AsyncClient) -> None:
    report = {"org": "org:acme", "feature": "feature:calls", "n": 4}
    done = await client.post("/v1/report", json=report)
    assert (done.status_code, done.text) == (200, "{}")
    limits = (await client.get("/v1/limits", params={"org": "org:acme"})).json()
    assert limits == {
        "org": "org:acme",
        "usage": [
            {"feature": "feature:calls", "used": 4, "limit": 10},
            {"feature": "feature:export", "used": 1, "limit": 2**63 - 1},
        ],
    }


async def test_a_report_with_a_key_counts_once_and_says_so(client: httpx.AsyncClient) -> None:
    report = {"org": "org:acme", "feature": "feature:calls", "n": 4}
    for _ in range(3):
        done = await client.post("/v1/report", json=report, headers={"Idempotency-Key": "k 1"})
        assert (done.status_code, done.headers["idempotency-key"]) == (200, "k 1")
    assert "idempotency-key" not in (await client.post("/v1/report", json=report)).headers
    other = await client.post("/v1/report", json={**report, "n": 5}, headers={"Idempotency-Key": "k 1"})
    assert error(other) == (400, "invalid_request")
    limits = (await client.get("/v1/limits", params={"org": "org:acme"})).json()
    assert limits["usage"][0]["used"] == 8


@pytest.mark.parametrize("key", ["", " ", "é", "a" * 256])
async def test_a_key_that_cannot_be_sent_back_is_refused(client: httpx.AsyncClient, key: str) -> None:
    report = {"org": "org:acme", "feature": "feature:calls", "n": 4}
    answer = await client.post("/v1/report", json=report, headers={"Idempotency-Key": key.encode()})
    assert error(answer) == (400, "invalid_request")
    assert "idempotency-key" in answer.json()["message"]


@pytest.mark.parametrize("path", ["/", "/v1/nope", "/v1/limits/", "/V1/limits", "//v1/limits", "/v1"])
async def test_a_path_that_is_none(client: httpx.AsyncClient, path: str) -> None:
    assert error(await client.get(path, params={"org": "org:acme"})) == (404, "not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "NOPE"])
async def test_a_method_that_is_none(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, "/v1/limits", params={"org": "org:acme"})
    assert error(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD"


async def test_head_is_get_without_its_body(client: httpx.AsyncClient) -> None:
    got = await client.get("/v1/limits", params={"org": "org:acme"})
    head = await client.head("/v1/limits", params={"org": "org:acme"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Basic", "Basic !", basic("wrong:"), basic(KEY), basic(f"{KEY}:password"), f"Bearer {KEY}", basic(":")],
)
@pytest.mark.parametrize("path", ["/v1/whoami", "/v1/nope", "/v1/report"])
async def test_without_the_key_nothing_is_said(keyed: httpx.AsyncClient, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    answer = await keyed.get(path, headers=headers)
    assert error(answer) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"].startswith("Basic ")


async def test_with_the_key_everything_is(keyed: httpx.AsyncClient) -> None:
    assert (await keyed.get("/v1/whoami", headers={"authorization": basic(f"{KEY}:")})).status_code == 200
    assert (await keyed.get("/v1/whoami", headers={"authorization": basic(f"{KEY}:").replace("B", "b", 1)})).is_success


async def test_two_keys_are_none(keyed: httpx.AsyncClient) -> None:
    headers = [("authorization", basic("wrong:")), ("authorization", basic(f"{KEY}:"))]
    assert error(await keyed.get("/v1/whoami", headers=headers)) == (401, "invalid_api_key")


async def test_health_needs_no_key(keyed: httpx.AsyncClient) -> None:
    assert (await keyed.get("/healthz")).json() == {"status": "ok"}
    assert (await keyed.get("/readyz")).json() == {"status": "ready"}


async def test_an_engine_that_cannot_be_used_is_503_and_says_nothing_of_the_inside() -> None:
    server = TierServer(AsyncTier("sqlite:////nowhere/tier.db"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://127.0.0.1") as client:
        assert (await client.get("/healthz")).status_code == 200
        for path in ("/readyz", "/v1/limits?org=org:acme"):
            answer = await client.get(path)
            assert error(answer) == (503, "engine_unavailable")
            assert "nowhere" not in answer.text
            assert answer.headers["retry-after"] == "1"


async def test_without_a_key_only_this_machine_may_ask() -> None:
    server = TierServer(AsyncTier("memory://"))
    far = httpx.ASGITransport(server, client=("192.0.2.7", 5))
    async with httpx.AsyncClient(transport=far, base_url="http://127.0.0.1") as client:
        assert error(await client.get("/v1/whoami")) == (401, "invalid_api_key")
    guarded = httpx.ASGITransport(TierServer(AsyncTier("memory://"), is_guarded=True), client=("192.0.2.7", 5))
    async with httpx.AsyncClient(transport=guarded, base_url="http://tier.example.com") as client:
        assert (await client.get("/v1/whoami")).status_code == 200


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
async def test_behind_a_proxy_a_key_is_needed(client: httpx.AsyncClient, keyed: httpx.AsyncClient, header: str) -> None:
    """Whoever asks through one looks like this machine."""
    assert error(await client.get("/v1/whoami", headers={header: "127.0.0.1"})) == (401, "invalid_api_key")
    headers = {"authorization": basic(f"{KEY}:"), header: "192.0.2.7"}
    assert (await keyed.get("/v1/whoami", headers=headers)).status_code == 200


async def test_a_message_is_not_as_long_as_what_it_is_about(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/clock", params={"id": "x" * 50_000})
    assert error(answer) == (400, "invalid_request")
    subscription = {"org": "org:a", "phases": [{"features": ["x" * 50_000 + "@1"]}]}
    answer = await client.post("/v1/subscribe", json=subscription)
    assert error(answer) == (400, "invalid_request")
    assert len(answer.text) < 1200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_a_page_of_another_origin_may_not_ask(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert error(await client.post("/v1/report", headers=headers, json={})) == (403, "forbidden")


async def test_a_page_of_another_origin_may_not_ask_with_a_key_that_the_browser_remembers(
    keyed: httpx.AsyncClient,
) -> None:
    headers = {"authorization": basic(f"{KEY}:"), "origin": "https://evil.example"}
    assert error(await keyed.get("/v1/whoami", headers=headers)) == (403, "forbidden")


@pytest.mark.parametrize("length", ["nope", "-1", "5, 5", "1e3", "9" * 5000, "\u0665"])
async def test_a_length_that_is_none_is_no_500(client: httpx.AsyncClient, length: str) -> None:
    """Most servers refuse it themselves."""
    answer = await client.post("/v1/report", content=b"{}", headers={"content-length": length.encode()})
    assert error(answer)[0] in (400, 413)


async def test_a_body_is_limited() -> None:
    async with client_of(max_body_bytes=100) as client:
        assert error(await client.post("/v1/report", content=b"x" * 101)) == (413, "request_too_large")

        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 60

        assert error(await client.post("/v1/report", content=parts())) == (413, "request_too_large")


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with client_of(body_seconds=0.05) as client:
        import anyio

        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await anyio.sleep_forever()

        assert error(await client.post("/v1/report", content=slow())) == (408, "request_timeout")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"org": "org:acme", "feature": "feature:calls", "n": -1}', "n: must be a whole number >= 0, got -1"),
        (b'{"org": "org:acme", "feature": "feature:calls", "n": "1"}', "n: must be a whole number or null, got '1'"),
        (b'{"org": "org:acme", "feature": "feature:calls", "n": 1.0}', "n: must be a whole number or null, got 1.0"),
        (b'{"org": "org:acme", "feature": "feature:calls", "n": NaN}', "invalid json syntax"),
        (b'{"org": "org:a", "feature": "feature:x", "at": "now"}', "at: invalid RFC3339 encoded datetime, got 'now'"),
        (b'{"org": "org:acme", "feature": "feature:calls", "n": 1' + b"0" * 60 + b"}", None),
        (b'{"org": "org:acme", "feature": "feature:calls", "nope": 1}', 'unknown field "nope"'),
        (b'{"org": "org:\\ud800", "feature": "feature:calls"}', "invalid json syntax"),
        (b'{"org": "org:\xff", "feature": "feature:calls"}', "invalid json syntax"),
        (b"[1]", "body: must be an object, got [1]"),
        (b"[" * 100_000, "body: is nested more than 32 deep"),
        (b'{"a":' * 100_000, "body: is nested more than 32 deep"),
        (b"", 'org must be prefixed with "org:"'),
        (b"null", 'org must be prefixed with "org:"'),
        (b'{"org": "acme"}', "feature not found"),
        (b'{"org": "acme", "feature": "feature:x"}', 'org must be prefixed with "org:"'),
        (b'{"org": "org:", "feature": "feature:x"}', None),
    ],
)  # fmt: skip
async def test_a_mistake_is_said(client: httpx.AsyncClient, body: bytes, message: str | None) -> None:
    answer = await client.post("/v1/report", content=body)
    assert error(answer)[0] == 400
    assert message is None or answer.json()["message"] == message
    assert (await client.get("/v1/limits?org=org:acme")).json()["usage"][0]["used"] == 0


@pytest.mark.parametrize(
    "body",
    [
        '{"ORG": "org:acme", "Feature": "feature:calls", "N": 2, "CLOBBER": false}',
        '{"org": "org:other", "feature": "feature:calls", "n": 2, "org": "org:acme"}',
        ' {"org": "org:acme", "feature": "feature:calls", "n": 2} and more',
        '{"org": "org:acme", "feature": "feature:calls", "n": 2, "at": null, "clobber": null}',
        '{"org": "org:acme", "feature": "feature:calls", "n": 2, "at": "0001-01-01T00:00:00Z"}',
        '{"org": "org:acme", "feature": "feature:calls", "n": 2, "x" : 1}'.replace(', "x" : 1', ""),
    ],
)
async def test_bodies_are_read_as_tier_reads_them(client: httpx.AsyncClient, body: str) -> None:
    assert (await client.post("/v1/report", content=body)).status_code == 200
    assert (await client.get("/v1/limits?org=org:acme")).json()["usage"][0]["used"] == 2


async def test_a_text_full_of_brackets_is_not_deep(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/report", json={"org": "org:" + '[{\\"' * 100, "feature": "feature:calls"})
    assert error(answer) == (400, "org_not_found")


async def test_the_first_value_of_a_query_counts_and_more_is_passed_over(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/limits?org=org:acme&org=org:other&nope=1")
    assert answer.json()["org"] == "org:acme"


@pytest.mark.parametrize("query", ["org=%ff", "&".join(["org=a"] * 60), ""])
async def test_a_query_that_cannot_be_read(client: httpx.AsyncClient, query: str) -> None:
    assert error(await client.get(f"/v1/limits?{query}")) == (400, "invalid_request")


async def test_every_answer_has_an_id_and_may_not_be_kept(keyed: httpx.AsyncClient) -> None:
    ids = set()
    for path in ("/healthz", "/v1/whoami", "/nope"):
        answer = await keyed.get(path)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        ids.add(answer.headers["x-request-id"])
    assert len(ids) == 3


@pytest.mark.parametrize(("given", "is_taken"), [("abc-123_4.5", True), ("short", False), ("a b c d e f", False)])
async def test_an_id_that_is_given_is_kept_where_it_is_fit_for_a_log(
    client: httpx.AsyncClient, given: str, is_taken: bool
) -> None:
    answer = await client.get("/healthz", headers={"x-request-id": given})
    assert (answer.headers["x-request-id"] == given) is is_taken


async def test_one_line_a_request_which_nobody_can_forge(
    keyed: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tier_middleware.server"):
        headers = {"authorization": basic(f"{KEY}:"), "x-request-id": "request-1"}
        await keyed.get("/v1/limits", params={"org": "org:a\nINFO forged"}, headers=headers)
        await keyed.get(f"/v1/%0a{KEY}", headers=headers)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("GET /v1/limits 400 ")
    assert lines[0].endswith(r"id=request-1 org='org:a\nINFO forged'")
    assert "***" in lines[1]
    assert not any("\n" in line or KEY in line for line in lines)


async def test_what_nobody_expected_is_a_500_without_a_word(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(tier: AsyncTier, org: str) -> None:
        raise ZeroDivisionError("the inside")

    monkeypatch.setattr(AsyncTier, "lookup_limits", broken)
    answer = await client.get("/v1/limits?org=org:acme")
    assert error(answer) == (500, "internal_error")
    assert "inside" not in answer.text
    assert "ZeroDivisionError" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text


async def test_a_request_may_be_under_a_clock() -> None:
    from datetime import UTC, datetime

    tier = AsyncTier("memory://")
    await tier.push(MODEL)
    clocked = await tier.with_clock("c", datetime(2024, 1, 1, tzinfo=UTC))
    await clocked.subscribe("org:clocked", "plan:free@1")
    transport = httpx.ASGITransport(TierServer(tier))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        under = {"Tier-Clock": clocked.clock.id}
        assert (await client.get("/v1/limits?org=org:clocked", headers=under)).status_code == 200
        assert error(await client.get("/v1/limits?org=org:clocked"))[1] == "org_not_found"
        unknown = await client.get("/v1/limits?org=org:clocked", headers={"Tier-Clock": "clock_nope"})
        assert error(unknown) == (400, "invalid_request")
        assert (await client.get("/v1/whoami", headers={"Tier-Clock": "clock_nope"})).status_code == 200


async def test_mounted_in_another_application() -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    tier = AsyncTier("memory://")
    app = Starlette(routes=[Mount("/tier", TierServer(tier, api_key=KEY))])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.example") as client:
        answer = await client.get("/tier/v1/whoami", headers={"authorization": basic(f"{KEY}:")})
        assert answer.json()["url"] == "http://app.example/tier"


def test_a_key_that_no_header_can_hold() -> None:
    with pytest.raises(ConfigurationError, match="TIER_API_KEY"):
        TierServer(AsyncTier("memory://"), api_key="schlüssel")


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIER_API_KEY", KEY)
    transport = httpx.ASGITransport(TierServer(AsyncTier("memory://")))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert error(await client.get("/v1/whoami")) == (401, "invalid_api_key")


async def test_a_web_socket_is_refused() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await TierServer(AsyncTier("memory://"))({"type": "websocket", "path": "/"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
