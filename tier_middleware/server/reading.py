"""What a client sent, as the struct that it must be: bodies and queries. Pure.

Bodies are read as Tier's own server reads them (``tests/vectors``): an empty one and ``null`` are an empty object,
names match in any case, of a name given twice the last one counts, and what follows the first value is passed over.
Most bodies need none of that and are decoded at once; the others are read again, at leisure. What is no JSON (NaN, lone
surrogates) is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any, Final, NoReturn, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from msgspec.inspect import CollectionType, DictType, Metadata, StrType, StructType, Type, UnionType, type_info

from ..decoders import decoder_of, known
from ..model import Model
from ..names import shown
from ..pricing import read_model
from .faults import Fault, bad_request

__all__ = ["read_body", "read_form", "read_model_body", "read_query"]

S = TypeVar("S")

MAX_DEPTH: Final = 32  # of arrays and objects in each other; a pricing model has 7
MAX_QUERY_FIELDS: Final = 50
MAX_DIGITS: Final = 40  # of a whole number: none that means anything here has more

# What a text, a comment or a bracket is; a text or a comment without an end goes on to the end of the body.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?|[\[{]|[\]}]', re.DOTALL)
# Texts, and commas before a closing bracket.
_ENDINGS = re.compile(rb'("(?:[^"\\]++|\\.)*+"?)|,(?=\s*[\]}])', re.DOTALL)
_SPACE: Final = " \t\r\n"
_AT: Final = " - at `$"
_FIELD = re.compile(r"Object (?:missing required|contains unknown) field `(.*)`", re.DOTALL)


def read_body(body: bytes, kind: type[S]) -> S:
    """The body as a struct. Raises `Fault` (400) that names the field and the value."""
    _checked_depth(body)
    try:
        return decoder_of(kind).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _converted(_without_case(_document_in(body, _DECODER), kind), kind)


def read_model_body(body: bytes, kind: type[Any]) -> Model:
    """A pricing model, whose prices are exact. Comments and trailing commas are fine; a second value is not."""
    _checked_depth(body)
    plain = _standard(body)
    document = _without_case(_document_in(plain, _EXACT_DECODER, is_alone=True), kind)
    if not isinstance(document, dict):  # a text would be the path of a file here
        raise bad_request(f"body: must be an object, got {shown(document)}")
    model = read_model({"plans": {}} | document)
    _converted(document, kind)  # what is documented holds
    return model


def _standard(body: bytes) -> bytes:
    """JSON without the comments and trailing commas of HuJSON."""
    bare = _TOKENS.sub(lambda token: b" " if token[0].startswith(b"/") else token[0], body)
    return _ENDINGS.sub(lambda found: found[1] or b"", bare)


def read_form(body: bytes, kind: type[S]) -> S:
    """What a page's form sent, as a struct."""
    return read_query(body, kind)


def _checked_depth(body: bytes) -> None:
    """Refuse what is nested too deeply, before anything recurses into it."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKENS.finditer(body):
        first = token[0][:1]
        depth += (first in b"[{") - (first in b"]}")
        if depth > MAX_DEPTH:
            raise bad_request(f"body: is nested more than {MAX_DEPTH} deep")


def _document_in(body: bytes, decoder: json.JSONDecoder, *, is_alone: bool = False) -> Any:
    """The first JSON value of a body; of an empty one, and for null, an empty object."""
    try:
        text = body.decode().strip(_SPACE)
        if not text and not is_alone:
            return {}
        value, end = decoder.raw_decode(text)
        if is_alone and end < len(text):
            raise ValueError(text[end:])
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False, default=str).encode()  # no lone surrogates: nothing can keep them
    except (ValueError, RecursionError):
        raise bad_request("invalid json syntax") from None
    return {} if value is None else value


def _refused(text: str) -> NoReturn:
    raise ValueError(text)


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise bad_request(f"body: a number must have at most {MAX_DIGITS} digits, got {text[:MAX_DIGITS]}...")
    return int(text)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent beyond all bounds
        raise bad_request(f"body: a number must be finite, got {shown(text)}") from None


_DECODER: Final = json.JSONDecoder(parse_constant=_refused, parse_int=_whole)
_EXACT_DECODER: Final = json.JSONDecoder(parse_constant=_refused, parse_int=_whole, parse_float=_decimal)


def _without_case(value: Any, kind: Any) -> Any:
    """The value with the names of objects spelled as the struct spells them.

    What is null is left out, or where it must be a text is the empty one, as in Go. Names that a struct does not know
    and lets pass are left out, too.
    """
    info = _bare(kind if isinstance(kind, Type) else type_info(kind))
    if isinstance(info, UnionType):
        for inner in info.types:
            value = _without_case(value, inner)
    elif isinstance(value, list) and isinstance(info, CollectionType):
        return [_without_case(item, info.item_type) for item in value]
    elif isinstance(value, dict) and isinstance(info, DictType):
        return {name: _without_case(item, info.value_type) for name, item in value.items()}
    elif isinstance(value, dict) and isinstance(info, StructType):
        return dict(_renamed(value, info))
    return value


def _bare(info: Type) -> Type:
    return info.type if isinstance(info, Metadata) else info


def _renamed(value: dict[str, Any], info: StructType) -> Iterator[tuple[str, Any]]:
    known = {field.encode_name.casefold(): field for field in info.fields}
    for name, item in value.items():
        field = known.get(name.casefold())
        if field is None and info.forbid_unknown_fields:
            yield name, item
        elif field is not None and item is None and isinstance(_bare(field.type), StrType):
            yield field.encode_name, ""
        elif field is not None and (item is not None or field.required):
            yield field.encode_name, _without_case(item, field.type)


def _converted(value: Any, kind: type[S], *, strict: bool = True) -> S:
    try:
        return msgspec.convert(value, known(kind), strict=strict)
    except msgspec.ValidationError as error:
        raise _fault(str(error), value) from None


def _fault(text: str, value: Any) -> Fault:
    """What msgspec says of a value, in Tier's words where it has some, else with the field and the value."""
    problem, found, path = text.rpartition(_AT)  # the last: a name in the text may be somebody's attempt at another
    problem, path = (problem, path.removesuffix("`").removeprefix(".")) if found else (text, "")
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
    lists = _lists_of(kind)  # type: ignore[arg-type]  # a class is hashable
    asked = {name: texts if name in lists else texts[0] for name, texts in given.items()}
    return _converted(asked, kind, strict=False)


def _reason(error: ValueError) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeError) else "it has too many fields"


@cache
def _lists_of(kind: type[Any]) -> frozenset[str]:
    """The fields that take all the values of a query."""
    fields = cast("StructType", type_info(kind)).fields
    return frozenset(one.encode_name for one in fields if isinstance(_bare(one.type), CollectionType))
