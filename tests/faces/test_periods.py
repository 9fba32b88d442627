"""The edge of a billing period, through every face: what was reserved before it is counted before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from counting import used
from face_apps import DURING, FACES, Face
from test_contract import Visitor

from tier_middleware import AsyncTier, ManualClock

A_MOMENT = timedelta(milliseconds=1)


def days(*dates: str) -> list[datetime]:
    return [datetime.fromisoformat(f"{date}T10:00:00+00:00") for date in dates]


# The moment of a subscription, and the edges of its months: calendars have leap days, and months of 28 to 31 days.
EDGES = {
    "a leap year": days("2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"),
    "another year": days("2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30"),
    "from a leap day": days("2024-02-29", "2024-03-29", "2024-04-29"),
    "a year's end": days("2025-12-31", "2026-01-31", "2026-02-28"),
}


@pytest.fixture
def clock() -> Iterator[ManualClock]:
    yield ManualClock(datetime(2020, 1, 1, tzinfo=UTC))
    DURING.clear()


@pytest.mark.parametrize(("name", "url"), [*((name, "memory://") for name in EDGES), ("a leap year", "sqlite")])
@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
async def test_a_request_that_ends_in_the_next_period_counts_in_the_one_it_began_in(
    face: Face, url: str, name: str, clock: ManualClock, make_tier: Callable[..., AsyncTier]
) -> None:
    start, *ends = EDGES[name]
    clock.set(start)
    async with make_tier(url, clock=clock) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        visitor = Visitor(face, tier)
        DURING["pass"] = lambda: clock.advance(A_MOMENT)
        carried = 0  # into the period, by the request that was under way when the last one ended
        for end in ends:
            assert await used(tier) == (carried, 0)
            clock.set(end - A_MOMENT)
            assert (await visitor.visit("/during?do=pass")).status_code == 200
            assert clock() == end
            assert await used(tier) == (0, 0)  # not in the new one
            assert (await visitor.visit("/status")).status_code == 200
            carried = 1
            clock.set(end - A_MOMENT)
            assert await used(tier) == (1 if end is ends[0] else 2, 0)
            clock.set(end)


@pytest.mark.parametrize("face", FACES, ids=lambda face: face.name)
async def test_what_is_held_over_the_edge_takes_nothing_from_the_new_period(
    face: Face, clock: ManualClock, make_tier: Callable[..., AsyncTier]
) -> None:
    start, end, *_ = EDGES["a leap year"]
    clock.set(start)
    async with make_tier("memory://", clock=clock) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        visitor = Visitor(face, tier)
        clock.set(end - A_MOMENT)
        await tier.report("org:acme", "feature:convert", 9)
        seen: list[int | None] = []

        def look() -> None:
            clock.advance(A_MOMENT)
            found = tier.core.engine.attempt(tier.core.operations.look_up("org:acme"))
            (usage,) = [one for one in found if one.feature == FEATURE]
            seen.append(usage.remaining)

        DURING["look"] = look
        assert (await visitor.visit("/during?do=look")).status_code == 200  # the last one of the old period
        assert seen == [10]
        clock.set(end - A_MOMENT)
        assert (await visitor.visit("/status")).status_code == 402
        clock.set(end)
        assert (await visitor.visit("/status")).status_code == 200


FEATURE = "feature:convert"
