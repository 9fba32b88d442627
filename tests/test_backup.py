"""What could not be counted while the engine was away: kept in the outbox, counted once when it is back."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from forking import exit_status, forked

from tier_middleware import ManualClock, Tier, drive
from tier_middleware.cli.app import run
from tier_middleware.clock import monotonic
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.errors import EngineUnavailable
from tier_middleware.flow import Settlement, do
from tier_middleware.ops import Commit, Demand, Granted, Hold, Kept, Record, Renew
from tier_middleware.testing.bench import together

ACME, CALLS, SEATS = "org:acme", "feature:calls", "feature:seats"
PRICING = {
    "plans": {
        "plan:free@1": {
            "features": {
                CALLS: {"tiers": [{"upto": 10}]},
                SEATS: {"tiers": [{"upto": 100}], "aggregate": "perpetual"},
                "feature:pages": {"tiers": [{"upto": 100}]},
            }
        }
    }
}
START = datetime(2024, 1, 31, tzinfo=UTC)


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Another connection holds the write lock for longer than anybody waits."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "tier.db"


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    return tmp_path / "tier-outbox.db"


@pytest.fixture
def make_tier(make: Any, database: Path) -> Callable[..., Any]:
    """Makes clients of the database, sync or async, that have no patience."""

    def client(**options: Any) -> Any:
        tier = make(
            f"sqlite:///{database}", **{"timeout": 0.02, "pricing": PRICING, "default_plan": "plan:free@1", **options}
        )
        tier.open()
        return tier

    return client


def used(tier: Any, feature: str = CALLS, org: str = ACME) -> tuple[int, int]:
    usage = tier.lookup_limit(org, feature)
    return usage.used, usage.reserved


def delivered(tier: Any) -> None:
    """Wait until the engine has what was kept for it."""
    assert tier.core.reporter.flush(10)


def worked(tier: Any, database: Path, n: int = 1, feature: str = CALLS) -> None:
    """Work that was let through, and that the engine cannot count when it is done."""
    with ExitStack() as locks, tier.reserve(ACME, feature, n):
        locks.enter_context(away(database))


# ---- kept, and counted later ----------------------------------------------------------------------------------------


def test_what_the_engine_cannot_count_is_counted_when_it_is_back(
    make_tier: Any, database: Path, outbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []
    tier = make_tier(on_loss=lambda reports, reason: told.append(reports))
    with tier.reserve(ACME, CALLS):
        pass
    assert not outbox.exists()
    assert "tier-reporter" not in {thread.name for thread in threading.enumerate()}
    worked(tier, database, 2)  # reserved before
    with away(database), tier.reserve(ACME, CALLS, 3):
        pass  # let through, since nobody could say no
    assert tier.counts == {"fail_open": 1, "outbox.kept": 5, **delivered_so_far(tier)}
    assert "usage waits in the outbox" in caplog.text
    delivered(tier)
    assert used(tier) == (6, 0)
    assert tier.counts == {"fail_open": 1, "outbox.kept": 5, "outbox.delivered": 5}
    assert told == []
    kinds = [(entry.kind, entry.n) for entry in tier.history(ACME, CALLS)]
    assert sorted(kinds) == [("commit", 1), ("commit", 2), ("report", 3)]


def delivered_so_far(tier: Any) -> dict[str, int]:
    n = tier.counts.get("outbox.delivered", 0)
    return {"outbox.delivered": n} if n else {}


def fail(tier: Any, database: Path, before: Callable[[], None] = lambda: None) -> None:
    """Work that raises, while the engine is away."""
    with ExitStack() as locks, suppress(ZeroDivisionError), tier.reserve(ACME, CALLS, 4):
        before()
        locks.enter_context(away(database))
        raise ZeroDivisionError


def test_work_that_failed_is_given_back(make_tier: Any, database: Path) -> None:
    tier = make_tier()
    fail(tier, database)
    delivered(tier)
    assert used(tier) == (0, 0)


def test_a_key_is_kept_with_what_counts_once_for_it(make_tier: Any, database: Path) -> None:
    tier = make_tier()
    core = tier.core

    def hold() -> Hold:
        reply = tier.run(do(core.operations.reserve(ACME, (Demand(CALLS, 1),))))
        assert isinstance(reply, Granted)
        (hold,) = reply.holds
        assert hold is not None
        return hold

    first, again = hold(), hold()
    tier.run(core.settling(Settlement((Kept(first, 1, key="request"),))))
    with away(database):
        tier.run(core.settling(Settlement((Kept(again, 1, key="request"),))))
    delivered(tier)
    assert used(tier) == (1, 0)


def test_what_a_renewal_has_counted_of_work_that_failed_is_taken_back(make_tier: Any, database: Path) -> None:
    tier = make_tier()
    core = tier.core

    def renew() -> None:
        with closing(sqlite3.connect(database)) as db:
            ((id, place),) = db.execute("SELECT id, usage_id FROM units WHERE id > 0").fetchall()
        core.engine.attempt(Renew((Kept(Hold(id, ACME, CALLS, 4, place), 3),), core.now_ms(), core.now_ms() + 900_000))
        assert used(tier) == (3, 1)

    fail(tier, database, renew)
    delivered(tier)
    assert used(tier) == (0, 0)


def test_it_is_counted_for_the_time_at_which_the_work_was_done(make_tier: Any, database: Path) -> None:
    clock = ManualClock(START)
    tier = make_tier(clock=clock)
    tier.subscribe(ACME, "plan:free@1")
    clock.advance(timedelta(days=28))
    with away(database):
        with tier.reserve(ACME, CALLS, 3):
            pass
        tier.core.reporter.stop()
    clock.advance(timedelta(days=5))  # another billing period
    delivered(tier)
    assert used(tier) == (0, 0)
    (entry,) = tier.history(ACME, CALLS)
    assert entry.at == START + timedelta(days=28)


def test_an_org_that_is_not_subscribed_yet_is_counted_from_its_default_plan_on(make_tier: Any, database: Path) -> None:
    clock = ManualClock(START)
    tier = make_tier(clock=clock)
    with away(database):
        with tier.reserve(ACME, CALLS, 3):
            pass
        tier.core.reporter.stop()
    clock.advance(timedelta(hours=1))
    delivered(tier)
    assert used(tier) == (3, 0)


def test_units_over_the_limit_and_those_left_out_by_a_cap_are_told(make_tier: Any, database: Path) -> None:
    told: list[Any] = []
    tier = make_tier(on_loss=lambda reports, reason: told.append((reports[0].n, reason)))
    with ExitStack() as locks, tier.reserve(ACME, CALLS, 9) as reservation:
        reservation.set(12)
        locks.enter_context(away(database))
    delivered(tier)
    assert used(tier) == (12, 0)
    assert tier.counts["over_limit.overage"] == 2
    assert told == []


class Deaf(SqliteEngine):
    """Does what it is told, and its answer is lost: nobody knows what became of it."""

    is_deaf = False

    def attempt(self, op: Any) -> Any:
        reply = super().attempt(op)
        if self.is_deaf and isinstance(op, Commit | Record):
            raise EngineUnavailable("the answer was lost")
        return reply


def test_what_was_counted_after_all_is_not_counted_again(make_tier: Any) -> None:
    tier = make_tier()
    tier.core.engine.__class__ = Deaf
    tier.core.engine.is_deaf = True
    with tier.reserve(ACME, CALLS, 2):
        pass
    settlement = Settlement(records=(tier.core.operations.record(ACME, CALLS, 3),))
    drive.run(tier.core.settling(settlement), tier.core.engine, 1)
    assert tier.counts["outbox.kept"] == 5
    assert not tier.core.reporter.flush(1)
    tier.core.engine.is_deaf = False
    delivered(tier)
    assert used(tier) == (5, 0)


def test_levels_keep_their_order(make_tier: Any, database: Path) -> None:
    tier = make_tier()
    worked(tier, database, 3, SEATS)
    tier.core.reporter.stop()
    with tier.reserve(ACME, SEATS, 5), tier.reserve(ACME, CALLS, 1):
        pass  # the engine is back, and what waits is not counted yet
    assert used(tier) == (1, 0)
    assert [batch.n for batch in tier.core.reporter.outbox.undelivered(ACME)] == [3, 5]
    delivered(tier)
    assert used(tier, SEATS)[0] == 5
    with tier.reserve(ACME, SEATS, 4):
        pass
    assert used(tier, SEATS)[0] == 4


def test_a_test_clocks_org_is_counted_in_its_time(make_tier: Any, database: Path) -> None:
    tier = make_tier()
    clocked = tier.with_clock("rehearsal", START)
    on_clock = Tier.on(clocked.core)
    on_clock.subscribe(ACME, "plan:free@1")
    with ExitStack() as locks, on_clock.reserve(ACME, CALLS, 2):
        locks.enter_context(away(database))
    with away(database), on_clock.reserve(ACME, CALLS, 3):
        pass
    assert clocked.counts["outbox.kept"] == 5
    delivered(tier)
    assert used(on_clock) == (5, 0)
    assert {entry.at for entry in on_clock.history(ACME, CALLS)} == {START}


def test_what_has_a_mistake_in_its_configuration_is_no_engine_that_is_away(make_tier: Any, database: Path) -> None:
    told: list[Any] = []
    tier = make_tier(on_loss=lambda reports, reason: told.append(reports[0].n))
    with tier.reserve(ACME, CALLS, 2):
        tier.core.engine.close()
        database.write_bytes(b"this is no database, and long enough to be seen as none" * 100)
    assert told == [2]
    assert "outbox.kept" not in tier.counts


# ---- other processes ------------------------------------------------------------------------------------------------

WORKER = """
import sqlite3, sys
from contextlib import ExitStack
from tier_middleware import Tier

