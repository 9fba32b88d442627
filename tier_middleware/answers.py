"""What calls of `Tier` and `AsyncTier` answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeVar

from .clock import moment
from .errors import TierError
from .flow import Admitted, Denied
from .ledger import Entry, History, Kind, Sum, key_of
from .model import Model, Phase
from .names import checked_units
from .ops import Checked, ClockRecord, EngineInfo, OrgRecord, PhasesInfo, Usage
from .policy import Period, Reason, period_at

__all__ = [
    "Answer",
    "AsyncAnswer",
    "ClockView",
    "HistoryEntry",
    "HistoryStep",
    "Limits",
    "OrgDetails",
    "OrgIdentity",
    "PaymentMethods",
    "PeriodView",
    "PhaseView",
    "Phases",
    "Reservation",
    "Verdict",
    "Whoami",
    "answer_for",
    "clock_view",
    "current_phase_view",
    "details_view",
    "history_view",
    "phases_view",
    "whoami_view",
]

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a check. ``ok``: the org may. ``reason`` says why not; ``err`` is set where the engine was away.

    Units are whole; ``limit`` and ``remaining`` are None for unlimited (and for unknown, where ``err`` is set).
    """

    ok: bool
    err: TierError | None
    org: str
    feature: str
    used: int
    limit: int | None
    remaining: int | None
    reason: Reason | None

    def __bool__(self) -> bool:
        return self.ok


class _Report(Protocol):
    def __call__(
        self, org: str, feature: str, n: int = 1, *, at: datetime | None = None, clobber: bool = False
    ) -> None: ...


class _AsyncReport(Protocol):
    def __call__(
        self, org: str, feature: str, n: int = 1, *, at: datetime | None = None, clobber: bool = False
    ) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Answer(Verdict):
    """What `Tier.can` answers."""

    _report: _Report = field(repr=False, compare=False)

    def report(self, n: int = 1, at: datetime | None = None, clobber: bool = False) -> None:
        """Report the usage of what was asked: `Tier.report` for this org and feature."""
        self._report(self.org, self.feature, n, at=at, clobber=clobber)


@dataclass(frozen=True, slots=True)
class AsyncAnswer(Verdict):
    """What `AsyncTier.can` answers."""

    _report: _AsyncReport = field(repr=False, compare=False)

    async def report(self, n: int = 1, at: datetime | None = None, clobber: bool = False) -> None:
        """Report the usage of what was asked: `AsyncTier.report` for this org and feature."""
        await self._report(self.org, self.feature, n, at=at, clobber=clobber)


def answer_for(
    make: Callable[..., A], org: str, feature: str, reply: Checked | Admitted | Denied, report: Callable[..., Any]
) -> A:
    """The answer to a check; ``make`` is `Answer` or `AsyncAnswer`, and ``report`` what reports for it."""
    if not isinstance(reply, Checked):
        is_open = isinstance(reply, Admitted)
        return make(is_open, reply.error, org, feature, 0, None, None, "engine_unavailable", report)
    usage, shortfall = reply.usage, reply.shortfall
    reason = None if shortfall is None else shortfall.reason
    return make(shortfall is None, None, org, feature, usage.used, usage.limit, usage.remaining, reason, report)


class Reservation:
    """Capacity held for a piece of work.

    What is counted at its end is what was reserved, or what `set` and `add` say.
    """

    __slots__ = ("_n", "feature", "org", "reserved")

    def __init__(self, org: str, feature: str, n: int) -> None:
        self.org = org
        self.feature = feature
        self.reserved = n
        self._n: int | None = None

    @property
    def n(self) -> int:
        """The units that will be counted."""
        return self.reserved if self._n is None else self._n

    def set(self, n: int) -> None:
        """Count n units in all."""
        self._n = checked_units(n)

    def add(self, n: int) -> None:
        """Count n units more; the first call replaces what was reserved."""
        self._n = (self._n or 0) + checked_units(n)


