"""Looks after what long work holds: a thread renews its reservations, and counts what it has used so far.

There is one for each engine of a process. It starts with the first reservation, never at import, and ends when the
engine is closed or the process forks. It has no part in how work ends: a renewal that comes after that is passed over.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from .clock import Milliseconds, Seldom
from .errors import TierError
from .ops import Hold, Kept

__all__ = ["Held", "Keeper", "Work"]

logger: Final = logging.getLogger("tier_middleware")

LEAST_SECONDS: Final = 0.02  # between two looks
STOP_SECONDS: Final = 1.0  # for a look that is under way


class Work(Protocol):
    """Something that holds reservations until it is over."""

    is_over: bool

    def so_far(self) -> tuple[Kept, ...]:
        """What it holds, and how much of each it has used and may be counted before its end. Called from a thread."""
        ...


class Tended(Protocol):
    """What the thread looks after, for as long as somebody else has it."""

    def tend(self) -> None: ...


class Held:
    """Reservations of work that counts nothing before its end."""

    __slots__ = ("_kept", "is_over")

    def __init__(self, *holds: Hold) -> None:
        self._kept = tuple([Kept(hold, 0) for hold in holds])
        self.is_over = False

    def so_far(self) -> tuple[Kept, ...]:
        return self._kept


class _Seen(NamedTuple):
    renewed_ms: int
    counted: int


class Keeper:
    """``live`` is what it looks after: whoever holds something adds itself, and leaves when that is settled.

    Reservations are renewed every third of ``reservation_seconds``, and what was used is counted at least every
    ``flush_seconds``. Work that is over before anybody looks costs nothing more.
    """

    def __init__(self, now_ms: Milliseconds, *, reservation_seconds: float, flush_seconds: float) -> None:
        self.live: set[Work] = set()
        self.is_running = False
        self.seconds = max(LEAST_SECONDS, min(flush_seconds, reservation_seconds / 3))
        self._third_ms = int(reservation_seconds * 1000 / 3)
        self._now_ms = now_ms
        self._looked_ms = 0
        self._seen: dict[Work, _Seen] = {}
        self._seldom = Seldom()
        self._forget()

    def _forget(self) -> None:
        self._starting = threading.Lock()
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- the thread -------------------------------------------------------------------------------------------------

    def start(self, tended: Tended) -> None:
        """Have ``tended`` looked after from time to time, for as long as it exists."""
        with self._starting:
            if self.is_running:
                return
            self._looked_ms = self._now_ms()
            stopped = self._is_stopped = threading.Event()
            whom = weakref.ref(tended, lambda _: stopped.set())
            self._thread = threading.Thread(
                target=_run, args=(whom, stopped, self.seconds), name="tier-keeper", daemon=True
            )
            self.is_running = True  # also where it cannot start: a process that ends, or has no more threads
            try:
                self._thread.start()
            except RuntimeError as error:
                self._thread = None
                logger.warning("tier: nobody renews reservations: %s", error)

    def stop(self) -> None:
        """End the thread, once it has done what it is doing."""
        with self._starting:
            thread, self._thread, self.is_running = self._thread, None, False
            self._is_stopped.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_SECONDS)

    def begin_anew(self) -> None:
        """In a child: neither the thread nor the work of the parent is here."""
        self.live.clear()
        self._seen.clear()
        self.is_running = False
        self._forget()

    # ---- a look -----------------------------------------------------------------------------------------------------

    def tend(self, renew: Callable[[tuple[Kept, ...]], None]) -> None:
        """One look at all that lives, renewing by ``renew`` what is due. What fails, the next look tries again."""
        now_ms, seen, is_away = self._now_ms(), dict[Work, _Seen](), False
        for work in self.live.copy():  # at once: others come and go meanwhile
            if work.is_over:
                self.live.discard(work)
                continue
            last = self._seen.get(work, _Seen(self._looked_ms, 0))
            kept = work.so_far()
            counted = sum([one.n for one in kept])
            if kept and not is_away and (counted > last.counted or now_ms - last.renewed_ms >= self._third_ms):
                is_away = not self._has_renewed(renew, kept)
                last = last if is_away else _Seen(now_ms, counted)
            seen[work] = last
        self._seen, self._looked_ms = seen, now_ms

    def _has_renewed(self, renew: Callable[[tuple[Kept, ...]], None], kept: tuple[Kept, ...]) -> bool:
        try:
            renew(kept)
        except TierError as error:
            if self._seldom.is_due("renew"):
                logger.warning("tier: reservations could not be renewed, and will be tried again: %s", error)
            return False
        return True


def _run(whom: weakref.ref[Tended], is_stopped: threading.Event, seconds: float) -> None:
    while not is_stopped.wait(seconds):
        tended = whom()
        if tended is None:
            return
        try:
            tended.tend()
        except Exception:  # a keeper that died would be noticed by nobody
            logger.exception("tier: the keeper failed, and goes on")
        del tended  # not while it waits
