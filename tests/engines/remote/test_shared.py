"""The HTTP engine in front of a server of ours: exact limits, and nothing lost or counted twice when it goes away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from forking import exit_status, forked
from served import wait_until
from shared_server import SharedServer

from tier_middleware import AsyncTier, EngineUnavailable, LimitReached, Tier
from tier_middleware.clock import milliseconds
from tier_middleware.engines.http import HttpEngine
from tier_middleware.extension.forms import MAX_AT_ONCE
from tier_middleware.flow import Settlement, do
from tier_middleware.ops import Commit, Demand, Granted, Hold, Kept, LookUp, Push, Reserve, Schedule
from tier_middleware.reporting.outbox import Outbox
from tier_middleware.reporting.pieces import entry_of_hold
from tier_middleware.testing.bench import ACME, CALLS, MODEL, planned, raised, together

NOW_MS = milliseconds(None)


@pytest.fixture(scope="module")
def process() -> Iterator[SharedServer]:
    server = SharedServer()
    yield server
    server.end()


@pytest.fixture
def server(process: SharedServer) -> SharedServer:
    process.engine = process.serve(NOW_MS)
    process.engine.attempt(Push(MODEL, NOW_MS()))
    subscribe(process, "plan:free@1")
    return process


def subscribe(server: SharedServer, plan: str) -> None:
    """As another process does."""
    server.engine.attempt(Schedule(ACME, (planned(plan),), NOW_MS()))


def usage(server: SharedServer, feature: str = CALLS) -> tuple[int, int]:
    """What is used and what is reserved, of the server's own engine."""
    (found,) = (one for one in server.engine.attempt(LookUp(ACME, NOW_MS())) if one.feature == feature)
    return found.used, found.reserved


@pytest.fixture
def make(server: SharedServer, tmp_path: Path) -> Iterator[Callable[..., Tier]]:
    made: list[Tier] = []

    def client(**options: Any) -> Tier:
        tier = Tier(server.url, outbox=tmp_path / f"outbox-{len(made)}.db", timeout=2, **options)
        tier.open()
        made.append(tier)
        return tier

    yield client
    server.behave = None
    for tier in made:
        tier.close()


def engine_of(tier: Tier | AsyncTier) -> HttpEngine:
    assert isinstance(tier.core.engine, HttpEngine)
    return tier.core.engine


async def away(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"away"})