@dataclass(frozen=True, slots=True)
class Limits:
    """All usage of an org: ``usage`` by feature name.

    Iterates over it; ``limits["feature:x"]`` is that of one feature.
    """

    org: str
    usage: tuple[Usage, ...]

    def __iter__(self) -> Iterator[Usage]:
        return iter(self.usage)

    def __len__(self) -> int:
        return len(self.usage)

    def __getitem__(self, feature: str) -> Usage:
        for usage in self.usage:
            if usage.feature == feature:
                return usage
        raise KeyError(feature)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One change of a usage: by ``n`` units, up or down. All entries of a billing period add up to its usage.

    ``kind`` is ``commit`` (of a reservation), ``report``, ``clobber``, ``adjust``, or ``day``: the sum of a UTC day
    whose entries are older than ``ledger_days``. ``level`` is what was set, where something was set rather than added:
    by a clobber, and for features whose aggregate is not ``sum``. ``plan`` and ``period`` (its start) are where it was
    counted; both are None for a perpetual feature, which keeps one usage. ``at`` is when it was used, ``recorded_at``
    when that was told. ``key`` is what made it count once; that of a commit is ``reservation:`` and its id.
    """

    org: str
    feature: str
    kind: Kind
    n: int
    level: int | None
    plan: str | None
    period: datetime | None
    at: datetime
    recorded_at: datetime
    key: str | None
    note: str


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """By how many units a usage changed from ``start`` up to, not including, ``end``. Both are in UTC."""

    start: datetime
    end: datetime
    n: int


@dataclass(frozen=True, slots=True)
class PeriodView:
    """A billing period: from ``effective`` up to, not including, ``end``."""

    effective: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class PhaseView:
    """An org's phase.

    ``features`` are ``feature:x@plan:y@1``; ``plans`` those subscribed whole, ``fragments`` the others.
    """

    effective: datetime
    end: datetime | None
    features: tuple[str, ...]
    plans: tuple[str, ...]
    fragments: tuple[str, ...]
    trial: bool
    current: PeriodView


@dataclass(frozen=True, slots=True)
class Phases:
    """An org's current phase and those to come, in order; ``current`` is the billing period, None without a
    current one.
    """

    org: str
    current: PeriodView | None
    phases: tuple[PhaseView, ...]


@dataclass(frozen=True, slots=True)
class PaymentMethods:
    """An org's payment methods, as the payment provider has them; none on engines without payments."""

    org: str
    methods: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class OrgDetails:
    """Who an org is and what is known of it. ``stripe_id`` is empty on engines without payments."""

    org: str
    stripe_id: str
    created: datetime
    email: str
    name: str
    description: str
    phone: str
    metadata: Mapping[str, str]
    default_payment_method: str


@dataclass(frozen=True, slots=True)
class OrgIdentity:
    """Who an org is. ``stripe_id`` is empty on engines without payments."""

    org: str
    stripe_id: str = ""


@dataclass(frozen=True, slots=True)
class ClockView:
    """A test clock, and the moment at which it stands, in whole seconds."""

    id: str
    name: str
    present: datetime


@dataclass(frozen=True, slots=True)
class Whoami:
    """Which engine answers: ``id`` names its kind, ``url`` its place, ``created`` its beginning."""

    id: str
    email: str
    created: datetime
    key_source: str
    isolated: bool
    url: str


def history_view(org: str, feature: str, found: History) -> tuple[HistoryEntry | HistoryStep, ...]:
    return tuple(
        HistoryStep(moment(part.start_ms), moment(part.end_ms), part.n)
        if isinstance(part, Sum)
        else _history_entry(org, feature, part)
        for part in found
    )


def _history_entry(org: str, feature: str, entry: Entry) -> HistoryEntry:
    change = entry.change
    return HistoryEntry(
        org=org,
        feature=feature,
        kind=change.kind,
        n=change.n,
        level=change.level,
        plan=entry.plan or None,
        period=moment(entry.start_ms) if entry.plan else None,
        at=moment(change.at_ms),
        recorded_at=moment(change.recorded_ms),
        key=key_of(change),
        note=change.note,
    )


def current_phase_view(info: PhasesInfo) -> PhaseView | None:
    if not info.phases or info.phases[0].effective_ms > info.present_ms or not info.phases[0].features:
        return None
    return _phase_view(info, 0)


def phases_view(org: str, info: PhasesInfo) -> Phases:
    views = tuple(_phase_view(info, index) for index, phase in enumerate(info.phases) if phase.features)
    current = current_phase_view(info)
    return Phases(org, None if current is None else current.current, views)


def _phase_view(info: PhasesInfo, index: int) -> PhaseView:
    phase, model = info.phases[index], info.model
    end_ms = info.phases[index + 1].effective_ms if index + 1 < len(info.phases) else None
    plans = tuple(sorted(entry.plan for entry in phase.features if entry.feature is None))
    fragments = tuple(sorted(str(entry) for entry in phase.features if entry.feature is not None))
    whole = [f"{feature}@{name}" for name in plans for feature in model.plans[name].features]
    return PhaseView(
        effective=moment(phase.effective_ms),
        end=None if end_ms is None else moment(end_ms),
        features=tuple(sorted((*whole, *fragments))),
        plans=plans,
        fragments=fragments,
        trial=phase.trial,
        current=_given_period(info.periods[index]) if info.periods else _billing_period(phase, model, info.present_ms),
    )


def _given_period(period: Period) -> PeriodView:
    return PeriodView(moment(period.start_ms), moment(period.end_ms))


def _billing_period(phase: Phase, model: Model, present_ms: int) -> PeriodView:
    plan = model.plans[phase.features[0].plan]
    return _given_period(period_at(phase.anchor_ms, plan.interval, max(present_ms, phase.effective_ms)))


def details_view(org: str, record: OrgRecord) -> OrgDetails:
    info = record.info
    return OrgDetails(
        org,
        record.stripe_id,
        moment(record.created_ms),
        info.email,
        info.name,
        info.description,
        info.phone,
        info.metadata,
        info.default_payment_method,
    )


def clock_view(record: ClockRecord) -> ClockView:
    return ClockView(record.id, record.name, moment(record.present_ms))


def whoami_view(info: EngineInfo) -> Whoami:
    return Whoami(info.kind, info.email, moment(info.created_ms), info.key_source, info.isolated, info.url)
