"""Threads for work that blocks, beside an event loop."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyio import CapacityLimiter
    from anyio.lowlevel import RunVar

__all__ = ["limiter_of_loop"]


def limiter_of_loop(name: str, threads: int) -> CapacityLimiter:
    """So many threads for each event loop, and not of those that run sync handlers: many may want the same work done.

    Called on the loop; each name has its own.
    """
    import anyio  # here: a program without an event loop need not import it

    limiter = _limiters(name).get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(threads)
        _limiters(name).set(limiter)
    return limiter


@cache
def _limiters(name: str) -> RunVar[CapacityLimiter]:
    from anyio.lowlevel import RunVar

    return RunVar(f"tier_middleware.{name}")
