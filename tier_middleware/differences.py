"""Where two values differ, place by place. Knows shapes only: dataclasses, mappings and tuples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import zip_longest
from typing import Final, Literal, TypeAlias

from .exact_json import at

__all__ = ["ABSENT", "Difference", "differences"]

Kind: TypeAlias = Literal["new", "changed", "missing"]

ABSENT: Final = object()
"""Stands where nothing does, since None is a value: of a price tier without end."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where a pricing model differs from another.

    ``path`` is written as in messages, ``plans["plan:free@1"].features["feature:x"].tiers[0].upto``. What stands there
    is ``"new"`` in the other model, ``"missing"`` from it, or ``"changed"``. ``before`` and ``after`` are the values of
    `tier_middleware.model`, None where nothing stands.
    """

    plan: str
    path: str
    kind: Kind
    before: object
    after: object


def differences(path: str, before: object, after: object) -> Iterator[tuple[str, Kind, object, object]]:
    """All places where the values differ, as deep as both have a place: fields in their order, names sorted."""
    if before == after:
        return
    if before is ABSENT:
        yield path, "new", None, after
    elif after is ABSENT:
        yield path, "missing", before, None
    elif is_dataclass(before) and type(before) is type(after):
        for name in (field.name for field in fields(before)):
            yield from differences(at(path, name), getattr(before, name), getattr(after, name))
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted(before.keys() | after.keys()):
            yield from differences(at(path, name), before.get(name, ABSENT), after.get(name, ABSENT))
    elif isinstance(before, tuple) and isinstance(after, tuple):
        for index, pair in enumerate(zip_longest(before, after, fillvalue=ABSENT)):
            yield from differences(f"{path}[{index}]", *pair)
    else:
        yield path, "changed", before, after
