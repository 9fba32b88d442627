"""A pricing model on the wire: what a push sends and a pull answers. `tier_middleware.pricing` says what is valid."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from ..names import MAX_UNITS

__all__ = ["DivideBody", "FeatureBody", "ModelBody", "PlanBody", "PushAnswer", "PushEntry", "TierBody"]

_AMOUNT = Meta(ge=0, description="In the currency's smallest unit; at most 12 decimals")
Amount = Annotated[int, _AMOUNT] | Annotated[float, _AMOUNT]


class TierBody(Struct):
    """A price tier: what units up to ``upto`` cost. Without ``upto`` there is no end."""

    upto: Annotated[int, Meta(ge=1, le=MAX_UNITS)] | None = None
    price: Amount | None = None
    base: Amount | None = None


class DivideBody(Struct, forbid_unknown_fields=True):
    by: Annotated[int, Meta(ge=1, le=MAX_UNITS)]
    rounding: Literal["up", "down", ""] | None = None


class FeatureBody(Struct, forbid_unknown_fields=True):
    """A feature of a plan: without price tiers it is on/off, and may have a ``base`` price."""

    title: str | None = None
    base: Amount | None = None
    mode: Literal["graduated", "volume"] | None = None
    aggregate: Literal["sum", "max", "last", "perpetual"] | None = None
    tiers: list[TierBody] | None = None
    divide: DivideBody | None = None


class PlanBody(Struct, forbid_unknown_fields=True):
    """A plan. It never changes: another content is another version."""

    title: str | None = None
    currency: (
        Annotated[str, Meta(description="Three lower-case letters", extra_json_schema={"pattern": "^[a-z]{3}$"})] | None
    ) = None
    interval: Literal["@daily", "@weekly", "@monthly", "@yearly"] | None = None
    features: dict[str, FeatureBody] | None = None


class ModelBody(Struct, forbid_unknown_fields=True):
    """Plans by name, as in ``plan:free@1``; features by name, as in ``feature:calls``."""

    plans: dict[str, PlanBody] | None = field(default_factory=dict)


class PushEntry(Struct):
    """What became of one feature: ``ok, created``, or ``failed, plan already exists``."""

    feature: str
    status: Literal["ok", "failed"]
    reason: str


class PushAnswer(Struct, omit_defaults=True):
    results: list[PushEntry] = field(default_factory=list)
