"""The embedded engine: what every engine must do, and what only a file that processes share can suffer."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import count, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest
from forking import no_more_threads

from tier_middleware import AsyncTier, ConfigurationError, EngineUnavailable, Tier, drive, flow
from tier_middleware.clock import DAY_MS, ManualClock, Milliseconds, milliseconds, milliseconds_of
from tier_middleware.engines import schema
from tier_middleware.engines.ledger import ROLL_UP_EVERY, entry_id
from tier_middleware.engines.sqlite import CHECKPOINT_EVERY, SqliteEngine
from tier_middleware.names import MAX_UNITS
from tier_middleware.ops import (
    Check,
    Commit,
    Committed,
    Demand,
    Hold,
    Kept,
    MakeClock,
    OrgRecord,
    Pull,
    Push,
    ReadChanges,
    Record,
    Recorded,
    Release,
)
from tier_middleware.orginfo import NO_INFO, OrgInfo
from tier_middleware.policy import KEY_LIFETIME_MS
from tier_middleware.testing.bench import (
    ACME,
    CALLS,
    DISK,
    MAILS,
    MODEL,
    SEATS,
    START,
    Bench,
    planned,
    raised,
    together,
)
from tier_middleware.testing.conformance import EngineConformance


class TestSqliteEngine(EngineConformance):
    @pytest.fixture(autouse=True)
    def _in_folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "tier.db"

    def engine(self, now_ms: Milliseconds) -> SqliteEngine:
        return SqliteEngine(self.path, now_ms)


class TestSqliteEngineThatSurvivesPowerCuts(EngineConformance):
    """The same with ``?synchronous=full``."""

    @pytest.fixture(autouse=True)
    def _in_folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "tier.db"

    def engine(self, now_ms: Milliseconds) -> SqliteEngine:
        return SqliteEngine(self.path, now_ms, synchronous="full")


@contextmanager
def opened(path: Path, *features: str) -> Iterator[Bench]:
    """The model, org:acme on these features, and a clock that stands at START."""
    clock = ManualClock(START)
    bench = Bench(SqliteEngine(path, milliseconds(clock)), clock)
    bench.do(Push(MODEL, bench.now_ms()))
    if features:
        bench.subscribe(ACME, *features)
    yield bench
    bench.engine.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tier.db"


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    with opened(path, "plan:free@1") as bench:
        yield bench


# ---- other processes ------------------------------------------------------------------------------------------------

WORKER = """
import os, sys
from functools import cache
from itertools import count
from pathlib import Path
from tier_middleware import drive
from tier_middleware.clock import ManualClock, milliseconds
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.ops import *
from tier_middleware.testing.bench import *

Bench._ids = count(os.getpid() << 32)  # ids that no other process has

@cache
def bench_of(path):
    clock = ManualClock(START)
    return Bench(SqliteEngine(Path(path), milliseconds(clock)), clock)

WORK
print("ready", flush=True)
for line in sys.stdin:
    print(work(*line.split()), flush=True)
"""


class Workers:
    """Processes that do ``work(*words)`` for each line they are told. The lines let all begin together."""

    def __init__(self, count: int, work: str) -> None:
        script = WORKER.replace("WORK", work)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for _ in range(count)
        ]

    def __enter__(self) -> Self:
        assert [self.answer_of(process) for process in self.processes] == ["ready"] * len(self.processes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.communicate(timeout=30)

    def ask(self, *words: object) -> list[str]:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(" ".join(map(str, words)) + "\n")
        return [self.answer_of(process) for process in self.processes]

    def answer_of(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline().rstrip()


def test_four_processes_of_five_threads_against_a_limit_of_3_are_granted_exactly_3(bench: Bench, path: Path) -> None:
    work = """
def work(path, org):
    replies = together(5, lambda _: bench_of(path).reserve(Demand(CALLS, 1), org=org))
    return sum(isinstance(reply, Granted) for reply in replies)
"""
    with Workers(4, work) as workers:
        for n in range(10):
            org = f"org:{n}"
            bench.subscribe(org, "plan:free@1")
            assert sum(map(int, workers.ask(path, org))) == 3
            assert bench.usage(org=org) == (0, 3)


def test_eight_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    work = """
def work(path):
    drive.open(bench_of(path).engine, 30)
    bench_of(path).do(Push(MODEL, bench_of(path).now_ms()))
    bench_of(path).record(1, default_plan="plan:open@1")
    bench_of(path).engine.close()
    return "ok"
"""
    with Workers(8, work) as workers:
        for n in range(8):
            path = tmp_path / f"{n}.db"
            assert workers.ask(path) == ["ok"] * 8
            with opened(path) as bench:
                assert bench.used() == 8


def test_who_follows_misses_no_change_of_four_processes(bench: Bench, path: Path) -> None:
    work = """
