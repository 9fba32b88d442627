"""What the server adds to Tier's API: reservations, corrections, many reports at once, and who waits for changes."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import anyio
import httpx
import pytest
from served import MODEL, serving

from tier_middleware import AsyncTier, Tier
from tier_middleware.clock import Milliseconds, milliseconds
from tier_middleware.core import Core
from tier_middleware.engines.memory import MemoryEngine
from tier_middleware.ops import Op, ReadChanges
from tier_middleware.server import TierServer

R = TypeVar("R")

CALLS = "feature:calls"


@pytest.fixture
async def tier(url: str) -> AsyncIterator[AsyncTier]:
    async with AsyncTier(url) as tier:
        await tier.push(MODEL)
        await tier.subscribe("org:acme", "plan:free@1")
        yield tier


@pytest.fixture
async def client(tier: AsyncTier) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(tier) as client:
        yield client


def client_of(tier: AsyncTier) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(TierServer(tier)), base_url="http://127.0.0.1:8080")


async def asked(client: httpx.AsyncClient, path: str, *, headers: dict[str, str] | None = None, **body: Any) -> Any:
    answer = await client.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def demand(n: int, feature: str = CALLS) -> dict[str, Any]:
    return {"feature": feature, "n": n}


def kept(id: int, n: int, org: str = "org:acme") -> dict[str, Any]:
    return {"org": org, "feature": CALLS, "id": id, "n": n}


async def usage(client: httpx.AsyncClient, org: str = "org:acme", **headers: str) -> tuple[int, int]:
    answer = (await client.get("/v1/usage", params={"org": org}, headers=headers)).json()
    (calls,) = (one for one in answer["usage"] if one["feature"] == CALLS)
    return calls["used"], calls["reserved"]


# ---- reservations ---------------------------------------------------------------------------------------------------


async def test_every_answer_names_the_extensions(client: httpx.AsyncClient) -> None:
    for path in ("/v1/limits?org=org:acme", "/v1/limits", "/healthz", "/nowhere"):
        assert (await client.get(path)).headers["tier-extensions"] == "reserve, changes"


async def test_a_reservation_is_granted_committed_and_given_back(client: httpx.AsyncClient) -> None:
    demands = [demand(3), demand(1, "feature:export")]
    answer = await asked(client, "/v1/reserve", org="org:acme", demands=demands, ids=[5, 6])
    hold, on_off = answer["granted"]
    assert (hold["id"], hold["n"], on_off) == (5, 3, None)
    assert await usage(client) == (0, 3)
    again = await asked(client, "/v1/reserve", org="org:acme", demands=demands, ids=[5, 6])
    assert again == answer
    one = kept(5, 2) | {"place": hold["place"], "held": 3}
    for over in (0, 0):
        done = await asked(client, "/v1/commit", kept=[one])
        assert done == {"committed": [{"over": over, "capped": 0, "has_expired": False}]}
    assert await usage(client) == (2, 0)
    await asked(client, "/v1/reserve", org="org:acme", demands=[demand(8)], ids=[7])
    refused = await asked(client, "/v1/reserve", org="org:acme", demands=[demand(1)], ids=[8])
    assert refused["shortfall"] | {"resets_at": ""} == {
        "org": "org:acme",
        "feature": CALLS,
        "requested": 1,
        "used": 2,
        "reserved": 8,
        "limit": 10,
        "reason": "limit_reached",
        "code": "limit_reached",
        "resets_at": "",
    }
    hold = {"org": "org:acme", "feature": CALLS, "id": 7}  # of an answer that was lost: where it is nobody knows
    assert await asked(client, "/v1/release", holds=[hold]) == {}
    assert await usage(client) == (2, 0)


async def test_a_hold_is_kept_alive_and_counted_on_the_way(client: httpx.AsyncClient) -> None:
    await asked(client, "/v1/reserve", org="org:acme", demands=[demand(3)], ids=[5], reservation_seconds=60)
    for so_far in (1, 2, 2):
        await asked(client, "/v1/renew", kept=[kept(5, so_far)], reservation_seconds=60)
        assert await usage(client) == (so_far, 3 - so_far)
    await asked(client, "/v1/commit", kept=[kept(5, 3)])
    assert await usage(client) == (3, 0)


async def test_a_check_counts_what_is_reserved_and_holds_nothing(client: httpx.AsyncClient) -> None:
    await asked(client, "/v1/reserve", org="org:acme", demands=[demand(4)], ids=[5])
    for _ in range(2):
        assert (await asked(client, "/v1/check", org="org:acme", feature=CALLS, n=6))["shortfall"] is None
    answer = await asked(client, "/v1/check", org="org:acme", feature=CALLS, n=7)
    assert (answer["shortfall"]["reserved"], answer["usage"]["limit"]) == (4, 10)
    unknown = await asked(client, "/v1/check", org="org:new", feature=CALLS)
    assert unknown["shortfall"]["code"] == "org_not_found"


async def test_a_default_plan_is_that_of_the_asker_or_of_the_server(tier: AsyncTier) -> None:
    async with client_of(tier) as client:
        for path in ("/v1/reserve", "/v1/check"):
            more: dict[str, Any] = {"feature": CALLS} if "check" in path else {"demands": [demand(1)], "ids": [1]}
            body = {"org": "org:new", "default_plan": "plan:no@1"} | more
            refused = await client.post(path, json=body)
            assert refused.status_code == 400
            assert refused.json()["message"] == "default_plan: 'plan:no@1' is not in the pricing model"
        body = {"org": "org:new", "demands": [demand(11)], "ids": [2], "default_plan": "plan:pro@1"}
        assert "granted" in await asked(client, "/v1/reserve", **body)
    core = Core(tier.core.settings, None, tier.core.engine)
    core.settings = type(tier.core.settings)(base_url="memory://", default_plan="plan:free@1")
    async with client_of(AsyncTier.on(core)) as client:
        assert (await asked(client, "/v1/check", org="org:third", feature=CALLS, n=10))["shortfall"] is None


async def test_reservations_under_a_test_clock_are_apart(client: httpx.AsyncClient) -> None:
    clock = await asked(client, "/v1/clock", name="rehearsal", present="2024-01-31T00:00:00Z")
    headers = {"tier-clock": clock["id"]}
    body = {"org": "org:acme", "phases": [{"features": ["plan:free@1"]}]}
    assert (await client.post("/v1/subscribe", json=body, headers=headers)).status_code == 200
    await asked(client, "/v1/reserve", headers=headers, org="org:acme", demands=[demand(3)], ids=[5])
    assert (await usage(client), await usage(client, **headers)) == ((0, 0), (0, 3))
    await asked(client, "/v1/commit", kept=[kept(5, 3)])
    await asked(client, "/v1/commit", headers=headers, kept=[kept(5, 2)])
    assert (await usage(client), await usage(client, **headers)) == ((0, 0), (2, 0))


# ---- reports --------------------------------------------------------------------------------------------------------


async def test_reports_count_once_each_and_each_has_its_result(client: httpx.AsyncClient) -> None:
    one = {"org": "org:acme", "feature": CALLS, "n": 8, "key": "a", "note": "from the log"}
    sent = [
        one,
        one | {"org": "org:no", "key": "b"},
        one | {"feature": "feature:export", "key": "c"},
        one | {"key": "d"},
    ]
    results = (await asked(client, "/v1/reports", reports=sent))["results"]
    assert [result.get("error", {}).get("code") for result in results] == [
        None,
        "org_not_found",
        "invalid_request",
        None,
    ]
    assert (results[0], results[3]) == ({}, {"over": 6})
    assert (await asked(client, "/v1/reports", reports=sent[:1]))["results"] == [{"is_new": False}]
    other = (await asked(client, "/v1/reports", reports=[one | {"n": 1}]))["results"]
    assert "was used before with other contents" in other[0]["error"]["message"]
    assert await usage(client) == (16, 0)


async def test_an_adjustment_goes_down_and_counts_once(client: httpx.AsyncClient) -> None:
    await asked(client, "/v1/report", org="org:acme", feature=CALLS, n=5)
    correction = {"org": "org:acme", "feature": CALLS, "delta": -2, "key": "k", "note": "refund"}
    assert await asked(client, "/v1/adjust", **correction) == {"over": 0, "is_new": True}
    assert await asked(client, "/v1/adjust", **correction) == {"over": 0, "is_new": False}
    assert await usage(client) == (3, 0)


# ---- mistakes -------------------------------------------------------------------------------------------------------

RESERVE = {"org": "org:acme", "demands": [demand(1)], "ids": [1]}
TWO = RESERVE | {"demands": [demand(1), demand(1, "feature:export")]}
REPORT = {"org": "org:acme", "feature": CALLS, "n": 1, "key": "k"}


@pytest.mark.parametrize(
    ("path", "body", "field", "got"),
    [
        ("/v1/reserve", RESERVE | {"org": "acme"}, "org", None),
        ("/v1/reserve", RESERVE | {"ids": [0]}, "ids[0]", "0"),
        ("/v1/reserve", RESERVE | {"ids": [-5]}, "ids[0]", "-5"),
        ("/v1/reserve", RESERVE | {"ids": [2**63]}, "ids[0]", None),
        ("/v1/reserve", RESERVE | {"ids": [1, 2]}, "ids", "[1, 2]"),
        (
            "/v1/reserve",
            RESERVE | {"demands": [demand(1), demand(1, "feature:export")], "ids": [3, 3]},
            "ids",
            "[3, 3]",
        ),
        ("/v1/reserve", RESERVE | {"demands": [demand(1), demand(2)], "ids": [1, 2]}, "demands", CALLS),
        ("/v1/reserve", RESERVE | {"demands": []}, "demands", "[]"),
        ("/v1/reserve", RESERVE | {"demands": [demand(-1)]}, "demands[0].n", "-1"),
        ("/v1/reserve", RESERVE | {"demands": [demand(1, "calls")]}, "demands[0].feature", "calls"),
        ("/v1/reserve", RESERVE | {"reservation_seconds": 0}, "reservation_seconds", "0"),
        ("/v1/reserve", RESERVE | {"reservation_seconds": 1e12}, "reservation_seconds", None),
        ("/v1/reserve", RESERVE | {"default_plan": "free"}, "default_plan", "free"),
        ("/v1/reserve", RESERVE | {"limit": 5}, "limit", None),
        ("/v1/commit", {"kept": [kept(0, 1)]}, "kept[0].id", "0"),
        ("/v1/commit", {"kept": [kept(1, 1) | {"place": -2}]}, "kept[0].place", "-2"),
        ("/v1/commit", {"kept": [kept(1, 1), kept(2, 1, "acme")]}, "kept[1].org", "acme"),
        ("/v1/commit", {"kept": []}, "kept", "[]"),
        ("/v1/renew", {"kept": [kept(1, 1)], "reservation_seconds": -1}, "reservation_seconds", "-1"),
        ("/v1/release", {"holds": [{"org": "org:acme", "feature": CALLS, "id": 1.5}]}, "holds[0].id", "1.5"),
        ("/v1/release", {"holds": [{"org": "org:acme", "feature": "x", "id": 1}]}, "holds[0].feature", "x"),
        ("/v1/adjust", REPORT | {"n": 1}, "n", None),
        ("/v1/adjust", {"org": "org:acme", "feature": CALLS, "delta": 1, "key": ""}, "key", None),
        ("/v1/reports", {"reports": [REPORT, REPORT | {"n": "5"}]}, "reports[1].n", "5"),
        ("/v1/reports", {"reports": [REPORT | {"at": "yesterday"}]}, "reports[0].at", "yesterday"),
        ("/v1/reports", {"reports": [REPORT | {"org": "acme"}]}, "reports[0].org", "acme"),
        ("/v1/reports", {"reports": [{"org": "org:acme", "feature": CALLS, "n": 1}]}, "key", None),
        ("/v1/check", {"org": "org:acme", "feature": CALLS, "n": True}, "n", "True"),
    ],
)
async def test_a_mistake_names_the_field_and_the_value(
    client: httpx.AsyncClient, path: str, body: Any, field: str, got: str | None
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    message = answer.json()["message"]
    assert field in message
    assert got is None or got in message
    assert await usage(client) == (0, 0)


# ---- changes --------------------------------------------------------------------------------------------------------


async def cursor_of(client: httpx.AsyncClient) -> str:
    answer = (await client.get("/v1/changes")).json()
    assert (answer["orgs"], answer["is_everything"]) == ([], False)
    cursor: str = answer["cursor"]
    return cursor


async def changes(client: httpx.AsyncClient, since: str, wait: float = 0, **headers: str) -> Any:
    answer = await client.get("/v1/changes", params={"since": since, "wait": wait}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_changes_since_a_cursor(client: httpx.AsyncClient, tier: AsyncTier) -> None:
    cursor = await cursor_of(client)
    assert (await changes(client, cursor))["orgs"] == []
    await tier.subscribe("org:b", "plan:pro@1")
    found = await changes(client, cursor, wait=30)
    assert found["orgs"] == ["org:b"]
    assert (await changes(client, found["cursor"]))["orgs"] == []
    assert (await changes(client, "of-another-server", wait=30))["is_everything"]


@pytest.mark.parametrize("wait", ["-1", "31", "x", "nan", "inf"])
async def test_a_wait_is_bounded(client: httpx.AsyncClient, wait: str) -> None:
    answer = await client.get("/v1/changes", params={"wait": wait})
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("wait: ")


async def test_the_longest_cursor_is_read_and_no_other_is(client: httpx.AsyncClient) -> None:
    assert (await changes(client, "%" * 5_000))["is_everything"]
    for cursor in ("%" * 5_001, "\u00b0", "a b", "a\n"):
        answer = await client.get("/v1/changes", params={"since": cursor})
        assert answer.status_code == 400
        assert answer.json()["message"].startswith("since: ")


@pytest.mark.parametrize(("path", "query"), [("/v1/changes", {"wiat": "5"}), ("/v1/usage", {"org": "org:a", "": "x"})])
async def test_a_query_that_is_not_known_is_refused(
    client: httpx.AsyncClient, path: str, query: dict[str, str]
) -> None:
    answer = await client.get(path, params=query)
    assert answer.status_code == 400
    assert "unknown field" in answer.json()["message"]


async def test_whoever_waits_is_told_at_once_and_else_when_the_time_is_up(
    client: httpx.AsyncClient, tier: AsyncTier
) -> None:
    cursor = await cursor_of(client)
    started = monotonic()
    assert (await changes(client, cursor, wait=0.3))["orgs"] == []
    assert monotonic() - started >= 0.3
    found: list[Any] = []
    has_left = anyio.Event()

    async def wait(seconds: float) -> None:
        found.append(await changes(client, cursor, wait=seconds))
        has_left.set()

    async with anyio.create_task_group() as group:  # the first looks for all, and leaves before there is anything
        for seconds in (0.2, 30, 30, 30):
            group.start_soon(wait, seconds)
        await has_left.wait()
        await tier.subscribe("org:b", "plan:pro@1")
    assert [one["orgs"] for one in found] == [[], ["org:b"], ["org:b"], ["org:b"]]
    assert monotonic() - started < 15


async def test_orgs_of_another_clock_wake_nobody(client: httpx.AsyncClient, tier: AsyncTier) -> None:
    clock = await asked(client, "/v1/clock", name="rehearsal", present="2024-01-31T00:00:00Z")
    cursor = await cursor_of(client)
    under = await tier.on_clock(clock["id"])
    found: dict[str, Any] = {}

    async def wait(name: str, seconds: float, **headers: str) -> None:
        found[name] = await changes(client, cursor, wait=seconds, **headers)

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: wait("outside", 0.5))
        group.start_soon(lambda: wait("inside", 30, **{"tier-clock": clock["id"]}))
        await under.subscribe("org:b", "plan:free@1")
    assert (found["outside"]["orgs"], found["inside"]["orgs"]) == ([], ["org:b"])


class Counted(MemoryEngine):
    """Says when it was asked for changes so many times."""

    def __init__(self, now_ms: Milliseconds) -> None:
        super().__init__(now_ms)
        self.looks = 0
        self.awaited: dict[int, anyio.Event] = {}

    def attempt(self, op: Op[R]) -> R:
        if isinstance(op, ReadChanges):
            self.looks += 1
            if self.looks in self.awaited:
                self.awaited[self.looks].set()
        return super().attempt(op)

    async def looked(self, times: int) -> None:
        await self.awaited.setdefault(self.looks + times, anyio.Event()).wait()


async def test_two_hundred_who_wait_cost_as_much_as_one() -> None:
    engine = Counted(milliseconds(None))
    tier = AsyncTier.on(Core(Tier("memory://").core.settings, None, engine))
    await tier.push(MODEL)
    async with client_of(tier) as client:
        cursor = await cursor_of(client)
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(changes, client, cursor, 20)
            await engine.looked(205)  # each for itself, and then one for all
            began = monotonic()
            await engine.looked(5)
            assert monotonic() - began > 0.3  # a tenth of a second lies between two looks
            looks = engine.looks
            await tier.subscribe("org:b", "plan:free@1")
        assert engine.looks - looks < 20  # nor does each of them ask what it was


@pytest.mark.parametrize("workers", ["1", "2"])
def test_those_who_wait_have_an_answer_when_the_server_is_told_to_end(tmp_path: Path, workers: str) -> None:
    (tmp_path / "pricing.json").write_text(json.dumps(MODEL))
    answers: list[httpx.Response] = []

    with serving(tmp_path, "--pricing", "pricing.json", "--workers", workers) as server:

        def wait(seconds: float = 30) -> httpx.Response:
            query = {"since": cursor, "wait": seconds}
            return httpx.get(f"{server.url}/v1/changes", params=query, timeout=60)

        cursor = httpx.get(f"{server.url}/v1/changes", timeout=60).json()["cursor"]
        waiting = [threading.Thread(target=lambda: answers.append(wait())) for _ in range(4)]
        for thread in waiting:
            thread.start()
        assert (wait(0.5).json()["orgs"], len(answers)) == ([], 0)
        began = monotonic()
        server.end()
        for thread in waiting:
            thread.join()
        assert monotonic() - began < 20
        assert [answer.json()["orgs"] for answer in answers] == [[]] * 4


def test_a_change_by_another_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "pricing.json").write_text(json.dumps(MODEL))
    with serving(tmp_path, "--pricing", "pricing.json", "--workers", "2") as server:
        cursor = httpx.get(f"{server.url}/v1/changes", timeout=60).json()["cursor"]
        with Tier(f"sqlite:///{tmp_path}/tier.db") as tier:
            tier.subscribe("org:b", "plan:free@1")
        found = httpx.get(f"{server.url}/v1/changes", params={"since": cursor, "wait": 30}, timeout=60).json()
        assert found["orgs"] == ["org:b"]
        server.end()
