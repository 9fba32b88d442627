"""Conversations recorded from the real Tier server, sent to ours over HTTP: on both engines, and over a real socket.

Status, body and content type must be as recorded, errors to the letter, except for what is in `ON_PURPOSE`. An entry
that is not needed fails.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from conversations import (
    Reply,
    Step,
    comparable,
    once,
    recorded,
    steps_of,
    used,
    with_,
)
from served import serving

from tier_middleware import AsyncTier
from tier_middleware.server import TierServer

VECTORS: Final = (
    "01_wire_basics",
    "02_push_pull_valid",
    "03_push_duplicate",
    "05_subscribe",
    "09_org_info",
    "10_limits",
    "11_report",
    "15_clock",
)

# quoted from "What our server and engines do where the real one is wrong" in tier-protocol/README.md
NULL_LISTS = "`null` for empty lists | `[]`"
MISTAKES = (
    "500 for a client's mistake (wrong types, truncated JSON, negative `n`, `at` outside the period, [...] report "
    "without a subscription) | 400 with `invalid_request` (or the fitting code)"
)
OTHER_MISTAKES = "any other 500 that a client's input causes, test clocks included | 400"
CLOBBER = "clobber replaces one second | clobber makes n the whole usage of the feature in the billing period"
TWO_PLANS = "two plans with one feature: two entries | one entry, the larger limit"
METHODS = "any methods | 405"
NAMES = "hyphens and underscores refused in features | accepted in features"
# quoted from the design
ORGS = "Orgs: any non-empty text after `org:`"
# by nature
NO_PAYMENTS = "nobody takes payments: there are no payment methods to look up"
AT_ONCE = "a test clock of ours has arrived as soon as it is told to"
ACCOUNT = "whoami is about another server"

INVALID: Final = Reply(400, "invalid_request")
NO_METHOD: Final = Reply(405, "method_not_allowed")
NO_FEATURE: Final = Reply(400, "feature_not_found")
DONE: Final = Reply(200, {})
CALLS: Final = "feature:calls"


def of_ours(body: Any) -> Any:
    """The recorded whoami with our server's own answers; which fields there are is the same."""
    ours = {"id": "", "email": "", "created": "", "key_source": "", "isolated": False, "url": ""}
    assert set(body) == set(ours)
    return ours


def message(text: str) -> Callable[[Any], Any]:
    return lambda body: {**body, "message": text}


ON_PURPOSE: Final[dict[Step, tuple[str, Reply | Callable[[Any], Any]]]] = {
    # the step: why, and what ours answers (a function of what was recorded, or a status and of an error the code)
    ("01_wire_basics", 0): (ACCOUNT, of_ours),
    ("01_wire_basics", 9): (METHODS, NO_METHOD),
    ("01_wire_basics", 10): (METHODS, NO_METHOD),
    ("01_wire_basics", 11): (METHODS, NO_METHOD),
    ("01_wire_basics", 12): (METHODS, NO_METHOD),
    ("01_wire_basics", 13): (METHODS, NO_METHOD),
    ("01_wire_basics", 14): (METHODS, NO_METHOD),
    ("01_wire_basics", 17): (METHODS, NO_METHOD),
    ("01_wire_basics", 18): (ACCOUNT, of_ours),
    ("02_push_pull_valid", 4): (MISTAKES, INVALID),
    ("05_subscribe", 21): (TWO_PLANS, once()),
    ("05_subscribe", 23): (TWO_PLANS, once((CALLS, 3))),
    ("05_subscribe", 39): (ORGS, INVALID),
    ("05_subscribe", 45): (MISTAKES, INVALID),
    ("05_subscribe", 50): (MISTAKES, INVALID),
    ("05_subscribe", 51): (MISTAKES, INVALID),
    ("05_subscribe", 52): (MISTAKES, INVALID),
    ("09_org_info", 5): (NULL_LISTS, with_("phases", [])),
    ("09_org_info", 6): (NULL_LISTS, with_("usage", [])),
    ("09_org_info", 18): (MISTAKES, Reply(400, "invalid_metadata")),
    ("09_org_info", 23): (NO_PAYMENTS, with_("methods", [])),
    ("09_org_info", 24): (NO_PAYMENTS, with_("invoice_settings.default_payment_method", "pm_card_us")),
    ("09_org_info", 25): (NO_PAYMENTS, DONE),
    ("09_org_info", 26): (NO_PAYMENTS, DONE),
    ("09_org_info", 30): (NO_PAYMENTS, with_("invoice_settings.default_payment_method", "pm_nope")),
    ("10_limits", 6): (NULL_LISTS, with_("usage", [])),
    ("11_report", 9): (MISTAKES, INVALID),
    ("11_report", 16): (CLOBBER, used(CALLS, 5)),
    ("11_report", 18): (CLOBBER, used(CALLS, 1)),
    ("11_report", 21): (CLOBBER, used(CALLS, 1 + 4 + 4)),
    ("11_report", 23): (MISTAKES, INVALID),
    ("11_report", 24): (MISTAKES, INVALID),
    ("11_report", 28): (MISTAKES, INVALID),
    ("11_report", 29): (MISTAKES, INVALID),
    ("11_report", 30): (CLOBBER, used(CALLS, 9 + 4)),
    ("11_report", 35): (NAMES, message("feature name must match [a-zA-Z0-9:_-]+")),
    ("11_report", 36): (NAMES, message("feature name must match [a-zA-Z0-9:_-]+")),
    ("11_report", 46): (MISTAKES, INVALID),
    ("11_report", 49): (MISTAKES, INVALID),
    ("11_report", 50): (MISTAKES, INVALID),
    ("11_report", 51): (MISTAKES, INVALID),
    ("11_report", 52): (MISTAKES, INVALID),
    ("11_report", 54): (MISTAKES, INVALID),
    ("11_report", 55): (CLOBBER, used(CALLS, 13 + 1)),
    ("11_report", 57): (MISTAKES, NO_FEATURE),
    ("11_report", 58): (MISTAKES, NO_FEATURE),
    ("15_clock", 3): (AT_ONCE, with_("status", "ready")),
    ("15_clock", 5): (OTHER_MISTAKES, INVALID),
    ("15_clock", 6): (OTHER_MISTAKES, INVALID),
    ("15_clock", 7): (OTHER_MISTAKES, INVALID),
    ("15_clock", 8): (OTHER_MISTAKES, INVALID),
    ("15_clock", 9): (OTHER_MISTAKES, INVALID),
    ("15_clock", 10): (OTHER_MISTAKES, INVALID),
    ("15_clock", 18): (OTHER_MISTAKES, INVALID),
    ("15_clock", 19): (ACCOUNT, of_ours),
}


