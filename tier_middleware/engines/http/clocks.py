"""Test clocks of a server: asked for once, and then remembered as they were last seen."""

from __future__ import annotations

from typing import Final

from ... import calls, wire
from ...clock import monotonic, sleep
from ...errors import EngineUnavailable
from ...ops import AdvanceClock, ClockRecord, LookUpClock, MakeClock
from .. import verdicts
from .server import Cold, Server

__all__ = ["Clocks"]

PAUSE_SECONDS: Final = 0.1  # between looks at a clock that advances


class Clocks:
    """What is known of a clock does for operations under it; an advance waits until it has arrived."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._known: dict[str, ClockRecord] = {}

    def make(self, op: MakeClock) -> ClockRecord:
        return self._heard(op.name, calls.make_clock(op.name, op.present_ms))

    def look_up(self, op: LookUpClock, is_final: bool) -> ClockRecord:
        known = self._known.get(op.id)
        if known is None:
            raise Cold(lambda: self._arrived(op.id, ""))
        return known

    def advance(self, op: AdvanceClock) -> ClockRecord:
        name = self._known[op.id].name if op.id in self._known else ""
        verdicts.advanced(self._arrived(op.id, name), op.present_ms)
        self._heard(name, calls.advance_clock(op.id, op.present_ms))
        return self._arrived(op.id, name)

    def _heard(self, name: str, request: wire.Request) -> ClockRecord:
        record, _ = calls.clock_in(request, self._server.answer(request), name)
        self._known[record.id] = record
        return record

    def _arrived(self, id: str, name: str) -> ClockRecord:
        """The clock, once it stands still: an advance takes the server a while."""
        deadline = monotonic() + self._server.timeout
        while True:
            request = calls.clock(id)
            record, has_arrived = calls.clock_in(request, self._server.answer(request), name)
            self._known[id] = record
            if has_arrived:
                return record
            if monotonic() >= deadline:
                raise EngineUnavailable(f"{self._server.base_url}: {id!r} is still advancing")
            sleep(PAUSE_SECONDS)
