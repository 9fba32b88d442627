"""What a route declares: which feature it needs, how much of it, and for whom. The same for every face."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPMethod
from typing import Any, Final, Literal, TypeAlias, get_args

from .errors import ConfigurationError, InvalidRequest
from .names import MAX_UNITS, OrgMark, OrgValue, checked_feature, checked_units, nearest, org_for
from .ops import Demand
from .settings import OnError, answered, checked_on_error, is_plain_function

__all__ = [
    "ONE",
    "Amount",
    "Idempotency",
    "Needs",
    "OnDisconnect",
    "OnRefused",
    "OrgOf",
    "Overage",
    "Per",
    "ReportIf",
    "Requirement",
    "amount_arguments",
    "checked_amount",
    "checked_idempotency",
    "checked_method",
    "checked_on_disconnect",
    "requirements_of",
    "resolved_org",
]

Amount: TypeAlias = int | Callable[..., Any]
"""Whole units, or a callable of ``(request)`` or ``(request, kwargs)`` that returns them; sync or async."""

OrgOf: TypeAlias = Callable[[Any], Any]
"""A callable of the request that returns an `tier_middleware.names.OrgValue`; sync or async."""

OnRefused: TypeAlias = Callable[[Any, Any], Any]
"""``(request, refusal)``, sync or async: a response of the application's own, or None for ours."""

ReportIf: TypeAlias = Callable[[Any, int], bool]
"""``(request, status)``: whether this response is counted; in place of "status below 400"."""

Overage: TypeAlias = Literal["record", "cap"]

Idempotency: TypeAlias = Literal["header", "off"]
"""Whether a request that is sent again, with the same ``Idempotency-Key``, counts once. Its handler runs all the same.
"""

Per: TypeAlias = Literal["request", "message"]
"""What an amount is of: a request, which a WebSocket connection is in all, or each message that is received on one."""

OnDisconnect: TypeAlias = Literal["report", "estimate", "release"]
"""What a response counts that has begun and is never finished, since the client left or the request was cancelled:
what was added so far, and the amount where nothing was; at least the amount; or nothing.
"""


class _One(int):
    """The amount of a requirement that gives none: 1, told apart from a 1 that somebody wrote."""


ONE: Final = _One(1)


@dataclass(frozen=True, slots=True, eq=False)
class Requirement:
    """A feature that a route needs, with the options of `requires_feature`.

    ``amount`` is whole units, or a callable. ``org``, ``on_refused``, ``on_error``, ``on_disconnect`` and
    ``idempotency`` go before the middleware's. ``overage``: usage beyond what was reserved is counted (``"record"``) or
    cut off at the limit (``"cap"``). Raises `ConfigurationError` or `InvalidRequest` that names the option and the
    value.
    """

    feature: str
    amount: Amount = ONE
    org: OrgOf | None = None
    on_refused: OnRefused | None = None
    on_error: OnError | None = None
    report_if: ReportIf | None = None
    overage: Overage = "record"
    on_disconnect: OnDisconnect | None = None
    per: Per = "request"
    idempotency: Idempotency | None = None
    takes_kwargs: bool = field(init=False, default=False)
    demand: Demand | None = field(init=False, default=None)
    """What it demands where that is known before there is a request."""

    def __post_init__(self) -> None:
        checked_feature(self.feature)
        if callable(self.amount):
            object.__setattr__(self, "takes_kwargs", _takes_kwargs(self.amount))
        else:
            n = checked_units(self.amount, "amount")
            if self.per == "request" and self.idempotency != "header":
                object.__setattr__(self, "demand", Demand(self.feature, int(n), self.is_amount_given))
        for name in ("org", "on_refused"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ConfigurationError(f"{name}: must be a callable, got {value!r}", path=name)
        if self.report_if is not None and not is_plain_function(self.report_if):
            raise ConfigurationError(f"report_if: must be a sync callable, got {self.report_if!r}", path="report_if")
        if self.on_error is not None:
            checked_on_error(self.on_error)
        if self.overage not in ("record", "cap"):
            raise ConfigurationError(f"overage: must be 'record' or 'cap', got {self.overage!r}", path="overage")
        checked_on_disconnect(self.on_disconnect)
        checked_idempotency(self.idempotency)
        if self.per not in get_args(Per):
            raise ConfigurationError(f"per: must be 'request' or 'message', got {self.per!r}", path="per")

    @property
    def is_amount_given(self) -> bool:
        return self.amount is not ONE

    def is_counted(self, request: Any, status: int) -> bool:
        """Whether a response with this status is a success for this requirement."""
        if self.report_if is None:
            return status < 400
        return bool(answered(self.report_if(request, status), "report_if"))


Needs: TypeAlias = str | Requirement | Sequence[str | Requirement]
"""What a table of routes says of one of them: a feature, a `Requirement`, or a list of them."""


def requirements_of(needs: Needs) -> tuple[Requirement, ...]:
    """What one line of a table of routes requires. Raises ValueError, or what `Requirement` does."""
    listed = (needs,) if isinstance(needs, str | Requirement) else needs
    if not isinstance(listed, Sequence) or not listed:
        raise ValueError(f"must be a feature, a Requirement or a list of them, got {needs!r}")
    return tuple(need if isinstance(need, Requirement) else Requirement(need) for need in listed)


def checked_on_disconnect(value: object) -> None:
    """None inherits."""
    if value is not None and value not in get_args(OnDisconnect):
        raise ConfigurationError(
            f"on_disconnect: must be 'report', 'estimate' or 'release', got {value!r}", path="on_disconnect"
        )


def checked_method(method: str, *others: str) -> str:
    """A method as a table of routes names it: HTTP's, or the face's own. Raises ValueError: by a misspelt one nothing
    would be gated.
    """
    known = {*(known.value for known in HTTPMethod), *others}
    if method not in known:
        hint = nearest(method, known)
        raise ValueError(f"{method!r} is no HTTP method" + (f"; did you mean {hint!r}?" if hint else ""))
    return method


def checked_idempotency(value: object) -> None:
    """None inherits."""
    if value is not None and value not in get_args(Idempotency):
        raise ConfigurationError(f"idempotency: must be 'header' or 'off', got {value!r}", path="idempotency")


def _takes_kwargs(amount: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(amount)
    except (TypeError, ValueError):  # some builtins have none
        return False
    for arguments in ((None,), (None, None)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    raise ConfigurationError(
        f"amount: must be a whole number or a callable of (request) or (request, kwargs), got {amount!r}", path="amount"
    )


def resolved_org(value: OrgValue) -> str | OrgMark | None:
    """What an org callable returned: an org, NO_ORG, UNMETERED, or None for nobody. Anything else is an error."""
    if value is None or isinstance(value, OrgMark):
        return value
    return org_for(value)


def amount_arguments(requirement: Requirement, request: Any, kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    return (request, kwargs) if requirement.takes_kwargs else (request,)


def checked_amount(value: object, feature: str) -> int:
    """What a callable of the application answered. More than can be counted is cut off right above that: it comes from
    a client, and is refused. Anything else that is no amount is the application's mistake.
    """
    if isinstance(value, int) and value > MAX_UNITS:
        return MAX_UNITS + 1
    try:
        return int(checked_units(value, "amount"))
    except InvalidRequest as error:
        raise InvalidRequest(f"{error.message} (of {feature!r})", path="amount") from None
