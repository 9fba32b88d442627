"""Waiting for the server beside an event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

from ..threads import limiter_of_loop

__all__ = ["in_thread"]

R = TypeVar("R")

THREADS: Final = 40  # of an event loop, that wait for the server


async def in_thread(work: Callable[[], R], undo: Callable[[Any], None] | None = None) -> R:
    """Do what waits for the server. A task that is cancelled does not wait for the thread, and what that brings is
    undone.
    """
    import anyio  # here: a program without an event loop need not import it

    limiter = limiter_of_loop("http", THREADS)
    if undo is None:
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
    wanted = _Wanted(work, undo)
    try:
        return await anyio.to_thread.run_sync(wanted.get, abandon_on_cancel=True, limiter=limiter)
    except anyio.get_cancelled_exc_class():
        wanted.abandon()
        raise


class _Wanted:
    """What a thread brings, for as long as somebody wants it."""

    def __init__(self, work: Callable[[], Any], undo: Callable[[Any], None]) -> None:
        self._work = work
        self._undo = undo
        self._lock = threading.Lock()
        self._is_abandoned = self._is_there = False
        self._reply: Any = None

    def get(self) -> Any:
        reply = self._work()
        with self._lock:
            self._is_there, self._reply = True, reply
            is_abandoned = self._is_abandoned
        if is_abandoned:
            self._undo(reply)
        return reply

    def abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True
            is_there = self._is_there
        if is_there:  # which may have to wait, and not here
            threading.Thread(target=self._undo, args=(self._reply,), name="tier-undo", daemon=True).start()
