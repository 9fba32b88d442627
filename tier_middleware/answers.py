"""What calls of `Tier` and `AsyncTier` answer."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from .clock import moment
from .errors import TierError
from .flow import Admitted, Denied
from .model import Phase
from .names import checked_units
from .ops import Checked, EngineInfo, PhaseInfo, Usage
from .policy import Period, Reason, period_at

__all__ = [
    "Answer",
    "AsyncAnswer",
    "Limits",
    "OrgIdentity",
    "PeriodView",
    "PhaseView",
    "Reservation",
    "Verdict",
    "Whoami",
]


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


def verdict_for(org: str, feature: str, reply: Checked | Admitted | Denied) -> dict[str, Any]:
    """The fields of an answer."""
    if not isinstance(reply, Checked):
        return {
            "ok": isinstance(reply, Admitted),
            "err": reply.error,
            "org": org,
            "feature": feature,
            "used": 0,
            "limit": None,
            "remaining": None,
            "reason": "engine_unavailable",
        }
    usage, shortfall = reply.usage, reply.shortfall
    return {
        "ok": shortfall is None,
        "err": None,
        "org": org,
        "feature": feature,
        "used": usage.used,
        "limit": usage.limit,
        "remaining": usage.remaining,
        "reason": None if shortfall is None else shortfall.reason,
    }


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
class OrgIdentity:
    """Who an org is. ``stripe_id`` is empty on engines without payments."""

    org: str
    stripe_id: str = ""


@dataclass(frozen=True, slots=True)
class Whoami:
    """Which engine answers: ``id`` names its kind, ``url`` its place, ``created`` its beginning."""

    id: str
    email: str
    created: datetime
    key_source: str
    isolated: bool
    url: str


def phase_view(info: PhaseInfo, now_ms: int) -> PhaseView:
    phase, end_ms, model = info
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
        current=_period_view(_billing_period(phase, info, now_ms)),
    )


def _billing_period(phase: Phase, info: PhaseInfo, now_ms: int) -> Period:
    plan = info.model.plans[phase.features[0].plan]
    return period_at(phase.anchor_ms, plan.interval, now_ms)


def _period_view(period: Period) -> PeriodView:
    return PeriodView(moment(period.start_ms), moment(period.end_ms))


def whoami_view(info: EngineInfo) -> Whoami:
    return Whoami(info.kind, "", moment(info.created_ms), "", False, info.url)
