"""What things cost: exact fractions of the currency's smallest unit (cents), as plans give their prices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Final

from .errors import InvalidRequest
from .model import Divide, Feature, Interval, Model, Plan, PriceTier
from .names import checked_units, nearest

__all__ = ["cost", "fixed_price", "latest", "newest_plans", "plan_cost", "upgrades_for"]

DAYS_PER_MONTH: Final = Fraction(1461, 4) / 12  # 365.25 days a year

_INTERVALS_PER_MONTH: Final = MappingProxyType[Interval, Fraction](
    {
        "@daily": DAYS_PER_MONTH,
        "@weekly": DAYS_PER_MONTH / 7,
        "@monthly": Fraction(1),
        "@yearly": Fraction(1, 12),
    }
)
_VERSION_PART = re.compile(r"([0-9]+)|[^0-9]+")


def cost(feature: Feature, used: int) -> Fraction:
    """What one billing period costs with so many units used: at least the base of an on/off feature.

    The first price tier begins at zero units: its base is due without any usage too, as Stripe bills a flat amount.
    Each further tier's base is due once, with the first unit in it. Graduated: each unit at the price of its tier;
    volume: all units at the price of the tier of the last, and only that tier's base. Usage beyond the last tier's
    ``upto`` is priced at the last tier.
    """
    return _cost(feature, checked_units(used, "used"))


def plan_cost(plan: Plan, usage: Mapping[str, int]) -> Fraction:
    """What one billing period under a plan costs with this usage, by feature; features left out are not used.

    In the smallest unit of the plan's currency. `tier_middleware.price_text.money` writes it for people.
    """
    for name in usage.keys() - plan.features.keys():
        hint = nearest(name, plan.features)
        meant = f", did you mean {hint!r}?" if hint else ""
        raise InvalidRequest(f"usage: {name!r} is not in {plan.name!r}{meant}", path="usage")
    return sum((cost(feature, usage.get(name, 0)) for name, feature in plan.features.items()), Fraction(0))


def fixed_price(plan: Plan) -> Fraction:
    """What a month of the plan costs before anything is used: the bases of its features, of their first price tiers.

    A year is twelve months and 365.25 days.
    """
    return plan_cost(plan, {}) * _INTERVALS_PER_MONTH[plan.interval]


def upgrades_for(model: Model, feature: str, used: int, n: int, limit: int | None = 0) -> tuple[Plan, ...]:
    """The plans to offer an org that wants n more units than its limit allows; cheapest first, then by name.

    ``used`` includes what is reserved; ``limit`` is the org's own, 0 where it has not got the feature. A plan is
    offered when its limit is larger and leaves room for ``used + n`` (n alone for the levels: max, last, perpetual).
    An n of 0 asks for anything left, so it needs room for one. An unlimited org has no upgrades.

    The price compared is the plan's fixed monthly price plus what those units add to it; currencies are not converted.
    """
    if limit is None:
        return ()
    offers = (
        plan
        for plan in newest_plans(model)
        if feature in plan.features and _has_room(plan.features[feature], used, n, limit)
    )
    return tuple(sorted(offers, key=lambda plan: _price(plan, feature, used, n)))  # stable: equals stay by name


def newest_plans(model: Model) -> tuple[Plan, ...]:
    """The newest version of each plan, by name: plans are immutable, so old versions pile up and are not for sale.

    Versions are ordered as people read them: 10 after 9, ``2b`` after ``2a`` after 2.
    """
    ordered = sorted(model.plans.values(), key=_version_key)
    newest = {plan.name.partition("@")[0]: plan for plan in ordered}  # the last of a name stays
    return tuple(newest[name] for name in sorted(newest))


def latest(model: Model) -> Model:
    """The model with only the newest version of each plan."""
    return Model({plan.name: plan for plan in newest_plans(model)})


def _cost(feature: Feature, used: int) -> Fraction:
    if not feature.is_metered:
        return Fraction(feature.base)
    units = used if feature.divide is None else _divided(used, feature.divide)
    reached = list(_reached_tiers(feature.tiers, units))
    if feature.mode == "volume":
        return _tier_cost(reached[-1][0], units)
    return sum((_tier_cost(tier, n) for tier, n in reached), Fraction(0))


def _divided(used: int, divide: Divide) -> int:
    return -(-used // divide.by) if divide.rounding == "up" else used // divide.by


def _reached_tiers(tiers: tuple[PriceTier, ...], units: int) -> Iterator[tuple[PriceTier, int]]:
    """The tiers that the units reach, with the units in each. The first is always reached."""
    start = 0
    for tier in tiers[:-1]:
        end = units if tier.upto is None else min(units, tier.upto)
        yield tier, end - start
        if end == units:
            return
        start = end
    yield tiers[-1], units - start


def _tier_cost(tier: PriceTier, units: int) -> Fraction:
    return Fraction(tier.base) + units * Fraction(tier.price)


def _units_needed(feature: Feature, used: int, n: int) -> int:
    wanted = max(n, 1)
    return used + wanted if feature.aggregate == "sum" else wanted


def _has_room(feature: Feature, used: int, n: int, limit: int) -> bool:
    return feature.limit is None or limit < feature.limit >= _units_needed(feature, used, n)


def _price(plan: Plan, feature: str, used: int, n: int) -> Fraction:
    offered = plan.features[feature]
    return fixed_price(plan) + _cost(offered, _units_needed(offered, used, n)) - _cost(offered, 0)


def _version_key(plan: Plan) -> list[tuple[bool, int, str]]:
    version = plan.name.partition("@")[2]
    return [(not part[1], int(part[1] or 0), part[0]) for part in _VERSION_PART.finditer(version)]
