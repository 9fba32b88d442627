"""The workbench of engine tests: an engine, a clock to turn, a model, and words for what tests ask of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from ..clock import ManualClock, Milliseconds, milliseconds, milliseconds_of
from ..drive import perform
from ..engines import Engine
from ..errors import TierError
from ..ledger import Entry, Sum
from ..model import Model, Phase
from ..names import feature_plan
from ..ops import (
    Adjust,
    Check,
    Checked,
    Commit,
    Committed,
    Demand,
    Describe,
    Granted,
    Hold,
    Kept,
    LookUp,
    LookUpKeys,
    LookUpPhases,
    Op,
    OrgRecord,
    Pull,
    Push,
    ReadHistory,
    Record,
    Recorded,
    Release,
    Renew,
    Reserve,
    Schedule,
    Shortfall,
    UpdateOrg,
    Usage,
)
from ..orginfo import OrgInfo
from ..policy import PlannedPhase
from ..pricing import read_model

__all__ = [
    "ACME",
    "CALLS",
    "DISK",
    "EXPORT",
    "MAILS",
    "MODEL",
    "PEAK",
    "SEATS",
    "START",
    "Bench",
    "Suite",
    "attempted",
    "likeness",
    "metered",
    "planned",
    "raised",
    "together",
]

R = TypeVar("R")
E = TypeVar("E", bound=BaseException)

START: Final = datetime(2024, 1, 31, 10, 30, tzinfo=UTC)  # a leap year, at the end of a month
TIMEOUT_SECONDS: Final = 30.0  # far more than any test waits; a slow machine is no mistake of the engine's
HOLD_SECONDS: Final = 900
HURRY_SECONDS: Final = 1e-6  # in Python's usual 5 ms an operation is over before anybody can interrupt it

ACME: Final = "org:acme"
CALLS: Final = "feature:calls"
MAILS: Final = "feature:mails"
EXPORT: Final = "feature:export"
SEATS: Final = "feature:seats"  # perpetual
PEAK: Final = "feature:peak"  # max
DISK: Final = "feature:disk"  # last


def metered(limit: int | None, aggregate: str = "sum") -> dict[str, Any]:
    return {"tiers": [{} if limit is None else {"upto": limit}], "aggregate": aggregate}


def _levels(limit: int) -> dict[str, Any]:
    aggregates = {SEATS: "perpetual", PEAK: "max", DISK: "last"}
    return {feature: metered(limit, aggregate) for feature, aggregate in aggregates.items()}


MODEL: Final[Model] = read_model(
    {
        "plans": {
            "plan:free@1": {"features": {CALLS: metered(3), MAILS: metered(2), EXPORT: {}}},
            "plan:pro@1": {"features": {CALLS: metered(10), "feature:audit": {}}},
            "plan:open@1": {"features": {CALLS: metered(None)}},
            "plan:daily@1": {"interval": "@daily", "features": {CALLS: metered(3)}},
            "plan:weekly@1": {"interval": "@weekly", "features": {CALLS: metered(3)}},
            "plan:yearly@1": {"interval": "@yearly", "features": {CALLS: metered(3)}},
            "plan:team@1": {"features": _levels(5)},
            "plan:company@1": {"features": _levels(10)},
        }
    }
)


def planned(*features: str, at: datetime | None = None, trial: bool = False) -> PlannedPhase:
    """A phase for a schedule: from ``at`` (None: from now) on these plans and features; none cancels."""
    effective_ms = None if at is None else milliseconds_of(at, "at")
    return PlannedPhase(effective_ms, tuple(feature_plan(entry) for entry in features), trial)


def raised(kind: type[E], work: Callable[..., object], *args: object) -> E:
    """The error that a call must end in."""
    try:
        answer = work(*args)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised, the answer was {answer!r}")


def together(threads: int, work: Callable[[int], R]) -> list[R]:
    """What threads answer that begin at the same moment, and interrupt each other all the time; the first error of any
    is raised.
    """
    barrier = threading.Barrier(threads)
    answers: list[R] = []
    errors: list[BaseException] = []

    def run(index: int) -> None:
        barrier.wait()
        try:
            answers.append(work(index))
        except BaseException as error:  # handed to the test's own thread
            errors.append(error)

    running = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    patient = sys.getswitchinterval()
    sys.setswitchinterval(HURRY_SECONDS)
    try:
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(patient)
    if errors:
        raise errors[0]
    return answers


class Bench:
    """An engine on the workbench: with a clock to turn, and words for what tests ask of it."""

    _ids = count(1)  # for all benches: ids are never used twice

    def __init__(self, engine: Engine, clock: ManualClock) -> None:
        self.engine = engine
        self.clock = clock
        self.now_ms = milliseconds(clock)

    def do(self, op: Op[R]) -> R:
        return perform(op, self.engine, TIMEOUT_SECONDS)

    def pass_(self, **delta: float) -> None:
        """Let time pass: ``pass_(days=1)``."""
        self.clock.advance(timedelta(**delta))

    # ---- subscriptions ----------------------------------------------------------------------------------------------

    def subscribe(self, org: str, *features: str, at: datetime | None = None) -> None:
        self.schedule(planned(*features, at=self.clock() if at is None else at), org=org)

    def schedule(self, *phases: PlannedPhase, org: str = ACME) -> None:
        self.do(Schedule(org, phases, self.now_ms()))

    def cancel(self, org: str = ACME, *, at: datetime | None = None) -> None:
        self.do(Schedule(org, (planned(at=at),), self.now_ms(), must_exist=True, keeps_pending=True))

    def update(self, org: str = ACME, **info: Any) -> None:
        self.do(UpdateOrg(org, OrgInfo(**info), self.now_ms()))

    def restart(self) -> None:
        self.engine.close()
        self.engine.open()

    # ---- reservations -----------------------------------------------------------------------------------------------

    def reserve(
        self, *demands: Demand, org: str = ACME, seconds: int = HOLD_SECONDS, default_plan: str | None = None
    ) -> Granted | Shortfall:
        now_ms = self.now_ms()
        ids = tuple(next(self._ids) for _ in demands)
        return self.do(Reserve(org, demands, ids, now_ms, now_ms + seconds * 1000, default_plan))

    def hold(self, feature: str = CALLS, n: int = 1, *, org: str = ACME, seconds: int = HOLD_SECONDS) -> Hold:
        """A reservation that must be granted."""
        reply = self.reserve(Demand(feature, n), org=org, seconds=seconds)
        assert isinstance(reply, Granted), reply
        (hold,) = reply.holds
        assert hold is not None, reply
        return hold

    def refusal(self, feature: str = CALLS, n: int = 1, *, org: str = ACME) -> Shortfall:
        """A reservation that must be refused."""
        reply = self.reserve(Demand(feature, n), org=org)
        assert isinstance(reply, Shortfall), reply
        return reply

    def commit(self, hold: Hold, n: int | None = None, *, is_capped: bool = False, key: str = "") -> Committed:
        (committed,) = self.do(Commit((Kept(hold, hold.n if n is None else n, is_capped, key),), self.now_ms()))
        return committed

    def known(self, *keys: str, org: str = ACME) -> tuple[bool, ...]:
        return self.do(LookUpKeys(org, keys, self.now_ms()))

    def renew(self, hold: Hold, n: int = 0, *, is_capped: bool = False, seconds: int = HOLD_SECONDS) -> Committed:
        """Keep a reservation alive for so many seconds from now, n units of which are used so far."""
        now_ms = self.now_ms()
        (renewed,) = self.do(Renew((Kept(hold, n, is_capped),), now_ms, now_ms + seconds * 1000))
        return renewed

    def release(self, *holds: Hold) -> None:
        self.do(Release(holds, self.now_ms()))

    def use(self, feature: str = CALLS, n: int = 1, *, org: str = ACME) -> None:
        self.commit(self.hold(feature, n, org=org), n)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def record(
        self,
        n: int,
        feature: str = CALLS,
        *,
        org: str = ACME,
        key: str | None = None,
        at: datetime | None = None,
        clobber: bool = False,
        default_plan: str | None = None,
        note: str = "",
    ) -> Recorded:
        key = f"key:{next(self._ids)}" if key is None else key
        at_ms = None if at is None else milliseconds_of(at, "at")
        return self.do(Record(org, feature, n, key, self.now_ms(), at_ms, clobber, default_plan, note))

    def adjust(self, delta: int, feature: str = CALLS, *, org: str = ACME, key: str | None = None) -> Recorded:
        key = f"key:{next(self._ids)}" if key is None else key
        return self.do(Adjust(org, feature, delta, key, self.now_ms(), "a correction"))

    # ---- questions --------------------------------------------------------------------------------------------------

    def check(self, feature: str = CALLS, n: int = 1, *, org: str = ACME, default_plan: str | None = None) -> Checked:
        return self.do(Check(org, Demand(feature, n), self.now_ms(), default_plan))

    def usages(self, org: str = ACME) -> dict[str, Usage]:
        return {usage.feature: usage for usage in self.do(LookUp(org, self.now_ms()))}

    def usage(self, feature: str = CALLS, *, org: str = ACME) -> tuple[int, int]:
        """What is used and what is reserved."""
        usage = self.usages(org)[feature]
        return usage.used, usage.reserved

    def used(self, feature: str = CALLS, *, org: str = ACME) -> int:
        return self.usages(org)[feature].used

    def resets_at(self, feature: str = CALLS, *, org: str = ACME) -> datetime | None:
        return self.usages(org)[feature].resets_at

    def phases(self, org: str = ACME) -> tuple[Phase, ...]:
        """The current phase and those to come."""
        return self.do(LookUpPhases(org, self.now_ms())).phases

    def described(self, org: str = ACME) -> OrgRecord:
        return self.do(Describe(org))

    def entries(
        self, feature: str = CALLS, *, org: str = ACME, since: datetime | None = None, until: datetime | None = None
    ) -> list[Entry]:
        found = self.do(self._history(feature, org, since, until))
        return [entry for entry in found if isinstance(entry, Entry)]

    def sums(
        self,
        step: timedelta,
        feature: str = CALLS,
        *,
        org: str = ACME,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Sum]:
        found = self.do(self._history(feature, org, since, until, step))
        return [part for part in found if isinstance(part, Sum)]

    def _history(
        self, feature: str, org: str, since: datetime | None, until: datetime | None, step: timedelta | None = None
    ) -> ReadHistory:
        since_ms, until_ms = (None if at is None else milliseconds_of(at, "at") for at in (since, until))
        step_ms = None if step is None else step // timedelta(milliseconds=1)
        return ReadHistory(org, feature, self.now_ms(), since_ms, until_ms, step_ms)

    def everything(self, *orgs: str) -> list[object]:
        """All that can be asked about these orgs, and the model: what must not change when something is refused."""
        questions: list[Op[Any]] = [Pull()]
        for org in orgs:
            questions += [LookUp(org, self.now_ms()), LookUpPhases(org, self.now_ms()), Describe(org)]
            questions += [ReadHistory(org, feature, self.now_ms()) for feature in (CALLS, MAILS, SEATS)]
        return [likeness(attempted(self, question)) for question in questions]


def attempted(bench: Bench, op: Op[Any]) -> object:
    """What an operation answers, or the error it raises."""
    try:
        return bench.do(op)
    except TierError as error:
        return error


def likeness(answer: object) -> object:
    """An answer or an error as far as it must be the same on every engine."""
    if isinstance(answer, TierError):
        return type(answer), answer.code, answer.path
    if isinstance(answer, Granted):
        return tuple(hold and replace(hold, place=0) for hold in answer.holds)
    return dict(answer.plans) if isinstance(answer, Model) else answer


class Suite:
    """What every part of the suite needs."""

    _engine: Engine | None = None

    def engine(self, now_ms: Milliseconds) -> Engine:
        """An engine in which nothing is stored yet, and which asks ``now_ms`` for the time. Called once a test."""
        raise NotImplementedError(f"{type(self).__name__} must have a method engine(self, now_ms)")

    def bench(self, *features: str) -> Bench:
        """The engine under test with `MODEL` in it, and ``org:acme`` subscribed to these plans or features."""
        clock = ManualClock(START)
        self._engine = self.engine(milliseconds(clock))
        bench = Bench(self._engine, clock)
        bench.do(Push(MODEL, bench.now_ms()))
        if features:
            bench.subscribe(ACME, *features)
        return bench

    def teardown_method(self) -> None:
        if self._engine is not None:
            self._engine.close()
