"""What became of a batch that was sent, as far as the answer says. Pure."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from ..errors import ConfigurationError, EngineUnavailable, TierError
from ..wire import Request, Response, done_in, is_keyed, retry_after_seconds

__all__ = ["Delivered", "Later", "Outcome", "Refused", "Unknown", "outcome_of"]


class Delivered(NamedTuple):
    """Counted. ``is_keyed``: whether the server says that the same key will not count again; None where it was not
    asked.
    """

    is_keyed: bool | None


class Refused(NamedTuple):
    """Not counted, and never will be."""

    code: str
    reason: str


class Later(NamedTuple):
    """Not counted; it may be when it is sent again. ``seconds`` is what the server asked for."""

    reason: str
    seconds: float | None = None


class Unknown(NamedTuple):
    """Perhaps counted, perhaps not."""

    reason: str


Outcome: TypeAlias = Delivered | Refused | Later | Unknown


def outcome_of(request: Request, response: Response) -> Outcome:
    """What an answer to a report means.

    An error by one of Tier's codes is a refusal, unless it says that the server, or this call, is not there. Who
    answers 3xx, 4xx or 503 has not done it, be it a server, a guard or a proxy before it; where a server failed in
    another way, or the success is not Tier's, it may have counted all the same.
    """
    try:
        done_in(request, response)
    except (EngineUnavailable, ConfigurationError) as error:
        if 300 <= response.status < 500 or response.status == 503:
            return Later(error.message, retry_after_seconds(response))
        return Unknown(error.message)
    except TierError as error:
        return Refused(error.code or "invalid_request", error.message)
    return Delivered(is_keyed(request, response))
