"""Every error this package raises.

    TierError
    |-- ConfigurationError             a bad URL, setting, file or key: names the key and the value
    |-- PricingError                   a mistake in a pricing model, or a plan pushed again with other content
    |-- InvalidRequest (ValueError)    a bad name, a naive time, an n that is no whole number >= 0
    |-- Refused                        the definite no
    |   |-- LimitReached               the org has the feature, but not that many units of it
    |   |-- NotEntitled                the org is known, but its phase has not got the feature
    |   `-- OrgNotFound                nobody has named this org yet
    |-- EngineUnavailable              the engine is away, slow or locked: nobody knows the answer
    `-- UsageLost                      work was done and could not be counted

Errors carry data, so that callers need not parse messages. ``code`` is Tier's own code where Tier has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

__all__ = [
    "ConfigurationError",
    "EngineUnavailable",
    "InvalidRequest",
    "LimitReached",
    "NotEntitled",
    "OrgNotFound",
    "PricingError",
    "Refused",
    "TierError",
    "UsageLost",
]


class TierError(Exception):
    """The root: catches everything this package raises.

    ``status`` and ``code`` are those of Tier's API; ``path`` names the place of the mistake;
    ``request_data`` and ``response_data`` are set where a server was asked.
    """

    default_status: ClassVar[int | None] = None
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        path: str | None = None,
        request_data: Any = None,
        response_data: Any = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = self.default_status if status is None else status
        self.code = self.default_code if code is None else code
        self.path = path
        self.request_data = request_data
        self.response_data = response_data

    def __str__(self) -> str:
        """The message on one line: names in it come from outside, and must not forge lines of a log."""
        text = self.message
        return text if text.isprintable() else "".join([c if c.isprintable() else repr(c)[1:-1] for c in text])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pools and queues send errors from process to process, and would call the class with the message alone."""
        return _made_again, (type(self), self.args), self.__dict__


def _made_again(kind: type[TierError], args: tuple[Any, ...]) -> TierError:
    return kind.__new__(kind, *args)


class ConfigurationError(TierError):
    """A setting that cannot work. Raised at start, never answered with an open gate."""

    default_code = "configuration"


class PricingError(TierError):
    """A mistake in a pricing model; ``path`` says where, as in ``plans["plan:free@1"].features["feature:x"]``."""

    default_status = 400
    default_code = "invalid_request"


class InvalidRequest(TierError, ValueError):
    """A call that can never work: the message names the field and the value."""

    default_status = 400
    default_code = "invalid_request"


class Refused(TierError):
    """The definite no. ``reason`` is one of the codes of `tier_middleware.policy.Reason`.

    ``used`` and ``limit`` are whole units, ``limit`` None for unlimited; ``resets_at`` is the end of the
    billing period, None where waiting does not help.
    """

    default_status = 402

    def __init__(
        self,
        message: str,
        *,
        org: str,
        feature: str | None = None,
        requested: int = 0,
        used: int = 0,
        limit: int | None = 0,
        reason: str = "no_entitlement",
        resets_at: datetime | None = None,
        status: int | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.org = org
        self.feature = feature
        self.requested = requested
        self.used = used
        self.limit = limit
        self.reason = reason
        self.resets_at = resets_at


class LimitReached(Refused):
    """The org has the feature, and not enough of it is left."""

    default_code = "limit_reached"


class NotEntitled(Refused):
    """The org's phase has not got the feature (or the org has no phase)."""

    default_status = 400
    default_code = "feature_not_found"


class OrgNotFound(Refused):
    """Nobody has subscribed or described this org yet."""

    default_status = 400
    default_code = "org_not_found"


class EngineUnavailable(TierError):
    """The engine could not answer within the time allowed. It says nothing about the org."""

    default_status = 503
    default_code = "engine_unavailable"


class UsageLost(TierError):
    """Usage that could not be counted: what ``on_loss="fail"`` raises. ``reports`` says what, ``reason`` why."""

    default_status = 503
    default_code = "usage_lost"

    def __init__(self, message: str, *, reports: Sequence[Any], reason: str) -> None:
        super().__init__(message)
        self.reports = tuple(reports)
        self.reason = reason
