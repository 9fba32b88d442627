"""What `Tier`, `AsyncTier` and the faces share, and what has no colour: an engine, opened when it is needed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeVar

from . import drive, flow, forks
from .backup import Backup, Owner
from .clock import Clock, Seldom, milliseconds, monotonic
from .engine_urls import engine_for, outbox_path
from .engines import Backed, Engine, Hosted, Portable, Remote
from .engines.away import AwayEngine
from .errors import ConfigurationError, EngineUnavailable, PricingError, TierError
from .keeper import Held, Keeper, Work
from .model import Model
from .names import nearest
from .operations import Operations
from .ops import Busy, Commit, Hold, Kept, Op, Usage
from .pricing import read_model
from .settings import Settings
from .tally import Tally

if TYPE_CHECKING:
    from .reporting.reporter import Reporter

__all__ = ["GLANCE_SECONDS", "Core", "usage_in"]

R = TypeVar("R")

logger: Final = logging.getLogger("tier_middleware")

REOPEN_SECONDS: Final = 1.0
GLANCE_SECONDS: Final = 0.05  # may be spent on the event loop
RENEW_SECONDS: Final = 1.0  # that a renewal waits for other writers: the next look tries again


class Attempt(Protocol):
    """Performs an operation as `Engine.attempt` does, and never waits for a network: then it raises `Busy`."""

    def __call__(self, op: Op[R]) -> R: ...


class Core:
    """One engine and the settings it is used with. Nothing is opened before it is needed.

    ``operations`` makes what callers say into what the engine is asked; ``tally`` counts what is lost.
    """

    is_clocked: ClassVar[bool] = False
    """Whether its orgs live in the time of a test clock (`tier_middleware.clocked`); then no path is straight."""

    def __init__(self, settings: Settings, clock: Clock | None, engine: Engine | None = None) -> None:
        self.settings = settings
        self.now_ms = milliseconds(clock)
        if engine is None:
            engine = engine_for(settings, self.now_ms)
        self.engine = engine
        self._remote = engine if isinstance(engine, Remote) else None
        self.attempt_at_once: Attempt = engine.attempt if self._remote is None else self._remote.attempt_at_once
        self.operations = Operations(settings, self.now_ms, takes_payments=self._remote is not None)
        self.tally = Tally(self.now_ms, settings.on_loss)
        self.timeout = settings.timeout
        self.is_open = self.is_straight = False
        self.model: Model = Model()
        self.keeper = Keeper(
            self.now_ms, reservation_seconds=settings.reservation_seconds, flush_seconds=settings.flush_seconds
        )
        self.live = self.keeper.live  # what holds something: see `enter`
        self.after_fork(is_child=True)
        forks.watch(self)
        self._warned: set[str] = set()
        self._failure: TierError | None = None
        self._failed_at = -REOPEN_SECONDS
        self._seldom = Seldom()
        self.backup = self._new_backup() if isinstance(engine, Backed) else None
        if isinstance(self.engine, Hosted):
            self.engine.when_lost(self._lost)

    def _new_backup(self) -> Backup:
        owner = Owner(self.ensure_open, lambda: self.model, self.tally)
        return Backup(outbox_path(self.settings), self.engine, self.now_ms, self.timeout, owner)

    def before_fork(self) -> None:
        self.keeper.stop()

    def after_fork(self, *, is_child: bool) -> None:
        """In a child nobody lets go of a lock that a thread of the parent held."""
        if is_child:
            self._opening = threading.Lock()
            self._has_looked = self.is_straight = False  # the child of a worker that was killed takes over from it
            self.sharing = threading.Lock()
            self.keeper.begin_anew()
            self._abandoned: deque[Callable[[], flow.Settlement]] = deque()
        elif self.live or self._abandoned:
            self.keeper.start(self)

    # ---- opening and closing ----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the engine, push the pricing model and check the default plan. Blocks; idempotent.

        Raises `ConfigurationError` or `PricingError` for what will never work, `EngineUnavailable` for what may later.
        """
        if isinstance(self.engine, Hosted):
            # in a transaction of the application's that another who opens may be waiting for: nobody waits for that one
            self._open()
            return
        if not self._opening.acquire(timeout=self.timeout):
            raise EngineUnavailable(f"the engine was being opened by others for more than {self.timeout} seconds")
        try:
            self._open()
        finally:
            self._opening.release()

    def _open(self) -> None:
        if not self.is_open:
            self._start()
            self.when_certain(self._opened)

    def _opened(self) -> None:
        self.is_open = True
        self._look()
        path = getattr(self.engine, "path", None)
        logger.info("tier engine open: %s", self.settings.base_url if path is None else path)

    def _look(self) -> None:
        """Take over what another process has left in the outbox, once in each process."""
        self._has_looked = True
        self.is_straight = not (self.is_clocked or isinstance(self.engine, Hosted))
        if self.backup is not None:
            self.backup.take_over()

    def _lost(self) -> None:
        self.is_open = self.is_straight = False

    def when_certain(self, then: Callable[[], None]) -> None:
        """Call ``then`` once all that was done until now is certain: at once, but on an engine that took part in a
        transaction of the application's.
        """
        if isinstance(self.engine, Hosted):
            self.engine.when_certain(then)
        else:
            then()

    def ensure_open(self) -> None:
        """Open at first use: many may want to at once, so what ended in an error is not tried again for a second."""
        failure = self.recent_failure()
        if failure is not None:
            raise failure
        try:
            self.open()
        except TierError as error:
            self._failure, self._failed_at = error, monotonic()
            self.log_unusable(error)
            raise

    def engine_in_spite_of(self, error: TierError) -> Engine:
        """What to ask though opening has failed. In front of a server that is away, the engine itself: it has the
        outbox, and knows what needs no server.
        """
        if self._remote is not None and isinstance(error, EngineUnavailable):
            return self.engine
        return AwayEngine(error)

    def recent_failure(self) -> TierError | None:
        """Why the engine could not be opened within the last second."""
        return self._failure if monotonic() - self._failed_at < REOPEN_SECONDS else None

    def log_unusable(self, error: TierError) -> None:
        """Say why an engine cannot be used: once per interval, since every request meets it."""
        if self._seldom.is_due("unusable"):
            logger.error("tier: the engine cannot be used: %s", error)

    def _start(self) -> None:
        model = self._model_to_push()
        drive.open(self.engine, self.timeout)
        try:
            starting = flow.start(model, self.settings.default_plan, self.now_ms())
            self.model = drive.run(starting, self.engine, self.timeout)
        except BaseException:
            self.engine.close()  # what did not start leaves nothing open
            raise

    def _model_to_push(self) -> Model | None:
        if self.settings.pricing is None:
            return None
        try:
            return read_model(self.settings.pricing)
        except (PricingError, ConfigurationError) as error:
            raise type(error)(f"TIER_PRICING: {error.message}", path=error.path) from error

    def portable(self) -> Portable:
        """The engine, opened, as one whose contents can be moved; `ConfigurationError` for one that is not."""
        self.open()
        if not isinstance(self.engine, Portable):
            raise ConfigurationError(
                f"TIER_BASE_URL: {self.settings.base_url!r} has no export and no import", path="TIER_BASE_URL"
            )
        return self.engine

    @property
    def is_at_rest(self) -> bool:
        """Whether all that held something is settled."""
        return all(work.is_over for work in self.live.copy())

    def close(self) -> None:
        self.keeper.stop()
        if (self.live or self._abandoned) and not isinstance(self.engine, Hosted):
            self.tend()  # the process may end before what still goes on
        if self.backup is not None:
            self.backup.close()  # first, and not under the lock: it may have to open the engine
        with self._opening:
            self.is_open = self.is_straight = False
            self.engine.close()

    # ---- what it knows ----------------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int]:
        """What this process let pass, refused to decide or lost, by reason (see `Tier.counts`)."""
        counts = self.tally.counts
        for other in (self._remote, self.backup):
            counts.update({} if other is None else other.counts)
        return counts

    @property
    def reporter(self) -> Reporter | None:
        """What empties the outbox of this engine; None for one that has none."""
        if self.backup is not None:
            return self.backup.reporter
        found: Reporter | None = getattr(self.engine, "reporter", None)
        return found

    def warn_of_unknown(self, feature: str, model: Model) -> None:
        """Say once that a route requires a feature which is in no plan: a misspelt name refuses everybody."""
        if feature in model.features or feature in self._warned:
            return
        self._warned.add(feature)
        hint = nearest(feature, model.features)
        logger.warning(
            "tier: %r is required by a route and is in no plan%s", feature, f"; did you mean {hint!r}?" if hint else ""
        )

    def glance(self, org: str, feature: str) -> Usage:
        """The usage of a feature now, read without awaiting: readers do not wait for writers."""
        if self._remote is not None:
            return usage_in(self._remote.glance(self.operations.key_of(org)), feature)
        asking = flow.do(self.operations.look_up(org))
        return usage_in(drive.run(asking, self.engine, min(self.timeout, GLANCE_SECONDS)), feature)

    def forget(self, org: str) -> None:
        """Have the engine ask its server anew, where it has one."""
        key = self.operations.key_of(org)
        if self._remote is not None:
            self._remote.forget(key)

    # ---- work that holds something ----------------------------------------------------------------------------------

    def enter(self, work: Work) -> None:
        """Look after work that holds something. It leaves `live` when that is settled."""
        self.live.add(work)
        if not self.keeper.is_running:
            self.keeper.start(self)

    @contextmanager
    def held(self, holds: Sequence[Hold | None] | None) -> Iterator[None]:
        """Look after reservations of which nothing is counted before the block ends."""
        work = Held(*filter(None, holds or ()))
        self.enter(work)
        try:
            yield
        finally:
            self.live.discard(work)

    def abandon(self, work: Work, settlement: Callable[[], flow.Settlement]) -> None:
        """Nobody has this work any more: the next look gives back what it holds. Called by the garbage collector,
        wherever that is, so this takes no lock.
        """
        if work in self.live:  # else it is settled, or its parent's
            self.live.discard(work)
            self._abandoned.append(settlement)

    def tend(self) -> None:
        """Renew what is due, count what was used, give back what is abandoned; by the keeper, from its thread."""
        while self._abandoned:
            settlement = self._abandoned.popleft()()
            drive.run(self.settling(settlement), self.engine, min(self.timeout, RENEW_SECONDS))
        self.keeper.tend(self.renew)
        if isinstance(self.engine, Hosted):
            self.engine.leave_thread()

    def renew(self, kept: tuple[Kept, ...]) -> None:
        """Keep holds alive, and count what was used of them so far."""
        for some in flow.some_at_a_time(kept):
            renewing = flow.do(self.operations.renewal(tuple(some)))
            for done in drive.run(renewing, self.engine, min(self.timeout, RENEW_SECONDS)):
                self.tally.committed(done)

    def is_committed_at_once(self, kept: Kept) -> bool:
        """The straight path of `flow.settle`: one commit, and nobody in the way.

        False where that did not work: then the flow does it, and what was committed all the same counts once.
        """
        if not kept.hold.n and self.backup is not None and self.backup.is_behind(kept):
            return False
        try:
            (done,) = self.attempt_at_once(Commit((kept,), self.now_ms()))
        except (Busy, TierError):
            return False
        if done.over or done.capped:
            self.tally.finished(flow.Outcome((done,)), flow.Settlement((kept,)))
        return True

    def settling(self, settlement: flow.Settlement) -> flow.Flow[None]:
        """Settle, and count what was lost; in the flow, so that a cancelled task does it too."""
        outcome = yield from flow.settle(settlement, self.operations.dated, self.backup)
        self.tally.finished(outcome, settlement)
        if not self._has_looked and self.is_open:
            self._look()
        if settlement.failure is not None:
            raise settlement.failure


def usage_in(usages: Sequence[Usage], feature: str) -> Usage:
    """The usage of one feature; used 0 and limit 0 where the org has not got it."""
    return next((usage for usage in usages if usage.feature == feature), Usage(feature, used=0, limit=0))
