"""Several processes in front of one server: what they grant above a limit, together, and what the README says of it."""

from __future__ import annotations

import subprocess
import sys
from bisect import bisect_right
from pathlib import Path

import pytest
from tier_servers import TierServer

LIMIT, RATE = 1200, 250  # units, and units a second of each process
FRESH, STALE = 0.3, 0.6  # seconds
LINGER, ROUND_TRIP = 0.1, 0.5  # seconds; the latter on a machine that has a lot to do

# Admits what it can, one unit at a time and not faster than RATE, and prints when that was; until nothing is left.
ADMITS = f"""
import sys, threading
from pathlib import Path
from tier_middleware.clock import milliseconds, monotonic
from tier_middleware.engines.http import HttpEngine
from tier_middleware.ops import Busy, Commit, Demand, Granted, Kept, Reserve
from tier_middleware.reporting.outbox import Outbox

url, path, number = sys.argv[1:]
now_ms = milliseconds(None)
ages = dict(fresh_seconds={FRESH}, stale_seconds={STALE}, refusal_seconds=0.1)
engine = HttpEngine(url, now_ms, Outbox(Path(path), now_ms), is_loopback=True, **ages)

def insisted(op):
    while True:
        try:
            return engine.attempt(op)
        except Busy:
            pause.wait(0.0005)

pause, admitted, id, refused = threading.Event(), [], 0, 0
sys.stdin.readline()
while refused < 20:
    began, id = monotonic(), id + 1
    reply = insisted(Reserve("org:acme", (Demand("feature:calls", 1),), (id,), now_ms(), now_ms() + 60_000))
    if isinstance(reply, Granted):
        admitted.append(monotonic())
        insisted(Commit((Kept(reply.holds[0], 1),), now_ms()))
    refused = 0 if isinstance(reply, Granted) else refused + 1
    pause.wait(max(0, began + 1 / {RATE} - monotonic()))
engine.close()
print(*admitted)
"""


def admissions(server: TierServer, outboxes: list[Path]) -> list[list[float]]:
    """When each process admitted something, all of them begun together."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ADMITS, server.url, str(outbox), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number, outbox in enumerate(outboxes)
    ]  # fmt: skip
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = []
    for process in running:
        shown, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        found.append([float(word) for word in shown.split()])
    return found


def within(times: list[float], begin: float, end: float) -> int:
    return bisect_right(times, end) - bisect_right(times, begin)


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_four_processes_grant_above_a_limit_is_what_the_others_did_within_the_age_of_an_answer(
    server: TierServer, tmp_path: Path, is_shared: bool
) -> None:
    server.call("/v1/push", {"plans": {"plan:few@1": {"features": {"feature:calls": {"tiers": [{"upto": LIMIT}]}}}}})
    server.subscribe("org:acme", "plan:few@1")
    outboxes = [tmp_path / ("shared.db" if is_shared else f"{number}.db") for number in range(4)]
    found = admissions(server, outboxes)
    total = sum(map(len, found))
    assert total >= LIMIT
    assert server.counted == {"org:acme": total}
    seconds = FRESH + ROUND_TRIP + (0 if is_shared else LINGER + ROUND_TRIP)
    everybody = sorted(time for times in found for time in times)
    for mine in found:
        others = [times for times in found if times is not mine]
        for time in mine:
            over = bisect_right(everybody, time) - LIMIT
            assert over <= sum(within(times, time - seconds, time) for times in others)
    assert total - LIMIT <= 3 * RATE * seconds
