"""The HTTP engine: checks from what it knows of an org, reports through the outbox, everything else by a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from ...clock import Milliseconds
from ...errors import ConfigurationError
from ...ops import (
    Adjust,
    AdvanceClock,
    Busy,
    Check,
    Checkout,
    Commit,
    DeleteOrg,
    Describe,
    Identify,
    LookUp,
    LookUpClock,
    LookUpKeys,
    LookUpPaymentMethods,
    LookUpPhases,
    MakeClock,
    Op,
    Pull,
    Push,
    ReadChanges,
    ReadHistory,
    Record,
    Release,
    Renew,
    Reserve,
    Schedule,
    UpdateOrg,
    Usage,
)
from ...reporting.batches import Policy
from ...reporting.outbox import Outbox
from ...reporting.reporter import Reporter
from .accounts import Accounts
from .clocks import Clocks
from .delivery import Delivery
from .follower import Follower
from .local import Local
from .orgs import Ages, Orgs
from .plans import Plans
from .server import Cold, Server, There
from .shared import Shared
from .threads import in_thread

__all__ = ["HttpEngine"]

R = TypeVar("R")
Decide = Callable[[Any, bool], Any]
"""Performs an operation in this process. Raises `Cold` where the server must be asked before, unless it is final."""
Call = Callable[[Any], Any]
"""Has the server perform an operation: a call, or several."""

FRESH_SECONDS: Final = 30.0
STALE_SECONDS: Final = 60.0
REFUSAL_SECONDS: Final = 2.0
MAX_ORGS: Final = 10_000


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
        self._server = Server(base_url, api_key, is_loopback=is_loopback, timeout=timeout)
        self._plans = Plans(self._server)
        self.orgs = Orgs(
            self._server,
            self._plans,
            outbox.undelivered,
            now_ms,
            ages=Ages(fresh_seconds, stale_seconds, refusal_seconds, serves_stale),
            max_orgs=max_orgs,
            default_plan=default_plan,
        )
        delivery = Delivery(
            self._server, default_plan, self.orgs.give_default_plan, lambda done: self._shared.late(done)
        )
        self.reporter = Reporter(
            outbox,
            delivery.deliver,
            now_ms,
            ambiguous=ambiguous,
            send_seconds=timeout,
            is_away=lambda: self._server.is_left_alone,
            deliver_some=delivery.deliver_some,
            most=delivery.most,
        )
        self._server.when_back = self.reporter.resume
        self._local = Local(self.orgs, self._plans, outbox, self.reporter.wake)
        self._shared = Shared(self._server, self.orgs, self._local, outbox, self.reporter, serves_stale=serves_stale)
        self._follower = Follower(self._server, self.orgs)
        self._clocks = Clocks(self._server)
        self._decided = self._decided_here()
        self._decided_there = {**self._decided, **self._shared_with_others()}
        self._called = self._called_there()

    # An operation is in one of two tables: it is decided here, or the server is called. Where the server is one of
    # ours, some have their decision from there.

    def _decided_here(self) -> dict[type[Op[Any]], Decide]:
        local, shared = self._local, self._shared  # which knows whose a hold is
        return {
            Reserve: local.reserve,
            Check: local.check,
            LookUp: local.look_up,
            LookUpKeys: local.look_up_keys,
            Commit: shared.commit,
            Renew: shared.renew,
            Release: shared.release,
            Record: local.record,
            Adjust: local.adjust,
            LookUpClock: self._clocks.look_up,
            Pull: self._plans.pull,
        }

    def _shared_with_others(self) -> dict[type[Op[Any]], Decide]:
        shared = self._shared
        return {
            Reserve: shared.reserve,
            Check: shared.check,
            LookUp: shared.look_up,
            LookUpKeys: shared.look_up_keys,
            Record: shared.record,
            Adjust: shared.adjust,
        }

    def _called_there(self) -> dict[type[Op[Any]], Call]:
        accounts = Accounts(self._server, self.orgs.forget)
        return {
            LookUpPhases: accounts.phases,
            Schedule: accounts.schedule,
            Describe: accounts.describe,
            LookUpPaymentMethods: accounts.payment_methods,
            Checkout: accounts.checkout,
            UpdateOrg: accounts.update,
            Push: self._plans.push,
            Identify: accounts.identify,
            MakeClock: self._clocks.make,
            AdvanceClock: self._clocks.advance,
            ReadChanges: self._shared.read_changes,
            ReadHistory: accounts.unsupported,
            DeleteOrg: accounts.unsupported,
        }

    # ---- the port ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self.outbox.open()
        if self.outbox.next_due_ms() is not None:
            self.reporter.wake()  # what an earlier process has left

    def attempt_at_once(self, op: Op[R]) -> R:
        """`attempt`, where no network is needed; else `Busy`, with nothing done."""
        decide = self._decisions.get(type(op))
        if decide is None:
            raise Busy
        reply: R = decide(op, False)
        return reply

    def attempt(self, op: Op[R]) -> R:
        decisions, is_final = self._decisions, False
        while (decide := decisions.get(type(op))) is not None:
            try:
                return cast("R", decide(op, is_final))
            except There as there:
                try:
                    return cast("R", there.ask())
                except ConfigurationError:
                    if self._decisions is decisions:
                        raise
            except Cold as cold:
                cold.ask()
            decisions, is_final = self._again(decisions)
        return cast("R", self._called[type(op)](op))

    async def aattempt(self, op: Op[R]) -> R:
        """`attempt`, awaited: what asks the server does so in a thread, and what holds capacity there is given back
        where nobody waits for it any more.
        """
        decisions, is_final = self._decisions, False
        while (decide := decisions.get(type(op))) is not None:
            try:
                return cast("R", decide(op, is_final))
            except There as there:
                try:
                    return cast("R", await in_thread(there.ask, there.undo))
                except ConfigurationError:
                    if self._decisions is decisions:
                        raise
            except Cold as cold:
                await in_thread(cold.ask)
            decisions, is_final = self._again(decisions)
        return await in_thread(lambda: cast("R", self._called[type(op)](op)))

    def _again(self, before: dict[type[Op[Any]], Decide]) -> tuple[dict[type[Op[Any]], Decide], bool]:
        """How to decide once the server was asked, and whether that is enough: whether it is one of ours, nobody knew
        before it was asked, and it may have been replaced.
        """
        decisions = self._decisions
        return decisions, decisions is before

    @property
    def _decisions(self) -> dict[type[Op[Any]], Decide]:
        if not self._shared.is_there:
            return self._decided
        self._follower.wake()
        return self._decided_there

    def close(self) -> None:
        """Deliver what is in the outbox, for at most ``timeout`` seconds; what is left is sent by the next start.

        A server that is left alone at the moment is not waited for.
        """
        self._follower.stop()
        self.reporter.close()
        self._server.close()

    def forget(self, org: str) -> None:
        """Ask the server at the next check of this org."""
        self.orgs.forget(org)

    def glance(self, org: str) -> tuple[Usage, ...]:
        """What is known of an org's usage without asking. Raises `EngineUnavailable` where nothing is."""
        return self._local.glance(org)

    @property
    def counts(self) -> dict[str, int]:
        """What became of reports, in units, and how often an old answer was all there was."""
        return dict(self.orgs.counts + self._shared.counts + self.reporter.counts)