def losing(server: SharedServer, path: str, times: int = 1) -> None:
    """Do what is asked at a path, and never say so."""
    left = [times]

    async def behave(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != path or not left[0]:
            return await server.answer(scope, receive, send)
        left[0] -= 1

        async def lost(message: Any) -> None:
            pass

        await server.answer(scope, receive, lost)
        return await away(scope, receive, send)

    server.behave = behave


def plain(server: SharedServer) -> None:
    """Become a Tier server that knows no extension."""
    known = ("/v1/limits", "/v1/report", "/v1/phase", "/v1/pull", "/v1/subscribe", "/v1/whoami")

    async def behave(scope: Any, receive: Any, send: Any) -> None:
        async def without(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != b"tier-extensions"]
                message = message | {"headers": headers}
            await send(message)

        path = scope["path"] if scope["path"] in known else "/nowhere"
        await server.answer(scope | {"path": path}, receive, without)

    server.behave = behave


# ---- exact ----------------------------------------------------------------------------------------------------------


def test_three_clients_with_an_outbox_each_are_granted_exactly_the_limit(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    subscribe(server, "plan:pro@1")
    clients = [make() for _ in range(3)]

    def use(index: int) -> bool:
        try:
            with clients[index % 3].reserve(ACME, CALLS):
                return True
        except LimitReached:
            return False

    assert sum(together(30, use)) == 10
    wait_until(lambda: usage(server) == (10, 0))


@pytest.mark.parametrize("is_away_first", [False, True])
def test_what_another_process_has_left_is_settled_by_one_that_has_not_asked_anything_yet(
    server: SharedServer, tmp_path: Path, is_away_first: bool
) -> None:
    subscribe(server, "plan:open@1")
    demand, now_ms = Demand(CALLS, 2), NOW_MS()
    holds = []
    for id in (77, 78):
        reply = server.engine.attempt(Reserve(ACME, (demand,), (id,), now_ms, now_ms + 900_000))
        assert isinstance(reply, Granted)
        holds += [hold for hold in reply.holds if hold is not None]
    outbox = Outbox(tmp_path / "outbox.db", NOW_MS, server=server.url)
    outbox.append([entry_of_hold(holds[0], "commit", 1), entry_of_hold(holds[1], "release")])
    with closing(HttpEngine(server.url, NOW_MS, outbox, is_loopback=True)) as engine:
        if is_away_first:
            server.behave = away
            assert not engine.reporter.flush(1)
            server.behave = None
            assert usage(server) == (0, 4)
            server.engine.attempt(Commit((Kept(holds[0], 1),), NOW_MS()))  # as the other one has, before it was killed
        wait_until(lambda: engine.reporter.flush(1))
    assert usage(server) == (1, 0)


def test_a_reservation_is_one_call_and_what_follows_is_delivered_together(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    subscribe(server, "plan:open@1")
    tier = make()
    with tier.reserve(ACME, CALLS):
        pass  # an org's limits are asked for once, to be shown
    assert engine_of(tier).reporter.flush(10)
    server.asked.clear()
    for _ in range(50):
        with tier.reserve(ACME, CALLS, 2):
            pass
    assert engine_of(tier).reporter.flush(10)
    assert usage(server) == (101, 0)
    assert server.asked["/v1/reserve"] == 50
    assert server.asked["/v1/commit"] <= 50
    assert set(server.asked) <= {"/v1/reserve", "/v1/commit", "/v1/changes", "/v1/usage"}
    assert server.asked["/v1/usage"] <= 1  # by who follows, as it begins


def test_work_that_holds_more_than_one_request_takes_is_counted_on_the_way(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    subscribe(server, "plan:open@1")
    tier, holds = make(), list[Hold]()
    for _ in range(MAX_AT_ONCE + 1):
        granted = tier.run(do(tier.core.operations.reserve(ACME, (Demand(CALLS, 2),))))
        assert isinstance(granted, Granted)
        holds.extend(filter(None, granted.holds))
    stream = Stream(tuple([Kept(hold, 1) for hold in holds]))
    tier.core.enter(stream)
    tier.core.tend()
    assert usage(server) == (len(holds), len(holds))
    tier.run(tier.core.settling(Settlement(stream.so_far())))
    wait_until(lambda: usage(server) == (len(holds), 0))


class Stream(NamedTuple):
    """Work that goes on, of which so much was done."""

    kept: tuple[Kept, ...]
    is_over: bool = False

    def so_far(self) -> tuple[Kept, ...]:
        return self.kept


def test_a_look_at_what_is_used_includes_what_was_done_a_moment_ago(make: Callable[..., Tier]) -> None:
    tier = make()
    with tier.reserve(ACME, CALLS):
        pass
    assert tier.lookup_limit(ACME, CALLS).used == 1
    tier.report(ACME, CALLS, 2)
    answer = tier.can(ACME, CALLS)
    assert (answer.ok, answer.used, answer.remaining) == (False, 3, 0)
    tier.adjust(ACME, CALLS, -2)
    assert tier.lookup_limit(ACME, CALLS).used == 1
    with pytest.raises(ZeroDivisionError), tier.reserve(ACME, CALLS, 2):
        raise ZeroDivisionError
    with tier.reserve(ACME, CALLS, 2):  # what was given back is there again
        pass


def test_a_key_counts_once_whatever_machine_reports_it(make: Callable[..., Tier], server: SharedServer) -> None:
    for tier in (make(), make()):
        for number in range(40):
            tier.report(ACME, CALLS, key=f"job-{number}")
        assert engine_of(tier).reporter.flush(10)
    assert usage(server) == (40, 0)
    assert server.asked["/v1/reports"] < 40
    assert tier.counts == {"outbox.delivered": 40}


def test_what_passes_the_limit_is_counted_once_the_server_says_so(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    tier = make()
    with tier.reserve(ACME, CALLS) as reservation:
        reservation.set(5)
    assert engine_of(tier).reporter.flush(10)
    assert (usage(server), tier.counts["over_limit.overage"]) == ((5, 0), 2)


# ---- lost answers ---------------------------------------------------------------------------------------------------


def test_what_a_lost_answer_has_taken_is_given_back(make: Callable[..., Tier], server: SharedServer) -> None:
    tier = make(on_error="deny")
    assert tier.can(ACME, CALLS).ok
    losing(server, "/v1/reserve")
    with pytest.raises(EngineUnavailable), tier.reserve(ACME, CALLS, 3):
        raise AssertionError("it ran")
    wait_until(lambda: usage(server) == (0, 0))
    with tier.reserve(ACME, CALLS, 3):
        pass


def test_a_commit_whose_answer_is_lost_counts_once(make: Callable[..., Tier], server: SharedServer) -> None:
    tier = make()
    losing(server, "/v1/commit", 2)
    with tier.reserve(ACME, CALLS, 2):
        pass
    wait_until(lambda: engine_of(tier).outbox.next_due_ms() is None)
    assert usage(server) == (2, 0)


async def test_a_task_that_is_cancelled_while_it_waits_gives_back_what_it_got(
    server: SharedServer, tmp_path: Path
) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    async def behave(scope: Any, receive: Any, send: Any) -> None:
        await server.answer(scope, receive, send if scope["path"] != "/v1/reserve" else late)

    async def late(message: Any) -> None:
        asked.set()
        await asyncio.to_thread(may_answer.wait, 10)  # and then it is lost

    async def work() -> None:
        async with tier.reserve(ACME, CALLS, 2):
            raise AssertionError("it ran")

    async with AsyncTier(server.url, outbox=tmp_path / "outbox.db", timeout=2) as tier:
        await tier.can(ACME, CALLS)
        server.behave = behave
        task = asyncio.ensure_future(work())
        await asyncio.to_thread(asked.wait, 10)
        task.cancel()
        may_answer.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.behave = None
        await asyncio.to_thread(wait_until, lambda: usage(server) == (0, 0))


# ---- away, and replaced ---------------------------------------------------------------------------------------------


def test_while_the_server_is_away_the_policy_answers_and_work_is_counted_later(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    closed, stale = make(on_error="deny"), make(on_error="stale")
    with stale.reserve(ACME, CALLS), closed.reserve(ACME, CALLS):
        server.behave = away  # what comes after the work needs nobody
    with pytest.raises(EngineUnavailable), closed.reserve(ACME, CALLS):
        raise AssertionError("it ran")
    with stale.reserve(ACME, CALLS):  # what the server last said, less what was done here since
        pass
    assert stale.counts["stale"] >= 1
    server.behave = None
    wait_until(lambda: usage(server) == (3, 0))


def test_a_server_that_is_replaced_by_one_without_the_extension_is_a_tier_server(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    subscribe(server, "plan:pro@1")
    tier = make()
    with tier.reserve(ACME, CALLS, 2):
        plain(server)
        tier.whoami()  # an answer without the header
    assert engine_of(tier).reporter.flush(10)
    assert usage(server) == (2, 2)  # reported; the hold of a server that is no more expires
    with tier.reserve(ACME, CALLS, 3):
        pass
    assert engine_of(tier).reporter.flush(10)
    assert usage(server) == (5, 2)
    server.behave = None
    tier.whoami()
    with tier.reserve(ACME, CALLS, 3):
        assert usage(server) == (5, 5)


def test_a_call_that_finds_the_server_replaced_is_decided_anew(make: Callable[..., Tier], server: SharedServer) -> None:
    tier = make()
    with tier.reserve(ACME, CALLS):
        pass
    assert engine_of(tier).reporter.flush(10)
    tier.forget(ACME)
    plain(server)
    with tier.reserve(ACME, CALLS, 2):
        pass
    with pytest.raises(LimitReached), tier.reserve(ACME, CALLS):
        raise AssertionError("it ran")
    assert engine_of(tier).reporter.flush(10)
    assert usage(server) == (3, 0)


# ---- changes --------------------------------------------------------------------------------------------------------


def limit_of(tier: Tier) -> int | None:
    """What is shown without asking anybody."""
    return tier.core.glance(ACME, CALLS).limit


def followers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tier-changes"]


def test_an_upgrade_shows_at_once_also_after_the_server_was_away(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    tier = make()
    with tier.reserve(ACME, CALLS):
        assert limit_of(tier) == 3
    subscribe(server, "plan:pro@1")
    wait_until(lambda: limit_of(tier) == 10)
    server.behave = away
    subscribe(server, "plan:open@1")
    looks = server.asked["/v1/changes"]
    wait_until(lambda: server.asked["/v1/changes"] > looks + 1)
    server.behave = None
    looks = server.asked["/v1/changes"]
    wait_until(lambda: server.asked["/v1/changes"] > looks + 1)  # once to begin anew, and once to wait
    with tier.reserve(ACME, CALLS):
        wait_until(lambda: limit_of(tier) is None)


def test_who_follows_begins_with_the_first_request_and_ends_when_it_is_closed(
    make: Callable[..., Tier], server: SharedServer
) -> None:
    wait_until(lambda: not followers())  # of tests before this one
    tier = make()
    with tier.reserve(ACME, CALLS):
        pass
    wait_until(lambda: len(followers()) == 1)
    tier.close()
    subscribe(server, "plan:pro@1")  # or when its question is over
    wait_until(lambda: not followers())


def test_a_child_follows_by_itself(make: Callable[..., Tier], server: SharedServer) -> None:
    tier = make()
    with tier.reserve(ACME, CALLS):
        pass

    def child() -> bool:
        with tier.reserve(ACME, CALLS):
            pass
        wait_until(lambda: [thread.name for thread in followers()] == ["tier-changes"])
        wait_until(lambda: engine_of(tier).reporter.flush(1))
        return True

    assert exit_status(forked(child)) == 0
    wait_until(lambda: usage(server) == (2, 0))
    raised(LimitReached, lambda: tier.reserve(ACME, CALLS, 2).__enter__())
