"""Four machines behind one server of ours, each a process with an outbox of its own: their limits are exact."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2 as httpx
import pytest
from processes import free_port, running
from served import environment, serving, wait_until

from tier_middleware import Tier
from tier_middleware.clock import monotonic

logger = logging.getLogger("tests.machines")  # pytest -o log_cli=true --log-cli-level=INFO prints the totals

HERE = Path(__file__).parent
ACME = "org:acme"
CALLS = "feature:calls"
MODEL = {
    "plans": {
        "plan:free@1": {"features": {CALLS: {"tiers": [{"upto": 500}]}}},
        "plan:pro@1": {"features": {CALLS: {"tiers": [{"upto": 600}]}}},
    }
}
MACHINES = 4
JOBS = 2000
AT_ONCE = 16
SUCCESSES_BEFORE = 150  # when the server is killed
DEADLINE_SECONDS = 120.0


class Server:
    """``tier-middleware serve`` with four workers, at one address however often it is started."""

    def __init__(self, folder: Path) -> None:
        (folder / "pricing.json").write_text(json.dumps(MODEL))
        self.folder = folder
        self.addr = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.addr}"
        self._stack = ExitStack()

    def start(self) -> None:
        options = ("--pricing", "pricing.json", "--workers", "4")
        self._stack.enter_context(serving(self.folder, *options, addr=self.addr, TIER_DEFAULT_PLAN="plan:free@1"))
        wait_until(self.is_ready)

    def kill(self) -> None:
        """All of its processes, with SIGKILL."""
        self._stack.close()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def usage(self) -> tuple[int, int]:
        """What is used, and what is reserved."""
        (found,) = httpx.get(f"{self.url}/v1/usage", params={"org": ACME}, timeout=30).json()["usage"]
        return found["used"], found["reserved"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def machines(server: Server, tmp_path: Path) -> Iterator[list[str]]:
    with ExitStack() as stack:
        urls = []
        for number in range(MACHINES):
            port = free_port()
            outbox = str(tmp_path / f"outbox-{number}.db")
            environ = environment(TIER_BASE_URL=server.url, TIER_OUTBOX=outbox, PYTHONPATH=str(HERE))
            command = ["uvicorn", "machines_app:app", "--port", str(port)]
            stack.enter_context(running(command, port, environ))
            urls.append(f"http://127.0.0.1:{port}")
        yield urls


class Load:
    """Jobs that are tried until they have a definite answer; statuses are counted."""

    def __init__(self, machines: list[str]) -> None:
        self.statuses: Counter[int] = Counter()
        self.has_begun = threading.Event()
        self._clients = [httpx.Client(base_url=url, timeout=30) for url in machines]
        self._counting = threading.Lock()
        self._deadline = monotonic() + DEADLINE_SECONDS

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def job(self, number: int) -> int:
        pause = threading.Event()
        while True:
            status = self._clients[number % MACHINES].get("/call").status_code
            with self._counting:
                self.statuses[status] += 1
                if self.statuses[200] >= SUCCESSES_BEFORE:
                    self.has_begun.set()
            if status != 503:
                return status
            assert monotonic() < self._deadline
            pause.wait(0.02)


def test_a_server_that_is_killed_and_started_again_grants_exactly_the_limit(
    server: Server, machines: list[str]
) -> None:
    load = Load(machines)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(load.job, number) for number in range(JOBS)]
        assert load.has_begun.wait(DEADLINE_SECONDS)
        server.kill()
        server.start()
        statuses = Counter(job.result() for job in jobs)
    load.close()
    assert statuses == {200: 500, 402: 1500}
    assert set(load.statuses) <= {200, 402, 503}
    assert load.statuses[503] > 0, "nobody noticed that the server was away"
    wait_until(lambda: server.usage() == (500, 0))
    logger.info("answers %s; used and reserved %s", dict(load.statuses), server.usage())


def test_an_upgrade_by_one_process_shows_in_all_at_once(server: Server, machines: list[str]) -> None:
    for url in machines:
        assert httpx.get(f"{url}/call", timeout=30).json() == {"limit": 500}
    with Tier(server.url, outbox=server.folder / "outbox-of-sales.db") as tier:
        tier.subscribe(ACME, "plan:pro@1")
    for url in machines:  # none of them has asked for it
        wait_until(lambda url=url: httpx.get(f"{url}/limit").json() == {"limit": 600})  # type: ignore[misc]
    load = Load(machines)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = Counter(pool.map(load.job, range(650)))
    load.close()
    assert statuses == {200: 600, 429: 50}  # the new plan has a usage of its own, and no plan has more
