"""The walk through the example for FastAPI, step by step."""

from __future__ import annotations

import json
from typing import Any, Final

import httpx

from ..cli import output
from .server import FASTAPI, Server
from .walk import LAST, PAGE, PASSWORD, Walk

__all__ = ["Tour"]

DOCUMENT: Final = "# Invoice 17\n\nThree boxes of paper. To be paid by Friday.\n\nThank you for your custom."
LETTER: Final = "\n\n".join(f"Paragraph {number} begins with this. And goes on." for number in range(1, 11))


class Tour(Walk):
    """One organisation's way from sign-up to upgrade."""

    example = FASTAPI

    @staticmethod
    def how_to_try(server: Server) -> str:
        json_body = "-H content-type:application/json -d"  # curl before 7.82 has no --json
        return f"""
The server stays, until Ctrl-C. In a browser: {server.url}/pricing
Log in as ann@acme.example with the password "{PASSWORD}", or sign up. With curl:

  curl -d email=you@home.example -d password={PASSWORD.replace(" ", "-")} -d organisation=Home {server.url}/signup
  TOKEN=...   # the token that it answers
  curl -H "Authorization: Bearer $TOKEN" {json_body} '{{"document": "# Hello"}}' {server.url}/convert
  curl -H "Authorization: Bearer $TOKEN" -X POST '{server.url}/ocr?pages=3'
  curl -H "Authorization: Bearer $TOKEN" {json_body} '{{"document": "It rained. A lot."}}' -N {server.url}/summarize
  curl -H "Authorization: Bearer $TOKEN" {server.url}/usage
  curl -H "Authorization: Bearer $TOKEN" -d plan=plan:pro@1 {server.url}/upgrade

The engine's side of it:

  tier-middleware limits ORG --base-url '{server.engine_url}'   # ORG is in what /usage answers"""

    def walk(self) -> None:
        self._sign_up()
        self._convert_with_a_failure_among()
        self._run_into_the_limit()
        self._see_it_in_a_browser()
        self._ask_for_what_the_plan_has_not()
        self._ask_for_many_at_once()
        self._follow_a_stream()
        self._upgrade()
        self._show_usage()

    # ---- the steps --------------------------------------------------------------------------------------------------

    def _sign_up(self) -> None:
        self._begin("Acme signs up and is put on the free plan")
        form = {"email": "ann@acme.example", "password": PASSWORD, "organisation": "Acme"}
        answer = self._send("POST", "/signup", 201, data=form)
        self._client.headers["authorization"] = f"Bearer {answer.json()['token']}"
        shown = self._send("GET", "/usage", 200).json()
        self._org = shown["org"]
        phase = self._tier.lookup_phase(self._org)
        self._expect("the plan", phase and phase.plans, ("plan:free@1",))
        self._show("POST /signup", answer, f"a token; Acme is {self._org[:12]}... on {', '.join(shown['plans'])}")
        self._expect_used("feature:convert", 0)

    def _convert_with_a_failure_among(self) -> None:
        limit = self._usage("feature:convert").limit
        self._begin(f"Conversions count down from {limit}; one that fails is not counted")
        for used in range(1, int(limit or 0) + 1):
            if used == 3:
                broken = self._send("POST", "/convert", 500, json={"document": "corrupt"}, headers=LAST)
                self._show("POST /convert", broken, f"a damaged document; still {self._left('feature:convert')} left")
                self._expect_used("feature:convert", used - 1)
            answer = self._convert(200)
            self._expect_used("feature:convert", used)
            self._show("POST /convert", answer, f"{self._left('feature:convert')} left")

    def _run_into_the_limit(self) -> None:
        self._begin("The next conversion is refused: programs get a problem document (RFC 9457)")
        answer = self._convert(402)
        self._show("POST /convert", answer, answer.headers["content-type"])
        problem = answer.json()
        for line in json.dumps(problem, indent=2).splitlines():
            output.print_line(f"       {line}")
        limits = self._usage("feature:convert")
        told = (problem["code"], problem["used"], problem["limit"])
        self._expect("code, used and limit in the answer", told, ("limit_reached", limits.used, limits.limit))
        self._expect("the upgrade in the answer", problem["upgrade"]["plans"], ["plan:pro@1", "plan:team@1"])

    def _see_it_in_a_browser(self) -> None:
        self._begin("A browser is sent to the page with the plans instead")
        token = self._client.headers.pop("authorization")
        form = {"email": "ann@acme.example", "password": PASSWORD}
        self._show("POST /login", self._send("POST", "/login", 303, data=form, headers=PAGE), "a session cookie")
        answer = self._convert(303, headers=PAGE)
        self._expect("Location", answer.headers["location"], "/pricing")
        self._show("POST /convert", answer, "Location: /pricing")
        page = self._send("GET", answer.headers["location"], 200, headers=PAGE)
        self._expect("a button for the pro plan", 'value="plan:pro@1"' in page.text, True)
        self._show("GET /pricing", page, "Free, Pro and Team, each with a button")
        self._client.headers["authorization"] = token

    def _ask_for_what_the_plan_has_not(self) -> None:
        self._begin("An on/off feature that the free plan has not got")
        answer = self._send("GET", "/export", 402)
        self._expect("code", answer.json()["code"], "no_entitlement")
        self._expect("the engine's answer", self._tier.can(self._org, "feature:export").ok, False)
        self._show("GET /export", answer, "no_entitlement")

    def _ask_for_many_at_once(self) -> None:
        self._begin("An amount that is in the request: all of it, or none")
        limit = int(self._usage("feature:ocr-pages").limit or 0)
        first = self._send("POST", "/ocr", 200, params={"pages": limit - 5})
        self._expect_used("feature:ocr-pages", limit - 5)
        self._show(f"POST /ocr?pages={limit - 5}", first, f"{self._left('feature:ocr-pages')} left")
        second = self._send("POST", "/ocr", 402, params={"pages": 6})
        self._expect_used("feature:ocr-pages", limit - 5)
        self._show(
            "POST /ocr?pages=6", second, f"{second.json()['code']}; still {self._left('feature:ocr-pages')} left"
        )

    def _follow_a_stream(self) -> None:
        self._begin("A stream holds an estimate, and counts what it took when it ends")
        tokens = 0
        with self._client.stream("POST", "/summarize", json={"document": LETTER}) as answer:
            self._expect("POST /summarize", answer.status_code, 200)
            for line in answer.iter_lines():
                tokens += line.startswith("data: ") and line != "data: [DONE]"
                if tokens == 1 and line:
                    held = self._usage("feature:summary-tokens")
                    self._expect("used and reserved in the middle", (held.used, held.reserved), (0, 100))
                    self._show("POST /summarize", answer, f"streaming: {held.used} used, {held.reserved} reserved")
        self._expect_used("feature:summary-tokens", tokens)
        self._expect("reserved at the end", self._usage("feature:summary-tokens").reserved, 0)
        self._show("", answer, f"its end: {tokens} tokens came, {tokens} used, 0 reserved")

    def _upgrade(self) -> None:
        self._begin("Acme upgrades, and what was refused is allowed (the example takes no payment)")
        answer = self._send("POST", "/upgrade", 303, data={"plan": "plan:pro@1"}, headers=PAGE)
        phase = self._tier.lookup_phase(self._org)
        self._expect("the plan", phase and phase.plans, ("plan:pro@1",))
        self._show("POST /upgrade", answer, "Acme is on plan:pro@1")
        answer = self._convert(200)
        self._expect_used("feature:convert", 1)
        self._show("POST /convert", answer, f"{self._left('feature:convert')} left")
        self._show("GET /export", self._send("GET", "/export", 200), "the usage as CSV")

    def _show_usage(self) -> None:
        self._begin("What Acme has used")
        shown = self._send("GET", "/usage", 200).json()["usage"]
        counted = self._tier.lookup_limits(self._org)
        told = [(one["feature"], one["used"], one["limit"]) for one in shown]
        self._expect("GET /usage", told, [(usage.feature, usage.used, usage.limit) for usage in counted])
        output.print_table(output.USAGE_COLUMNS, map(output.usage_row, counted), numeric=("used", "limit", "remaining"))
        output.print_line("")
        output.print_line(("Each number above was compared with the engine's own.", "bold"))

    def _convert(self, status: int, **options: Any) -> httpx.Response:
        return self._send("POST", "/convert", status, json={"document": DOCUMENT}, **options)
