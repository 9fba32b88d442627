"""Four worker processes, one SQLite file, one org, many requests: the count is exact to the unit."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx

from tier_middleware import Usage
from tier_middleware.demo.server import Server, serving

LIMIT = 500
AT_ONCE = 150
PRICING = """{"plans": {
  "plan:free@1": {"features": {"feature:convert": {"tiers": [{"upto": 500}]}}},
  "plan:pro@1": {"features": {"feature:convert": {"tiers": [{"upto": 5000}]}}},  // without an upgrade a refusal is 429
}}"""


def test_four_workers_sell_500_units_exactly_500_times(tmp_path: Path) -> None:
    with paperlane(tmp_path) as server:
        statuses, usage = driven(server, 4 * LIMIT, lambda number: False)
        log = server.log
    assert statuses == {200: LIMIT, 402: 3 * LIMIT}
    assert (usage.used, usage.reserved, usage.limit) == (LIMIT, 0, LIMIT)
    assert "ERROR" not in log
    assert "engine away" not in log


def test_with_three_of_ten_failing_used_is_what_succeeded(tmp_path: Path) -> None:
    with paperlane(tmp_path) as server:
        statuses, usage = driven(server, 2 * LIMIT, lambda number: number % 10 < 3)
        log = server.log
    assert statuses.keys() == {200, 402, 500}
    assert usage.used == statuses[200] <= LIMIT
    # refused only while used + reserved was at the limit, and no more than AT_ONCE were reserved at any time
    assert usage.used >= LIMIT - AT_ONCE
    assert usage.reserved == 0
    assert "engine away" not in log


def paperlane(folder: Path) -> contextlib.AbstractContextManager[Server]:
    pricing = folder / "pricing.json"
    pricing.write_text(PRICING)
    return serving(folder, workers=4, EXAMPLE_ON_ERROR="deny", TIER_PRICING=str(pricing))


def driven(server: Server, requests: int, fails: Callable[[int], bool]) -> tuple[Counter[int], Usage]:
    """Send so many requests, AT_ONCE at a time: how often each status came, and what the engine says in the end."""
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        form = {"email": "ann@home.example", "password": "long enough to pass", "organisation": "Home"}
        token = client.post("/signup", data=form).json()["token"]
        client.headers["authorization"] = f"Bearer {token}"
        org = client.get("/usage").json()["org"]
    statuses = asyncio.run(storm(server.url, token, requests, fails))
    with server.tier() as tier:
        return statuses, tier.lookup_limit(org, "feature:convert")


async def storm(url: str, token: str, requests: int, fails: Callable[[int], bool]) -> Counter[int]:
    numbers = iter(range(requests))
    statuses: Counter[int] = Counter()
    bearer = {"authorization": f"Bearer {token}"}

    async def visitor() -> None:
        # a client each: one for all would look through its 150 connections for every request
        async with httpx.AsyncClient(base_url=url, headers=bearer, timeout=30, trust_env=False, verify=False) as client:
            for number in numbers:
                is_bad = fails(number)
                # uvicorn hangs up after an exception and does not say so: such a connection is not used again
                headers = {"connection": "close"} if is_bad else {}
                text = {"document": "corrupt" if is_bad else "fine"}
                statuses[(await client.post("/convert", json=text, headers=headers)).status_code] += 1

    await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
    return statuses
