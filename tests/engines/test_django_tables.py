"""``django://``: what every engine must do, on Django's SQLite and on PostgreSQL, and what only a guest can suffer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import unittest
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

import databases
import pytest
from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.management import call_command
from django.db import connections, transaction
from django.test import TestCase, TransactionTestCase

from tier_middleware import AsyncTier, ConfigurationError, EngineUnavailable, LimitReached, Tier, drive
from tier_middleware.clock import ManualClock, Milliseconds, milliseconds, monotonic
from tier_middleware.django.engine import DjangoEngine
from tier_middleware.engines.ledger import ROLL_UP_EVERY
from tier_middleware.ops import DeleteOrg, Demand, Granted, OnLoop, Op, Push, ReadChanges, Reserve, Schedule
from tier_middleware.testing.bench import ACME, CALLS, MODEL, START, Bench, planned, raised
from tier_middleware.testing.conformance import EngineConformance
from tier_middleware.testing.likeness import Likeness

R = TypeVar("R")

PRICING = {"plans": {"plan:free@1": {"features": {"feature:x": {"tiers": [{"upto": 3}]}}}}}


class TidyEngine(DjangoEngine):
    """Its threads let go of their connections, as Django's do at the end of a request."""

    def attempt_within(self, op: Op[R], seconds: float) -> R:
        try:
            return super().attempt_within(op, seconds)
        finally:
            if threading.current_thread() is not threading.main_thread():
                connections[self.alias].close()


class DjangoConformance(EngineConformance):
    alias: str

    def engine(self, now_ms: Milliseconds) -> DjangoEngine:
        databases.empty(self.alias)
        return TidyEngine(self.alias, now_ms)


class TestOnSqlite(DjangoConformance):
    @pytest.fixture(autouse=True)
    def _on(self, lite: str) -> None:
        self.alias = lite


