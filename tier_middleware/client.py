"""`Tier` and its async twin `AsyncTier`: what applications hold. Two thin shells around one `Core`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast, overload

from . import drive, flow
from .answers import (
    Answer,
    AsyncAnswer,
    ClockView,
    HistoryEntry,
    HistoryStep,
    Limits,
    OrgDetails,
    OrgIdentity,
    PaymentMethods,
    Phases,
    PhaseView,
    Reservation,
    Whoami,
    answer_for,
    clock_view,
    current_phase_view,
    details_view,
    history_view,
    phases_view,
    whoami_view,
)
from .clock import Clock
from .clocked import ClockedCore
from .core import Core, usage_in
from .engines.spool import spooled
from .engines.verdicts import refused
from .errors import TierError
from .flow import Admitted, Denied, Flow, Settlement
from .ledger import Step
from .model import Model
from .names import checked_clock, checked_feature
from .ops import ClockRecord, Identify, Kept, LookUpClock, Op, Pull, PushResult, Shortfall, Usage
from .orginfo import OrgInfo
from .prices import latest
from .settings import OnError, OnLoss, settings_for
from .transfer import encoded
from .transfer_checks import read

__all__ = ["AsyncClockedTier", "AsyncTier", "ClockedTier", "Tier"]

R = TypeVar("R")

LINES_AT_ONCE: Final = 1000  # of an export: a hop to a thread for each would cost more than the line


class _Shared:
    """What the twins have in common: how they are set up, and what they answer without asking the engine."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        pricing: Any = None,
        default_plan: str | None = None,
        timeout: float = 5.0,
        on_error: OnError = "allow",
        reservation_seconds: float = 900.0,
        flush_seconds: float = 10.0,
        on_loss: OnLoss | None = None,
        ledger_days: int | None = None,
        outbox: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing is opened yet; that happens at the first call, or with ``open()``.

        ``base_url, api_key, pricing, default_plan`` default to ``TIER_BASE_URL`` (else ``sqlite:///tier.db``),
        ``TIER_API_KEY``, ``TIER_PRICING`` (the path of a pricing.json, pushed when opening) and ``TIER_DEFAULT_PLAN``
        (for orgs that never had one). ``timeout`` is how many seconds to wait for the engine; ``on_error`` what to
        answer when that is not enough: ``"allow"``, ``"deny"`` or a callable of ``(request, error)``; of a Tier server
        also ``"stale"``: what it last said. Reservations expire after ``reservation_seconds``, of which every third
        they are renewed for as long as their work goes on; what a stream has added is counted every ``flush_seconds``,
        so that a killed process loses no more. ``on_loss`` is told ``(reports, reason)`` of usage that could not be
        counted; ``"fail"`` raises `UsageLost`. ``ledger_days``
        (``TIER_LEDGER_DAYS``, else 400: a year's billing period, and a month in which to ask about its bill) is for how
        long the ledger keeps entries before it sums them up day by day; 0 makes none. ``outbox`` (``TIER_OUTBOX``, else
        ``tier-outbox.db``, beside ``tier.db`` or in the current folder) is the file that keeps what a Tier server has
        not got yet, or could not be counted while the engine was away; processes may share it. ``clock`` answers the
        present.

        Raises `ConfigurationError` that names the option and the value.
        """
        settings = settings_for(
            os.environ,
            base_url=base_url,
            api_key=api_key,
            pricing=pricing,
            default_plan=default_plan,
            timeout=timeout,
            on_error=on_error,
            reservation_seconds=reservation_seconds,
            flush_seconds=flush_seconds,
            on_loss=on_loss,
            ledger_days=ledger_days,
            outbox=outbox,
        )
        self.core = Core(settings, clock)

    @classmethod
    def on(cls, core: Core) -> Self:
        """A client of an engine that another client has set up, such as the twin's: ``Tier.on(async_tier.core)``."""
        client = cls.__new__(cls)
        client.core = core
        return client

    @property
    def counts(self) -> dict[str, int]:
        """What this process counted about its counting, by reason, since it started.

        ``fail_open, fail_closed``: requests that the policy decided because the engine was away.
        ``over_limit.overage, .expired, .report, .fail_open``: units that passed a limit, by way.
        ``outbox.kept``: units that went to the outbox since the engine was away. ``outbox.delivered, .held, .buried``:
        what became of those, and of reports to a Tier server.
        ``lost.capped, lost.engine_unavailable, ...``: units that were not counted, by reason.
        """
        return self.core.counts

    def forget(self, org: str) -> None:
        """Ask the server at the next check of this org, rather than remember: after an upgrade elsewhere, say.

        Engines in this process remember nothing that others could change.
        """
        self.core.forget(org)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.core.settings.base_url!r})"

    def _settlement(self, reservation: Reservation, admitted: Admitted, *, is_done: bool) -> Settlement:
        """How a `reserve` block ended: its hold is kept or released; without the engine's hold, it is a report."""
        if admitted.holds is None:
            record = self.core.operations.record(reservation.org, reservation.feature, reservation.n)
            return Settlement(records=(record,) if is_done and reservation.n else ())
        hold = admitted.holds[0]
        if hold is None:
            return Settlement()
        return Settlement(kept=(Kept(hold, reservation.n),)) if is_done else Settlement(released=(hold,))


