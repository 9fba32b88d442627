"""Servers with several worker processes, whose workers a campaign may kill and finds again when they were replaced."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .load import ROOT

WORKERS: Final = 4
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.02

READY: Final = re.compile(r"worker (\d+) is ready")
BOOTED: Final = re.compile(r"Booting worker with pid: (\d+)")
"""What gunicorn writes, for applications that were loaded before the workers were."""

READY_TO_SERVE: Final = re.compile(r"Started server process \[(\d+)\]")
"""What ``tier-middleware serve`` writes."""

_WHERE = re.compile(r"(?:running on|Listening at:|serving .* at) (http://127\.0\.0\.1:\d+)")

UVICORN: Final = ("uvicorn", "--host=127.0.0.1", "--port=0", f"--workers={WORKERS}", "--no-access-log")
GUNICORN: Final = ("gunicorn", "--bind=127.0.0.1:0", f"--workers={WORKERS}", "--log-level=info", "--graceful-timeout=5")


SERVE: Final = ("tier_middleware", "serve", "--addr=127.0.0.1:0")
ASGI: Final = "tests.campaigns.shop:app"
WSGI: Final = "tests.campaigns.wsgi:application"


class Server:
    """A running server: where it is, its live workers, and what it wrote to its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, ready: re.Pattern[str]) -> None:
        self.process = process
        self._ready = ready
        self._log = log
        self._gone: dict[int, int] = {}  # how often one that was killed had said that it was ready: ids come again

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def url(self) -> str:
        found = _WHERE.search(self.log)
        assert found, self.log
        return found[1]

    def workers(self) -> list[int]:
        """The workers that have said that they are ready, and still are there."""
        said = Counter(int(pid) for pid in self._ready.findall(self.log))
        return sorted(pid for pid, times in said.items() if times > self._gone.get(pid, 0) and self._has(pid))

    def _has(self, pid: int) -> bool:
        """Whether a process runs that was started by this server, and no other that has got its id."""
        try:
            state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            return False
        return state != "Z" and int(session) == self.process.pid

    def wait_for(self, workers: int = WORKERS) -> list[int]:
        """The live workers, once there are so many."""
        deadline = time.monotonic() + START_SECONDS
        while len(found := self.workers()) < workers or not _WHERE.search(self.log):
            assert self.process.poll() is None, self.log[-4000:]
            assert time.monotonic() < deadline, self.log[-4000:]
            time.sleep(POLL_SECONDS)  # another process: nothing here can wait for it
        return found

    def kill(self, worker: int) -> None:
        self._gone[worker] = self._ready.findall(self.log).count(str(worker))
        os.kill(worker, signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to end, and answer how it did."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # the session that was started for it
            return self.process.wait()


@contextmanager
def serving(
    command: tuple[str, ...], folder: Path, ready: re.Pattern[str] = READY, workers: int = WORKERS, **variables: str
) -> Iterator[Server]:
    """Run ``python -m COMMAND`` with its databases in ``folder``, until the block ends; its log says ``ready``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIER_", "DJANGO_", "CAMPAIGN_"))}
    environ = kept | {"PYTHONPATH": str(ROOT), "CAMPAIGN_FOLDER": str(folder)} | variables
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    server = Server(process, log, ready)
    try:
        server.wait_for(workers)
        yield server
    finally:
        server.stop()
