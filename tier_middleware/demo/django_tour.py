"""The walk through the example for Django, step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from ..cli import output
from .server import DJANGO, Server
from .walk import PAGE, PASSWORD, Walk

__all__ = ["DjangoTour"]


class DjangoTour(Walk):
    """One team's way from sign-up to upgrade, in a browser and by the API."""

    example = DJANGO

    @staticmethod
    def how_to_try(server: Server) -> str:
        return f"""
The server stays, until Ctrl-C. In a browser: {server.url}/
Log in as ann with the password "{PASSWORD}", or sign up. With curl:

  curl -d username=ann -d 'password={PASSWORD}' {server.url}/api/token/
  TOKEN=...   # the token that it answers
  curl -H "Authorization: Token $TOKEN" -d address='1 Long Street' {server.url}/api/labels/
  curl -H "Authorization: Token $TOKEN" {server.url}/api/usage/

The engine's side of it:

  tier-middleware limits ORG --base-url '{server.engine_url}'   # ORG is in what /api/usage/ answers"""

    def walk(self) -> None:
        self._sign_up()
        self._buy_with_a_failure_among()
        self._run_into_the_limit()
        self._see_it_in_a_browser()
        self._ask_in_an_async_view()
        self._ask_as_somebody_else()
        self._upgrade()
        self._buy_many_at_once()
        self._export()
        self._show_usage()

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _sign_up(self) -> None:
        self._begin("Ann signs up and founds a team, which is on the free plan")
        answer = self._post("/signup/", 302, username="ann", password1=PASSWORD, password2=PASSWORD, team="Acme")
        self._show("POST /signup/", answer, "a session cookie")
        with self._visited_by(httpx.Cookies()):
            answer = self._send("POST", "/api/token/", 200, data={"username": "ann", "password": PASSWORD})
        self._token = {"authorization": f"Token {answer.json()['token']}"}
        self._org = self._send("GET", "/api/usage/", 200, headers=self._token).json()["org"]
        self._show("POST /api/token/", answer, f"a token; the team is {self._org[:12]}...")
        page = self._board()
        self._expect("the usage bar", "0 of 5 labels this month" in page.text, True)
        phase = self._tier.lookup_phase(self._org)
        self._expect("the plan", phase and phase.plans, ("plan:free@1",))
        self._show("GET /", page, "a usage bar: 0 of 5 labels this month")

    def _buy_with_a_failure_among(self) -> None:
        self._begin("Labels count down from 5, bought on pages and by the API; one that fails is not counted")
        for used in range(1, 6):
            if used == 3:
                broken = self._api("/api/labels/", 502, {"address": "1 unreachable Road"})
                self._expect_used("feature:labels", used - 1)
                left = self._left("feature:labels")
                self._show("POST /api/labels/", broken, f"the carrier is down; still {left} left")
                wrong = self._api("/api/labels/", 400, {"address": ""})
                self._expect_used("feature:labels", used - 1)
                self._show("POST /api/labels/", wrong, f"no address; still {left} left")
            if used % 2:
                answer, where = self._post("/labels/", 302, address=f"{used} Long Street"), "POST /labels/"
            else:
                answer, where = self._api("/api/labels/", 201, {"address": f"{used} Long Street"}), "POST /api/labels/"
            self._expect_used("feature:labels", used)
            self._show(where, answer, f"{self._left('feature:labels')} left")

    def _run_into_the_limit(self) -> None:
        self._begin("The next label is refused: programs get a problem document (RFC 9457), and no plain 403")
        answer = self._api("/api/labels/", 402, {"address": "6 Long Street"})
        problem = answer.json()
        self._show("POST /api/labels/", answer, answer.headers["content-type"])
        for line in json.dumps(problem, indent=2).splitlines():
            output.print_line(f"       {line}")
        told = (problem["code"], problem["used"], problem["limit"], problem["upgrade"])
        upgrade = {"url": "/plans/", "plans": ["plan:pro@1"]}
        self._expect("the answer", told, ("limit_reached", 5, 5, upgrade))
        listed = self._send("GET", "/api/labels/", 200, headers=self._token)
        self._expect("the labels that were bought", len(listed.json()), 5)

    def _see_it_in_a_browser(self) -> None:
        self._begin("A browser is sent to the page with the plans instead")
        answer = self._post("/labels/", 303, address="6 Long Street")
        self._expect("Location", answer.headers["location"], "/plans/")
        self._show("POST /labels/", answer, "Location: /plans/")
        page = self._send("GET", "/plans/", 200, headers=PAGE)
        self._expect("a button for the pro plan", "Choose Pro" in page.text, True)
        self._show("GET /plans/", page, "Free and Pro, with a button")
        page = self._board()
        self._expect("the upgrade button", 'id="upgrade"' in page.text, True)
        self._show("GET /", page, "5 of 5 labels, and an upgrade button")

    def _ask_in_an_async_view(self) -> None:
        self._begin("An async view; who asks is found by sync code that uses the database")
        answer = self._send("GET", "/addresses/check/", 200, params={"address": "1 Long Street"})
        self._expect("the answer", answer.json()["deliverable"], True)
        self._expect_used("feature:address-checks", 1)
        self._show("GET /addresses/check/", answer, "1 used")
        answer = self._send("GET", "/addresses/check/", 400)
        self._expect_used("feature:address-checks", 1)
        self._show("GET /addresses/check/", answer, "no address; still 1 used")

    def _ask_as_somebody_else(self) -> None:
        self._begin("Nobody is let in without logging in, nor somebody without a team")
        bob = httpx.Cookies()
        with self._visited_by(httpx.Cookies()):
            answer = self._send("POST", "/api/labels/", 401, json={"address": "1 Long Street"})
            self._show("POST /api/labels/", answer, "nobody")
        with self._visited_by(bob):
            self._post("/signup/", 302, username="bob", password1=PASSWORD, password2=PASSWORD)
            answer = self._send("GET", "/addresses/check/", 403, params={"address": "1 Long Street"})
            self._expect("code", answer.json()["code"], "no_org")
            self._show("GET /addresses/check/", answer, "bob has no team")
        self._show("POST /members/", self._post("/members/", 302, username="bob", role="member"), "ann adds bob")
        with self._visited_by(bob):
            answer = self._send("GET", "/addresses/check/", 200, params={"address": "1 Long Street"})
            self._expect_used("feature:address-checks", 2)
            self._show("GET /addresses/check/", answer, "bob; 2 used, of one team")
            self._show("POST /plans/", self._post("/plans/", 403, plan="plan:pro@1"), "bob is no owner")

    def _upgrade(self) -> None:
        self._begin("Ann upgrades, and what was refused is allowed (the example takes no payment)")
        answer = self._post("/plans/", 302, plan="plan:pro@1")
        phase = self._tier.lookup_phase(self._org)
        self._expect("the plan", phase and phase.plans, ("plan:pro@1",))
        self._show("POST /plans/", answer, "the team is on plan:pro@1")
        answer = self._api("/api/labels/", 201, {"address": "6 Long Street"})
        self._expect_used("feature:labels", 1)
        self._show("POST /api/labels/", answer, f"{self._left('feature:labels')} left")

    def _buy_many_at_once(self) -> None:
        self._begin("A batch: as many units as the request has labels, all or none")
        rows = [{"address": f"{number} Short Street"} for number in range(20)]
        self._show("POST /api/labels/batch/", self._api("/api/labels/batch/", 201, rows), "20 labels")
        self._expect_used("feature:labels", 21)
        broken = self._api("/api/labels/batch/", 502, [*rows, {"address": "unreachable"}])
        self._expect_used("feature:labels", 21)
        self._show("POST /api/labels/batch/", broken, "one of 21 fails: none is counted")

    def _export(self) -> None:
        self._begin("An on/off feature, on a class-based view that streams")
        answer = self._send("GET", "/labels/export/", 200, headers=PAGE)
        self._expect("lines", len(answer.text.splitlines()), 27)
        self._show("GET /labels/export/", answer, "26 labels as CSV")

    def _show_usage(self) -> None:
        self._begin("What the team has used")
        shown = self._send("GET", "/api/usage/", 200, headers=self._token).json()["usage"]
        counted = self._tier.lookup_limits(self._org)
        told = [(one["feature"], one["used"], one["limit"]) for one in shown]
        self._expect("GET /api/usage/", told, [(usage.feature, usage.used, usage.limit) for usage in counted])
        self._expect("reserved", sum(usage.reserved for usage in counted), 0)
        output.print_table(output.USAGE_COLUMNS, map(output.usage_row, counted), numeric=("used", "limit", "remaining"))
        output.print_line("")
        output.print_line(("Each number above was compared with the engine's own.", "bold"))

    # ---- pages and the API ------------------------------------------------------------------------------------------

    @contextmanager
    def _visited_by(self, cookies: httpx.Cookies) -> Iterator[None]:
        """The client as somebody else."""
        before = self._client.cookies.jar
        self._client.cookies.jar = cookies.jar
        try:
            yield
        finally:
            self._client.cookies.jar = before

    def _board(self) -> httpx.Response:
        return self._send("GET", "/", 200, headers=PAGE)

    def _post(self, path: str, status: int, **form: str) -> httpx.Response:
        """A form of a page, with the token against forgery that a page brings."""
        if "csrftoken" not in self._client.cookies:
            self._send("GET", "/signup/", 200, headers=PAGE)
        form["csrfmiddlewaretoken"] = self._client.cookies["csrftoken"]
        return self._send("POST", path, status, data=form, headers=PAGE)

    def _api(self, path: str, status: int, body: Any) -> httpx.Response:
        return self._send("POST", path, status, json=body, headers=self._token)