def work(path, pid):
    for n in range(50):
        bench_of(path).subscribe(f"org:{os.getpid()}:{n}", "plan:free@1")
    return os.getpid()
"""
    cursor, seen = bench.do(ReadChanges()).cursor, set[str]()
    is_over = threading.Event()

    def follow(_: int) -> None:
        nonlocal cursor
        is_last = False
        while not is_last:
            is_last = is_over.is_set()  # looked at before the last question
            found = bench.do(ReadChanges(cursor))
            assert not found.is_everything
            seen.update(found.orgs)
            cursor = found.cursor

    def change(_: int) -> list[str]:
        try:
            return workers.ask(path, 0)
        finally:
            is_over.set()

    with Workers(4, work) as workers:
        _, pids = sorted(
            together(2, lambda index: (follow, change)[index](index)), key=lambda answer: answer is not None
        )
    assert pids is not None
    assert seen == {f"org:{pid}:{n}" for pid in pids for n in range(50)}


def test_an_import_is_a_change_of_everybody(bench: Bench, path: Path) -> None:
    cursor = bench.do(ReadChanges()).cursor
    engine = bench.engine
    assert isinstance(engine, SqliteEngine)
    _, *lines = engine.export()
    engine.load(lines, replace=True)
    found = bench.do(ReadChanges(cursor))
    assert found.is_everything
    assert bench.do(ReadChanges(found.cursor)).orgs == ()


def test_a_restart_finds_everything(path: Path) -> None:
    with opened(path, "plan:free@1") as bench:
        bench.use(n=2)
        hold = bench.hold()
        bench.record(1, key="k")
    with opened(path) as bench:
        assert bench.usage() == (3, 1)
        assert bench.commit(hold) == Committed(over=1)
        assert bench.commit(hold) == Committed()
        assert bench.record(1, key="k") == Recorded(is_new=False)
        assert bench.usage() == (4, 0)


def test_two_engines_on_one_file_see_each_other_at_once(path: Path) -> None:
    with opened(path, "plan:free@1") as one, opened(path) as other:
        hold = one.hold(n=2)
        other.use()
        other.subscribe(ACME, "plan:pro@1")
        one.hold(n=10)
        other.refusal()
        assert other.commit(hold) == Committed()
        other.subscribe(ACME, "plan:free@1")
        one.refusal()


KILLED = """
def work(path):
    bench = bench_of(path)
    while True:
        bench.use()
        print("counted", flush=True)
"""


def test_what_a_killed_process_had_committed_is_there(path: Path) -> None:
    with opened(path, "plan:open@1") as bench:
        for killed in range(1, 4):
            bench.record(0, clobber=True)
            with Workers(1, KILLED) as workers:
                (process,) = workers.processes
                assert workers.ask(path) == ["counted"]
                for _ in range(200):
                    workers.answer_of(process)
                process.send_signal(signal.SIGKILL)
                assert process.stdout is not None
                rest = process.stdout.read()
            counted = 201 + rest.count("counted")
            used, reserved = bench.usage()
            assert counted <= used <= counted + 1  # one may have been counted and not yet told
            assert sum(part.n for part in bench.sums(timedelta(days=365))) == used
            assert reserved <= killed  # what each was at when it was killed


def test_a_reservation_of_a_killed_process_comes_back_when_it_expires(bench: Bench, path: Path) -> None:
    work = """
def work(path):
    bench_of(path).hold(n=3, seconds=60)
    return "held"
