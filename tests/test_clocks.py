"""Test clocks as an application uses them: time that is told to move, and orgs that live in it apart."""

from __future__ import annotations

import asyncio
import inspect
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from tier_middleware import (
    AsyncTier,
    EngineUnavailable,
    InvalidRequest,
    LimitReached,
    ManualClock,
    NotEntitled,
    OrgNotFound,
    PricingError,
    Tier,
    TierError,
)
from tier_middleware.asgi import TierMiddleware, requires_feature
from tier_middleware.client import AsyncClockedTier, ClockedTier

ACME = "org:acme"
CALLS = "feature:calls"
SEATS = "feature:seats"
PRICING: dict[str, Any] = {
    "plans": {
        "plan:free@1": {
            "features": {CALLS: {"tiers": [{"upto": 3}]}, SEATS: {"tiers": [{"upto": 5}], "aggregate": "perpetual"}}
        },
        "plan:pro@1": {"features": {CALLS: {"tiers": [{"upto": 100}]}}},
        "plan:daily@1": {"interval": "@daily", "features": {CALLS: {"tiers": [{"upto": 3}]}}},
        "plan:weekly@1": {"interval": "@weekly", "features": {CALLS: {"tiers": [{"upto": 3}]}}},
        "plan:yearly@1": {"interval": "@yearly", "features": {CALLS: {"tiers": [{"upto": 3}]}}},
    }
}
START = datetime(2024, 1, 31, 12, tzinfo=UTC)


class Sync:
    """An `AsyncTier` that is called like a `Tier`, so that one test tells the story of both."""

    def __init__(self, tier: Any, runner: asyncio.Runner) -> None:
        self._tier = tier
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tier, "aclose" if name == "close" else name)
        return self._call(found) if inspect.iscoroutinefunction(found) else found

    def __repr__(self) -> str:
        return repr(self._tier)

    def _call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            answer = self._runner.run(function(*arguments, **options))
            return Sync(answer, self._runner) if isinstance(answer, AsyncTier) or hasattr(answer, "report") else answer

        return called

    def use(self, org: str, feature: str, n: int) -> None:
        async def using() -> None:
            async with self._tier.reserve(org, feature, n):
                pass

        self._runner.run(using())


def use(tier: Any, n: int = 1, org: str = ACME, feature: str = CALLS) -> None:
    """Reserve and count."""
    if isinstance(tier, Sync):
        tier.use(org, feature, n)
    else:
        with tier.reserve(org, feature, n):
            pass


