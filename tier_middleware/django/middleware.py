"""`TierMiddleware`: gives every request its context, gates the routes of the table, and settles what leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404, HttpRequest
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase

from .. import drive
from ..context import TierContext
from ..flow import Flow
from .entrance import agate, gate
from .leaving import abandonment, departure
from .project import project
from .routes import requirements_for

__all__ = ["TierMiddleware"]

ANSWERS: Final = (Http404, PermissionDenied, BadRequest, SuspiciousOperation, MultiPartParserError)
"""Exceptions that are Django's way of answering with a status, by which they are judged."""


class TierMiddleware:
    """The last of ``MIDDLEWARE``, so that what authenticates is outside of it. Set up by ``settings.TIER``.

    Sync and async, as the handler is. Raises `ConfigurationError` for bad settings, when the handler is made.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        project()
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
            # a sync one would cost a thread hop
            self.process_view = self._aprocess_view  # type: ignore[method-assign]

    def __call__(self, request: HttpRequest) -> Any:
        if self.is_async:
            return self._acall(request)
        context = self._context(request)
        try:
            response = self.get_response(request)
        except BaseException:
            _run(context, abandonment(context))
            raise
        return _run(context, departure(context, request, response))

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        context = self._context(request)
        try:
            response = await self.get_response(request)
        except BaseException:
            await _arun(context, abandonment(context))
            raise
        return await _arun(context, departure(context, request, response))

    def _context(self, request: HttpRequest) -> TierContext:
        ours = project()
        context = TierContext(ours.core, ours.options, request)
        request.tier = context
        return context

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        found = requirements_for(project().routes, request)
        return gate(request, found, kwargs) if found else None

    async def _aprocess_view(self, request: HttpRequest, view: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        found = requirements_for(project().routes, request)
        return await agate(request, found, kwargs) if found else None

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """A view's failure counts nothing, whatever response others make of it. Called in a thread of its own."""
        context = request.tier
        if not isinstance(exception, ANSWERS):
            _run(context, abandonment(context))


def _run(context: TierContext, steps: Flow[Any]) -> Any:
    return drive.run(steps, context.core.engine, context.core.timeout)


async def _arun(context: TierContext, steps: Flow[Any]) -> Any:
    return await drive.arun(steps, context.core.engine, context.core.timeout)
