"""Reservations are renewed for as long as their work goes on, and what a stream has used is counted on the way."""

from __future__ import annotations

import gc
import logging
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from forking import exit_status, forked
from waiting import until

from tier_middleware import LimitReached, ManualClock, Tier
from tier_middleware.context import TierContext
from tier_middleware.gate import admission
from tier_middleware.gate_options import GateOptions
from tier_middleware.requirement import Requirement

PRICING = {
    "plans": {
        "plan:free@1": {
            "features": {
                "feature:convert": {"tiers": [{"upto": 10}]},
                "feature:pages": {"tiers": [{"upto": 100}]},
                "feature:seats": {"tiers": [{"upto": 5}], "aggregate": "max"},
                "feature:sso": {},
            }
        }
    }
}
START = datetime(2024, 1, 31, 10, 30, tzinfo=UTC)
ACME = "org:acme"
HOUR = 3600.0


class Request:
    method = "GET"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def tier(url: str, clock: ManualClock) -> Iterator[Tier]:
    """One whose thread does not look by itself while a test runs: the test does."""
    with Tier(
        url, pricing=PRICING, default_plan="plan:free@1", clock=clock, reservation_seconds=HOUR, flush_seconds=HOUR
    ) as tier:
        yield tier


def begun(tier: Tier, *requirements: Requirement, is_begun: bool = True) -> TierContext:
    """A request that was let through, and whose response has begun."""
    options = GateOptions(lambda request: "acme")
    context = TierContext(tier.core, options, Request())
    assert tier.run(admission(context, requirements or (Requirement("feature:convert", 4),), {})) is None
    context.has_begun = is_begun
    return context


def settled(tier: Tier, context: TierContext, status: int = 200, **how: bool) -> None:
    tier.run(tier.core.settling(context.settlement(status, **how)))


def usage(tier: Tier, feature: str = "feature:convert") -> tuple[int, int]:
    found = tier.lookup_limit(ACME, feature)
    return found.used, found.reserved


# ---- renewing -------------------------------------------------------------------------------------------------------


def test_what_lives_never_expires_and_what_is_over_does_not_come_back(tier: Tier, clock: ManualClock) -> None:
    context, killed = begun(tier), begun(tier)
    tier.core.live.discard(killed)  # as if its process had been killed
    for _ in range(10):
        clock.advance(timedelta(seconds=HOUR / 3))
        tier.core.tend()
    assert usage(tier) == (0, 4)
    settled(tier, context)
    assert usage(tier) == (4, 0)
    clock.advance(timedelta(seconds=HOUR))
    tier.core.tend()
    assert usage(tier) == (4, 0)
    assert not tier.core.live


