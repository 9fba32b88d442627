"""The pricing model and what an org is subscribed to: values only, no reading, no deciding.

Words and defaults are those of Tier's ``pricing.json``.
Money is counted in the currency's smallest unit (cents), as Tier does, and exact: never a float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from .differences import ABSENT, Difference, differences
from .exact_json import at
from .names import FeaturePlan
from .read_only import ReadOnlyDict

__all__ = [
    "ZERO",
    "Aggregate",
    "Difference",
    "Divide",
    "Feature",
    "Interval",
    "Mode",
    "Model",
    "Phase",
    "Plan",
    "PriceTier",
    "Rounding",
]

Interval: TypeAlias = Literal["@daily", "@weekly", "@monthly", "@yearly"]
Mode: TypeAlias = Literal["graduated", "volume"]
Aggregate: TypeAlias = Literal["sum", "max", "last", "perpetual"]
Rounding: TypeAlias = Literal["down", "up"]

ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class PriceTier:
    """One band of a price: units up to and including ``upto`` (None: without end), each at ``price``, plus
    ``base`` once.
    """

    upto: int | None = None
    price: Decimal = ZERO
    base: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Divide:
    """Usage is divided by ``by`` and rounded before it is priced."""

    by: int = 1
    rounding: Rounding = "down"


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of a plan. Without price tiers it is on/off: entitled, unlimited, and not reportable."""

    title: str = ""
    base: Decimal = ZERO
    tiers: tuple[PriceTier, ...] = ()
    mode: Mode = "graduated"
    aggregate: Aggregate = "sum"
    divide: Divide | None = None

    @property
    def is_metered(self) -> bool:
        return bool(self.tiers)

    @property
    def limit(self) -> int | None:
        """The most units of one period; None is unlimited."""
        return self.tiers[-1].upto if self.tiers else None


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan, immutable once pushed: a change needs a new version, the part after the ``@``."""

    name: str
    title: str = ""
    currency: str = "usd"
    interval: Interval = "@monthly"
    features: Mapping[str, Feature] = field(default_factory=ReadOnlyDict)


@dataclass(frozen=True, slots=True)
class Model:
    """A pricing model: plans by name."""

    plans: Mapping[str, Plan] = field(default_factory=ReadOnlyDict)

    @property
    def features(self) -> frozenset[str]:
        """The names of all features of all plans."""
        return frozenset(name for plan in self.plans.values() for name in plan.features)

    def is_on_off(self, feature: str) -> bool:
        """Whether nothing is counted of a feature in any plan that has it."""
        offered = [plan.features[feature] for plan in self.plans.values() if feature in plan.features]
        return bool(offered) and not any(found.is_metered for found in offered)

    def aggregate_of(self, feature: str) -> Aggregate:
        """How a feature is counted, for those who do not know in which plan: where plans differ, as a sum."""
        found: set[Aggregate] = {
            plan.features[feature].aggregate
            for plan in self.plans.values()
            if feature in plan.features and plan.features[feature].is_metered
        }
        return found.pop() if len(found) == 1 else "sum"

    def diff(self, other: Model) -> tuple[Difference, ...]:
        """Every place where the other model differs from this one, by path; none where nothing does.

        Where this one is stored and the other is to be pushed, whatever is not a whole new or missing plan is a
        conflict: plans are immutable.
        """
        return tuple(
            Difference(name, *place)
            for name in sorted(self.plans.keys() | other.plans.keys())
            for place in differences(at("plans", name), self.plans.get(name, ABSENT), other.plans.get(name, ABSENT))
        )


@dataclass(frozen=True, slots=True)
class Phase:
    """What an org is subscribed to from ``effective_ms`` on, until the next phase.

    ``anchor_ms`` is the start of the subscription that the phase belongs to: billing periods are counted from it,
    and a switch of plans keeps it. A phase without features is a cancelled subscription. Times are whole
    milliseconds since the Unix epoch.
    """

    effective_ms: int
    anchor_ms: int
    features: tuple[FeaturePlan, ...] = ()
    trial: bool = False
