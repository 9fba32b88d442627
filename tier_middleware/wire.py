"""How a Tier server is asked over HTTP, and what an answer or an error of it means, whatever the call. Pure.

A success may come as ``text/plain``; what an error means is said by its code. Whether anybody was reached at all is for
`tier_middleware.engines.http.transport` to say, and what is asked for `tier_middleware.calls`.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from .decoders import decoder_of
from .errors import ConfigurationError, EngineUnavailable, InvalidRequest, NotEntitled, OrgNotFound, TierError
from .names import clock_of, org_name

__all__ = [
    "CLOCK_HEADER",
    "JSON",
    "KEY_HEADER",
    "Request",
    "Response",
    "asked_for",
    "authorization",
    "decoded",
    "done_in",
    "error_in",
    "foreign",
    "is_away",
    "is_keyed",
    "is_of_tier",
    "posted",
    "retry_after_seconds",
]

T = TypeVar("T")

KEY_HEADER: Final = "idempotency-key"
CLOCK_HEADER: Final = "tier-clock"
JSON: Final = ("content-type", "application/json")
MAX_SHOWN: Final = 300  # characters of an answer that is not Tier's
MAX_WAIT_SECONDS: Final = 3600  # that an answer may ask for: a date in the next century is somebody's mistake

_AWAY: Final = frozenset({401, 403, 407, 408, 425, 429})


class Request(NamedTuple):
    """What to send. ``org`` and ``feature`` say whose mistake an error is; they are not sent besides."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    org: str = ""
    feature: str = ""


class Response(NamedTuple):
    """What came back. Names of headers are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


# ---- requests -------------------------------------------------------------------------------------------------------


def authorization(api_key: str) -> str:
    """The header that says who asks: Basic, with the key as user name and no password."""
    return "Basic " + b64encode(f"{api_key}:".encode()).decode()


def asked_for(path: str, org: str, *query: tuple[str, str]) -> Request:
    """A question about an org."""
    return Request("GET", path, (("org", org_name(org)), *query), headers=_clock_header(org), org=org_name(org))


def posted(path: str, body: Any, org: str = "") -> Request:
    """A request with a JSON body, in the time of the org's clock."""
    headers = (JSON, *_clock_header(org))
    return Request("POST", path, body=msgspec.json.encode(body), headers=headers, org=org_name(org))


def _clock_header(org: str) -> tuple[tuple[str, str], ...]:
    id = clock_of(org) if org else ""
    return ((CLOCK_HEADER, id),) if id else ()


# ---- answers --------------------------------------------------------------------------------------------------------


def done_in(request: Request, response: Response) -> None:
    """Make sure that an answer says it is done: any JSON object, whatever its content type."""
    decoded(request, response, dict[str, Any])


def is_keyed(request: Request, response: Response) -> bool:
    """Whether the server says that it honours the request's key, by sending it back."""
    sent = dict(request.headers).get(KEY_HEADER)
    return sent is not None and response.headers.get(KEY_HEADER) == sent


def retry_after_seconds(response: Response) -> float | None:
    """How long the server asks to be left alone."""
    text = response.headers.get("retry-after", "")
    return min(float(text), MAX_WAIT_SECONDS) if text.isascii() and text.isdigit() else None


def decoded(request: Request, response: Response, kind: type[T]) -> T:
    """The answer as what it must be. Raises what its error means; what is no answer of such a server is away."""
    if not 200 <= response.status < 300:
        raise error_in(request, response)
    try:
        return decoder_of(kind).decode(response.body)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise foreign(request, response, str(error)) from None


# ---- errors ---------------------------------------------------------------------------------------------------------


class _Error(msgspec.Struct):
    code: str
    message: str = ""


def error_in(request: Request, response: Response) -> TierError:
    """What an error means. A definite no is one by its code; of what has no code of Tier's nobody knows."""
    try:
        wire = decoder_of(_Error).decode(response.body)
    except (msgspec.DecodeError, UnicodeError):
        return foreign(request, response, "this is no answer of a Tier server")
    said: dict[str, Any] = {
        "status": response.status,
        "code": wire.code,
        "path": request.path,
        "request_data": _sent(request),
        "response_data": {"status": response.status, "code": wire.code, "message": wire.message},
    }
    text = f"{request.method} {request.path}: {wire.message or wire.code} ({wire.code})"
    error: TierError
    if wire.code == "org_not_found":
        error = OrgNotFound(f"{text}: {request.org!r}", org=request.org, status=response.status, code=wire.code)
    elif wire.code == "feature_not_found" and request.path in ("/v1/report", "/v1/adjust"):
        error = NotEntitled(
            f"{text}: {request.org!r} has not got {request.feature!r}",
            org=request.org,
            feature=request.feature,
            status=response.status,
        )
    elif is_away(response.status):
        return EngineUnavailable(text, **said)
    elif response.status == 404:
        return ConfigurationError(f"TIER_BASE_URL: {text}; the server knows no such call", **said)
    else:
        return InvalidRequest(text, **said)
    error.path, error.request_data, error.response_data = said["path"], said["request_data"], said["response_data"]
    return error


def is_of_tier(response: Response) -> bool:
    """Whether an answer is in the form that a Tier server's have: somebody between may answer in its place."""
    try:
        found = msgspec.json.decode(response.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        return False
    return 200 <= response.status < 300 or "code" in found


def is_away(status: int) -> bool:
    """Whether a status says something of the server, or of its guards, and nothing of the request."""
    return status in _AWAY or status >= 500 or 300 <= status < 400


def foreign(request: Request, response: Response, problem: str) -> EngineUnavailable:
    """What an answer means that is none of a Tier server."""
    shown = response.body[:MAX_SHOWN].decode(errors="replace")
    return EngineUnavailable(
        f"{request.method} {request.path}: answered {response.status}, {problem}: {shown!r}",
        status=response.status if response.status >= 400 else None,
        path=request.path,
        request_data=_sent(request),
        response_data=shown,
    )


def _sent(request: Request) -> Any:
    """What was asked, as data: never the headers, one of which is the API key."""
    return dict(request.query) if request.body is None else json.loads(request.body)
