"""The OpenAPI document, from the table of endpoints and the structs that check what is asked: nothing is said twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct

from .. import __version__
from ..wire import CLOCK_HEADER
from .endpoint import Endpoint
from .faults import WireError
from .reading import read_body

__all__ = ["described"]

REF: Final = "#/components/schemas/{name}"
ABOUT: Final = (
    "Entitlements and usage, in the words of Tier: plans have features, orgs are subscribed to plans, and an "
    "application asks for an org's limits before it serves a feature, and reports what was used after it. "
    "Every answer has an x-request-id, which is in the server's log, too."
)
CLOCK: Final = "Puts the request in the time of a test clock: orgs made under it are seen only under it."

NULL: Final = {"type": "null"}
KEY: Final = {"type": "http", "scheme": "basic", "description": "The key as user name, and no password"}

# Which errors there are besides those of the endpoint itself.
_ERRORS: Final = {
    400: "A mistake, which the message names, or an org or a feature that is not there",
    401: "The API key is missing or wrong",
    403: "A page of another origin asks",
    404: "There is none",
    408: "The body did not arrive in time",
    413: "The body is too large",
    503: "The engine is away",
}


def described(endpoints: Sequence[Endpoint], url: str, *, has_key: bool) -> dict[str, Any]:
    """The document of a server that is reached at ``url``, and asks for a key or not."""
    return _described(tuple(endpoints), has_key) | {"servers": [{"url": url}]}


@cache
def _described(endpoints: tuple[Endpoint, ...], has_key: bool) -> dict[str, Any]:
    shown = [one for one in endpoints if one.is_documented]
    schemas = _schemas(shown)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in shown:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
        if has_key and not endpoint.is_open:
            paths[endpoint.path][endpoint.method.lower()]["security"] = [{"key": []}]
    queries = {one.query.__name__ for one in shown if one.query is not None}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tier", "version": __version__, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in schemas.items() if name not in queries},
            **({"securitySchemes": {"key": KEY}} if has_key else {}),
        },
    }


def _schemas(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    bodies = [one.body for one in endpoints if one.body is not None]
    others = [kind for one in endpoints for kind in (one.query, *_answers(one)) if kind is not None]
    _, asked = msgspec.json.schema_components(bodies, ref_template=REF)
    _, schemas = msgspec.json.schema_components([*bodies, *others, WireError], ref_template=REF)
    return schemas | {name: _nullable(schemas[name]) for name in asked}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """A body's schema as bodies are read: null is taken for what is left out, where something may be."""
    properties = {
        name: field if name in schema["required"] or NULL in field.get("anyOf", ()) else _or_null(field)
        for name, field in schema["properties"].items()
    }
    return schema | {"properties": properties}


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {name: field[name] for name in ("description", "default") if name in field}
    return {"anyOf": [{name: value for name, value in field.items() if name not in about}, NULL], **about}


def _answers(endpoint: Endpoint) -> tuple[type[Struct], ...]:
    return endpoint.answer if isinstance(endpoint.answer, tuple) else (endpoint.answer,)


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.about,
        "parameters": [*_query(endpoint, schemas), *_headers(endpoint)],
        "responses": {"200": _done(endpoint), **{str(status): _error(status) for status in _statuses(endpoint)}},
    }
    if endpoint.body is not None:
        is_needed = bool(schemas[endpoint.body.__name__]["required"])
        schema = _ref(endpoint.body) if is_needed else _or_null(_ref(endpoint.body))
        is_needed = is_needed or endpoint.read is not read_body  # which takes no body for an empty object
        operation["requestBody"] = {"required": is_needed, "content": {"application/json": {"schema": schema}}}
    if endpoint.extension:
        operation["x-tier-extension"] = endpoint.extension
    return operation


def _query(endpoint: Endpoint, schemas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if endpoint.query is None:
        return
    found = schemas[endpoint.query.__name__]
    for name, schema in found["properties"].items():
        yield {"name": name, "in": "query", "required": name in found["required"], "schema": schema}


def _headers(endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    if endpoint.is_clocked:
        schema = {"type": "string", "pattern": "^(clock_[A-Za-z0-9]+)?$"}
        yield {"name": CLOCK_HEADER, "in": "header", "description": CLOCK, "schema": schema}
    for name, about in endpoint.header_about.items():
        schema = {"type": "string", "pattern": "^[!-~]{1,255}$"}
        yield {"name": name, "in": "header", "description": about, "schema": schema}


def _done(endpoint: Endpoint) -> dict[str, Any]:
    kinds = [_ref(kind) for kind in _answers(endpoint)]
    return {
        "description": "Done",
        "content": {endpoint.media: {"schema": kinds[0] if len(kinds) == 1 else {"anyOf": kinds}}},
    }


def _statuses(endpoint: Endpoint) -> list[int]:
    no_body = set() if endpoint.body is not None else {408, 413}
    no_key = {401, 403} if endpoint.is_open else set()
    nothing_asked = {400} if endpoint.body is None and endpoint.query is None and not endpoint.is_clocked else set()
    return [status for status in _ERRORS if status not in no_body | no_key | nothing_asked | ({404} - endpoint.also)]


def _error(status: int) -> dict[str, Any]:
    return {"description": _ERRORS[status], "content": {"application/json": {"schema": _ref(WireError)}}}


def _ref(kind: type[Struct]) -> dict[str, str]:
    return {"$ref": REF.format(name=kind.__name__)}
