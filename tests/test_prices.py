"""What things cost, against prices worked out by hand and unit by unit, and which plans are offered."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.errors import InvalidRequest
from tier_middleware.model import Aggregate, Divide, Feature, Mode, Model, Plan, PriceTier
from tier_middleware.names import MAX_UNITS
from tier_middleware.prices import cost, fixed_price, newest_plans, upgrades_for
from tier_middleware.pricing import read_model


def tiers(*bands: tuple[int | None, str, str]) -> tuple[PriceTier, ...]:
    return tuple(PriceTier(upto, Decimal(price), Decimal(base)) for upto, price, base in bands)


THREE = tiers((10, "1", "100"), (20, "0.5", "200"), (None, "0.25", "300"))
LIMITED = tiers((10, "1", "0"), (20, "0.5", "7"))


@pytest.mark.parametrize(
    ("bands", "mode", "used", "expected"),
    [
        (THREE, "graduated", 0, 100),
        (THREE, "graduated", 1, 101),
        (THREE, "graduated", 10, 110),
        (THREE, "graduated", 11, Fraction(621, 2)),  # 100 + 10 + 200 + 0.5
        (THREE, "graduated", 20, 315),
        (THREE, "graduated", 24, 616),
        (THREE, "volume", 0, 100),
        (THREE, "volume", 10, 110),
        (THREE, "volume", 11, Fraction(411, 2)),
        (THREE, "volume", 20, 210),
        (THREE, "volume", 24, 306),
        (LIMITED, "graduated", 0, 0),
        (LIMITED, "graduated", 30, 27),  # ten units beyond the limit at the last price
        (LIMITED, "volume", 30, 22),
        (tiers((None, "0.000000000001", "0")), "graduated", MAX_UNITS, Fraction(MAX_UNITS, 10**12)),
    ],
)
def test_cost_of_price_tiers(bands: tuple[PriceTier, ...], mode: Mode, used: int, expected: Fraction) -> None:
    assert cost(Feature(tiers=bands, mode=mode), used) == expected


@pytest.mark.parametrize(
    ("divide", "used", "expected"),
    [
        (Divide(1000, "up"), 0, 0),
        (Divide(1000, "up"), 1, 100),
        (Divide(1000, "up"), 1000, 100),
        (Divide(1000, "up"), 1001, 200),
        (Divide(1000, "down"), 999, 0),
        (Divide(1000, "down"), 1000, 100),
        (Divide(1000, "down"), 1999, 100),
        (Divide(2, "up"), MAX_UNITS, 100 * 2**62),
    ],
)
def test_cost_of_divided_usage(divide: Divide, used: int, expected: int) -> None:
    assert cost(Feature(tiers=tiers((None, "100", "0")), divide=divide), used) == expected


@pytest.mark.parametrize("used", [0, 7])
def test_on_off_feature_costs_its_base(used: int) -> None:
    assert cost(Feature(base=Decimal("0.1")), used) == Fraction(1, 10)


@pytest.mark.parametrize("used", [-1, 1.0, True, MAX_UNITS + 1])
def test_cost_wants_whole_units(used: int) -> None:
    with pytest.raises(InvalidRequest, match="used: "):
        cost(Feature(), used)


def unit_by_unit(feature: Feature, used: int) -> Fraction:
    """The same prices by counting: each unit looks for its tier, and a tier is reached by the units in it."""
    units = used
    if feature.divide:
        packs = [list(range(used))[i : i + feature.divide.by] for i in range(0, used, feature.divide.by)]
        units = sum(1 for pack in packs if feature.divide.rounding == "up" or len(pack) == feature.divide.by)

    def tier_of(unit: int) -> int:
        fitting = [index for index, tier in enumerate(feature.tiers) if tier.upto is None or unit <= tier.upto]
        return fitting[0] if fitting else len(feature.tiers) - 1

    places = [tier_of(unit) for unit in range(1, units + 1)]
    if feature.mode == "volume":
        places = [max(places, default=0)] * len(places)
        reached = {max(places, default=0)}
    else:
        reached = {0, *places}
    return sum((Fraction(feature.tiers[index].base) for index in reached), Fraction(0)) + sum(
        (Fraction(feature.tiers[index].price) for index in places), Fraction(0)
    )


@st.composite
def metered(draw: st.DrawFn) -> Feature:
    amounts = st.decimals(0, 1000, places=3)
    ends: list[int | None] = [*sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=4)))]
    if draw(st.booleans()):
        ends[-1] = None
    return Feature(
        tiers=tuple(PriceTier(end, draw(amounts), draw(amounts)) for end in ends),
        mode=draw(st.sampled_from(["graduated", "volume"])),
        divide=draw(st.none() | st.builds(Divide, st.integers(1, 9), st.sampled_from(["up", "down"]))),
    )


@given(metered(), st.integers(0, 60))
def test_cost_is_that_of_its_units_one_by_one(feature: Feature, used: int) -> None:
    assert cost(feature, used) == unit_by_unit(feature, used)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("@monthly", Fraction(15)),
        ("@yearly", Fraction(15, 12)),
        ("@weekly", Fraction(15) * Fraction("365.25") / 12 / 7),
        ("@daily", Fraction(15) * Fraction("365.25") / 12),
    ],
)
def test_fixed_price_is_by_the_month(interval: str, expected: Fraction) -> None:
    features = {"feature:a": {"base": 10}, "feature:b": {"base": 5}, "feature:c": {"tiers": [{"base": 99, "price": 1}]}}
    model = read_model({"plans": {"plan:a@1": {"interval": interval, "features": features}}})
    assert fixed_price(model.plans["plan:a@1"]) == expected


# Upgrades


def plan(name: str, *bands: dict[str, object], base: object = 0, **fields: object) -> Plan:
    features = {"feature:x": {"tiers": bands, **fields}, "feature:fee": {"base": base}}
    return read_model({"plans": {name: {"features": features}}}).plans[name]


def offered(plans: list[Plan], used: int, n: int, limit: int | None) -> list[str]:
    return [plan.name for plan in upgrades_for(Model({plan.name: plan for plan in plans}), "feature:x", used, n, limit)]


SMALL, BIG, ENDLESS = plan("plan:small@1", {"upto": 10}), plan("plan:big@1", {"upto": 100}), plan("plan:endless@1", {})
SWITCH = plan("plan:switch@1")
ALL = [SMALL, BIG, ENDLESS, SWITCH]


@pytest.mark.parametrize(
    ("used", "n", "limit", "expected"),
    [
        (0, 1, 0, ["plan:big@1", "plan:endless@1", "plan:small@1", "plan:switch@1"]),
        (0, 10, 0, ["plan:big@1", "plan:endless@1", "plan:small@1", "plan:switch@1"]),
        (0, 11, 0, ["plan:big@1", "plan:endless@1", "plan:switch@1"]),
        (10, 1, 10, ["plan:big@1", "plan:endless@1", "plan:switch@1"]),
        (99, 1, 10, ["plan:big@1", "plan:endless@1", "plan:switch@1"]),
        (100, 1, 10, ["plan:endless@1", "plan:switch@1"]),
        (100, 0, 10, ["plan:endless@1", "plan:switch@1"]),  # nothing would be left
        (99, 0, 10, ["plan:big@1", "plan:endless@1", "plan:switch@1"]),
        (0, 1, 100, ["plan:endless@1", "plan:switch@1"]),  # as large as the org's own is no upgrade
        (0, 1, None, []),
    ],
)
def test_upgrades_have_room(used: int, n: int, limit: int | None, expected: list[str]) -> None:
    assert offered(ALL, used, n, limit) == expected


@pytest.mark.parametrize(("aggregate", "expected"), [("sum", []), ("max", 1), ("last", 1), ("perpetual", 1)])
def test_levels_need_room_for_n_alone(aggregate: Aggregate, expected: object) -> None:
    seats = plan("plan:team@1", {"upto": 10}, aggregate=aggregate)
    assert offered([seats], 5, 10, 5) == (["plan:team@1"] if expected else [])
    assert offered([seats], 5, 11, 5) == []


def test_more_than_the_wire_can_hold_is_priced_too() -> None:
    assert offered([plan("plan:a@1", {"price": 1})], MAX_UNITS, MAX_UNITS, 10) == ["plan:a@1"]


def test_plan_without_the_feature_is_no_upgrade() -> None:
    model = Model({"plan:big@1": BIG})
    assert upgrades_for(model, "feature:other", 0, 1) == ()
    assert upgrades_for(model, "feature:fee", 0, 1) == (BIG,)


@pytest.mark.parametrize(
    ("plans", "expected"),
    [
        ([plan("plan:a@1", {}, base=200), plan("plan:b@1", {}, base=100)], ["plan:b@1", "plan:a@1"]),
        ([plan("plan:a@1", {"price": 10}), plan("plan:b@1", {}, base=100)], ["plan:b@1", "plan:a@1"]),  # 11 units: 110
        ([plan("plan:a@1", {"price": 9}), plan("plan:b@1", {}, base=100)], ["plan:a@1", "plan:b@1"]),
        ([plan("plan:b@1", {}), plan("plan:a@1", {})], ["plan:a@1", "plan:b@1"]),
    ],
)
def test_cheapest_upgrade_comes_first(plans: list[Plan], expected: list[str]) -> None:
    assert offered(plans, 10, 1, 10) == expected


def test_base_of_an_on_off_feature_counts_once() -> None:
    features: dict[str, dict[str, object]] = {
        "plan:a@1": {"feature:x": {"base": 60}},
        "plan:b@1": {"feature:x": {"tiers": [{}]}, "feature:fee": {"base": 100}},
    }
    model = read_model({"plans": {name: {"features": each} for name, each in features.items()}})
    assert [plan.name for plan in upgrades_for(model, "feature:x", 0, 1)] == ["plan:a@1", "plan:b@1"]


@pytest.mark.parametrize(
    "versions",
    [
        ("9", "10"),
        ("1", "1b", "2"),
        ("2a", "2b", "10"),
        ("2023a", "2023b"),
        ("0", "00"),
        ("9", "a"),
        ("a9", "a10", "b1"),
    ],
)
def test_only_the_newest_version_is_for_sale(versions: tuple[str, ...]) -> None:
    names = [f"plan:x@{version}" for version in versions]
    for order in (names, names[::-1]):
        assert [plan.name for plan in newest_plans(Model({name: plan(name, {}) for name in order}))] == [names[-1]]
        assert offered([plan(name, {}) for name in order], 0, 1, 0) == [names[-1]]


def test_old_version_is_not_offered_where_the_newest_lacks_the_room() -> None:
    assert offered([plan("plan:x@1", {"upto": 100}), plan("plan:x@2", {"upto": 10})], 0, 50, 0) == []