def used(tier: Any, org: str = ACME, feature: str = CALLS) -> int:
    return int(tier.lookup_limit(org, feature).used)


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of either colour; in the end all are closed."""
    made: list[Any] = []
    runner = asyncio.Runner()

    def client(*arguments: Any, **options: Any) -> Any:
        colour = Tier if request.param == "sync" else AsyncTier
        tier: Any = colour(*arguments, **{"pricing": PRICING, **options})
        made.append(tier if request.param == "sync" else Sync(tier, runner))
        return made[-1]

    yield client
    for tier in made:
        tier.close()
    runner.close()


@pytest.fixture(params=["memory://", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory://" else f"sqlite:///{tmp_path}/tier.db"


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tier.db"


@pytest.fixture
def tier(make: Any, url: str) -> Any:
    return make(url)


@pytest.fixture
def clocked(tier: Any) -> Any:
    return tier.with_clock("rehearsal", START)


# ---- clocks ---------------------------------------------------------------------------------------------------------


def test_a_clock_has_an_id_a_name_and_a_present(tier: Any, clocked: Any) -> None:
    assert clocked.clock.id.startswith("clock_")
    assert (clocked.clock.name, clocked.clock.present) == ("rehearsal", START)
    with pytest.raises(AttributeError):
        clocked.clock.present = START
    assert tier.with_clock("rehearsal", START).clock.id != clocked.clock.id
    assert clocked.clock.id in repr(clocked)


def test_its_present_is_cut_to_whole_seconds_and_given_in_utc(tier: Any) -> None:
    east = timezone(timedelta(hours=1))
    clocked = tier.with_clock("", datetime(2024, 1, 16, 12, 0, 0, 999_999, tzinfo=east))
    assert clocked.clock.present == datetime(2024, 1, 16, 11, tzinfo=UTC)
    assert clocked.clock.present.tzinfo is UTC
    clocked.advance(datetime(2024, 1, 16, 12, 0, 1, 500_000, tzinfo=east))
    assert clocked.clock.present == datetime(2024, 1, 16, 11, 0, 1, tzinfo=UTC)


@pytest.mark.parametrize("delta", [timedelta(0), timedelta(milliseconds=999), -timedelta(seconds=1), -timedelta(400)])
def test_it_does_not_go_backwards_nor_stand_still(clocked: Any, delta: timedelta) -> None:
    with pytest.raises(InvalidRequest) as caught:
        clocked.advance(START + delta)
    assert (caught.value.status, caught.value.code, caught.value.path) == (400, "invalid_request", "to")
    asked = (START + delta).replace(microsecond=0)
    for at in (START, asked):
        assert at.strftime("%Y-%m-%dT%H:%M:%SZ") in caught.value.message
    assert clocked.clock.present == START
    clocked.advance(START + timedelta(seconds=1))


NO_MOMENTS = [None, "2024-01-31", 0, START.replace(tzinfo=None), datetime(1, 1, 1, tzinfo=UTC),
              datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)]  # fmt: skip


@pytest.mark.parametrize("moment", NO_MOMENTS, ids=str)
def test_moments_that_are_none_are_refused_by_name(tier: Any, clocked: Any, moment: Any) -> None:
    for field, call in (("start", lambda: tier.with_clock("c", moment)), ("to", lambda: clocked.advance(moment))):
        with pytest.raises(InvalidRequest, match=field) as caught:
            call()
        assert caught.value.path == field
    assert clocked.clock.present == START


@pytest.mark.parametrize("id", ["clock_nope", "", None, 1, "clock_", "org:acme", "clock_a/org:acme", "clock_\ud800"])
def test_an_unknown_clock_is_a_mistake_that_names_it(tier: Any, id: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tier.on_clock(id)
    assert repr(id) in caught.value.message
    assert (caught.value.code, caught.value.status, caught.value.path) == ("invalid_request", 400, "clock")


@pytest.mark.parametrize("name", [None, 1, "x" * 1025, "\ud800"])
def test_a_name_that_is_none_is_refused(tier: Any, name: Any) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        tier.with_clock(name, START)


def test_a_clock_may_have_any_name_and_none(tier: Any) -> None:
    for name in ("", "c", "two words", "\u00e9", "'; DROP TABLE clocks; --", "x" * 1024):
        made = tier.with_clock(name, START)
        assert tier.on_clock(made.clock.id).clock == made.clock
        assert made.clock.name == name


def test_clients_of_one_clock_are_in_one_time(tier: Any, clocked: Any) -> None:
    other = tier.on_clock(clocked.clock.id)
    assert type(other) is type(clocked)
    other.subscribe(ACME, "plan:daily@1")
    use(clocked, 3)
    assert not other.can(ACME, CALLS).ok
    other.advance(START + timedelta(days=1))
    assert clocked.can(ACME, CALLS).ok  # without having been told
    assert clocked.clock == other.clock
    with pytest.raises(InvalidRequest):
        clocked.advance(START + timedelta(hours=1))


def test_under_a_clock_another_clock_can_be_made_or_found(clocked: Any) -> None:
    other = clocked.with_clock("other", START + timedelta(days=9))
    other.subscribe(ACME, "plan:free@1")
    assert clocked.on_clock(other.clock.id).lookup_org(ACME).created == START + timedelta(days=9)
    with pytest.raises(OrgNotFound):
        clocked.whois(ACME)


# ---- time -----------------------------------------------------------------------------------------------------------

MONTHS = [
    ("2024-01-31T12:00:00Z", "2024-02-29T12:00:00Z", "2024-03-31T12:00:00Z"),
    ("2023-01-31T00:00:00Z", "2023-02-28T00:00:00Z", "2023-03-31T00:00:00Z"),
    ("2024-12-30T23:00:00Z", "2025-01-30T23:00:00Z", "2025-02-28T23:00:00Z"),
]


@pytest.mark.parametrize("moments", MONTHS, ids=str)
def test_months_end_as_calendars_do(tier: Any, moments: tuple[str, str, str]) -> None:
    start, second, third = (datetime.fromisoformat(text) for text in moments)
    clocked = tier.with_clock("months", start)
    clocked.subscribe(ACME, "plan:free@1")
    for end in (second, third):
        use(clocked, 3)
        assert clocked.lookup_limit(ACME, CALLS).resets_at == end
        clocked.advance(end - timedelta(seconds=1))
        assert clocked.can(ACME, CALLS).reason == "limit_reached"
        clocked.advance(end)
        assert clocked.can(ACME, CALLS, 3).ok
        assert clocked.lookup_phase(ACME).current.effective == end


ENDS = {
    "plan:daily@1": START + timedelta(days=1),
    "plan:weekly@1": START + timedelta(days=7),
    "plan:yearly@1": datetime(2025, 1, 31, 12, tzinfo=UTC),
}


@pytest.mark.parametrize(("plan", "end"), ENDS.items(), ids=str)
def test_every_interval_ends_in_its_time(clocked: Any, plan: str, end: datetime) -> None:
    clocked.subscribe(ACME, plan)
    use(clocked, 3)
    clocked.advance(end - timedelta(seconds=1))
    assert used(clocked) == 3
    clocked.advance(end)
    assert used(clocked) == 0
    clocked.advance(end + timedelta(days=3650))
    assert clocked.can(ACME, CALLS, 3).ok


def test_a_trial_ends_and_what_was_planned_begins(clocked: Any) -> None:
    clocked.subscribe(ACME, "plan:pro@1", trial_days=14)
    assert clocked.lookup_phase(ACME).trial
    clocked.advance(START + timedelta(days=14, seconds=-1))
    assert clocked.lookup_phase(ACME).trial
    clocked.advance(START + timedelta(days=14))
    assert not clocked.lookup_phase(ACME).trial
    clocked.schedule(
        ACME,
        [
            {"features": ["plan:pro@1"]},
            {"effective": START + timedelta(days=20), "features": ["plan:free@1"]},
            {"effective": START + timedelta(days=30)},
        ],
    )
    limits = {}
    for day in (19, 20, 29, 30, 31):
        clocked.advance(START + timedelta(days=day))
        limits[day] = clocked.lookup_limit(ACME, CALLS).limit
    assert limits == {19: 100, 20: 3, 29: 3, 30: 0, 31: 0}
    assert clocked.lookup_phase(ACME) is None


def test_what_is_said_of_time_is_measured_by_the_clock(clocked: Any) -> None:
    """The machine's clock says something else altogether: it is years later."""
    with pytest.raises(InvalidRequest, match="2024-01-31T12:00:00Z"):
        clocked.subscribe(ACME, "plan:free@1", effective=START - timedelta(hours=1))
    clocked.subscribe(ACME, "plan:free@1", effective=START + timedelta(hours=1))
    assert clocked.can(ACME, CALLS).reason == "no_entitlement"
    clocked.advance(START + timedelta(hours=1))
    clocked.report(ACME, CALLS, 1, at=START + timedelta(hours=1, minutes=5))
    with pytest.raises(InvalidRequest, match="at: must be at most five minutes ahead"):
        clocked.report(ACME, CALLS, 1, at=START + timedelta(hours=1, minutes=6))
    with pytest.raises(InvalidRequest, match="org:acme"):
        clocked.report(ACME, CALLS, 1, at=START)
    with pytest.raises(InvalidRequest):
        clocked.cancel(ACME, at=START)
    clocked.cancel(ACME, at=START + timedelta(hours=2))
    clocked.advance(START + timedelta(hours=2))
    assert clocked.lookup_phase(ACME) is None
    assert clocked.lookup_org(ACME).created == START


