"""The two loops that perform flows: one blocks, one awaits. All that is sync or async about the core is here.

Warm operations of an engine in this process do not wait, so `aperform` does not switch tasks for them.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, TypeVar, cast

from .clock import monotonic, sleep
from .engines import Engine, Hosted, Portable
from .engines.threads import limiter_of_loop
from .errors import EngineUnavailable, TierError
from .flow import Flow, do
from .ops import Ask, Busy, Elsewhere, OnLoop, Op, Pause
from .transfer import Line

__all__ = [
    "aperform",
    "arun",
    "attempted",
    "awaited",
    "in_thread",
    "is_cancellation",
    "load",
    "open",
    "perform",
    "run",
]

R = TypeVar("R")

FIRST_PAUSE_SECONDS: Final = 0.0002
LONGEST_PAUSE_SECONDS: Final = 0.005
THREADS: Final = 4  # of an event loop: a long import keeps none of the others waiting


class _Patience:
    """How long a flow may wait for other writers, in all: from the first time that it has to."""

    __slots__ = ("_deadline", "timeout")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._deadline: float | None = None

    def left(self) -> float:
        """The seconds that are left; asked for the first time, all of them."""
        now = monotonic()
        if self._deadline is None:
            self._deadline = now + self.timeout
        return max(0.0, self._deadline - now)

    def pauses(self) -> Iterator[float]:
        """Growing, jittered pauses for as long as there is time; at least one."""
        self.left()
        pause = FIRST_PAUSE_SECONDS
        while True:
            yield pause * random.uniform(0.5, 1.5)
            if not self.left():
                return
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def run(flow: Flow[R], engine: Engine, timeout: float) -> R:
    """Perform a flow, blocking; wait up to ``timeout`` seconds for other writers in all."""
    patience = _Patience(timeout)
    step: Callable[[Any], Op[Any]] = flow.send
    reply: Any = None
    try:
        while True:
            op = step(reply)
            try:
                step, reply = flow.send, _perform(op, engine, patience)
            except TierError as error:
                step, reply = flow.throw, error
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a generator's return value; Flow[R] says it is an R


async def arun(flow: Flow[R], engine: Engine, timeout: float) -> R:
    """Perform a flow, awaiting; wait up to ``timeout`` seconds for other writers in all.

    An operation that finishes work is finished though the task is cancelled meanwhile, and so is the rest of its flow,
    up to an operation that finishes nothing. The cancellation is raised then.
    """
    patience = _Patience(timeout)
    step: Callable[[Any], Op[Any]] = flow.send
    reply: Any = None
    cancelled: BaseException | None = None
    try:
        while True:
            op = step(reply)
            try:
                step, reply = flow.send, await _aperform(op, engine, patience)
            except TierError as error:
                step, reply = flow.throw, error
            except _Late as late:
                cancelled = late.cancelled
                step, reply = (flow.send, late.reply) if late.error is None else (flow.throw, late.error)
    except StopIteration as stop:
        if cancelled is None:
            return stop.value  # type: ignore[no-any-return]  # as above
    except Exception:
        if cancelled is None:
            raise
    raise cancelled


def perform(op: Op[R], engine: Engine, timeout: float) -> R:
    """Perform one operation; wait up to ``timeout`` seconds for other writers."""
    return _perform(op, engine, _Patience(timeout))


def _perform(op: Op[R], engine: Engine, patience: _Patience) -> R:
    if op.is_for_driver:
        return cast("R", _performed(op, patience.timeout))
    attempt = _waiting_attempt(engine, patience)
    try:
        return attempt(op)
    except Busy:
        return _retried(lambda: attempt(op), patience)


def _waiting_attempt(engine: Engine, patience: _Patience) -> Callable[[Op[R]], R]:
    """How to attempt where blocking is allowed."""
    within = getattr(engine, "attempt_within", None)
    return engine.attempt if within is None else lambda op: within(op, patience.left())


def attempted(attempt: Callable[[], R], timeout: float) -> R:
    """Do what raises `Busy` while others write, waiting up to ``timeout`` seconds for them."""
    return _attempted(attempt, _Patience(timeout))


def _attempted(attempt: Callable[[], R], patience: _Patience) -> R:
    try:
        return attempt()
    except Busy:
        return _retried(attempt, patience)


async def aperform(op: Op[R], engine: Engine, timeout: float) -> R:
    """Perform one operation; wait up to ``timeout`` seconds for other writers, letting other tasks run."""
    return await arun(do(op), engine, timeout)


class _Late(Exception):
    """An operation was finished, with this reply or error, though its task was cancelled meanwhile."""

    def __init__(self, cancelled: BaseException, reply: object = None, error: TierError | None = None) -> None:
        super().__init__()
        self.cancelled = cancelled
        self.reply = reply
        self.error = error


async def _aperform(op: Op[R], engine: Engine, patience: _Patience) -> R:
    if op.is_for_driver:
        return cast("R", await _aperformed(op, patience.timeout))
    aattempt = getattr(engine, "aattempt", None)
    if aattempt is not None:
        return cast("R", await _aawaited(op, aattempt, patience))
    try:
        return engine.attempt(op)
    except Busy:
        if op.is_finishing:
            return await _afinish(lambda: engine.attempt(op), patience)
        return await _aretried(lambda: engine.attempt(op), patience)
    except OnLoop:
        assert isinstance(engine, Hosted), engine
        return await _ahosted(lambda: _perform(op, engine, patience), engine)


async def _ahosted(work: Callable[[], R], engine: Hosted) -> R:
    """Do it in a thread, waiting there. Its reply may be a hold: it is not lost, whatever becomes of the task."""
    reply: Any = None
    failure: TierError | None = None

    def kept() -> None:
        nonlocal reply, failure
        try:
            reply = work()
        except TierError as error:
            failure = error

    cancelled = await engine.in_thread(kept)
    if cancelled is not None:
        raise _Late(cancelled, reply, failure)
    if failure is not None:
        raise failure
    return cast("R", reply)


async def _aawaited(op: Op[R], aattempt: Callable[[Op[R]], Awaitable[R]], patience: _Patience) -> R:
    """Of an engine that may have to wait for somebody else than other writers."""
    import anyio

    try:
        with anyio.CancelScope(shield=op.is_finishing):
            return await aattempt(op)
    except Busy:
        if op.is_finishing:
            return await _afinish(lambda: aattempt(op), patience)
        return await _aretried(lambda: aattempt(op), patience)
    raise AssertionError("nobody cancels this scope")


def is_cancellation(error: BaseException) -> bool:
    """Whether a task was ended from outside, and nothing of its own went wrong. Called on its event loop."""
    import anyio

    if isinstance(error, BaseExceptionGroup):
        return error.split(anyio.get_cancelled_exc_class())[1] is None
    return isinstance(error, anyio.get_cancelled_exc_class())


def _performed(op: Op[Any], timeout: float) -> Any:
    if isinstance(op, Pause):
        return sleep(op.seconds)
    if isinstance(op, Elsewhere):
        return attempted(op.attempt, timeout)  # the flow's own may have been used up by the engine
    assert isinstance(op, Ask), op
    answer = op.function(*op.arguments)
    if not inspect.isawaitable(answer):
        return answer
    from anyio import from_thread  # a sync handler of an async server runs in one of anyio's threads

    return from_thread.run(_awaited, answer)


async def _aperformed(op: Op[Any], timeout: float) -> Any:
    if isinstance(op, Pause):
        return await _apause(op.seconds)
    if isinstance(op, Elsewhere):
        return await _aelsewhere(op, _Patience(timeout))
    assert isinstance(op, Ask), op
    answer = op.function(*op.arguments)
    return await answer if inspect.isawaitable(answer) else answer


async def _aelsewhere(op: Elsewhere, patience: _Patience) -> None:
    try:
        return op.attempt()
    except Busy:
        return await _afinish(op.attempt, patience)
    except OnLoop:
        return await _ahosted(lambda: _attempted(op.attempt, patience), op.host)


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


def open(engine: Engine, timeout: float) -> None:
    """Open an engine, waiting for other processes that open or migrate it."""
    _retried(engine.open, _Patience(timeout))


def load(engine: Portable, lines: Iterable[Line], timeout: float, *, replace: bool) -> None:
    """Let an engine take in an export, waiting for other writers before it begins."""
    _retried(lambda: engine.load(lines, replace=replace), _Patience(timeout))


async def in_thread(work: Callable[[], R], engine: Engine | None = None) -> R:
    """Do what blocks for long (opening, migrating, a history) beside the event loop; it is not abandoned half-way."""
    if isinstance(engine, Hosted):
        try:
            return await _ahosted(work, engine)
        except _Late as late:
            raise late.cancelled from None
    import anyio  # here: a program without an event loop need not import it

    limiter = limiter_of_loop("drive", THREADS)
    with anyio.CancelScope(shield=True):
        return await anyio.to_thread.run_sync(work, limiter=limiter)
    raise AssertionError("nobody cancels this scope")


def _retried(attempt: Callable[[], R], patience: _Patience) -> R:
    for pause in patience.pauses():
        try:
            return attempt()
        except Busy:
            sleep(pause)
    raise _locked(patience.timeout)


async def _aretried(
    attempt: Callable[[], R | Awaitable[R]],
    patience: _Patience,
    sleep: Callable[[float], Awaitable[None]] | None = None,
) -> R:
    import anyio

    for pause in patience.pauses():
        await (sleep or anyio.sleep)(pause)
        try:
            reply = attempt()
            return await reply if inspect.isawaitable(reply) else reply
        except Busy:
            continue
    raise _locked(patience.timeout)


async def _afinish(attempt: Callable[[], R | Awaitable[R]], patience: _Patience) -> R:
    import anyio

    cancelled: BaseException | None = None

    async def sleep(seconds: float) -> None:
        nonlocal cancelled
        try:
            await anyio.sleep(seconds)
        except anyio.get_cancelled_exc_class() as error:  # asyncio's own cancel() goes through anyio's shields
            cancelled = error

    try:
        with anyio.CancelScope(shield=True):
            reply = await _aretried(attempt, patience, sleep)
    except TierError as error:
        if cancelled is None:
            raise
        raise _Late(cancelled, error=error) from error
    if cancelled is not None:
        raise _Late(cancelled, reply)
    return reply


async def awaited(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so, at most this long, while other tasks run."""
    import anyio

    for pause in _Patience(seconds).pauses():
        if condition():
            return
        await anyio.sleep(pause)


async def _apause(seconds: float) -> None:
    deadline = monotonic() + seconds

    def is_over() -> None:
        if monotonic() < deadline:
            raise Busy

    await _afinish(is_over, _Patience(math.inf))


def _locked(timeout: float) -> EngineUnavailable:
    return EngineUnavailable(f"the engine was locked by other writers for more than {timeout} seconds")
