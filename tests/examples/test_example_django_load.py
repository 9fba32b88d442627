"""Four worker processes of each kind, one database, one org, 2,000 requests: the count is exact to the unit."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tier_middleware.demo.server import DJANGO, Server, environment, serving

REQUESTS = 2000
LIMIT = 500
AT_ONCE = 150
PRICING = """{"plans": {
  "plan:free@1": {"features": {"feature:labels": {"tiers": [{"upto": 500}]},
                               "feature:address-checks": {"tiers": [{"upto": 500}]}}},
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


@contextmanager
def parcelboard(folder: Path, kind: str, **more: str) -> Iterator[Server]:
    pricing = folder / "pricing.json"
    pricing.write_text(PRICING)
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


@pytest.mark.parametrize(
    ("kind", "feature"),
    [
        ("gunicorn, sync workers", "feature:labels"),
        pytest.param("gunicorn, uvicorn workers", "feature:address-checks", marks=pytest.mark.slow),
        pytest.param("uvicorn", "feature:labels", marks=pytest.mark.slow),
    ],
)
def test_four_workers_sell_500_units_exactly_500_times(tmp_path: Path, kind: str, feature: str) -> None:
    with parcelboard(tmp_path, kind) as server:
        token, session, org = signed_up(server)
        if feature == "feature:labels":  # written by REST framework, into the project's own database
            request = httpx.Request("POST", f"{server.url}/api/labels/", json={"address": "1 Road"}, headers=token)
        else:  # read by an async view
            request = httpx.Request("GET", f"{server.url}/addresses/check/?address=1", headers=session)
        statuses = asyncio.run(storm(request))
        with server.tier() as tier:
            usage = tier.lookup_limit(org, feature)
        log = server.log
    assert statuses == {201 if feature == "feature:labels" else 200: LIMIT, 402: REQUESTS - LIMIT}, log[-2000:]
    assert (usage.used, usage.reserved, usage.limit) == (LIMIT, 0, LIMIT)
    assert "engine away" not in log


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gunicorn, sync workers", "gunicorn, uvicorn workers"])
def test_four_workers_sell_exactly_in_the_projects_own_postgresql(tmp_path: Path, kind: str) -> None:
    from databases import postgresql_settings  # sets Django up

    name = "load_" + re.sub(r"\W+", "_", kind)
    found = postgresql_settings(name)
    where = {"EXAMPLE_POSTGRES": name, "PGHOST": found["HOST"], "PGUSER": found["USER"]}
    with parcelboard(tmp_path, kind, TIER_BASE_URL="django://default", **where) as server:
        token, _, _ = signed_up(server)
        request = httpx.Request("POST", f"{server.url}/api/labels/", json={"address": "1 Road"}, headers=token)
        statuses = asyncio.run(storm(request, 40))  # each with a connection of its own, on ASGI: a PostgreSQL has 100
        log = server.log
    assert statuses == {201: LIMIT, 402: REQUESTS - LIMIT}, log[-2000:]
    assert "engine away" not in log
    import psycopg

    with psycopg.connect(host=found["HOST"], user=found["USER"], dbname=name) as connection:
        counted = (
            "SELECT n, reserved FROM tier_units JOIN tier_usage ON tier_usage.id = usage_id WHERE feature = %s AND "
        )
        row = connection.execute(counted + "tier_units.id = 0", ["feature:labels"]).fetchone()
        assert row == (LIMIT, 0)
        assert connection.execute("SELECT count(*) FROM labels_label").fetchone() == (LIMIT,)


def signed_up(server: Server) -> tuple[dict[str, str], dict[str, str], str]:
    password = "long enough to pass"
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        client.get("/signup/")
        form = {"username": "ann", "password1": password, "password2": password, "team": "Home"}
        form["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
        assert client.post("/signup/", data=form).status_code == 302
        session = {"cookie": f"sessionid={client.cookies['sessionid']}"}
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        token = client.post("/api/token/", data={"username": "ann", "password": password}).json()["token"]
        headers = {"authorization": f"Token {token}"}
        return headers, session, client.get("/api/usage/", headers=headers).json()["org"]


async def storm(request: httpx.Request, at_once: int = AT_ONCE) -> Counter[int]:
    """The request 2,000 times, so many at a time: how often each status came."""
    numbers = iter(range(REQUESTS))
    statuses: Counter[int] = Counter()
    await request.aread()
    again = {"method": request.method, "url": request.url, "content": request.content, "headers": request.headers}

    async def visitor() -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False, verify=False) as client:
            for _ in numbers:
                statuses[(await client.request(**again)).status_code] += 1

    await asyncio.gather(*(visitor() for _ in range(at_once)))
    return statuses