def test_a_report_of_an_earlier_period_counts_there(clocked: Any) -> None:
    clocked.subscribe(ACME, "plan:daily@1")
    use(clocked, 2)
    clocked.advance(START + timedelta(days=2))
    clocked.report(ACME, CALLS, 7, at=START + timedelta(days=1, seconds=1))
    clocked.report(ACME, CALLS, 1)
    clocked.adjust(ACME, CALLS, 1)
    assert used(clocked) == 2


def test_reservations_expire_by_the_clock(make: Any, url: str) -> None:
    tier = make(url, reservation_seconds=60)
    clocked = tier.with_clock("rehearsal", START)
    clocked.subscribe(ACME, "plan:free@1")
    twin = Tier.on(clocked.core)
    with twin.reserve(ACME, CALLS, 3):
        assert not clocked.can(ACME, CALLS).ok
        clocked.advance(START + timedelta(seconds=59))
        assert not clocked.can(ACME, CALLS).ok
        clocked.advance(START + timedelta(seconds=60))
        use(clocked, 3)  # its capacity is somebody else's now
    assert used(clocked) == 6
    assert clocked.counts == {"over_limit.expired": 3}
    assert tier.counts == {}  # what is rehearsed is not what happened


def test_a_reservation_that_raises_is_given_back(clocked: Any) -> None:
    clocked.subscribe(ACME, "plan:free@1")
    twin = Tier.on(clocked.core)

    with pytest.raises(KeyError), twin.reserve(ACME, CALLS, 3):
        raise KeyError
    use(clocked, 3)
    with pytest.raises(LimitReached) as caught:
        use(clocked)
    assert caught.value.org == ACME
    assert caught.value.resets_at == datetime(2024, 2, 29, 12, tzinfo=UTC)