def _granted(reply: Admitted | Shortfall | Denied) -> Admitted:
    """The admission, or the error that says why there is none."""
    if isinstance(reply, Shortfall):
        raise refused(reply)
    if isinstance(reply, Denied):
        raise reply.error
    return reply


class Tier(_Shared):
    """Entitlements and usage, blocking. Safe to share between threads.

    Calls raise `InvalidRequest` for bad names, times and amounts, `EngineUnavailable` where the engine is away
    (`can` answers instead), and `ConfigurationError` where it cannot be opened.
    """

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Open the engine, push ``pricing`` and check ``default_plan`` now, rather than at the first call."""
        self.core.open()

    def close(self) -> None:
        """Let go of files and connections. A later call opens them again."""
        self.core.close()

    def run(self, steps: Flow[R]) -> R:
        """Perform a flow of `tier_middleware.flow` or a face on the engine, opening it first."""
        engine = self.core.engine
        if not self.core.is_open:
            try:
                self.core.ensure_open()
            except TierError as error:  # the flow decides what that means
                engine = self.core.engine_in_spite_of(error)
        return drive.run(steps, engine, self.core.timeout)

    def _perform(self, op: Op[R]) -> R:
        return self.run(flow.do(op))

    # ---- the quickstart ---------------------------------------------------------------------------------------------

    def can(self, org: str, feature: str, n: int = 1) -> Answer:
        """Whether the org may use n units of the feature now.

        Holds nothing: `reserve` does. 0 asks if anything is left.
        """
        op = self.core.operations.check(org, feature, n)
        reply = self.run(flow.check(op, self.core.tally.fails_open(self.core.settings.on_error, None)))
        return answer_for(Answer, org, feature, reply, self.report)

    def report(
        self,
        org: str,
        feature: str,
        n: int = 1,
        *,
        at: datetime | None = None,
        clobber: bool = False,
        key: str | None = None,
        note: str = "",
    ) -> None:
        """Count n units that were used; never refused for being over the limit.

        ``at`` says when (aware; default now; in a period of the subscription, at most five minutes ahead).
        ``clobber`` makes n the whole usage of that billing period. With the same ``key`` it counts once, however
        often it is sent; it is one for all orgs, and with other contents an `InvalidRequest`. ``note`` is for the
        ledger: see `history`.
        """
        recorded = self.run(flow.insisted(self.core.operations.report(org, feature, n, at, clobber, key, note)))
        self.core.tally.count("over_limit.report", recorded.over)

    def adjust(self, org: str, feature: str, delta: int, *, note: str = "", key: str | None = None) -> None:
        """Correct the usage of the current billing period by ``delta`` units, up or down; never below 0.

        ``note`` says why, in the ledger: see `history`. With the same ``key`` it counts once.
        """
        self.run(flow.insisted(self.core.operations.adjustment(org, feature, delta, note, key)))

    @contextmanager
    def reserve(self, org: str, feature: str, n: int = 1) -> Iterator[Reservation]:
        """Hold n units for a piece of work: counted when the block ends, given back when it raises.

        Raises `LimitReached`, `NotEntitled` or `OrgNotFound` when the answer is no: the block never runs.
        """
        op = self.core.operations.checked_reserve(org, feature, n)
        admitted = _granted(self.run(flow.admit(op, self.core.tally.fails_open(self.core.settings.on_error, None))))
        reservation = Reservation(org, feature, n)
        with self.core.held(admitted.holds):
            try:
                yield reservation
            except BaseException:
                self._settle(self._settlement(reservation, admitted, is_done=False))
                raise
            self._settle(self._settlement(reservation, admitted, is_done=True))

    def _settle(self, settlement: Settlement) -> None:
        self.run(self.core.settling(settlement))

    # ---- plans and subscriptions ------------------------------------------------------------------------------------

    def push(self, model: Any) -> tuple[PushResult, ...]:
        """Store a pricing model: a dict, a path, JSON text or a `Model`.

        A plan that is stored already is left alone (``failed, plan already exists``, as Tier says it); one with other
        content under the same version is a `PricingError`, and then nothing is stored.
        """
        return self._perform(self.core.operations.push(model))

    def pull(self) -> Model:
        """All plans that were ever pushed."""
        return self._perform(Pull())

    def pull_latest(self) -> Model:
        """The newest version of each plan."""
        return latest(self._perform(Pull()))

    def subscribe(
        self,
        org: str,
        features: str | Sequence[str] | None = None,
        *,
        trial_days: int = 0,
        effective: datetime | None = None,
        info: OrgInfo | Mapping[str, Any] | None = None,
        payment_method_id: str | None = None,
    ) -> None:
        """Put the org on plans (``plan:pro@1``) or features of plans (``feature:x@plan:pro@1``), now or from a time on.

        Replaces what it had from then on, and what was pending; billing periods go on from the start of the
        subscription. With ``trial_days`` a trial phase comes first. ``info`` and ``payment_method_id`` are kept as
        `update_org` does. Makes the org known.
        """
        schedule = None if features is None else self.core.operations.subscription(org, features, trial_days, effective)
        self.run(flow.subscribe(self.core.operations.update_with(org, info, payment_method_id), schedule))

    def schedule(
        self,
        org: str,
        phases: Sequence[Mapping[str, Any]],
        *,
        info: OrgInfo | Mapping[str, Any] | None = None,
        payment_method_id: str | None = None,
    ) -> None:
        """Plan the org's phases: ``[{"features": ["plan:a@1"], "trial": True}, {"effective": day, "features": ...}]``.

        The first begins now unless ``effective`` (an aware datetime) says otherwise; one without features cancels. What
        the org has now goes on until then; what was pending is replaced.
        """
        update = self.core.operations.update_with(org, info, payment_method_id)
        self.run(flow.subscribe(update, self.core.operations.schedule(org, phases)))

    def cancel(self, org: str, *, at: datetime | None = None) -> None:
        """End the org's subscription now, or at a time to come. Raises `OrgNotFound`.

        What begins before ``at``, such as what follows a trial, still does; what is pending after it does not, and a
        cancellation that was pending is moved.
        """
        self._perform(self.core.operations.cancellation(org, at))

    def checkout(
        self,
        org: str,
        success_url: str,
        *,
        features: str | Sequence[str] | None = None,
        trial_days: int = 0,
        cancel_url: str | None = None,
        require_billing_address: bool = False,
        tax: Mapping[str, Any] | None = None,
    ) -> str:
        """The address of a page on which the org pays for plans or features, or, without any, leaves how it will pay.

        Of Tier servers; raises `ConfigurationError` on engines that take no payments.
        """
        operations = self.core.operations
        return self._perform(
            operations.checkout(org, success_url, features, trial_days, cancel_url, require_billing_address, tax)
        )

    def update_org(self, org: str, info: OrgInfo | Mapping[str, Any]) -> None:
        """Change what is known of an org: an empty text changes nothing, and deletes a key of the metadata.

        Makes the org known. Raises `InvalidRequest` with Tier's codes ``invalid_email`` and ``invalid_metadata``.
        """
        self._perform(self.core.operations.update(org, info))

    # ---- questions --------------------------------------------------------------------------------------------------

    def lookup_limits(self, org: str) -> Limits:
        """Usage and limits of all the org's features. Raises `OrgNotFound`."""
        return Limits(org, self._perform(self.core.operations.look_up(org)))

    def lookup_limit(self, org: str, feature: str) -> Usage:
        """Usage and limit of one feature; used 0 and limit 0 where the org has not got it. Raises `OrgNotFound`."""
        return usage_in(self.lookup_limits(org).usage, checked_feature(feature))

    @overload
    def history(
        self, org: str, feature: str, since: datetime | None = None, until: datetime | None = None, step: None = None
    ) -> tuple[HistoryEntry, ...]: ...

    @overload
    def history(
        self, org: str, feature: str, since: datetime | None = None, until: datetime | None = None, *, step: Step
    ) -> tuple[HistoryStep, ...]: ...

    def history(
        self,
        org: str,
        feature: str,
        since: datetime | None = None,
        until: datetime | None = None,
        step: Step | None = None,
    ) -> Any:
        """What changed the usage of an org's feature from ``since`` up to, not including, ``until`` (aware datetimes).

        Every commit, report and adjustment leaves one entry; answered are those whose ``at`` is in that time, in its
        order, in all plans and billing periods. With a ``step`` of ``"day"``, ``"hour"`` or a `timedelta`: by how much
        the usage changed in each step, also where it did not, up to ``until`` or now. Steps are cut in UTC, at whole
        multiples of their length since 1970: days begin at 00:00 UTC and have 24 hours, since UTC has no daylight
        saving time; the first and the last hold only what lies between ``since`` and ``until``. What is older than
        ``ledger_days`` is known by the day, as at its beginning.

        Answers at most 10,000 entries or steps, and raises `InvalidRequest` where there are more: nothing is cut off.
        Raises `OrgNotFound`.
        """
        return history_view(org, feature, self._perform(self.core.operations.history(org, feature, since, until, step)))

    def lookup_phase(self, org: str) -> PhaseView | None:
        """The org's current phase, None without a subscription. Raises `OrgNotFound`."""
        return current_phase_view(self._perform(self.core.operations.look_up_phases(org)))

    def lookup_phases(self, org: str) -> Phases:
        """The org's current phase and those to come. Raises `OrgNotFound`."""
        return phases_view(org, self._perform(self.core.operations.look_up_phases(org)))

    def lookup_org(self, org: str) -> OrgDetails:
        """Who an org is and what is known of it. Raises `OrgNotFound`."""
        return details_view(org, self._perform(self.core.operations.describe(org)))

    def lookup_payment_methods(self, org: str) -> PaymentMethods:
        """The org's payment methods: none on an engine that takes no payments. Raises `OrgNotFound`."""
        return PaymentMethods(org, self._perform(self.core.operations.payment_methods(org)))

    def whois(self, org: str) -> OrgIdentity:
        """Who an org is. Raises `OrgNotFound`."""
        return OrgIdentity(org, self._perform(self.core.operations.describe(org)).stripe_id)

    def whoami(self) -> Whoami:
        """Which engine answers."""
        return whoami_view(self._perform(Identify()))

    def delete_org(self, org: str) -> None:
        """Forget an org, its subscription and its usage. Raises `OrgNotFound`.

        Work of the org that is under way goes on, and what it used is forgotten too: no loss is counted for it.
        """
        self._perform(self.core.operations.delete(org))

    # ---- test clocks ------------------------------------------------------------------------------------------------

    def with_clock(self, name: str, start: datetime) -> ClockedTier:
        """Make a test clock that stands at ``start`` (aware; cut off to whole seconds), and a client in its time.

        Orgs that are made with that client are seen only with it, and others are not; plans are shared. The clock is
        kept by the engine: see `on_clock`.
        """
        made = self.core.operations.new_clock(name, start)
        return ClockedTier.under(self.core, self.run(flow.insisted(made)))

    def on_clock(self, id: str) -> ClockedTier:
        """A client in the time of a test clock that exists. Raises `InvalidRequest` that names an unknown id."""
        return ClockedTier.under(self.core, self._perform(LookUpClock(checked_clock(id))))

    # ---- moving to another engine -----------------------------------------------------------------------------------

    def export(self) -> Generator[bytes, None, None]:
        """All that is stored, as JSON lines: plans, orgs with their phases, usage, ledger, and keys.

        As of the moment of the first line; others go on writing meanwhile. Open reservations are left out: they belong
        to processes that work with this engine. What `load` has read exports to the same lines.
        """
        with closing(self.core.portable().export()) as lines:
            yield from map(encoded, lines)

    def load(self, lines: Iterable[bytes | str], *, replace: bool = False) -> None:
        """Take in the lines of an `export`: all of them, or, where anything is wrong with one, nothing.

        Orgs that are here already are refused, or with ``replace`` deleted first: their open reservations are dropped,
        and what that work uses is counted nowhere (see `delete_org`). All lines are read and checked before the first
        is stored. Other writers wait while they are stored, so load what is large before an application uses the
        engine. Raises `InvalidRequest` that names the line, the field and the value.
        """
        engine = self.core.portable()
        with spooled(read(lines)) as checked:
            drive.load(engine, checked, self.core.timeout, replace=replace)


