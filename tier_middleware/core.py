"""What `Tier`, `AsyncTier` and the faces share, and what has no colour: settings, the engine, ids, counts, losses."""

from __future__ import annotations

import logging
import os
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar

from . import drive, flow, forks
from .backup import Backup, Owner
from .clock import Clock, Seldom, milliseconds, milliseconds_of, moment, monotonic, whole_seconds
from .engines import Backed, Engine, Hosted, Portable, Remote
from .engines.away import AwayEngine
from .errors import ConfigurationError, EngineUnavailable, InvalidRequest, PricingError, TierError, UsageLost
from .keeper import Held, Keeper, Work
from .ledger import History, Step, step_ms_for
from .model import Model
from .names import (
    checked_clock_name,
    checked_feature,
    checked_key,
    checked_note,
    checked_org,
    checked_units,
    nearest,
    org_name,
)
from .ops import (
    Adjust,
    Busy,
    Check,
    Checked,
    Checkout,
    Commit,
    Committed,
    DeleteOrg,
    Demand,
    Describe,
    Granted,
    Hold,
    Kept,
    LookUp,
    LookUpKeys,
    LookUpPaymentMethods,
    LookUpPhases,
    MakeClock,
    Op,
    OrgRecord,
    PhasesInfo,
    Push,
    ReadHistory,
    Record,
    Recorded,
    Renew,
    Reserve,
    Schedule,
    Shortfall,
    UpdateOrg,
    Usage,
)
from .orginfo import NO_INFO, OrgInfo, checked_info, checked_text
from .policy import PlannedPhase
from .pricing import read_model
from .schedules import effective_from, listed_features, planned_phases, trial_length
from .settings import OnError, Settings, engine_for, outbox_path

if TYPE_CHECKING:
    from .reporting.reporter import Reporter

__all__ = ["Core", "Report", "fails_open"]

R = TypeVar("R")

logger: Final = logging.getLogger("tier_middleware")

REOPEN_SECONDS: Final = 1.0
GLANCE_SECONDS: Final = 0.05  # may be spent on the event loop
RENEW_SECONDS: Final = 1.0  # that a renewal waits for other writers: the next look tries again


@dataclass(frozen=True, slots=True)
class Report:
    """Usage as it is handed to ``on_loss``: n units of a feature, used by an org at a time. ``key`` counts it once."""

    org: str
    feature: str
    n: int
    at: datetime
    key: str


class Attempt(Protocol):
    """Performs an operation as `Engine.attempt` does, and never waits for a network: then it raises `Busy`."""

    def __call__(self, op: Op[R]) -> R: ...


