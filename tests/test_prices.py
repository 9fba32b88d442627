"""What things cost, against prices worked out by hand and unit by unit, and which plans are offered."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.errors import InvalidRequest
from tier_middleware.model import Aggregate, Divide, Feature, Mode, Model, Plan, PriceTier, Rounding
from tier_middleware.names import MAX_UNITS
from tier_middleware.prices import cost, fixed_price, newest_plans, plan_cost, upgrades_for
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


DIVIDES = st.none() | st.builds(Divide, st.integers(1, 9), st.sampled_from(["up", "down"]))


@st.composite
def metered(draw: st.DrawFn, most: int = 40, divides: st.SearchStrategy[Divide | None] = DIVIDES) -> Feature:
    amounts = st.just(Decimal(0)) | st.decimals(0, 10**15 - 1, places=12)
    ends: list[int | None] = [*sorted(draw(st.sets(st.integers(1, most), min_size=1, max_size=4)))]
    if draw(st.booleans()):
        ends[-1] = None
    return Feature(
        tiers=tuple(PriceTier(end, draw(amounts), draw(amounts)) for end in ends),
        mode=draw(st.sampled_from(["graduated", "volume"])),
        aggregate=draw(st.sampled_from(["sum", "max", "last", "perpetual"])),
        divide=draw(divides),
    )


@given(metered(), st.integers(0, 60))
def test_cost_is_that_of_its_units_one_by_one(feature: Feature, used: int) -> None:
    with localcontext(prec=3):  # an application's own; nothing may be rounded to it
        assert cost(feature, used) == unit_by_unit(feature, used)


@given(metered(MAX_UNITS, st.none()), st.data())
def test_cost_of_large_counts_goes_from_unit_to_unit(feature: Feature, data: st.DataObject) -> None:
    edges = [edge for tier in feature.tiers if tier.upto for edge in (tier.upto, tier.upto + 1) if edge <= MAX_UNITS]
    used = data.draw(st.integers(1, MAX_UNITS) | st.sampled_from([1, MAX_UNITS, *edges]))
    fitting = [tier for tier in feature.tiers if tier.upto is None or used <= tier.upto]
    tier = fitting[0] if fitting else feature.tiers[-1]
    if feature.mode == "volume":
        assert cost(feature, used) == Fraction(tier.base) + used * Fraction(tier.price)
        return
    below = [one.upto for one in feature.tiers if one.upto is not None and one.upto < used and one is not tier]
    is_first_in_it = bool(below) and used == max(below) + 1
    step = Fraction(tier.price) + (Fraction(tier.base) if is_first_in_it else 0)
    assert cost(feature, used) - cost(feature, used - 1) == step
    assert cost(feature, 0) == Fraction(feature.tiers[0].base)


@given(st.integers(1, MAX_UNITS), st.integers(0, MAX_UNITS), st.decimals(0, 10**6, places=12))
def test_divided_usage_is_the_packs_that_are_full_or_begun(by: int, used: int, price: Decimal) -> None:
    paid = {}
    for rounding in get_args(Rounding):
        packs = cost(Feature(tiers=(PriceTier(None, Decimal(1)),), divide=Divide(by, rounding)), used)
        assert packs.denominator == 1
        assert (packs - 1) * by < used <= packs * by if rounding == "up" else packs * by <= used < (packs + 1) * by
        paid[rounding] = cost(Feature(tiers=(PriceTier(None, price),), divide=Divide(by, rounding)), used)
        assert paid[rounding] == packs * Fraction(price)
    assert paid["up"] - paid["down"] == (Fraction(price) if used % by else 0)


@given(st.lists(metered(), min_size=1, max_size=3), st.data())
def test_a_plan_costs_what_its_features_cost(features: list[Feature], data: st.DataObject) -> None:
    plan = Plan("plan:a@1", features={f"feature:{i}": one for i, one in enumerate(features)} | {"feature:fee": FEE})
    counts = [data.draw(st.none() | st.integers(0, 60)) for _ in features]
    usage = {f"feature:{i}": count for i, count in enumerate(counts) if count is not None}
    expected = sum(unit_by_unit(one, count or 0) for one, count in zip(features, counts, strict=True))
    assert plan_cost(plan, usage) == expected + Fraction(7, 2)
    assert fixed_price(plan) == plan_cost(plan, {})


FEE = Feature(base=Decimal("3.5"))


def test_usage_of_what_a_plan_has_not_got_is_a_mistake() -> None:
    plan = Plan("plan:a@1", features={"feature:calls": FEE})
    with pytest.raises(
        InvalidRequest, match="usage: 'feature:call' is not in 'plan:a@1', did you mean 'feature:calls'"
    ):
        plan_cost(plan, {"feature:call": 1})
    with pytest.raises(InvalidRequest, match="used: "):
        plan_cost(plan, {"feature:calls": -1})


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("@monthly", Fraction(114)),
        ("@yearly", Fraction(114, 12)),
        ("@weekly", Fraction(114) * Fraction("365.25") / 12 / 7),
        ("@daily", Fraction(114) * Fraction("365.25") / 12),
    ],
)
def test_fixed_price_is_by_the_month(interval: str, expected: Fraction) -> None:
    tiers = [{"base": 99, "price": 1, "upto": 10}, {"base": 1000}]  # the first is reached by nothing, the second is not
    features = {"feature:a": {"base": 10}, "feature:b": {"base": 5}, "feature:c": {"tiers": tiers}}
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


def test_the_base_of_a_first_price_tier_is_a_price_by_the_month() -> None:
    yearly = Plan("plan:a@1", interval="@yearly", features={"feature:x": Feature(tiers=tiers((None, "1", "12000")))})
    monthly = Plan("plan:b@1", features={"feature:x": Feature(tiers=tiers((None, "1", "1100")))})
    other = Plan("plan:c@1", features={"feature:x": Feature(tiers=tiers((None, "1", "0"))), "feature:y": FEE})
    assert offered([monthly, yearly, other], 0, 1, 0) == ["plan:c@1", "plan:a@1", "plan:b@1"]


@st.composite
def catalogues(draw: st.DrawFn) -> list[Plan]:
    prices = st.integers(0, 5).map(Decimal)
    bands = st.lists(
        st.tuples(st.integers(1, 9), prices, prices), min_size=1, max_size=3, unique_by=lambda band: band[0]
    )

    def feature(drawn: list[tuple[int, Decimal, Decimal]], is_endless: bool, aggregate: Aggregate) -> Feature:
        made = [PriceTier(*band) for band in sorted(drawn)]
        return Feature(
            tiers=(*made[:-1], replace(made[-1], upto=None if is_endless else made[-1].upto)), aggregate=aggregate
        )

    one = st.builds(Feature, base=prices) | st.builds(feature, bands, st.booleans(), st.sampled_from(["sum", "max"]))
    names = draw(st.lists(st.sampled_from([f"plan:{x}@{v}" for x in "abcd" for v in (1, 2)]), unique=True))
    found = st.dictionaries(st.sampled_from(["feature:x", "feature:y"]), one, min_size=1)
    return [Plan(name, interval=draw(st.sampled_from(["@monthly", "@yearly"])), features=draw(found)) for name in names]


@given(catalogues(), st.integers(0, 10), st.integers(0, 4), st.none() | st.integers(0, 9))
def test_upgrades_are_those_that_help_in_the_order_of_their_prices(
    plans: list[Plan], used: int, n: int, limit: int | None
) -> None:
    def by_hand(plan: Plan) -> tuple[Fraction, str] | None:
        """The monthly price by counting; None for a plan that is not offered."""
        family, version = plan.name.split("@")
        x = plan.features.get("feature:x")
        if limit is None or x is None or any(f"{family}@{newer}" in names for newer in range(int(version) + 1, 3)):
            return None
        units = max(n, 1) + (used if x.aggregate == "sum" else 0)
        if x.limit is not None and (x.limit <= limit or x.limit < units):
            return None
        months = 12 if plan.interval == "@yearly" else 1
        bases = sum(Fraction(one.tiers[0].base if one.tiers else one.base) for one in plan.features.values())
        added = unit_by_unit(x, units) - unit_by_unit(x, 0) if x.tiers else 0
        return bases / months + added, plan.name

    names = {plan.name for plan in plans}
    expected = [name for _, name in sorted(filter(None, map(by_hand, plans)))]
    for order in (plans, plans[::-1]):
        assert offered(order, used, n, limit) == expected


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
