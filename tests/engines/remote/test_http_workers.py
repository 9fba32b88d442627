"""Workers as servers make them: forked from a process that reports already, told to end, or killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
from processes import free_port, running
from tier_servers import TierServer

from tier_middleware.clock import milliseconds
from tier_middleware.reporting.outbox import Outbox

HERE = Path(__file__).parent
ACME = "org:acme"


def environ_of(server: TierServer, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TIER_")}
    return {**kept, "TIER_BASE_URL": server.url, "PYTHONPATH": str(HERE), **more}


def called(port: int, times: int) -> set[str]:
    """Calls that succeed, over as many connections: who has answered them."""

    def call(number: int) -> str:
        answer = httpx.get(f"http://127.0.0.1:{port}/call", timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.text

    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(call, range(times)))


def called_until_all_have_answered(port: int, workers: int) -> int:
    """How many calls that took: on a busy machine one worker may answer many before the others are there."""
    deadline, times, seen = time.monotonic() + 60, 0, set[str]()
    while len(seen) < workers:
        assert time.monotonic() < deadline, seen
        seen |= called(port, 20)
        times += 20
    return times


def accounted(server: TierServer) -> tuple[int, int]:
    """Units that the server has counted, and those that are in the outbox and that it has not."""
    outbox = Outbox(Path("tier-outbox.db"), milliseconds(None))
    left = outbox.undelivered(ACME)
    outbox.close()
    keys = [key for key, *_ in server.reports]  # read last: a server may count what was sent to it a moment ago
    assert len(keys) == len(set(keys))
    return server.counted[ACME], sum(batch.n for batch in left if batch.key not in keys)


@pytest.fixture
def acme(server: TierServer) -> TierServer:
    server.subscribe(ACME, "plan:open@1")
    return server


SERVERS = {
    "gunicorn --preload": ["gunicorn", "--preload", "-w", "4", "-k", "asgi", "servers_app:app"],
    "uvicorn --workers": ["uvicorn", "--workers", "4", "servers_app:app"],
}


def command_of(name: str, port: int) -> list[str]:
    bound = ["-b", f"127.0.0.1:{port}"] if name.startswith("gunicorn") else ["--port", str(port)]
    return [*SERVERS[name], *bound]


@pytest.mark.parametrize("name", SERVERS)
def test_workers_that_are_told_to_end_have_lost_nothing(name: str, acme: TierServer) -> None:
    port = free_port()
    environ = environ_of(acme, REPORTS_BEFORE_FORK="1")
    with running(command_of(name, port), port, environ) as process:
        times = called_until_all_have_answered(port, 4)
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
    reported_at_import = 1 if name.startswith("gunicorn") else 4  # by the parent, or by each worker
    assert accounted(acme) == (times + reported_at_import, 0)


@pytest.mark.parametrize("name", SERVERS)
def test_a_kill_loses_nothing_whose_response_was_complete(name: str, acme: TierServer) -> None:
    port = free_port()
    with running(command_of(name, port), port, environ_of(acme)) as process:
        called(port, 40)
        os.killpg(process.pid, signal.SIGKILL)
    assert sum(accounted(acme)) == 40


PREFORK = """
import multiprocessing, os, sys
from tier_middleware import sync_tier

def work(number):
    sync_tier.report("org:acme", "feature:calls")
    return os.getpid()

if __name__ == "__main__":
    sync_tier.report("org:acme", "feature:calls")
    with multiprocessing.get_context("fork").Pool(4) as pool:  # as Celery's prefork; its children end without ceremony
        assert len(set(pool.map(work, range(100), chunksize=1))) > 1
"""


def test_a_pool_of_forked_workers(acme: TierServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREFORK], env=environ_of(acme), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sum(accounted(acme)) == 101


REPORTS = """
import time
from tier_middleware import Tier

tier = Tier(timeout=1.0)
tier.report("org:acme", "feature:calls", 7)
print(time.monotonic(), flush=True)
"""


def test_an_end_does_not_wait_long_for_a_server_that_answers_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connections are taken, and nobody ever reads
        environ = {**os.environ, "TIER_BASE_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        command = [sys.executable, "-c", REPORTS]
        done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
        ended = time.monotonic()
    assert done.returncode == 0, done.stderr
    assert ended - float(done.stdout) < 6  # one send that has begun, and its own
    outbox = Outbox(tmp_path / "tier-outbox.db", milliseconds(None))
    assert [batch.n for batch in outbox.undelivered(ACME)] == [7]
    outbox.close()
