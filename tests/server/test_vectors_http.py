"""Conversations recorded from the real Tier server, sent to ours over HTTP: on both engines, and over a real socket.

Status, body and content type must be as recorded, errors to the letter, except for what is in `ON_PURPOSE`, most of
which is also so through Python. An entry that is not needed fails.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from conversations import (
    CALLS,
    CLOBBER,
    DIFFERENCES,
    INVALID,
    MISTAKES,
    Differences,
    Reply,
    comparable,
    differing,
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
OTHER_MISTAKES = "any other 500 that a client's input causes, test clocks included | 400"
METHODS = "any methods | 405"
NAMES = "hyphens and underscores refused in features | accepted in features"
# by nature
AT_ONCE = "a test clock of ours has arrived as soon as it is told to"
ACCOUNT = "whoami is about another server"

NO_METHOD: Final = Reply(405, "method_not_allowed")


def of_ours(body: Any) -> Any:
    """The recorded whoami with our server's own answers; which fields there are is the same."""
    ours = {"id": "", "email": "", "created": "", "key_source": "", "isolated": False, "url": ""}
    assert set(body) == set(ours)
    return ours


def message(text: str) -> Callable[[Any], Any]:
    return lambda body: {**body, "message": text}


OWN: Final[Differences] = {
    ("01_wire_basics", 0): (ACCOUNT, of_ours),
    ("01_wire_basics", 9): (METHODS, NO_METHOD),
    ("01_wire_basics", 10): (METHODS, NO_METHOD),
    ("01_wire_basics", 11): (METHODS, NO_METHOD),
    ("01_wire_basics", 12): (METHODS, NO_METHOD),
    ("01_wire_basics", 13): (METHODS, NO_METHOD),
    ("01_wire_basics", 14): (METHODS, NO_METHOD),
    ("01_wire_basics", 17): (METHODS, NO_METHOD),
    ("01_wire_basics", 18): (ACCOUNT, of_ours),
    ("05_subscribe", 45): (MISTAKES, INVALID),
    ("05_subscribe", 50): (MISTAKES, INVALID),
    ("11_report", 35): (NAMES, message("feature name must match [a-zA-Z0-9:_-]+")),
    ("11_report", 36): (NAMES, message("feature name must match [a-zA-Z0-9:_-]+")),
    ("11_report", 46): (MISTAKES, INVALID),
    ("11_report", 55): (CLOBBER, used(CALLS, 13 + 1)),
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
ON_PURPOSE: Final[Differences] = {**DIFFERENCES, **OWN}


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
            expected = differing(expected, ON_PURPOSE[at])
        if expected.status >= 400 and isinstance(expected.body, str):  # an error of ours: its code
            assert (reply.body["status"], reply.body["code"]) == expected, said
            assert reply.body["message"], said
            continue
        assert reply == expected, said
        assert at in ON_PURPOSE or content_type == step["response"]["content_type"], said


def test_the_table_names_steps_that_exist_and_no_step_twice() -> None:
    assert set(ON_PURPOSE) <= {(vector, number) for vector in VECTORS for number in range(len(steps_of(vector)))}
    assert not set(OWN) & set(DIFFERENCES)
