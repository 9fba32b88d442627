"""What is known of orgs, and asking the server about them: one question at a time for each.

What is known is asked for anew after ``fresh`` seconds, beside the requests, and is not used after ``stale``. A no is
asked for again after ``refusal`` seconds, before it is said, so that an upgrade shows at once.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Final, NamedTuple

from ... import calls, forks, wire
from ...clock import Milliseconds, monotonic
from ...errors import ConfigurationError, EngineUnavailable, OrgNotFound, TierError
from ...extension import asking
from ...extension.forms import RESERVE
from ...names import clock_of, feature_plan
from ...ops import Granted, Kept, LookUp, Reserve, Usage
from ...policy import Period, PlannedPhase
from ...reporting.batches import Batch
from .limits import Event, OrgView
from .plans import Plans
from .server import Cold, Server

__all__ = ["Ages", "Orgs"]

logger: Final = logging.getLogger("tier_middleware")

RECENT: Final = 100  # orgs that are asked for at once where anything may have changed
REFRESHERS: Final = 4  # threads at most, which end when there is nothing to refresh


class Ages(NamedTuple):
    """How old, in seconds, what is known may be. With ``serves_stale`` it may be of any age while a server is away."""

    fresh: float
    stale: float
    refusal: float
    serves_stale: bool = False


class _Refresh:
    """One question to the server about an org, for all who want to know."""

    __slots__ = ("asked_at", "error", "is_done")

    def __init__(self) -> None:
        self.asked_at = monotonic()
        self.is_done = threading.Event()
        self.error: TierError | None = None


class Orgs:
    """``views`` has what is known, at most ``max_orgs`` of them, those without holds. ``lock`` guards them.

    ``undelivered`` answers what the server may not have counted of an org.
    """

    def __init__(
        self,
        server: Server,
        plans: Plans,
        undelivered: Callable[[str], Sequence[Batch]],
        now_ms: Milliseconds,
        *,
        ages: Ages,
        max_orgs: int,
        default_plan: str | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._server = server
        self._plans = plans
        self._undelivered = undelivered
        self._now_ms = now_ms
        self._ages = ages
        self._max_orgs = max_orgs
        self._default_plan = default_plan
        self._reset()
        forks.watch(self)

    def _reset(self) -> None:
        self.lock = threading.Lock()
        self.views: OrderedDict[str, OrgView] = OrderedDict()
        self._refreshes: dict[str, _Refresh] = {}
        self._to_refresh: deque[tuple[str, _Refresh]] = deque()
        self._refreshers = 0

    # ---- for decisions, under the lock ------------------------------------------------------------------------------

    def view(self, org: str, is_final: bool) -> OrgView:
        """What is known of an org; raises `Cold` where that is too old to decide by."""
        view = self.views.get(org)
        if is_final and view is not None and view.has_answer:
            return view
        now = monotonic()
        age = inf if view is None else now - view.asked_at
        if view is None or age > self._ages.stale or clock_of(org):  # a test clock may be moved by anybody
            raise Cold(lambda: self.ask(org))
        self._freshen(org, view)
        return view

    def _freshen(self, org: str, view: OrgView) -> None:
        now = monotonic()
        if now - view.asked_at > self._ages.fresh and org not in self._refreshes and now >= view.not_before:
            self._refresh_beside(org)
        self.views.move_to_end(org)

    def see(self, org: str, is_final: bool) -> None:
        """Know an org well enough to show its limits; raises `Cold` where nothing is known of it."""
        with self.lock:
            view = self.answered(org)
            if not is_final and (view is None or clock_of(org)):
                raise Cold(lambda: self.ask(org))
            if view is not None:
                self._freshen(org, view)

    def is_known(self, org: str) -> bool:
        """Whether the server has ever said anything of an org."""
        with self.lock:
            return self.answered(org) is not None

    def took(self, op: Reserve, granted: Granted) -> bool:
        """Show what the server has granted this process; answers whether the features are known here."""
        with self.lock:
            view = self.views.get(op.org)
            if view is None:
                return False
            view.take(granted, op.expires_ms)
            return all(demand.feature in view.entitlements for demand in op.demands)

    def heard(self, org: str, usages: Sequence[Usage], asked_at: float) -> None:
        """Show what the server has said of an org to somebody who had all that was done here delivered before."""
        with self.lock:
            view = self.answered(org)
            if view is not None and view.since is None:  # else somebody asks already
                view.learn(asked_at, usages, (), self._plans.model, None)

    def settled(self, settled: Iterable[Kept]) -> None:
        """Show what holds of the server came to."""
        with self.lock:
            for kept in settled:
                view = self.views.get(kept.hold.org)
                if view is not None and view.let_go(kept.hold.id) is not None:
                    view.count(Event(kept.hold.feature, kept.n))

    def changed(self, orgs: Sequence[str] | None) -> None:
        """Ask anew about orgs whose limits have changed; None: about those that were used of late, and about all others
        when they are needed.
        """
        with self.lock:
            if orgs is None:
                for view in self.views.values():
                    view.asked_at = -inf
                orgs = list(self.views)[-RECENT:]
            for org in orgs:
                if org in self.views:
                    self.views[org].asked_at = -inf
                    self._refreshes.pop(org, None)  # one that is under way may have been answered before
                    self._refresh_beside(org)

    def doubt(self, org: str, view: OrgView) -> None:
        """A no that is not of this moment is asked for again."""
        if monotonic() - view.asked_at > self._ages.refusal:
            raise Cold(lambda: self.ask(org))

    def answered(self, org: str) -> OrgView | None:
        """What the server said of an org, however long ago; None where it was not asked."""
        view = self.views.get(org)
        return view if view is not None and view.has_answer else None

    # ---- asking -----------------------------------------------------------------------------------------------------

    def forget(self, org: str) -> None:
        """Ask the server at the next check of this org."""
        with self.lock:
            view = self.views.get(org)
            if view is not None:
                view.asked_at = -inf
            self._refreshes.pop(org, None)  # one that is under way may have been answered before

    def ask(self, org: str, *, must_answer: bool = False) -> None:
        """Ask the server about an org, or wait for who is asking already. Where it is away, its last answer may do."""
        with self.lock:
            refresh = self._refreshes.get(org)
            is_mine = refresh is None
            if refresh is None:
                refresh = self._begun(org)
        if is_mine:
            self._refresh(org, refresh)
        elif not refresh.is_done.wait(2 * self._server.timeout):
            raise EngineUnavailable(f"{self._server.base_url}: nobody got an answer about {org!r} in time")
        if refresh.error is not None and (must_answer or not self._may_go_on(org)):
            raise refresh.error

    def _may_go_on(self, org: str) -> bool:
        """Whether the last answer still holds, though there is no new one."""
        with self.lock:
            view = self.answered(org)
            if view is None:
                return False
            if monotonic() - view.asked_at <= self._ages.stale:
                return True
            if self._ages.serves_stale:
                self.counts["stale"] += 1
            return self._ages.serves_stale

    def _refresh_beside(self, org: str) -> None:
        """Have a thread ask. Called under the lock."""
        if self._refreshers < REFRESHERS:
            self._refreshers += 1
            try:
                threading.Thread(target=self._refresh_all, name="tier-refresh", daemon=True).start()
            except RuntimeError:  # at the interpreter's end, or of too many: what is known does for now
                self._refreshers -= 1
        if self._refreshers:
            self._to_refresh.append((org, self._begun(org)))

    def _refresh_all(self) -> None:
        while True:
            with self.lock:
                if not self._to_refresh:
                    self._refreshers -= 1
                    return
                org, refresh = self._to_refresh.popleft()
            self._refresh(org, refresh)

    def _begun(self, org: str) -> _Refresh:
        view = self.views.get(org)
        if view is None:
            view = self.views[org] = OrgView()
            self._evict()
        self.views.move_to_end(org)
        view.begin()
        refresh = self._refreshes[org] = _Refresh()
        return refresh

    def _evict(self) -> None:
        for org in list(self.views)[: max(0, len(self.views) - self._max_orgs)]:
            if not self.views[org].holds and org not in self._refreshes:
                del self.views[org]

    def _refresh(self, org: str, refresh: _Refresh) -> None:
        """One question, whose answer or error is for all who wait. Raises nothing."""
        try:
            undelivered = self._undelivered(org)
            usages = self._usages(org)
            period = self._period(org, usages)
            with self.lock:
                view = self.views.get(org)
                if view is not None and self._refreshes.get(org) is refresh:  # else somebody has asked anew meanwhile
                    view.learn(refresh.asked_at, usages, undelivered, self._plans.model, period)
        except TierError as error:
            refresh.error = error
        except Exception as error:  # those who wait must not wait for ever
            logger.exception("tier: asking about %r failed", org)
            refresh.error = EngineUnavailable(f"asking about {org!r} failed: {error}")
        finally:
            with self.lock:
                if self._refreshes.get(org) is refresh:
                    del self._refreshes[org]
                    self.views[org].since = None
                    if refresh.error is not None:
                        self.views[org].not_before = monotonic() + self._ages.refusal
            refresh.is_done.set()

    # ---- what is asked ----------------------------------------------------------------------------------------------

    def _usages(self, org: str) -> tuple[Usage, ...] | None:
        """The org's limits; None for an org that the server does not know."""
        try:
            return self._asked(org)
        except OrgNotFound:
            if self._default_plan is None or RESERVE in self._server.extensions:  # there a reservation gives it
                return None
        self.give_default_plan(org)
        return self._asked(org)

    def _asked(self, org: str) -> tuple[Usage, ...]:
        if RESERVE in self._server.extensions:
            try:
                return self._server.repeated(asking.usage(LookUp(org, 0)), asking.usages_in)
            except ConfigurationError:
                if RESERVE in self._server.extensions:
                    raise
        return self._server.asked(calls.limits(org), calls.limits_in)

    def give_default_plan(self, org: str) -> None:
        planned = PlannedPhase(None, (feature_plan(self._default_plan),))
        self._server.asked(calls.subscription(org, (planned,)), wire.done_in)

    def _period(self, org: str, usages: Sequence[Usage] | None) -> Period | None:
        """The billing period, where something is limited: who is refused is told when to come back."""
        if usages is None:
            return None
        self._plans.learn_of({usage.feature for usage in usages})
        if not any(usage.limit is not None and usage.resets_at is None for usage in usages):
            return None
        with self.lock:
            view = self.views.get(org)
            known = None if view is None or not view.has_period else next(iter(view.entitlements.values())).period
            limits = {} if view is None else {name: found.limit for name, found in view.entitlements.items()}
        if known is not None and self._now_ms() < known.end_ms and limits == {one.feature: one.limit for one in usages}:
            return known
        return self._server.asked(calls.phase(org), calls.period_in)

    # ---- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        pass  # not the lock: who has it may be waiting for that of the outbox, which rests already

    def after_fork(self, *, is_child: bool) -> None:
        if is_child:  # the requests that run are the parent's, and so is what they hold
            self._reset()
