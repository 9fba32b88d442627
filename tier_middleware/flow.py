"""What takes more than one step, or may have to: as generators that yield operations and are sent the replies.

A flow does no I/O and has no colour. `tier_middleware.drive` performs it, sync or async; a test can drive it by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from .errors import ConfigurationError, EngineUnavailable, PricingError, TierError
from .model import Model
from .names import nearest
from .ops import (
    Checked,
    Commit,
    Committed,
    Granted,
    Hold,
    Kept,
    LookUpClock,
    Op,
    Pause,
    Pull,
    Push,
    Record,
    Release,
    Shortfall,
    UnderClock,
)

__all__ = [
    "Admitted",
    "Backup",
    "Dated",
    "Denied",
    "Flow",
    "Outcome",
    "Piece",
    "Settlement",
    "admit",
    "at_time",
    "check",
    "do",
    "insisted",
    "settle",
    "some_at_a_time",
    "start",
    "subscribe",
]

R = TypeVar("R")
P = TypeVar("P")
Flow: TypeAlias = Generator[Op[Any], Any, R]
Piece: TypeAlias = Kept | Record | Hold
"""One part of a settlement: a hold whose work is to be counted, a report, a hold to be given back."""

RETRY_PAUSES_SECONDS: Final = (0.05, 0.2)  # between the three tries of what must not get lost; a client is waiting

MOST_AT_ONCE: Final = 100
"""Reservations of one operation. A stream may hold thousands, and our server takes 500 in a request."""

FailsOpen: TypeAlias = Callable[[TierError], bool]


class Dated(Protocol):
    """Makes an operation for the present: at once, or under a test clock when it is performed."""

    def __call__(self, make: Callable[[int], Op[R]]) -> Op[R]: ...


class Admitted(NamedTuple):
    """The request may go on. ``holds`` is None where the engine was away and the gate is open for now (``error``)."""

    holds: tuple[Hold | None, ...] | None
    error: EngineUnavailable | None = None


class Denied(NamedTuple):
    """Nobody knows whether the request may go on, so it may not."""

    error: TierError


class Settlement(Struct, frozen=True):
    """How a piece of work ended: what to count, what to give back, and what to report that nobody reserved.

    ``failure`` is what kept the application from saying what to count. It is raised when everything is given back.
    """

    kept: tuple[Kept, ...] = ()
    released: tuple[Hold, ...] = ()
    records: tuple[Record, ...] = ()
    failure: Exception | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.kept or self.released or self.records or self.failure)


class Outcome(NamedTuple):
    """What became of a settlement: commits in the order of ``kept``, units that passed the limit in reports, and
    losses.
    """

    committed: tuple[Committed, ...] = ()
    over_reported: int = 0
    lost_kept: tuple[Kept, ...] = ()
    lost_records: tuple[Record, ...] = ()
    error: TierError | None = None


class Backup(Protocol):
    """Keeps what cannot be counted while the engine is away, and counts it later."""

    def is_behind(self, piece: Piece) -> bool:
        """Whether this must not be counted before what is kept already."""
        ...

    def keeping(self, pieces: Sequence[Piece], error: TierError | None) -> Op[None]:
        """Keep all of it, or raise a `TierError`. ``error`` says why it could not be counted."""
        ...


def do(op: Op[R]) -> Generator[Op[Any], Any, R]:
    """One operation and its reply: ``reply = yield from do(op)`` keeps the type that a bare ``yield`` loses.

    Under a test clock that is two steps: what time it is there is asked for each operation, since any process may
    have advanced the clock.
    """
    if type(op) is UnderClock:
        clock = yield LookUpClock(op.clock)
        op = op.make(clock.present_ms)
    reply: R = yield op
    return reply


def start(model: Model | None, default_plan: str | None, now_ms: int) -> Flow[Model]:
    """Check that the default plan is one of those stored or pushed, then push the model, if any. Answers all plans.

    In this order, since plans are immutable: a start that fails must not have stored any.
    """
    stored = yield from do(Pull())
    plans = {**stored.plans, **(model.plans if model is not None else {})}
    if default_plan is not None and default_plan not in plans:
        hint = nearest(default_plan, plans)
        raise ConfigurationError(
            f"TIER_DEFAULT_PLAN: {default_plan!r} is not in the pricing model"
            + (f", did you mean {hint!r}?" if hint else "; push one, or set TIER_PRICING"),
            path="TIER_DEFAULT_PLAN",
        )
    if model is not None:
        yield from do(Push(model, now_ms))
    return Model(plans)


def subscribe(update: Op[None] | None, schedule: Op[None] | None) -> Flow[None]:
    """Change what is known of an org, then what it is subscribed to. As in Tier, a refused schedule leaves the info."""
    if update is not None:
        yield from do(update)
    if schedule is not None:
        yield from do(schedule)


def check(op: Op[Checked], fails_open: FailsOpen) -> Flow[Checked | Admitted | Denied]:
    """Ask; where the engine is away, the policy answers."""
    try:
        return (yield from do(op))
    except EngineUnavailable as error:
        return _without_engine(error, fails_open)


def admit(op: Op[Granted | Shortfall], fails_open: FailsOpen) -> Flow[Admitted | Shortfall | Denied]:
    """Reserve; where the engine is away, the policy answers. An engine that cannot be opened never fails open."""
    try:
        reply = yield from do(op)
    except EngineUnavailable as error:
        return _without_engine(error, fails_open)
    except (ConfigurationError, PricingError) as error:
        return Denied(error)
    return Admitted(reply.holds) if isinstance(reply, Granted) else reply


def _without_engine(error: EngineUnavailable, fails_open: FailsOpen) -> Admitted | Denied:
    return Admitted(None, error) if fails_open(error) else Denied(error)


class _Rest:
    """What of a settlement was not counted: ``away``, since the engine was, and ``lost`` for good."""

    def __init__(self) -> None:
        self.away: list[Piece] = []
        self.lost: list[Piece] = []
        self.why_away: TierError | None = None
        self.error: TierError | None = None

    def failed(self, error: TierError, pieces: Sequence[Piece]) -> None:
        if isinstance(error, EngineUnavailable):
            self.away.extend(pieces)
            self.why_away = error
        else:
            self.lost.extend(pieces)
            self.error = error


def settle(settlement: Settlement, dated: Dated, backup: Backup | None = None) -> Flow[Outcome]:
    """Count, give back and report. What fails is tried again within a bound. What an engine that is away would have
    counted goes to the backup, if there is one; the rest is answered as lost.

    A release that fails is not a loss: its reservations expire. (What a renewal has counted of them stays counted.)
    """
    committed: tuple[Committed, ...] = ()
    rest = _Rest()
    over = 0
    if backup is not None and any(map(backup.is_behind, settlement.kept)):
        rest.away.extend(settlement.kept)
    elif settlement.kept:
        committed = tuple(chain.from_iterable((yield from _performed(Commit, settlement.kept, dated, rest))))
    for record in settlement.records:
        if backup is not None and backup.is_behind(record):
            rest.away.append(record)
            continue
        try:
            over += (yield from insisted(dated(at_time(record)))).over
        except TierError as error:
            if error.path != "key":  # else another try of the same request was counted, with other units
                rest.failed(error, (record,))
    yield from _performed(Release, settlement.released, dated, rest)
    if rest.away and not (yield from _is_kept(rest, backup)):
        rest.lost.extend(rest.away)
        rest.error = rest.why_away or rest.error
    lost_kept = tuple([piece for piece in rest.lost if isinstance(piece, Kept)])
    lost_records = tuple([piece for piece in rest.lost if isinstance(piece, Record)])
    return Outcome(committed, over, lost_kept, lost_records, rest.error)


def some_at_a_time(many: Sequence[P]) -> Iterator[Sequence[P]]:
    """All of it, as much at a time as keeps neither an event loop nor other writers waiting for long."""
    return (many[begin : begin + MOST_AT_ONCE] for begin in range(0, len(many), MOST_AT_ONCE))


def _performed(
    make: Callable[[tuple[Any, ...], int], Op[R]], pieces: Sequence[Piece], dated: Dated, rest: _Rest
) -> Flow[list[R]]:
    """Settle pieces of one kind, some at a time; once that fails, what comes after is not tried."""
    replies: list[R] = []
    for index, some in enumerate(some_at_a_time(pieces)):
        if index:
            yield from do(Pause(0))
        try:
            replies.append((yield from insisted(dated(partial(make, tuple(some))))))
        except TierError as error:
            rest.failed(error, pieces[index * MOST_AT_ONCE :])
            break
    return replies


def _is_kept(rest: _Rest, backup: Backup | None) -> Flow[bool]:
    """Whether somebody has kept what the engine could not count."""
    if backup is None:
        return False
    try:
        yield from do(backup.keeping(rest.away, rest.why_away))
    except TierError as error:
        rest.why_away = rest.why_away or error
        return False
    return True


def at_time(record: Record) -> Callable[[int], Record]:
    """Makes the same report, with the same key, of any present."""
    return lambda now_ms: replace(record, now_ms=now_ms)


def insisted(op: Op[R]) -> Flow[R]:
    """Perform an operation that counts once, however often it is sent, until it is certain or hopeless."""
    for pause in RETRY_PAUSES_SECONDS:
        try:
            return (yield from do(op))
        except EngineUnavailable:
            yield from do(Pause(pause))
    return (yield from do(op))
