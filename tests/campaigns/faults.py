"""A disk that is full, a database that is locked, damaged or read-only, and clocks that step: each does what the README
says, what is lost is counted and told to ``on_loss``, and nothing else is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

from tier_middleware import ConfigurationError, Tier

from .counter import ORG, Counted, counting
from .world import CALLS, MODEL, NARROW

R = TypeVar("R")
Fault = Callable[[Path, argparse.Namespace], Awaitable[list[str]]]
KIB: Final = 1024
UNPRIVILEGED: Final = 65534


# ---- a disk that is full ---------------------------------------------------------------------------------------------


@contextmanager
def limited_files(path: Path) -> Iterator[None]:
    """No file of this process may grow any more, as under ``RLIMIT_FSIZE``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(path.name + "-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def filled(path: Path) -> Iterator[None]:
    """The file system that the database is on has no room left."""
    filler = path.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        for size in (KIB * KIB, 4 * KIB, KIB, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


BEFORE: Final = 200
IN_FAULT: Final = 8
FITS: Final = 4  # requests that are still counted, on what the file system has given to the log already


async def through_a_full_disk(
    path: Path,
    full: Callable[[Path], AbstractContextManager[None]],
    outbox: Path,
    where: str,
    *,
    lost: tuple[float, float],
) -> list[str]:
    """Requests before, while and after the database cannot grow. ``lost`` is the share of units that may be lost."""
    lines = []
    for on_error in ("deny", "allow"):
        database, successes = path.with_name(f"{on_error}.db"), 0 if on_error == "deny" else IN_FAULT
        async with counting(database, on_error=on_error, outbox=outbox.with_name(f"{on_error}-outbox.db")) as counted:
            assert await counted.call(BEFORE) == {200: BEFORE}
            slow = await counted.begin_slow()
            with full(database):
                counted.go_on.set()
                assert await slow == {200: 1}  # the work was done: its response goes out
                seen = await counted.call(IN_FAULT)
                assert seen[200 if successes else 503] >= IN_FAULT - FITS, seen
                assert seen.keys() <= {200, 503}, seen
                least, most = (share * (1 + successes) for share in lost)
                assert least - FITS <= counted.units_lost <= most, counted.lost
                used = (await counted.tier.lookup_limit(ORG, CALLS)).used  # readers go on
                assert BEFORE <= used <= BEFORE + FITS, used
            assert await counted.call(5) == {200: 5}  # without a restart
            lines.append(f'{where}, on_error="{on_error}": {await counted.balance()}')
    return lines


async def disk_full(path: Path, options: argparse.Namespace) -> list[str]:
    """RLIMIT_FSIZE: writes fail with EFBIG, save to files that are still short."""
    return await through_a_full_disk(path, limited_files, path, "the outbox may grow as long", lost=(0, 1))


@contextmanager
def small_tmpfs(folder: Path) -> Iterator[Path | None]:
    """None where there is none: nobody but root may mount it."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder]
    is_there = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield folder if is_there else None
    finally:
        if is_there:
            subprocess.run(["umount", folder], check=True)


async def tmpfs_full(path: Path, options: argparse.Namespace) -> list[str]:
    """A small tmpfs: writes fail with ENOSPC."""
    lines = []
    for name, lost in {"the outbox is elsewhere": (0, 0), "the outbox has no room either": (1, 1)}.items():
        with small_tmpfs(path.parent / name.replace(" ", "-")) as small:
            if small is None:
                return ["left out: nobody but root may mount a tmpfs"]
            outbox = (small if lost[0] else path.parent) / "outbox.db"
            lines += await through_a_full_disk(small / "tier.db", filled, outbox, name, lost=lost)
    return lines


# ---- a database that cannot be written -------------------------------------------------------------------------------


async def read_only(path: Path, options: argparse.Namespace) -> list[str]:
    """The file may not be written by this user."""
    async with counting(path) as counted:
        await counted.call(3)
        balance = await counted.balance()
    protect(path)
    at_start = in_a_process(opened_read_only, path)
    assert "cannot be written" in at_start, at_start
    return [f"before: {balance}", f"at start: {at_start}"]


def protect(path: Path) -> None:
    """Nobody may write the file, and everybody reach it."""
    path.parent.chmod(0o755)
    for file in path.parent.glob(f"{path.name}*"):
        file.chmod(0o444)


def in_a_process(work: Callable[[Path], R], path: Path) -> R:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, path).result()


def opened_read_only(path: Path) -> str:
    if os.geteuid() == 0:
        os.setgid(UNPRIVILEGED)
        os.setuid(UNPRIVILEGED)
    return asyncio.run(refused_at_start(path))


async def refused_at_start(path: Path) -> str:
    """What the start says; and that no request gets through, whatever ``on_error`` is."""
    async with counting(path, on_error="allow") as counted:
        try:
            await counted.tier.open()
        except ConfigurationError as error:
            assert await counted.call(5) == {503: 5}, counted.statuses
            assert not counted.lost
            return error.message
    raise AssertionError("it opened")


HOLDER: Final = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@asynccontextmanager
async def locked(path: Path) -> AsyncIterator[Callable[[], None]]:
    """Another process holds the write lock, until it is told to let go."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    await holder.stdout.readline()
    try:
        yield holder.stdin.close
    finally:
        holder.stdin.close()
        await holder.wait()


async def lock(path: Path, options: argparse.Namespace) -> list[str]:
    """Another process holds the write lock, for less than ``timeout``, and for longer."""
    lines = []
    seconds = options.locked_seconds
    async with counting(path, timeout=3 * seconds) as counted:
        await counted.call(2)
        async with locked(path) as let_go:
            waiting = [asyncio.create_task(counted.call()) for _ in range(20)]
            slowest = await free_answers(counted, seconds)
            assert not any(task.done() for task in waiting)
            let_go()
            assert all([await task == {200: 1} for task in waiting])
        lines.append(
            f"{seconds} s, timeout {3 * seconds:g} s: {await counted.balance()}; others waited {slowest:.0f} ms"
        )
    for on_error in ("deny", "allow"):
        database = path.with_name(f"{on_error}.db")
        async with counting(database, on_error=on_error, timeout=seconds / 2) as counted:
            await counted.call(2)
            slow = await counted.begin_slow()
            async with locked(database):
                answers = [asyncio.create_task(counted.call()) for _ in range(20)]
                counted.go_on.set()
                slowest = await free_answers(counted, seconds)
                assert sum([await task for task in answers], await slow)[200] == (21 if on_error == "allow" else 1)
            assert await counted.call(2) == {200: 2}
            lines.append(
                f'{seconds} s, timeout {seconds / 2:g} s, on_error="{on_error}": {await counted.balance()}; '
                f"others waited {slowest:.0f} ms"
            )
    return lines


async def free_answers(counted: Counted, seconds: float) -> float:
    """Ask an ungated route all the while: the longest that one of its answers took, in milliseconds."""
    slowest, until = 0.0, time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        assert (await counted.http.get("/free")).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.005)
    return slowest * 1000


# ---- damage ----------------------------------------------------------------------------------------------------------


def spoil(path: Path, offset: int, length: int = 4 * KIB) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * length)


