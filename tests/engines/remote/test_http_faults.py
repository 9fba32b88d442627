"""Reports through a network that fails, from processes that are killed: counted once, or set aside, and never lost."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import FAULTS, Proxy, at_random
from tier_servers import MODEL, TierServer

from tier_middleware.clock import milliseconds
from tier_middleware.engines.http import HttpEngine
from tier_middleware.ops import Busy, Record
from tier_middleware.reporting.batches import Batch, Entry
from tier_middleware.reporting.outbox import Outbox

ORGS = [f"org:{number}" for number in range(5)]

# Says which reports are on disk ("said"), in groups as they are done; ends at a count.
REPORTS = """
import sys
from pathlib import Path
from tier_middleware.clock import milliseconds
from tier_middleware.engines.http import HttpEngine
from tier_middleware.ops import Busy, Record
from tier_middleware.reporting.outbox import Outbox

url, path, name, first, last = sys.argv[1:]
now_ms = milliseconds(None)
engine = HttpEngine(url, now_ms, Outbox(Path(path), now_ms), is_loopback=True, timeout=1.0)
engine.reporter._lease_ms, engine.reporter._look_seconds, engine.reporter._linger_seconds = 2500, 0.2, 0.01
number = int(first)
while number < int(last):
    try:
        engine.attempt(Record(f"org:{number % 5}", "feature:calls", 1, f"{name}-{number}", now_ms()))
    except Busy:
        continue
    number += 1
    print(number, flush=True)
