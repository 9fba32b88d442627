"""Parcelboard as its users have it, programs and browsers, over a real socket."""

from __future__ import annotations

import itertools
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path

import httpx
import pytest

from tier_middleware import Usage
from tier_middleware.demo.server import DJANGO, Server, environment, serving

PASSWORD = "long enough to pass"
PAGE = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
names = (f"user{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With two workers: what one of them knows, the other must know too."""
    with serving(tmp_path_factory.mktemp("parcelboard"), example=DJANGO, workers=2) as running:
        yield running


@pytest.mark.parametrize(
    "command", [("check", "--deploy", "--fail-level=WARNING"), ("makemigrations", "--check", "--dry-run")]
)
def test_django_has_nothing_to_say(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Not by a warning either, of ours or of anybody's."""
    environ = environment(tmp_path, DJANGO) | {"EXAMPLE_HTTPS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "example_django.manage", *command],
        env=environ, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).strip() in (
        "System check identified no issues (0 silenced).",
        "No changes detected",
    )


class Visitor:
    """A user in a browser (``page``, ``post``) and by a program (``api``)."""

    def __init__(self, site: Server, team: str = "Home") -> None:
        self.site = site
        self.name = next(names)
        self.browser = httpx.Client(base_url=site.url, headers={"connection": "close", **PAGE}, trust_env=False)
        self.program = httpx.Client(base_url=site.url, headers={"connection": "close"}, trust_env=False)
        self.browser.get("/signup/")
        joined = self.post("/signup/", username=self.name, password1=PASSWORD, password2=PASSWORD, team=team)
        assert joined.status_code == 302, joined.text
        token = self.program.post("/api/token/", data={"username": self.name, "password": PASSWORD}).json()["token"]
        self.program.headers["authorization"] = f"Token {token}"

    def post(self, path: str, **form: str) -> httpx.Response:
        form["csrfmiddlewaretoken"] = self.browser.cookies["csrftoken"]
        return self.browser.post(path, data=form)

    def used(self, feature: str = "feature:labels") -> Usage:
        """What the engine itself says."""
        with self.site.tier() as tier:
            return tier.lookup_limit(self.program.get("/api/usage/").json()["org"], feature)

    def close(self) -> None:
        self.browser.close()
        self.program.close()


@contextmanager
def visiting(site: Server, team: str = "Home") -> Iterator[Visitor]:
    visitor = Visitor(site, team)
    try:
        yield visitor
    finally:
        visitor.close()


def test_pages_and_the_api_count_for_one_team(site: Server) -> None:
    with visiting(site) as ann, visiting(site, team="") as bob, visiting(site, team="Other") as eve:
        assert bob.program.post("/api/labels/", json={"address": "1 Road"}).json()["code"] == "no_org"
        assert ann.post("/members/", username=bob.name, role="member").status_code == 302
        assert ann.post("/labels/", address="1 Road").status_code == 302
        assert bob.post("/labels/", address="2 Road").status_code == 302
        assert bob.program.post("/api/labels/", json={"address": "3 Road"}).status_code == 201
        assert eve.post("/labels/", address="4 Road").status_code == 302
        assert (ann.used().used, bob.used().used, eve.used().used) == (3, 3, 1)
        assert "3 of 5 labels this month" in ann.browser.get("/").text
        assert "1 of 5 labels this month" in eve.browser.get("/").text


def test_only_what_succeeded_is_counted(site: Server) -> None:
    with visiting(site) as ann:
        assert ann.post("/labels/", address="").status_code == 422
        assert ann.post("/labels/", address="unreachable").status_code == 500
        assert ann.program.post("/api/labels/", json={}).status_code == 400
        assert ann.program.post("/api/labels/batch/", json={"address": "1 Road"}).status_code == 400
        assert ann.program.post("/api/labels/batch/", json=[{"address": "unreachable"}] * 3).status_code == 502
        assert ann.program.get("/api/labels/").json() == []
        usage = ann.used()
        assert (usage.used, usage.reserved) == (0, 0)
        assert ann.program.post("/api/labels/batch/", json=[{"address": "1 Road"}] * 3).status_code == 201
        refused = ann.program.post("/api/labels/batch/", json=[{"address": "1 Road"}] * 3)
        assert (refused.status_code, refused.json()["remaining"]) == (402, 2)
        assert ann.used().used == 3


def test_only_owners_upgrade_and_only_to_plans_that_exist(site: Server) -> None:
    with visiting(site) as ann, visiting(site, team="") as bob:
        ann.post("/members/", username=bob.name, role="member")
        assert "Choose Pro" not in bob.browser.get("/plans/").text
        assert bob.post("/plans/", plan="plan:pro@1").status_code == 403
        for plan in ("plan:gold@1", "pro", ""):
            assert ann.post("/plans/", plan=plan).status_code == 400
        assert ann.browser.get("/labels/export/").headers["location"] == "/plans/"
        button = re.search(r'name="plan" value="([^"]*)"><button>Choose Pro', ann.browser.get("/plans/").text)
        assert button
        assert ann.post("/plans/", plan=unescape(button[1])).status_code == 302
        assert "0 of 500 labels" in bob.browser.get("/").text
        ann.post("/labels/", address="=1+1 Road")
        exported = bob.browser.get("/labels/export/")
        assert (exported.status_code, exported.headers["content-type"]) == (200, "text/csv")
        assert exported.text.splitlines()[1].endswith(",'=1+1 Road")


def test_nobody_is_let_in_without_logging_in(site: Server) -> None:
    with httpx.Client(base_url=site.url, trust_env=False) as client:
        assert client.get("/").headers["location"] == "/login/?next=/"
        assert client.get("/labels/export/").headers["location"].startswith("/login/")
        assert client.get("/addresses/check/?address=1").json()["code"] == "no_org"
        for headers in ({}, {"authorization": "Token wrong"}):
            answer = client.post("/api/labels/", json={"address": "1 Road"}, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Token")
        assert client.post("/labels/", data={"address": "1 Road"}).status_code == 403  # a form of another site


def test_staff_use_everything_and_nothing_is_counted(site: Server) -> None:
    with visiting(site) as staff:
        with closing(sqlite3.connect(site.folder / "example.db", timeout=20)) as db, db:
            db.execute("UPDATE auth_user SET is_staff = 1 WHERE username = ?", (staff.name,))
        for _ in range(7):
            assert staff.post("/labels/", address="1 Road").status_code == 302
        assert staff.browser.get("/labels/export/").status_code == 200
        assert staff.program.get("/api/usage/").json()["usage"] == []
