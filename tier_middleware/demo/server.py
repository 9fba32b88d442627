"""An example application under a real uvicorn, in a process and a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from ..client import Tier
from ..clock import monotonic, sleep
from ..core import Core
from ..settings import Settings

__all__ = ["DJANGO", "FASTAPI", "Example", "Server", "ServerError", "environment", "serving"]

PACKAGE: Final = Path(__file__).parents[1]
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02

_LISTENING = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")


class Example(NamedTuple):
    """An application to run: its package, where uvicorn finds it in there, and the module to run before, if any."""

    package: str
    app: str
    before: tuple[str, ...] = ()


FASTAPI: Final = Example("example_fastapi", "main:app")
DJANGO: Final = Example("example_django", "asgi:application", ("manage", "migrate", "--verbosity=0"))


class ServerError(Exception):
    """The server did not start, or ended by itself. ``log`` is what it had to say."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


def example_root(package: str = FASTAPI.package) -> Path:
    """The folder that has the example in it: inside of the installed package, or beside it in a checkout."""
    for root in (PACKAGE / "examples", PACKAGE.parent):
        if (root / package / "__init__.py").is_file():
            return root
    raise ServerError(f"{package} is neither in {PACKAGE / 'examples'} nor in {PACKAGE.parent}", "")


class Server:
    """A running server: its ``url``, the ``folder`` of its databases, and what it wrote to its log."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.engine_url = engine_url(folder)
        self.url = ""

    @property
    def log(self) -> str:
        return _log_in(self.folder)

    def tier(self) -> Tier:
        """A client of the server's engine, whatever ``TIER_...`` variables say."""
        return Tier.on(Core(Settings(self.engine_url, on_error="deny"), None))

    def wait_until_ready(self, workers: int) -> None:
        deadline = monotonic() + START_SECONDS
        while monotonic() < deadline:
            log = self.log
            listening = _LISTENING.search(log)
            if listening and log.count("Application startup complete") >= workers:
                self.url = listening[1]
                return
            if self.process.poll() is not None:
                raise ServerError(f"the server ended with status {self.process.returncode}", log)
            sleep(POLL_SECONDS)
        raise ServerError(f"the server did not start within {START_SECONDS:.0f} seconds", self.log)

    def wait(self) -> None:
        """Until it ends, which it should not: raises `ServerError` then."""
        raise ServerError(f"the server ended with status {self.process.wait()}", self.log)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _log_in(folder: Path) -> str:
    return (folder / "server.log").read_text(encoding="utf-8", errors="replace")


def engine_url(folder: Path) -> str:
    return f"sqlite:///{quote(str(folder / 'tier.db'))}"


@contextmanager
def serving(
    folder: Path, *, example: Example = FASTAPI, port: int | None = None, workers: int = 1, **variables: str
) -> Iterator[Server]:
    """Run an example with its databases in ``folder``. ``variables`` are its environment's, over the defaults.

    Raises `ServerError`. However the block ends, the server ends with it.
    """
    command = [sys.executable, "-m", "uvicorn", f"{example.package}.{example.app}", "--no-use-colors"]
    command += ["--host", "127.0.0.1", "--port", str(port or 0), "--workers", str(workers)]
    environ = environment(folder, example) | variables
    with (folder / "server.log").open("wb") as log:
        if example.before:
            module, *arguments = example.before
            before = [sys.executable, "-m", f"{example.package}.{module}", *arguments]
            status = subprocess.call(before, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            if status:
                raise ServerError(f"{example.package}.{module} ended with status {status}", _log_in(folder))
        process = subprocess.Popen(command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Server(process, folder)
    try:
        server.wait_until_ready(workers)
        yield server
    finally:
        server.stop()


def environment(folder: Path, example: Example = FASTAPI) -> dict[str, str]:
    """This process's own, without what would lead the example elsewhere."""
    astray = ("TIER_", "EXAMPLE_", "UVICORN_", "DJANGO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(astray)}
    path = [str(example_root(example.package)), kept.pop("PYTHONPATH", "")]
    return kept | {
        "PYTHONPATH": os.pathsep.join(entry for entry in path if entry),
        "PYTHONUNBUFFERED": "1",
        "TIER_BASE_URL": engine_url(folder),
        "EXAMPLE_DB": str(folder / "example.db"),
        "EXAMPLE_FOLDER": str(folder),
    }
