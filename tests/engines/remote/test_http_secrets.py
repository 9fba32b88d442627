"""The API key is in no error, no log and no repr, whatever a server does with it."""

from __future__ import annotations

import logging
import threading
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tier_middleware import ConfigurationError, Tier, TierError

KEY = "canary-7f3a"
SECRETS = (KEY, b64encode(f"{KEY}:".encode()).decode().rstrip("="))
ORG, CALLS = "org:acme", "feature:calls"

ANSWERS: dict[str, tuple[int, bytes]] = {
    "unauthorized": (401, b'{"status": 401, "code": "unauthorized", "message": "no such key"}'),
    "forbidden": (403, b""),
    "unknown org": (400, b'{"status": 400, "code": "org_not_found", "message": "org not found"}'),
    "refused": (400, b'{"status": 400, "code": "invalid_request", "message": "no"}'),
    "broken": (500, b"<html>Traceback"),
    "too many": (429, b""),
    "elsewhere": (302, b""),
    "garbage": (200, b"\xff\xfe{"),
    "another form": (200, b'{"usage": 7}'),
}


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that says the same to everybody: its URL."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.send_header("location", "https://elsewhere.example/")
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # as http.server wants them called

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def calls(tier: Tier) -> list[Callable[[], object]]:
    return [
        lambda: tier.can(ORG, CALLS),
        lambda: tier.report(ORG, CALLS),
        lambda: tier.adjust(ORG, CALLS, 1),
        lambda: tier.lookup_limits(ORG),
        lambda: tier.lookup_phases(ORG),
        lambda: tier.subscribe(ORG, "plan:free@1"),
        lambda: tier.lookup_org(ORG),
        lambda: tier.push({"plans": {"plan:free@1": {"features": {}}}}),
        tier.pull,
        tier.whoami,
        lambda: tier.checkout(ORG, "https://shop.example/"),
    ]


def everything_in(value: object, depth: int = 6) -> str:
    """What is to be found by whoever looks into a value, such as a tracker of errors."""
    if depth == 0 or value is None or isinstance(value, (int, float)):
        return ""
    if isinstance(value, dict):
        return " ".join(everything_in(part, depth - 1) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple, set)):
        return " ".join(everything_in(part, depth - 1) for part in value)
    return f"{value!r} {value!s} " + everything_in(getattr(value, "__dict__", None), depth - 1)


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_makes_it_show(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    with answering(*ANSWERS[name]) as url:
        tier = Tier(url, KEY, on_loss=lambda *lost: shown.append(str(lost)), timeout=0.5)
        for call in calls(tier):
            try:
                shown.append(everything_in(call()))
            except TierError as error:
                shown += [everything_in(error), *traceback.format_exception(error), everything_in(error.__context__)]
        shown += [repr(tier), repr(tier.core), repr(tier.core.settings), repr(vars(tier.core.engine)), str(tier.counts)]
        tier.close()
    text = " ".join(shown) + caplog.text
    assert len(text) > 1000
    for secret in SECRETS:
        assert secret not in text


@pytest.mark.parametrize("url", ["http://tier.example.com", "https://tier.example.com/?x=1", "ftp://tier.example.com"])
@pytest.mark.parametrize("key", [KEY, f"{KEY}\n", f"{KEY}é"])
def test_no_setting_makes_it_show(url: str, key: str) -> None:
    try:
        error: object = Tier(url, key)
    except ConfigurationError as raised:
        error = [raised, *traceback.format_exception(raised)]
    assert KEY not in everything_in(error, 3) if isinstance(error, list) else KEY not in repr(error)
