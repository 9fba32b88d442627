"""Four worker processes of each kind, one database, one org, many requests: the count is exact to the unit."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tier_middleware.demo.server import DJANGO, Server, environment, serving

AT_ONCE = 150
SHORT, LONG = 400, 2000  # requests: in every run, and on demand
PRICING = """{"plans": {
  "plan:free@1": {"features": {"feature:labels": {"tiers": [{"upto": LIMIT}]},
                               "feature:address-checks": {"tiers": [{"upto": LIMIT}]}}},
  "plan:pro@1": {"features": {"feature:labels": {"tiers": [{}]},  // without an upgrade a refusal is 429
                              "feature:address-checks": {"tiers": [{}]}}},
}}"""

GUNICORN = [sys.executable, "-m", "gunicorn", "--workers=4", "--bind=127.0.0.1:0", "--log-level=info"]
COMMANDS = {
    "gunicorn, sync workers": [*GUNICORN, "--worker-class=sync", "example_django.wsgi:application"],
    "gunicorn, uvicorn workers": [
        *GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker", "example_django.asgi:application",
    ],
}  # fmt: skip
SERVERS = [*COMMANDS, "uvicorn"]


def kinds(*short: str) -> list[Any]:
    """Each server with many requests, on demand, and these with a few in every run."""
    long = [pytest.param(server, LONG, marks=pytest.mark.slow) for server in SERVERS]
    return [*long, *(pytest.param(server, SHORT) for server in short)]


COUNTED = (
    "SELECT n, reserved FROM tier_units JOIN tier_usage ON tier_usage.id = usage_id "
    "WHERE feature = ? AND tier_units.id = 0"
)
SOLD = {"feature:labels": 201, "feature:address-checks": 200}


@contextmanager
def parcelboard(folder: Path, kind: str, limit: int, **more: str) -> Iterator[Server]:
    pricing = folder / "pricing.json"
    pricing.write_text(PRICING.replace("LIMIT", str(limit)))
    variables = {"EXAMPLE_ON_ERROR": "deny", "TIER_PRICING": str(pricing)} | more
    if kind == "uvicorn":
        with serving(folder, example=DJANGO, workers=4, **variables) as server:
            yield server
        return
    environ = environment(folder, DJANGO) | variables
    subprocess.run(
        [sys.executable, "-m", "example_django.manage", "migrate", "-v0"], cwd=folder, env=environ, check=True
    )
    with (folder / "server.log").open("wb") as log:
        server = Server(subprocess.Popen(COMMANDS[kind], cwd=folder, env=environ, stdout=log, stderr=log), folder)
    try:
        server.url = listening(server)
        yield server
    finally:
        server.stop()


def listening(server: Server) -> str:
    """Where the server listens, once its four workers have been started."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = re.search(r"Listening at: (http://127\.0\.0\.1:\d+)", server.log)
        if found and server.log.count("Booting worker") == 4:
            return found[1]
        assert server.process.poll() is None, server.log
        time.sleep(0.02)  # another process: nothing here can wait for it
    raise AssertionError(server.log)


@pytest.mark.parametrize(("kind", "requests"), kinds(*SERVERS))
def test_four_workers_sell_exactly_what_there_is(tmp_path: Path, kind: str, requests: int) -> None:
    feature = "feature:address-checks" if kind == "gunicorn, uvicorn workers" else "feature:labels"
    limit = requests // 4
    with parcelboard(tmp_path, kind, limit) as server:
        org, statuses = besieged(server, feature, requests)
        with server.tier() as tier:
            usage = tier.lookup_limit(org, feature)
        log = server.log
    assert statuses == {SOLD[feature]: limit, 402: requests - limit}, log[-2000:]
    assert (usage.used, usage.reserved, usage.limit) == (limit, 0, limit)
    assert "engine away" not in log


@pytest.mark.parametrize(("kind", "requests"), kinds("uvicorn"))
def test_four_workers_sell_exactly_in_the_projects_own_sqlite(tmp_path: Path, kind: str, requests: int) -> None:
    limit = requests // 4
    with parcelboard(tmp_path, kind, limit, TIER_BASE_URL="django://default") as server:
        _, statuses = besieged(server, "feature:labels", requests)
        log = server.log
    assert statuses == {201: limit, 402: requests - limit}, log[-2000:]
    assert "engine away" not in log
    with closing(sqlite3.connect(tmp_path / "example.db")) as connection:
        assert connection.execute(COUNTED, ["feature:labels"]).fetchone() == (limit, 0)
        assert connection.execute("SELECT count(*) FROM labels_label").fetchone() == (limit,)


@pytest.mark.parametrize(
    ("kind", "requests", "feature"),
    [
        *(pytest.param(*kind.values, "feature:labels", marks=kind.marks) for kind in kinds(*SERVERS)),
        pytest.param("gunicorn, uvicorn workers", LONG, "feature:address-checks", marks=pytest.mark.slow),
        pytest.param("uvicorn", LONG, "feature:address-checks", marks=pytest.mark.slow),
    ],
)
def test_four_workers_sell_exactly_in_the_projects_own_postgresql(
    tmp_path: Path, kind: str, requests: int, feature: str
) -> None:
    from databases import postgresql_settings  # sets Django up

    name, limit = f"load_{uuid.uuid4().hex}", requests // 4
    found = postgresql_settings(name)
    where = {"EXAMPLE_POSTGRES": name, "PGHOST": found["HOST"], "PGUSER": found["USER"]}
    with parcelboard(tmp_path, kind, limit, TIER_BASE_URL="django://default", **where) as server:
        _, statuses = besieged(server, feature, requests)
        log = server.log
    assert statuses == {SOLD[feature]: limit, 402: requests - limit}, log[-2000:]
    assert "engine away" not in log
    import psycopg

    with psycopg.connect(host=found["HOST"], user=found["USER"], dbname=name) as connection:
        assert connection.execute(COUNTED.replace("?", "%s"), [feature]).fetchone() == (limit, 0)
        rows = limit if feature == "feature:labels" else 0
        assert connection.execute("SELECT count(*) FROM labels_label").fetchone() == (rows,)


def besieged(server: Server, feature: str, requests: int) -> tuple[str, Counter[int]]:
    """One org asks for a feature so many times: its name, and how often each status came."""
    token, session, org = signed_up(server)
    if feature == "feature:labels":  # written by REST framework, into the project's own database
        request = httpx.Request("POST", f"{server.url}/api/labels/", json={"address": "1 Road"}, headers=token)
    else:  # read by an async view
        request = httpx.Request("GET", f"{server.url}/addresses/check/?address=1", headers=session)
    return org, asyncio.run(storm(request, requests))


def signed_up(server: Server) -> tuple[dict[str, str], dict[str, str], str]:
    password = "long enough to pass"
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        client.get("/signup/")
        form = {"username": "ann", "password1": password, "password2": password, "team": "Home"}
        form["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
        assert client.post("/signup/", data=form).status_code == 302
        session = {"cookie": f"sessionid={client.cookies['sessionid']}"}
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        token = client.post("/api/token/", data={"username": "ann", "password": password}).json()["token"]
        headers = {"authorization": f"Token {token}"}
        return headers, session, client.get("/api/usage/", headers=headers).json()["org"]


async def storm(request: httpx.Request, requests: int) -> Counter[int]:
    """The request so many times, many at once: how often each status came."""
    numbers = iter(range(requests))
    statuses: Counter[int] = Counter()
    await request.aread()
    # a machine with more to do than it can keeps answers unread for longer than a server keeps an idle connection
    headers = {**request.headers, "connection": "close"}
    again = {"method": request.method, "url": request.url, "content": request.content, "headers": headers}

    async def visitor() -> None:
        async with httpx.AsyncClient(timeout=120, trust_env=False, verify=False) as client:
            for _ in numbers:
                statuses[(await client.request(**again)).status_code] += 1

    await asyncio.gather(*(visitor() for _ in range(AT_ONCE)))
    return statuses
