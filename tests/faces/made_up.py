"""Handlers that hypothesis makes up: what they say of their usage, and what that comes to by the README's words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

from counting import used
from hypothesis import strategies as st

from tier_middleware import AsyncTier, LimitReached, ManualClock
from tier_middleware.asgi import FeatureUsage
from tier_middleware.requirement import OnDisconnect, Overage

CONVERT = "feature:convert"
LIMIT = 10
START = datetime(2026, 3, 1, tzinfo=UTC)
HALF_A_RESERVATION = timedelta(seconds=450)

Step = tuple[str, int]
"""A word and so many units. ``"tend"`` is the keeper, which comes by; ``"wait"`` lets time pass before it does."""

SAID = ["add", "add", "take", "take", "set", "skip"]
STEPS = st.lists(st.tuples(st.sampled_from([*SAID, "tend", "wait"]), st.integers(0, 6)), max_size=4)
BEFORE_IT = st.sampled_from([0, 0, 3, 6, 9, LIMIT])
"""What the org has used before the request."""

AMOUNTS = st.sampled_from([2, 1, 4, 0])


def is_let_through(before_it: int, amount: int) -> bool:
    return before_it + amount <= LIMIT and before_it < LIMIT


class Said:
    """What a handler has said."""

    def __init__(self, amount: int) -> None:
        self.amount = amount
        self.n: int | None = None
        self.is_skipped = False

    def note(self, word: str, n: int) -> None:
        if word == "skip":
            self.is_skipped = True
        else:
            self.n = n if word == "set" else (self.n or 0) + n
            self.is_skipped = False

    @property
    def total(self) -> int:
        return self.amount if self.n is None and not self.is_skipped else self.only

    @property
    def only(self) -> int:
        """Without the amount, where the handler said nothing."""
        return 0 if self.is_skipped else self.n or 0


class Terms(Protocol):
    """How a response is gated."""

    @property
    def before_it(self) -> int: ...
    @property
    def on_disconnect(self) -> OnDisconnect: ...
    @property
    def overage(self) -> Overage: ...


def counted_of(terms: Terms, said: Said, *, is_success: bool, is_whole: bool) -> int:
    """What a response counts that was let through; one that is no success has failed, and a part was cut off."""
    if not is_success:
        n = 0
    elif is_whole or said.is_skipped or terms.on_disconnect == "report":
        n = said.total
    else:
        n = max(said.amount, said.total) if terms.on_disconnect == "estimate" else 0
    return min(n, LIMIT - terms.before_it) if terms.overage == "cap" else n


class Speaker:
    """Says the steps to the usage of a request of one org, and notes what was said."""

    def __init__(self, tier: AsyncTier, clock: ManualClock, org: str = "org:acme") -> None:
        self.tier = tier
        self.clock = clock
        self.org = org

    async def say(self, usage: FeatureUsage, steps: Sequence[Step], said: Said) -> None:
        for word, n in steps:
            if word in ("tend", "wait"):
                if word == "wait":
                    self.clock.advance(HALF_A_RESERVATION)
                self.tier.core.tend()
                continue
            if word == "skip":
                usage.skip()
            elif word != "take":
                getattr(usage, word)(n)
            elif not await self.has_taken(usage, n):
                continue
            said.note(word, n)

    async def has_taken(self, usage: FeatureUsage, n: int) -> bool:
        """Take, which is granted exactly where there is room."""
        room = LIMIT - sum(await used(self.tier, org=self.org))
        try:
            await usage.take(n)
        except LimitReached:
            assert room < n or (n == 0 and room <= 0), (room, n)
            return False
        assert room >= n, (room, n)
        return True
