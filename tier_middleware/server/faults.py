"""What is answered when something cannot be answered: Tier's ``{status, code, message}``. Pure.

Where Tier has words for a mistake, they are said as Tier says them; for all other mistakes of a client the message
names the field and the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ..errors import ConfigurationError, EngineUnavailable, TierError

__all__ = ["Fault", "WireError", "bad_request", "fault_for", "method_not_allowed", "not_found", "unexpected"]

RETRY_AFTER_SECONDS: Final = "1"
MAX_MESSAGE: Final = 1000  # characters: a value from outside may be in it


class WireError(Struct):
    """An error as it is on the wire; ``status`` is that of the answer."""

    status: int
    code: str
    message: str


class Fault(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.body = WireError(status, code, message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}...")
        self.headers = headers or {}


# By code, and by how the message of another error begins: what Tier says.
_BY_CODE: Final = {
    "org_not_found": "org not found",
    "feature_not_found": "feature not found",
    "TERR1020": "feature or plan not found",
    "invalid_email": "invalid email",
}
_BY_BEGINNING: Final = {
    "feature not reportable: ": "feature not reportable",
    "info.metadata: must not use the reserved prefix ": "metadata keys must not use reserved prefix ('tier.')",
}


def fault_for(error: TierError) -> Fault:
    """The answer to an error of the library. What is the server's own trouble says nothing of its inside."""
    if isinstance(error, EngineUnavailable):
        return _away("the engine is away")
    if isinstance(error, ConfigurationError) or error.status is None or error.code is None:
        return _away("the engine cannot be used; the server's log says why")
    return Fault(error.status, error.code, _message(error))


def _message(error: TierError) -> str:
    known = _BY_CODE.get(error.code or "")
    if known is not None:
        return known
    for beginning, words in _BY_BEGINNING.items():
        if error.message.startswith(beginning):
            return words
    return error.message


def _away(message: str) -> Fault:
    return Fault(503, "engine_unavailable", message, {"retry-after": RETRY_AFTER_SECONDS})


def bad_request(message: str) -> Fault:
    return Fault(400, "invalid_request", message)


def not_found() -> Fault:
    return Fault(404, "not_found", "Not Found")


def method_not_allowed(allowed: str) -> Fault:
    return Fault(405, "method_not_allowed", "Method Not Allowed", {"allow": allowed})


def unexpected() -> Fault:
    return Fault(500, "internal_error", "Internal Server Error")