class Core:
    """One engine and the settings it is used with. Nothing is opened before it is needed."""

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
        self.timeout = settings.timeout
        self.fails_on_loss = settings.on_loss == "fail"
        self._reservation_ms = int(settings.reservation_seconds * 1000)
        self.is_open = self.is_straight = False
        self.model: Model = Model()
        self.keeper = Keeper(
            self.now_ms, reservation_seconds=settings.reservation_seconds, flush_seconds=settings.flush_seconds
        )
        self.live = self.keeper.live  # what holds something: see `enter`
        self.after_fork(is_child=True)
        forks.watch(self)
        self._counts: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._failure: TierError | None = None
        self._failed_at = -REOPEN_SECONDS
        self._seldom = Seldom()
        self.backup = self._new_backup() if isinstance(engine, Backed) else None
        if isinstance(self.engine, Hosted):
            self.engine.when_lost(self._lost)

    def _new_backup(self) -> Backup:
        owner = Owner(self.ensure_open, lambda: self.model, self.finished, self._lose_work)
        return Backup(outbox_path(self.settings), self.engine, self.now_ms, self.timeout, owner)

    def before_fork(self) -> None:
        self.keeper.stop()

    def after_fork(self, *, is_child: bool) -> None:
        """In a child nobody lets go of a lock that a thread of the parent held; and its ids must be its own."""
        if is_child:
            self._random = random.Random(os.urandom(16))  # our own: an application may seed the other
            self._opening = threading.Lock()
            self._counting = threading.Lock()
            self._has_looked = self.is_straight = False  # the child of a worker that was killed takes over from it
            self.sharing = threading.Lock()
            self.keeper.begin_anew()
        elif self.live:
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

    def close(self) -> None:
        self.keeper.stop()
        if self.backup is not None:
            self.backup.close()  # first, and not under the lock: it may have to open the engine
        with self._opening:
            self.is_open = self.is_straight = False
            self.engine.close()

    def warn_of_unknown(self, feature: str, model: Model) -> None:
        """Say once that a route requires a feature which is in no plan: a misspelt name refuses everybody."""
        if feature in model.features or feature in self._warned:
            return
        self._warned.add(feature)
        hint = nearest(feature, model.features)
        logger.warning(
            "tier: %r is required by a route and is in no plan%s", feature, f"; did you mean {hint!r}?" if hint else ""
        )

    # ---- operations from what callers say ---------------------------------------------------------------------------

    def key_of(self, org: str) -> str:
        """How the engine knows an org, whose name is checked here."""
        return checked_org(org)

    def dated(self, make: Callable[[int], Op[R]]) -> Op[R]:
        """An operation of the present: of this moment, or under a test clock of the moment it is performed."""
        return make(self.now_ms())

    def reserve(self, org: str, demands: tuple[Demand, ...]) -> Op[Granted | Shortfall]:
        """For faces, whose names and amounts are checked already."""
        now_ms = self.now_ms()
        new_id = self._random.getrandbits
        ids = (new_id(62) or 1,) if len(demands) == 1 else tuple([new_id(62) or 1 for _ in demands])
        return Reserve(org, demands, ids, now_ms, now_ms + self._reservation_ms, self.settings.default_plan)

    def checked_reserve(self, org: str, feature: str, n: int) -> Op[Granted | Shortfall]:
        demand = Demand(checked_feature(feature), checked_units(n))
        return self.reserve(checked_org(org), (demand,))

    def check(self, org: str, feature: str, n: int) -> Op[Checked]:
        demand, key = Demand(checked_feature(feature), checked_units(n)), self.key_of(org)
        return self.dated(lambda now_ms: Check(key, demand, now_ms, self.settings.default_plan))

    def record(
        self,
        org: str,
        feature: str,
        n: int,
        at: datetime | None = None,
        clobber: bool = False,
        key: str | None = None,
        note: str = "",
    ) -> Record:
        """For a settlement, which dates it when it is performed."""
        return Record(
            self.key_of(org),
            checked_feature(feature),
            checked_units(n),
            new_key() if key is None else checked_key(key),
            self.now_ms(),
            None if at is None else milliseconds_of(at, "at"),
            _checked_flag(clobber, "clobber"),
            self.settings.default_plan,
            checked_note(note),
        )

    def report(
        self, org: str, feature: str, n: int, at: datetime | None, clobber: bool, key: str | None, note: str = ""
    ) -> Op[Recorded]:
        return self.dated(flow.at_time(self.record(org, feature, n, at, clobber, key, note)))

    def adjustment(self, org: str, feature: str, delta: int, note: str, key: str | None) -> Op[Recorded]:
        size = checked_units(-delta if isinstance(delta, int) and delta < 0 else delta, "delta")
        org, feature = self.key_of(org), checked_feature(feature)
        key, note = new_key() if key is None else checked_key(key), checked_note(note)
        return self.dated(lambda now_ms: Adjust(org, feature, -size if delta < 0 else size, key, now_ms, note))

    def look_up(self, org: str) -> Op[tuple[Usage, ...]]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: LookUp(key, now_ms))

    def look_up_keys(self, org: str, keys: tuple[str, ...]) -> Op[tuple[bool, ...]]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: LookUpKeys(key, keys, now_ms))

    def history(
        self, org: str, feature: str, since: datetime | None, until: datetime | None, step: Step | None
    ) -> Op[History]:
        key, feature = self.key_of(org), checked_feature(feature)
        since_ms = None if since is None else milliseconds_of(since, "since")
        until_ms = None if until is None else milliseconds_of(until, "until")
        if since_ms is not None and until_ms is not None and since_ms >= until_ms:
            raise InvalidRequest(f"until: must be after since ({since!r}), got {until!r}", path="until")
        step_ms = None if step is None else step_ms_for(step)
        return self.dated(lambda now_ms: ReadHistory(key, feature, now_ms, since_ms, until_ms, step_ms))

    def look_up_phases(self, org: str) -> Op[PhasesInfo]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: LookUpPhases(key, now_ms))

    def describe(self, org: str) -> Op[OrgRecord]:
        return Describe(self.key_of(org))

    def payment_methods(self, org: str) -> Op[tuple[Mapping[str, Any], ...]]:
        return LookUpPaymentMethods(self.key_of(org))

    def checkout(
        self,
        org: str,
        success_url: str,
        features: str | Sequence[str] | None,
        trial_days: int,
        cancel_url: str | None,
        require_billing_address: bool,
        tax: Mapping[str, Any] | None,
    ) -> Op[str]:
        if self._remote is None:
            raise ConfigurationError(
                f"checkout: {self.settings.base_url!r} takes no payments; send people to a page of your payment "
                "provider, and call subscribe() when it says that they have paid",
                path="TIER_BASE_URL",
            )
        for field, url in (("success_url", success_url), ("cancel_url", cancel_url)):
            if url is not None or field == "success_url":
                checked_text(url, field)
        trial_length(trial_days)
        listed = () if features is None else listed_features(features)
        flag = _checked_flag(require_billing_address, "require_billing_address")
        return Checkout(self.key_of(org), success_url, listed, trial_days, cancel_url, flag, tax)

    def delete(self, org: str) -> DeleteOrg:
        return DeleteOrg(self.key_of(org))

    def push(self, model: Any) -> Push:
        return Push(read_model(model), self.now_ms())

    def new_clock(self, name: str, start: datetime) -> MakeClock:
        id = f"clock_{self._random.getrandbits(64):016x}"
        return MakeClock(id, checked_clock_name(name), whole_seconds(start, "start"))

    def subscription(
        self, org: str, features: str | Sequence[str], trial_days: int, effective: datetime | None
    ) -> Op[None]:
        """A subscription, with a trial phase before it where there are trial days."""
        listed = listed_features(features)
        trial_ms, key = trial_length(trial_days), self.key_of(org)

        def make(now_ms: int) -> Schedule:
            effective_ms = None if effective is None else effective_from(effective, now_ms)
            if not trial_ms:
                return Schedule(key, (PlannedPhase(effective_ms, listed),), now_ms)
            end_ms = (now_ms if effective_ms is None else effective_ms) + trial_ms
            phases = (PlannedPhase(effective_ms, listed, trial=True), PlannedPhase(end_ms, listed))
            return Schedule(key, phases, now_ms)

        return self.dated(make)

    def schedule(self, org: str, phases: Sequence[Mapping[str, Any]]) -> Op[None]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: Schedule(key, planned_phases(phases, now_ms), now_ms))

    def cancellation(self, org: str, at: datetime | None) -> Op[None]:
        key = self.key_of(org)

        def make(now_ms: int) -> Schedule:
            effective_ms = None if at is None else effective_from(at, now_ms, "at")
            return Schedule(key, (PlannedPhase(effective_ms, ()),), now_ms, must_exist=True, keeps_pending=True)

        return self.dated(make)

    def forget(self, org: str) -> None:
        """Have the engine ask its server anew, where it has one."""
        key = self.key_of(org)
        if self._remote is not None:
            self._remote.forget(key)

    def update(self, org: str, info: OrgInfo | Mapping[str, Any]) -> Op[None]:
        key, checked = self.key_of(org), checked_info(info)
        return self.dated(lambda now_ms: UpdateOrg(key, checked, now_ms))

    def update_with(
        self, org: str, info: OrgInfo | Mapping[str, Any] | None, payment_method_id: str | None
    ) -> Op[None] | None:
        """The change of an org's info that comes with a subscription; None where there is none."""
        key = self.key_of(org)
        if info is None and payment_method_id is None:
            return None
        checked = checked_info(NO_INFO if info is None else info)
        if payment_method_id is not None:
            method = checked_text(payment_method_id, "payment_method_id")
            checked = replace(checked, default_payment_method=method)
        return self.dated(lambda now_ms: UpdateOrg(key, checked, now_ms))

    def glance(self, org: str, feature: str) -> Usage:
        """The usage of a feature now, read without awaiting: readers do not wait for writers."""
        if self._remote is not None:
            return usage_in(self._remote.glance(self.key_of(org)), feature)
        asking = flow.do(self.look_up(org))
        return usage_in(drive.run(asking, self.engine, min(self.timeout, GLANCE_SECONDS)), feature)

    # ---- work that goes on ------------------------------------------------------------------------------------------

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

    def tend(self) -> None:
        """Renew what is due, and count what was used so far; by the keeper, from its thread."""
        self.keeper.tend(self._renew)
        if isinstance(self.engine, Hosted):
            self.engine.leave_thread()

    def _renew(self, kept: tuple[Kept, ...]) -> None:
        renewing = flow.do(self.dated(lambda now_ms: Renew(kept, now_ms, now_ms + self._reservation_ms)))
        for done in drive.run(renewing, self.engine, min(self.timeout, RENEW_SECONDS)):
            self._count_over(done)

    def _count_over(self, done: Committed) -> None:
        if done.over:
            self.count("over_limit.expired" if done.has_expired else "over_limit.overage", done.over)

    # ---- what is counted about counting -----------------------------------------------------------------------------

    @property
    def counts(self) -> dict[str, int]:
        """What this process let pass, refused to decide or lost, by reason (see `Tier.counts`)."""
        with self._counting:
            counts = dict(self._counts)
        for other in (self._remote, self.backup):
            counts.update({} if other is None else other.counts)
        return counts

    def count(self, reason: str, n: int = 1) -> None:
        if n:
            with self._counting:
                self._counts[reason] += n

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
            self.finished(flow.Outcome((done,)), flow.Settlement((kept,)))
        return True

    def settling(self, settlement: flow.Settlement) -> flow.Flow[None]:
        """Settle, and `finished`; in the flow, so that a cancelled task does it too."""
        outcome = yield from flow.settle(settlement, self.dated, self.backup)
        self.finished(outcome, settlement)
        if not self._has_looked and self.is_open:
            self._look()

    def finished(self, outcome: flow.Outcome, settlement: flow.Settlement) -> None:
        """Count what a settlement let pass the limit and what it lost; raises `UsageLost` under ``on_loss="fail"``."""
        capped: list[Report] = []
        for kept, done in zip(settlement.kept, outcome.committed, strict=False):
            self._count_over(done)
            if done.capped:
                capped.append(self._report(kept, done.capped))
        if outcome.over_reported:
            self.count("over_limit.fail_open", outcome.over_reported)
        if capped:
            self.lose(capped, "capped")
        if outcome.error is not None:
            self._lose_work((*outcome.lost_kept, *outcome.lost_records), outcome.error)

    @property
    def reporter(self) -> Reporter | None:
        """What empties the outbox of this engine; None for one that has none."""
        if self.backup is not None:
            return self.backup.reporter
        found: Reporter | None = getattr(self.engine, "reporter", None)
        return found

    def _lose_work(self, work: Sequence[flow.Piece], error: TierError | None) -> None:
        reports = [self._report(one, one.n) for one in work if isinstance(one, Kept)]
        reports += [_reported(one) for one in work if isinstance(one, Record)]
        if reports:
            self.lose(reports, (error.code if error else None) or "engine_unavailable", error)
        else:
            logger.warning("tier: reservations could not be given back, they will expire: %s", error)

    def _report(self, kept: Kept, n: int) -> Report:
        hold: Hold = kept.hold
        return Report(org_name(hold.org), hold.feature, n, moment(self.now_ms()), f"reservation:{hold.id}")

    def lose(self, reports: Sequence[Report], reason: str, error: TierError | None = None) -> None:
        """Usage that cannot be counted: counted as lost, logged, and handed to ``on_loss``."""
        self.count(f"lost.{reason}", sum(report.n for report in reports))
        if self._seldom.is_due("loss"):
            logger.error("tier: usage lost (%s): %r %s", reason, tuple(reports), error or "")
        if self.settings.on_loss == "fail":
            if reason != "capped":  # a cap is what the application asked for
                raise UsageLost(f"usage lost ({reason}): {tuple(reports)!r}", reports=reports, reason=reason)
        elif self.settings.on_loss is not None:
            try:
                self.settings.on_loss(tuple(reports), reason)
            except Exception:  # the response goes out all the same
                logger.exception("tier: on_loss failed with %r (%s)", tuple(reports), reason)