def test_a_third_of_their_life_is_early_enough_for_whenever_they_began(tier: Tier, clock: ManualClock) -> None:
    """At any distance between two looks that the keeper may have."""
    for minutes in (1, 7, 19, 20):
        context = begun(tier)
        for _ in range(200 // minutes):
            clock.advance(timedelta(minutes=minutes))
            tier.core.tend()
            assert usage(tier) == (0, 4), minutes
        settled(tier, context, 500)


def test_work_that_is_young_is_left_alone(tier: Tier, clock: ManualClock) -> None:
    """A look writes nothing for requests that do not take long."""
    begun(tier)
    written: list[Any] = []
    for _ in range(5):
        clock.advance(timedelta(minutes=3))
        tier.core.keeper.tend(written.append)
    assert written == []
    clock.advance(timedelta(minutes=6))
    tier.core.keeper.tend(written.append)
    assert [[kept.n for kept in one] for one in written] == [[0]]


def test_a_reserve_block_keeps_what_it_holds(tier: Tier, clock: ManualClock) -> None:
    with tier.reserve(ACME, "feature:convert", 10) as reservation:
        for _ in range(10):
            clock.advance(timedelta(seconds=HOUR / 3))
            tier.core.tend()
        reservation.add(3)
        tier.core.tend()
        assert usage(tier) == (0, 10)  # a block that raises counts nothing, so nothing is counted before its end
        with pytest.raises(LimitReached), tier.reserve(ACME, "feature:convert"):
            raise AssertionError("never gets here")
    assert usage(tier) == (3, 0)
    with pytest.raises(ZeroDivisionError), tier.reserve(ACME, "feature:convert"):
        raise ZeroDivisionError
    assert not tier.core.live


def test_levels_and_on_off_features_have_nothing_to_count_on_the_way(tier: Tier, clock: ManualClock) -> None:
    context = begun(tier, Requirement("feature:seats", 3), Requirement("feature:sso"))
    context["feature:seats"].set(4)
    for _ in range(6):
        clock.advance(timedelta(seconds=HOUR / 3))
        tier.core.tend()
    assert usage(tier, "feature:seats") == (0, 0)
    settled(tier, context)
    assert usage(tier, "feature:seats") == (4, 0)


def test_under_a_test_clock_it_is_renewed_in_its_time(tier: Tier, clock: ManualClock) -> None:
    clocked = tier.with_clock("rehearsal", START)
    context = begun(clocked)
    clocked.advance(START + timedelta(seconds=HOUR / 2))
    clocked.core.tend()
    clocked.advance(START + timedelta(seconds=HOUR))
    assert clocked.lookup_limit(ACME, "feature:convert").reserved == 4
    settled(clocked, context)
    assert clocked.lookup_limit(ACME, "feature:convert").used == 4


# ---- counting on the way --------------------------------------------------------------------------------------------


def test_what_was_added_is_counted_on_the_way_and_once(tier: Tier) -> None:
    context = begun(tier)
    usage_of = context["feature:convert"]
    tier.core.tend()
    assert usage(tier) == (0, 4)
    for n, seen in ((1, (1, 3)), (2, (3, 1)), (3, (6, 0))):
        usage_of.add(n)
        tier.core.tend()
        tier.core.tend()
        assert usage(tier) == seen
    usage_of.add(1)
    settled(tier, context)
    assert usage(tier) == (7, 0)
    tier.core.tend()
    assert usage(tier) == (7, 0)
    assert [entry.n for entry in tier.history(ACME, "feature:convert")] == [1, 2, 3, 1]


@pytest.mark.parametrize(("status", "how"), [(500, {}), (200, {"is_counted": False})])
def test_a_failure_takes_back_what_was_counted_on_the_way(tier: Tier, status: int, how: dict[str, bool]) -> None:
    context = begun(tier)
    context["feature:convert"].add(3)
    tier.core.tend()
    assert usage(tier) == (3, 1)
    settled(tier, context, status, **how)
    assert usage(tier) == (0, 0)


def test_a_handler_may_say_less_in_the_end(tier: Tier) -> None:
    for say, n in ((lambda usage: usage.set(2), 2), (lambda usage: usage.skip(), 0), (lambda usage: usage.set(0), 0)):
        context = begun(tier)
        context["feature:convert"].add(5)
        tier.core.tend()
        say(context["feature:convert"])
        tier.core.tend()
        before = usage(tier)[0] - 5
        settled(tier, context)
        assert usage(tier) == (before + n, 0)


def test_before_the_response_has_begun_nothing_is_counted(tier: Tier) -> None:
    """It may yet become a failure."""
    context = begun(tier, is_begun=False)
    context["feature:convert"].add(3)
    tier.core.tend()
    assert usage(tier) == (0, 4)
    context.has_begun = True
    tier.core.tend()
    assert usage(tier) == (3, 1)


def test_an_amount_is_counted_at_the_end(tier: Tier) -> None:
    context = begun(tier)
    assert context["feature:convert"].n == 4
    tier.core.tend()
    assert usage(tier) == (0, 4)
    settled(tier, context)
    assert usage(tier) == (4, 0)


def test_a_killed_process_loses_what_it_added_since_the_last_look(tier: Tier, clock: ManualClock) -> None:
    context = begun(tier)
    context["feature:convert"].add(3)
    tier.core.tend()
    context["feature:convert"].add(1)
    tier.core.live.discard(context)  # killed
    clock.advance(timedelta(seconds=HOUR))
    assert usage(tier) == (3, 0)


async def test_what_is_taken_later_does_not_move_what_was_counted(tier: Tier) -> None:
    context = begun(tier, Requirement("feature:convert", 1))
    one = context["feature:convert"]
    one.add(5)
    tier.core.tend()
    assert usage(tier) == (5, 0)
    await one.take(4)
    assert usage(tier) == (5, 4)
    for _ in range(2):
        tier.core.tend()
        assert usage(tier) == (9, 0)
    settled(tier, context)
    assert usage(tier) == (9, 0)
    assert [entry.n for entry in tier.history(ACME, "feature:convert") if entry.n] == [5, 4]


def test_several_features_of_one_stream(tier: Tier) -> None:
    context = begun(
        tier, Requirement("feature:convert", 1), Requirement("feature:pages", 10), Requirement("feature:convert", 2)
    )
    context["feature:pages"].add(20)
    context["feature:convert"].add(2)
    tier.core.tend()
    assert (usage(tier), usage(tier, "feature:pages")) == ((2, 1), (20, 0))
    settled(tier, context)
    assert (usage(tier), usage(tier, "feature:pages")) == ((2, 0), (20, 0))


def test_what_passes_the_limit_on_the_way_is_counted_by_its_reason(tier: Tier) -> None:
    context = begun(tier)
    context["feature:convert"].add(13)
    tier.core.tend()
    assert tier.counts == {"over_limit.overage": 3}
    context["feature:convert"].add(1)
    settled(tier, context)
    assert tier.counts == {"over_limit.overage": 4}
    capped = begun(tier, Requirement("feature:pages", 1, overage="cap"))
    capped["feature:pages"].add(130)
    tier.core.tend()
    assert usage(tier, "feature:pages") == (100, 0)
    settled(tier, capped)
    assert tier.counts["lost.capped"] == 30


def test_what_ends_while_it_is_looked_at_counts_once(tier: Tier) -> None:
    """Whichever comes first, the renewal or the end."""
    for _ in range(30):
        context = begun(tier, Requirement("feature:pages", 1))
        context["feature:pages"].add(3)
        ready = threading.Barrier(2)

        def look(ready: threading.Barrier = ready) -> None:
            ready.wait()
            tier.core.tend()

        looking = threading.Thread(target=look)
        looking.start()
        ready.wait()
        settled(tier, context)
        looking.join()
    assert usage(tier, "feature:pages") == (90, 0)
    assert sum(entry.n for entry in tier.history(ACME, "feature:pages")) == 90


# ---- the thread -----------------------------------------------------------------------------------------------------


def keepers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tier-keeper"}


def busy(url: str = "memory://", **options: Any) -> Tier:
    given = {"reservation_seconds": 0.3, "flush_seconds": 0.02}
    return Tier(url, **{"pricing": PRICING, "default_plan": "plan:free@1", **given, **options})


def test_it_starts_with_the_first_reservation_and_ends_with_the_client() -> None:
    before = keepers()  # of other tests, which may end meanwhile
    with busy() as tier:
        tier.subscribe(ACME, "plan:free@1")
        tier.report(ACME, "feature:convert")
        assert keepers() <= before
        context = begun(tier)
        (mine,) = keepers() - before
        begun(tier)
        assert keepers() - before == {mine}
    until(lambda: not mine.is_alive())
    with tier:
        begun(tier, Requirement("feature:pages"))
        assert len(keepers() - before) == 1
    assert context.so_far()


def test_it_ends_with_a_client_that_nobody_has_any_more() -> None:
    before = keepers()
    tier = busy()
    with tier.reserve(ACME, "feature:convert"):
        pass
    (mine,) = keepers() - before
    gone = weakref.ref(tier.core)
    del tier
    gc.collect()
    assert gone() is None
    until(lambda: not mine.is_alive())


def test_by_itself_it_counts_and_renews(url: str) -> None:
    with busy(url) as tier:
        context = begun(tier)
        context["feature:convert"].add(3)
        until(lambda: usage(tier) == (3, 1))
        expires_ms = tier.core.now_ms() + 600
        until(lambda: tier.core.now_ms() > expires_ms)
        assert usage(tier) == (3, 1)  # its time would have been over twice
        settled(tier, context)
        assert usage(tier) == (3, 0)


def test_a_child_looks_after_its_own_work_and_its_parent_goes_on(url: str) -> None:
    with busy(url) as tier:
        context = begun(tier, Requirement("feature:pages", 5))

        def child() -> bool:
            if keepers() or tier.core.live:
                return False
            mine = begun(tier)
            mine["feature:convert"].add(2)
            until(lambda: usage(tier) == (2, 2))
            tier.close()
            return True

        assert exit_status(forked(child)) == 0
        context["feature:pages"].add(2)
        until(lambda: usage(tier, "feature:pages") == (2, 3))


def test_while_the_engine_cannot_be_written_it_goes_on_trying(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with busy(f"sqlite:///{tmp_path}/tier.db", timeout=0.02, reservation_seconds=HOUR) as tier:
        context, other = begun(tier, Requirement("feature:pages", 5)), begun(tier)
        with closing(sqlite3.connect(tmp_path / "tier.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            with caplog.at_level(logging.WARNING, "tier_middleware"):
                context["feature:pages"].add(2)
                other["feature:convert"].add(1)
                until(lambda: "could not be renewed" in caplog.text)
            assert usage(tier, "feature:pages") == (0, 5)
            db.execute("ROLLBACK")
        until(lambda: (usage(tier, "feature:pages"), usage(tier)) == ((2, 3), (1, 3)))


def test_a_mistake_of_its_own_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    with busy() as tier:

        class Broken:
            is_over = False

            def so_far(self) -> Any:
                raise ZeroDivisionError

        broken = Broken()
        tier.core.enter(broken)
        until(lambda: "the keeper failed" in caplog.text)
        tier.core.live.discard(broken)
        context = begun(tier)
        context["feature:convert"].add(3)
        until(lambda: usage(tier) == (3, 1))