sys.stdin.read()
engine.close()
"""


class Reporting:
    """A process that reports, and goes on where it was when it is started again."""

    def __init__(self, url: str, outbox: Path, name: str, last: int) -> None:
        self.command = [sys.executable, "-c", REPORTS, url, str(outbox), name]
        self.last = last
        self.said = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def is_done(self) -> bool:
        return self.said >= self.last

    def start(self) -> None:
        command = [*self.command, str(self.said), str(self.last)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self.said = int(line)

    def end(self, how: int | None = None) -> None:
        """Kill it, or let it end by itself."""
        assert self._process is not None
        if how is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
        else:
            self._process.send_signal(how)
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def campaign(server: TierServer, url: str, folder: Path, *, reports: int, kills: int, seed: int) -> list[Batch]:
    """Four processes, two to an outbox, that are killed at random until all reports are made; then all is
    delivered, as the next start does it. Answers what is left."""
    dice = random.Random(seed)
    outboxes = [folder / f"outbox{number}.db" for number in range(2)]
    running = [Reporting(url, outboxes[number % 2], f"p{number}", reports // 4) for number in range(4)]
    for one in running:
        one.start()
    for _ in range(kills):
        time.sleep(dice.uniform(0.05, 0.35))  # at random moments of real time: this is what is tested
        one = dice.choice(running)
        one.end(signal.SIGKILL)
        one.start()
    deadline = time.monotonic() + 600
    while not all(one.is_done for one in running):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for one in running:
        one.end()
    now_ms = milliseconds(None)
    left: list[Batch] = []
    for path in outboxes:
        engine = HttpEngine(server.url, now_ms, Outbox(path, now_ms), is_loopback=True, timeout=2.0)
        while engine.outbox.next_due_ms() is not None:
            assert time.monotonic() < deadline
            engine.reporter.flush(2)
            time.sleep(0.05)
        left += engine.outbox.listed(["held", "buried"])
        engine.close()
    return left


@pytest.fixture
def honouring(tmp_path: Path) -> Iterator[TierServer]:
    started = TierServer(tmp_path, is_honouring=True)
    started.call("/v1/push", MODEL)
    yield started
    started.kill()


@pytest.fixture
def proxied() -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def proxy(*arguments: object) -> Proxy:
        made.append(Proxy(*arguments))  # type: ignore[arg-type]
        return made[-1]

    yield proxy
    for one in made:
        one.close()


def subscribed(server: TierServer) -> None:
    for org in ORGS:
        server.subscribe(org, "plan:open@1")


SIZES = [
    pytest.param(1200, 6, id="short"),
    pytest.param(20_000, 50, id="long", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("reports", "kills"), SIZES)
def test_with_keys_every_report_is_counted_exactly_once(
    honouring: TierServer, proxied: Callable[..., Proxy], tmp_path: Path, reports: int, kills: int
) -> None:
    subscribed(honouring)
    proxy = proxied(honouring.port, at_random(0.3, 1))
    left = campaign(honouring, proxy.url, tmp_path, reports=reports, kills=kills, seed=2)
    assert left == []
    assert honouring.counted == Counter(dict.fromkeys(ORGS, reports // 5))
    keys = [key for key, *_ in honouring.reports]
    assert len(keys) == len(set(keys))
    assert proxy.faults


@pytest.mark.parametrize(("reports", "kills"), SIZES)
def test_without_keys_nothing_is_counted_twice_and_what_may_have_been_is_held(
    server: TierServer, proxied: Callable[..., Proxy], tmp_path: Path, reports: int, kills: int
) -> None:
    subscribed(server)
    proxy = proxied(server.port, at_random(0.3, 3))
    left = campaign(server, proxy.url, tmp_path, reports=reports, kills=kills, seed=4)
    keys = [key for key, *_ in server.reports]
    assert len(keys) == len(set(keys))
    assert {batch.state for batch in left} == {"held"}
    found = server.counted
    for batch in left:
        if batch.key not in keys:  # of the others the answer was lost
            found[batch.org] += batch.n
    assert found == Counter(dict.fromkeys(ORGS, reports // 5))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault(server: TierServer, proxied: Callable[..., Proxy], tmp_path: Path, fault: str) -> None:
    server.subscribe("org:0", "plan:open@1")
    plan = iter([fault])
    proxy = proxied(server.port, lambda: next(plan, None))
    now_ms = milliseconds(None)
    engine = HttpEngine(proxy.url, now_ms, Outbox(tmp_path / "o.db", now_ms), is_loopback=True, timeout=0.5)
    engine.outbox.append([Entry("org:0", "feature:calls", 3)])
    for _ in range(3):
        engine.reporter.flush(5)
    held = sum(batch.n for batch in engine.outbox.listed(["held"]))
    is_unknown = fault in ("refuse", "reset", "black hole", "drop reply", "500", "html")
    assert held == (3 if is_unknown else 0)
    was_counted = not is_unknown or fault == "drop reply"
    assert server.counted == ({"org:0": 3} if was_counted else {})
    assert engine.outbox.next_due_ms() is None
    engine.close()


def test_a_server_that_refuses_connections_has_counted_nothing(server: TierServer, tmp_path: Path) -> None:
    server.subscribe("org:0", "plan:open@1")
    now_ms = milliseconds(None)
    engine = HttpEngine(server.url, now_ms, Outbox(tmp_path / "o.db", now_ms), is_loopback=True, timeout=0.5)
    server.kill()
    engine.outbox.append([Entry("org:0", "feature:calls", 3)])
    assert not engine.reporter.flush(1)
    assert [batch.state for batch in engine.outbox.undelivered("org:0")] == ["sealed"]
    engine.close()


# ---- a long time away -----------------------------------------------------------------------------------------------

QUEUE = [pytest.param(1_000, id="short"), pytest.param(100_000, id="long", marks=pytest.mark.slow)]


@pytest.mark.parametrize("reports", QUEUE)
def test_what_was_queued_while_the_server_was_away_drains_beside_new_reports(
    server: TierServer, tmp_path: Path, reports: int
) -> None:
    """Reports of 500 orgs that must not be added up: the longest queue there can be."""
    now_ms = milliseconds(None)
    orgs = [f"org:{number}" for number in range(500)]
    for org in orgs:
        server.subscribe(org, "plan:open@1")
    engine = HttpEngine(server.url, now_ms, Outbox(tmp_path / "o.db", now_ms), is_loopback=True, timeout=2.0)
    server.kill()
    for begin in range(0, reports, 100):
        numbers = range(begin, begin + 100)
        entries = [Entry(orgs[number % 500], "feature:calls", 1, is_alone=True) for number in numbers]
        engine.outbox.append(entries)
    engine.reporter.stop()  # until the server knows its orgs again
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server.start()
    server.call("/v1/push", MODEL)
    for org in orgs:
        server.subscribe(org, "plan:open@1")
    engine.reporter.wake()
    for _ in range(400):  # while it drains
        report(engine)
    deadline = time.monotonic() + 600
    while engine.outbox.next_due_ms() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    engine.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before < 30_000  # KiB
    assert sum(server.counted.values()) == reports + 400


def report(engine: HttpEngine) -> None:
    while True:
        try:
            engine.attempt(Record("org:0", "feature:calls", 1, uuid.uuid4().hex, milliseconds(None)()))
            return
        except Busy:
            time.sleep(0.0002)
