"""What a request uses of one feature: what is held for it, and what its handler says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .detached import AsyncDetached, Detached
from .names import checked_units
from .ops import Hold
from .requirement import Requirement

if TYPE_CHECKING:
    from .context import TierContext

__all__ = ["FeatureUsage", "Gate", "Part"]

Part = tuple[Requirement, int]
"""What one requirement asks of a gate: so many units."""


class Gate:
    """One feature that a request was let through for.

    ``hold`` is None where nothing is held: for an on/off feature (``is_free``), or while the engine was away. One that
    a handler took (``is_taken``) is no part of the estimate. ``counted`` is what may have been counted of it already.
    With a ``key`` it counts once for that key.
    """

    __slots__ = ("counted", "feature", "hold", "is_free", "is_taken", "key", "parts")

    def __init__(
        self,
        feature: str,
        parts: tuple[Part, ...],
        hold: Hold | None,
        is_free: bool,
        *,
        is_taken: bool = False,
        key: str = "",
    ) -> None:
        self.feature = feature
        self.parts = parts
        self.hold = hold
        self.is_free = is_free
        self.is_taken = is_taken
        self.key = key
        self.counted = 0

    def without_response(self) -> Gate:
        """The same of a task: it is no response, whose status can be asked for, nor a message, which ends by itself."""
        parts = tuple((replace(requirement, report_if=None, per="request"), n) for requirement, n in self.parts)
        gate = Gate(self.feature, parts, self.hold, self.is_free, is_taken=self.is_taken, key=self.key)
        gate.counted = self.counted
        return gate

    @property
    def is_per_message(self) -> bool:
        return self.parts[0][0].per == "message"

    @property
    def held(self) -> int:
        return self.n if self.hold is None else self.hold.n

    @property
    def n(self) -> int:
        return sum([n for _, n in self.parts])

    @property
    def is_capped(self) -> bool:
        if len(self.parts) == 1:
            return self.parts[0][0].overage == "cap"
        return any(requirement.overage == "cap" for requirement, _ in self.parts)

    def counted_for(self, request: Any, status: int) -> int | None:
        """The units that a response with this status counts; None for none at all."""
        if len(self.parts) == 1:
            ((requirement, n),) = self.parts
            return n if requirement.is_counted(request, status) else None
        counted = [n for requirement, n in self.parts if requirement.is_counted(request, status)]
        return sum(counted) if counted else None


class Said:
    """What was said of one feature, and whose it is: a request's, a message's of a connection, or a task's."""

    __slots__ = ("context", "is_left", "is_skipped", "n")

    def __init__(self, context: TierContext) -> None:
        self.context = context
        self.is_left = False  # to a task
        self.is_skipped = False
        self.n: int | None = None


class FeatureUsage:
    """What this request uses of one feature.

    What is counted is the reserved amount unless the handler says otherwise.
    """

    __slots__ = ("_said", "feature")

    def __init__(self, context: TierContext, feature: str) -> None:
        self.feature = feature
        self._said = Said(context)

    def __repr__(self) -> str:
        return f"FeatureUsage({self.feature!r}, n={self.n})"

    @property
    def _context(self) -> TierContext:
        return self._said.context

    @property
    def n(self) -> int:
        """The units that will be counted if the request succeeds now."""
        if self._said.is_skipped:
            return 0
        return sum(gate.n for gate in self._context.gates_of(self.feature)) if self._said.n is None else self._said.n

    def set(self, n: int) -> None:
        """Count n units for this request in all."""
        self._context.ensure_open(self.feature)
        self._said.n, self._said.is_skipped = checked_units(n), False

    def add(self, n: int) -> None:
        """Count n units more. The first call replaces the amount that was reserved as an estimate."""
        self._context.ensure_open(self.feature)
        self._said.n, self._said.is_skipped = (self._said.n or 0) + checked_units(n), False

    async def take(self, n: int) -> None:
        """Reserve n units more, then add them.

        Raises `LimitReached` when they are not to be had; nothing is added then.
        """
        self._context.ensure_open(self.feature)
        await self._context.reserve_more(self.feature, checked_units(n))
        self.add(n)

    def skip(self) -> None:
        """Count nothing of this feature for this request."""
        self._context.ensure_open(self.feature)
        self._said.is_skipped = True

    def detach(self) -> AsyncDetached:
        """Leave this feature's usage to a task that goes on when the request is over.

        The request does not count it any more, whatever becomes of it; the task settles it. For sync tasks there is
        `detach_sync`.
        """
        return AsyncDetached(self._detached(), self.feature)

    def detach_sync(self) -> Detached:
        """`detach`, for a task that is sync."""
        return Detached(self._detached(), self.feature)

    def _detached(self) -> TierContext:
        self._context.ensure_open(self.feature)
        if self._said.is_left:
            raise RuntimeError(f"{self.feature!r} is left to a task already")
        self._said.context, self._said.is_left = self._context.part_of(self.feature), True
        return self._context

    @property
    def used(self) -> int:
        """What the org has used in this period, read now; this request is not in it yet. 0 while the engine is away."""
        return self._context.glance(self.feature).used

    @property
    def limit(self) -> int | None:
        """The limit of the period; None for unlimited."""
        return self._context.glance(self.feature).limit

    @property
    def remaining(self) -> int | None:
        """What is left, without what this and other running requests hold; None for unlimited."""
        return self._context.glance(self.feature).remaining

    @property
    def so_far(self) -> int | None:
        """What the handler said that was used; None where it said nothing."""
        return None if self._said.is_skipped else self._said.n

    def begin_anew(self, context: TierContext) -> None:
        """Forget what was said: a message was counted, or left to a task, and the next one counts by itself."""
        self._said = Said(context)

    def shared_with_a_task(self) -> FeatureUsage:
        """The same, also once this one begins anew."""
        twin = FeatureUsage(self._context, self.feature)
        twin._said = self._said
        return twin

    def shared(self, counts: Sequence[tuple[Gate, int | None]], least: int = 0) -> Sequence[tuple[Gate, int | None]]:
        """What each of the feature's gates counts, once the handler has had its say; ``least`` in all.

        A total that it gave is spread over what was reserved, the rest on the last gate; one that is left with nothing
        is given back, but for the first: a level may be set to 0. What may have been counted stays with its gate.
        """
        counted = [gate for gate, n in counts if n is not None]
        if self._said.is_skipped or not counted:
            return [(gate, None) for gate, _ in counts]
        if self._said.n is None:
            return counts
        total = max(self._said.n, least)
        begun = {gate: gate.counted for gate in counted} if sum([gate.counted for gate in counted]) <= total else {}
        rest, shares = total - sum(begun.values()), dict[Gate, int]()
        for gate in counted:
            n = begun.get(gate, 0)
            more = rest if gate is counted[-1] else min(rest, max(0, gate.held - n))
            shares[gate], rest = n + more, rest - more
        return [(gate, shares.get(gate) or (0 if gate is counted[0] else None)) for gate, _ in counts]