class AsyncTier(_Shared):
    """The async twin of `Tier`: the same calls, awaited. Works on asyncio and trio, and on several event loops."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def open(self) -> None:
        """Open the engine, push ``pricing`` and check ``default_plan`` now, rather than at the first call."""
        await drive.in_thread(self.core.open, self.core.engine)

    async def aclose(self) -> None:
        """Let go of files and connections. A later call opens them again."""
        await drive.in_thread(self.core.close, self.core.engine)

    async def run(self, steps: Flow[R]) -> R:
        """Perform a flow of `tier_middleware.flow` or a face on the engine, opening it first."""
        engine = self.core.engine
        if not self.core.is_open:
            try:
                await drive.in_thread(self.core.ensure_open, self.core.engine)
            except TierError as error:  # the flow decides what that means
                engine = self.core.engine_in_spite_of(error)
        return await drive.arun(steps, engine, self.core.timeout)

    async def _perform(self, op: Op[R]) -> R:
        return await self.run(flow.do(op))

    # ---- the quickstart ---------------------------------------------------------------------------------------------

    async def can(self, org: str, feature: str, n: int = 1) -> AsyncAnswer:
        """`Tier.can`, awaited."""
        op = self.core.operations.check(org, feature, n)
        reply = await self.run(flow.check(op, self.core.tally.fails_open(self.core.settings.on_error, None)))
        return answer_for(AsyncAnswer, org, feature, reply, self.report)

    async def report(
        self,
        org: str,
        feature: str,
        n: int = 1,
        *,
        at: datetime | None = None,
        clobber: bool = False,
        key: str | None = None,
        note: str = "",
    ) -> None:
        """`Tier.report`, awaited."""
        recorded = await self.run(flow.insisted(self.core.operations.report(org, feature, n, at, clobber, key, note)))
        self.core.tally.count("over_limit.report", recorded.over)

    async def adjust(self, org: str, feature: str, delta: int, *, note: str = "", key: str | None = None) -> None:
        """`Tier.adjust`, awaited."""
        await self.run(flow.insisted(self.core.operations.adjustment(org, feature, delta, note, key)))

    @asynccontextmanager
    async def reserve(self, org: str, feature: str, n: int = 1) -> AsyncIterator[Reservation]:
        """`Tier.reserve`, awaited."""
        op = self.core.operations.checked_reserve(org, feature, n)
        reservation, admitted = Reservation(org, feature, n), list[Admitted]()

        def reserving() -> Flow[None]:
            reply = yield from flow.admit(op, self.core.tally.fails_open(self.core.settings.on_error, None))
            admitted.append(_granted(reply))  # here: a task that is cancelled meanwhile must give it back

        try:
            await self.run(reserving())
            with self.core.held(admitted[0].holds):
                yield reservation
        except BaseException:
            if admitted:
                await self._settle(self._settlement(reservation, admitted[0], is_done=False))
            raise
        await self._settle(self._settlement(reservation, admitted[0], is_done=True))

    async def _settle(self, settlement: Settlement) -> None:
        await self.run(self.core.settling(settlement))

    # ---- plans and subscriptions ------------------------------------------------------------------------------------

    async def push(self, model: Any) -> tuple[PushResult, ...]:
        """`Tier.push`, awaited."""
        return await self._perform(self.core.operations.push(model))

    async def pull(self) -> Model:
        """`Tier.pull`, awaited."""
        return await self._perform(Pull())

    async def pull_latest(self) -> Model:
        """`Tier.pull_latest`, awaited."""
        return latest(await self._perform(Pull()))

    async def subscribe(
        self,
        org: str,
        features: str | Sequence[str] | None = None,
        *,
        trial_days: int = 0,
        effective: datetime | None = None,
        info: OrgInfo | Mapping[str, Any] | None = None,
        payment_method_id: str | None = None,
    ) -> None:
        """`Tier.subscribe`, awaited."""
        schedule = None if features is None else self.core.operations.subscription(org, features, trial_days, effective)
        await self.run(flow.subscribe(self.core.operations.update_with(org, info, payment_method_id), schedule))

    async def schedule(
        self,
        org: str,
        phases: Sequence[Mapping[str, Any]],
        *,
        info: OrgInfo | Mapping[str, Any] | None = None,
        payment_method_id: str | None = None,
    ) -> None:
        """`Tier.schedule`, awaited."""
        update = self.core.operations.update_with(org, info, payment_method_id)
        await self.run(flow.subscribe(update, self.core.operations.schedule(org, phases)))

    async def cancel(self, org: str, *, at: datetime | None = None) -> None:
        """`Tier.cancel`, awaited."""
        await self._perform(self.core.operations.cancellation(org, at))

    async def checkout(
        self,
        org: str,
        success_url: str,
        *,
        features: str | Sequence[str] | None = None,
        trial_days: int = 0,
        cancel_url: str | None = None,
        require_billing_address: bool = False,
        tax: Mapping[str, Any] | None = None,
    ) -> str:
        """`Tier.checkout`, awaited."""
        operations = self.core.operations
        return await self._perform(
            operations.checkout(org, success_url, features, trial_days, cancel_url, require_billing_address, tax)
        )

    async def update_org(self, org: str, info: OrgInfo | Mapping[str, Any]) -> None:
        """`Tier.update_org`, awaited."""
        await self._perform(self.core.operations.update(org, info))

    # ---- questions --------------------------------------------------------------------------------------------------

    async def lookup_limits(self, org: str) -> Limits:
        """`Tier.lookup_limits`, awaited."""
        return Limits(org, await self._perform(self.core.operations.look_up(org)))

    async def lookup_limit(self, org: str, feature: str) -> Usage:
        """`Tier.lookup_limit`, awaited."""
        return usage_in((await self.lookup_limits(org)).usage, checked_feature(feature))

    @overload
    async def history(
        self, org: str, feature: str, since: datetime | None = None, until: datetime | None = None, step: None = None
    ) -> tuple[HistoryEntry, ...]: ...

    @overload
    async def history(
        self, org: str, feature: str, since: datetime | None = None, until: datetime | None = None, *, step: Step
    ) -> tuple[HistoryStep, ...]: ...

    async def history(
        self,
        org: str,
        feature: str,
        since: datetime | None = None,
        until: datetime | None = None,
        step: Step | None = None,
    ) -> Any:
        """`Tier.history`, awaited. Read in a thread: it may take longer than an event loop should wait."""
        return await drive.in_thread(
            lambda: Tier.on(self.core).history(org, feature, since, until, cast("Any", step)), self.core.engine
        )

    async def lookup_phase(self, org: str) -> PhaseView | None:
        """`Tier.lookup_phase`, awaited."""
        return current_phase_view(await self._perform(self.core.operations.look_up_phases(org)))

    async def lookup_phases(self, org: str) -> Phases:
        """`Tier.lookup_phases`, awaited."""
        return phases_view(org, await self._perform(self.core.operations.look_up_phases(org)))

    async def lookup_org(self, org: str) -> OrgDetails:
        """`Tier.lookup_org`, awaited."""
        return details_view(org, await self._perform(self.core.operations.describe(org)))

    async def lookup_payment_methods(self, org: str) -> PaymentMethods:
        """`Tier.lookup_payment_methods`, awaited."""
        return PaymentMethods(org, await self._perform(self.core.operations.payment_methods(org)))

    async def whois(self, org: str) -> OrgIdentity:
        """`Tier.whois`, awaited."""
        return OrgIdentity(org, (await self._perform(self.core.operations.describe(org))).stripe_id)

    async def whoami(self) -> Whoami:
        """`Tier.whoami`, awaited."""
        return whoami_view(await self._perform(Identify()))

    async def delete_org(self, org: str) -> None:
        """`Tier.delete_org`, awaited."""
        await self._perform(self.core.operations.delete(org))

    # ---- test clocks ------------------------------------------------------------------------------------------------

    async def with_clock(self, name: str, start: datetime) -> AsyncClockedTier:
        """`Tier.with_clock`, awaited."""
        made = self.core.operations.new_clock(name, start)
        return AsyncClockedTier.under(self.core, await self.run(flow.insisted(made)))

    async def on_clock(self, id: str) -> AsyncClockedTier:
        """`Tier.on_clock`, awaited."""
        return AsyncClockedTier.under(self.core, await self._perform(LookUpClock(checked_clock(id))))

    # ---- moving to another engine -----------------------------------------------------------------------------------

    async def export(self) -> AsyncGenerator[bytes, None]:
        """`Tier.export`, as an async iterator. Read in threads, some lines at a time."""
        lines = Tier.on(self.core).export()
        try:
            while batch := await drive.in_thread(lambda: tuple(islice(lines, LINES_AT_ONCE)), self.core.engine):
                for line in batch:
                    yield line
        finally:
            await drive.in_thread(lines.close, self.core.engine)

    async def load(self, lines: Iterable[bytes | str], *, replace: bool = False) -> None:
        """`Tier.load`, awaited. ``lines`` are read in a thread."""
        await drive.in_thread(lambda: Tier.on(self.core).load(lines, replace=replace), self.core.engine)


class _Clocked(_Shared):
    """What clocked clients have in common. They are made by ``with_clock`` and ``on_clock``."""

    core: ClockedCore

    @classmethod
    def under(cls, core: Core, clock: ClockRecord) -> Self:
        """A client of the engine that another client has set up, in the time of a clock."""
        return cls.on(ClockedCore(core, clock_view(clock)))

    @property
    def clock(self) -> ClockView:
        """The clock, as this client's last call found it: another process may have advanced it since."""
        return self.core.clock

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.core.settings.base_url!r}, {self.clock!r})"


class ClockedTier(_Clocked, Tier):
    """A `Tier` in the time of a test clock, with orgs of its own. It counts (``counts``) for itself."""

    def advance(self, to: datetime) -> None:
        """Move the clock forwards (aware; cut off to whole seconds); every client of it is in the new time at once.

        Raises `InvalidRequest` for backwards and for the moment that it is.
        """
        self.core.clock = clock_view(self._perform(self.core.operations.advance(to)))


class AsyncClockedTier(_Clocked, AsyncTier):
    """The async twin of `ClockedTier`."""

    async def advance(self, to: datetime) -> None:
        """`ClockedTier.advance`, awaited."""
        self.core.clock = clock_view(await self._perform(self.core.operations.advance(to)))