tier = Tier("sqlite:///tier.db", timeout=0.01)
with ExitStack() as stack:
    for n in range(5):
        stack.enter_context(tier.reserve("org:acme", "feature:pages", n))
    lock = sqlite3.connect("tier.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")  # until it is killed: its own thread cannot deliver anything
tier.core.reporter.stop()  # or what it has just claimed would be its own until the lease ends
print(tier.counts["outbox.kept"], flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_has_kept_is_counted_by_the_next_start(
    make_tier: Any, database: Path, tmp_path: Path
) -> None:
    make_tier().subscribe(ACME, "plan:free@1")
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "10\n"
        worker.send_signal(signal.SIGKILL)
    tier = make_tier()
    deadline = monotonic() + 10
    while (used(tier, "feature:pages"), tier.counts) != ((10, 0), {"outbox.delivered": 10}):
        assert monotonic() < deadline, tier.counts
    assert used(tier, "feature:pages") == (10, 0)


def test_two_processes_deliver_the_same_outbox_and_each_counts_once(make_tier: Any, database: Path) -> None:
    tier, twin = make_tier(), make_tier()
    for _ in range(9):
        worked(tier, database)
    tier.core.reporter.stop()
    before = used(tier)[0]
    twin.core.reporter.outbox.open()
    together(2, lambda index: (tier, twin)[index].core.reporter.flush(10))
    assert used(tier) == (9, 0)
    assert before <= 9
    assert sum(one.counts.get("outbox.delivered", 0) for one in (tier, twin)) == 9


def test_a_child_takes_over_what_a_sibling_has_left(make_tier: Any, database: Path) -> None:
    tier = make_tier()

    def killed() -> bool:
        with tier.reserve(ACME, CALLS, 2):
            lock = sqlite3.connect(database, isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")  # until its end
        return bool(tier.counts["outbox.kept"] == 2)

    def sibling() -> bool:
        with tier.reserve(ACME, CALLS):
            pass
        deadline = monotonic() + 10
        while used(tier)[0] < 3 and monotonic() < deadline:
            continue
        return used(tier) == (3, 0) and tier.core.is_straight

    assert exit_status(forked(killed)) == 0
    assert used(tier)[0] == 0
    assert exit_status(forked(sibling)) == 0


# ---- where it cannot be kept ----------------------------------------------------------------------------------------


def test_what_cannot_be_kept_either_is_lost(make_tier: Any, database: Path, tmp_path: Path, caplog: Any) -> None:
    told: list[Any] = []
    tier = make_tier(
        on_loss=lambda reports, reason: told.append((reports[0].n, reason)), outbox=tmp_path / "no folder" / "outbox.db"
    )
    worked(tier, database, 2)
    assert told == [(2, "engine_unavailable")]
    assert tier.counts == {"lost.engine_unavailable": 2}
    assert "cannot be kept in the outbox: TIER_OUTBOX: " in caplog.text


def test_an_outbox_of_another_database_is_not_used(make_tier: Any, make: Any, tmp_path: Path, database: Path) -> None:
    tier = make_tier()
    worked(tier, database, 2)
    tier.core.reporter.stop()
    if not tier.core.reporter.outbox.undelivered(ACME):
        pytest.fail("it was delivered before the thread was stopped")
    other = make(f"sqlite:///{tmp_path}/other.db", pricing=PRICING, timeout=0.02, outbox=tmp_path / "tier-outbox.db")
    other.open()
    other.subscribe(ACME, "plan:free@1")
    worked(other, tmp_path / "other.db", 1)
    assert other.counts == {"lost.engine_unavailable": 1}
    delivered(tier)
    assert used(tier) == (2, 0)


FULL = """
import resource, signal, sys
from tier_middleware import Tier

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
told = []
tier = Tier("sqlite:///tier.db", on_loss=lambda reports, reason: told.append((reports[0].n, reason)))
with tier.reserve("org:acme", "feature:calls", 2):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))  # nothing more can be written to any file
print(told, tier.counts)
"""


def test_a_disk_that_is_full_for_both_is_a_loss(make_tier: Any, tmp_path: Path) -> None:
    make_tier().subscribe(ACME, "plan:free@1")
    done = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[(2, 'engine_unavailable')] {'lost.engine_unavailable': 2}\n"


def test_memory_is_never_away() -> None:
    with Tier("memory://") as tier:
        assert tier.core.backup is None
        assert tier.core.reporter is None


# ---- for people -----------------------------------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_kept_is_listed_and_sent_by_a_person(
    make_tier: Any, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIER_BASE_URL", f"sqlite:///{database}")
    tier = make_tier()
    with ExitStack() as locks:
        with tier.reserve(ACME, CALLS, 2):
            locks.enter_context(away(database))
        (batch,) = said(capsys, "outbox", "list")["batches"]
        assert (batch["action"], batch["org"], batch["n"], batch["detail"]["held"]) == ("commit", ACME, 2, 2)
        assert run(["outbox", "list"]) == 0
        assert "commit" in capsys.readouterr().out
        assert run(["outbox", "export"]) == 0
        assert json.loads(capsys.readouterr().out)["key"].startswith("reservation:")
        tier.core.reporter.stop()
    assert said(capsys, "outbox", "retry") == {"requeued": 0, "left": {}}
    assert used(tier) == (2, 0)


def test_what_the_engine_refuses_for_good_waits_for_a_person(
    make: Any, database: Path, outbox: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIER_BASE_URL", f"sqlite:///{database}")
    tier = make(f"sqlite:///{database}", pricing=PRICING, timeout=0.02)
    tier.open()
    with away(database), tier.reserve(ACME, CALLS, 3):
        pass
    delivered(tier)
    assert tier.counts == {"fail_open": 1, "outbox.kept": 3, "outbox.buried": 3}
    (batch,) = said(capsys, "outbox", "list", "--state", "buried")["batches"]
    assert batch["code"] == "org_not_found"
    run(["doctor"])
    assert f"{outbox}: 1 buried; see tier-middleware outbox list" in capsys.readouterr().out.replace("\n", " ")
    tier.subscribe(ACME, "plan:free@1")
    assert said(capsys, "outbox", "retry", "--all")["left"] == {}
    assert used(tier) == (3, 0)


def test_what_is_too_old_to_be_counted_once_is_left_to_a_person(make_tier: Any, database: Path) -> None:
    clock = ManualClock(START)
    tier = make_tier(clock=clock)
    worked(tier, database, 2)
    tier.core.reporter.stop()
    clock.advance(timedelta(days=36))
    delivered(tier)
    assert [(batch.n, batch.code) for batch in tier.core.reporter.outbox.listed(["buried"])] == [(2, "too_old")]


def test_looking_delivers_nothing(
    make_tier: Any, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIER_BASE_URL", f"sqlite:///{database}")
    tier = make_tier()
    worked(tier, database, 2)
    tier.core.reporter.stop()
    run(["doctor"])
    assert "1 sealed" in capsys.readouterr().out
    assert said(capsys, "limits", ACME)["usage"]
    assert used(tier)[0] in (0, 2)