def test_an_answer_reports_where_it_was_asked(tier: Any, clocked: Any) -> None:
    for client, plan in ((tier, "plan:pro@1"), (clocked, "plan:free@1")):
        client.subscribe(ACME, plan)
    answer = clocked.can(ACME, CALLS, 2)
    assert (answer.org, answer.limit) == (ACME, 3)
    answer.report(2)
    assert (used(clocked), used(tier)) == (2, 0)


def test_the_default_plan_is_given_under_a_clock_too(make: Any, url: str) -> None:
    tier = make(url, default_plan="plan:free@1")
    clocked = tier.with_clock("rehearsal", START)
    use(clocked, 3)
    assert clocked.lookup_phase(ACME).effective == START
    with pytest.raises(OrgNotFound):
        tier.whois(ACME)


def test_the_machines_clock_may_be_given_and_is_not_looked_at(make: Any, url: str) -> None:
    machine = ManualClock(START - timedelta(days=365))
    tier = make(url, clock=machine)
    clocked = tier.with_clock("rehearsal", START)
    for client in (tier, clocked):
        client.subscribe(ACME, "plan:daily@1")
        use(client, 3)
    machine.advance(timedelta(days=1))
    assert (tier.can(ACME, CALLS).ok, clocked.can(ACME, CALLS).ok) == (True, False)
    clocked.advance(START + timedelta(days=1))
    assert clocked.can(ACME, CALLS).ok


# ---- isolation ------------------------------------------------------------------------------------------------------


def all_of(client: Any) -> list[Any]:
    """All that can be asked about acme with a client."""
    answers: list[Any] = []
    for question in ("lookup_limits", "lookup_phases", "lookup_org", "whois", "lookup_payment_methods"):
        try:
            answers.append(getattr(client, question)(ACME))
        except TierError as error:
            answers.append((type(error), error.message))
    return answers


CHANGES: dict[str, Callable[[Any], Any]] = {
    "free": lambda tier: tier.subscribe(ACME, "plan:free@1"),
    "pro, with a name": lambda tier: tier.subscribe(ACME, "plan:pro@1", info={"name": "Acme", "email": "a@b.c"}),
    "trial": lambda tier: tier.subscribe(ACME, "plan:pro@1", trial_days=3),
    "cancel": lambda tier: tier.cancel(ACME),
    "info": lambda tier: tier.update_org(ACME, {"metadata": {"k": "v"}}),
    "use": use,
    "report": lambda tier: tier.report(ACME, CALLS, 2),
    "report with a key": lambda tier: tier.report(ACME, CALLS, 2, key="k"),
    "clobber": lambda tier: tier.report(ACME, CALLS, 1, clobber=True),
    "adjust": lambda tier: tier.adjust(ACME, CALLS, -1, key="a"),
    "check": lambda tier: tier.can(ACME, CALLS),
    "delete": lambda tier: tier.delete_org(ACME),
    "time": lambda tier: tier.advance(tier.clock.present + timedelta(days=10)),
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(sorted(CHANGES))), max_size=25))
@pytest.mark.parametrize("engine", ["memory://", "sqlite"])
def test_what_happens_to_an_org_is_seen_by_nobody_else(
    tmp_path: Path, engine: str, steps: list[tuple[int, str]]
) -> None:
    """Whatever is done with one of three clients, acme of the two others stays as it is: and so their refusals."""
    for file in tmp_path.iterdir():
        file.unlink()
    machine = ManualClock(START)
    with Tier(
        engine if engine != "sqlite" else f"sqlite:///{tmp_path}/tier.db", pricing=PRICING, clock=machine
    ) as tier:
        clients: list[Any] = [tier, tier.with_clock("one", START), tier.with_clock("two", START + timedelta(days=400))]
        before = [all_of(client) for client in clients]
        alone: list[list[object]] = [[], [], []]
        for index, name in steps:
            if name == "time" and index == 0:
                machine.advance(timedelta(days=10))
            else:
                alone[index].append(outcome(clients[index], name))
            after = [all_of(client) for client in clients]
            for other in {0, 1, 2} - {index}:
                assert after[other] == before[other], name
            before = after
        for index in range(3):  # and each answers as if it were alone in the world
            mine = [name for who, name in steps if who == index]
            assert alone_in_the_world(index, mine) == (alone[index], before[index])


