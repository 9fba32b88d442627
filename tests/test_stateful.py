"""The same random programs through both engines and an oracle that keeps a list of events: equal at every step.

SQLite is one file with two clients, as two processes have; memory is one client. What each rule answers, and all that
can be asked about the orgs after it, must be what the oracle works out from the beginning.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from event_oracle import Adjusted, Mistake, Oracle, Reported
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tier_middleware import InvalidRequest, ManualClock, PricingError, Refused, Tier, TierError, flow
from tier_middleware.ops import Commit, Demand, Granted, Hold, Kept, Release, Renew, Reserve, Shortfall

CALLS, MAILS, EXPORT, AUDIT = "feature:calls", "feature:mails", "feature:export", "feature:audit"
SEATS, PEAK, DISK = "feature:seats", "feature:peak", "feature:disk"

PLANS: dict[str, dict[str, Any]] = {
    "plan:free@1": {
        "interval": "@monthly",
        "features": {CALLS: ("sum", 3), MAILS: ("sum", 2), EXPORT: ("on/off", None), SEATS: ("perpetual", 2)},
    },
    "plan:pro@1": {
        "interval": "@monthly",
        "features": {CALLS: ("sum", 10), AUDIT: ("on/off", None), SEATS: ("perpetual", 5), DISK: ("last", 8)},
    },
    "plan:open@1": {"interval": "@monthly", "features": {CALLS: ("sum", None), SEATS: ("perpetual", None)}},
    "plan:daily@1": {"interval": "@daily", "features": {CALLS: ("sum", 3), PEAK: ("max", 4), EXPORT: ("sum", 2)}},
    "plan:weekly@1": {"interval": "@weekly", "features": {CALLS: ("sum", 4), DISK: ("last", 5)}},
    "plan:yearly@1": {"interval": "@yearly", "features": {CALLS: ("sum", 20), PEAK: ("max", 6), SEATS: ("sum", 4)}},
}


def pricing(plans: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The plans as a pricing.json has them."""

    def feature(kind: str, limit: int | None) -> dict[str, Any]:
        return {} if kind == "on/off" else {"aggregate": kind, "tiers": [{} if limit is None else {"upto": limit}]}

    return {
        "plans": {
            name: {**plan, "features": {name: feature(*what) for name, what in plan["features"].items()}}
            for name, plan in plans.items()
        }
    }


