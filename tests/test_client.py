"""`Tier` and `AsyncTier` as an application uses them: the quickstart, the answers, reserving, and bad input."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import tier_middleware
from tier_middleware import (
    AsyncTier,
    ConfigurationError,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    ManualClock,
    NotEntitled,
    OrgNotFound,
    PricingError,
    Refused,
    Tier,
    TierError,
)

ORG = "org:customer-id-from-your-db"
PRICING: dict[str, Any] = {
    "plans": {
        "plan:base@1": {
            "features": {
                "feature:feature-from-base-plan": {"tiers": [{"upto": 3}]},
                "feature:feature-id": {"tiers": [{"upto": 100}]},
                "feature:sso": {},
                "feature:seats": {"tiers": [{"upto": 5}], "aggregate": "max"},
            }
        },
        "plan:pro@1": {"features": {"feature:feature-from-base-plan": {"tiers": [{}]}}},
    }
}
BASE = "feature:feature-from-base-plan"


@pytest.fixture
def tier(make: Any, url: str) -> Any:
    return make(url, pricing=PRICING, default_plan="plan:base@1")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


# ---- Tier's quickstart, line by line --------------------------------------------------------------------------------


def test_the_quickstart(make: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pricing = tmp_path / "pricing.json"
    pricing.write_text(json.dumps(PRICING))
    monkeypatch.setenv("TIER_BASE_URL", url)
    monkeypatch.setenv("TIER_API_KEY", "")
    monkeypatch.setenv("TIER_PRICING", str(pricing))
    clock = ManualClock(datetime(2023, 3, 23, tzinfo=UTC))
    tier = make(clock=clock)
    tier.subscribe("org:customer-id-from-your-db", "plan:base@1")

    tier.report(
        "org:customer-id-from-your-db", "feature:feature-id", 1, at=datetime(2023, 3, 23, tzinfo=UTC), clobber=True
    )
    assert tier.lookup_limit(ORG, "feature:feature-id").used == 1

    access = tier.can("org:customer-id-from-your-db", "feature:feature-from-base-plan")
    assert access.ok
    access.report()
    assert tier.lookup_limit(ORG, BASE).used == 1

    tier.report(ORG, BASE, 2)
    access = tier.can(ORG, BASE)
    assert not access.ok
    assert (access.reason, access.used, access.limit, access.remaining, access.err) == ("limit_reached", 3, 3, 0, None)
    clock.advance(timedelta(days=31))
    assert tier.can(ORG, BASE).ok


def test_the_quickstart_on_the_singletons(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pricing.json").write_text(json.dumps(PRICING))
    monkeypatch.setenv("TIER_BASE_URL", "memory://")
    monkeypatch.setenv("TIER_PRICING", str(tmp_path / "pricing.json"))
    monkeypatch.setenv("TIER_DEFAULT_PLAN", "plan:base@1")
    for name in ("tier", "sync_tier"):
        monkeypatch.delitem(vars(tier_middleware), name, raising=False)
    try:
        sync = tier_middleware.sync_tier
        assert isinstance(sync, Tier)
        assert isinstance(tier_middleware.tier, AsyncTier)
        assert tier_middleware.tier is tier_middleware.tier
        assert sync.core is tier_middleware.tier.core  # the twins share one engine

        async def main() -> None:
            access = await tier_middleware.tier.can(ORG, BASE)
            assert access.ok
            await access.report()

        asyncio.run(main())
        assert sync.lookup_limit(ORG, BASE).used == 1
    finally:
        for name in ("tier", "sync_tier"):
            vars(tier_middleware).pop(name, None)


def test_the_singletons_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIER_BASE_URL", "memory://")
    for name in ("tier", "sync_tier"):
        monkeypatch.delitem(vars(tier_middleware), name, raising=False)
    start = threading.Barrier(8)
    found: list[Any] = []

    def ask() -> None:
        start.wait()
        found.append(tier_middleware.tier)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("tier", "sync_tier"):
        vars(tier_middleware).pop(name, None)
    assert len({id(one) for one in found}) == 1


def test_the_module_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'teir'"):
        tier_middleware.teir  # type: ignore[attr-defined]  # noqa: B018  # the access is the test


# ---- answers --------------------------------------------------------------------------------------------------------


def test_can(tier: Any) -> None:
    access = tier.can(ORG, BASE, 3)
    assert access
    assert (access.ok, access.org, access.feature, access.used, access.limit, access.remaining) == (
        True,
        ORG,
        BASE,
        0,
        3,
        3,
    )
    assert tier.lookup_limit(ORG, BASE).reserved == 0  # it holds nothing
    over = tier.can(ORG, BASE, 4)
    assert not over
    assert over.reason == "amount_exceeds_limit"
    assert tier.can(ORG, "feature:sso").limit is None
    unknown = tier.can(ORG, "feature:nowhere")
    assert (unknown.ok, unknown.reason, unknown.used, unknown.limit, unknown.err) == (
        False,
        "no_entitlement",
        0,
        0,
        None,
    )
    tier.subscribe(ORG, "plan:pro@1")
    unlimited = tier.can(ORG, BASE, 10**9)
    assert (unlimited.ok, unlimited.limit, unlimited.remaining) == (True, None, None)


def test_can_of_nothing_asks_that_anything_is_left(tier: Any) -> None:
    assert tier.can(ORG, BASE, 0).ok
    tier.report(ORG, BASE, 3)
    assert not tier.can(ORG, BASE, 0).ok


def test_an_unknown_org_is_a_no_and_no_error(make: Any, url: str) -> None:
    tier = make(url, pricing=PRICING)
    access = tier.can("org:unknown", BASE)
    assert (access.ok, access.err, access.reason) == (False, None, "no_entitlement")
    for ask in (tier.lookup_limits, tier.lookup_phase, tier.whois, tier.delete_org, tier.cancel):
        with pytest.raises(OrgNotFound):
            ask("org:unknown")
    with pytest.raises(OrgNotFound):
        tier.report("org:unknown", BASE)


def test_an_answer_reports_for_its_own_org_and_feature(tier: Any) -> None:
    access = tier.can(ORG, BASE)
    access.report()
    access.report(2)
    access.report(1, clobber=True)
    assert tier.lookup_limit(ORG, BASE).used == 1


def test_report_is_never_refused_and_its_overage_is_counted(tier: Any) -> None:
    tier.report(ORG, BASE, 2)
    tier.report(ORG, BASE, 5)
    assert tier.lookup_limit(ORG, BASE).used == 7
    assert tier.lookup_limit(ORG, BASE).remaining == 0
    assert tier.counts == {"over_limit.report": 4}


def test_a_key_counts_once(tier: Any) -> None:
    for _ in range(3):
        tier.report(ORG, BASE, 1, key="k")
    assert tier.lookup_limit(ORG, BASE).used == 1
    with pytest.raises(InvalidRequest, match="'k' was used before with other contents"):
        tier.report(ORG, BASE, 2, key="k")
    for _ in range(2):
        tier.adjust(ORG, BASE, 1, key="j", note="gift")
    assert tier.lookup_limit(ORG, BASE).used == 2


def test_adjust(tier: Any) -> None:
    tier.report(ORG, BASE, 3)
    tier.adjust(ORG, BASE, -2, note="refund")
    assert tier.lookup_limit(ORG, BASE).used == 1
    tier.adjust(ORG, BASE, -5)
    assert tier.lookup_limit(ORG, BASE).used == 0
    tier.adjust(ORG, BASE, 2)
    assert tier.lookup_limit(ORG, BASE).used == 2


def test_look_ups(tier: Any) -> None:
    tier.subscribe(ORG, ["plan:pro@1", "feature:sso@plan:base@1"])
    assert {usage.feature for usage in tier.lookup_limits(ORG)} == {BASE, "feature:sso"}
    assert tier.lookup_limits(ORG)[BASE].limit is None
    with pytest.raises(KeyError):
        tier.lookup_limits(ORG)["feature:none"]
    assert (tier.lookup_limit(ORG, "feature:none").used, tier.lookup_limit(ORG, "feature:none").limit) == (0, 0)
    phase = tier.lookup_phase(ORG)
    assert (phase.plans, phase.fragments, phase.trial) == (("plan:pro@1",), ("feature:sso@plan:base@1",), False)
    assert tier.whois(ORG).org == ORG
    tier.cancel(ORG)
    assert tier.lookup_phase(ORG) is None
    assert not tier.can(ORG, BASE).ok
    tier.delete_org(ORG)
    with pytest.raises(OrgNotFound):
        tier.whois(ORG)
    assert set(tier.pull().plans) == {"plan:base@1", "plan:pro@1"}
    assert [result.reason for result in tier.push(PRICING)] == ["plan already exists"] * 5
    assert tier.whoami().id in ("memory", "sqlite")


def test_the_twins_have_the_same_calls() -> None:
    sync, twin = vars(Tier), vars(AsyncTier)
    own = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
    for name, call in sync.items():
        if (callable(call) and not name.startswith("_")) or name in own:
            other = twin[own.get(name, name)]
            if name not in ("run", *own):
                assert inspect.signature(call).parameters == inspect.signature(other).parameters, name
    assert {own.get(name, name) for name in sync if not name.startswith("__")} - {"close"} == {
        name for name in twin if not name.startswith("__")
    }


# ---- an engine that is away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_error", "is_open"),
    [("allow", True), ("deny", False), (lambda request, error: True, True), (lambda request, error: False, False)],
)
def test_can_answers_though_the_engine_is_away(make: Any, tmp_path: Path, on_error: Any, is_open: bool) -> None:
    asked: list[Any] = []

    def policy(request: Any, error: Exception) -> bool:
        asked.append((request, type(error)))
        return bool(on_error(request, error))

    tier = make(
        f"sqlite:///{tmp_path}/tier.db",
        pricing=PRICING,
        default_plan="plan:base@1",
        timeout=0.01,
        on_error=policy if callable(on_error) else on_error,
    )
    tier.open()
    with locked(tmp_path / "tier.db"):
        access = tier.can("org:new", BASE)  # has to write the default plan
        assert access.ok is is_open
        assert isinstance(access.err, EngineUnavailable)
        assert (access.limit, access.remaining, access.reason) == (None, None, "engine_unavailable")
    assert tier.counts == {"fail_open" if is_open else "fail_closed": 1}
    assert asked == ([(None, EngineUnavailable)] if callable(on_error) else [])


def test_the_other_calls_raise(make: Any, tmp_path: Path) -> None:
    tier = make(f"sqlite:///{tmp_path}/tier.db", pricing=PRICING, timeout=0.01)
    tier.subscribe(ORG, "plan:base@1")
    with locked(tmp_path / "tier.db"):
        for call in (
            lambda: tier.report(ORG, BASE),
            lambda: tier.adjust(ORG, BASE, 1),
            lambda: tier.subscribe(ORG, "plan:pro@1"),
            lambda: tier.push({"plans": {"plan:new@1": {"features": {"feature:x": {}}}}}),
        ):
            with pytest.raises(
                EngineUnavailable, match=r"locked by other writers for more than 0\.01 seconds"
            ) as raised:
                call()
            assert (raised.value.status, raised.value.code) == (503, "engine_unavailable")
        assert tier.lookup_limit(ORG, BASE).used == 0  # readers do not wait
    assert tier.lookup_limit(ORG, BASE).used == 0


def test_away_from_the_first_call(make: Any, tmp_path: Path) -> None:
    make(f"sqlite:///{tmp_path}/tier.db").open()
    tier = make(f"sqlite:///{tmp_path}/tier.db", pricing=PRICING, timeout=0.01)
    with locked(tmp_path / "tier.db"):
        access = tier.can(ORG, BASE)
        assert (access.ok, type(access.err)) == (True, EngineUnavailable)
        with pytest.raises(EngineUnavailable):
            tier.open()
    tier.open()
    assert not tier.can(ORG, BASE).ok


# ---- reserve --------------------------------------------------------------------------------------------------------


def used(tier: Any, feature: str = BASE) -> tuple[int, int]:
    usage = tier.lookup_limit(ORG, feature)
    return usage.used, usage.reserved


def test_reserve_commits(tier: Any) -> None:
    with tier.reserve(ORG, BASE, 2) as reservation:
        assert (reservation.org, reservation.feature, reservation.n) == (ORG, BASE, 2)
        assert used(tier) == (0, 2)
    assert used(tier) == (2, 0)


def test_what_the_block_says_counts(tier: Any) -> None:
    with tier.reserve(ORG, BASE, 3) as reservation:
        reservation.set(1)
    assert used(tier) == (1, 0)
    with tier.reserve(ORG, BASE, 1) as reservation:
        reservation.add(0)
        reservation.add(1)
        reservation.add(4)
    assert used(tier) == (6, 0)
    assert tier.counts == {"over_limit.overage": 3}


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, GeneratorExit, LimitReached])
def test_what_raises_is_given_back(tier: Any, kind: type[BaseException]) -> None:
    error = kind("mine") if kind is not LimitReached else LimitReached("mine", org=ORG)
    with pytest.raises(kind) as raised, tier.reserve(ORG, BASE, 2):
        raise error
    assert raised.value is error
    assert used(tier) == (0, 0)


@pytest.mark.parametrize(
    ("org", "feature", "n", "kind", "reason"),
    [
        (ORG, BASE, 4, LimitReached, "amount_exceeds_limit"),
        (ORG, "feature:other", 1, NotEntitled, "no_entitlement"),
    ],
)
def test_who_is_refused_never_runs_the_block(
    tier: Any, org: str, feature: str, n: int, kind: type[Refused], reason: str
) -> None:
    with pytest.raises(kind) as raised, tier.reserve(org, feature, n):
        raise AssertionError("ran")
    error = raised.value
    assert (error.org, error.feature, error.requested, error.reason) == (org, feature, n, reason)
    assert (error.status, error.used) == (402 if kind is LimitReached else 400, 0)
    assert isinstance(error, TierError)


def test_an_unknown_org_is_refused(make: Any, url: str) -> None:
    tier = make(url, pricing=PRICING)
    with pytest.raises(OrgNotFound), tier.reserve("org:unknown", BASE):
        raise AssertionError("ran")


def test_nested_reservations_hold_their_own(tier: Any) -> None:
    with tier.reserve(ORG, BASE, 2):
        with pytest.raises(LimitReached) as raised, tier.reserve(ORG, BASE, 2):
            raise AssertionError("ran")
        assert (raised.value.used, raised.value.limit) == (0, 3)
        with tier.reserve(ORG, BASE, 1), tier.reserve(ORG, "feature:feature-id", 7) as other:
            assert used(tier) == (0, 3)
            other.set(5)
        assert used(tier) == (1, 2)
    assert used(tier) == (3, 0)
    assert used(tier, "feature:feature-id") == (5, 0)


def test_an_on_off_feature_reserves_nothing(tier: Any) -> None:
    with tier.reserve(ORG, "feature:sso"):
        pass
    assert tier.counts == {}


def test_a_reservation_that_expired_still_counts_once(make: Any, url: str) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    tier = make(url, pricing=PRICING, default_plan="plan:base@1", reservation_seconds=60, clock=clock)
    with tier.reserve(ORG, BASE, 3):
        clock.advance(timedelta(seconds=61))
        assert tier.can(ORG, BASE, 3).ok  # somebody else may have it
    assert used(tier) == (3, 0)


def test_a_reservation_while_the_engine_is_away(make: Any, tmp_path: Path) -> None:
    for on_error in ("allow", "deny"):
        tier = make(f"sqlite:///{tmp_path}/tier.db", pricing=PRICING, timeout=0.01, on_error=on_error)
        tier.subscribe(ORG, "plan:base@1")
        lock = locked(tmp_path / "tier.db")
        lock.__enter__()
        if on_error == "deny":
            with pytest.raises(EngineUnavailable), tier.reserve(ORG, BASE, 2):
                raise AssertionError("ran")
            lock.__exit__(None, None, None)
            continue
        with tier.reserve(ORG, BASE, 2):
            lock.__exit__(None, None, None)
        assert used(tier) == (2, 0)
        assert tier.counts == {"fail_open": 1}
        tier.adjust(ORG, BASE, -2)
    assert used(tier) == (0, 0)


@pytest.mark.parametrize("n", [-1, 1.5, True, "1", None])
def test_what_a_block_says_is_checked(tier: Any, n: Any) -> None:
    with pytest.raises(InvalidRequest, match="n: must be a whole number"), tier.reserve(ORG, BASE) as reservation:
        reservation.set(n)
    with pytest.raises(InvalidRequest, match="n: must be a whole number"), tier.reserve(ORG, BASE) as reservation:
        reservation.add(n)
    assert used(tier) == (0, 0)


def test_a_seeded_random_does_not_repeat_reservations(tier: Any) -> None:
    """Applications seed ``random``, all workers alike; ids must differ all the same."""
    state = random.getstate()
    try:
        random.seed(42)
        with tier.reserve(ORG, BASE, 1):
            random.seed(42)
            with tier.reserve(ORG, BASE, 1):
                assert used(tier) == (0, 2)
        assert used(tier) == (2, 0)
    finally:
        random.setstate(state)


# ---- threads, loops, closing ----------------------------------------------------------------------------------------


def test_20_threads_and_a_limit_of_3(url: str) -> None:
    with Tier(url, pricing=PRICING, default_plan="plan:base@1") as tier:
        start = threading.Barrier(20)
        outcomes: list[str] = []

        def work() -> None:
            start.wait()
            try:
                with tier.reserve(ORG, BASE):
                    outcomes.append("ran")
            except LimitReached:
                outcomes.append("refused")

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["ran"] * 3 + ["refused"] * 17
        assert used(tier) == (3, 0)


def test_two_event_loops_one_after_the_other_and_at_once(url: str) -> None:
    tier = AsyncTier(url, pricing=PRICING, default_plan="plan:base@1")

    async def work() -> None:
        async with tier.reserve(ORG, "feature:feature-id", 2):
            await asyncio.sleep(0)

    async def many() -> None:
        await asyncio.gather(*[work() for _ in range(5)])

    asyncio.run(work())
    asyncio.run(work())
    threads = [threading.Thread(target=lambda: asyncio.run(many())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used(Tier.on(tier.core), "feature:feature-id") == (34, 0)
    asyncio.run(tier.aclose())


def test_the_twins_on_one_engine(url: str) -> None:
    sync = Tier(url, pricing=PRICING, default_plan="plan:base@1")
    twin = AsyncTier.on(sync.core)
    asyncio.run(twin.report(ORG, BASE, 2))
    assert used(sync) == (2, 0)
    assert sync.counts == twin.counts
    sync.close()


def test_closing_is_idempotent_and_a_later_call_opens_again(tier: Any, url: str) -> None:
    tier.close()
    tier.report(ORG, BASE)
    tier.close()
    tier.close()
    assert used(tier) == (1, 0)


def test_as_context_managers(url: str) -> None:
    with Tier(url, pricing=PRICING) as tier:
        assert tier.core.is_open
    assert not tier.core.is_open

    async def main() -> None:
        async with AsyncTier(url, pricing=PRICING) as twin:
            assert twin.core.is_open
        assert not twin.core.is_open

    asyncio.run(main())


def test_a_client_that_is_made_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TIER_BASE_URL", "TIER_PRICING", "TIER_DEFAULT_PLAN"):
        monkeypatch.delenv(name, raising=False)
    for client in (Tier(), AsyncTier(), Tier(pricing="none.json")):
        assert "sqlite:///tier.db" in repr(client)
    assert list(tmp_path.iterdir()) == []
    with Tier(pricing=PRICING):
        assert (tmp_path / "tier.db").exists()  # three slashes: this folder


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIER_BASE_URL", "ftp://x")
    monkeypatch.setenv("TIER_DEFAULT_PLAN", "nonsense")
    tier = Tier("memory://", default_plan="plan:base@1")
    assert tier.core.settings.base_url == "memory://"
    assert tier.core.settings.default_plan == "plan:base@1"


def test_secrets_are_not_shown() -> None:
    assert "sk_live" not in repr(Tier("memory://", api_key="sk_live_1"))
    assert "sk_live" not in repr(Tier("memory://", api_key="sk_live_1").core.settings)


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: t.can(ORG, "feature:a b"), ["feature", "'feature:a b'"]),
        (lambda t: t.can(ORG, "convert"), ["feature", "'convert'"]),
        (lambda t: t.can("customer", BASE), ["org", "'customer'"]),
        (lambda t: t.can("org:", BASE), ["org", "'org:'"]),
        (lambda t: t.can("", BASE), ["org", "''"]),
        (lambda t: t.can(None, BASE), ["org", "None"]),
        (lambda t: t.can(ORG, BASE, -1), ["n: ", "-1"]),
        (lambda t: t.can(ORG, BASE, 1.5), ["n: ", "1.5"]),
        (lambda t: t.can(ORG, BASE, True), ["n: ", "True"]),
        (lambda t: t.can(ORG, BASE, 2**63), ["n: ", str(2**63)]),
        (lambda t: t.report(ORG, BASE, -1), ["n: ", "-1"]),
        (lambda t: t.report(ORG, BASE, 1.0), ["n: ", "1.0"]),
        (lambda t: t.report(ORG, BASE, "1"), ["n: ", "'1'"]),
        (lambda t: t.report("acme", BASE), ["org", "'acme'"]),
        (lambda t: t.report(ORG, "feature:x y"), ["feature", "'feature:x y'"]),
        (lambda t: t.report(ORG, BASE, at=datetime(2023, 3, 23)), ["at: ", "aware", "2023, 3, 23"]),
        (lambda t: t.report(ORG, BASE, at="2023-03-23"), ["at: ", "'2023-03-23'"]),
        (lambda t: t.report(ORG, BASE, at=datetime(2023, 3, 23, tzinfo=UTC)), ["at: ", ORG, "2023-03-23"]),
        (lambda t: t.report(ORG, BASE, at=datetime(2999, 1, 1, tzinfo=UTC)), ["at: ", "2999-01-01"]),
        (lambda t: t.report(ORG, BASE, key=""), ["key: ", "''"]),
        (lambda t: t.report(ORG, BASE, key=5), ["key: ", "5"]),
        (lambda t: t.report(ORG, "feature:sso"), ["feature", "feature:sso"]),
        (lambda t: t.adjust(ORG, BASE, 1.5), ["delta: ", "1.5"]),
        (lambda t: t.adjust(ORG, BASE, True), ["delta: ", "True"]),
        (lambda t: t.adjust(ORG, BASE, "-1"), ["delta: ", "'-1'"]),
        (lambda t: t.adjust(ORG, BASE, -(2**64)), ["delta: "]),
        (lambda t: t.reserve(ORG, BASE, 1.5).__enter__(), ["n: ", "1.5"]),
        (lambda t: t.reserve("acme", BASE).__enter__(), ["org", "'acme'"]),
        (lambda t: t.subscribe(ORG, "plan:base"), ["features", "'plan:base'", "version"]),
        (lambda t: t.subscribe(ORG, "plan:bas@1"), ["features", "'plan:bas@1'", "did you mean 'plan:base@1'"]),
        (lambda t: t.subscribe(ORG, "feature:sso@plan:pro@1"), ["features", "feature:sso@plan:pro@1"]),
        (lambda t: t.subscribe(ORG, ["plan:base@1", "plan:base@1"]), ["features", "twice"]),
        (lambda t: t.subscribe("acme", "plan:base@1"), ["org", "'acme'"]),
        (lambda t: t.lookup_limits("acme"), ["org", "'acme'"]),
        (lambda t: t.lookup_limit(ORG, "x"), ["feature", "'x'"]),
        (lambda t: t.whois(5), ["org", "5"]),
        (lambda t: t.can(ORG, "feature:seats", 1) and t.report(ORG, "feature:seats", -1), ["n: ", "-1"]),
    ],
)
def test_a_bad_argument_is_named_with_its_value(tier: Any, call: Any, said: list[str]) -> None:
    tier.subscribe(ORG, "plan:base@1")
    tier.report(ORG, BASE, 1)
    with pytest.raises(InvalidRequest) as raised:
        call(tier)
    for words in said:
        assert words in str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert raised.value.status == 400
    assert used(tier) == (1, 0)  # nothing half done


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "ftp://x"}, ["TIER_BASE_URL", "'ftp://x'"]),
        ({"base_url": "tier.db"}, ["TIER_BASE_URL", "'tier.db'"]),
        ({"base_url": "sqlite://tier.db"}, ["TIER_BASE_URL", "sqlite://tier.db"]),
        ({"base_url": "sqlite:///t.db?journal=off"}, ["TIER_BASE_URL", "'journal'"]),
        ({"base_url": "sqlite:///t.db?synchronous=off"}, ["synchronous", "'off'"]),
        ({"base_url": "http://tier:8080", "api_key": "k"}, ["TIER_BASE_URL", "https://"]),
        ({"base_url": "https://"}, ["TIER_BASE_URL", "name a server"]),
        ({"base_url": "redis://u:secret@h/0"}, ["TIER_BASE_URL", "redis"]),
        ({"base_url": 5}, ["TIER_BASE_URL", "5"]),
        ({"default_plan": "plan:base"}, ["TIER_DEFAULT_PLAN", "'plan:base'"]),
        ({"default_plan": 5}, ["TIER_DEFAULT_PLAN", "5"]),
        ({"timeout": 0}, ["timeout", "0"]),
        ({"timeout": "5"}, ["timeout", "'5'"]),
        ({"timeout": True}, ["timeout", "True"]),
        ({"timeout": float("nan")}, ["timeout", "nan"]),
        ({"reservation_seconds": -1}, ["reservation_seconds", "-1"]),
        ({"flush_seconds": 0}, ["flush_seconds", "0"]),
        ({"on_error": "open"}, ["on_error", "'open'"]),
        ({"on_loss": "ignore"}, ["on_loss", "'ignore'"]),
        ({"clock": datetime(2023, 1, 1, tzinfo=UTC)}, ["clock", "2023"]),
    ],
)
def test_a_bad_setting_is_named_with_its_value(options: dict[str, Any], said: list[str]) -> None:
    for kind in (Tier, AsyncTier):
        with pytest.raises(ConfigurationError) as raised:
            kind(**{"base_url": "memory://", **options})
        for words in said:
            assert words in str(raised.value)
        assert "secret" not in str(raised.value)


def test_a_clock_without_a_zone_is_named(make: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"clock: must be an aware datetime"):
        make("memory://", clock=lambda: datetime(2023, 1, 1)).can(ORG, BASE)


def corrupt(path: Path) -> dict[str, Any]:
    (path / "tier.db").write_bytes(b"no database" * 500)
    return {}


def newer(path: Path) -> dict[str, Any]:
    with Tier(f"sqlite:///{path}/tier.db"):
        pass
    with closing(sqlite3.connect(path / "tier.db")) as db:
        db.execute("PRAGMA user_version = 999")
    return {}


def folder(path: Path) -> dict[str, Any]:
    (path / "tier.db").mkdir()
    return {}


def typo(path: Path) -> dict[str, Any]:
    (path / "pricing.json").write_text(json.dumps(PRICING).replace('"upto"', '"up_to"', 1))
    return {"pricing": str(path / "pricing.json")}


def no_json(path: Path) -> dict[str, Any]:
    (path / "pricing.json").write_text('{"plans": {')
    return {"pricing": str(path / "pricing.json")}


def edited(path: Path) -> dict[str, Any]:
    with Tier(f"sqlite:///{path}/tier.db", pricing=PRICING):
        pass
    changed = json.loads(json.dumps(PRICING))
    changed["plans"]["plan:base@1"]["features"][BASE]["tiers"][0]["upto"] = 4
    return {"pricing": changed}


def no_default(path: Path) -> dict[str, Any]:
    return {"pricing": PRICING, "default_plan": "plan:bsae@1"}


@pytest.mark.parametrize(
    ("break_it", "kind", "said"),
    [
        (corrupt, ConfigurationError, ["TIER_BASE_URL", "tier.db", "not a SQLite database"]),
        (newer, ConfigurationError, ["tier.db", "999"]),
        (folder, ConfigurationError, ["TIER_BASE_URL", "tier.db"]),
        (typo, PricingError, ["TIER_PRICING", 'plans["plan:base@1"]', "up_to"]),
        (no_json, PricingError, ["TIER_PRICING"]),
        (edited, PricingError, ["plan:base@1", "version"]),
        (no_default, ConfigurationError, ["TIER_DEFAULT_PLAN", "plan:bsae@1", "did you mean 'plan:base@1'"]),
    ],
)
def test_what_cannot_be_opened_says_why_at_every_call(
    make: Any, tmp_path: Path, break_it: Any, kind: type[TierError], said: list[str]
) -> None:
    options = break_it(tmp_path)
    before = (tmp_path / "tier.db").read_bytes() if (tmp_path / "tier.db").is_file() else None
    tier = make(f"sqlite:///{tmp_path}/tier.db", on_error="allow", **options)
    for call in (tier.open, lambda: tier.can(ORG, BASE), lambda: tier.report(ORG, BASE)):
        with pytest.raises(kind) as raised:
            call()
        for words in said:
            assert words in str(raised.value)
    tier.close()
    if before is not None:
        assert (tmp_path / "tier.db").read_bytes() == before  # nothing half written
