"""Reads, checks and writes pricing models: Tier's ``pricing.json``, JSON with comments and trailing commas.

Every mistake in a model is a `PricingError` whose message begins with its ``path``, as in
``plans["plan:free@1"].features["feature:x"].tiers[0].upto: must be a whole number > 0, got 1.5``.
What is written reads back as the same model, to the last decimal place.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Final, TypeVar, get_args

from .errors import ConfigurationError, InvalidRequest, PricingError
from .exact_json import MAX_TEXT, JsonObject, at, digits, read_json, write_json
from .model import ZERO, Aggregate, Difference, Divide, Feature, Interval, Mode, Model, Plan, PriceTier, Rounding
from .names import MAX_NAME, MAX_UNITS, checked_feature, checked_plan, nearest
from .read_only import ReadOnlyDict

__all__ = [
    "as_dict",
    "difference_text",
    "dumps",
    "json_value",
    "plan_conflict",
    "plan_text",
    "read_model",
    "read_plan",
]

MAX_AMOUNT: Final = Decimal(10**15)  # bounds the digits of a price; Stripe takes twelve before the point
MAX_DECIMALS: Final = 12  # Stripe's

_INTERVALS: Final[tuple[Interval, ...]] = get_args(Interval)
_MODES: Final[tuple[Mode, ...]] = get_args(Mode)
_AGGREGATES: Final[tuple[Aggregate, ...]] = get_args(Aggregate)
_ROUNDINGS: Final[tuple[Rounding, ...]] = get_args(Rounding)

_CURRENCY = re.compile(r"[a-z]{3}")

_Choice = TypeVar("_Choice", bound=str)


# Reading: from a source to a JSON value


def read_model(source: Model | Mapping[str, object] | str | os.PathLike[str]) -> Model:
    """The model of a file, a mapping or JSON text; a `Model` comes back with every plan's title filled in.

    A str that contains ``{`` is JSON text, any other a file's path; for a path with a brace in it use `pathlib.Path`.
    Raises `ConfigurationError` for a file that cannot be read, `PricingError` for a mistake in the model.
    """
    if isinstance(source, Model):
        return Model({name: replace(plan, title=plan.title or name) for name, plan in source.plans.items()})
    if isinstance(source, Mapping):
        return _model(source)
    if isinstance(source, str) and "{" in source:
        return _model(read_json(source, "model"))
    if isinstance(source, str | os.PathLike):
        return _model(read_json(_file_text(source), Path(source).name))
    raise ConfigurationError(
        f"pricing: must be a Model, a mapping, a path or JSON text, got {_shown(source)}", path="pricing"
    )


def read_plan(name: str, text: str) -> Plan:
    """The plan that `plan_text` wrote."""
    return _plan(name, read_json(text, name), _at("plans", name))


def _file_text(source: str | os.PathLike[str]) -> str:
    shown = repr(os.fspath(source))
    try:
        with open(source, encoding="utf-8-sig") as file:  # -sig: editors on Windows put a mark first
            return file.read(MAX_TEXT + 1)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"pricing: {shown} is not UTF-8 text: {error.reason}", path="pricing") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"pricing: cannot read {shown}: {reason}", path="pricing") from error


# Checking: from a JSON value to a model


def _model(value: object) -> Model:
    given = _fields(value, "", ("plans",))
    if "plans" not in given:
        raise _mistake("plans", "must be given")
    plans = _object(given["plans"], "plans")
    return Model(ReadOnlyDict({name: _plan(name, plan, _at("plans", name)) for name, plan in plans.items()}))


def _plan(name: object, value: object, path: str) -> Plan:
    plan = _name(checked_plan, name, path)
    given = _fields(value, path, ("title", "currency", "interval", "features"))
    return Plan(
        plan,
        title=_text(given.get("title", ""), f"{path}.title") or plan,
        currency=_currency(given.get("currency", "usd"), f"{path}.currency"),
        interval=_choice(given.get("interval", "@monthly"), f"{path}.interval", _INTERVALS),
        features=_features(given.get("features", {}), f"{path}.features"),
    )


def _features(value: object, path: str) -> Mapping[str, Feature]:
    features = _object(value, path)
    if not features:
        raise _mistake(path, "must have at least one feature")
    return ReadOnlyDict(
        {
            _name(checked_feature, name, _at(path, name)): _feature(feature, _at(path, name))
            for name, feature in features.items()
        }
    )


def _feature(value: object, path: str) -> Feature:
    given = _fields(value, path, ("title", "base", "tiers", "mode", "aggregate", "divide"))
    title = _text(given.get("title", ""), f"{path}.title")
    base = _amount(given.get("base", 0), f"{path}.base")
    tiers = _tiers(given.get("tiers", ()), f"{path}.tiers")
    mode = _choice(given.get("mode", "graduated"), f"{path}.mode", _MODES)
    aggregate = _choice(given.get("aggregate", "sum"), f"{path}.aggregate", _AGGREGATES)
    divide = _divide(given["divide"], tiers, f"{path}.divide") if "divide" in given else None
    if not tiers:  # Tier takes a mode and an aggregate here, and pull gives back none
        return Feature(title, base)
    if "base" in given:
        raise _mistake(f"{path}.base", "must not be given together with tiers: give the first tier a base")
    return Feature(title, ZERO, tiers, mode, aggregate, divide)


def _tiers(value: object, path: str) -> tuple[PriceTier, ...]:
    if not isinstance(value, list | tuple):
        raise _mistake(path, "must be an array", value)
    tiers = tuple(_tier(tier, f"{path}[{index}]") for index, tier in enumerate(value))
    below = 0
    for index, tier in enumerate(tiers[:-1]):
        if tier.upto is None:
            raise _mistake(f"{path}[{index}].upto", "must be given: only the last tier may leave it out")
        below = _rising(tier.upto, below, f"{path}[{index}].upto")
    if tiers and tiers[-1].upto is not None:
        _rising(tiers[-1].upto, below, f"{path}[{len(tiers) - 1}].upto")
    return tiers


def _rising(upto: int, below: int, path: str) -> int:
    if upto <= below:
        raise _mistake(path, f"must be larger than {below}, the upto of the tier before", upto)
    return upto


def _tier(value: object, path: str) -> PriceTier:
    given = _fields(value, path, ("upto", "price", "base"))
    return PriceTier(
        upto=_upto(given.get("upto"), f"{path}.upto"),
        price=_amount(given.get("price", 0), f"{path}.price"),
        base=_amount(given.get("base", 0), f"{path}.base"),
    )


def _upto(value: object, path: str) -> int | None:
    """Tier takes null and the largest int64 for "no end", unlike null in any other place."""
    upto = MAX_UNITS if value is None else _positive(value, path)
    return None if upto == MAX_UNITS else upto


def _divide(value: object, tiers: tuple[PriceTier, ...], path: str) -> Divide:
    given = _fields(value, path, ("by", "rounding"))
    if "by" not in given:
        raise _mistake(f"{path}.by", "must be given")
    if len(tiers) != 1 or tiers[0].base:  # of several tiers nobody could say whether upto is divided too
        raise _mistake(path, "must only be given with a single tier without base: Stripe divides nothing else")
    by = _positive(given["by"], f"{path}.by")
    rounding = given.get("rounding", "")
    return Divide(by, "down" if rounding == "" else _choice(rounding, f"{path}.rounding", _ROUNDINGS))


def _fields(value: object, path: str, known: tuple[str, ...]) -> Mapping[str, object]:
    given = _object(value, path)
    for name in given:
        if name not in known:
            meant = nearest(str(name)[:MAX_NAME], known)
            hint = f"did you mean {meant!r}?" if meant else f"known are {', '.join(known)}"
            raise _mistake(_at(path, name), f"unknown field, {hint}")
    return given


def _object(value: object, path: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise _mistake(path or "model", "must be an object", value)
    if isinstance(value, JsonObject) and value.twice is not None:
        raise _mistake(_at(path, value.twice), "is given twice")
    return value


def _name(check: Callable[[object, str], str], name: object, path: str) -> str:
    if isinstance(name, str) and len(name) > MAX_NAME:
        raise _mistake(path, f"must have at most {MAX_NAME} characters")
    try:
        return check(name, path)
    except InvalidRequest as error:
        raise PricingError(error.message, path=path) from None


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME or re.search("[\x00\ud800-\udfff]", value):
        raise _mistake(path, f"must be a text of at most {MAX_NAME} characters", value)
    return value


def _currency(value: object, path: str) -> str:
    if not isinstance(value, str) or not _CURRENCY.fullmatch(value):
        raise _mistake(path, "must be three lower-case letters, as in 'usd'", value)
    return value


def _choice(value: object, path: str, choices: tuple[_Choice, ...]) -> _Choice:
    for choice in choices:
        if choice == value:
            return choice
    raise _mistake(path, f"must be one of {', '.join(map(repr, choices))}", value)


def _positive(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise _mistake(path, "must be a whole number > 0", value)
    if value > MAX_UNITS:
        raise _mistake(path, f"must be at most {MAX_UNITS}", value)
    return int(value)


def _amount(value: object, path: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _mistake(path, "must be a number >= 0", value)
    # repr: the shortest text that means this float is what its author wrote
    amount = Decimal(float.__repr__(value)) if isinstance(value, float) else Decimal(value)
    if not amount.is_finite() or amount < 0:
        raise _mistake(path, "must be a number >= 0", value)
    if amount >= MAX_AMOUNT:
        raise _mistake(path, f"must be less than {MAX_AMOUNT}", value)
    # adjusted() first: spelling out 1e-999999999 takes a gigabyte
    if amount and (amount.adjusted() < -MAX_DECIMALS or _decimals(amount) > MAX_DECIMALS):
        raise _mistake(path, f"must have at most {MAX_DECIMALS} decimal places", value)
    return Decimal(digits(amount))


def _decimals(amount: Decimal) -> int:
    return len(digits(amount).partition(".")[2])


def _at(path: str, name: object) -> str:
    return at(path, name) if isinstance(name, str) else f"{path}[{_shown(name)}]"


_NOT_SHOWN: Final = object()


def _mistake(path: str, message: str, got: object = _NOT_SHOWN) -> PricingError:
    ending = "" if got is _NOT_SHOWN else f", got {_shown(got)}"
    return PricingError(f"{path}: {message}{ending}", path=path)


def _shown(value: object) -> str:
    """How a value appears in a message: on one line, as in JSON, and bounded."""
    match value:
        case None | bool():
            return json.dumps(value)
        case Mapping():
            return "an object"
        case list() | tuple():
            return "an array"
        case int() if value.bit_length() > 256:
            return "a huge number"
        case Decimal():
            text = str(value)
        case _:
            text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Writing


def as_dict(model: Model) -> dict[str, object]:
    """The model as Tier's ``pull`` gives it: defaults left out, plan titles always given.

    Numbers are ints where whole and floats where these are exact; else a Decimal, which `json.dumps` refuses
    rather than rounds (`dumps` writes it).
    """
    return {"plans": {name: _json(model.plans[name], _plain_number) for name in sorted(model.plans)}}


def dumps(model: Model, *, indent: int | None = 2) -> str:
    """The model as JSON text; every number is exact and without an exponent."""
    return write_json({"plans": {name: _json(model.plans[name]) for name in sorted(model.plans)}}, indent)


def plan_text(plan: Plan) -> str:
    """The plan as canonical JSON on one line, without its name: equal plans have equal texts and no others have."""
    return write_json(_json(plan), None)


def _exact(amount: Decimal) -> object:
    return amount


def _plain_number(amount: Decimal) -> object:
    if amount == amount.to_integral_value():
        return int(amount)
    return float(amount) if Decimal(repr(float(amount))) == amount else amount


def _json(value: object, number: Callable[[Decimal], object] = _exact) -> object:
    match value:
        case Plan():
            rest = {name: item for name, item in _given(value).items() if name not in ("name", "title")}
            return {"title": value.title or value.name, **{name: _json(item, number) for name, item in rest.items()}}
        case Divide():
            return {"by": value.by, **_given(value)}
        case Feature() | PriceTier():
            return {name: _json(item, number) for name, item in _given(value).items()}
        case Mapping():
            return {name: _json(value[name], number) for name in sorted(value)}
        case tuple():
            return [_json(item, number) for item in value]
        case Decimal():
            return number(value)
    return value


def _given(value: Plan | Feature | PriceTier | Divide) -> dict[str, object]:
    """The fields that differ from their defaults."""
    pairs = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: item for field, item in pairs if item != field.default}


# Comparing


def plan_conflict(stored: Plan, pushed: Plan) -> PricingError | None:
    """The error for a plan pushed again with other content; None if the content is the same."""
    found = Model({stored.name: stored}).diff(Model({stored.name: pushed}))
    if not found:
        return None
    first = found[0]
    return _mistake(
        first.path,
        f"{stored.name} is stored with {_content(first.before)} and pushed with {_content(first.after)}; "
        "plans are immutable: raise the version",
    )


def difference_text(difference: Difference) -> str:
    """A difference between what is stored and what is pushed, on one line."""
    before, after = _content(difference.before), _content(difference.after)
    return f"{difference.path}: stored with {before}, pushed with {after}"


def json_value(value: object) -> object:
    """A part of a model as it stands in `as_dict`."""
    return _json(value, _plain_number)


def _content(value: object) -> str:
    text = "nothing" if value is None else write_json(_json(value), None)
    return text if len(text) <= 80 else text[:77] + "..."
