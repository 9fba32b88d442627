"""JSON whose numbers are exact, both ways, and that says where it is wrong. Comments and trailing commas are fine."""

from __future__ import annotations

import json
import re
from collections import Counter
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from .errors import PricingError
from .names import MAX_NAME

__all__ = ["MAX_TEXT", "JsonObject", "at", "digits", "read_json", "write_json"]

MAX_TEXT: Final = 1_000_000  # characters; what a reader of models from outside should have to hold

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_JSON5_ERROR = re.compile(r"<string>:(\d+) (.*) at column (\d+)", re.DOTALL)


class JsonObject(dict[str, object]):
    """A JSON object that remembers a name given twice: which one was meant is for a person to say."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.twice: str | None = None
        if len(self) < len(pairs):
            self.twice = Counter(name for name, _ in pairs).most_common(1)[0][0]


def _whole(text: str, base: int = 10) -> int | Decimal:
    # int() refuses thousands of digits without saying where; as a Decimal the number reaches a check that can
    return int(text, base) if base != 10 or len(text) <= 40 else Decimal(text)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds: the checks refuse NaN where it stands
        return Decimal("NaN")


_HOOKS: Final[dict[str, Any]] = {
    "object_pairs_hook": JsonObject,
    "parse_int": _whole,
    "parse_float": _decimal,
    "parse_constant": Decimal,  # NaN and Infinity: refused by the checks, which know the place
}


def read_json(text: str, source: str) -> object:
    """The value of a JSON text; `PricingError` names the ``source`` and the place of a mistake in its syntax."""
    if len(text) > MAX_TEXT:
        raise PricingError(f"{source}: must have at most {MAX_TEXT} characters", path=source)
    try:
        return _json_value(text)
    except RecursionError:
        raise PricingError(f"{source}: is nested too deeply", path=source) from None
    except ValueError as error:
        where, reason = _syntax_error(str(error), source)
        raise PricingError(f"{where}: {reason}", path=where) from None


def _json_value(text: str) -> object:
    try:
        return json.loads(text, **_HOOKS)
    except json.JSONDecodeError:
        import json5  # slow to import and to parse, and most files are plain JSON

        return json5.loads(text, **_HOOKS)


def _syntax_error(message: str, source: str) -> tuple[str, str]:
    found = _JSON5_ERROR.fullmatch(message)
    return (f"{source}:{found[1]}:{found[3]}", found[2]) if found else (source, message)


def write_json(value: object, indent: int | None, depth: int = 0) -> str:
    """As `json.dumps`, which cannot write a Decimal as a number."""
    match value:
        case dict():
            items = (f"{write_json(name, None)}: {write_json(item, indent, depth + 1)}" for name, item in value.items())
            return _bracketed("{", list(items), "}", indent, depth)
        case list():
            return _bracketed("[", [write_json(item, indent, depth + 1) for item in value], "]", indent, depth)
        case Decimal():
            return digits(value)
    return json.dumps(value, ensure_ascii=False)


def _bracketed(opening: str, items: list[str], closing: str, indent: int | None, depth: int) -> str:
    if indent is None or not items:
        return opening + ", ".join(items) + closing
    outer = "\n" + " " * indent * depth
    inner = outer + " " * indent
    return opening + inner + ("," + inner).join(items) + outer + closing


def digits(amount: Decimal) -> str:
    """The one spelling of a number: no exponent, no trailing zeros. Not normalize(), which rounds."""
    text = format(amount, "f") if amount else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text


def at(path: str, name: str) -> str:
    """The path of a member: ``tiers.price``, or ``plans["plan:free@1"]`` where the name is no identifier."""
    if _IDENTIFIER.fullmatch(name):
        return f"{path}.{name}" if path else name
    return f"{path}[{json.dumps(name[:MAX_NAME])}]"
