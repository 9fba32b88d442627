"""Prices for people, in plain English: ``first 1,000 included, then $0.01 each``. Exact, and no locale is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from types import MappingProxyType
from typing import Final, NamedTuple

from .model import Divide, Feature, Interval, PriceTier

__all__ = ["describe", "money"]

MOST_DECIMALS: Final = 12  # of a price, in the currency's smallest unit

# ISO 4217: digits after the point, where there are not two.
_UNUSUAL: Final = {
    0: "bif clp djf gnf isk jpy kmf krw pyg rwf ugx uyi vnd vuv xaf xof xpf",
    3: "bhd iqd jod kwd lyd omr tnd",
    4: "clf uyw",
}
_DECIMALS: Final = MappingProxyType({code: n for n, codes in _UNUSUAL.items() for code in codes.split()})
_SIGNS: Final = MappingProxyType({"eur": "€", "gbp": "£", "inr": "₹", "jpy": "¥", "krw": "₩", "usd": "$"})

_INTERVALS: Final = MappingProxyType[Interval, str](
    {"@daily": "a day", "@weekly": "a week", "@monthly": "a month", "@yearly": "a year"}
)


def describe(feature: Feature, currency: str = "usd", interval: Interval = "@monthly") -> str:
    """What a feature costs, on one line; currency and interval are its plan's.

    On/off: ``included`` or ``$5.00 a month``. Metered: ``unlimited``, ``1,000 included``, ``$0.01 each``, ``first 1,000
    included, then $0.01 each``, ``up to 10: $2.00 each, then $1.00 each up to 20``, ``$5.00 a month plus $0.01 each``,
    ``$1.00 per 1,000, rounded up``. Volume: ``one price for all units, by their total: $2.00 each up to 10; $1.00 each
    from 11``.
    """
    words = _Words(feature.divide, currency, _INTERVALS[interval])
    if not feature.is_metered:
        return words.fee(feature.base) if feature.base else "included"
    if feature.mode == "volume" and len(feature.tiers) > 1:
        return "one price for all units, by their total: " + "; ".join(words.volume(feature.tiers))
    first, *further = feature.tiers
    return ", then ".join([words.first(first, is_only=not further), *map(words.further, further)])


def money(amount: Decimal | Fraction | int, currency: str = "usd") -> str:
    """An amount in the currency's smallest unit as people write it: ``$0.0025``, ``¥500``, ``12.50 sek``.

    Exact, with as many decimals as it has. What has no end, such as a twelfth of a yearly price, is rounded half to
    even, to the currency's own decimals.
    """
    decimals = _DECIMALS.get(currency, 2)
    value = Fraction(amount) / 10**decimals
    shown = next((n for n in range(decimals, decimals + MOST_DECIMALS + 1) if 10**n % value.denominator == 0), decimals)
    digits = round(value * 10**shown)
    whole, part = divmod(abs(digits), 10**shown)
    number = f"{whole:,}" + (f".{part:0{shown}}" if shown else "")
    sign = _SIGNS.get(currency)
    return ("-" if digits < 0 else "") + (f"{sign}{number}" if sign else f"{number} {currency}")


class _Words(NamedTuple):
    """How the price tiers of one feature are put."""

    divide: Divide | None
    currency: str
    interval: str

    def first(self, tier: PriceTier, *, is_only: bool) -> str:
        """The first tier's base is due in any case."""
        if tier.price:
            if tier.upto is None or tier.base:
                return self.price(tier) + _up_to(tier)
            return f"up to {tier.upto:,}: {self.each(tier)}"
        units = "unlimited" if tier.upto is None else f"{'' if is_only else 'first '}{tier.upto:,} included"
        return f"{self.fee(tier.base)}, {units}" if tier.base else units

    def further(self, tier: PriceTier) -> str:
        return self.price(tier, more="more ") + _up_to(tier)

    def volume(self, tiers: Sequence[PriceTier]) -> Iterator[str]:
        yield self.price(tiers[0]) + _up_to(tiers[0])
        for before, tier in pairwise(tiers):
            assert before.upto is not None  # only the last tier has no end
            yield f"{self.price(tier)} from {before.upto + 1:,}" + ("" if tier.upto is None else f" to {tier.upto:,}")

    def price(self, tier: PriceTier, more: str = "") -> str:
        parts = [self.fee(tier.base, more)] if tier.base else []
        return " plus ".join([*parts, self.each(tier)] if tier.price else parts) or "free"

    def fee(self, base: Decimal, more: str = "") -> str:
        return f"{money(base, self.currency)} {more}{self.interval}"

    def each(self, tier: PriceTier) -> str:
        price = money(tier.price, self.currency)
        if self.divide is None or self.divide.by == 1:
            return f"{price} each"
        return f"{price} per {self.divide.by:,}, rounded {self.divide.rounding}"


def _up_to(tier: PriceTier) -> str:
    return "" if tier.upto is None else f" up to {tier.upto:,}"
