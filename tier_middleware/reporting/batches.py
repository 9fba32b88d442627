"""What the outbox keeps: values."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct

__all__ = ["NOTHING_MORE", "Action", "Batch", "Detail", "Entry", "Policy", "State", "Stock"]

Action: TypeAlias = Literal["report", "record", "commit", "release", "adjust"]
"""What is done when a batch is delivered. A ``report`` is one of Tier's API, which may count twice if it is sent twice.
The others are the operations of `tier_middleware.ops`: each counts once per key or hold, however often it is sent.
"""

State: TypeAlias = Literal["open", "sealed", "sent", "held", "buried"]
"""``open`` takes more increments; ``sealed`` waits to be sent; ``sent`` is with a process that is sending it, or was
killed while it did; ``held`` may have been counted, nobody knows; ``buried`` was refused for good.
"""

Policy: TypeAlias = Literal["hold", "retry", "drop"]
"""What to do with a report whose outcome is unknown, on a server that does not honour keys."""


class Detail(Struct, frozen=True, gc=False, omit_defaults=True):
    """What an action needs besides: of the hold that it settles, ``held`` is its n; ``note`` is for the ledger."""

    hold: int = 0
    place: int = 0
    held: int = 0
    is_capped: bool = False
    once: str = ""  # the key that a commit counts once for
    expires_ms: int = 0
    default_plan: str | None = None
    note: str = ""


NOTHING_MORE: Final = Detail()


class Entry(Struct, frozen=True, gc=False):
    """Something to deliver. With ``is_alone`` (levels) it is not added to others, and is sent in its order.

    ``key`` and ``contents``, where given, make a report count once in this outbox; the key of another action is that
    of the operation itself.
    """

    org: str
    feature: str
    n: int
    at_ms: int | None = None
    clobber: bool = False
    is_alone: bool = False
    key: str | None = None
    contents: str = ""
    action: Action = "report"
    detail: Detail = NOTHING_MORE

    @property
    def is_open(self) -> bool:
        """Whether it may be added to others, and others to it."""
        return self.action == "report" and self.at_ms is None and not self.is_barrier

    @property
    def is_barrier(self) -> bool:
        """Whether what was reported before it must arrive before it, and what is reported after it, after it."""
        return self.clobber or self.is_alone


class Batch(NamedTuple):
    """``reports`` entries of one org and feature, sent as one. ``lease_ms`` is until when its sender may be at it."""

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
    action: Action = "report"
    detail: Detail = NOTHING_MORE

    @property
    def is_repeatable(self) -> bool:
        """Whether it counts once, however often it is sent and to whom."""
        return self.action != "report"


class Stock(NamedTuple):
    """How much of it there is in one state."""

    batches: int = 0
    reports: int = 0
    n: int = 0
