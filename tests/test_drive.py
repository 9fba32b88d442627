"""The two drivers: replies and errors that reach the flow, waiting for other writers, and cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest

from tier_middleware import drive
from tier_middleware.clock import monotonic
from tier_middleware.errors import ConfigurationError, EngineUnavailable, InvalidRequest, TierError
from tier_middleware.flow import Flow, do, insisted
from tier_middleware.model import Model
from tier_middleware.ops import Ask, Busy, Op, Pause, Pull, Release

R = TypeVar("R")

RELEASE = Release((), 0)  # finishes work
PULL = Pull()  # does not


class Scripted:
    """An engine that answers what the script says, in turn: errors are raised. What it was asked is in ``asked``."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.asked: list[Op[Any]] = []
        self.opened = 0

    def open(self) -> None:
        self.opened += 1
        self.next()

    def attempt(self, op: Op[R]) -> R:
        self.asked.append(op)
        return self.next()  # type: ignore[no-any-return]  # whatever the script says

    def close(self) -> None:
        pass

    def next(self) -> Any:
        reply = self.script.pop(0) if self.script else None
        if isinstance(reply, BaseException):
            raise reply
        return reply


class Locked(Scripted):
    """Busy until it is unlocked."""

    is_locked = True

    def next(self) -> Any:
        if self.is_locked:
            raise Busy
        return super().next()


def run(flow: Flow[R], engine: Scripted, timeout: float = 5.0) -> R:
    return drive.run(flow, engine, timeout)


def arun(flow: Flow[R], engine: Scripted, timeout: float = 5.0) -> R:
    return anyio.run(drive.arun, flow, engine, timeout)


def arun_on_trio(flow: Flow[R], engine: Scripted, timeout: float = 5.0) -> R:
    return anyio.run(drive.arun, flow, engine, timeout, backend="trio")


@pytest.fixture(params=[run, arun, arun_on_trio])
def driver(request: pytest.FixtureRequest) -> Callable[..., Any]:
    chosen: Callable[..., Any] = request.param
    return chosen


def pulled_twice() -> Flow[tuple[Model, Model]]:
    first = yield from do(PULL)
    second = yield from do(PULL)
    return first, second


def test_replies_reach_the_flow_in_order_and_its_answer_the_caller(driver: Callable[..., Any]) -> None:
    engine = Scripted("one", "two")
    assert driver(pulled_twice(), engine) == ("one", "two")
    assert engine.asked == [PULL, PULL]


def test_errors_are_thrown_into_the_flow_at_the_operation_they_belong_to(driver: Callable[..., Any]) -> None:
    def flow() -> Flow[list[object]]:
        seen: list[object] = []
        for _ in range(3):
            try:
                seen.append((yield from do(PULL)))
            except EngineUnavailable as error:
                seen.append(error)
        return seen

    away = EngineUnavailable("away")
    assert driver(flow(), Scripted("one", away, "three")) == ["one", away, "three"]


def test_errors_that_the_flow_does_not_catch_reach_the_caller(driver: Callable[..., Any]) -> None:
    mistake = InvalidRequest("no")
    with pytest.raises(InvalidRequest) as caught:
        driver(pulled_twice(), Scripted("one", mistake))
    assert caught.value is mistake


def test_errors_that_the_flow_raises_reach_the_caller(driver: Callable[..., Any]) -> None:
    def flow() -> Flow[None]:
        yield from do(PULL)
        raise ConfigurationError("by the flow")

    with pytest.raises(ConfigurationError, match="by the flow"):
        driver(flow(), Scripted())


def test_a_flow_that_asks_for_nothing_needs_no_engine(driver: Callable[..., Any]) -> None:
    def flow() -> Flow[int]:
        return 7
        yield

    engine = Scripted()
    assert driver(flow(), engine) == 7
    assert engine.asked == []


def test_a_busy_engine_is_asked_again_until_it_is_not(driver: Callable[..., Any]) -> None:
    for op in (PULL, RELEASE):
        engine = Scripted(Busy(), Busy(), Busy(), "done")
        assert driver(do(op), engine) == "done"
        assert engine.asked == [op] * 4


def test_an_engine_that_stays_busy_is_away_after_the_timeout(driver: Callable[..., Any]) -> None:
    for op in (PULL, RELEASE):
        engine = Locked()
        began = monotonic()
        with pytest.raises(EngineUnavailable, match=r"locked by other writers for more than 0\.02 seconds"):
            driver(do(op), engine, 0.02)
        assert monotonic() - began >= 0.02
        assert len(engine.asked) > 3


def test_even_a_tiny_timeout_allows_a_second_attempt(driver: Callable[..., Any]) -> None:
    assert driver(do(PULL), Scripted(Busy(), "done"), 1e-9) == "done"


def test_errors_while_waiting_are_thrown_into_the_flow(driver: Callable[..., Any]) -> None:
    mistake = InvalidRequest("no")
    for op in (PULL, RELEASE):
        with pytest.raises(InvalidRequest) as caught:
            driver(do(op), Scripted(Busy(), mistake))
        assert caught.value is mistake


def test_a_pause_takes_its_time_and_asks_the_engine_nothing(driver: Callable[..., Any]) -> None:
    engine = Scripted()
    began = monotonic()
    assert driver(do(Pause(0.02)), engine) is None
    assert monotonic() - began >= 0.02
    assert engine.asked == []


def test_insisting_works_on_every_driver(driver: Callable[..., Any]) -> None:
    engine = Scripted(EngineUnavailable("away"), "done")
    assert driver(insisted(RELEASE), engine) == "done"
    assert engine.asked == [RELEASE, RELEASE]


def test_a_function_of_the_application_is_called_with_its_arguments(driver: Callable[..., Any]) -> None:
    assert driver(do(Ask(divmod, (7, 2))), Scripted()) == (3, 1)


def test_what_a_function_of_the_application_raises_passes_through(driver: Callable[..., Any]) -> None:
    def broken() -> None:
        raise KeyError("the application's own")

    with pytest.raises(KeyError, match="the application's own"):
        driver(do(Ask(broken, ())), Scripted())


@pytest.mark.parametrize("adriver", [arun, arun_on_trio])
def test_an_async_function_of_the_application_is_awaited(adriver: Callable[..., Any]) -> None:
    async def doubled(n: int) -> int:
        await anyio.lowlevel.checkpoint()
        return 2 * n

    assert adriver(do(Ask(doubled, (21,))), Scripted()) == 42


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_sync_driver_in_a_thread_of_anyio_has_async_functions_awaited_on_the_loop(backend: str) -> None:
    async def doubled(n: int) -> int:
        await anyio.lowlevel.checkpoint()
        assert threading.current_thread() is threading.main_thread()
        return 2 * n

    def handler() -> object:
        return drive.run(do(Ask(doubled, (21,))), Scripted(), 1.0)

    assert anyio.run(anyio.to_thread.run_sync, handler, backend=backend) == 42


# ---- opening --------------------------------------------------------------------------------------------------------


def test_opening_waits_for_others() -> None:
    engine = Scripted(Busy(), Busy())
    drive.open(engine, 1.0)
    assert engine.opened == 3


def test_opening_gives_up_after_the_timeout() -> None:
    with pytest.raises(EngineUnavailable):
        drive.open(Locked(), 0.01)


def test_opening_does_not_repeat_what_can_never_work() -> None:
    engine = Scripted(ConfigurationError("a newer file"))
    with pytest.raises(ConfigurationError, match="a newer file"):
        drive.open(engine, 1.0)
    assert engine.opened == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_is_done_in_a_thread_blocks_nobody_and_is_finished_though_its_scope_is_cancelled(backend: str) -> None:
    unblocked = threading.Event()
    finished: list[bool] = []

    def work() -> None:
        finished.append(unblocked.wait(30))

    async def unblock() -> None:
        await anyio.sleep(0.01)
        unblocked.set()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(unblock)
            with anyio.move_on_after(0.001):
                await drive.in_thread(work)
            assert finished == [True]

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_begins_in_a_scope_that_is_cancelled_already_is_done_all_the_same(backend: str) -> None:
    """As what a server's shutdown does: it may have been told to end before."""
    done: list[str] = []

    async def shut_down() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await drive.in_thread(lambda: done.append("closed"))

    anyio.run(shut_down, backend=backend)
    assert done == ["closed"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_is_finished_in_a_cancelled_scope_waits_between_its_tries(backend: str) -> None:
    engine = Locked()

    async def release() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(EngineUnavailable):  # which its flow is told, not the cancellation
                await drive.arun(do(RELEASE), engine, 0.1)

    anyio.run(release, backend=backend)
    assert 2 <= len(engine.asked) < 200  # some 25; thousands, where each pause is over at once


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_a_thread_raises_reaches_the_caller(backend: str) -> None:
    def work() -> None:
        raise ConfigurationError("in the thread")

    with pytest.raises(ConfigurationError, match="in the thread"):
        anyio.run(drive.in_thread, work, backend=backend)


# ---- cancellation ---------------------------------------------------------------------------------------------------


async def cancelled_while_waiting(awaitable: Awaitable[object], engine: Locked) -> BaseException | object:
    """What a task ends in that is cancelled while the engine is locked, and after that unlocked."""
    task = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.sleep(0.002)
    engine.is_locked = False
    (answer,) = await asyncio.gather(task, return_exceptions=True)
    return answer


async def test_a_finishing_operation_is_finished_before_the_cancellation_strikes() -> None:
    engine = Locked("done")
    answer = await cancelled_while_waiting(drive.aperform(RELEASE, engine, 30), engine)
    assert isinstance(answer, asyncio.CancelledError)
    assert engine.script == []


async def test_another_operation_is_abandoned() -> None:
    engine = Locked("done")
    answer = await cancelled_while_waiting(drive.aperform(PULL, engine, 30), engine)
    assert isinstance(answer, asyncio.CancelledError)
    assert engine.script == ["done"]


async def test_the_flow_is_told_the_reply_and_goes_on_before_the_cancellation_strikes() -> None:
    told: list[object] = []

    def flow() -> Flow[None]:
        for op in (RELEASE, PULL):
            reply: object = yield op
            told.append(reply)

    engine = Locked("one", "two")
    assert isinstance(await cancelled_while_waiting(drive.arun(flow(), engine, 30), engine), asyncio.CancelledError)
    assert told == ["one", "two"]


async def test_the_flow_is_told_of_a_failure_too() -> None:
    told: list[object] = []

    def flow() -> Flow[None]:
        try:
            yield from do(RELEASE)
        except EngineUnavailable as error:
            told.append(error)
            raise

    away = EngineUnavailable("away")
    engine = Locked(away)
    answer = await cancelled_while_waiting(drive.arun(flow(), engine, 30), engine)
    assert isinstance(answer, asyncio.CancelledError)  # and not the failure, which would swallow it
    assert told == [away]


async def test_a_cancelled_pause_is_waited_out() -> None:
    engine, is_paused = Scripted("done"), asyncio.Event()

    def flow() -> Flow[None]:
        is_paused.set()
        yield from do(Pause(0.02))
        yield from do(RELEASE)

    task = asyncio.ensure_future(drive.arun(flow(), engine, 30))
    await is_paused.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.asked == [RELEASE]


async def test_after_a_timeout_no_cancellation_is_left_behind() -> None:
    engine = Locked("done")
    asyncio.get_running_loop().call_later(0.01, setattr, engine, "is_locked", False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.002):
            await drive.aperform(RELEASE, engine, 30)
    await asyncio.sleep(0)
    assert engine.script == []


async def test_a_warm_operation_does_not_switch_tasks() -> None:
    switched: list[bool] = []
    asyncio.get_running_loop().call_soon(switched.append, True)
    for _ in range(10):
        await drive.aperform(PULL, Scripted(), 1.0)
    assert switched == []


def test_no_error_of_the_engine_is_turned_into_another(driver: Callable[..., Any]) -> None:
    for error in (TierError("root"), OSError("not ours"), ZeroDivisionError()):
        with pytest.raises(type(error)) as caught:
            driver(do(PULL), Scripted(error))
        assert caught.value is error


# ---- engines that wait for somebody else than other writers ----------------------------------------------------------


class Remote(Scripted):
    """Its async callers await it: for a moment, then it answers what the script says."""

    def attempt(self, op: Op[R]) -> R:
        raise AssertionError("would block the event loop")

    async def aattempt(self, op: Op[R]) -> R:
        self.asked.append(op)
        await anyio.sleep(0.01)
        return self.next()  # type: ignore[no-any-return]  # whatever the script says


async def test_an_engine_that_waits_is_awaited_and_asked_again_while_it_is_busy() -> None:
    engine = Remote(Busy(), Busy(), "done")
    assert await drive.aperform(PULL, engine, 5.0) == "done"
    assert engine.asked == [PULL] * 3
    with pytest.raises(EngineUnavailable):
        await drive.aperform(PULL, Remote(*[Busy()] * 100), 0.02)


async def test_an_engine_that_waits_finishes_what_it_has_begun() -> None:
    engine = Remote("released")
    with anyio.move_on_after(0.001) as scope:
        await drive.aperform(RELEASE, engine, 5.0)
    assert scope.cancelled_caught or engine.script == []
    assert engine.script == []
    abandoned = Remote("never")
    with anyio.move_on_after(0.001):
        await drive.aperform(PULL, abandoned, 5.0)
    assert abandoned.script == ["never"]
