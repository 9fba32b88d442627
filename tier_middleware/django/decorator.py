"""`requires_feature` for Django's views: sync and async functions, methods, and whole classes by `method_decorator`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from ..errors import ConfigurationError
from ..requirement import ONE, Amount, Idempotency, OnDisconnect, OnRefused, OrgOf, Overage, ReportIf, Requirement
from ..settings import OnError
from .entrance import agate, gate, request_in
from .transactions import called

__all__ = ["gated_call", "requires_feature"]

F = TypeVar("F", bound=Callable[..., Any])


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
    idempotency: Idempotency | None = None,
) -> Callable[[F], F]:
    """Run the view only if the org may use the feature, and count ``amount`` units once its response has succeeded.

    ``amount`` is what is checked, reserved and, unless the view says otherwise, counted: whole units, or a sync or
    async callable of ``(request)`` or ``(request, kwargs)`` with the arguments from the URL. ``org``, ``on_refused``,
    ``on_error`` and ``on_disconnect`` go before those of ``settings.TIER``. ``report_if(request, status)`` decides
    what counts as a success in place of "below 400". ``overage`` is about usage beyond the reserved amount:
    ``"record"`` it, or ``"cap"`` it at the limit. ``on_disconnect`` is about a stream that has begun and whose end
    nobody waited for: it counts what was added so far, or the amount where nothing was (``"report"``, the default); at
    least the amount (``"estimate"``); or nothing (``"release"``).

    With ``idempotency="header"`` a request that is sent again with the same ``Idempotency-Key`` counts once; its view
    runs all the same.

    For functions and methods; for a whole class ``@method_decorator(requires_feature(...), name="dispatch")``. Stacked
    on itself, it lets a request through for all features or for none. Needs `TierMiddleware`. Raises `InvalidRequest`
    or `ConfigurationError` for bad arguments, at decoration.
    """
    requirement = Requirement(
        feature, amount, org, on_refused, on_error, report_if, overage, on_disconnect, idempotency=idempotency
    )

    def decorate(view: F) -> F:
        if isinstance(view, type) or not callable(view):
            raise ConfigurationError(
                f"requires_feature: decorate a function or a method of {getattr(view, '__name__', view)!r}, or the "
                'class by @method_decorator(requires_feature(...), name="dispatch")'
            )
        requirements = (requirement, *getattr(view, "__tier_requirements__", ()))
        return cast("F", _gated(view, requirements))  # the same kind

    return decorate


def _gated(view: Callable[..., Any], requirements: tuple[Requirement, ...]) -> Callable[..., Any]:
    """The view behind its gate, and async if and only if the view is: Django and other decorators look at that."""
    name = getattr(view, "__qualname__", repr(view))
    if iscoroutinefunction(view):

        @wraps(view)
        async def gated(*args: Any, **kwargs: Any) -> Any:
            refused = await agate(request_in(args, kwargs, name), requirements, kwargs)
            return await view(*args, **kwargs) if refused is None else refused

    else:

        @wraps(view)
        def gated(*args: Any, **kwargs: Any) -> Any:
            return gated_call(view, requirements, request_in(args, kwargs, name), args, kwargs)

    gated.__tier_requirements__ = requirements  # type: ignore[attr-defined]  # for gates around this one
    return gated


def gated_call(
    view: Callable[..., Any],
    requirements: tuple[Requirement, ...],
    request: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call what is sync by its looks behind its gate. The ``dispatch`` of an async view is, and answers a coroutine."""
    if _is_of_async_class(view, args):
        return _agated_call(view, requirements, request, args, kwargs)
    refused = gate(request, requirements, kwargs)
    return called(view, request, args, kwargs) if refused is None else refused


async def _agated_call(
    view: Callable[..., Any],
    requirements: tuple[Requirement, ...],
    request: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    refused = await agate(request, requirements, kwargs)
    if refused is not None:
        return refused
    response = view(*args, **kwargs)
    return await response if inspect.isawaitable(response) else response


def _is_of_async_class(view: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether it is a method of a view whose methods are async: as a function with ``self`` among its arguments, bound,
    or as `method_decorator` hands it over. Under WSGI, Django calls those before it starts an event loop.
    """
    inner = inspect.unwrap(view, stop=lambda wrapped: isinstance(wrapped, partial))
    bound = inner.func if isinstance(inner, partial) else view
    return bool(getattr(getattr(bound, "__self__", args[0] if args else None), "view_is_async", False))
