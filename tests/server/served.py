"""``tier-middleware serve`` in processes of its own, and what a client hears of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Final

MODEL: Final = {
    "plans": {
        "plan:free@1": {"features": {"feature:calls": {"tiers": [{"upto": 10}]}, "feature:export": {}}},
        "plan:pro@1": {"title": "Pro", "features": {"feature:calls": {"tiers": [{"upto": 100, "price": 1}]}}},
    }
}

DEADLINE_SECONDS: Final = 20.0

_SERVING = re.compile(r"serving .* at (http://\S+)")


class Served:
    """A running server: its address, its process, and its log so far."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        assert process.stdout is not None
        said = process.stdout.readline()
        found = _SERVING.fullmatch(said.strip())
        assert found, f"it did not start: {said!r} {self.log}"
        self.url = found[1]
        with urllib.request.urlopen(f"{self.url}/healthz", timeout=60):  # it listens, and its workers may still start
            pass

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def end(self, sign: int = signal.SIGTERM) -> int:
        """Tell it to end; answers its exit status. Its workers end with it."""
        self.process.send_signal(sign)
        return self.process.wait(30)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Ask again and again, for a bounded time."""
    deadline = monotonic() + DEADLINE_SECONDS
    pause = threading.Event()
    while not is_so():
        assert monotonic() < deadline, "it never was"
        pause.wait(0.01)


def environment(**variables: str) -> dict[str, str]:
    """This process's own, without what would set the server up."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIER_")}
    return kept | {"PYTHONUNBUFFERED": "1"} | variables


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tier_middleware", "serve", *options]


@contextmanager
def serving(folder: Path, *options: str, addr: str = "127.0.0.1:0", **variables: str) -> Iterator[Served]:
    """A server in a folder, with its engine there unless ``options`` say otherwise."""
    log = folder / "serve.log"
    with log.open("a") as file:
        process = subprocess.Popen(
            command("--addr", addr, *options),
            cwd=folder,
            env=environment(**variables),
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )
    try:
        yield Served(process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.communicate()