class Conversation:
    """Sends steps in order, and keeps what later ones refer to."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._kept: dict[str, str] = {}
        self._ids: dict[str, str] = {}

    async def reply_to(self, step: Mapping[str, Any]) -> tuple[Reply, str]:
        """What ours answers, in the form that is compared, and its content type."""
        request = step["request"]
        raw = request.get("body_raw")
        content = raw if raw is not None or "body" not in request else json.dumps(request["body"])
        answer = await self._client.request(
            request["method"],
            request["path"],
            params=self._filled(request.get("query", {})),
            headers=self._filled(request.get("headers", {})),
            content=None if content is None else str(self._filled(content)),
        )
        body = answer.json()
        for name, field in step.get("save", {}).items():
            self._kept[name] = body[field]
        return Reply(answer.status_code, self._named(comparable(body))), answer.headers["content-type"]

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._filled(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        for name, text in self._kept.items():
            value = value.replace(f"${{{name}}}", text)
        return value

    def _named(self, body: Any) -> Any:
        """With the ids of clocks as the recordings name them, and nothing that is only this server's."""
        if set(body) >= {"key_source", "isolated"}:
            return of_ours(body)
        id = body.get("id", "")
        if id.startswith("clock_"):
            body = {**body, "id": self._ids.setdefault(id, f"<clock:{len(self._ids) + 1}>")}
        return body


@pytest.fixture(params=["memory", "sqlite", "socket"])
async def conversation(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Conversation]:
    if request.param == "socket":
        with serving(tmp_path) as server:
            async with httpx.AsyncClient(base_url=server.url) as client:
                yield Conversation(client)
        return
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/tier.db"
    async with AsyncTier(url) as tier:
        transport = httpx.ASGITransport(TierServer(tier))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield Conversation(client)


def to_the_letter(step: Mapping[str, Any]) -> Reply:
    """What the real server answered; errors with their message."""
    return recorded(step)._replace(body=comparable(step["response"]["body"]))


@pytest.mark.parametrize("vector", VECTORS)
async def test_the_answers_are_those_of_the_real_server_save_for_the_table(
    vector: str, conversation: Conversation
) -> None:
    for number, step in enumerate(steps_of(vector)):
        at, said = (vector, number), f"step {number}: {step.get('note') or ''} {step['request']}"
        reply, content_type = await conversation.reply_to(step)
        expected = to_the_letter(step)
        if at in ON_PURPOSE:
            assert reply != expected, f"ON_PURPOSE[{at}] is not needed: {said}"
        expected = differing(at, expected)
        if expected.status >= 400 and isinstance(expected.body, str):  # an error of ours: its code
            assert (reply.body["status"], reply.body["code"]) == expected, said
            assert reply.body["message"], said
            continue
        assert reply == expected, said
        assert at in ON_PURPOSE or content_type == step["response"]["content_type"], said


def differing(at: Step, expected: Reply) -> Reply:
    _, differs = ON_PURPOSE.get(at, ("", expected))
    if isinstance(differs, Reply):
        return differs
    changed = json.loads(json.dumps(expected.body))
    return Reply(expected.status, differs(changed) or changed)


def test_the_table_names_steps_that_exist() -> None:
    assert set(ON_PURPOSE) <= {(vector, number) for vector in VECTORS for number in range(len(steps_of(vector)))}
