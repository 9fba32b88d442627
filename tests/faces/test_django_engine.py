"""Django with an engine that is locked, away or wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import django_project
import pytest
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django_project import Site

from tier_middleware import ConfigurationError, Tier
from tier_middleware.django import requires_feature


@requires_feature("feature:convert")
def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("done")


@requires_feature("feature:convert")
async def aplain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("done")


@pytest.fixture
def make_site(make_tier: Callable[..., Any]) -> Iterator[Callable[..., Site]]:
    made: list[Tier] = []

    def make(**options: Any) -> Site:
        tier = Tier.on(make_tier("sqlite", **options).core)
        tier.subscribe("org:acme", "plan:free@1")
        made.append(tier)
        return Site(tier)

    yield make
    for tier in made:
        tier.close()
    django_project.change(TIER={"BASE_URL": "memory://"})


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection, which can hold the file for itself."""
    with closing(sqlite3.connect(tmp_path / "tier.db", isolation_level=None, check_same_thread=False)) as db:
        yield db
        if db.in_transaction:
            db.execute("ROLLBACK")


def test_wsgi_waits_for_a_locked_file(make_site: Any, writer: sqlite3.Connection) -> None:
    site = make_site()
    site.serve(plain)
    writer.execute("BEGIN IMMEDIATE")
    threading.Timer(0.2, lambda: writer.execute("ROLLBACK")).start()
    assert site.get().status_code == 200
    assert site.used() == (1, 0)


async def test_asgi_waits_and_the_loop_goes_on(make_site: Any, writer: sqlite3.Connection) -> None:
    site = make_site()
    site.serve(aplain)
    writer.execute("BEGIN IMMEDIATE")
    task = asyncio.ensure_future(site.aget())
    turns, longest, before = 0, 0.0, asyncio.get_running_loop().time()
    while turns < 100:
        await asyncio.sleep(0.002)
        now = asyncio.get_running_loop().time()
        turns, longest, before = turns + 1, max(longest, now - before), now
    assert not task.done()
    assert longest < 0.2
    writer.execute("ROLLBACK")
    assert (await task).status_code == 200
    assert site.used() == (1, 0)


@pytest.mark.parametrize(("on_error", "status"), [("allow", 200), ("deny", 503), (lambda request, error: False, 503)])
@pytest.mark.parametrize("view", [plain, aplain])
async def test_an_engine_that_is_away(
    make_site: Any, writer: sqlite3.Connection, on_error: Any, status: int, view: Any
) -> None:
    site = make_site(on_error=on_error, timeout=0.05)
    writer.execute("BEGIN IMMEDIATE")
    site.serve(view)
    answers = [await site.aget(), await asyncio.to_thread(site.get)]
    assert [answer.status_code for answer in answers] == [status, status]
    if status == 503:
        assert answers[0].json()["code"] == "engine_unavailable"
        assert site.tier.counts["fail_closed"] == 2
    else:
        assert site.tier.counts == {"fail_open": 2, "outbox.kept": 2}
        writer.execute("ROLLBACK")
        site.tier.close()
        assert site.used() == (2, 0)


@pytest.mark.parametrize("view", [plain, aplain])
async def test_usage_that_is_lost_can_fail_the_request(
    make_site: Any, writer: sqlite3.Connection, view: Any, tmp_path: Path
) -> None:
    site = make_site(on_loss="fail", timeout=0.05, outbox=tmp_path / "no folder" / "outbox.db")

    def lock(response: Any) -> Any:
        writer.execute("BEGIN IMMEDIATE")
        return response

    def locks(request: HttpRequest) -> HttpResponse:
        return lock(HttpResponse("done"))

    async def alocks(request: HttpRequest) -> HttpResponse:
        return lock(HttpResponse("done"))

    site.serve(requires_feature("feature:convert")(locks if view is plain else alocks))
    answer = await site.aget()
    assert (answer.status_code, answer.json()["code"]) == (503, "engine_unavailable")


def test_an_engine_that_cannot_be_opened_never_opens_a_gate(tmp_path: Path) -> None:
    (tmp_path / "tier.db").write_bytes(b"this is no database, and long enough to be seen as none" * 20)
    site = Site(Tier(f"sqlite:///{tmp_path}/tier.db"))
    site.serve(plain)
    assert site.get().status_code == 503
    django_project.change(TIER={"BASE_URL": "memory://"})


def test_a_sync_file_that_is_locked_when_a_view_fails_is_given_back_later(
    make_site: Any, writer: sqlite3.Connection
) -> None:
    @requires_feature("feature:convert")
    def fails(request: HttpRequest) -> HttpResponse:
        writer.execute("BEGIN IMMEDIATE")
        threading.Timer(0.2, lambda: writer.execute("ROLLBACK")).start()
        raise ZeroDivisionError

    site = make_site()
    site.serve(fails)
    assert site.get().status_code == 500
    assert site.used() == (0, 0)


def test_bad_settings_fail_the_start() -> None:
    django_project.change(TIER={"BASE_URL": "ftp://nowhere"})
    with pytest.raises(ConfigurationError, match=r"TIER\['BASE_URL'\]: .*'ftp://nowhere'"):
        Client().get("/")
    django_project.change(TIER={"BASE_URL": "memory://"})
