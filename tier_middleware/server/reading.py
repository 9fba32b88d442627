"""What a client sent, as the struct that it must be: bodies and queries. Pure.

Bodies are read as Tier's own server reads them (``tests/vectors``): an empty one and ``null`` are an empty object,
names match in any case, of a name given twice the last one counts, and what follows the first value is passed over.
Most bodies need none of that and are decoded at once; the others are read again, at leisure. What is no JSON (NaN, lone
surrogates) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from msgspec.inspect import Field, StructType

from ..names import shown
from .faults import Fault, bad_request

__all__ = ["MAX_DEPTH", "checked_depth", "document_in", "read_body", "read_query"]

S = TypeVar("S")

MAX_DEPTH: Final = 32  # of arrays and objects in each other; a pricing model has 7
MAX_QUERY_FIELDS: Final = 50
MAX_DIGITS: Final = 40  # of a whole number: none that means anything here has more

# What a text, a comment or a bracket is; a text or a comment without an end goes on to the end of the body.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?|[\[{]|[\]}]', re.DOTALL)
_SPACE: Final = " \t\r\n"
_PATH = re.compile(r"(.*?)(?: - at `\$?\.?(.*?)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(.*)`", re.DOTALL)


def read_body(body: bytes, kind: type[S]) -> S:
    """The body as a struct. Raises `Fault` (400) that names the field and the value."""
    checked_depth(body)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _converted(_without_case(document_in(body), kind), kind)


def checked_depth(body: bytes) -> None:
    """Refuse what is nested too deeply, before anything recurses into it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKENS.finditer(body):
        first = token[0][:1]
        depth += (first in b"[{") - (first in b"]}")
        if depth > MAX_DEPTH:
            raise bad_request(f"body: is nested more than {MAX_DEPTH} deep")


def document_in(body: bytes) -> Any:
    """The first JSON value of a body; of an empty one, and for null, an empty object."""
    try:
        text = body.decode()
        if not text.strip(_SPACE):
            return {}
        value, _ = _DECODER.raw_decode(text, len(text) - len(text.lstrip(_SPACE)))
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates: nothing that keeps texts takes them
    except (ValueError, RecursionError):
        raise bad_request("invalid json syntax") from None
    return {} if value is None else value


def _refused(text: str) -> NoReturn:
    raise ValueError(text)


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise bad_request(f"body: a number must have at most {MAX_DIGITS} digits, got {text[:MAX_DIGITS]}...")
    return int(text)


_DECODER: Final = json.JSONDecoder(parse_constant=_refused, parse_int=_whole)


def _without_case(value: Any, kind: Any) -> Any:
    """The value with the names of objects spelled as the struct spells them."""
    info = kind if isinstance(kind, msgspec.inspect.Type) else msgspec.inspect.type_info(kind)
    if isinstance(info, msgspec.inspect.Metadata):
        return _without_case(value, info.type)
    if isinstance(info, msgspec.inspect.UnionType):
        for inner in info.types:
            value = _without_case(value, inner)
    elif isinstance(value, list) and isinstance(info, msgspec.inspect.CollectionType):
        return [_without_case(item, info.item_type) for item in value]
    elif isinstance(value, dict) and isinstance(info, StructType):
        known: dict[str, Field] = {field.encode_name.casefold(): field for field in info.fields}
        found: dict[str, Any] = {}
        for name, item in value.items():
            field = known.get(name.casefold())
            if field is None:
                found[name] = item
            else:
                found[field.encode_name] = _without_case(item, field.type)
        return found
    return value


def _converted(value: Any, kind: type[S], *, strict: bool = True) -> S:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise _fault(str(error), value) from None


def _fault(text: str, value: Any) -> Fault:
    """What msgspec says of a value, in Tier's words where it has some, else with the field and the value."""
    found = _PATH.fullmatch(text)
    problem, path = (found[1], found[2] or "") if found else (text, "")
    field = _FIELD.fullmatch(problem)
    if field and "unknown" in problem:
        return bad_request(f"unknown field {json.dumps(field[1])}")
    if field:
        return _missing(field[1])
    got = _at(value, path)
    return bad_request(f"{path or 'body'}: {_words(problem)}" + ("" if got is _NOWHERE else f", got {shown(got)}"))


def _words(problem: str) -> str:
    """What msgspec says is wrong, without Python's words for it."""
    wanted = _EXPECTED.fullmatch(problem)
    if wanted is None:
        return problem[:1].lower() + problem[1:].replace("`", "")
    types = " or ".join(_TYPES.get(name, name) for name in wanted[1].split(" | "))
    return f"must be {types}{wanted[2]}"


_EXPECTED = re.compile(r"Expected `([^`]*)`(.*?)(?:, got `.*)?", re.DOTALL)
_TYPES: Final = {
    "int": "a whole number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "datetime": "an RFC 3339 time",
}


def _missing(name: str) -> Fault:
    if name == "org":
        return bad_request('org must be prefixed with "org:"')
    if name == "feature":
        return Fault(400, "feature_not_found", "feature not found")
    return bad_request(f"{name}: must be given")


_NOWHERE: Final = object()


def _at(value: Any, path: str) -> Any:
    """The value that a path of msgspec's leads to: ``phases[0].features``."""
    for step in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, TypeError, ValueError):  # such as [...], which is any of a mapping
            return _NOWHERE
    return value


def read_query(query: bytes, kind: type[S]) -> S:
    """The query as a struct; the first of several values counts, save for fields that are lists."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError as error:
        raise bad_request(f"query: cannot be read ({_reason(error)})") from None
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        given.setdefault(name, []).append(text)
    lists = {field.encode_name for field in _fields(kind) if isinstance(field.type, msgspec.inspect.CollectionType)}
    asked = {name: texts if name in lists else texts[0] for name, texts in given.items()}
    return _converted(asked, kind, strict=False)


def _reason(error: ValueError) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeError) else "it has too many fields"


def _fields(kind: type[Any]) -> Sequence[Field]:
    return cast("StructType", msgspec.inspect.type_info(kind)).fields
