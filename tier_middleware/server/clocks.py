"""The endpoint of test clocks."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from msgspec import Struct

from ..answers import ClockView
from ..client import AsyncClockedTier, AsyncTier
from ..errors import InvalidRequest
from ..names import shown
from .endpoint import Call, Endpoint
from .faults import bad_request
from .forms import Time, renamed, time_given

__all__ = ["ENDPOINTS", "clock_named"]


class ClockBody(Struct, forbid_unknown_fields=True):
    """With an ``id`` the clock moves forwards; without one a clock is made. ``present`` is cut off to seconds."""

    name: str | None = None
    id: str | None = None
    present: Time | None = None


class ClockQuery(Struct):
    id: str


class ClockAnswer(Struct):
    """A test clock; ``status`` is empty right after a change, as in Tier."""

    id: str
    link: str
    present: datetime
    status: Literal["", "ready"]


async def set_clock(call: Call[ClockBody]) -> ClockAnswer:
    asked, present = call.asked, time_given(call.asked.present)
    if present is None:
        raise bad_request("present: must be given")
    with renamed(start="present", to="present"):
        if not asked.id:
            return _answer(call, (await call.tier.with_clock(asked.name or "", present)).clock, "")
        clocked = await clock_named(call.tier, asked.id)
        await clocked.advance(present)
        return _answer(call, clocked.clock, "")


async def look_up_clock(call: Call[ClockQuery]) -> ClockAnswer:
    return _answer(call, (await clock_named(call.tier, call.asked.id)).clock, "ready")


async def clock_named(tier: AsyncTier, id: str, field: str = "id") -> AsyncClockedTier:
    """A client under a clock; one that nobody has made is the caller's mistake."""
    try:
        return await tier.on_clock(id)
    except InvalidRequest:
        raise bad_request(f"{field}: there is no test clock {shown(id)}") from None


def _answer(call: Call[Any], clock: ClockView, status: Literal["", "ready"]) -> ClockAnswer:
    return ClockAnswer(clock.id, f"{call.url}/v1/clock?id={clock.id}", clock.present, status)


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/clock",
        set_clock,
        "Make a test clock, or advance one. Orgs made under it (header Tier-Clock) are seen only under it.",
        ClockAnswer,
        body=ClockBody,
    ),
    Endpoint("GET", "/v1/clock", look_up_clock, "A test clock as it is now.", ClockAnswer, query=ClockQuery),
)
