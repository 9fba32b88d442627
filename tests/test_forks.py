"""A fork in the middle of everything: no lock stays locked, on the engine that has nothing but locks."""

from __future__ import annotations

import os
import threading
import time
import warnings

from tier_middleware import Tier

MODEL = {"plans": {"plan:free@1": {"features": {"feature:calls": {"tiers": [{}]}}}}}


def exit_status(child: int, seconds: float) -> int | None:
    """How a child ended; None, and killed, where it did not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


def test_a_child_can_count_though_its_parents_threads_were_counting() -> None:
    tier = Tier("memory://", pricing=MODEL, default_plan="plan:free@1")
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            tier.report("org:acme", "feature:calls")
            tier.core.count("busy")

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    statuses = []
    try:
        for _ in range(40):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks with threads
                child = os.fork()
            if not child:
                tier.report("org:child", "feature:calls")
                is_right = tier.lookup_limit("org:child", "feature:calls").used == 1 and bool(tier.counts)
                tier.close()
                tier.open()
                os._exit(0 if is_right else 1)
            statuses.append(exit_status(child, 5))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses == [0] * 40
    before = tier.lookup_limit("org:acme", "feature:calls").used
    tier.report("org:acme", "feature:calls")
    assert tier.lookup_limit("org:acme", "feature:calls").used == before + 1