async def damaged_log(path: Path, options: argparse.Namespace) -> list[str]:
    """The write-ahead log of a killed process is damaged: SQLite takes what lies before the damage."""
    with suppress(BrokenProcessPool):  # it ends without ceremony, and leaves its log behind
        in_a_process(count_and_die, path)
    wal = path.with_name(path.name + "-wal")
    spoil(wal, wal.stat().st_size // 2)
    async with counting(path) as counted:
        before = (await counted.tier.lookup_limit(ORG, CALLS)).used
        assert 0 < before < COUNTED_BEFORE, before
        assert await counted.call(5) == {200: 5}
        after = (await counted.tier.lookup_limit(ORG, CALLS)).used
        entries = sum(entry.n for entry in await counted.tier.history(ORG, CALLS))
        assert (after, entries) == (before + 5, before + 5)
        assert not counted.lost
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return [
        f"of {COUNTED_BEFORE} that were counted, {before} lay before the damage; 5 more: {after}; the file is whole"
    ]


COUNTED_BEFORE: Final = 100


def count_and_die(path: Path) -> None:
    tier = Tier(f"sqlite:///{path}", pricing=MODEL, default_plan="plan:wide@1")
    for _ in range(COUNTED_BEFORE):
        tier.report(ORG, CALLS)
    os._exit(0)


async def damaged_database(path: Path, options: argparse.Namespace) -> list[str]:
    """Pages of the database are overwritten while it is open, and its header while it is closed."""
    async with counting(path, on_error="allow") as counted:
        await counted.call(3)
        slow = await counted.begin_slow()
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'units'").fetchone()
        spoil(path, (page - 1) * KIB, KIB)
        while (await counted.call(1))[200]:  # what is in memory is good for a while
            assert counted.statuses[200] < 100
        counted.go_on.set()
        assert await slow == {200: 1}
        assert await counted.call(10) == {503: 10}  # though on_error is "allow": what is damaged never opens a gate
        assert counted.units_lost == 1, counted.lost  # the file that is mended may be another
        lines = [f"while open: {dict(counted.statuses)}, lost {counted.units_lost}"]
    spoil(path, 0, KIB)
    return [*lines, f"at start: {await refused_at_start(path)}"]


# ---- clocks ----------------------------------------------------------------------------------------------------------

STEPS: Final = {
    "an hour back": timedelta(hours=-1),
    "a day back": timedelta(days=-1),
    "40 days back": timedelta(days=-40),
    "an hour ahead": timedelta(hours=1),
    "a day ahead": timedelta(days=1),
}


async def clock_steps(path: Path, options: argparse.Namespace) -> list[str]:
    """The machine's clock steps while requests hold reservations, on limits that are reached."""
    lines = []
    real = time.time_ns
    for name, step in STEPS.items():
        database = path.with_name(name.replace(" ", "-") + ".db")
        try:
            async with counting(database, plan="plan:narrow@1") as counted:
                await counted.call(10)
                slow = await counted.begin_slow()
                time.time_ns = lambda by=step: real() + int(by.total_seconds() * 1e9)
                await counted.call(NARROW)
                counted.go_on.set()
                await slow
                time.time_ns = real
                await counted.call(NARROW)
                usage = await counted.tier.lookup_limit(ORG, CALLS)
                # a reservation that a step made expire leaves its room to others, and still counts, once
                over = counted.tier.counts.get("over_limit.expired", 0)
                assert usage.used == NARROW + over, usage
                assert over <= 1 if step > timedelta(seconds=900) else over == 0, over
                assert counted.statuses[402] == 11 + 2 * NARROW - usage.used
                lines.append(f"{name}: {await counted.balance()}, above the limit {over}")
        finally:
            time.time_ns = real
    return lines


FAULTS: Final[dict[str, Fault]] = {
    "disk-full": disk_full,
    "tmpfs-full": tmpfs_full,
    "read-only": read_only,
    "locked": lock,
    "damaged-log": damaged_log,
    "damaged-database": damaged_database,
    "clock-steps": clock_steps,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fault", choices=FAULTS, action="append", help="default: each of them")
    parser.add_argument("--locked-seconds", type=float, default=10, help="how long the other process holds the lock")


def run(options: argparse.Namespace) -> Iterator[str]:
    for name in options.fault or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            for line in asyncio.run(FAULTS[name](Path(folder) / "tier.db", options)):
                yield f"{name}: {line}"
