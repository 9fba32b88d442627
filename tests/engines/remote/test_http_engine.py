"""A Tier server behind the Python API: every call of the contract, and checks that need no network once warm."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from forking import exit_status, forked, hammered, no_more_threads
from tier_servers import MODEL, TierServer

from tier_middleware import (
    AsyncTier,
    ConfigurationError,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    NotEntitled,
    OrgNotFound,
    PricingError,
    Tier,
    Usage,
)
from tier_middleware.clock import ManualClock, milliseconds, monotonic
from tier_middleware.engines.http import HttpEngine, engine
from tier_middleware.flow import do
from tier_middleware.names import MAX_UNITS
from tier_middleware.ops import Commit, Committed, Demand, Granted, Hold, Kept, LookUpKeys, Release, Renew
from tier_middleware.pricing import read_model
from tier_middleware.reporting.batches import Entry
from tier_middleware.testing.bench import together

ACME = "org:acme"
CALLS = "feature:calls"
SECRET = "s3cret-of-mine"


@pytest.fixture
def make(server: TierServer) -> Iterator[Callable[..., Tier]]:
    made: list[Tier] = []

    def client(**options: Any) -> Tier:
        made.append(Tier(options.pop("url", server.url), **options))
        return made[-1]

    yield client
    for tier in made:
        tier.close()


def engine_of(tier: Tier | AsyncTier) -> HttpEngine:
    assert isinstance(tier.core.engine, HttpEngine)
    return tier.core.engine


def flushed(tier: Tier) -> None:
    """Wait until the server has what was reported."""
    assert engine_of(tier).reporter.flush(10)


def aged(tier: Tier, seconds: float, org: str = ACME) -> None:
    """Make what is known of an org older."""
    engine_of(tier).orgs.views[org].asked_at -= seconds


# ---- the contract ---------------------------------------------------------------------------------------------------


def test_the_quickstart(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make(api_key=SECRET)
    tier.subscribe(ACME, "plan:free@1")
    answer = tier.can(ACME, CALLS)
    assert (answer.ok, answer.used, answer.limit, answer.remaining) == (True, 0, 3, 3)
    answer.report()
    tier.report(ACME, CALLS, 1)
    assert tier.can(ACME, CALLS).remaining == 1
    flushed(tier)
    assert server.counted == {ACME: 2}
    with tier.reserve(ACME, CALLS) as reservation:
        assert reservation.n == 1
    with pytest.raises(LimitReached) as caught, tier.reserve(ACME, CALLS):
        raise AssertionError("never gets here")
    assert (caught.value.used, caught.value.limit) == (3, 3)
    assert caught.value.resets_at is not None
    flushed(tier)
    assert server.counted == {ACME: 3}
    headers = server.requests()[-1]["headers"]
    assert headers["authorization"] == "Basic czNjcmV0LW9mLW1pbmU6"
    assert headers["user-agent"].startswith("tier-middleware/")
    assert all(key != "-" for key, *_ in server.reports)


def test_orgs_and_plans(make: Callable[..., Tier]) -> None:
    tier = make()
    assert tier.pull() == read_model(MODEL)
    assert tier.whoami().email == "owner@example.com"
    with pytest.raises(OrgNotFound):
        tier.lookup_limits(ACME)
    with pytest.raises(OrgNotFound):
        tier.cancel(ACME)
    tier.subscribe(ACME, "plan:pro@1", info={"email": "a@example.com"})
    assert tier.lookup_org(ACME).email == "a@example.com"
    assert tier.whois(ACME).stripe_id == "cus_1"
    assert [usage.feature for usage in tier.lookup_limits(ACME)] == [CALLS, "feature:mails"]
    assert tier.lookup_limit(ACME, "feature:other") == Usage("feature:other", 0, 0)
    phase = tier.lookup_phase(ACME)
    assert phase is not None
    assert (phase.plans, phase.features) == (("plan:pro@1",), (f"{CALLS}@plan:pro@1", "feature:mails@plan:pro@1"))
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    tier.cancel(ACME, at=ends)
    assert [one.end for one in tier.lookup_phases(ACME).phases] == [ends]
    tier.update_org(ACME, {"name": "Acme"})
    assert tier.lookup_org(ACME).name == "Acme"
    with pytest.raises(InvalidRequest) as caught:
        tier.subscribe(ACME, "plan:nope@1")
    assert caught.value.code == "TERR1020"


def test_payments(make: Callable[..., Tier]) -> None:
    tier = make()
    with pytest.raises(OrgNotFound):
        tier.lookup_payment_methods(ACME)
    tier.subscribe(ACME, "plan:free@1")
    assert [method["id"] for method in tier.lookup_payment_methods(ACME).methods] == ["pm_1"]
    sent = tier.checkout(ACME, "https://app/paid", features="plan:pro@1", trial_days=14, tax={"automatic": True})
    assert json.loads(sent.partition("?")[2]) == {
        "org": ACME, "success_url": "https://app/paid", "features": ["plan:pro@1"], "trial_days": 14,
        "tax": {"automatic": True},
    }  # fmt: skip
    assert json.loads(tier.checkout(ACME, "https://app/paid").partition("?")[2]) == {
        "org": ACME, "success_url": "https://app/paid",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="takes no payments"):
        Tier("memory://").checkout(ACME, "https://app/paid")


def test_plans_are_pushed_once_and_never_changed(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make(pricing=MODEL)
    tier.open()
    assert server.asked("/v1/push") == 1  # the test's own
    new = {"plans": {"plan:new@1": {"features": {"feature:x": {}}}}}
    assert [result.status for result in tier.push(new)] == ["ok"]
    assert [result.status for result in tier.push(new)] == ["failed"]
    with pytest.raises(PricingError, match="raise the version"):
        tier.push({"plans": {"plan:new@1": {"features": {"feature:y": {}}}}})
    assert "plan:new@1" in tier.pull().plans


def test_an_org_that_never_had_a_plan_gets_the_default_one(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make(default_plan="plan:free@1")
    assert tier.can(ACME, CALLS).limit == 3
    tier.report("org:other", CALLS, 2)
    flushed(tier)
    assert server.counted == {"org:other": 2}
    with pytest.raises(ConfigurationError, match="TIER_DEFAULT_PLAN"):
        make(default_plan="plan:nope@1").open()


def test_a_no_is_a_no(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    assert tier.can("org:nobody", CALLS).reason == "no_entitlement"
    with pytest.raises(OrgNotFound), tier.reserve("org:nobody", CALLS):
        pass
    server.subscribe(ACME, "plan:free@1")
    assert tier.can(ACME, "feature:mails").reason == "no_entitlement"
    with pytest.raises(NotEntitled), tier.reserve(ACME, "feature:mails"):
        pass
    assert tier.can(ACME, CALLS, 4).reason == "amount_exceeds_limit"
    assert tier.can(ACME, "feature:export").ok


def test_what_a_server_has_no_call_for(make: Callable[..., Tier]) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:free@1")
    for call in (
        lambda: tier.history(ACME, CALLS),
        lambda: tier.delete_org(ACME),
        lambda: tier.adjust(ACME, CALLS, -1),
    ):
        with pytest.raises(InvalidRequest, match="Tier's API"):
            call()
    with pytest.raises(ConfigurationError, match="export"):
        list(tier.export())
    with pytest.raises(InvalidRequest, match="not reportable"):
        tier.report(ACME, "feature:export")
    tier.adjust(ACME, CALLS, 2, note="found them")
    flushed(tier)
    assert tier.lookup_limit(ACME, CALLS).used == 2


def test_levels_are_compared_and_set(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:team@1")
    for n in (4, 2, 5):
        with tier.reserve(ACME, "feature:seats", n):
            pass
    with pytest.raises(LimitReached), tier.reserve(ACME, "feature:seats", 6):
        pass
    assert tier.lookup_limit(ACME, "feature:seats").used == 5
    flushed(tier)
    assert [n for *_, n in server.reports] == [4, 2, 5]


def test_a_clobber_sets_the_usage_here_and_there(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    assert tier.can(ACME, CALLS).used == 0
    tier.report(ACME, CALLS, 5)
    tier.report(ACME, CALLS, 2, clobber=True)
    tier.report(ACME, CALLS, 1)
    assert tier.can(ACME, CALLS).used == 3
    flushed(tier)
    assert tier.lookup_limit(ACME, CALLS).used == 3


def test_a_key_counts_once_and_other_contents_are_a_mistake(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    for _ in range(3):
        tier.report(ACME, CALLS, 2, key="order-7")
        flushed(tier)
    assert server.counted == {ACME: 2}
    assert tier.can(ACME, CALLS).used == 2
    with pytest.raises(InvalidRequest, match="other contents"):
        tier.report(ACME, CALLS, 3, key="order-7")
    with pytest.raises(InvalidRequest, match="five minutes"):
        tier.report(ACME, CALLS, at=datetime.now(UTC) + timedelta(hours=1))


def test_what_an_unlimited_feature_shows(make: Callable[..., Tier]) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:open@1")
    assert tier.can(ACME, CALLS, MAX_UNITS).ok
    assert tier.lookup_limit(ACME, CALLS).limit is None


def test_a_report_that_the_server_refuses_is_kept_for_a_person(
    make: Callable[..., Tier], caplog: pytest.LogCaptureFixture
) -> None:
    tier = make()
    tier.report("org:nobody", CALLS, 2)
    flushed(tier)
    (batch,) = engine_of(tier).outbox.listed(["buried"])
    assert (batch.org, batch.n, batch.code) == ("org:nobody", 2, "org_not_found")
    assert tier.counts == {"outbox.buried": 2}
    assert "refused for good" in caplog.text


def test_a_test_clock(make: Callable[..., Tier]) -> None:
    tier = make()
    clocked = tier.with_clock("rehearsal", datetime(2024, 1, 31, tzinfo=UTC))
    clocked.subscribe(ACME, "plan:free@1")
    clocked.report(ACME, CALLS, 3)
    flushed(tier)
    assert clocked.can(ACME, CALLS).reason == "limit_reached"
    clocked.advance(datetime(2024, 2, 29, tzinfo=UTC))
    assert clocked.can(ACME, CALLS).remaining == 3
    with pytest.raises(InvalidRequest, match="must be after"):
        clocked.advance(datetime(2024, 2, 1, tzinfo=UTC))
    assert tier.on_clock(clocked.clock.id).clock.name == "rehearsal"
    assert tier.can(ACME, CALLS).reason == "no_entitlement"


# ---- checks without a network ---------------------------------------------------------------------------------------


def test_once_warm_nothing_is_asked(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    tier.can(ACME, CALLS)
    before = [one["path"] for one in server.requests()]
    for _ in range(30):
        tier.can(ACME, CALLS)
        with tier.reserve(ACME, CALLS):
            pass
    flushed(tier)
    after = [one["path"] for one in server.requests()]
    assert set(after[len(before) :]) == {"/v1/report"}
    assert tier.can(ACME, CALLS).used == 30


def test_its_own_usage_and_open_reservations_are_counted_before_the_server_knows(
    make: Callable[..., Tier], server: TierServer
) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:free@1")
    server.kill()
    tier.core.engine.forget(ACME)
    server.start()
    server.call("/v1/push", MODEL)
    server.subscribe(ACME, "plan:free@1")
    tier.can(ACME, CALLS)
    server.kill()
    with tier.reserve(ACME, CALLS, 2):
        assert tier.can(ACME, CALLS, 2).reason == "limit_reached"
    tier.report(ACME, CALLS)
    assert tier.can(ACME, CALLS).remaining == 0


def test_what_is_held_is_counted_though_the_server_does_not_know_it(
    make: Callable[..., Tier], server: TierServer
) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:free@1")
    tier.can(ACME, CALLS)
    outbox = engine_of(tier).outbox
    outbox.append([Entry(ACME, CALLS, 2)])  # as another process does that shares it
    (batch,) = outbox.claim(2**50, 1)
    outbox.hold(batch, "lost")
    assert tier.can(ACME, CALLS).used == 0
    tier.forget(ACME)
    assert tier.can(ACME, CALLS).used == 2
    assert tier.lookup_limit(ACME, CALLS).used == 2
    assert server.counted == {}


def test_what_long_work_has_used_so_far_is_reported_before_its_end(
    make: Callable[..., Tier], server: TierServer
) -> None:
    clock = ManualClock(datetime.now(UTC))
    tier = make(clock=clock)
    tier.subscribe(ACME, "plan:pro@1")
    now_ms = milliseconds(clock)

    def held() -> Hold:
        reply = tier.run(do(tier.core.operations.reserve(ACME, (Demand(CALLS, 5),))))
        assert isinstance(reply, Granted)
        (hold,) = reply.holds
        assert hold is not None
        return hold

    def renewed(hold: Hold, n: int) -> Committed:
        (done,) = tier.run(do(Renew((Kept(hold, n),), now_ms(), now_ms() + 900_000)))
        return done

    def usage() -> tuple[int, int]:
        (calls, _) = engine_of(tier).glance(ACME)
        return calls.used, calls.reserved

    first, failed, more = held(), held(), held()
    for n in (2, 2, 1, 3):
        clock.advance(timedelta(seconds=800))
        assert renewed(first, n) == renewed(more, 0) == Committed()
    assert usage() == (3, 12)  # the one that nobody renewed has kept its units, since nobody wanted them
    assert tier.can(ACME, CALLS).used == 3
    assert renewed(failed, 1) == Committed(has_expired=True)
    tier.run(do(Release((failed,), now_ms())))  # a Tier server takes nothing back
    assert tier.run(do(Commit((Kept(first, 4),), now_ms()))) == (Committed(),)
    assert tier.run(do(Commit((Kept(more, 7),), now_ms()))) == (Committed(),)
    assert renewed(first, 9) == Committed()
    assert usage() == (4 + 1 + 7, 0)
    flushed(tier)
    assert server.counted == {ACME: 12}


def test_a_commit_counts_once_for_its_key(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    now_ms = milliseconds(None)

    def committed(n: int, *keys: str) -> None:
        demands = [Demand(CALLS, n) for _ in keys]
        granted = [tier.run(do(tier.core.operations.reserve(ACME, (demand,)))) for demand in demands]
        holds = [hold for reply in granted if isinstance(reply, Granted) for hold in reply.holds if hold]
        kept = tuple(Kept(hold, n, key=key) for hold, key in zip(holds, keys, strict=True))
        assert tier.run(do(Commit(kept, now_ms()))) == (Committed(),) * len(keys)

    committed(2, "k")
    committed(3, "k", "l", "")
    committed(1, "l", "")
    assert tier.run(do(LookUpKeys(ACME, ("k", "l", "m"), now_ms()))) == (True, True, False)
    (calls, _) = engine_of(tier).glance(ACME)
    assert (calls.used, calls.reserved) == (2 + 3 + 3 + 1, 0)
    flushed(tier)
    assert server.counted == {ACME: 9}


def test_many_threads_are_never_granted_more_than_the_limit(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    granted: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            try:
                with tier.reserve(ACME, CALLS):
                    granted.append(index)
            except LimitReached:
                tier.forget(ACME)  # so that the server is asked in the midst of it

    together(16, work)
    assert 50 < len(granted) <= 100  # what is delivered while the server is asked is counted twice for that moment
    flushed(tier)
    tier.forget(ACME)
    with pytest.raises(LimitReached):  # noqa: PT012  # one at a time
        while True:
            with tier.reserve(ACME, CALLS):
                granted.append(0)
    assert len(granted) == 100
    flushed(tier)
    assert server.counted == {ACME: 100}


def test_a_no_is_asked_for_again_so_an_upgrade_shows(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:free@1")
    tier.report(ACME, CALLS, 3)
    assert not tier.can(ACME, CALLS)
    server.subscribe(ACME, "plan:pro@1")
    assert not tier.can(ACME, CALLS)  # of this moment
    aged(tier, engine.REFUSAL_SECONDS)
    assert tier.can(ACME, CALLS).limit == 100
    server.subscribe(ACME, "plan:open@1")
    tier.forget(ACME)
    assert tier.can(ACME, CALLS).limit is None


def test_what_is_old_is_asked_for_beside_the_requests(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    assert tier.can(ACME, CALLS).used == 0
    server.report(ACME, 7)
    assert tier.can(ACME, CALLS).used == 0
    aged(tier, engine.FRESH_SECONDS)
    assert tier.can(ACME, CALLS).used == 0  # answered at once
    deadline = monotonic() + 10
    while tier.can(ACME, CALLS).used != 7:
        assert monotonic() < deadline
    aged(tier, engine.STALE_SECONDS)
    server.report(ACME, 1)
    assert tier.can(ACME, CALLS).used == 8  # too old to be used at all


def test_threads_that_cannot_be_started_cost_no_answer(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    server.subscribe(ACME, "plan:pro@1")
    tier.can(ACME, CALLS)
    aged(tier, engine.FRESH_SECONDS)
    with no_more_threads():
        assert tier.can(ACME, CALLS).ok
        with tier.reserve(ACME, CALLS, 2):
            pass
    assert server.asked() == 1
    server.report(ACME, 50)
    deadline = monotonic() + 10
    while tier.can(ACME, CALLS).used < 52:  # asked for beside the requests, now that there is a thread for it
        assert monotonic() < deadline


def test_many_who_ask_at_once_ask_the_server_once(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    server.subscribe(ACME, "plan:pro@1")
    tier.open()
    together(16, lambda index: tier.can(ACME, CALLS))
    assert server.asked() == 1


def test_no_more_orgs_are_remembered_than_there_is_room_for(server: TierServer, tmp_path: Path) -> None:
    from tier_middleware.clock import milliseconds
    from tier_middleware.ops import Check, Demand, Reserve
    from tier_middleware.reporting.outbox import Outbox

    now_ms = milliseconds(None)
    small = HttpEngine(server.url, now_ms, Outbox(tmp_path / "small.db", now_ms), max_orgs=5, is_loopback=True)
    for number in range(20):
        server.subscribe(f"org:{number}", "plan:free@1")
        small.attempt(Reserve(f"org:{number}", (Demand(CALLS, 1),), (number + 1,), now_ms(), now_ms() + 1000))
    assert len(small.orgs.views) == 20  # all have something that is held
    for view in small.orgs.views.values():
        view.holds.clear()
    for number in range(20, 30):
        small.attempt(Check(f"org:{number}", Demand(CALLS, 1), now_ms()))
    assert len(small.orgs.views) <= 5
    small.close()


# ---- a server that is away ------------------------------------------------------------------------------------------


def test_while_the_server_is_away_what_is_known_holds_and_then_the_policy_decides(
    make: Callable[..., Tier], server: TierServer
) -> None:
    allowing, denying, stale = (
        make(on_error=on_error, outbox=f"{on_error}.db") for on_error in ("allow", "deny", "stale")
    )
    server.subscribe(ACME, "plan:free@1")
    server.report(ACME, 2)
    for tier in (allowing, denying, stale):
        assert tier.can(ACME, CALLS).remaining == 1
    server.kill()
    for tier in (allowing, denying, stale):
        answer = tier.can(ACME, CALLS)
        assert (answer.ok, answer.err) == (True, None)
        aged(tier, 10 * engine.STALE_SECONDS)
    assert (allowing.can(ACME, CALLS).ok, denying.can(ACME, CALLS).ok) == (True, False)
    assert isinstance(allowing.can(ACME, CALLS).err, EngineUnavailable)
    with stale.reserve(ACME, CALLS):
        pass
    answer = stale.can(ACME, CALLS)
    assert (answer.ok, answer.err, answer.reason) == (False, None, "limit_reached")
    assert stale.counts["stale"] >= 2
    unknown = stale.can("org:new", CALLS)
    assert (unknown.ok, unknown.reason) == (True, "engine_unavailable")


def test_reports_wait_in_the_outbox_and_never_for_the_network(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    server.kill()
    begun = monotonic()
    for _ in range(200):
        tier.report(ACME, CALLS)
    assert monotonic() - begun < 5
    with pytest.raises(EngineUnavailable):
        tier.lookup_limits(ACME)
    tier.close()
    server.start()
    server.call("/v1/push", MODEL)
    server.subscribe(ACME, "plan:pro@1")
    later = make()
    later.open()  # which finds them
    deadline = monotonic() + 20
    while server.counted[ACME] != 200:
        assert monotonic() < deadline
        flushed(later)


def test_usage_of_a_server_that_is_away_from_the_start_waits_in_the_outbox(
    make: Callable[..., Tier], server: TierServer
) -> None:
    server.kill()
    tier = make(default_plan="plan:pro@1")
    tier.report(ACME, CALLS, 2)
    with tier.reserve(ACME, CALLS, 3):
        pass
    assert tier.counts["fail_open"] == 1
    assert sum(batch.n for batch in engine_of(tier).outbox.undelivered(ACME)) == 5
    server.start()
    server.call("/v1/push", MODEL)
    flushed(tier)
    assert server.counted == {ACME: 5}


def test_a_server_that_was_never_reached_is_loud_and_is_left_alone(
    make: Callable[..., Tier], server: TierServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    tier = make(timeout=1.0)
    for _ in range(20):
        assert tier.can(ACME, CALLS).ok
        tier.core._failed_at -= 10
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert any("has never answered" in message for message in errors)
    assert sum("has never answered" in message for message in errors) == 1
    answer = tier.can(ACME, CALLS)
    assert answer.err is not None
    assert "not asked again for a moment" in answer.err.message


def test_neither_the_key_nor_httpx_shows(make: Callable[..., Tier], server: TierServer, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    tier = make(api_key=SECRET)
    tier.can(ACME, CALLS)
    server.kill()
    tier.forget(ACME)
    with pytest.raises(EngineUnavailable) as caught:
        tier.lookup_limits(ACME)
    text = "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or "httpx" not in type(caught.value.__context__).__module__
    for secret in (SECRET, "czNjcmV0LW9mLW1pbmU6"):
        assert secret not in text + caplog.text + repr(tier) + repr(vars(tier.core.engine))
    assert "httpx." not in text


# ---- loops, threads and forks ---------------------------------------------------------------------------------------


def test_one_client_on_several_event_loops(server: TierServer) -> None:
    server.subscribe(ACME, "plan:pro@1")
    tier = AsyncTier(server.url)

    async def use() -> int:
        tier.forget(ACME)
        async with tier.reserve(ACME, CALLS):
            pass
        assert engine_of(tier).reporter.flush(10)
        return (await tier.lookup_limit(ACME, CALLS)).used

    assert asyncio.run(use()) == 1
    assert anyio.run(use, backend="trio") == 2
    threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(tier.aclose())
    assert server.counted == {ACME: 6}


async def test_the_event_loop_goes_on_while_the_server_is_asked(server: TierServer) -> None:
    async with AsyncTier(server.url) as tier:
        server.subscribe(ACME, "plan:pro@1")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        await tier.can(ACME, CALLS)
        ticking.cancel()
        assert ticks > 1


async def test_a_cancelled_check_holds_nothing(server: TierServer) -> None:
    async with AsyncTier(server.url) as tier:
        server.subscribe(ACME, "plan:free@1")

        async def work() -> None:
            async with tier.reserve(ACME, CALLS, 3):
                await asyncio.sleep(60)

        for _ in range(5):
            tier.forget(ACME)
            task = asyncio.create_task(work())
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (await tier.can(ACME, CALLS, 3)).ok


def test_a_child_uses_the_client_of_its_parent(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:pro@1")
    tier.report(ACME, CALLS)
    flushed(tier)

    def child() -> bool:
        tier.report(ACME, CALLS, 10)
        flushed(tier)
        tier.forget(ACME)
        return tier.can(ACME, CALLS).used == 11

    assert exit_status(forked(child)) == 0
    tier.report(ACME, CALLS, 100)
    flushed(tier)
    assert server.counted == {ACME: 111}


def test_a_fork_in_the_middle_of_everything(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    tier.subscribe(ACME, "plan:open@1")
    tier.can(ACME, CALLS)
    counted = [0] * 3

    def work(index: int) -> None:
        with tier.reserve(ACME, CALLS):
            counted[index] += 1
        if counted[index] % 50 == 0:
            tier.forget(ACME)

    def child() -> bool:
        tier.report(ACME, CALLS, 1_000_000)
        return True

    with hammered(work, 3):
        statuses = [exit_status(forked(child)) for _ in range(20)]
    assert statuses == [0] * 20
    deadline = monotonic() + 30
    while engine_of(tier).outbox.next_due_ms() is not None and not engine_of(tier).outbox.listed(["sent"]):
        assert monotonic() < deadline
        engine_of(tier).reporter.flush(5)
    keys = [key for key, *_ in server.reports]
    left = [batch.n for batch in engine_of(tier).outbox.undelivered(ACME) if batch.key not in keys]
    assert server.counted[ACME] + sum(left) == 20_000_000 + sum(counted)


def test_a_server_that_is_away_is_not_asked_with_every_request(make: Callable[..., Tier], server: TierServer) -> None:
    tier = make()
    server.subscribe(ACME, "plan:pro@1")
    tier.can(ACME, CALLS)
    server.kill()
    aged(tier, engine.FRESH_SECONDS)
    view = engine_of(tier).orgs.views[ACME]
    deadline = monotonic() + 10
    while tier.can(ACME, CALLS).ok and view.not_before < 0:
        assert monotonic() < deadline
    not_before = view.not_before
    for _ in range(200):
        assert tier.can(ACME, CALLS).ok
    assert view.not_before == not_before