def outcome(client: Any, name: str) -> object:
    try:
        answer = CHANGES[name](client)
    except TierError as error:
        return type(error), error.code, error.message
    return None if answer is None else (answer.ok, answer.used, answer.limit, answer.reason)


def alone_in_the_world(index: int, names: list[str]) -> tuple[list[object], list[Any]]:
    """What the same calls answer with an engine that nobody else uses, whose machine's time is the clock's."""
    machine = ManualClock(START + timedelta(days=400 * (index == 2)))
    outcomes: list[object] = []
    with Tier("memory://", pricing=PRICING, clock=machine) as tier:
        for name in names:
            if name == "time":
                machine.advance(timedelta(days=10))
                if index:
                    outcomes.append(None)
            else:
                outcomes.append(outcome(tier, name))
        return outcomes, all_of(tier)


def test_the_same_key_counts_once_under_each_clock(tier: Any, clocked: Any) -> None:
    other = tier.with_clock("other", START)
    clients = (tier, clocked, other)
    for client in clients:
        client.subscribe(ACME, "plan:pro@1")
    for _ in range(2):
        for n, client in enumerate(clients, 1):
            for key in ("k", f"{clocked.clock.id}/k"):
                client.report(ACME, CALLS, n, key=key)
    assert [used(client) for client in clients] == [2, 4, 6]
    with pytest.raises(InvalidRequest, match="'k' was used before"):
        clocked.report(ACME, CALLS, 9, key="k")


def test_a_deleted_org_is_deleted_under_its_clock_only(tier: Any, clocked: Any) -> None:
    for client in (tier, clocked):
        client.subscribe(ACME, "plan:free@1")
        use(client, 2)
    clocked.delete_org(ACME)
    with pytest.raises(OrgNotFound) as caught:
        clocked.delete_org(ACME)
    assert caught.value.org == ACME
    assert "clock_" not in caught.value.message
    assert used(tier) == 2
    clocked.subscribe(ACME, "plan:free@1")
    assert used(clocked) == 0
    tier.delete_org(ACME)
    assert used(clocked) == 0


def test_errors_have_the_orgs_own_name(clocked: Any) -> None:
    errors = []
    for call in (
        lambda: clocked.report(ACME, CALLS),
        lambda: clocked.whois(ACME),
        lambda: clocked.cancel(ACME),
        lambda: use(clocked),
        lambda: clocked.subscribe(ACME, "plan:pro@1"),
        lambda: clocked.report(ACME, SEATS),
        lambda: use(clocked, 1, feature=SEATS),
        lambda: use(clocked, 101),
        lambda: clocked.report(ACME, CALLS, at=START - timedelta(days=1)),
    ):
        try:
            call()
        except TierError as error:
            errors.append(error)
    kinds = [OrgNotFound] * 4 + [NotEntitled, NotEntitled, LimitReached, InvalidRequest]
    assert [type(error) for error in errors] == kinds
    for error in errors:
        assert repr(ACME) in error.message
        assert "clock_" not in error.message
        assert getattr(error, "org", ACME) == ACME


