"""Settling inside of the transaction that a view's work is in, so that both are there, or neither.

Under ``ATOMIC_REQUESTS`` Django's transaction is around the view and inside of all middleware: what is settled there
has to be settled by the gate around the view, when the view returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import transaction
from django.http.response import HttpResponseBase

from ..context import TierContext
from ..errors import EngineUnavailable, UsageLost
from .engine import DjangoEngine
from .entrance import is_of_view, response_for

__all__ = ["called", "settle_with"]


def called(view: Callable[..., Any], request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a sync view that was let through. What is left to settle when it returns, its outermost gate settles."""
    context: TierContext = request.tier
    if context.is_entered or not isinstance(context.core.engine, DjangoEngine):
        return view(*args, **kwargs)
    context.is_entered = True
    try:
        response = view(*args, **kwargs)
    finally:
        context.is_entered = False
    return settled(request, response)


def settle_with(view: Any, request: Any) -> None:
    """Settle when REST framework's view has its response, unless a gate around the view does."""
    context: TierContext = request.tier
    if context.is_entered or not isinstance(context.core.engine, DjangoEngine) or "finalize_response" in vars(view):
        return
    finalize = view.finalize_response

    def finalize_response(*args: Any, **kwargs: Any) -> Any:
        return settled(request, finalize(*args, **kwargs))

    view.finalize_response = finalize_response  # of this request's instance: it has no other place to say it


def settled(request: Any, response: Any) -> Any:
    """Settle what a request used, where it is in a transaction of the engine's database; answers what to send.

    Elsewhere, and for a stream, whose work is not done yet, that is left to the middleware. So it is in a transaction
    that will be rolled back whatever the response says: then nothing was held, either. What Django renders when the
    transaction is over is counted in it, and settled by the middleware: where it cannot be rendered, the count is
    taken back.
    """
    context: TierContext = request.tier
    engine = context.core.engine
    if context.is_over or context.is_idle or not isinstance(engine, DjangoEngine) or not engine.is_in_good_transaction:
        return response
    if not isinstance(response, HttpResponseBase) or response.streaming:
        return response
    if _is_success_so_far(context, response):
        try:
            context.count_so_far(response.status_code)
        except EngineUnavailable:  # what is settled now is tried again, or kept elsewhere
            pass
        else:
            return response
    try:
        context.settle_as(response.status_code, is_counted=is_of_view(context, response))
    except UsageLost as error:
        transaction.set_rollback(True, using=engine.alias)
        return response_for(context.refused_for_loss(error), request)
    return response


def _is_success_so_far(context: TierContext, response: HttpResponseBase) -> bool:
    """Whether a response that has not been rendered yet would count."""
    is_rendered = getattr(response, "is_rendered", True)
    return not is_rendered and response.status_code < 400 and context.method != "HEAD" and is_of_view(context, response)
