"""`requires_feature` for Starlette's and FastAPI's handlers, whatever their signature and kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Final, TypeVar, cast, get_origin

from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket

from ..client import AsyncTier, Tier
from ..context import RefusedRequest, TierContext
from ..errors import ConfigurationError
from ..flow import Flow
from ..gate import admission
from ..requirement import ONE, Amount, Idempotency, OnDisconnect, OnRefused, OrgOf, Overage, Per, ReportIf, Requirement
from ..settings import OnError
from .responses import context_of, marked, response_for
from .sockets import refuse

__all__ = ["requires_feature", "signature_of", "with_parameter"]

F = TypeVar("F", bound=Callable[..., Any])

EMPTY: Final = inspect.Parameter.empty

CONNECTION: Final = "tier_connection_"
"""A keyword-only parameter that FastAPI fills and our wrapper takes out again; it shows in no OpenAPI document."""


def requires_feature(
    feature: str,
    amount: Amount = ONE,
    *,
    org: OrgOf | None = None,
    on_refused: OnRefused | None = None,
    on_error: OnError | None = None,
    report_if: ReportIf | None = None,
    overage: Overage = "record",
    on_disconnect: OnDisconnect | None = None,
    per: Per = "request",
    idempotency: Idempotency | None = None,
) -> Callable[[F], F]:
    """Run the handler only if the org may use the feature, and count ``amount`` units once its response has succeeded.

    ``amount`` is what is checked, reserved and, unless the handler says otherwise, counted: whole units, or a sync or
    async callable of ``(request)``, in FastAPI also of ``(request, kwargs)`` with the handler's parsed arguments.
    ``org``, ``on_refused``, ``on_error`` and ``on_disconnect`` go before the middleware's.
    ``report_if(request, status)`` decides what counts as a success in place of "below 400". ``overage`` is about usage
    beyond the reserved amount: ``"record"`` it, or ``"cap"`` it at the limit. ``on_disconnect`` is about a response
    that has begun and is never finished, since the client left or the request was cancelled: it counts what was added
    so far, or the amount where nothing was (``"report"``, the default); at least the amount (``"estimate"``); or
    nothing (``"release"``).

    A WebSocket connection is one request, which is refused before it is accepted; with ``per="message"`` the amount is
    of each message that is received, and the connection is closed when no more are to be had.

    With ``idempotency="header"`` a request that is sent again with the same ``Idempotency-Key`` counts once; its
    handler runs all the same.

    Stacked on itself, it lets a request through for all features or for none. Needs `TierMiddleware` around the
    application. Raises `InvalidRequest` or `ConfigurationError` for bad arguments, at decoration.
    """
    requirement = Requirement(
        feature, amount, org, on_refused, on_error, report_if, overage, on_disconnect, per, idempotency
    )

    def decorate(handler: F) -> F:
        if isinstance(handler, type) or not callable(handler):
            raise ConfigurationError(
                f"requires_feature: decorate a function or a method of {getattr(handler, '__name__', handler)!r}, "
                "not the class"
            )
        gated = _gated(handler, (requirement, *getattr(handler, "__tier_requirements__", ())))
        return cast("F", gated)  # the same signature and kind

    return decorate


def _gated(handler: Callable[..., Any], requirements: tuple[Requirement, ...]) -> Callable[..., Any]:
    """The handler behind its gate: a function of the same kind, since frameworks and other decorators look at that."""
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        from ..fastapi import gated_generator  # only FastAPI has handlers that are generators

        return gated_generator(handler, requirements)
    entrance = _Entrance(handler, requirements)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__):

        @wraps(handler)
        async def gated(*args: Any, **kwargs: Any) -> Any:
            connection, context, steps = entrance.enter(args, kwargs)
            if steps is not None:
                refused = await AsyncTier.on(context.core).run(steps)
                if refused is not None and isinstance(connection, WebSocket):
                    return await refuse(refused, connection)
                if refused is not None:
                    return marked(response_for(refused, connection))
            return await handler(*args, **kwargs)

    else:

        @wraps(handler)
        def gated(*args: Any, **kwargs: Any) -> Any:
            connection, context, steps = entrance.enter(args, kwargs)
            if steps is not None:
                refused = Tier.on(context.core).run(steps)  # frameworks call sync handlers in a thread
                if refused is not None:
                    return marked(response_for(refused, connection))
            return handler(*args, **kwargs)

    gated.__signature__ = entrance.signature  # type: ignore[attr-defined]  # how inspect is told
    gated.__tier_requirements__ = requirements  # type: ignore[attr-defined]  # for gates and checks around this one
    return gated


class _Entrance:
    """What a gated handler does first: find the request, and what is still to be checked for it."""

    def __init__(self, handler: Callable[..., Any], requirements: tuple[Requirement, ...]) -> None:
        self._requirements = requirements
        self._only = requirements[0] if len(requirements) == 1 else None
        self._name = getattr(handler, "__qualname__", repr(handler))
        inner = signature_of(handler)
        self._is_passed_on = CONNECTION in inner.parameters  # a gate further in wants it as well
        has_own = any(_bare(parameter.annotation) is HTTPConnection for parameter in inner.parameters.values())
        # FastAPI fills one HTTPConnection only, so a handler's own serves both
        self.signature = inner if self._is_passed_on or has_own else with_parameter(inner, CONNECTION, HTTPConnection)

    def enter(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[HTTPConnection, TierContext, Flow[RefusedRequest | None] | None]:
        """The request, its context, and the admission that is left to do. Takes our own argument out of ``kwargs``."""
        connection = kwargs.get(CONNECTION) if self._is_passed_on else kwargs.pop(CONNECTION, None)
        if connection is None:
            connection = args[0] if args and type(args[0]) is Request else self._given(args, kwargs)
        context = context_of(connection)
        if self._only is not None and context.admit_at_once(self._only):
            return connection, context, None
        missing = [needed for needed in self._requirements if needed not in context.admitted]
        if not missing:
            return connection, context, None
        parsed = {name: value for name, value in kwargs.items() if name != CONNECTION}
        return connection, context, admission(context, missing, parsed)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HTTPConnection:
        """The request among the arguments, where Starlette calls, or a handler has one of its own."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, HTTPConnection):
                return value
        raise ConfigurationError(f"requires_feature: {self._name} was called without a request")


def signature_of(handler: Callable[..., Any]) -> inspect.Signature:
    """The signature with its string annotations resolved, as far as their names can be found."""
    try:
        return inspect.signature(handler, eval_str=True)
    except Exception:  # names of a TYPE_CHECKING block or of a function: the framework looks for them in its own way
        signature = inspect.signature(handler)
    names = getattr(inspect.unwrap(handler), "__globals__", {})
    return signature.replace(
        parameters=[p.replace(annotation=_resolved(p.annotation, names)) for p in signature.parameters.values()]
    )


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except Exception:  # this is one of those names
        return annotation


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if get_origin(annotation) is Annotated else annotation


def with_parameter(signature: inspect.Signature, name: str, annotation: Any, default: Any = EMPTY) -> inspect.Signature:
    """The signature with one more keyword-only parameter."""
    added = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    parameters = list(signature.parameters.values())
    has_rest = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters.insert(len(parameters) - has_rest, added)
    return signature.replace(parameters=parameters)
