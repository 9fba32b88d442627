"""Who waits for changes of limits: any number of requests, and one of them looks for all.

Other processes change limits too, so somebody has to look into the engine again and again. The request that finds
nobody looking does it for as long as it waits itself, and wakes the others; then one of them goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import anyio

from ..client import AsyncTier
from ..clock import monotonic
from ..flow import do
from ..ops import Changes, ReadChanges

__all__ = ["Watch"]

LOOK_SECONDS: Final = 0.1  # between two looks, while anybody waits


class Watch:
    """Of one server, on one event loop. After `end` nobody waits any more."""

    def __init__(self) -> None:
        self._has_news: anyio.Event | None = None  # of who looks; None while nobody does
        self._looked_from = ""  # the cursor of who looks
        self._news: tuple[str, Changes] | None = None  # the last, and since when
        self._is_over = False

    def end(self) -> None:
        """Let all who wait have their answers within `LOOK_SECONDS`. May be called by a signal handler."""
        self._is_over = True

    async def changes(
        self, tier: AsyncTier, since: str | None, wait_seconds: float, own: Callable[[str], str | None]
    ) -> Changes:
        """The changes since a cursor, as soon as there are some that the asker may know of, or when the time is up."""
        deadline = monotonic() + wait_seconds
        found = await _read(tier, since)
        while since is not None and not _concerns(found, own) and not self._is_over and monotonic() < deadline:
            has_news, was_looked_from = self._has_news, self._looked_from
            if has_news is None:
                await self._look_for_all(tier, found.cursor, deadline)
            elif found.cursor == was_looked_from or not _concerns(found := await _read(tier, found.cursor), own):
                # whoever looks has looked from this moment on, or from an earlier one
                with anyio.move_on_after(deadline - monotonic()):
                    await has_news.wait()
            else:
                return found
            found = await self._after(tier, found.cursor)
        return found

    async def _after(self, tier: AsyncTier, cursor: str) -> Changes:
        """What came after a cursor: nearly always what all others have been told just now."""
        if self._news is not None and self._news[0] == cursor:
            return self._news[1]
        return await _read(tier, cursor)

    async def _look_for_all(self, tier: AsyncTier, cursor: str, deadline: float) -> None:
        has_news = self._has_news = anyio.Event()
        self._looked_from = cursor
        try:
            await self._look(tier, cursor, deadline)
        finally:
            self._has_news = None
            has_news.set()

    async def _look(self, tier: AsyncTier, cursor: str, deadline: float) -> None:
        while not self._is_over and (left := deadline - monotonic()) > 0:
            await anyio.sleep(min(LOOK_SECONDS, left))
            found = await _read(tier, cursor)
            if found.orgs or found.is_everything:
                self._news = (cursor, found)
                return


def _concerns(found: Changes, own: Callable[[str], str | None]) -> bool:
    return found.is_everything or any(own(key) is not None for key in found.orgs)


async def _read(tier: AsyncTier, since: str | None) -> Changes:
    return await tier.run(do(ReadChanges(since)))