STARTS = [
    datetime(2024, 1, 31, 10, 30, 0, 123_999, tzinfo=UTC),  # a leap year, and a part of a millisecond
    datetime(2024, 2, 29, tzinfo=UTC),
    datetime(2023, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
    datetime(2025, 8, 30, 4, tzinfo=UTC),
    datetime(2025, 6, 15, 12, tzinfo=UTC),
]
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
REMEMBERED = 34 * DAY  # keys and expired reservations are remembered for 35; what is between is nobody's business

FEATURES = [CALLS, SEATS, PEAK, DISK, MAILS, EXPORT, AUDIT]
ENTRIES = [
    *PLANS,
    *(f"{CALLS}@plan:free@1", f"{SEATS}@plan:pro@1", f"{DISK}@plan:weekly@1"),
    *("plan:new@1", "plan:gone@1", f"{PEAK}@plan:pro@1"),  # not, or not always, in the model
]

orgs = st.sampled_from(["org:acme", "org:acme", "org:acme", "org:acme", "org:other"])
features = st.integers(0, 9)  # see `feature`
subscriptions = st.lists(st.integers(0, 23), min_size=1, max_size=2)  # see `entries`
amounts = st.sampled_from([1, 1, 1, 2, 2, 3, 0, 9])
edges = st.sampled_from([1, 1, 1, 2, 3, 0, 9, "+0", "+0", "+0", "-1", "+1"])  # see `amount`
deltas = st.sampled_from(
    [0 * DAY, -timedelta(minutes=2), timedelta(milliseconds=1), HOUR, DAY, 3 * DAY, 9 * DAY, 31 * DAY]
)
passing = st.sampled_from(
    [
        timedelta(milliseconds=1),
        timedelta(seconds=59),
        timedelta(minutes=15),
        HOUR,
        DAY,
        3 * DAY,
        28 * DAY,
        31 * DAY,
        366 * DAY,
    ]
)
ago = st.sampled_from([-7, -5, -1, 0, 0, 1, 90, 1440, 9 * 1440, 31 * 1440, 100 * 1440]).map(
    lambda minutes: timedelta(minutes=minutes)
)
lifetimes = st.sampled_from([timedelta(milliseconds=1), timedelta(seconds=59), timedelta(minutes=15), HOUR, 2 * DAY])
skews = st.sampled_from([0, 0, 0, 0, 0, 0, 1, 60_000]).map(lambda ms: timedelta(milliseconds=ms))
via = st.integers(0, 1)


def whole(at: datetime) -> datetime:
    """Cut off to milliseconds, as engines keep times."""
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def ms(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def step(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


# How often a step is taken, beside the others: what is wrong is seen where reservations meet changes of plans.
STEPS = {
    step("pass_", delta=passing): 3,
    step("pass_to_an_edge", org=orgs, early=st.sampled_from([1, 0, 0, -1]), pick=st.integers(0, 9)): 3,
    step(
        "seldom",
        what=st.sampled_from(["restart", "push", "conflict", "delete", "introduce"]),
        org=orgs,
        version=st.integers(1, 3),
        via=via,
    ): 1,
    step(
        "subscribe",
        org=orgs,
        picks=subscriptions,
        trial_days=st.sampled_from([0, 0, 0, 2]),
        start=st.none() | deltas,
        skew=skews,
        via=via,
    ): 3,
    step(
        "schedule",
        org=orgs,
        steps=st.lists(
            st.tuples(
                deltas.filter(lambda delta: delta > 0 * DAY),
                subscriptions,
                st.sampled_from(["", "", "", "trial", "ended"]),
            ),
            min_size=1,
            max_size=3,
        ),
        starts_now=st.booleans(),
        via=via,
    ): 1,
    step("cancel", org=orgs, at=st.none() | deltas | st.just(-HOUR), via=via): 1,
    step("reserve", org=orgs, pick=features, n=edges, lifetime=lifetimes, skew=skews, via=via): 6,
    step(
        "reserve_several",
        org=orgs,
        demands=st.lists(st.tuples(features, edges, st.sampled_from([True, True, False])), min_size=2, max_size=3),
        lifetime=lifetimes,
        skew=skews,
        via=via,
    ): 2,
    step("commit", pick=st.integers(0, 12), how=st.tuples(amounts, st.booleans()), skew=skews, via=via): 4,
    step(
        "commit_several",
        picks=st.lists(st.integers(0, 12), min_size=2, max_size=3),
        how=st.lists(st.tuples(amounts, st.booleans()), min_size=3, max_size=3),
        skew=skews,
        via=via,
    ): 1,
    step(
        "renew", pick=st.integers(0, 12), how=st.tuples(amounts, st.booleans()), lifetime=lifetimes, skew=skews, via=via
    ): 3,
    step("release", picks=st.lists(st.integers(0, 12), min_size=1, max_size=3), via=via): 1,
    step("work", org=orgs, pick=features, n=edges, total=st.none() | amounts, fails=st.booleans(), via=via): 3,
    step(
        "report", org=orgs, pick=features, n=edges, before=st.none() | ago, clobber=st.booleans(), skew=skews, via=via
    ): 3,
    step("adjust", org=orgs, pick=features, delta=st.integers(-5, 5), via=via): 1,
    step("send_again", pick=st.integers(0, 9), other=st.sampled_from([0, 0, 1]), via=via): 1,
    step("can", org=orgs, pick=features, n=edges, skew=skews, via=via): 1,
}
steps = st.sampled_from([one for one, weight in STEPS.items() for _ in range(weight)]).flatmap(lambda one: one)


class Held:
    """A reservation, as each engine knows it."""

    def __init__(self, id: int, expires: datetime, memory: Hold, sqlite: Hold) -> None:
        self.id = id
        self.expires = expires
        self.is_settled = False
        self.of = {"memory": memory, "sqlite": sqlite}


class Engines(RuleBasedStateMachine):
    @initialize(
        start=st.sampled_from(STARTS),
        default_plan=st.sampled_from([None, None, "plan:free@1", "plan:daily@1"]),
        shop=st.lists(st.sampled_from(list(PLANS)), min_size=2, max_size=2, unique=True),
        favourites=st.lists(st.integers(0, 5), min_size=1, max_size=2),
        is_subscribed=st.sampled_from([True, True, False]),
    )
    def begin(
        self, start: datetime, default_plan: str | None, shop: list[str], favourites: list[int], is_subscribed: bool
    ) -> None:
        self.folder = Path(
            tempfile.mkdtemp(prefix="tier-stateful-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self.clock = ManualClock(start)
        self.default_plan = default_plan
        self.memory = self.client("memory://")
        self.sqlite = [self.client(f"sqlite:///{self.folder}/tier.db") for _ in range(2)]
        self.oracle = Oracle(default_plan)
        self.oracle.push(PLANS)
        self.holds: list[Held] = []
        self.sent: list[Reported | Adjusted] = []
        self.numbers = count(1)
        self.via = 0
        sold = [feature for plan in shop for feature in PLANS[plan]["features"]]
        shared = [feature for feature in FEATURES if sold.count(feature) > 1] or sold
        self.shop, self.favourites = shop, [shared[pick % len(shared)] for pick in favourites]
        for org in ("org:acme", "org:other") if is_subscribed else ():
            self.agree(
                lambda org=org: self.oracle.schedule(org, [(None, shop[:1], False)], self.now),
                lambda tier, _, org=org: tier.subscribe(org, shop[:1]),
            )

    def client(self, url: str) -> Tier:
        tier = Tier(url, pricing=pricing(PLANS), default_plan=self.default_plan, clock=self.clock, timeout=30)
        tier.open()
        return tier

    def teardown(self) -> None:
        for tier in (self.memory, *self.sqlite):
            tier.close()
        shutil.rmtree(self.folder)

    @rule(step=steps)
    def do(self, step: tuple[str, dict[str, Any]]) -> None:
        name, arguments = step
        getattr(self, name)(**arguments)

    # ---- how it is compared -----------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        return whole(self.clock())

    # A program that asks for anything at random shows little: most asks are about a few favourites.

    def feature(self, org: str, pick: int) -> str:
        has = self.favourites
        if pick >= 9:
            has = FEATURES
        elif pick >= 6:
            with contextlib.suppress(Mistake):
                has = sorted(self.oracle.limits(org, self.now)) or FEATURES
        return has[pick % len(has)]

    def entries(self, picks: list[int]) -> list[str]:
        """One entry of a plan: a feature of it listed twice is an error of its own, with tests of its own."""
        chosen = [self.shop[pick % len(self.shop)] if pick < 18 else ENTRIES[pick % len(ENTRIES)] for pick in picks]
        return list({entry.partition("plan:")[2]: entry for entry in chosen}.values())

    def amount(self, org: str, feature: str, n: int | str) -> int:
        """A number, or what is left, one less, one more: the edges are where engines are wrong."""
        if isinstance(n, int):
            return n
        left: int | None = None
        with contextlib.suppress(Mistake):
            left = self.oracle.limits(org, self.now).get(feature, (0, 0, 0, None))[3]
        return 1 if left is None else max(0, left + int(n))

    @contextlib.contextmanager
    def behind(self, skew: timedelta) -> Iterator[datetime]:
        """On a machine whose clock is behind."""
        true = self.clock()
        self.clock.set(true - skew)
        try:
            yield self.now
        finally:
            self.clock.set(true)

    def agree(self, expected: Callable[[], object], ask: Callable[[Tier, str], object]) -> Any:
        """What the oracle expects is what both engines answer, errors too."""
        try:
            wanted: object = expected()
        except Mistake as mistake:
            wanted = mistake.answer
        for name, tier in (("memory", self.memory), ("sqlite", self.sqlite[self.via])):
            try:
                answer: object = ask(tier, name)
            except TierError as error:
                answer = likeness(error)
            assert answer == wanted, (name, answer, wanted)
        return wanted

    @invariant()
    def all_that_can_be_asked_is_the_same(self) -> None:
        if not hasattr(self, "oracle"):
            return
        for org in ("org:acme", "org:other"):
            self.agree(lambda org=org: self.oracle.phases(org, self.now), lambda tier, _, org=org: phases(tier, org))
            seen = self.agree(
                lambda org=org: self.oracle.limits(org, self.now), lambda tier, _, org=org: limits(tier, org)
            )
            if isinstance(seen, dict):
                assert limits(self.sqlite[1 - self.via], org) == seen
            for feature in self.favourites:
                self.agree(
                    lambda org=org, feature=feature: self.oracle.weeks(org, feature),
                    lambda tier, _, org=org, feature=feature: weeks(tier, org, feature),
                )

    # ---- time and restarts ------------------------------------------------------------------------------------------

    def pass_(self, delta: timedelta) -> None:
        self.clock.advance(delta)

    def pass_to_an_edge(self, org: str, early: int, pick: int) -> None:
        """To where a period ends, a phase begins or a reservation expires, to the millisecond."""
        edges = {held.expires for held in self.holds}
        with contextlib.suppress(Mistake):
            edges |= {usage[4] for usage in self.oracle.limits(org, self.now).values() if usage[4]}
            edges |= {phase[0] for phase in self.oracle.phases(org, self.now)}
        to = sorted(edge for edge in edges if edge > self.now)
        if to:
            self.clock.set(max(self.clock(), to[pick % len(to)] - timedelta(milliseconds=early)))

    def seldom(self, what: str, org: str, version: int, via: int) -> None:
        self.via = via
        if what == "restart":
            self.memory.close()
            self.memory.open()
            self.sqlite[via].close()
            self.sqlite[via] = self.client(f"sqlite:///{self.folder}/tier.db")
        elif what == "introduce":
            self.agree(
                lambda: self.oracle.introduce(org, self.now), lambda tier, _: tier.update_org(org, {"name": "x"})
            )
        elif what == "delete":
            self.agree(lambda: self.oracle.delete(org), lambda tier, _: tier.delete_org(org))
        else:
            limit = 1 if what == "push" else 2
            plans = {f"plan:new@{version}": {"interval": "@daily", "features": {CALLS: ("sum", limit)}}, **PLANS}
            self.agree(
                lambda: self.oracle.push(plans),
                lambda tier, _: sorted((name, status) for name, status, _ in tier.push(pricing(plans))),
            )

    # ---- plans and subscriptions ------------------------------------------------------------------------------------

    def subscribe(
        self, org: str, picks: list[int], trial_days: int, start: timedelta | None, skew: timedelta, via: int
    ) -> None:
        self.via, features = via, self.entries(picks)
        with self.behind(skew if start is None and not trial_days else 0 * DAY) as now:
            effective = None if start is None else self.clock() + start
            begins = None if effective is None else whole(effective)
            planned: list[tuple[datetime | None, list[str], bool]] = [(begins, features, False)]
            if trial_days:
                planned = [(begins, features, True), (max(begins or now, now) + trial_days * DAY, features, False)]
            self.agree(
                lambda: self.oracle.schedule(org, planned, now),
                lambda tier, _: tier.subscribe(org, features, trial_days=trial_days, effective=effective),
            )

    def schedule(self, org: str, steps: list[tuple[timedelta, list[int], str]], starts_now: bool, via: int) -> None:
        self.via = via
        phases, planned, at = [], [], self.clock()
        for index, (delta, picks, kind) in enumerate(steps):
            is_now = starts_now and index == 0
            features, trial = [] if kind == "ended" else self.entries(picks), kind == "trial"
            at += 0 * DAY if is_now else delta
            phases.append({"features": features, "trial": trial} | ({} if is_now else {"effective": at}))
            planned.append((None if is_now else whole(at), features, trial))
        self.agree(lambda: self.oracle.schedule(org, planned, self.now), lambda tier, _: tier.schedule(org, phases))

    def cancel(self, org: str, at: timedelta | None, via: int) -> None:
        self.via = via
        moment = None if at is None else self.clock() + at
        planned: list[tuple[datetime | None, list[str], bool]] = [(moment and whole(moment), [], False)]
        self.agree(
            lambda: self.oracle.schedule(org, planned, self.now, is_end=True),
            lambda tier, _: tier.cancel(org, at=moment),
        )

    # ---- reservations -----------------------------------------------------------------------------------------------

    def reserve(self, org: str, pick: int, n: int | str, lifetime: timedelta, skew: timedelta, via: int) -> None:
        self.via = via
        feature = self.feature(org, pick)
        self.ask_for(org, [(feature, self.amount(org, feature, n), True)], lifetime, skew)

    def reserve_several(
        self, org: str, demands: list[tuple[int, int | str, bool]], lifetime: timedelta, skew: timedelta, via: int
    ) -> None:
        """All or none."""
        self.via = via
        named = {self.feature(org, pick): (n, is_given) for pick, n, is_given in demands}
        wanted = [(feature, self.amount(org, feature, n), is_given) for feature, (n, is_given) in named.items()]
        self.ask_for(org, wanted, lifetime, skew)

    def ask_for(self, org: str, demands: list[tuple[str, int, bool]], lifetime: timedelta, skew: timedelta) -> None:
        ids = [next(self.numbers) for _ in demands]
        found: dict[str, tuple[Hold | None, ...]] = {}
        with self.behind(skew) as now:
            expires = now + lifetime
            wanted = tuple(Demand(*demand) for demand in demands)
            op = Reserve(org, wanted, tuple(ids), ms(now), ms(expires), self.default_plan)

            def ask(tier: Tier, name: str) -> object:
                reply = tier.run(flow.do(op))
                if isinstance(reply, Granted):
                    found[name] = reply.holds
                return reply_likeness(reply)

            self.agree(lambda: self.oracle.reserve(org, demands, ids, now, expires), ask)
        for id, memory, sqlite in zip(ids, found.get("memory", ()), found.get("sqlite", ()), strict=False):
            if memory is not None and sqlite is not None:
                self.holds.append(Held(id, expires, memory, sqlite))

    def chosen(self, picks: list[int]) -> list[Held]:
        """Of the last reservations: open ones, mostly; none where there are none."""
        self.holds = [held for held in self.holds if held.expires + REMEMBERED > self.now]
        still_open = [held for held in self.holds if not held.is_settled]
        pools = [still_open if pick < 10 and still_open else self.holds for pick in picks]
        return [pool[-1 - pick % len(pool)] for pool, pick in zip(pools, picks, strict=True) if pool]

    def commit(self, pick: int, how: tuple[int, bool], skew: timedelta, via: int) -> None:
        self.via = via
        self.count([pick], [how], skew)

    def commit_several(self, picks: list[int], how: list[tuple[int, bool]], skew: timedelta, via: int) -> None:
        """In one operation; the same reservation twice, or one that was settled before, counts once."""
        self.via = via
        self.count(picks, how, skew)

    def count(self, picks: list[int], how: list[tuple[int, bool]], skew: timedelta) -> None:
        kept = list(zip(self.chosen(picks), how, strict=False))
        with self.behind(skew) as now:
            self.agree(
                lambda: self.oracle.commit([(held.id, *what) for held, what in kept], now),
                lambda tier, name: [
                    (done.over, done.capped, done.has_expired)
                    for done in tier.run(
                        flow.do(Commit(tuple(Kept(held.of[name], *what) for held, what in kept), ms(now)))
                    )
                ],
            )
        for held, _ in kept:
            held.is_settled = True

    def renew(self, pick: int, how: tuple[int, bool], lifetime: timedelta, skew: timedelta, via: int) -> None:
        self.via = via
        found = self.chosen([pick])
        if not found:
            return
        (held,) = found
        with self.behind(skew) as now:
            expires = now + lifetime
            if now < held.expires:
                held.expires = max(held.expires, expires)

            def ask(tier: Tier, name: str) -> object:
                op = Renew((Kept(held.of[name], *how),), ms(now), ms(expires))
                (done,) = tier.run(flow.do(op))
                return done.over, done.capped, done.has_expired

            self.agree(lambda: self.oracle.renew(held.id, *how, now, expires), ask)

    def release(self, picks: list[int], via: int) -> None:
        self.via = via
        holds = self.chosen(picks)
        self.agree(
            lambda: self.oracle.release([held.id for held in holds], self.now),
            lambda tier, name: tier.run(flow.do(Release(tuple(held.of[name] for held in holds), ms(self.now)))),
        )
        for held in holds:
            held.is_settled = True

    def work(self, org: str, pick: int, n: int | str, total: int | None, fails: bool, via: int) -> None:
        """`Tier.reserve` as an application uses it: a refusal is raised, and the end of the block settles."""
        self.via = via
        id, feature = next(self.numbers), self.feature(org, pick)
        units = self.amount(org, feature, n)

        def expected() -> object:
            reply = self.oracle.reserve(org, [(feature, units, True)], [id], self.now, self.now + timedelta(minutes=15))
            if reply[0] == "granted" and fails:
                self.oracle.release([id], self.now)
            elif reply[0] == "granted":
                self.oracle.commit([(id, units if total is None else total, False)], self.now)
            return "granted" if reply[0] == "granted" else (*reply[:3], *reply[4:])  # without what is reserved

        def ask(tier: Tier, name: str) -> object:
            try:
                with tier.reserve(org, feature, units) as reservation:
                    if total is not None:
                        reservation.set(total)
                    if fails:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass
            except Refused as no:
                return refusal_likeness(no)
            return "granted"

        self.agree(expected, ask)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def report(
        self, org: str, pick: int, n: int | str, before: timedelta | None, clobber: bool, skew: timedelta, via: int
    ) -> None:
        self.via = via
        with self.behind(skew) as now:
            at = None if before is None else whole(self.clock() - before)
            feature = self.feature(org, pick)
            self.send(
                Reported(org, feature, self.amount(org, feature, n), f"key:{next(self.numbers)}", now, at, clobber)
            )

    def adjust(self, org: str, pick: int, delta: int, via: int) -> None:
        self.via = via
        self.send(Adjusted(org, self.feature(org, pick), delta, f"key:{next(self.numbers)}", self.now))

    def send_again(self, pick: int, other: int, via: int) -> None:
        """The same key: with the same contents it changes nothing, with others it is an error."""
        self.via = via
        self.sent = [event for event in self.sent if event.now + REMEMBERED > self.now]
        if self.sent:
            event = self.sent[-1 - pick % len(self.sent)]
            if isinstance(event, Reported):
                self.send(
                    Reported(event.org, event.feature, event.n + other, event.key, self.now, event.at, event.clobber)
                )
            else:
                self.send(Adjusted(event.org, event.feature, event.delta + other, event.key, self.now))

    def send(self, event: Reported | Adjusted) -> None:
        def expected() -> object:
            return self.oracle.report(event) if isinstance(event, Reported) else self.oracle.adjust(event)

        def ask(tier: Tier, name: str) -> object:
            if isinstance(event, Adjusted):
                tier.adjust(event.org, event.feature, event.delta, key=event.key)
                return None
            over = tier.counts.get("over_limit.report", 0)
            tier.report(event.org, event.feature, event.n, at=event.at, clobber=event.clobber, key=event.key)
            return tier.counts.get("over_limit.report", 0) - over

        done = self.agree(expected, ask)
        if not isinstance(done, tuple) and event.key not in {sent.key for sent in self.sent}:
            self.sent.append(event)

    # ---- questions --------------------------------------------------------------------------------------------------

    def can(self, org: str, pick: int, n: int | str, skew: timedelta, via: int) -> None:
        self.via, feature = via, self.feature(org, pick)
        units = self.amount(org, feature, n)

        def ask(tier: Tier, name: str) -> object:
            answer = tier.can(org, feature, units)
            assert answer.err is None
            return answer.ok, answer.used, answer.limit, answer.remaining, answer.reason

        with self.behind(skew) as now:
            self.agree(lambda: self.oracle.can(org, feature, units, now), ask)


# ---- as the oracle puts it ------------------------------------------------------------------------------------------


def likeness(error: TierError) -> tuple[str, str | None]:
    where = error.path
    if isinstance(error, PricingError):
        where = (error.path or "").partition('["')[2].partition('"]')[0]
    elif isinstance(error, Refused):
        where = error.feature or error.org
    assert isinstance(error, InvalidRequest | PricingError | Refused), error
    return type(error).__name__, where


def reply_likeness(reply: Granted | Shortfall) -> tuple[Any, ...]:
    if isinstance(reply, Granted):
        return "granted", [hold and hold.n for hold in reply.holds]
    resets = (
        None
        if reply.resets_at_ms is None
        else datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=reply.resets_at_ms)
    )
    return "refused", reply.feature, reply.used, reply.reserved, reply.limit, reply.reason, reply.code, resets


def refusal_likeness(no: Refused) -> tuple[Any, ...]:
    return "refused", no.feature, no.used, no.limit, no.reason, no.code, no.resets_at


def limits(tier: Tier, org: str) -> dict[str, tuple[Any, ...]]:
    return {u.feature: (u.used, u.reserved, u.limit, u.remaining, u.resets_at) for u in tier.lookup_limits(org)}


def weeks(tier: Tier, org: str, feature: str) -> dict[datetime, int]:
    return {week.start: week.n for week in tier.history(org, feature, step=7 * DAY) if week.n}


def phases(tier: Tier, org: str) -> list[tuple[Any, ...]]:
    return [
        (
            one.effective,
            one.end,
            sorted((*one.plans, *one.fragments)),
            one.trial,
            one.current.effective,
            one.current.end,
        )
        for one in tier.lookup_phases(org).phases
    ]


QUICK = settings(max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=1000, stateful_step_count=100)  # about a quarter of an hour

TestEngines = Engines.TestCase
TestEngines.settings = QUICK


@pytest.mark.slow
def test_engines_at_length() -> None:
    run_state_machine_as_test(Engines, settings=LONG)