"""
    with Workers(1, work) as workers:
        assert workers.ask(path) == ["held"]
        workers.processes[0].kill()
        bench.refusal()
        bench.pass_(seconds=60)
        bench.hold(n=3)


def test_a_reservation_that_nobody_settled_is_forgotten_with_its_capacity(path: Path) -> None:
    with opened(path, "plan:yearly@1") as bench:
        late = bench.hold(n=3, seconds=60)
        bench.pass_(seconds=60, milliseconds=KEY_LIFETIME_MS)
        bench.hold(n=3)
        assert bench.commit(late) == Committed()
        assert bench.usage() == (0, 3)


# ---- the ledger -----------------------------------------------------------------------------------------------------


def test_what_is_due_is_rolled_up_a_few_at_a_time(path: Path) -> None:
    def old_entries(until_ms: int) -> int:
        with closing(sqlite3.connect(path)) as database:
            counted = database.execute("SELECT count(*) FROM units WHERE id < ?", (entry_id(until_ms),)).fetchone()
            return int(counted[0])

    with opened(path, "plan:open@1") as bench:
        for _ in range(200):
            bench.use()
        bench.pass_(days=401)
        left = [old_entries(bench.now_ms())]
        for _ in range(110):
            bench.use()
            left.append(old_entries(bench.now_ms()))
        assert (left[0], left[-1]) == (200, 0)
        assert max(before - after for before, after in pairwise(left)) == 2 * ROLL_UP_EVERY
        assert sum(entry.change.n for entry in bench.entries()) == 310


def test_a_counter_that_rests_and_is_used_again_is_rolled_up_again(path: Path) -> None:
    clock = ManualClock(START)
    bench = Bench(SqliteEngine(path, milliseconds(clock), ledger_days=1), clock)
    bench.do(Push(MODEL, bench.now_ms()))
    bench.subscribe(ACME, f"{SEATS}@plan:team@1", "plan:yearly@1")
    for _ in range(4):
        hold = bench.hold(CALLS, 0)  # commits need no look at who is due
        bench.record(1, SEATS)
        bench.commit(hold, 0)
        bench.pass_(days=3)
        for _ in range(3 * ROLL_UP_EVERY):
            bench.record(1, MAILS, org="org:other", default_plan="plan:free@1")
        for feature in (SEATS, CALLS):
            assert {entry.change.kind for entry in bench.entries(feature)} == {"day"}
    bench.engine.close()


def test_sums_of_days_may_be_larger_than_sqlite_can_count(path: Path) -> None:
    with opened(path, "plan:open@1") as bench:
        for _ in range(3):
            bench.record(MAX_UNITS, clobber=True, at=START)
            bench.pass_(days=2)
            bench.record(0, clobber=True)
        bench.pass_(days=410)
        for _ in range(40):
            bench.record(0)
        sums = bench.sums(timedelta(days=1), until=START + timedelta(days=9))
        assert [part.n for part in sums][:1] == [3 * MAX_UNITS]
        assert sum(part.n for part in sums) == 0


def test_two_processes_that_commit_in_the_same_millisecond_leave_an_entry_each(bench: Bench, path: Path) -> None:
    work = """
def work(path):
    bench = bench_of(path)
    for _ in range(200):
        bench.use(org="org:both")
    return "done"
