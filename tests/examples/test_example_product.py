"""Paperlane as its users have it, programs and browsers, over a real socket."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from tier_middleware import Usage
from tier_middleware.demo.server import Server, serving

PASSWORD = "long enough to pass"
PAGE = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
TEXT = {"document": "# Title\n\nSome <b>text</b>."}
addresses = (f"user{number}@home.example" for number in itertools.count())


@contextmanager
def visiting(server: Server, **headers: str) -> Iterator[httpx.Client]:
    # a connection for each request: any worker may get it
    with httpx.Client(base_url=server.url, headers={"connection": "close", **headers}, trust_env=False) as client:
        yield client


@contextmanager
def signed_up(server: Server, **form: str) -> Iterator[httpx.Client]:
    """A program with the token of a new user."""
    with visiting(server) as client:
        answer = client.post("/signup", data={"email": next(addresses), "password": PASSWORD, **form})
        assert answer.status_code == 201, answer.text
        client.headers["authorization"] = f"Bearer {answer.json()['token']}"
        yield client


def used_by(client: httpx.Client) -> dict[str, int]:
    return {one["feature"]: one["used"] for one in client.get("/usage").json()["usage"]}


def counted(server: Server, client: httpx.Client, feature: str) -> Usage:
    """What the engine itself says."""
    with server.tier() as tier:
        return tier.lookup_limit(client.get("/usage").json()["org"], feature)


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    found: dict[str, Any] = answer.json()
    return found


# ---- who ------------------------------------------------------------------------------------------------------------


def test_nobody_is_let_in_without_logging_in(server: Server) -> None:
    with visiting(server) as client:
        for bearer in (None, "Bearer wrong", "Bearer", "Basic Zm9vOmJhcg=="):
            headers = {} if bearer is None else {"authorization": bearer}
            answer = client.post("/convert", json=TEXT, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/ocr?pages=1").status_code == 401
        forged = {"cookie": "session=eyJ0b2tlbiI6ICJ4In0=.forged.signature"}
        assert client.get("/usage", headers=forged).status_code == 401


def test_a_token_is_had_by_logging_in_with_the_right_password_only(server: Server) -> None:
    email = next(addresses)
    with signed_up(server, email=email, organisation="Home"), visiting(server) as client:
        assert client.post("/login", data={"email": email, "password": PASSWORD + "!"}).status_code == 401
        assert client.post("/login", data={"email": "nobody@home.example", "password": PASSWORD}).status_code == 401
        answer = client.post("/login", data={"email": email.upper(), "password": PASSWORD})
        assert "set-cookie" not in answer.headers
        client.headers["authorization"] = f"Bearer {answer.json()['token']}"
        assert client.post("/convert", json=TEXT).status_code == 200


def test_a_session_ends_where_its_user_logs_out(server: Server) -> None:
    email = next(addresses)
    with signed_up(server, email=email, organisation="Home"), visiting(server, **PAGE) as browser:
        answer = browser.post("/login", data={"email": email, "password": PASSWORD})
        assert (answer.status_code, answer.headers["location"]) == (303, "/pricing")
        assert re.search("httponly; samesite=lax", answer.headers["set-cookie"])
        kept = browser.cookies["session"]
        assert browser.post("/convert", json=TEXT).status_code == 200
        assert browser.post("/logout").status_code == 303
        assert browser.post("/convert", json=TEXT).status_code == 401
        assert browser.post("/convert", json=TEXT, headers={"cookie": f"session={kept}"}).status_code == 401


def test_users_of_one_org_share_its_plan_and_two_orgs_do_not(server: Server) -> None:
    with signed_up(server, organisation="Shared") as ann, signed_up(server, organisation="Other") as eve:
        invitation = ann.post("/invitations").json()["invitation"]
        with signed_up(server, invitation=invitation) as bob:
            assert [client.post("/convert", json=TEXT).status_code for client in (ann, bob, ann, bob, ann)] == [200] * 5
            assert problem(bob.post("/convert", json=TEXT), 402)["used"] == 5
            assert used_by(ann) == used_by(bob)
            assert counted(server, bob, "feature:convert").used == 5
            assert eve.post("/convert", json=TEXT).status_code == 200
            assert counted(server, eve, "feature:convert").used == 1
        again = eve.post("/signup", data={"email": next(addresses), "password": PASSWORD, "invitation": invitation})
        assert again.status_code == 422  # it was used


def test_a_user_without_an_org_is_refused_before_any_work(server: Server) -> None:
    with signed_up(server) as loner:
        assert problem(loner.post("/convert", json=TEXT), 403)["code"] == "no_org"
        assert problem(loner.post("/ocr?pages=1"), 403)["code"] == "no_org"
        assert loner.get("/usage").status_code == 403
        assert loner.post("/upgrade", data={"plan": "plan:pro@1"}).status_code == 403
        assert "Choose" not in loner.get("/pricing").text


def test_staff_use_everything_and_nothing_is_counted(server: Server) -> None:
    email = next(addresses)
    with signed_up(server, email=email, organisation="Paperlane") as staff:
        with closing(sqlite3.connect(server.folder / "example.db")) as db, db:
            db.execute("UPDATE users SET is_staff = 1 WHERE email = ?", (email,))
        assert [staff.post("/convert", json=TEXT).status_code for _ in range(7)] == [200] * 7
        assert staff.post("/ocr?pages=100").status_code == 200
        assert staff.post("/summarize", json=TEXT).status_code == 200
        assert staff.get("/export").status_code == 200
        assert set(used_by(staff).values()) == {0}


def test_signing_up_twice_or_badly_is_refused_and_leaves_nothing(server: Server) -> None:
    email = next(addresses)
    with signed_up(server, email=email, organisation="First"), visiting(server) as client:
        for form, status in (
            ({"email": email.upper(), "password": PASSWORD, "organisation": "Second"}, 409),
            ({"email": "no address", "password": PASSWORD, "organisation": "Second"}, 422),
            ({"email": next(addresses), "password": "short", "organisation": "Second"}, 422),
            ({"email": next(addresses), "password": PASSWORD, "invitation": "made-up"}, 422),
        ):
            assert client.post("/signup", data=form).status_code == status, form
    with closing(sqlite3.connect(server.folder / "example.db")) as db:
        assert db.execute("SELECT count(*) FROM orgs WHERE name = 'Second'").fetchone() == (0,)
        known = {row[0] for row in db.execute("SELECT id FROM orgs")}
    with closing(sqlite3.connect(server.folder / "tier.db")) as db:
        assert {row[0] for row in db.execute("SELECT name FROM orgs")} <= known


def test_secrets_are_stored_hashed(server: Server) -> None:
    with signed_up(server, organisation="Home") as client:
        token = client.headers["authorization"].removeprefix("Bearer ")
        invitation = client.post("/invitations").json()["invitation"]
    stored = (server.folder / "example.db").read_bytes()
    assert all(secret.encode() not in stored for secret in (token, invitation, PASSWORD))


def test_forms_on_other_sites_are_refused(server: Server) -> None:
    email = next(addresses)
    with signed_up(server, email=email, organisation="Home") as program, visiting(server, **PAGE) as browser:
        browser.post("/login", data={"email": email, "password": PASSWORD})
        for elsewhere in (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
        ):
            assert browser.post("/upgrade", data={"plan": "plan:pro@1"}, headers=elsewhere).status_code == 403
            assert browser.post("/convert", json=TEXT, headers=elsewhere).status_code == 403
        assert program.get("/usage").json()["plans"] == ["plan:free@1"]
        assert set(used_by(program).values()) == {0}
        ours = {"sec-fetch-site": "same-origin", "origin": server.url}
        assert browser.post("/upgrade", data={"plan": "plan:pro@1"}, headers=ours).status_code == 303


# ---- what is counted ------------------------------------------------------------------------------------------------


def test_only_what_succeeded_is_counted(server: Server) -> None:
    with signed_up(server, organisation="Home") as client:
        assert client.post("/convert", json={"document": "corrupt"}).status_code == 500
        assert client.post("/convert", json={"document": ""}).status_code == 422
        assert client.post("/convert", json={"document": "<!DOCTYPE html><p>done"}).status_code == 200  # skipped
        assert client.post("/ocr?pages=none").status_code == 422
        assert client.post("/ocr?pages=101").status_code == 422
        assert set(used_by(client).values()) == {0}
        assert counted(server, client, "feature:convert").reserved == 0
        assert client.post("/convert", json=TEXT).json() == {
            "html": "<h1>Title</h1>\n<p>Some &lt;b&gt;text&lt;/b&gt;.</p>"
        }
        assert counted(server, client, "feature:convert").used == 1


def test_an_amount_in_the_request_is_counted_whole_or_refused_whole(server: Server) -> None:
    with signed_up(server, organisation="Home") as client:
        assert len(client.post("/ocr?pages=18").json()["pages"]) == 18
        refused = problem(client.post("/ocr?pages=3"), 402)
        assert (refused["code"], refused["used"], refused["remaining"], refused["requested"]) == (
            "limit_reached", 18, 2, 3)  # fmt: skip
        assert problem(client.post("/ocr?pages=21"), 402)["code"] == "amount_exceeds_limit"
        assert client.post("/ocr?pages=2").status_code == 200
        assert counted(server, client, "feature:ocr-pages").used == 20


def test_a_stream_counts_its_tokens_at_its_end(server: Server) -> None:
    letter = {"document": "\n\n".join(["a b c d e f g h i"] * 6)}  # 59 tokens with the slashes between
    with signed_up(server, organisation="Home") as client:
        lines = client.post("/summarize", json=letter).text.splitlines()
        assert sum(line.startswith("data: ") for line in lines) == 59 + 1  # and the end
        now = counted(server, client, "feature:summary-tokens")
        assert (now.used, now.reserved) == (59, 0)
        with server.tier() as tier:
            tier.report(client.get("/usage").json()["org"], "feature:summary-tokens", 142)
        refused = problem(client.post("/summarize", json=letter), 402)  # it would take 59, and has to hold 100
        assert (refused["used"], refused["remaining"], refused["requested"]) == (201, 99, 100)


def test_a_feature_that_a_plan_has_or_has_not(server: Server) -> None:
    with signed_up(server, organisation="Home") as client:
        refused = problem(client.get("/export"), 402)
        assert (refused["code"], refused["upgrade"]["plans"]) == ("no_entitlement", ["plan:pro@1", "plan:team@1"])
        assert client.post("/upgrade", data={"plan": "plan:team@1"}).json() == {"plan": "plan:team@1"}
        answer = client.get("/export")
        assert answer.headers["content-type"].startswith("text/csv")
        assert "feature:convert,0," in answer.text


# ---- the upgrade ----------------------------------------------------------------------------------------------------


def test_the_upgrade_story_in_a_browser(server: Server) -> None:
    with visiting(server, **PAGE) as browser:
        browser.follow_redirects = True
        entrance = browser.get("/")
        assert entrance.url.path == "/pricing"
        assert 'action="/signup"' in entrance.text
        form = {"email": "<b>@home.example", "password": PASSWORD, "organisation": "Home"}
        page = browser.post("/signup", data=form)
        assert page.url.path == "/pricing"
        assert "&lt;b&gt;@home.example" in page.text
        assert "<b>@home.example" not in page.text
        for _ in range(5):
            assert browser.post("/convert", json=TEXT).status_code == 200
        page = browser.post("/convert", json=TEXT)
        assert [(answer.status_code, answer.headers["location"]) for answer in page.history] == [(303, "/pricing")]
        assert "<td>feature:convert<td>5<td>5" in page.text
        found = re.search(r'action="([^"]*)"><input type="hidden" name="plan" value="([^"]*pro[^"]*)"', page.text)
        assert found, page.text
        page = browser.post(unescape(found[1]), data={"plan": unescape(found[2])})
        assert page.url.path == "/pricing"
        assert re.search(r"<h2>Pro</h2>.*<strong>Your plan</strong>", page.text)
        assert browser.post("/convert", json=TEXT).json()["html"].startswith("<h1>")


@pytest.mark.parametrize("plan", ["plan:gold@1", "pro", "feature:convert@plan:pro@1", "", "https://evil.example"])
def test_only_plans_that_exist_are_sold(server: Server, plan: str) -> None:
    with signed_up(server, organisation="Home") as client:
        assert client.post("/upgrade", data={"plan": plan}).status_code == 422
        assert client.get("/usage").json()["plans"] == ["plan:free@1"]


def test_a_restart_keeps_users_sessions_and_usage(tmp_path: Path) -> None:
    with serving(tmp_path) as server, visiting(server, **PAGE) as browser:
        form = {"email": next(addresses), "password": PASSWORD, "organisation": "Home"}
        assert browser.post("/signup", data=form).status_code == 303
        assert browser.post("/convert", json=TEXT).status_code == 200
        cookie = browser.cookies["session"]
    with serving(tmp_path, workers=2) as server, visiting(server) as browser:
        browser.cookies.set("session", cookie)
        assert used_by(browser)["feature:convert"] == 1
