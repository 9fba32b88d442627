"""How the application's callables are asked, whatever their colour and that of the view.

A sync one may touch the database, which Django forbids on an event loop; an async one has none in a sync view.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async

from ..errors import ConfigurationError, TierError
from ..flow import Flow
from ..ops import Ask

__all__ = ["aasked", "asked"]

R = TypeVar("R")


def asked(steps: Flow[R]) -> Flow[R]:
    """The same flow for a sync view."""
    return _asked(steps, _answer)


def aasked(steps: Flow[R]) -> Flow[R]:
    """The same flow for an async view."""
    return _asked(steps, _aanswer)


def _asked(steps: Flow[R], ask: Callable[..., Any]) -> Flow[R]:
    step, reply = steps.send, None
    while True:
        try:
            op = step(reply)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a generator's return value; Flow[R] says it is an R
        if isinstance(op, Ask):
            op = Ask(partial(ask, op.function), op.arguments)
        try:
            step, reply = steps.send, (yield op)
        except TierError as error:
            step, reply = steps.throw, error


def _answer(function: Callable[..., Any], *arguments: Any) -> Any:
    answer = function(*arguments)
    if not inspect.isawaitable(answer):
        return answer
    _refuse_event_loop(answer)
    return async_to_sync(_awaited)(answer)


def _refuse_event_loop(answer: Any) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if inspect.iscoroutine(answer):
        answer.close()
    raise ConfigurationError(
        "org: it is async, and what asks for it is sync code on the event loop, such as a template of an async view; "
        "render in a thread: await sync_to_async(render)(...)",
        path="org",
    )


async def _aanswer(function: Callable[..., Any], *arguments: Any) -> Any:
    is_async = iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
    answer = function(*arguments) if is_async else await sync_to_async(function, thread_sensitive=True)(*arguments)
    return await answer if inspect.isawaitable(answer) else answer


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer
