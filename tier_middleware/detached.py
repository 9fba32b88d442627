"""Usage that a request leaves to a task: counted when that is done, given back when it fails, renewed until then."""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import drive
from .flow import Flow

if TYPE_CHECKING:
    from .context import TierContext

__all__ = ["AsyncDetached", "Detached"]


class _Detached:
    """What the twins share. What one holds that is forgotten is given back soon."""

    def __init__(self, context: TierContext, feature: str) -> None:
        self._context = context
        self._usage = context[feature]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.feature!r}, n={self.n})"

    def __del__(self) -> None:
        self._context.core.abandon(self._context, partial(self._context.settlement, None))

    @property
    def org(self) -> Any:
        """As in `tier_middleware.context.TierContext`."""
        return self._context.org

    @property
    def feature(self) -> str:
        return self._usage.feature

    @property
    def n(self) -> int:
        """The units that will be counted if the task succeeds now."""
        return self._usage.n

    def set(self, n: int) -> None:
        """Count n units in all."""
        self._usage.set(n)

    def add(self, n: int) -> None:
        """Count n units more. The first call replaces the amount that was reserved, unless the handler has added."""
        self._usage.add(n)

    @property
    def is_settled(self) -> bool:
        return self._context.is_over

    def _steps(self, *, is_done: bool) -> Flow[None]:
        self._context.ensure_open(self.feature)
        settlement = self._context.settlement(200 if is_done else None)
        if not settlement.is_empty:
            yield from self._context.core.settling(settlement)


class AsyncDetached(_Detached):
    """For tasks that are async: ``async with usage:`` counts what it used, and gives it back if the block raises."""

    async def settle(self) -> None:
        """Count it now, and once; nothing can be added afterwards."""
        await self._run(is_done=True)

    async def release(self) -> None:
        """Count nothing, and give back what is held."""
        await self._run(is_done=False)

    async def take(self, n: int) -> None:
        """Reserve n units more, then add them. Raises `LimitReached` when they are not to be had."""
        await self._usage.take(n)

    async def _run(self, *, is_done: bool) -> None:
        core = self._context.core
        await drive.arun(self._steps(is_done=is_done), core.engine, core.timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.is_settled:
            await self._run(is_done=error is None)


class Detached(_Detached):
    """For tasks that are sync, in whichever thread: ``with usage:`` counts what it used, and gives it back if the block
    raises.
    """

    def settle(self) -> None:
        """Count it now, and once; nothing can be added afterwards."""
        self._run(is_done=True)

    def release(self) -> None:
        """Count nothing, and give back what is held."""
        self._run(is_done=False)

    def _run(self, *, is_done: bool) -> None:
        core = self._context.core
        drive.run(self._steps(is_done=is_done), core.engine, core.timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.is_settled:
            self._run(is_done=error is None)