def test_a_plan_is_pushed_in_everybodys_time(make: Any, tmp_path: Path, file_url: str) -> None:
    tier = make(file_url, clock=ManualClock(START + timedelta(days=700)))
    tier.with_clock("rehearsal", START).push({"plans": {"plan:new@1": {"features": {CALLS: {}}}}})
    with closing(sqlite3.connect(tmp_path / "tier.db")) as db:
        assert len(db.execute("SELECT DISTINCT pushed_ms FROM plans").fetchall()) == 1


def test_plans_are_shared_by_all(tier: Any, clocked: Any) -> None:
    clocked.push({"plans": {"plan:new@1": {"features": {CALLS: {"tiers": [{"upto": 9}]}}}}})
    assert tier.pull() == clocked.pull()
    assert clocked.pull_latest() == tier.pull_latest()
    tier.subscribe(ACME, "plan:new@1")
    with pytest.raises(PricingError):
        tier.push({"plans": {"plan:new@1": {"features": {CALLS: {}}}}})
    assert clocked.whoami() == tier.whoami()


# ---- restarts and processes -----------------------------------------------------------------------------------------


def test_a_clock_survives_a_restart(make: Any, file_url: str) -> None:
    tier = make(file_url)
    clocked = tier.with_clock("rehearsal", START)
    clocked.subscribe(ACME, "plan:free@1")
    use(clocked, 2)
    clocked.report(ACME, SEATS, 4, key="k")
    clocked.advance(START + timedelta(days=3))
    tier.close()
    again = make(file_url).on_clock(clocked.clock.id)
    assert again.clock == clocked.clock
    again.report(ACME, SEATS, 4, key="k")
    assert (used(again), used(again, feature=SEATS)) == (2, 4)
    again.advance(START + timedelta(days=29))
    assert (used(again), used(again, feature=SEATS)) == (0, 4)


def test_a_clocked_client_closes_and_opens_again_as_others_do(make: Any, file_url: str) -> None:
    tier = make(file_url)
    clocked = tier.with_clock("rehearsal", START)
    clocked.subscribe(ACME, "plan:free@1")
    for client in (clocked, tier, clocked):
        client.close()
        use(clocked)
    assert not tier.can(ACME, CALLS).ok
    assert used(clocked) == 3


OTHER = """
import sys
from datetime import datetime, timedelta
from tier_middleware import Tier
url, id = sys.argv[1:]
clocked = Tier(url).on_clock(id)
for line in sys.stdin:
    call = line.split()
    if call[0] == "advance":
        clocked.advance(datetime.fromisoformat(call[1]))
    elif call[0] == "report":
        clocked.report("org:acme", "feature:calls", int(call[1]))
    print(clocked.clock.present.isoformat(), clocked.lookup_limit("org:acme", "feature:calls").used, flush=True)
"""


def test_two_processes_share_a_clock(make: Any, file_url: str) -> None:
    clocked = make(file_url).with_clock("rehearsal", START)
    clocked.subscribe(ACME, "plan:daily@1")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", OTHER, file_url, clocked.clock.id],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdin is not None
        assert other.stdout is not None

        def asked(line: str) -> list[str]:
            other.stdin.write(line + "\n")
            other.stdin.flush()
            return other.stdout.readline().split()

        assert asked("report 2") == ["2024-01-31T12:00:00+00:00", "2"]
        use(clocked)
        assert not clocked.can(ACME, CALLS).ok
        assert asked("look")[1] == "3"
        assert asked("advance 2024-02-01T12:00:00+00:00") == ["2024-02-01T12:00:00+00:00", "0"]
        assert clocked.can(ACME, CALLS).ok
        assert clocked.clock.present == START + timedelta(days=1)
        use(clocked, 2)
        clocked.advance(START + timedelta(days=2))
        assert asked("report 1") == ["2024-02-02T12:00:00+00:00", "1"]
        other.stdin.close()
    assert other.returncode == 0


def test_a_file_from_before_there_were_clocks_learns_of_them(tmp_path: Path, file_url: str) -> None:
    from tier_middleware.engines.schema import APPLICATION_ID, FIRST, SECOND

    with closing(sqlite3.connect(tmp_path / "tier.db")) as db:
        db.executescript(FIRST + SECOND)
        db.execute("INSERT INTO about VALUES (0)")
        db.execute("INSERT INTO orgs VALUES (7, 'org:acme', 5, 5, '')")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute("PRAGMA user_version = 2")
        db.commit()
    with Tier(file_url, pricing=PRICING) as tier:
        assert tier.lookup_org(ACME).created.year == 1970
        clocked = tier.with_clock("rehearsal", START)
        clocked.subscribe(ACME, "plan:free@1")
        clocked.report(ACME, CALLS, 2, key="k")
        assert (used(clocked), tier.can(ACME, CALLS).ok) == (2, False)