@pytest.fixture(scope="module")
def plain_lite(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plain") / "plain.db"
    databases.add("plain_lite", **databases.sqlite_settings(path, init_command="PRAGMA synchronous=OFF"))
    return "plain_lite"


class TestOnSqliteAsDjangoOpensIt(DjangoConformance):
    """Deferred transactions, and a journal for which readers and writers wait for each other."""

    @pytest.fixture(autouse=True)
    def _on(self, plain_lite: str) -> None:
        self.alias = plain_lite


class TestOnPostgresql(DjangoConformance):
    @pytest.fixture(autouse=True)
    def _on(self, pg: str) -> None:
        self.alias = pg


class TestInsideATransaction(Likeness):
    """The same answers from savepoints of one transaction, which nobody will ever commit."""

    def engine(self, now_ms: Milliseconds) -> DjangoEngine:
        return DjangoEngine(self.alias, now_ms)

    @pytest.fixture(autouse=True)
    def _on(self, alias: str) -> Iterator[None]:
        self.alias = alias
        with transaction.atomic(using=alias):
            yield
            transaction.set_rollback(True, using=alias)


@contextmanager
def opened(alias: str, *features: str) -> Iterator[Bench]:
    clock = ManualClock(START)
    bench = Bench(TidyEngine(alias, milliseconds(clock)), clock)
    bench.do(Push(MODEL, bench.now_ms()))
    if features:
        bench.subscribe(ACME, *features)
    yield bench
    bench.engine.close()


@pytest.fixture
def bench(alias: str) -> Iterator[Bench]:
    with opened(alias, "plan:free@1") as bench:
        yield bench


@pytest.fixture
def on_pg(pg: str) -> Iterator[Bench]:
    """Where writers of one org do not wait for those of another."""
    databases.empty(pg)
    with opened(pg, "plan:free@1") as bench:
        yield bench


class Undone(Exception):
    pass


@contextmanager
def undone(alias: str) -> Iterator[None]:
    """A transaction of the project's that fails at its end."""
    with suppress(Undone), transaction.atomic(using=alias):
        yield
        raise Undone


# ---- transactions of the project's ----------------------------------------------------------------------------------


def test_what_was_done_in_a_transaction_goes_with_it(bench: Bench, alias: str) -> None:
    bench.use()
    with undone(alias):
        bench.use()
        hold = bench.hold()
        assert bench.usage() == (2, 1)
    assert bench.usage() == (1, 0)
    assert [entry.change.n for entry in bench.entries()] == [1]
    bench.commit(hold)  # of a reservation that never was
    assert bench.usage() == (1, 0)
    with transaction.atomic(using=alias):
        bench.use()
    assert bench.usage() == (2, 0)


def test_a_counter_that_was_rolled_back_is_not_taken_for_another_orgs(bench: Bench, alias: str) -> None:
    """SQLite gives its id to the next one that is made."""
    with undone(alias):
        bench.use()
    bench.subscribe("org:other", "plan:free@1")
    bench.use(org="org:other")
    bench.use()
    assert (bench.used(), bench.used(org="org:other")) == (1, 1)


def test_plans_that_were_rolled_back_are_not_known(alias: str) -> None:
    clock = ManualClock(START)
    bench = Bench(TidyEngine(alias, milliseconds(clock)), clock)
    with undone(alias):
        bench.do(Push(MODEL, bench.now_ms()))
        bench.subscribe(ACME, "plan:free@1")
        bench.use()
    results = bench.do(Push(MODEL, bench.now_ms()))
    assert {result.status for result in results} == {"ok"}


def test_a_client_that_was_opened_in_a_transaction_pushes_its_plans_again(alias: str) -> None:
    with Tier(f"django://{alias}") as plain:
        tier = Tier(f"django://{alias}", pricing=PRICING, default_plan="plan:free@1")
        with undone(alias):
            tier.report("org:a", "feature:x")
        assert plain.pull().plans == {}
        tier.report("org:a", "feature:x")
        assert tier.lookup_limit("org:a", "feature:x").used == 1
        assert list(plain.pull().plans) == ["plan:free@1"]


class Told:
    """A path that says when somebody asks for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked = threading.Event()

    def __fspath__(self) -> str:
        self.asked.set()
        return str(self.path)


def test_first_uses_inside_and_outside_of_a_transaction_do_not_wait_for_each_other(alias: str, tmp_path: Path) -> None:
    pricing = Told(tmp_path / "pricing.json")
    pricing.path.write_text(json.dumps(PRICING))
    tier = Tier(f"django://{alias}", pricing=pricing, default_plan="plan:free@1", on_error="deny", timeout=20)

    def report() -> None:
        tier.report("org:outside", "feature:x")
        connections[alias].close()

    outside = threading.Thread(target=report)
    with transaction.atomic(using=alias):
        begun = time.monotonic()
        outside.start()
        assert pricing.asked.wait(20)  # it opens, and waits for this transaction where that one has the lock
        tier.report("org:inside", "feature:x")
        seconds = time.monotonic() - begun
    outside.join()
    assert [tier.lookup_limit(f"org:{side}", "feature:x").used for side in ("inside", "outside")] == [1, 1]
    assert seconds < 10, "one waited for the other until its timeout"


def test_a_refusal_leaves_the_transaction_as_it_was(bench: Bench, alias: str) -> None:
    with transaction.atomic(using=alias):
        bench.use(n=3)
        bench.refusal()
        raised(Exception, lambda: bench.record(1, "feature:unheard-of"))
        bench.record(1)
    assert bench.used() == 4


def test_in_a_broken_transaction_the_engine_is_unavailable(bench: Bench, alias: str) -> None:
    with undone(alias):
        with suppress(ZeroDivisionError), transaction.atomic(using=alias, savepoint=False):
            raise ZeroDivisionError
        raised(EngineUnavailable, bench.use)
    assert bench.usage() == (0, 0)


def test_a_change_that_is_committed_late_is_told_to_those_who_have_read_later_ones(on_pg: Bench, pg: str) -> None:
    """PostgreSQL numbers a row when it is made, and shows it when its transaction is over."""
    cursor = on_pg.do(ReadChanges()).cursor
    made, may_commit = threading.Event(), threading.Event()

    def slow() -> None:
        with transaction.atomic(using=pg):
            DjangoEngine(pg, on_pg.now_ms).attempt(Schedule("org:slow", (planned("plan:free@1"),), on_pg.now_ms()))
            made.set()
            assert may_commit.wait(30)
        connections[pg].close()

    thread = threading.Thread(target=slow)
    thread.start()
    assert made.wait(30)
    on_pg.subscribe("org:quick", "plan:free@1")
    found = on_pg.do(ReadChanges(cursor))
    assert (found.orgs, on_pg.do(ReadChanges(found.cursor)).orgs) == (("org:quick",), ())
    may_commit.set()
    thread.join()
    late = on_pg.do(ReadChanges(found.cursor))
    assert (late.orgs, on_pg.do(ReadChanges(late.cursor)).orgs) == (("org:slow",), ())


def test_a_change_that_was_rolled_back_is_none(bench: Bench, alias: str) -> None:
    cursor = bench.do(ReadChanges()).cursor
    with undone(alias):
        bench.subscribe("org:other", "plan:free@1")
    bench.subscribe("org:third", "plan:free@1")
    assert bench.do(ReadChanges(cursor)).orgs == ("org:third",)


def test_those_who_delete_orgs_at_once_wait_for_nobody(on_pg: Bench, pg: str) -> None:
    for org in ("org:a", "org:b", "org:c"):
        on_pg.subscribe(org, "plan:free@1")
    on_pg.do(DeleteOrg("org:a"))
    cursor = on_pg.do(ReadChanges()).cursor
    deleted, may_commit = threading.Event(), threading.Event()

    def slow() -> None:
        with transaction.atomic(using=pg):
            DjangoEngine(pg, on_pg.now_ms).attempt(DeleteOrg("org:b"))
            deleted.set()
            assert may_commit.wait(30)
        connections[pg].close()

    thread = threading.Thread(target=slow)
    thread.start()
    assert deleted.wait(30)
    on_pg.do(DeleteOrg("org:c"))
    found = on_pg.do(ReadChanges(cursor))
    assert found.is_everything
    assert not on_pg.do(ReadChanges(found.cursor)).is_everything
    may_commit.set()
    thread.join()
    assert on_pg.do(ReadChanges(found.cursor)).is_everything


def asked_for(bench: Bench, n: int, id: int) -> Reserve:
    now_ms = bench.now_ms()
    return Reserve(ACME, (Demand(CALLS, n),), (id,), now_ms, now_ms + 60_000)


@contextmanager
def written_by_another(engine: DjangoEngine, op: Op[Any]) -> Iterator[Callable[[], None]]:
    """Within the block, another thread is in a transaction in which it has done this; what it answers ends that."""
    has_done, may_end = threading.Event(), threading.Event()

    def hold_on() -> None:
        with transaction.atomic(using=engine.alias):
            DjangoEngine.attempt_within(engine, op, 0.0)
            has_done.set()
            may_end.wait(60)
        connections[engine.alias].close()

    connections[engine.alias].close()
    thread = threading.Thread(target=hold_on)
    thread.start()
    try:
        assert has_done.wait(30)
        yield may_end.set
    finally:
        may_end.set()
        thread.join()


def test_writers_of_one_org_wait_for_each_other(bench: Bench, alias: str) -> None:
    """On PostgreSQL those of others do not."""
    bench.subscribe("org:other", "plan:free@1")
    engine = TidyEngine(alias, bench.now_ms)
    again = asked_for(bench, 3, 2)
    with written_by_another(engine, asked_for(bench, 1, 1)) as end:
        if connections[alias].vendor == "postgresql":
            bench.use(org="org:other")
            raised(EngineUnavailable, lambda: drive.perform(again, engine, 0.05))
            with transaction.atomic(using=alias):  # nor does it break what it is part of
                raised(EngineUnavailable, lambda: drive.perform(again, engine, 0.05))
                bench.use(org="org:other")
            assert bench.used(org="org:other") == 2
        assert bench.usage() == (0, 0)  # readers do not wait
        end()
        assert not isinstance(drive.perform(again, engine, 30), Granted)
    assert bench.usage() == (0, 1)


def test_a_no_waits_for_nobody(bench: Bench, alias: str) -> None:
    """And keeps nobody waiting: a refused crowd is what those who wait in line would be behind."""
    engine = TidyEngine(alias, bench.now_ms)
    bench.use(n=2)
    assert drive.perform(asked_for(bench, 2, 1), engine, 5).reason == "limit_reached"
    with written_by_another(engine, asked_for(bench, 1, 2)):
        assert drive.perform(asked_for(bench, 2, 3), engine, 0.05).reason == "limit_reached"
        if connections[alias].vendor == "postgresql":  # on SQLite, to begin a transaction is to wait
            with transaction.atomic(using=alias):
                assert drive.perform(asked_for(bench, 2, 4), engine, 0.05).reason == "limit_reached"
    bench.adjust(-2)
    assert isinstance(drive.perform(asked_for(bench, 2, 5), engine, 5), Granted)


def test_who_waits_keeps_the_place_in_line(pg: str) -> None:
    """Whoever gives up and comes again is behind all who came meanwhile, and of a crowd the same few never get in."""
    databases.empty(pg)
    with opened(pg, "plan:free@1") as bench, ThreadPoolExecutor(1) as pool:
        engine = TidyEngine(pg, bench.now_ms)
        with written_by_another(engine, asked_for(bench, 1, 1)):
            days = 30 * 86_400.0  # the longest that a client may be told to wait
            waiting = pool.submit(drive.perform, asked_for(bench, 1, 2), engine, days)
            until("SELECT now() - waitstart > interval '1.5 s' FROM pg_locks WHERE NOT granted")
        assert isinstance(waiting.result(60), Granted)


def until(question: str, alias: str = "pg") -> None:
    """Ask a database until it says yes."""
    deadline = monotonic() + 30
    while monotonic() < deadline:
        with connections[alias].cursor() as cursor:
            cursor.execute(question)
            if cursor.fetchone() == (True,):
                return
    raise AssertionError(question)


WORKER = """
import json, sys
from django.conf import settings
settings.configure(DATABASES=json.loads(sys.argv[1]), INSTALLED_APPS=["tier_middleware.django"])
import django; django.setup()
from itertools import count
import os
from django.db import connections
from tier_middleware.clock import ManualClock, milliseconds
from tier_middleware.django.engine import DjangoEngine
from tier_middleware.ops import *
from tier_middleware.testing.bench import *

Bench._ids = count(os.getpid() << 32)
clock = ManualClock(START)
bench = Bench(DjangoEngine("default", milliseconds(clock)), clock)

def one(org):
    try:
        return bench.reserve(Demand(CALLS, 1), org=org)
    finally:
        connections["default"].close()

print("ready", flush=True)
for org in map(str.strip, sys.stdin):
    replies = together(5, lambda _: one(org))
    print(sum(isinstance(reply, Granted) for reply in replies), flush=True)
"""


def test_four_processes_of_five_threads_against_a_limit_of_3_are_granted_exactly_3(bench: Bench, alias: str) -> None:
    used = ("ENGINE", "NAME", "USER", "HOST", "OPTIONS")
    settings = {key: value for key, value in connections.settings[alias].items() if key in used}
    command = [sys.executable, "-c", WORKER, json.dumps({"default": settings}, default=str)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) for _ in range(4)
    ]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 4  # type: ignore[union-attr]  # a pipe
    for n in range(10):
        org = f"org:{n}"
        bench.subscribe(org, "plan:free@1")
        for worker in workers:
            worker.stdin.write(f"{org}\n")  # type: ignore[union-attr]  # likewise
        granted = [int(worker.stdout.readline()) for worker in workers]  # type: ignore[union-attr]  # likewise
        assert sum(granted) == 3
        assert bench.usage(org=org) == (0, 3)
    for worker in workers:
        worker.communicate(timeout=30)


def test_what_is_due_is_rolled_up_for_the_org_that_is_written_for(alias: str) -> None:
    with opened(alias, "plan:open@1") as bench:
        bench.subscribe("org:other", "plan:open@1")
        for org in (ACME, "org:other"):
            for _ in range(2 * ROLL_UP_EVERY):
                bench.use(org=org)
        bench.pass_(days=401)
        for _ in range(3 * ROLL_UP_EVERY):
            bench.use()
        kinds = [entry.change.kind for entry in bench.entries()]
        assert kinds == ["day"] + ["commit"] * 3 * ROLL_UP_EVERY
        assert {entry.change.kind for entry in bench.entries(org="org:other")} == {"commit"}
        assert sum(part.n for part in bench.sums(timedelta(days=365))) == 5 * ROLL_UP_EVERY


# ---- databases that are away, or not ours ---------------------------------------------------------------------------


def test_a_connection_that_breaks_is_made_again(pg: str) -> None:
    databases.empty(pg)
    with Tier(f"django://{pg}", pricing=PRICING, default_plan="plan:free@1", on_error="deny") as tier:
        tier.report("org:a", "feature:x")
        with connections[pg].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        killer = connections[pg].copy()
        with killer.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        killer.close()
        assert tier.can("org:a", "feature:x").err is not None
        assert tier.can("org:a", "feature:x").ok
        assert tier.lookup_limit("org:a", "feature:x").used == 1


def test_a_server_that_is_away_is_unavailable(pg: str, tmp_path: Path) -> None:
    connections.settings["away"] = {**connections.settings[pg], "HOST": str(tmp_path)}
    tier = Tier("django://away")
    error = raised(EngineUnavailable, tier.open)
    assert "'away'" in error.message
    assert tier.can("org:a", "feature:x").ok  # as on_error says
    del connections["away"], connections.settings["away"]


def test_a_database_without_our_tables_names_the_command(tmp_path: Path) -> None:
    connections.settings["bare"] = {**connections.settings["default"], "NAME": tmp_path / "bare.db"}
    tier = Tier("django://bare")
    for call in (tier.open, lambda: tier.report("org:a", "feature:x")):
        error = raised(ConfigurationError, call)
        assert error.message.endswith("run: manage.py migrate tier_middleware --database bare")
    connections["bare"].close()
    del connections["bare"], connections.settings["bare"]


def test_a_database_that_cannot_be_used_is_named() -> None:
    connections.settings["odd"] = {**connections.settings["default"], "ENGINE": "django.db.backends.dummy"}
    connections.settings["typo"] = {**connections.settings["default"], "ENGINE": "no.such.backend"}
    for url, expected in {
        "django://nowhere": "'nowhere' is not in DATABASES, which has 'default'",
        "django://odd": "the database 'odd' is 'unknown', and must be SQLite or PostgreSQL",
        "django://typo": "the database 'typo' cannot be used",
        "django://": "must be 'django://' and an alias of DATABASES",
        "django://default/x": "must be 'django://' and an alias of DATABASES",
        "django://default?lease=auto": "must be 'django://' and an alias of DATABASES",
    }.items():
        error = raised(ConfigurationError, Tier, url)
        assert error.message.startswith(f"TIER_BASE_URL: {expected}")
        assert repr(url) in error.message
    del connections["odd"], connections.settings["odd"], connections.settings["typo"]


def test_outside_of_a_django_project_the_url_says_what_is_missing() -> None:
    program = "from tier_middleware import Tier; Tier('django://default')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "'tier_middleware.django' must be in INSTALLED_APPS" in done.stderr


def test_the_migrations_are_those_of_the_models() -> None:
    call_command("makemigrations", "tier_middleware", check=True, dry_run=True, stdout=StringIO())


def test_they_leave_databases_alone_that_cannot_have_our_tables(lite: str) -> None:
    connections.settings["odd"] = {**connections.settings["default"], "ENGINE": "django.db.backends.dummy"}
    ours = list(apps.get_app_config("tier_middleware").get_models())
    assert len(ours) == 12
    assert all(model._meta.can_migrate(connections[lite]) for model in ours)
    assert not any(model._meta.can_migrate(connections["odd"]) for model in ours)  # as on MySQL and Oracle
    del connections["odd"], connections.settings["odd"]


# ---- event loops ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def looped(lite: str) -> AsyncIterator[str]:
    await sync_to_async(databases.empty)(lite)
    yield lite
    await sync_to_async(lambda: connections[lite].close())()  # of Django's thread


async def test_on_an_event_loop_it_is_asked_in_djangos_thread(looped: str) -> None:
    async with AsyncTier(f"django://{looped}", pricing=PRICING, default_plan="plan:free@1") as tier:
        org = "org:loop"
        async with tier.reserve(org, "feature:x", 3):
            with pytest.raises(LimitReached):
                await tier.reserve(org, "feature:x").__aenter__()
        assert (await tier.lookup_limit(org, "feature:x")).used == 3
        assert len(await tier.history(org, "feature:x")) == 1
        with pytest.raises(OnLoop, match="await AsyncTier"):
            Tier.on(tier.core).can(org, "feature:x")


async def test_a_task_that_is_cancelled_while_it_waits_gives_back_what_it_got(looped: str) -> None:
    core = Tier(f"django://{looped}", pricing=PRICING, default_plan="plan:free@1").core
    await AsyncTier.on(core).open()
    locked, may_go_on = threading.Event(), threading.Event()

    def lock() -> None:
        with transaction.atomic(using=looped):  # IMMEDIATE: for itself
            locked.set()
            may_go_on.wait(30)
        connections[looped].close()

    thread = threading.Thread(target=lock)
    thread.start()
    await asyncio.to_thread(locked.wait, 30)
    tier = AsyncTier.on(core)

    async def work() -> None:
        async with tier.reserve("org:cancelled", "feature:x"):
            raise AssertionError("the block ran")

    task = asyncio.ensure_future(work())
    for _ in range(100):  # until it has come to the thread
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not task.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(thread.join)
    usage = await tier.lookup_limit("org:cancelled", "feature:x")
    assert (usage.used, usage.reserved) == (0, 0)


# ---- test runners ---------------------------------------------------------------------------------------------------


def outcome(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


@pytest.mark.parametrize("base", [TestCase, TransactionTestCase])
def test_each_test_of_a_project_begins_with_nothing(alias: str, base: type[TransactionTestCase]) -> None:
    tier = Tier(f"django://{alias}", pricing=PRICING, default_plan="plan:free@1")

    class Uses(base):  # type: ignore[misc, valid-type]  # whichever it is
        databases = {alias}  # noqa: RUF012  # as Django wants it

        def test_sync(self) -> None:
            tier.report("org:a", "feature:x")
            with tier.reserve("org:a", "feature:x"):
                pass
            assert tier.lookup_limit("org:a", "feature:x").used == 2
            if base is TestCase:
                with self.captureOnCommitCallbacks(using=alias) as callbacks:
                    tier.report("org:b", "feature:x")
                assert not callbacks  # those of the project are counted by its tests

        def test_sync_again(self) -> None:
            self.test_sync()

        async def test_async(self) -> None:
            asynchronous = AsyncTier.on(tier.core)
            await asynchronous.report("org:a", "feature:x")
            assert (await asynchronous.lookup_limit("org:a", "feature:x")).used == 1

    result = outcome(Uses)
    assert (result.testsRun, result.errors, result.failures) == (3, [], [])
    tier.close()
    with Tier(f"django://{alias}") as plain:
        assert plain.pull().plans == {}


# ---- work that goes on ----------------------------------------------------------------------------------------------


def test_what_is_held_is_renewed_by_another_thread_and_its_connection_closed(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not what a transaction holds that has not been committed: nobody else can see it."""
    clock = ManualClock(START)
    if connections[alias].vendor == "sqlite":  # whose thread would wait so long for the transaction
        monkeypatch.setitem(connections[alias].settings_dict["OPTIONS"], "timeout", 0.2)
    model = {"plans": {"plan:free@1": {"features": {CALLS: {"tiers": [{"upto": 5}]}}}}}
    with Tier(f"django://{alias}", pricing=model, default_plan="plan:free@1", clock=clock, timeout=0.2) as tier:
        open_before: list[bool] = []

        def look() -> None:
            tier.core.tend()
            open_before.append(connections[alias].connection is not None)

        def looked(seconds: int = 600) -> None:
            clock.advance(timedelta(seconds=seconds))
            looking = threading.Thread(target=look)
            looking.start()
            looking.join()

        with tier.reserve(ACME, CALLS, 2):
            for _ in range(4):
                looked()
            assert tier.lookup_limit(ACME, CALLS).reserved == 2
            with transaction.atomic(using=alias), tier.reserve(ACME, CALLS, 3):
                looked(1200)
                assert tier.lookup_limit(ACME, CALLS).reserved == 0  # of both: SQLite has one writer
        assert tier.lookup_limit(ACME, CALLS).used == 5
        assert open_before == [False] * 5


# ---- moving ---------------------------------------------------------------------------------------------------------

MOVED = [
    b'{"type":"tier_middleware","format":1,"lines":3}',
    b'{"type":"plan","plan":"plan:moved@1","body":{"features":{"feature:x":{"tiers":[{"upto":3}]}}}}',
    b'{"type":"org","org":"org:a","created_ms":1,"changed_ms":1,"phases":'
    b'[{"effective_ms":1,"anchor_ms":1,"features":["plan:moved@1"]}]}',
]


def test_an_import_goes_with_the_transaction_that_it_is_in(alias: str) -> None:
    with Tier(f"django://{alias}") as tier:
        empty = list(tier.export())
        with undone(alias):
            tier.load(MOVED)
            assert tier.lookup_limit("org:a", "feature:x").limit == 3
        assert list(tier.export()) == empty
        with transaction.atomic(using=alias):
            tier.load(MOVED)
        assert len(list(tier.export())) == 3
        tier.report("org:a", "feature:x")
        tier.subscribe("org:b", "plan:moved@1")
        tier.report("org:b", "feature:x", 2)  # a counter of its own, whatever ids the import has given
        assert [tier.lookup_limit(org, "feature:x").used for org in ("org:a", "org:b")] == [1, 2]


def test_an_export_is_no_part_of_the_projects_transaction(bench: Bench, alias: str) -> None:
    with Tier(f"django://{alias}") as tier, transaction.atomic(using=alias):
        bench.use()
        lines = tier.export()
        found = [next(lines)]
        bench.use()
        found += lines
        assert b'"used"' not in b"".join(found), "nobody knows yet whether it will be committed"
    assert bench.used() == 2


async def test_the_async_twin_moves_the_same(alias: str) -> None:
    tier = AsyncTier(f"django://{alias}")
    await tier.load(MOVED)
    assert len([line async for line in tier.export()]) == 3
    await sync_to_async(lambda: connections[alias].close())()
    await tier.aclose()


def test_an_import_waits_for_writers(pg: str) -> None:
    databases.empty(pg)
    with opened(pg, "plan:free@1") as bench, ThreadPoolExecutor(1) as pool:
        tier = Tier(f"django://{pg}", timeout=30)

        def load() -> None:
            tier.load(MOVED, replace=True)
            connections[pg].close()

        with written_by_another(TidyEngine(pg, bench.now_ms), asked_for(bench, 1, 1)):
            waiting = pool.submit(load)
            until("SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'relation' AND NOT granted")
            assert not waiting.done()
        waiting.result()
        assert tier.lookup_limit("org:a", "feature:x").limit == 3
