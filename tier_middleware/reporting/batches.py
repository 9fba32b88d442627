"""What the outbox keeps: values."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from msgspec import Struct

__all__ = ["Batch", "Entry", "Policy", "State", "Tally"]

State: TypeAlias = Literal["open", "sealed", "sent", "held", "buried"]
"""``open`` takes more increments; ``sealed`` waits to be sent; ``sent`` is with a process that is sending it, or was
killed while it did; ``held`` may have been counted, nobody knows; ``buried`` was refused for good.
"""

Policy: TypeAlias = Literal["hold", "retry", "drop"]
"""What to do with a report whose outcome is unknown, on a server that does not honour keys."""


class Entry(Struct, frozen=True, gc=False):
    """One report. With ``is_alone`` (levels) it is not added to others, and is sent in its order.

    ``key`` and ``contents``, where given, make it count once in this outbox.
    """

    org: str
    feature: str
    n: int
    at_ms: int | None = None
    clobber: bool = False
    is_alone: bool = False
    key: str | None = None
    contents: str = ""

    @property
    def is_barrier(self) -> bool:
        """Whether what was reported before it must arrive before it, and what is reported after it, after it."""
        return self.clobber or self.is_alone


class Batch(NamedTuple):
    """``reports`` reports of one org and feature, sent as one. ``lease_ms`` is until when its sender may be at it."""

    id: int
    key: str
    org: str
    feature: str
    n: int
    reports: int
    at_ms: int | None
    clobber: bool
    state: State
    first_ms: int
    attempts: int
    due_ms: int
    lease_ms: int
    code: str
    reason: str


class Tally(NamedTuple):
    """How much of it there is in one state."""

    batches: int = 0
    reports: int = 0
    n: int = 0
