"""The HTTP engine: checks from what it knows of an org, reports through the outbox, everything else by a call.

What it knows is asked for anew after `FRESH_SECONDS`, beside the requests, and is not used after `STALE_SECONDS`. A no
is asked for again after `REFUSAL_SECONDS`, before it is said, so that an upgrade shows at once.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, Final, TypeVar

from ... import forks, wire
from ...clock import Milliseconds, monotonic, sleep
from ...errors import EngineUnavailable, InvalidRequest, OrgNotFound, PricingError, TierError
from ...model import Model
from ...names import clock_of, feature_plan
from ...ops import (
    Adjust,
    AdvanceClock,
    Busy,
    Check,
    Checked,
    Checkout,
    ClockRecord,
    Commit,
    Committed,
    DeleteOrg,
    Describe,
    EngineInfo,
    Granted,
    Identify,
    Kept,
    LookUp,
    LookUpClock,
    LookUpPaymentMethods,
    LookUpPhases,
    MakeClock,
    Op,
    OrgRecord,
    PhasesInfo,
    Pull,
    Push,
    PushResult,
    ReadHistory,
    Record,
    Recorded,
    Release,
    Reserve,
    Schedule,
    Shortfall,
    UpdateOrg,
    Usage,
)
from ...policy import Period, PlannedPhase
from ...pricing import plan_conflict
from ...reporting.batches import Batch, Entry, Policy
from ...reporting.outbox import Outbox
from ...reporting.outcomes import Later, Outcome, Refused, Unknown, outcome_of
from ...reporting.reporter import Reporter
from .. import verdicts
from ..threads import limiter_of_loop
from .breaker import Breaker
from .limits import Event, OrgView, aggregate_of
from .transport import NotSent, Transport

__all__ = ["HttpEngine"]

R = TypeVar("R")

logger: Final = logging.getLogger("tier_middleware")

FRESH_SECONDS: Final = 30.0
STALE_SECONDS: Final = 60.0
REFUSAL_SECONDS: Final = 2.0
MAX_ORGS: Final = 10_000
REFRESHERS: Final = 4  # threads at most, which end when there is nothing to refresh
THREADS: Final = 40  # of an event loop, that wait for the server
CLOCK_PAUSE_SECONDS: Final = 0.1  # between looks at a test clock that advances


class Cold(Busy):
    """The server must be asked first: ``ask`` does that, and blocks. Then the operation is decided here."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self.ask = ask


class _Refresh:
    """One question to the server about an org, for all who want to know."""

    __slots__ = ("asked_at", "error", "is_done")

    def __init__(self) -> None:
        self.asked_at = monotonic()
        self.is_done = threading.Event()
        self.error: TierError | None = None