"""
    bench.subscribe("org:both", "plan:open@1")
    with Workers(3, work) as workers:  # their clocks stand still, at the same time
        assert workers.ask(path) == ["done"] * 3
    entries = bench.entries(org="org:both")
    assert len({entry.change.key for entry in entries}) == len(entries) == bench.used(org="org:both") == 600


# ---- files that cannot be opened ------------------------------------------------------------------------------------


def missing_folder(path: Path) -> None:
    path.parent.rmdir()


def folder(path: Path) -> None:
    path.mkdir()


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("no folder")


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, whatever its name says " * 100)


def truncated(path: Path) -> None:
    with opened(path, "plan:free@1"):
        pass
    os.truncate(path, path.stat().st_size // 2)


def damaged(path: Path) -> None:
    with opened(path, "plan:free@1"):
        pass
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xa5" * 924 + content[1024:])


def newer(path: Path) -> None:
    with opened(path, "plan:free@1"):
        pass
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()


def of_another_application(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE usage (id INTEGER PRIMARY KEY, used INTEGER)")
    database.execute("INSERT INTO usage (used) VALUES (7)")
    database.commit()
    database.close()


def of_another_application_with_a_log(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE notes (text)")
    database.commit()
    database.close()


def empty_but_marked_by_another_application(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 1")
    database.close()


UNOPENABLE = (
    missing_folder,
    folder,
    below_a_file,
    garbage,
    truncated,
    damaged,
    newer,
    of_another_application,
    of_another_application_with_a_log,
    empty_but_marked_by_another_application,
)


@pytest.fixture(params=UNOPENABLE, ids=lambda make: make.__name__)
def unopenable(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / "folder" / "tier.db"
    path.parent.mkdir()
    request.param(path)
    return path


def test_a_file_that_cannot_be_opened_is_a_mistake_in_the_configuration_that_names_it(unopenable: Path) -> None:
    before = contents(unopenable)
    tier = Tier(f"sqlite:///{unopenable}")
    for call in (tier.open, lambda: tier.can(ACME, CALLS), lambda: tier.report(ACME, CALLS)):
        error = raised(ConfigurationError, call)
        assert repr(str(unopenable)) in error.message
        assert error.path == "TIER_BASE_URL"
    tier.close()
    assert contents(unopenable) == before


async def test_nor_does_it_open_for_async_callers(unopenable: Path) -> None:
    tier = AsyncTier(f"sqlite:///{unopenable}")
    with pytest.raises(ConfigurationError, match=r"tier\.db"):
        await tier.open()
    with pytest.raises(ConfigurationError, match=r"tier\.db"):
        await tier.can(ACME, CALLS)
    await tier.aclose()


def contents(path: Path) -> dict[str, bytes]:
    """All files in the folder of a database: nothing may be left behind beside a foreign one."""
    folder = path.parent
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} if folder.is_dir() else {}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody may write, not even root")
def test_a_folder_in_which_nobody_may_write_is_a_mistake_in_the_configuration() -> None:
    error = raised(ConfigurationError, Tier("sqlite:////proc/tier.db").open)
    assert "'/proc/tier.db'" in error.message


def test_a_file_that_this_user_may_not_write_is_a_mistake_in_the_configuration(path: Path) -> None:
    with opened(path, "plan:free@1"):
        pass
    path.chmod(0o444)
    for folder in path.parents:
        if folder.stat().st_mode & 0o007 == 0:  # as pytest makes them: for their owner
            folder.chmod(0o777)

    def answer() -> str:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return repr(raised(ConfigurationError, Tier(f"sqlite:///{path}").open).message)

    assert repr(str(path)) in in_child(answer)


def test_a_file_that_could_not_be_opened_opens_once_that_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "tier.db"
    tier = Tier(f"sqlite:///{path}", pricing=MODEL, default_plan="plan:free@1")
    raised(ConfigurationError, tier.open)
    path.parent.mkdir()
    assert tier.can(ACME, CALLS).ok
    tier.close()


def test_damage_that_is_found_later_is_a_mistake_in_the_configuration_too(bench: Bench, path: Path) -> None:
    bench.engine.close()
    database = sqlite3.connect(path)
    (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'phases'").fetchone()
    database.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 1024)
        file.write(b"\xa5" * 1024)
    with Tier(f"sqlite:///{path}") as tier:  # nobody looks at that page
        assert str(path) in raised(ConfigurationError, tier.can, ACME, CALLS).message
        with pytest.raises(ConfigurationError), tier.reserve(ACME, CALLS):
            pass


def test_a_file_that_was_deleted_while_closed_begins_anew(bench: Bench, path: Path) -> None:
    bench.use(n=2)
    bench.engine.close()
    path.unlink()
    bench.do(Push(MODEL, bench.now_ms()))
    bench.subscribe("org:first", "plan:pro@1")
    bench.use(n=1, org="org:first")  # its usage is where that of org:acme was
    assert bench.refusal().code == "org_not_found"
    assert bench.usage(org="org:first") == (1, 0)
    with opened(path) as other:
        assert other.usage(org="org:first") == (1, 0)
        assert dict(other.do(Pull()).plans) == dict(MODEL.plans)


# ---- other writers --------------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Another program writes; what it yields ends that."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    def unlock() -> None:
        other.execute("ROLLBACK")

    yield unlock
    other.close()


def writes(bench: Bench) -> list[Any]:
    hold, other = bench.hold(), bench.hold()
    now_ms = bench.now_ms()
    return [
        Commit((Kept(hold, 1),), now_ms),
        Release((other,), now_ms),
        Record(ACME, CALLS, 1, "k", now_ms),
        Check("org:new", Demand(CALLS, 1), now_ms, "plan:free@1"),
    ]


def test_a_lock_that_is_held_longer_than_the_timeout_makes_the_engine_unavailable(bench: Bench, path: Path) -> None:
    operations = writes(bench)
    before = bench.everything(ACME)
    with locked(path):
        for op in operations:
            raised(EngineUnavailable, drive.perform, op, bench.engine, 0.01)
        assert bench.everything(ACME) == before  # readers do not wait


async def test_a_lock_that_is_held_too_long_makes_it_unavailable_to_tasks(bench: Bench, path: Path) -> None:
    operations = writes(bench)
    with locked(path):
        for op in operations:
            with pytest.raises(EngineUnavailable):
                await drive.aperform(op, bench.engine, 0.01)


def test_a_lock_that_ends_within_the_timeout_is_waited_for(bench: Bench, path: Path) -> None:
    for op in writes(bench):
        with locked(path) as unlock:
            timer = threading.Timer(0.02, unlock)
            timer.start()
            drive.perform(op, bench.engine, 30)
            timer.join()
    assert bench.usage() == (2, 0)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_that_waits_for_a_lock_lets_others_run(bench: Bench, path: Path, backend: str) -> None:
    ticks: list[int] = []

    async def tick_then(unlock: Callable[[], None]) -> None:
        for n in range(20):
            await anyio.sleep(0.001)
            ticks.append(n)
        unlock()

    async def main() -> None:
        for op in writes(bench):
            ticks.clear()
            with locked(path) as unlock:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(tick_then, unlock)
                    await drive.aperform(op, bench.engine, 30)
                    assert len(ticks) == 20

    anyio.run(main, backend=backend)
    assert bench.usage() == (2, 0)


def test_opening_waits_for_others_that_write(path: Path) -> None:
    with opened(path, "plan:free@1"), locked(path) as unlock:
        timer = threading.Timer(0.02, unlock)
        timer.start()
        tier = Tier(f"sqlite:///{path}", pricing=MODEL)
        tier.open()
        timer.join()
        tier.close()


def test_an_engine_that_is_locked_too_long_while_it_opens_is_away_and_not_misconfigured(path: Path) -> None:
    new = {"plans": {"plan:new@1": {"features": {"feature:x": {}}}}}
    with opened(path, "plan:free@1"), locked(path):
        tier = Tier(f"sqlite:///{path}", pricing=new, timeout=0.01)
        raised(EngineUnavailable, tier.open)
        assert isinstance(tier.can(ACME, CALLS).err, EngineUnavailable)
        tier.close()


def test_a_start_that_has_nothing_to_push_waits_for_nobody(path: Path) -> None:
    with opened(path, "plan:free@1"), locked(path):
        tier = Tier(f"sqlite:///{path}", pricing=MODEL, timeout=0.01)
        tier.open()
        assert "plan:free@1" in tier.pull().plans
        tier.close()


def test_many_that_want_it_open_wait_together_and_not_one_after_the_other(path: Path) -> None:
    new = {"plans": {"plan:new@1": {"features": {"feature:x": {}}}}}
    with opened(path, "plan:free@1"), locked(path):
        tier = Tier(f"sqlite:///{path}", pricing=new, timeout=0.2)
        begun = time.monotonic()
        together(20, lambda _: tier.can(ACME, CALLS))
        assert time.monotonic() - begun < 10 * 0.2
        assert tier.counts["fail_open"] == 20
        tier.close()


def test_a_file_that_is_replaced_under_an_open_engine_is_never_written_as_if_it_were_the_old_one(path: Path) -> None:
    with opened(path, "plan:free@1") as bench:
        bench.use()
        engine = bench.engine
        assert isinstance(engine, SqliteEngine)
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        with opened(path, "plan:free@1") as other:
            other.subscribe("org:bob", "plan:free@1")
            taken = engine._take()  # as another thread would: the next one needs a connection of its own
            for _ in range(2):
                error = raised(ConfigurationError, bench.hold)
                assert str(path) in error.message
            engine._give_back(taken)
            assert other.usages("org:bob")[CALLS].used == 0
        engine.close()
        bench.subscribe(ACME, "plan:free@1")  # restarted: it is the file that is there now
        assert bench.used() == 0


# ---- tasks that are cancelled while they wait -----------------------------------------------------------------------

Finish = Callable[[], Awaitable[object]]


def finishing(bench: Bench) -> tuple[Finish, Hold]:
    hold = bench.hold()
    return lambda: drive.aperform(Commit((Kept(hold, 1),), bench.now_ms()), bench.engine, 30), hold


async def test_a_cancelled_task_still_commits(bench: Bench, path: Path) -> None:
    finish, _ = finishing(bench)
    with locked(path) as unlock:
        task = asyncio.ensure_future(finish())
        for _ in range(3):
            await asyncio.sleep(0.002)
            task.cancel()
        await asyncio.sleep(0.002)
        assert not task.done()
        unlock()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
    assert bench.usage() == (1, 0)


async def test_a_timeout_of_asyncio_lets_it_commit_and_strikes_inside_its_own_block(bench: Bench, path: Path) -> None:
    finish, _ = finishing(bench)
    with locked(path) as unlock:
        asyncio.get_running_loop().call_later(0.02, unlock)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await finish()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # no cancellation comes afterwards
    assert bench.usage() == (1, 0)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_scope_lets_it_commit(bench: Bench, path: Path, backend: str) -> None:
    finish, _ = finishing(bench)

    async def unlock_soon(unlock: Callable[[], None]) -> None:
        await anyio.sleep(0.02)
        unlock()

    async def main() -> None:
        with locked(path) as unlock:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(unlock_soon, unlock)
                with anyio.move_on_after(0.005) as scope:
                    await finish()
                    await anyio.sleep(30)
                assert scope.cancelled_caught
                await anyio.lowlevel.checkpoint()

    anyio.run(main, backend=backend)
    assert bench.usage() == (1, 0)


async def test_a_cancelled_task_still_commits_and_releases_all_that_its_flow_has(bench: Bench, path: Path) -> None:
    kept, released = bench.hold(), bench.hold()
    record = Record(ACME, CALLS, 1, "k", bench.now_ms())
    steps = flow.settle(flow.Settlement((Kept(kept, 1),), (released,), (record,)), lambda make: make(bench.now_ms()))
    with locked(path) as unlock:
        task = asyncio.ensure_future(drive.arun(steps, bench.engine, 30))
        await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.sleep(0.002)
        unlock()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert bench.usage() == (2, 0)


async def test_a_cancelled_task_that_waits_to_reserve_ends_at_once_and_holds_nothing(bench: Bench, path: Path) -> None:
    tier = AsyncTier(f"sqlite:///{path}")
    assert (await tier.can(ACME, CALLS)).ok
    with locked(path):
        task = asyncio.ensure_future(tier.reserve(ACME, CALLS).__aenter__())
        await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await tier.aclose()
    assert bench.usage() == (0, 0)


# ---- forks ----------------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> str:
    """What a forked child answers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = str(work())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