def _reported(record: Record) -> Report:
    return Report(org_name(record.org), record.feature, record.n, moment(record.now_ms), record.key)


def usage_in(usages: Sequence[Usage], feature: str) -> Usage:
    """The usage of one feature; used 0 and limit 0 where the org has not got it."""
    return next((usage for usage in usages if usage.feature == feature), Usage(feature, used=0, limit=0))


def fails_open(core: Core, on_error: OnError, request: Any) -> Callable[[TierError], bool]:
    """The policy for an engine that is away, as a flow asks for it; every answer is counted and logged."""

    def decide(error: TierError) -> bool:
        is_open = on_error in ("allow", "stale")
        if callable(on_error):
            try:
                is_open = bool(on_error(request, error))
            except Exception:  # the application's policy does not know either
                logger.exception("tier: on_error failed, the gate stays closed")
        core.count("fail_open" if is_open else "fail_closed")
        logger.warning("tier: engine away, gate %s: %s", "open" if is_open else "closed", error)
        return is_open

    return decide


def _checked_flag(value: bool, field: str) -> bool:
    if value is True or value is False:
        return value
    raise InvalidRequest(f"{field}: must be True or False, got {value!r}", path=field)  # a text such as "no" is true


def new_key() -> str:
    return uuid.UUID(bytes=os.urandom(16), version=4).hex