# ---- an engine that is away -----------------------------------------------------------------------------------------


def test_the_policies_answer_for_a_clock_that_cannot_be_asked(make: Any, tmp_path: Path) -> None:
    tier = make(f"sqlite:///{tmp_path}/tier.db", on_error="deny", timeout=0.05)
    clocked = tier.with_clock("rehearsal", START)
    clocked.subscribe(ACME, "plan:free@1")
    clocked.close()
    with closing(sqlite3.connect(tmp_path / "tier.db", isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")  # so that readers cannot come in either
        db.execute("BEGIN EXCLUSIVE")
        db.execute("UPDATE about SET created_ms = created_ms")
        answer = clocked.can(ACME, CALLS)
        assert (answer.ok, answer.reason) == (False, "engine_unavailable")
        assert isinstance(answer.err, EngineUnavailable)
        with pytest.raises(EngineUnavailable):
            clocked.report(ACME, CALLS)
        with pytest.raises(EngineUnavailable):
            use(clocked)
        assert clocked.counts == {"fail_closed": 2}
        db.execute("ROLLBACK")
    clocked.open()  # at once; a call would try again after a second
    assert clocked.can(ACME, CALLS).ok


def test_usage_that_is_lost_is_told_with_the_orgs_own_name(make: Any, tmp_path: Path) -> None:
    lost: list[Any] = []
    options = {"timeout": 0.01, "outbox": tmp_path / "no folder" / "outbox.db"}
    tier = make(f"sqlite:///{tmp_path}/tier.db", on_loss=lambda reports, reason: lost.extend(reports), **options)
    clocked = tier.with_clock("rehearsal", START)
    clocked.subscribe(ACME, "plan:free@1")
    with closing(sqlite3.connect(tmp_path / "tier.db", isolation_level=None)) as db:
        with Tier.on(clocked.core).reserve(ACME, CALLS, 2):
            db.execute("BEGIN IMMEDIATE")
        use(clocked, 3)  # let through, since nobody could say no, and nowhere to be counted
        db.execute("ROLLBACK")
    assert [(report.org, report.n, report.at) for report in lost] == [(ACME, 2, START), (ACME, 3, START)]
    assert clocked.counts == {"fail_open": 1, "lost.engine_unavailable": 5}


# ---- the faces ------------------------------------------------------------------------------------------------------


def test_an_application_can_be_rehearsed(tmp_path: Path, url: str) -> None:
    """A middleware on a clocked client gates and counts in that clock's time."""
    tier = Tier(url, pricing=PRICING, default_plan="plan:free@1")
    clocked = tier.with_clock("rehearsal", START)

    @requires_feature(CALLS)
    async def convert(request: Request) -> Response:
        usage = request.state.tier[CALLS]
        return JSONResponse([usage.used, usage.remaining])

    @requires_feature(CALLS)
    async def plain(request: Request) -> Response:
        return Response("done")

    @requires_feature(CALLS, lambda request: 2)
    def broken(request: Request) -> Response:
        return Response("no", 500)

    app = Starlette(routes=[Route("/", convert), Route("/plain", plain), Route("/broken", broken)])
    app.add_middleware(TierMiddleware, tier=AsyncClockedTier.on(clocked.core), org=lambda request: "acme")
    with TestClient(app) as client:
        assert client.get("/").json() == [0, 2]
        assert client.get("/broken").status_code == 500
        assert client.get("/plain").status_code == 200
        assert client.get("/").json() == [2, 0]
        refused = client.get("/")
        assert refused.status_code == 402
        assert refused.json()["resets_at"] == "2024-02-29T12:00:00Z"
        clocked.advance(datetime(2024, 2, 29, 12, tzinfo=UTC))
        assert client.get("/").json() == [0, 2]
        clocked.subscribe(ACME, "plan:pro@1")  # more than that nobody sells, so waiting is all that helps
        clocked.report(ACME, CALLS, 100)
        refused = client.get("/")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, str(31 * 86_400))
    with TestClient(app) as client:  # closed and opened again
        clocked.advance(datetime(2024, 3, 31, 12, tzinfo=UTC))
        assert client.get("/plain").status_code == 200
    assert used(clocked) == 1
    with pytest.raises(OrgNotFound):
        tier.whois(ACME)
    tier.close()


async def test_an_async_clocked_client_is_a_client() -> None:
    async with AsyncTier("memory://", pricing=PRICING) as tier:
        clocked = await tier.with_clock("rehearsal", START)
        assert isinstance(clocked, AsyncClockedTier)
        await clocked.subscribe(ACME, "plan:free@1")
        async with clocked.reserve(ACME, CALLS) as reservation:
            reservation.set(2)
        await clocked.advance(START + timedelta(days=29))
        assert (await clocked.lookup_limit(ACME, CALLS)).used == 0
        twin = ClockedTier.on(clocked.core)
        assert twin.clock == clocked.clock


# ---- the recorded conversation --------------------------------------------------------------------------------------

VECTOR = json.loads((Path(__file__).parent / "vectors" / "15_clock.json").read_text())

TABLE = "any other 500 that a client's input causes, test clocks included -> 400"
"""The last table of the protocol's README, on what ours does where the real server is wrong."""

ONLY_HTTP = {
    12: "an unknown field of the JSON body: Python refuses unknown arguments itself",
    13: "a body that is no JSON",
    14: "a method that the path has not got",
    19: "a header that names an unknown clock where it does not matter: on_clock() refuses before there is a client",
    20: "likewise",
}
"""Steps that are about HTTP alone, and why."""

ANOTHER_STATUS = {5: TABLE, 6: TABLE, 7: TABLE, 8: TABLE, 9: TABLE, 10: TABLE, 18: TABLE}
"""Steps that ours answers differently on purpose: 400 invalid_request instead of the real server's 500."""


def moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def answered(tier: Any, request: dict[str, Any]) -> Any:
    """What a recorded request is in Python."""
    body, query = request.get("body", {}), request.get("query", {})
    clock = request.get("headers", {}).get("Tier-Clock")
    match request["method"], request["path"]:
        case "POST", "/v1/clock" if "id" in body:
            clocked = tier.on_clock(body["id"])
            clocked.advance(moment(body["present"]))
            return clocked.clock
        case "POST", "/v1/clock":
            return tier.with_clock(body.get("name", ""), moment(body.get("present"))).clock
        case "GET", "/v1/clock":
            return tier.on_clock(query.get("id")).clock
        case "POST", "/v1/subscribe":
            return tier.on_clock(clock).subscribe(body["org"], info=body["info"])
        case "GET", "/v1/whois":
            client = tier if clock is None else tier.on_clock(clock)
            return client.lookup_org(query["org"]) if query.get("include") == "info" else client.whois(query["org"])
    raise AssertionError(request)


def test_clocks_answer_as_recorded(tier: Any) -> None:
    saved: dict[str, str] = {}
    replayed = 0
    for index, step in enumerate(VECTOR["steps"]):
        if index in ONLY_HTTP:
            continue
        request = json.loads(json.dumps(step["request"]).replace("${clock}", saved.get("clock", "")))
        expected, body = step["response"], step["response"]["body"]
        if expected["status"] != 200:
            with pytest.raises(TierError) as caught:
                answered(tier, request)
            status, code = (400, "invalid_request") if index in ANOTHER_STATUS else (expected["status"], body["code"])
            assert (caught.value.status, caught.value.code) == (status, code), step.get("note")
        else:
            answer = answered(tier, request)
            if step.get("save"):
                saved["clock"] = answer.id
            if "present" in body:  # link and status are Stripe's: its page, and that it is still at work
                assert answer.present == moment(body["present"])
                assert (body["id"] == "<clock:1>") == (answer.id == saved["clock"])
            elif "created" in body:
                assert answer.created == moment(body["created"])
                assert (answer.org, answer.email, answer.metadata) == (body["org"], body["email"], body["metadata"])
            else:
                assert (answer, body) == (None, {})
        replayed += 1
    assert replayed == len(VECTOR["steps"]) - len(ONLY_HTTP)
    recorded_500 = {index for index, step in enumerate(VECTOR["steps"]) if step["response"]["status"] == 500}
    assert recorded_500 == set(ANOTHER_STATUS)