def test_parent_and_child_work_on_after_a_fork(bench: Bench, path: Path) -> None:
    bench.use()
    hold = bench.hold()

    def child() -> object:
        Bench._ids = count(os.getpid() << 32)  # ids that its parent has not
        bench.commit(hold)
        bench.hold()
        return bench.usage()

    assert in_child(child) == "(2, 1)"
    bench.refusal()
    assert bench.commit(hold) == Committed()
    assert bench.usage() == (2, 1)


def test_parent_and_children_that_race_after_a_fork_are_granted_exactly_the_limit(bench: Bench) -> None:
    script = """
def work(path):
    bench = bench_of(path)
    bench.subscribe("org:a", "plan:open@1")
    bench.subscribe(ACME, "plan:free@1")
    done = []
    stop = []

    def busy():
        while not stop:
            bench.use(org="org:a")
            done.append(1)

    import threading
    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    children, granted = [], 0
    for n in range(6):
        while len(done) < 50 * (n + 1):
            bench.use(org="org:a")
            done.append(1)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            Bench._ids = count(os.getpid() << 32)
            for _ in range(30):
                bench.use(org="org:a")
            os.write(writer, b"g" if isinstance(bench.reserve(Demand(CALLS, 1)), Granted) else b"r")
            bench.engine.close()
            os._exit(0)
        os.close(writer)
        children.append((child, reader))
        granted += isinstance(bench.reserve(Demand(CALLS, 1)), Granted)
    for child, reader in children:
        granted += os.read(reader, 1) == b"g"
        os.waitpid(child, 0)
    stop.append(1)
    for thread in threads:
        thread.join()
    return f"{granted} {bench.used(org='org:a') - len(done) - 6 * 30}"
"""
    with Workers(1, script) as workers:
        assert isinstance(bench.engine, SqliteEngine)
        assert workers.ask(bench.engine.path) == ["3 0"]


