"""Orgs in the time of a test clock: the same engine and settings, other orgs, another present."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar, TypeVar

from .answers import ClockView
from .clock import moment, whole_seconds
from .core import Core
from .names import checked_org, org_key
from .operations import Operations
from .ops import AdvanceClock, Demand, Granted, Op, Push, Shortfall, UnderClock

__all__ = ["ClockedCore"]

R = TypeVar("R")


class ClockedOperations(Operations):
    """Operations under a test clock. What time it is there is told to ``core`` when an operation is performed."""

    def __init__(self, core: ClockedCore, unclocked: Operations) -> None:
        super().__init__(core.settings, core.now_ms, takes_payments=unclocked.takes_payments)
        self._clock_id = core.clock.id
        self._hear = core.hear
        self._unclocked = unclocked

    def key_of(self, org: str) -> str:
        return org_key(checked_org(org), self._clock_id)

    def dated(self, make: Callable[[int], Op[R]]) -> Op[R]:
        def made(present_ms: int) -> Op[R]:
            self._hear(present_ms)
            return make(present_ms)

        return UnderClock(self._clock_id, made)

    def reserve(self, org: str, demands: tuple[Demand, ...]) -> Op[Granted | Shortfall]:
        key = org_key(org, self._clock_id)
        return self.dated(lambda _: Operations.reserve(self, key, demands))  # at now_ms(), which has just been heard

    def push(self, model: Any) -> Push:
        return self._unclocked.push(model)  # plans are everybody's, and so is the time that they are pushed at

    def advance(self, to: datetime) -> AdvanceClock:
        return AdvanceClock(self._clock_id, whole_seconds(to, "to"))


class ClockedCore(Core):
    """A core under a test clock. It shares another's engine and settings, and counts for itself.

    What time it is there, the engine says for each operation; ``clock`` and ``now_ms`` are what it last said.
    """

    is_clocked: ClassVar[bool] = True
    operations: ClockedOperations

    def __init__(self, core: Core, clock: ClockView) -> None:
        self.clock = clock
        super().__init__(replace(core.settings, pricing=None), lambda: self.clock.present, core.engine)
        self.operations = ClockedOperations(self, core.operations)
        self.backup = core.backup
        self.is_open, self.model = core.is_open, core.model

    def hear(self, present_ms: int) -> None:
        if present_ms > self.now_ms():  # of two threads' answers the later moment is the newer one
            self.clock = replace(self.clock, present=moment(present_ms))
