"""A fork while a request is between two locks: nobody waits for who waits for the fork."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A request holds what is known of orgs and is about to append, when the outbox comes to rest for a fork. In which order
# things come to rest is up to their addresses, so that it is tried with several engines.
FORKS = """
import os, threading
from pathlib import Path
from tier_middleware.clock import milliseconds, monotonic
from tier_middleware.engines.http import HttpEngine
from tier_middleware.ops import Record
from tier_middleware.reporting.outbox import Outbox

now_ms = milliseconds(None)

class Slow(Outbox):
    def append(self, entries):
        has_begun.set()
        deadline = monotonic() + 0.5
        while not self._file._front.lock.locked() and monotonic() < deadline:
            pass
        return super().append(entries)

engines = []
for number in range(16):
    has_begun = threading.Event()
    engine = HttpEngine("http://127.0.0.1:9", now_ms, Slow(Path(f"{number}.db"), now_ms), is_loopback=True)
    engines.append(engine)
    engine.open()
    request = threading.Thread(target=engine.attempt, args=(Record("org:acme", "feature:x", 1, "key", now_ms()),))
    request.start()
    has_begun.wait()
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    request.join()
    print(sum(batch.n for batch in engine.outbox.undelivered("org:acme")), end="", flush=True)
os._exit(0)
"""


def test_a_fork_does_not_wait_for_a_request_that_waits_for_it(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as forking:
        try:
            shown, _ = forking.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            forking.kill()
            shown, _ = forking.communicate()
    assert shown == "1" * 16