# ---- the file -------------------------------------------------------------------------------------------------------


def test_the_log_stays_bounded_and_checkpoints_lose_nothing(path: Path) -> None:
    log = path.with_name("tier.db-wal")
    largest = 0
    with opened(path, "plan:open@1") as bench:
        for n in range(10_000):
            bench.use()
            if n % 100 == 0:
                largest = max(largest, log.stat().st_size)
        assert bench.usage() == (10_000, 0)
    assert largest < 16 * 2**20  # 9 on an idle machine; 24 if nothing were ever moved
    assert not log.exists()
    with opened(path) as bench:
        assert bench.usage() == (10_000, 0)


def test_a_thread_that_cannot_be_started_fails_no_commit(bench: Bench) -> None:
    bench.engine._commits = CHECKPOINT_EVERY - 1
    with no_more_threads():
        bench.use()
    assert bench.usage() == (1, 0)
    assert not bench.engine._checkpointing.locked()  # so that the next one can


def test_a_log_that_was_moved_is_begun_again_by_the_thread_that_moved_it(bench: Bench, path: Path) -> None:
    """The first transaction of a log waits for the disk, on whatever thread it is."""
    log = path.with_name("tier.db-wal")

    def beginnings() -> int:  # https://www.sqlite.org/walformat.html: the checkpoint sequence number
        with log.open("rb") as file:
            return int.from_bytes(file.read(16)[12:], "big")

    with closing(sqlite3.connect(path)) as other:  # else the import's connection is the last, which deletes the log
        other.execute("SELECT * FROM sqlite_master").fetchall()
        bench.use()
        before = beginnings()
        bench.engine.load([])  # the end of an import moves the log
        deadline = time.monotonic() + 20
        while beginnings() == before:
            assert time.monotonic() < deadline
            threading.Event().wait(0.002)
        bench.use()
        assert beginnings() == before + 1
        assert bench.usage() == (2, 0)


