"""The gate of a view: finds the request's context, and lets the request through or answers its refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase, HttpResponseRedirectBase

from ..client import AsyncTier, Tier
from ..context import RefusedRequest, TierContext
from ..errors import ConfigurationError
from ..gate import admission
from ..refusal import text_for
from ..requirement import Requirement
from .asking import aasked, asked

__all__ = ["agate", "context_of", "gate", "is_of_view", "request_in", "response_for"]


MARK: Final = "_tier_refused"


def context_of(request: Any) -> TierContext:
    """The request's context; a clear error where nobody made one."""
    context = getattr(request, "tier", None)
    if type(context) is not TierContext:
        raise ConfigurationError(
            f"TierMiddleware is missing: {request.path!r} requires a feature, and nothing would count it; "
            "add 'tier_middleware.django.TierMiddleware' to MIDDLEWARE, as the last"
        )
    if context.is_over:
        raise RuntimeError("this request is over: nothing can be held or counted for it any more")
    context.request = request  # REST framework's knows who was authenticated inside of the view
    return context


def missing(context: TierContext, requirements: Sequence[Requirement]) -> list[Requirement]:
    """What a gate further out has not seen to yet."""
    return [needed for needed in requirements if needed not in context.admitted]


def gate(
    request: HttpRequest, requirements: Sequence[Requirement], kwargs: Mapping[str, Any]
) -> HttpResponseBase | None:
    """Let a request through for all requirements (None), or answer its refusal. For sync views."""
    context = context_of(request)
    if len(requirements) == 1 and context.admit_at_once(requirements[0]):
        return None
    needed = missing(context, requirements)
    if not needed:
        return None
    refused = Tier.on(context.core).run(asked(admission(context, needed, kwargs)))
    return None if refused is None else response_for(refused, request)


async def agate(
    request: HttpRequest, requirements: Sequence[Requirement], kwargs: Mapping[str, Any]
) -> HttpResponseBase | None:
    """`gate` for async views. It has no straight path: an org callable that is sync must not run on the event loop."""
    context = context_of(request)
    needed = missing(context, requirements)
    if not needed:
        return None
    refused = await AsyncTier.on(context.core).run(aasked(admission(context, needed, kwargs)))
    return None if refused is None else response_for(refused, request)


def request_in(args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Any:
    """The request among a view's arguments: the first, after ``self`` in a method; Django's or REST framework's."""
    for value in (*args[:2], kwargs.get("request")):
        if isinstance(value, HttpRequest) or isinstance(getattr(value, "_request", None), HttpRequest):
            return value
    raise ConfigurationError(f"requires_feature: {name} was called without a request")


def response_for(refused: RefusedRequest, request: HttpRequest) -> HttpResponseBase:
    """The application's own response where it made one, else ours; `is_of_view` knows it again."""
    response = _response_for(refused, request)
    setattr(response, MARK, True)
    return response


def is_of_view(context: TierContext, response: HttpResponseBase) -> bool:
    """Whether a view made a response: neither a gate to refuse, nor a handler that makes a success of an exception."""
    if context.has_refused and hasattr(response, MARK):
        return False
    return response.status_code >= 400 or not getattr(response, "exception", False)  # REST framework's mark


def _response_for(refused: RefusedRequest, request: HttpRequest) -> HttpResponseBase:
    if isinstance(refused.response, HttpResponseBase):
        return refused.response
    if refused.response is not None:
        raise ConfigurationError(
            f"on_refused: must return a response or None, got {refused.response!r}", path="on_refused"
        )
    text = text_for(refused.refusal, request.META.get("HTTP_ACCEPT"))
    if "location" in text.headers:
        return SeeOther(text.headers["location"], headers=text.headers)
    return HttpResponse(text.body, status=text.status, headers=text.headers)


class SeeOther(HttpResponseRedirectBase):
    """With the ``url`` by which Django's test client follows."""

    status_code = 303
