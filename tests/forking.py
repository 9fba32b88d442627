"""Children of a test's own process, and threads that keep their parent busy."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def forked(child: Callable[[], bool]) -> int:
    """A child that does this and ends with 0 where it answers True, 1 where it does not, 2 where it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks with threads
        pid = os.fork()
    if not pid:
        try:
            os._exit(0 if child() else 1)
        finally:
            traceback.print_exc()
            os._exit(2)
    return pid


def exit_status(child: int, seconds: float = 20) -> int | None:
    """How a child ended; None, and killed, where it did not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        threading.Event().wait(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@contextmanager
def no_more_threads() -> Iterator[None]:
    """A process that may not start any, as at its end or where there are too many: no machine has so large a stack."""
    before = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(before)


@contextmanager
def hammered(work: Callable[[int], object], threads: int) -> Iterator[None]:
    """Threads that do this again and again, each with its number, while the block runs."""
    stop = threading.Event()

    def run(number: int) -> None:
        while not stop.is_set():
            work(number)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()
