"""How a response leaves: what it counts, and when.

A response with its content is settled before any middleware outside of ours sees it. A stream is settled at its end. A
file is settled before its first byte, since an iterator around it would keep the server from sending it by itself.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, Final

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from .. import drive
from ..context import BODILESS, TierContext
from ..errors import TierError, UsageLost
from ..flow import Flow
from ..ops import OnLoop
from .denials import denied_by_permission
from .entrance import is_of_view, response_for

__all__ = ["abandonment", "departure"]

logger: Final = logging.getLogger("tier_middleware")

PERMISSION_STATUSES: Final = frozenset({401, 403})
OVERRULED: Final = frozenset({"content-length", "content-type", "content-encoding", "etag"})
DROPPED_SECONDS: Final = 0.05  # may be spent on the event loop


def departure(context: TierContext, request: HttpRequest, response: HttpResponseBase) -> Flow[HttpResponseBase]:
    """Settle what this response settles; answers the one to send."""
    denied = denied_by_permission(request)
    if denied is not None and response.status_code in PERMISSION_STATUSES:
        response = _in_place_of(response, response_for(denied, request))
    status = response.status_code
    if context.is_idle:
        _end(context)
        return response
    is_own = is_of_view(context, response)
    try:
        is_stream = is_own and _is_stream(context, response)
    except Exception:  # of `report_if`
        yield from abandonment(context)
        raise
    if is_stream:
        kind = AsyncSettlingStream if response.is_async else SettlingStream
        response.streaming_content = kind(context, status, response.streaming_content)
        return response
    is_counted = is_own and request.method != "HEAD"
    if is_counted and context.is_settled_at_once(status):
        _end(context)
        return response
    try:
        yield from _settling(context, status, is_counted=is_counted)
    except UsageLost as error:
        return response_for(context.refused_for_loss(error), request)
    return response


def _in_place_of(theirs: HttpResponseBase, ours: HttpResponseBase) -> HttpResponseBase:
    """The refusal, with what else was in the response that it takes the place of, such as cookies."""
    for name, value in theirs.headers.items():
        if name.lower() not in OVERRULED and name not in ours.headers:
            ours.headers[name] = value
    ours.cookies.update(theirs.cookies)
    return ours


def abandonment(context: TierContext) -> Flow[None]:
    """Give everything back: the view raised, or the request was cancelled."""
    context.is_over = True  # first: the thread of a sync view may be about to hold something
    if context.is_idle:
        return
    try:
        yield from _settling(context, None, is_counted=False)
    except TierError as error:
        logger.error("tier: %s", error)  # the view's own exception is the one to raise


def _is_stream(context: TierContext, response: HttpResponseBase) -> bool:
    """Whether it is not certain yet what a response counts."""
    is_file = getattr(response, "file_to_stream", None) is not None
    is_long = response.streaming and not is_file and response.status_code not in BODILESS
    return is_long and not context.is_failure(response.status_code)


def _settling(context: TierContext, status: int | None, *, is_counted: bool, is_finished: bool = True) -> Flow[None]:
    settlement = context.settlement(status, is_counted=is_counted, is_finished=is_finished)
    _end(context)
    if not settlement.is_empty:
        yield from context.core.settling(settlement)


def _end(context: TierContext) -> None:
    context.is_over = context.is_idle = True
    context.request = None  # the request has the context: a cycle would wait for the collector


class _Stream:
    """What sync and async streams share. What one counts that has begun, and whose end nobody waits for,
    ``on_disconnect`` says.
    """

    def __init__(self, context: TierContext, status: int, parts: Any) -> None:
        self._context = context
        self._status = status
        self._parts = parts
        self._has_begun = False
        self._is_head = context.request.method == "HEAD"

    def _begin(self) -> None:
        self._has_begun = self._context.has_begun = True

    def _steps(self, *, is_counted: bool, is_finished: bool) -> Flow[None]:
        if self._context.is_idle:
            return
        is_counted = is_counted and not self._is_head
        try:
            yield from _settling(self._context, self._status, is_counted=is_counted, is_finished=is_finished)
        except TierError as error:
            logger.error("tier: usage lost after the response had begun: %s", error)

    def _settle(self, *, is_counted: bool, is_finished: bool = True, timeout: float | None = None) -> None:
        core = self._context.core
        steps = self._steps(is_counted=is_counted, is_finished=is_finished)
        drive.run(steps, core.engine, core.timeout if timeout is None else timeout)

    def close(self) -> None:
        """By the server, when the response is over. Before its end: the client left, or a middleware dropped it."""
        self._settle(is_counted=self._has_begun, is_finished=False)

    def __del__(self) -> None:  # a middleware that replaces a response need not close it
        if hasattr(self, "_is_head"):
            with suppress(OnLoop):  # where the engine blocks: then it expires
                self._settle(is_counted=self._has_begun, is_finished=False, timeout=DROPPED_SECONDS)


class SettlingStream(_Stream):
    """An iterator of a response's parts that settles at its end."""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._begin()
        try:
            return next(self._parts)  # type: ignore[no-any-return]  # Django's own map() of bytes
        except StopIteration:
            self._settle(is_counted=True)
            raise
        except Exception:
            self._settle(is_counted=False)
            raise
        except BaseException:  # a worker that has been told to end, or was too slow for its master
            self._settle(is_counted=True, is_finished=False)
            raise


class AsyncSettlingStream(_Stream):
    """An async iterator of a response's parts that settles at its end."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._begin()
        try:
            return await anext(self._parts)
        except StopAsyncIteration:
            await self._asettle(is_counted=True)
            raise
        except Exception:
            await self._asettle(is_counted=False)
            raise
        except BaseException:  # Django cancels what it streams when the client leaves
            await self._asettle(is_counted=True, is_finished=False)
            raise

    async def _asettle(self, *, is_counted: bool, is_finished: bool = True) -> None:
        core = self._context.core
        steps = self._steps(is_counted=is_counted, is_finished=is_finished)
        await drive.arun(steps, core.engine, core.timeout)
