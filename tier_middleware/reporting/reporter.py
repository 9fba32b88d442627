"""The reporter: a thread that empties the outbox. It starts with the first report of a process, never at import."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from .. import forks
from ..clock import Milliseconds, Seldom, monotonic, sleep
from ..errors import TierError
from .backoff import batch_backoff_seconds, server_backoff_seconds
from .batches import Batch, Policy
from .outbox import AT_ONCE, Outbox
from .outcomes import Delivered, Later, Outcome, Refused, Unknown

__all__ = ["Deliver", "DeliverSome", "Reporter"]

logger: Final = logging.getLogger("tier_middleware")

LINGER_SECONDS: Final = 0.1  # that a report waits for others to be sent with
SHORT_LINGER_SECONDS: Final = 0.02  # where many are sent together, and others may wait for what is given back
STEP_SECONDS: Final = 0.1  # of a pause, between looks at whether it is over
LOOK_SECONDS: Final = 5.0  # between looks for what other processes have left behind
FLUSH_PAUSE_SECONDS: Final = 0.01  # between looks at whether the thread is done
LEASE_SECONDS: Final = 60.0  # longer than any send takes
CALLS_OF_A_SEND: Final = 4  # at most: an org may have to be made known in between
PATIENCE: Final = 3  # sends in a row of which nobody knows what became, before the server is left alone

Deliver = Callable[[Batch, float], Outcome]
"""Sends a batch within so many seconds, and says what became of it."""
DeliverSome = Callable[[Sequence[Batch], float], Sequence[Outcome]]
"""`Deliver`, of several: what became of each."""


class Reporter:
    """Delivers what is in an outbox, also what other processes have left in it. Survives ``fork()``.

    ``ambiguous`` says what to do with a batch that may have been counted, on a server that does not honour keys:
    ``"hold"`` it for a person, ``"retry"`` (it may count twice) or ``"drop"`` (it may be lost). ``is_away`` says that
    it is of no use to send anything now. Where ``most`` answers more than 1, so many are sent together at most, by
    ``deliver_some``. With ``rest``, called when there is nothing more to send, only the reporter's own thread sends.
    """

    def __init__(
        self,
        outbox: Outbox,
        deliver: Deliver,
        now_ms: Milliseconds,
        *,
        ambiguous: Policy = "hold",
        send_seconds: float = 5.0,
        linger_seconds: float = LINGER_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        is_away: Callable[[], bool] = lambda: False,
        rest: Callable[[], None] | None = None,
        deliver_some: DeliverSome | None = None,
        most: Callable[[], int] = lambda: 1,
    ) -> None:
        self.outbox = outbox
        self.counts: Counter[str] = Counter()
        self._deliver = deliver
        self._deliver_some = deliver_some
        self._most = most
        self._now_ms = now_ms
        self._ambiguous = ambiguous
        self._send_seconds = send_seconds
        self._linger_seconds = linger_seconds
        self._look_seconds = look_seconds
        self._lease_ms = int((max(lease_seconds, CALLS_OF_A_SEND * send_seconds)) * 1000)
        self._is_away = is_away
        self._rest = rest
        self._seldom = Seldom()
        self._is_exit_watched = False
        self._reset()
        forks.watch(self)

    def _reset(self) -> None:
        self._starting = threading.Lock()
        self._draining = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_awake = threading.Event()
        self._is_stopped = threading.Event()
        self._failures = 0
        self._paused_until = 0.0

    @property
    def is_running(self) -> bool:
        """Whether this process has begun to send."""
        return self._thread is not None

    # ---- the thread -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to send."""
        if self._thread is None:
            self._start()
        if not self._is_awake.is_set():
            self._is_awake.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._is_awake, self._is_stopped = threading.Event(), threading.Event()
                arguments = (self._is_awake, self._is_stopped)
                thread = threading.Thread(target=self._run, args=arguments, name="tier-reporter", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # at the interpreter's end, or of too many: the next start sends it
                    self._log("thread", "tier: reports stay in the outbox for now: %s", error)
                    return
                self._thread = thread
                self._watch_exit()

    def _watch_exit(self) -> None:
        if not self._is_exit_watched:
            self._is_exit_watched = True
            atexit.register(_close_at_exit, weakref.ref(self))

    def close(self) -> None:
        """Deliver what is there, for at most ``send_seconds``; what is left is sent by the next start.

        Who is away is not waited for.
        """
        if self.is_running and not self._is_away():
            self.flush(self._send_seconds)
        self.stop()
        self.outbox.close()

    def resume(self) -> None:
        """Who was away is back: what waits is sent now."""
        if self._failures and self._thread is not None:
            self._paused_until = 0.0
            self.wake()

    def stop(self) -> None:
        """End the thread, once it has sent what it is sending. What is left stays in the outbox."""
        with self._starting:
            thread, self._thread = self._thread, None
            self._is_stopped.set()
            self._is_awake.set()
        if thread is not None:
            thread.join(self._send_seconds)

    def flush(self, seconds: float) -> bool:
        """Send all that is there, now, for at most so many seconds: whether nothing is left to send."""
        deadline = monotonic() + seconds
        try:
            return self._flush_here(deadline) if self._rest is None else self._flush_in_thread(deadline)
        except TierError as error:
            self._log("outbox", "tier: the outbox cannot be read: %s", error)
            return False

    def _flush_here(self, deadline: float) -> bool:
        if not self._draining.acquire(timeout=max(0.0, deadline - monotonic())):
            return False
        try:
            self._drain(deadline, threading.Event())
        finally:
            self._draining.release()
        return self.outbox.next_due_ms() is None

    def _flush_in_thread(self, deadline: float) -> bool:
        failures = self._failures
        while self.outbox.next_due_ms() is not None:
            if monotonic() >= deadline or self._failures > failures:
                return False
            self._paused_until = 0.0
            self.wake()
            sleep(FLUSH_PAUSE_SECONDS)
        return True

    def _run(self, is_awake: threading.Event, is_stopped: threading.Event) -> None:
        while not is_stopped.is_set():
            is_awake.wait(self._look_seconds)
            is_awake.clear()
            try:
                if self._is_stopped_in_pause(is_stopped):
                    return
                with self._draining:
                    self._drain(None, is_stopped)
                    self._wake_when_due()
                if self._rest is not None:
                    self._rest()
                self.outbox.move_log()
            except TierError as error:  # such as a full disk: the next look tries again
                self._log("outbox", "tier: the outbox cannot be emptied: %s", error)
            except Exception:  # a reporter that died would be noticed by nobody
                logger.exception("tier: the reporter failed, and goes on")

    def _is_stopped_in_pause(self, is_stopped: threading.Event) -> bool:
        """Wait for other reports to send with this one, or for a server that is away; whether that was to end."""
        moved_at = monotonic()
        linger_until = moved_at + (self._linger_seconds if self._most() == 1 else SHORT_LINGER_SECONDS)
        while (left := max(linger_until, self._paused_until) - monotonic()) > 0:
            if is_stopped.wait(min(left, STEP_SECONDS)):
                return True
            if monotonic() - moved_at > self._look_seconds:
                moved_at = monotonic()
                self.outbox.move_log()  # which grows meanwhile
        return is_stopped.is_set()

    def _wake_when_due(self) -> None:
        """What is due before the next look is not left until then."""
        due_ms = self.outbox.next_due_ms()
        if due_ms is not None and due_ms - self._now_ms() < self._look_seconds * 1000:
            self._is_awake.set()

    def _log(self, what: str, text: str, *arguments: object) -> None:
        if self._seldom.is_due(what):
            logger.error(text, *arguments)

    # ---- sending ----------------------------------------------------------------------------------------------------

    def _drain(self, deadline: float | None, is_stopped: threading.Event) -> None:
        """Send what is due, until nothing is, the server is away, or the time is over."""
        self._paused_until = 0.0
        for abandoned in self.outbox.abandoned():
            self._unknown(abandoned, "the process that sent it did not come back")
        while not is_stopped.is_set():
            seconds = self._send_seconds if deadline is None else min(self._send_seconds, deadline - monotonic())
            if seconds <= 0:
                return
            batches = self.outbox.claim(self._now_ms() + self._lease_ms, self._most())
            if not batches:
                return
            outcomes = self._delivered(batches, seconds)
            self._decide_each(batches, outcomes)
            if any(isinstance(outcome, Later) for outcome in outcomes) or self._paused_until > monotonic():
                return

    def _delivered(self, batches: Sequence[Batch], seconds: float) -> Sequence[Outcome]:
        try:
            if len(batches) > 1 and self._deliver_some is not None:
                return self._deliver_some(batches, seconds)
            return [self._deliver(batch, seconds) for batch in batches]
        except Exception as error:  # one batch that nobody can send must not keep the others from it
            logger.exception("tier: reports could not be sent: %r", batches)
            return [Unknown(f"{type(error).__name__}: {error}")] * len(batches)

    def _decide_each(self, batches: Sequence[Batch], outcomes: Sequence[Outcome]) -> None:
        pairs = list(zip(batches, outcomes, strict=True))
        delivered = [batch for batch, outcome in pairs if isinstance(outcome, Delivered)]
        if delivered:
            self.outbox.settle(*delivered)
        if any(isinstance(outcome, Later | Unknown) for outcome in outcomes):
            self._failures += 1  # of the server, however many were sent
        for batch, outcome in pairs:
            self._decide(batch, outcome)

    def _decide(self, batch: Batch, outcome: Outcome) -> None:
        match outcome:
            case Delivered(is_keyed):
                self._failures = 0
                if is_keyed is not None and is_keyed is not self.outbox.honours_keys:
                    self.outbox.note_keys(are_honoured=is_keyed)
                self.counts["outbox.delivered"] += batch.n
            case Refused(code, reason):
                self._failures = 0
                if self.outbox.bury(batch, code, reason):
                    self.counts["outbox.buried"] += batch.n
                self._log(f"buried {code}", "tier: a report is refused for good, it is kept: %s", reason)
            case Later(reason, asked):
                self._pause(asked)
                self.outbox.postpone(batch, AT_ONCE + batch.attempts + 1, reason)  # behind what was not tried as often
                self._log("away", "tier: reports wait in the outbox: %s", reason)
            case Unknown(reason):
                if self._failures >= PATIENCE:  # else all there is would end as what a person has to decide about
                    self._pause()
                self._unknown(batch, reason)

    def _pause(self, seconds: float | None = None) -> None:
        self._paused_until = monotonic() + (server_backoff_seconds(self._failures) if seconds is None else seconds)

    def _unknown(self, batch: Batch, reason: str) -> None:
        if batch.is_repeatable or self.outbox.honours_keys or self._ambiguous == "retry":
            seconds = batch_backoff_seconds(batch.attempts + 1)
            self.outbox.postpone(batch, self._now_ms() + int(seconds * 1000), reason)
        elif self._ambiguous == "drop":
            if self.outbox.drop(batch):
                self.counts["lost.ambiguous"] += batch.n
            self._log("dropped", "tier: a report that may not have been counted was dropped: %s", reason)
        else:
            if self.outbox.hold(batch, reason):
                self.counts["outbox.held"] += batch.n
            self._log("held", "tier: a report may or may not have been counted, see `outbox list`: %s", reason)

    # ---- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, is_child: bool) -> None:
        if is_child:  # the thread has stayed with the parent
            self._reset()


def _close_at_exit(reference: weakref.ref[Reporter]) -> None:
    reporter = reference()
    if reporter is not None and reporter.is_running:
        reporter.close()