def test_a_new_file_has_small_pages_and_a_log(bench: Bench, path: Path) -> None:
    bench.use()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA page_size").fetchone() == (1024,)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


# ---- files of earlier versions --------------------------------------------------------------------------------------


LEDGER_VERSION = schema.MIGRATIONS.index(schema.LEDGER) + 1  # the first with entries


def version_of(path: Path) -> int:
    database = sqlite3.connect(path)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    database.close()
    return int(version)


def brought_back(newest: Path, path: Path, version: int) -> None:
    """Make a file as an earlier version would have written it, of what a file of today holds."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for migration in schema.MIGRATIONS[:version]:
            database.executescript(migration)
        database.execute("ATTACH ? AS newest", (str(newest),))
        tables = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        for (table,) in database.execute(tables).fetchall():
            columns = ", ".join(row[1] for row in database.execute(f"PRAGMA main.table_info({table})"))
            rows = "WHERE id >= 0" if table == "units" and version < LEDGER_VERSION else ""
            database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newest.{table} {rows}")
        database.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {version}")


@pytest.fixture(params=range(1, len(schema.MIGRATIONS)))
def old(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> Hold:
    """A file of an earlier version, with usage, a reservation that is still open, and a phase to come."""
    with opened(tmp_path / "newest.db", "plan:free@1") as bench:
        bench.schedule(planned("plan:pro@1", at=START + timedelta(days=1)))
        bench.use(n=1)
        bench.record(1, MAILS, key="k")
        hold = bench.hold(n=2)
    brought_back(tmp_path / "newest.db", path, request.param)
    assert version_of(path) == request.param
    return hold


def assert_nothing_is_lost(bench: Bench, hold: Hold) -> None:
    assert (bench.usage(), bench.usage(MAILS)) == ((1, 2), (1, 0))
    assert bench.record(1, MAILS, key="k") == Recorded(is_new=False)
    assert bench.commit(hold) == Committed()
    bench.refusal()
    assert [phase.trial for phase in bench.phases()] == [False, False]
    assert dict(bench.do(Pull()).plans) == dict(MODEL.plans)


def test_a_file_of_an_earlier_version_keeps_everything_and_learns_the_rest(old: Hold, path: Path) -> None:
    with opened(path) as bench:
        assert version_of(path) == len(schema.MIGRATIONS)
        assert bench.described() == OrgRecord(bench.now_ms(), NO_INFO)
        assert_nothing_is_lost(bench, old)
        cursor = bench.do(ReadChanges()).cursor
        bench.update(name="Acme")
        bench.subscribe("org:b", "plan:free@1")
        assert bench.do(ReadChanges(cursor)).orgs == ("org:b",)
    with opened(path) as bench:
        assert bench.described().info == OrgInfo(name="Acme")
        assert bench.usage() == (3, 0)
        first, last = (entry.change for entry in bench.entries())
        assert (first.n, last.n, last.key) == (1, 2, old.id)


def test_what_was_used_before_the_ledger_is_the_sum_of_a_day(path: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "newest.db", "plan:open@1", "plan:team@1") as bench:
        bench.use(n=2)
        bench.record(MAX_UNITS - 2)
        bench.pass_(days=40)
        bench.record(5)
        bench.record(3, SEATS)
        bench.record(0, DISK)
        now_ms = bench.now_ms()
    brought_back(tmp_path / "newest.db", path, 3)
    with opened(path) as bench:
        bench.pass_(days=40)
        bench.use(n=1)
        bench.use(SEATS, 2)
        start_ms = milliseconds_of(START, "START")
        first_ms = start_ms - start_ms % DAY_MS
        changes = [(entry.change.kind, entry.change.n, entry.change.at_ms) for entry in bench.entries()]
        (period_ms,) = {entry.start_ms for entry in bench.entries()} - {start_ms}
        assert changes == [
            ("day", MAX_UNITS, first_ms),
            ("day", 5, period_ms - period_ms % DAY_MS),
            ("commit", 1, now_ms),
        ]
        assert [(entry.change.n, entry.change.at_ms) for entry in bench.entries(SEATS)] == [(3, first_ms), (-1, now_ms)]
        assert bench.entries(DISK) == []


def test_what_lived_under_a_clock_before_the_ledger_ages_by_that_clock(path: Path, tmp_path: Path) -> None:
    here = f"clock_1/{ACME}"
    with opened(tmp_path / "newest.db", "plan:open@1") as bench:
        bench.do(MakeClock("clock_1", "rehearsal", bench.now_ms()))
        bench.subscribe(here, "plan:open@1")
        bench.use()
        bench.use(org=here)
    brought_back(tmp_path / "newest.db", path, 3)
    with opened(path) as bench:
        bench.use(org=here)
        bench.pass_(days=401)
        for _ in range(40):
            bench.use()
        assert [entry.change.kind for entry in bench.entries(org=here)] == ["day", "commit"]
        for _ in range(40):
            bench.use(org=here)
        day, *later = (entry.change for entry in bench.entries(org=here))
        assert (day.kind, day.n) == ("day", 2)
        assert {change.n for change in later} == {1}


def test_a_migrated_file_has_the_tables_of_a_new_one(old: Hold, path: Path, tmp_path: Path) -> None:
    for other in (path, tmp_path / "new.db"):
        with opened(other):
            pass

    def tables(path: Path) -> list[tuple[str, list[Any]]]:
        database = sqlite3.connect(path)
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master ORDER BY name")]
        found = [(name, database.execute(f"PRAGMA table_info({name})").fetchall()) for name in names]
        database.close()
        return found

    assert tables(path) == tables(tmp_path / "new.db")


def test_eight_processes_may_open_an_old_file_at_once(old: Hold, path: Path, tmp_path: Path) -> None:
    work = """