class HttpEngine:
    """A server that speaks Tier's API.

    Reserves and checks are decided in this process; nothing is granted above what the server said, less what this
    process and the others that share its outbox have used since. With ``serves_stale`` the last answer holds for as
    long as the server is away.
    """

    def __init__(
        self,
        base_url: str,
        now_ms: Milliseconds,
        outbox: Outbox,
        *,
        api_key: str | None = None,
        is_loopback: bool = False,
        timeout: float = 5.0,
        default_plan: str | None = None,
        serves_stale: bool = False,
        ambiguous: Policy = "hold",
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        refusal_seconds: float = REFUSAL_SECONDS,
        max_orgs: int = MAX_ORGS,
    ) -> None:
        self.base_url = base_url
        self.outbox = outbox
        self._counts: Counter[str] = Counter()
        self._now_ms = now_ms
        self._timeout = timeout
        self._default_plan = default_plan
        self._serves_stale = serves_stale
        self._fresh_seconds, self._stale_seconds = fresh_seconds, stale_seconds
        self._refusal_seconds = refusal_seconds
        self._max_orgs = max_orgs
        self._transport = Transport(base_url, api_key, is_loopback=is_loopback)
        self._breaker = Breaker(base_url)
        self.reporter = Reporter(outbox, self._deliver, now_ms, ambiguous=ambiguous, send_seconds=timeout)
        self._model = Model()
        self._pulled_at = -inf
        self._clocks: dict[str, ClockRecord] = {}
        self._is_exit_watched = False
        self._reset()
        forks.watch(self)
        self._decide: dict[type[Op[Any]], Callable[[Any, bool], Any]] = {
            Reserve: self._reserve,
            Check: self._check,
            LookUp: self._look_up,
            Commit: self._commit,
            Release: self._release,
            Record: self._record,
            Adjust: self._adjust,
            LookUpClock: self._look_up_clock,
            Pull: self._pull,
        }
        self._call: dict[type[Op[Any]], Callable[[Any], Any]] = {
            LookUpPhases: self._look_up_phases,
            Schedule: self._schedule,
            Describe: self._describe,
            LookUpPaymentMethods: self._payment_methods,
            Checkout: self._checkout,
            UpdateOrg: self._update_org,
            Push: self._push,
            Identify: self._identify,
            MakeClock: self._make_clock,
            AdvanceClock: self._advance_clock,
            ReadHistory: self._unsupported,
            DeleteOrg: self._unsupported,
        }

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._orgs: OrderedDict[str, OrgView] = OrderedDict()
        self._refreshes: dict[str, _Refresh] = {}
        self._to_refresh: deque[tuple[str, _Refresh]] = deque()
        self._refreshers = 0

    # ---- the port ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self.outbox.open()
        if self.outbox.next_due_ms() is not None:
            self._wake()  # what an earlier process has left

    def attempt_at_once(self, op: Op[R]) -> R:
        """`attempt`, where no network is needed; else `Busy`, with nothing done."""
        decide = self._decide.get(type(op))
        if decide is None:
            raise Busy
        reply: R = decide(op, False)
        return reply

    def attempt(self, op: Op[R]) -> R:
        decide = self._decide.get(type(op))
        if decide is None:
            done: R = self._call[type(op)](op)
            return done
        try:
            reply: R = decide(op, False)
        except Cold as cold:
            cold.ask()
            reply = decide(op, True)
        return reply

    async def aattempt(self, op: Op[R]) -> R:
        """`attempt`, awaited: what asks the server does so in a thread, and what holds capacity does not."""
        decide = self._decide.get(type(op))
        if decide is None:
            return await _in_thread(lambda: self.attempt(op))
        try:
            reply: R = decide(op, False)
        except Cold as cold:
            await _in_thread(cold.ask)
            reply = decide(op, True)
        return reply

    def close(self) -> None:
        """Deliver what is in the outbox, for at most ``timeout`` seconds; what is left is sent by the next start.

        A server that is left alone at the moment is not waited for.
        """
        if self.reporter.is_running and not self._breaker.is_open:
            self.reporter.flush(self._timeout)
        self.reporter.stop()
        self._transport.close()
        self.outbox.close()

    def forget(self, org: str) -> None:
        """Ask the server at the next check of this org."""
        with self._lock:
            view = self._orgs.get(org)
            if view is not None:
                view.asked_at = -inf
            self._refreshes.pop(org, None)  # one that is under way may have been answered before

    @property
    def counts(self) -> dict[str, int]:
        """What became of reports, in units, and how often an old answer was all there was."""
        return {**self._counts, **self.reporter.counts}

    # ---- what is decided here ---------------------------------------------------------------------------------------

    def _reserve(self, op: Reserve, is_final: bool) -> Granted | Shortfall:
        with self._lock:
            view = self._view(op.org, is_final)
            reply = view.reserve(op)
            if not is_final and isinstance(reply, Shortfall):
                self._doubt(op.org, view)
            return reply

    def _check(self, op: Check, is_final: bool) -> Checked:
        with self._lock:
            view = self._view(op.org, is_final)
            reply = view.checked(op.org, op.demand, op.now_ms)
            if not is_final and reply.shortfall is not None:
                self._doubt(op.org, view)
            return reply

    def _view(self, org: str, is_final: bool) -> OrgView:
        """What is known of an org; raises `Cold` where that is too old to decide by."""
        view = self._orgs.get(org)
        if is_final and view is not None and view.has_answer:
            return view
        now = monotonic()
        age = inf if view is None else now - view.asked_at
        if view is None or age > self._stale_seconds or clock_of(org):  # a test clock may be moved by anybody
            raise Cold(lambda: self._ask(org))
        if age > self._fresh_seconds and org not in self._refreshes and now >= view.not_before:
            self._refresh_beside(org)
        self._orgs.move_to_end(org)
        return view

    def _doubt(self, org: str, view: OrgView) -> None:
        """A no that is not of this moment is asked for again."""
        if monotonic() - view.asked_at > self._refusal_seconds:
            raise Cold(lambda: self._ask(org))

    def _look_up(self, op: LookUp, is_final: bool) -> tuple[Usage, ...]:
        with self._lock:
            view = self._orgs.get(op.org)
            if view is None or not view.has_answer or not is_final:
                raise Cold(lambda: self._ask(op.org, must_answer=True))
            if not view.is_known:
                raise verdicts.unknown_org(op.org)
            view.expire(op.now_ms)
            return view.all_usage()

    def glance(self, org: str) -> tuple[Usage, ...]:
        """What is known of an org's usage without asking. Raises `EngineUnavailable` where nothing is."""
        with self._lock:
            view = self._orgs.get(org)
            if view is None or not view.has_answer:
                raise EngineUnavailable(f"{org!r} has not been asked for yet")
            return view.all_usage()

    # ---- counting: through the outbox -------------------------------------------------------------------------------

    def _commit(self, op: Commit, is_final: bool) -> tuple[Committed, ...]:
        with self._lock:
            entries: list[Entry] = []
            events: list[tuple[OrgView, Kept, Event]] = []
            replies: list[Committed] = []
            for kept in op.kept:
                view = self._orgs.get(kept.hold.org)
                hold = None if view is None else view.holds.get(kept.hold.id)
                if view is None or hold is None:
                    replies.append(Committed())  # settled before
                    continue
                n, reply = self._counted(view, kept, hold.n)
                replies.append(reply)
                events.append((view, kept, Event(kept.hold.feature, n)))
                alone = self._is_level(view, kept.hold.feature)
                if n or alone:
                    entries.append(Entry(kept.hold.org, kept.hold.feature, n, is_alone=alone))
            if entries:
                self.outbox.append(entries)
            for view, kept, event in events:
                view.let_go(kept.hold.id)
                view.count(event)
        if entries:
            self._wake()
        return tuple(replies)

    def _counted(self, view: OrgView, kept: Kept, held: int) -> tuple[int, Committed]:
        """How many units a commit counts, and what is to be said of it."""
        feature, n = kept.hold.feature, kept.n
        entitlement = view.entitlements.get(feature)
        has_expired = bool(kept.hold.n) and not held
        if entitlement is None:  # the org has lost the feature meanwhile; the server says what it makes of it
            return n, Committed(has_expired=has_expired)
        used, others = view.used[feature], view.reserved[feature] - held
        limit, aggregate = entitlement.limit, entitlement.aggregate
        allowed = verdicts.counted(aggregate, limit, used, others, held, n) if kept.is_capped else n
        after = used + allowed if aggregate == "sum" else allowed
        return allowed, Committed(verdicts.over(limit, used, after), n - allowed, has_expired)

    def _is_level(self, view: OrgView | None, feature: str) -> bool:
        entitlement = None if view is None else view.entitlements.get(feature)
        if entitlement is not None:
            return entitlement.is_level
        return aggregate_of(self._model, feature) != "sum"

    def _release(self, op: Release, is_final: bool) -> None:
        with self._lock:
            for hold in op.holds:
                view = self._orgs.get(hold.org)
                if view is not None:
                    view.let_go(hold.id)

    def _record(self, op: Record, is_final: bool) -> Recorded:
        if self._model.is_on_off(op.feature):
            raise InvalidRequest(f"feature not reportable: {op.feature!r} is on/off", path="feature")
        if op.at_ms is not None:
            verdicts.checked_moment(op.at_ms, op.now_ms)
        with self._lock:
            alone = self._is_level(self._orgs.get(op.org), op.feature)
            contents = verdicts.contents_of(op)
            entry = Entry(op.org, op.feature, op.n, op.at_ms, op.clobber, alone, op.key, contents)
            (is_new,) = self.outbox.append([entry])
            over = self._noted(op) if is_new else 0
        self._wake()
        return Recorded(over, is_new)

    def _noted(self, op: Record) -> int:
        """Take a report into what is known of the org: how many units passed the limit."""
        view = self._orgs.get(op.org)
        if view is None:
            return 0
        before = view.used.get(op.feature, 0)
        if not (op.clobber and op.at_ms is not None):  # that is another period's, as likely as not
            view.count(Event(op.feature, op.n, op.clobber))
        entitlement = view.entitlements.get(op.feature)
        return 0 if entitlement is None else verdicts.over(entitlement.limit, before, view.used[op.feature])

    def _adjust(self, op: Adjust, is_final: bool) -> Recorded:
        if op.delta < 0:
            raise InvalidRequest(
                f"delta: Tier's API takes nothing back, got {op.delta}; report(..., clobber=True) sets the usage",
                path="delta",
            )
        return self._record(Record(op.org, op.feature, op.delta, op.key, op.now_ms, note=op.note), is_final)

    def _wake(self) -> None:
        if not self._is_exit_watched:
            self._is_exit_watched = True
            atexit.register(_flush_at_exit, weakref.ref(self))
        self.reporter.wake()

    def _deliver(self, batch: Batch, seconds: float) -> Outcome:
        """Send a batch, for the reporter."""
        outcome = self._sent(batch, seconds)
        if isinstance(outcome, Refused) and outcome.code == "org_not_found" and self._default_plan is not None:
            try:
                self._give_default_plan(batch.org)
            except TierError as error:
                return Later(error.message)
            outcome = self._sent(batch, seconds)
        return outcome

    def _sent(self, batch: Batch, seconds: float) -> Outcome:
        at_ms = batch.at_ms
        request = wire.report(batch.org, batch.feature, batch.n, key=batch.key, at_ms=at_ms, clobber=batch.clobber)
        try:
            response = self._transport.send(request, seconds)
        except NotSent as error:
            self._breaker.failed(error)
            return Later(error.message)
        except EngineUnavailable as error:
            self._breaker.failed(error)
            return Unknown(error.message)
        self._note(request, response)
        return outcome_of(request, response)

    # ---- what the server says ---------------------------------------------------------------------------------------

    def _answer(self, request: wire.Request) -> wire.Response:
        """The server's answer, unless it is left alone at the moment. Errors are for who reads it."""
        self._breaker.check()
        try:
            response = self._transport.send(request, self._timeout)
        except EngineUnavailable as error:
            self._breaker.failed(error)
            raise
        self._note(request, response)
        return response

    def _note(self, request: wire.Request, response: wire.Response) -> None:
        """Tell the breaker what an answer says of the server."""
        failure = wire.error_in(request, response) if wire.is_away(response.status) else None
        if isinstance(failure, EngineUnavailable):
            self._breaker.failed(failure)
        else:
            self._breaker.succeeded()

    def _asked(self, request: wire.Request, read: Callable[[wire.Request, wire.Response], R]) -> R:
        return read(request, self._answer(request))

    def _ask(self, org: str, *, must_answer: bool = False) -> None:
        """Ask the server about an org, or wait for who is asking already. Where it is away, its last answer may do."""
        with self._lock:
            refresh = self._refreshes.get(org)
            is_mine = refresh is None
            if refresh is None:
                refresh = self._begun(org)
        if is_mine:
            self._refresh(org, refresh)
        elif not refresh.is_done.wait(2 * self._timeout):
            raise EngineUnavailable(f"{self.base_url}: nobody got an answer about {org!r} in time")
        if refresh.error is not None and (must_answer or not self._may_go_on(org)):
            raise refresh.error

    def _may_go_on(self, org: str) -> bool:
        """Whether the last answer still holds, though there is no new one."""
        with self._lock:
            view = self._orgs.get(org)
            if view is None or not view.has_answer:
                return False
            if monotonic() - view.asked_at <= self._stale_seconds:
                return True
            if self._serves_stale:
                self._counts["stale"] += 1
            return self._serves_stale

    def _refresh_beside(self, org: str) -> None:
        """Have a thread ask. Called under the lock."""
        self._to_refresh.append((org, self._begun(org)))
        if self._refreshers < REFRESHERS:
            self._refreshers += 1
            threading.Thread(target=self._refresh_all, name="tier-refresh", daemon=True).start()

    def _refresh_all(self) -> None:
        while True:
            with self._lock:
                if not self._to_refresh:
                    self._refreshers -= 1
                    return
                org, refresh = self._to_refresh.popleft()
            self._refresh(org, refresh)

    def _begun(self, org: str) -> _Refresh:
        view = self._orgs.get(org)
        if view is None:
            view = self._orgs[org] = OrgView()
            self._evict()
        self._orgs.move_to_end(org)
        view.begin()
        refresh = self._refreshes[org] = _Refresh()
        return refresh

    def _evict(self) -> None:
        for org in list(self._orgs)[: max(0, len(self._orgs) - self._max_orgs)]:
            if not self._orgs[org].holds and org not in self._refreshes:
                del self._orgs[org]

    def _refresh(self, org: str, refresh: _Refresh) -> None:
        """One question, whose answer or error is for all who wait. Raises nothing."""
        try:
            undelivered = self.outbox.undelivered(org)
            usages = self._usages(org)
            period = self._period(org, usages)
            with self._lock:
                view = self._orgs.get(org)
                if view is not None and self._refreshes.get(org) is refresh:  # else somebody has asked anew meanwhile
                    view.learn(refresh.asked_at, usages, undelivered, self._model, period)
        except TierError as error:
            refresh.error = error
        except Exception as error:  # those who wait must not wait for ever
            logger.exception("tier: asking about %r failed", org)
            refresh.error = EngineUnavailable(f"asking about {org!r} failed: {error}")
        finally:
            with self._lock:
                if self._refreshes.get(org) is refresh:
                    del self._refreshes[org]
                    self._orgs[org].since = None
                    if refresh.error is not None:
                        self._orgs[org].not_before = monotonic() + self._refusal_seconds
            refresh.is_done.set()

    def _usages(self, org: str) -> tuple[Usage, ...] | None:
        """The org's limits; None for an org that the server does not know."""
        try:
            return self._asked(wire.limits(org), wire.limits_in)
        except OrgNotFound:
            if self._default_plan is None:
                return None
        self._give_default_plan(org)
        return self._asked(wire.limits(org), wire.limits_in)

    def _give_default_plan(self, org: str) -> None:
        planned = PlannedPhase(None, (feature_plan(self._default_plan),))
        self._asked(wire.subscription(org, (planned,)), wire.done_in)

    def _period(self, org: str, usages: Sequence[Usage] | None) -> Period | None:
        """The billing period, where something is nearly used up: then it is told when to come back."""
        if usages is None:
            return None
        if not {usage.feature for usage in usages} <= self._model.features:
            self._pulled()  # somebody has pushed a plan since
        if not any(usage.limit is not None for usage in usages):
            return None
        with self._lock:
            view = self._orgs.get(org)
            known = None if view is None or not view.has_period else next(iter(view.entitlements.values())).period
            limits = {} if view is None else {name: found.limit for name, found in view.entitlements.items()}
        if known is not None and self._now_ms() < known.end_ms and limits == {one.feature: one.limit for one in usages}:
            return known
        return self._asked(wire.phase(org), wire.period_in)

    # ---- account calls ----------------------------------------------------------------------------------------------

    def _pull(self, op: Pull, is_final: bool) -> Model:
        if not is_final and monotonic() - self._pulled_at > self._refusal_seconds:
            raise Cold(self._pulled)
        return self._model

    def _pulled(self) -> None:
        at = monotonic()
        self._model = self._asked(wire.pull(), wire.model_in)
        self._pulled_at = at

    def _push(self, op: Push) -> tuple[PushResult, ...]:
        self._pulled()
        stored = self._model
        for name, plan in op.model.plans.items():
            conflict = plan_conflict(stored.plans[name], plan) if name in stored.plans else None
            if conflict is not None:
                raise conflict
        new = {name: plan for name, plan in op.model.plans.items() if name not in stored.plans}
        if new:
            for result in self._asked(wire.push(Model(new)), wire.push_results_in):
                if result.status != "ok":
                    raise PricingError(f"{result.feature}: {result.reason}", path=result.feature)
            self._pulled()
        return verdicts.push_results(op.model, stored.plans)

    def _schedule(self, op: Schedule) -> None:
        if op.must_exist:
            self._asked(wire.whois(op.org), wire.org_in)
        self._asked(wire.subscription(op.org, op.phases), wire.done_in)
        self.forget(op.org)

    def _update_org(self, op: UpdateOrg) -> None:
        self._asked(wire.info_update(op.org, op.info), wire.done_in)
        self.forget(op.org)

    def _describe(self, op: Describe) -> OrgRecord:
        return self._asked(wire.whois(op.org), wire.org_in)

    def _payment_methods(self, op: LookUpPaymentMethods) -> tuple[Mapping[str, Any], ...]:
        return self._asked(wire.payment_methods(op.org), wire.payment_methods_in)

    def _checkout(self, op: Checkout) -> str:
        return self._asked(wire.checkout(op), wire.checkout_in)

    def _look_up_phases(self, op: LookUpPhases) -> PhasesInfo:
        request = wire.phases(op.org)
        return wire.phases_in(request, self._answer(request), op.now_ms)

    def _identify(self, op: Identify) -> EngineInfo:
        return self._asked(wire.whoami(), wire.whoami_in)

    def _unsupported(self, op: ReadHistory | DeleteOrg) -> Any:
        call = "history" if isinstance(op, ReadHistory) else "delete_org"
        raise InvalidRequest(f"{call}: Tier's API has no such call", path=call)

    # ---- test clocks ------------------------------------------------------------------------------------------------

    def _make_clock(self, op: MakeClock) -> ClockRecord:
        return self._heard(op.name, wire.make_clock(op.name, op.present_ms))

    def _look_up_clock(self, op: LookUpClock, is_final: bool) -> ClockRecord:
        known = self._clocks.get(op.id)
        if known is None:
            raise Cold(lambda: self._arrived(op.id, ""))
        return known

    def _advance_clock(self, op: AdvanceClock) -> ClockRecord:
        name = self._clocks[op.id].name if op.id in self._clocks else ""
        verdicts.advanced(self._arrived(op.id, name), op.present_ms)
        self._heard(name, wire.advance_clock(op.id, op.present_ms))
        return self._arrived(op.id, name)

    def _heard(self, name: str, request: wire.Request) -> ClockRecord:
        record, _ = wire.clock_in(request, self._answer(request), name)
        self._clocks[record.id] = record
        return record

    def _arrived(self, id: str, name: str) -> ClockRecord:
        """The clock, once it stands still: an advance takes the server a while."""
        deadline = monotonic() + self._timeout
        while True:
            request = wire.clock(id)
            record, has_arrived = wire.clock_in(request, self._answer(request), name)
            self._clocks[id] = record
            if has_arrived:
                return record
            if monotonic() >= deadline:
                raise EngineUnavailable(f"{self.base_url}: {id!r} is still advancing")
            sleep(CLOCK_PAUSE_SECONDS)

    # ---- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        pass  # not the lock: who has it may be waiting for that of the outbox, which rests already

    def after_fork(self, *, is_child: bool) -> None:
        if is_child:  # the requests that run are the parent's, and so is what they hold
            self._reset()


def _flush_at_exit(reference: weakref.ref[HttpEngine]) -> None:
    engine = reference()
    if engine is not None and engine.reporter.is_running:
        engine.close()


async def _in_thread(work: Callable[[], R]) -> R:
    """Wait for the server beside the event loop. A task that is cancelled does not wait for the thread."""
    import anyio  # here: a program without an event loop need not import it

    limiter = limiter_of_loop("http", THREADS)
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)
