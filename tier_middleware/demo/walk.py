"""What the walks have in common: they tell each step, and compare what the server answers with the engine's count."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Final

import httpx

from ..cli import output
from ..client import Tier
from ..ops import Usage
from .server import Example, Server, ServerError, serving

__all__ = ["LAST", "PAGE", "PASSWORD", "Mismatch", "Walk", "run"]

PASSWORD: Final = "correct horse battery staple"
PAGE: Final = {"accept": "text/html,application/xhtml+xml"}  # as browsers ask
LAST: Final = {"connection": "close"}  # uvicorn hangs up after an exception and does not say so


class Mismatch(Exception):
    """A step went differently from what the demo tells."""


class Walk:
    """One organisation's way through an example."""

    example: ClassVar[Example]

    def __init__(self, client: httpx.Client, tier: Tier) -> None:
        self._client = client
        self._tier = tier
        self._org = ""
        self._step = ""
        self._number = 0

    def walk(self) -> None:
        """All steps. Raises `Mismatch` at the first that goes differently."""
        raise NotImplementedError

    @staticmethod
    def how_to_try(server: Server) -> str:
        """What a person may do with a server that stays."""
        raise NotImplementedError

    # ---- asking, telling, comparing ---------------------------------------------------------------------------------

    def _begin(self, title: str) -> None:
        self._number += 1
        self._step = f"step {self._number} ({title})"
        output.print_line("")
        output.print_line((f"{self._number}. {title}", "bold"))
        sys.stdout.flush()

    def _show(self, request: str, answer: httpx.Response, text: str) -> None:
        style = "green" if answer.status_code < 300 else "yellow"
        output.print_line(f"   {request:23} ", (str(answer.status_code), style), f"  {text}")
        sys.stdout.flush()

    def _send(self, method: str, path: str, status: int, **options: Any) -> httpx.Response:
        answer = self._client.request(method, path, **options)
        self._expect(f"{method} {path}", answer.status_code, status, answer.text[:500])
        return answer

    def _usage(self, feature: str) -> Usage:
        return self._tier.lookup_limit(self._org, feature)

    def _left(self, feature: str) -> str:
        return "unlimited" if (left := self._usage(feature).remaining) is None else str(left)

    def _expect_used(self, feature: str, used: int) -> None:
        self._expect(f"{feature} used, says the engine", self._usage(feature).used, used)

    def _expect(self, what: str, found: object, wanted: object, more: str = "") -> None:
        if found != wanted:
            raise Mismatch(f"{self._step}: {what}: expected {wanted!r}, got {found!r} {more}".rstrip())


def run(kind: type[Walk], *, keep: bool, port: int | None) -> int:
    """Serve an example and walk through it; answers the exit status."""
    with tempfile.TemporaryDirectory(prefix="tier-demo-", ignore_cleanup_errors=True) as folder, _ended_by_signals():
        try:
            with serving(Path(folder), example=kind.example, port=port) as server:
                with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client, server.tier() as tier:
                    kind(client, tier).walk()
                if keep:
                    _stay(server, kind.how_to_try(server))
        except Mismatch as mismatch:
            output.print_error(f"demo: {mismatch}")
            return 1
        except ServerError as error:
            sys.stderr.write(error.log)
            output.print_error(f"demo: {error}")
            return 1
        except httpx.HTTPError as error:
            output.print_error(f"demo: the server did not answer: {error!r}")
            return 1
    return 0


def _stay(server: Server, how_to_try: str) -> None:
    try:
        for line in how_to_try.splitlines():
            output.print_line(line)
        sys.stdout.flush()
        server.wait()
    except KeyboardInterrupt:
        output.print_line("")


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Clean up after SIGTERM and a closed terminal as after Ctrl-C: the server and its folder are ours to remove."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signals = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