def work(path):
    bench = bench_of(path)
    drive.open(bench.engine, 30)
    bench.update(metadata={str(os.getpid()): "here"})
    bench.engine.close()
    return "ok"
"""
    with Workers(8, work) as workers:
        for n in range(8):
            copy = tmp_path / f"{n}.db"
            copy.write_bytes(path.read_bytes())
            assert workers.ask(copy) == ["ok"] * 8
            assert version_of(copy) == len(schema.MIGRATIONS)
            with opened(copy) as bench:
                assert len(bench.described().info.metadata) == 8
                assert_nothing_is_lost(bench, old)


def test_a_file_may_be_migrated_while_another_process_has_it_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines are updated one after the other: what has the file open already goes on."""
    work = """
def work(path):
    bench_of(path).record(1, MAILS)
    bench_of(path).subscribe(f"org:{os.getpid()}", "plan:free@1")
    return bench_of(path).used(MAILS)
"""
    with opened(path, "plan:free@1"), Workers(1, work) as workers:
        assert workers.ask(path) == ["1"]
        later = "ALTER TABLE orgs ADD COLUMN later TEXT NOT NULL DEFAULT ''"
        monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, later))
        with opened(path) as bench:
            assert version_of(path) == len(schema.MIGRATIONS)
            bench.update(name="Acme")
            assert workers.ask(path) == ["2"]
            assert bench.used(MAILS) == 2
            assert bench.described(f"org:{workers.processes[0].pid}").info == NO_INFO


def test_a_migration_that_fails_half_way_leaves_the_file_as_it_was(
    old: Hold, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = version_of(path)
    with monkeypatch.context() as patched:
        broken = f"{schema.MIGRATIONS[version]}; INSERT INTO nowhere VALUES (1)"
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS[:version], broken))
        raised(EngineUnavailable, drive.open, SqliteEngine(path, milliseconds(ManualClock(START))), 1)
    assert version_of(path) == version
    with opened(path) as bench:
        assert_nothing_is_lost(bench, old)


@pytest.mark.parametrize("option", ["", "?synchronous=normal", "?synchronous=full"])
def test_options_that_exist_are_accepted(path: Path, option: str) -> None:
    with Tier(f"sqlite:///{path}{option}", pricing=MODEL, default_plan="plan:free@1") as tier:
        with tier.reserve(ACME, CALLS):
            pass
        assert tier.lookup_limit(ACME, CALLS).used == 1
    assert path.exists()


@pytest.mark.parametrize("option", ["bogus=1", "synchronous=off", "synchronous=", "timeout=3"])
def test_options_that_do_not_exist_are_refused(path: Path, option: str) -> None:
    error = raised(ConfigurationError, Tier, f"sqlite:///{path}?{option}")
    assert option.partition("=")[0] in error.message
    assert not path.exists()


CARELESS = """
import gc, sys
from tier_middleware import Tier

def uses(tier):
    tier.lookup_org("org:acme")

kept, dropped = Tier(sys.argv[1]), Tier(sys.argv[1])
uses(kept)
uses(dropped)
del dropped
gc.collect()
"""


@pytest.mark.skipif(sys.version_info < (3, 13), reason="older Pythons say nothing of connections that nobody closed")
def test_a_program_that_closes_nothing_is_not_warned_of_it(path: Path) -> None:
    """As those have it whose server has no lifespan, or whose tests do not ask for it."""
    with Tier(f"sqlite:///{path}", pricing=MODEL) as tier:
        tier.subscribe(ACME, "plan:free@1")
    command = [sys.executable, "-X", "dev", "-c", CARELESS, f"sqlite:///{path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "ResourceWarning" not in ended.stderr
