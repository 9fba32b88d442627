"""Prices as people read them: every wording once, and the numbers in it exact."""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.model import Feature, Interval, PriceTier
from tier_middleware.price_text import describe, money
from tier_middleware.prices import cost
from tier_middleware.pricing import read_model


def feature(**fields: Any) -> Feature:
    return (
        read_model({"plans": {"plan:a@1": {"features": {"feature:x": fields}}}}).plans["plan:a@1"].features["feature:x"]
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "included"),
        ({"base": 500}, "$5.00 a month"),
        ({"base": Decimal("0.25")}, "$0.0025 a month"),
        ({"tiers": [{}]}, "unlimited"),
        ({"tiers": [{"upto": 1000}]}, "1,000 included"),
        ({"tiers": [{"upto": 1}]}, "1 included"),
        ({"tiers": [{"price": 1}]}, "$0.01 each"),
        ({"tiers": [{"price": Decimal("0.25")}]}, "$0.0025 each"),
        ({"tiers": [{"price": 0.1}]}, "$0.001 each"),  # a float is read as its author wrote it
        ({"tiers": [{"upto": 5000, "price": 10}]}, "up to 5,000: $0.10 each"),
        ({"tiers": [{"upto": 1000}, {"price": 1}]}, "first 1,000 included, then $0.01 each"),
        (
            {"tiers": [{"upto": 10, "price": 200}, {"upto": 20, "price": 100}]},
            "up to 10: $2.00 each, then $1.00 each up to 20",
        ),
        ({"tiers": [{"upto": 10, "price": 200}, {}]}, "up to 10: $2.00 each, then free"),
        ({"tiers": [{"base": 500}]}, "$5.00 a month, unlimited"),
        ({"tiers": [{"base": 500, "upto": 10}]}, "$5.00 a month, 10 included"),
        ({"tiers": [{"base": 500, "price": 1}]}, "$5.00 a month plus $0.01 each"),
        ({"tiers": [{"base": 500, "price": 1, "upto": 9}]}, "$5.00 a month plus $0.01 each up to 9"),
        (
            {"tiers": [{"base": 500, "upto": 10}, {"upto": 20, "base": 300}, {"base": 1, "price": 5}]},
            "$5.00 a month, first 10 included, then $3.00 more a month up to 20, "
            "then $0.01 more a month plus $0.05 each",
        ),
        ({"tiers": [{"price": 5}], "mode": "volume"}, "$0.05 each"),
        (
            {"tiers": [{"upto": 10, "price": 200}, {"upto": 20, "price": 100}], "mode": "volume"},
            "one price for all units, by their total: $2.00 each up to 10; $1.00 each from 11 to 20",
        ),
        (
            {"tiers": [{"upto": 10}, {"base": 500, "price": 1}], "mode": "volume"},
            "one price for all units, by their total: free up to 10; $5.00 a month plus $0.01 each from 11",
        ),
        ({"tiers": [{"price": 100}], "divide": {"by": 1000, "rounding": "up"}}, "$1.00 per 1,000, rounded up"),
        (
            {"tiers": [{"price": 100, "upto": 5000}], "divide": {"by": 1000}},
            "up to 5,000: $1.00 per 1,000, rounded down",
        ),
        ({"tiers": [{"price": 100}], "divide": {"by": 1}}, "$1.00 each"),
        ({"tiers": [{"upto": 5}], "divide": {"by": 2}}, "5 included"),
    ],
)
def test_a_feature_in_words(fields: dict[str, Any], expected: str) -> None:
    assert describe(feature(**fields)) == expected


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("@daily", "€5.00 a day"),
        ("@weekly", "€5.00 a week"),
        ("@monthly", "€5.00 a month"),
        ("@yearly", "€5.00 a year"),
    ],
)
def test_a_base_is_due_once_an_interval(interval: Interval, expected: str) -> None:
    assert describe(feature(base=500), "eur", interval) == expected
    assert describe(feature(tiers=[{"base": 500}]), "eur", interval) == f"{expected}, unlimited"


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        (0, "usd", "$0.00"),
        (1, "usd", "$0.01"),
        (123456789, "usd", "$1,234,567.89"),
        (Decimal("0.000000000001"), "usd", "$0.00000000000001"),
        (Decimal("999999999999999.999999999999"), "usd", "$9,999,999,999,999.99999999999999"),
        (Decimal("1E+3"), "gbp", "£10.00"),
        (1250, "sek", "12.50 sek"),
        (1250, "xyz", "12.50 xyz"),
        (500, "jpy", "¥500"),
        (Decimal("0.5"), "jpy", "¥0.5"),
        (50000, "krw", "₩50,000"),
        (1500, "vnd", "1,500 vnd"),
        (1250, "kwd", "1.250 kwd"),
        (12345, "clf", "1.2345 clf"),
        (Fraction(1, 8), "usd", "$0.00125"),
        (Fraction(1000, 12), "usd", "$0.83"),
        (Fraction(1, 3), "jpy", "¥0"),
        (Fraction(5, 3), "jpy", "¥2"),
        (-550, "usd", "-$5.50"),
        (-550, "sek", "-5.50 sek"),
        (Fraction(-1, 3), "usd", "$0.00"),
    ],
)
def test_an_amount_of_money(amount: Decimal | Fraction | int, currency: str, expected: str) -> None:
    assert money(amount, currency) == expected


@given(st.decimals(0, 10**15 - 1, places=12), st.sampled_from([("usd", 2), ("jpy", 0), ("bhd", 3), ("uyw", 4)]))
def test_an_amount_is_written_exactly_whatever_the_context(amount: Decimal, currency: tuple[str, int]) -> None:
    code, decimals = currency
    with localcontext(prec=3):
        text = money(amount, code)
    (number,) = re.findall(r"[0-9][0-9,.]*", text)
    assert Fraction(number.replace(",", "")) * 10**decimals == Fraction(amount)
    assert len(number.partition(".")[2]) >= decimals
    assert not re.search(r"\.[0-9]*0$", number) or len(number.partition(".")[2]) == decimals


def bill(text: str, used: int) -> Fraction:
    """What a graduated price comes to, in dollars, for somebody who has nothing but the words."""
    total, below = Fraction(0), 0
    for position, band in enumerate(text.split(", then ")):
        fee = re.search(r"\$([0-9,.]+) (?:more )?a month", band)
        each = re.search(r"\$([0-9,.]+) each", band)
        end = re.search(r"(?:up to|first) ([0-9,]+)|^(?:\$[^ ]+ a month, )?([0-9,]+) included", band)
        upto = int((end[1] or end[2]).replace(",", "")) if end else None
        if fee and (used > below or position == 0):
            total += Fraction(fee[1].replace(",", ""))
        units = max(0, (used if upto is None else min(used, upto)) - below)
        total += units * Fraction(each[1].replace(",", "")) if each else 0
        below = upto or 0
    return total


@given(st.data())
def test_whoever_reads_a_graduated_price_comes_to_the_same_bill(data: st.DataObject) -> None:
    amounts = st.just(Decimal(0)) | st.decimals(0, 100_000, places=4)
    ends: list[int | None] = [*sorted(data.draw(st.sets(st.integers(1, 5000), min_size=1, max_size=4)))]
    most = 6000 if data.draw(st.booleans()) else ends[-1] or 0  # beyond a limit nothing is said
    ends[-1] = None if most == 6000 else ends[-1]
    priced = Feature(tiers=tuple(PriceTier(end, data.draw(amounts), data.draw(amounts)) for end in ends))
    used = data.draw(st.integers(0, most))
    assert bill(describe(priced), used) * 100 == cost(priced, used)
