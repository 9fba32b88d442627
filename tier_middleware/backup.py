"""What an engine could not count while it was away: kept in the outbox, and counted when it is back.

Nothing of it is there before it is needed: no file, no thread, nothing in the way of a request that is counted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from . import drive, flow, forks
from .clock import Milliseconds, Seldom
from .engines import Backed, Engine, Hosted
from .errors import ConfigurationError, EngineUnavailable, InvalidRequest, NotEntitled, TierError, UsageLost
from .flow import Piece
from .model import Model
from .names import clock_of
from .ops import Busy, Commit, Elsewhere, Hold, Kept, LookUpClock, Op, Release
from .policy import KEY_LIFETIME_MS
from .reporting.batches import Batch, Entry
from .reporting.pieces import entry_of_hold, entry_of_record, kept_of, record_of
from .tally import Tally

if TYPE_CHECKING:
    from .reporting.outcomes import Outcome
    from .reporting.reporter import Reporter

__all__ = ["Backup", "Owner"]

logger: Final = logging.getLogger("tier_middleware")


@dataclass(frozen=True, slots=True)
class Owner:
    """What a backup needs of whose it is: to have the engine ready, to know the plans, and to say what became of it."""

    ensure_open: Callable[[], None]
    model: Callable[[], Model]
    tally: Tally


class Backup:
    """The outbox of one engine, and what empties it: a `tier_middleware.flow.Backup`."""

    def __init__(self, path: Path, engine: Engine, now_ms: Milliseconds, timeout: float, owner: Owner) -> None:
        self.path = path
        self._engine = engine
        self._now_ms = now_ms
        self._timeout = timeout
        self._owner = owner
        self._seldom = Seldom()
        self._behind: set[tuple[str, str]] = set()
        self._kept = 0  # units
        self._reporter: Reporter | None = None
        self.after_fork(is_child=True)
        forks.watch(self)

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, is_child: bool) -> None:
        if is_child:
            self._making = threading.Lock()
            self._ordering = threading.Lock()  # what is put behind must not be forgotten by who has just delivered

    @property
    def reporter(self) -> Reporter:
        """What delivers; made when it is first asked for. Opens nothing."""
        with self._making:
            if self._reporter is None:
                from .reporting.outbox import Outbox
                from .reporting.reporter import Reporter

                assert isinstance(self._engine, Backed), self._engine
                outbox = Outbox(self.path, self._now_ms, server=self._engine.address)
                rest = self._engine.leave_thread if isinstance(self._engine, Hosted) else None
                self._reporter = Reporter(outbox, self._deliver, self._now_ms, send_seconds=self._timeout, rest=rest)
            return self._reporter

    @property
    def counts(self) -> dict[str, int]:
        counts = {} if self._reporter is None else dict(self._reporter.counts)
        return {"outbox.kept": self._kept, **counts} if self._kept else counts

    def take_over(self) -> None:
        """Deliver what an earlier process has left, if there is anything."""
        if self.path.exists():
            try:
                if self.reporter.outbox.next_due_ms() is not None:
                    self.reporter.wake()
            except (TierError, Busy) as error:
                logger.error("tier: the outbox cannot be read: %s", error)

    def close(self) -> None:
        """Deliver what is there, for at most ``timeout`` seconds, and let go of the file."""
        if self._reporter is not None:
            self._reporter.close()

    # ---- keeping ----------------------------------------------------------------------------------------------------

    def is_behind(self, piece: Piece) -> bool:
        return bool(self._behind) and _place_of(piece) in self._behind

    def keeping(self, pieces: Sequence[Piece], error: TierError | None) -> Op[None]:
        """Keep it as soon as it is certain: in a transaction of the application's, when that is committed."""
        engine = self._engine
        if not isinstance(engine, Hosted):
            return Elsewhere(partial(self._keep, pieces, error))

        def keep_then() -> None:
            self.reporter.outbox.open()  # where that is not possible, the transaction may yet be rolled back
            engine.when_certain(lambda: self._keep_or_lose(pieces, error))

        return Elsewhere(keep_then, engine)

    def _keep(self, pieces: Sequence[Piece], error: TierError | None) -> None:
        entries = [self._entry(one) for one in pieces]
        try:
            with self._ordering:
                self.reporter.outbox.append(entries)
                self._behind.update((entry.org, entry.feature) for entry in entries if entry.is_barrier)
        except TierError as problem:
            if self._seldom.is_due("outbox"):
                logger.error("tier: usage cannot be kept in the outbox: %s", problem)
            raise
        with self._making:
            self._kept += sum(entry.n for entry in entries)
        if error is not None and self._seldom.is_due("away"):
            logger.error("tier: the engine is away, usage waits in the outbox %r: %s", str(self.path), error)
        self.reporter.wake()

    def _keep_or_lose(self, pieces: Sequence[Piece], error: TierError | None) -> None:
        """After a commit of the application's, when nothing can fail any more."""
        try:
            drive.attempted(partial(self._keep, pieces, error), self._timeout)
        except TierError as problem:
            with suppress(UsageLost):  # nobody is there any more whom it could fail
                self._owner.tally.lose_work(pieces, error or problem)

    def _entry(self, piece: Piece) -> Entry:
        if isinstance(piece, Hold):
            return entry_of_hold(piece, "release")
        if isinstance(piece, Kept):
            return entry_of_hold(piece.hold, "commit", piece.n, is_capped=piece.is_capped, once=piece.key)
        is_level = self._owner.model().aggregate_of(piece.feature) != "sum"
        return entry_of_record(piece, is_level=is_level)

    # ---- delivering, in the reporter's thread -----------------------------------------------------------------------

    def _deliver(self, batch: Batch, seconds: float) -> Outcome:
        from .reporting.outcomes import Later

        outcome = self._outcome(batch, seconds)
        place = (batch.org, batch.feature)
        if place in self._behind and not isinstance(outcome, Later):
            with self._ordering:
                waiting = self.reporter.outbox.undelivered(batch.org)
                if not any(one.id > batch.id and one.feature == batch.feature for one in waiting):
                    self._behind.discard(place)
        return outcome

    def _outcome(self, batch: Batch, seconds: float) -> Outcome:
        from .reporting.outcomes import Delivered, Later, Refused

        if self._now_ms() - batch.first_ms > KEY_LIFETIME_MS:
            if batch.action == "release":
                return Delivered(None)  # what it would give back has expired
            return Refused("too_old", "its key or reservation may be forgotten: it may count twice, or not at all")
        try:
            self._owner.ensure_open()
            drive.run(self._counting(batch), self._engine, seconds)
        except (EngineUnavailable, ConfigurationError) as error:
            return Later(error.message)
        except TierError as error:
            if error.path != "key":  # its own, of another time: it was counted when it seemed not to be
                return Refused(error.code or "invalid_request", error.message)
        return Delivered(None)

    def _counting(self, batch: Batch) -> flow.Flow[None]:
        clock = clock_of(batch.org)
        now_ms = self._now_ms() if not clock else (yield from flow.do(LookUpClock(clock))).present_ms
        kept = kept_of(batch)
        if batch.action == "release":
            yield from flow.do(Release((kept.hold,), now_ms))
            return
        if batch.action == "commit":
            done = yield from flow.do(Commit((kept,), now_ms))
            self._owner.tally.finished(flow.Outcome(done), flow.Settlement((kept,)))
            return
        record = record_of(batch, now_ms)
        if not clock and record.at_ms is None:
            record = replace(record, at_ms=batch.first_ms)  # when the work was done, which may be another period
        try:
            over = (yield from flow.do(record)).over
        except (InvalidRequest, NotEntitled) as error:
            if error.path == "key" or batch.at_ms is not None:
                raise
            over = (yield from flow.do(replace(record, at_ms=None))).over  # it is subscribed since
        self._owner.tally.finished(flow.Outcome(over_reported=over), flow.Settlement())


def _place_of(piece: Piece) -> tuple[str, str]:
    place = piece.hold if isinstance(piece, Kept) else piece
    return place.org, place.feature
