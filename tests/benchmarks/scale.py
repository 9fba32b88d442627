"""What a full database costs: CPU time of can, reserve and commit among a million orgs, beside a nearly empty one.

    python -m tests.benchmarks.scale [--orgs 1000000 --rows 10000000]

A file is filled in the order in which its rows would have come (one ledger entry for each org in turn), so that its
pages are as full as they would be. Then both databases are asked the same, in one run and in turns, batch by batch:

* hot: the same hundred orgs again and again, as most requests of a process are.
* first: orgs that this process has not met, drawn at random from all; on the small database it is made to forget its
  orgs before each batch. What differs is what is read from further apart in a larger file.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path

from rich.progress import Progress

from tier_middleware.clock import DAY_MS, milliseconds
from tier_middleware.drive import perform
from tier_middleware.engines.ledger import entry_id
from tier_middleware.engines.sqlite import SqliteEngine
from tier_middleware.names import feature_plan
from tier_middleware.ops import Check, Commit, Demand, Granted, Kept, Op, Push, Reserve, Schedule
from tier_middleware.policy import PlannedPhase
from tier_middleware.pricing import read_model

FEATURE = "feature:x"
PLAN = "plan:free@1"
MODEL = read_model({"plans": {PLAN: {"features": {FEATURE: {"tiers": [{"upto": 1_000_000_000}]}}}}})
SMALL_ORGS = 1_000
HOT_ORGS = 100
CHUNK = 50_000  # rows of a step of the progress bar
AGE_MS = 10 * DAY_MS

now_ms = milliseconds(None)
ids = count(1)

SERIES = "WITH RECURSIVE series(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM series WHERE i < ?) "
FILL = {
    "orgs": "INSERT INTO orgs (id, name, created_ms, changed_ms) "
    + SERIES + "SELECT i, 'org:' || i, :start, :start FROM series",
    "phases": "INSERT INTO phases " + SERIES + f"""SELECT i, :start, :start, 0, '["{PLAN}"]' FROM series""",
    "usage": "INSERT INTO usage (id, org_id, feature, plan, start_ms, aggregate) "
    + SERIES + f"SELECT i, i, '{FEATURE}', '{PLAN}', :start, 'sum' FROM series",
    "counters": "INSERT INTO units (usage_id, id, n, limit_units, from_ms, until_ms, at_ms) "
    + SERIES + "SELECT i, 0, :entries, 1000000000, :start, :end, :due FROM series",
    "watched": "INSERT INTO ledger_due " + SERIES + "SELECT '', :due, i FROM series",
    "ledger": "INSERT INTO units (usage_id, id, n, kind, key) "
    + SERIES + "SELECT i, :entry + i % 262144, 1, 0, abs(random()) >> 1 FROM series",
}  # fmt: skip


def opened(path: Path) -> SqliteEngine:
    engine = SqliteEngine(path, now_ms)
    engine.attempt(Push(MODEL, now_ms()))
    return engine


def fill(path: Path, orgs: int, rows: int) -> None:
    """Write orgs, and ledger entries spread evenly over them and over the last ten days, into an empty database."""
    opened(path).close()
    start_ms, rounds = now_ms() - AGE_MS, rows // orgs
    values = {
        "start": start_ms, "end": start_ms + 30 * DAY_MS, "due": start_ms + 400 * DAY_MS, "entries": rounds,
    }  # fmt: skip
    with closing(sqlite3.connect(path, isolation_level=None)) as database, Progress() as progress:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -2000000"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("BEGIN")
        for name in ("orgs", "phases", "usage", "counters", "watched"):
            run(database, progress, name, orgs, FILL[name], values)
        for turn in range(rounds):
            at = {**values, "entry": entry_id(start_ms + turn * AGE_MS // rounds)}
            run(database, progress, f"ledger, {turn + 1} of {rounds}", orgs, FILL["ledger"], at)
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode = WAL")


def run(
    database: sqlite3.Connection, progress: Progress, name: str, orgs: int, statement: str, values: dict[str, int]
) -> None:
    task = progress.add_task(name, total=orgs)
    for first in range(1, orgs + 1, CHUNK):
        last = min(first + CHUNK - 1, orgs)
        series = statement.replace("SELECT ? UNION", "SELECT :first UNION").replace("i < ?", "i < :last")
        database.execute(series, {"first": first, "last": last, **values})
        progress.update(task, completed=last)


class Subject:
    """A database, and what is asked of it. Reservations are committed in the batch after, each by each."""

    def __init__(self, path: Path, orgs: int) -> None:
        self.engine = opened(path)
        self.orgs = orgs
        self.hot = [f"org:{random.randint(1, orgs)}" for _ in range(HOT_ORGS)]

    def close(self) -> None:
        self.engine.close()

    def drawn(self, case: str, size: int) -> list[str]:
        if case == "hot":
            return [random.choice(self.hot) for _ in range(size)]
        self.engine._statements._places.clear()  # what this process has met
        return [f"org:{random.randint(1, self.orgs)}" for _ in range(size)]

    def batch(self, case: str, size: int) -> dict[str, float]:
        """Microseconds of CPU for one of each operation."""
        at_ms, demand = now_ms(), (Demand(FEATURE, 1),)
        checks = [Check(org, demand[0], at_ms) for org in self.drawn(case, size)]
        taken = {"can": self.taken(checks)[0]}
        reserves = [Reserve(org, demand, (next(ids),), at_ms, at_ms + 900_000) for org in self.drawn(case, size)]
        taken["reserve"], granted = self.taken(reserves)
        kept = [Kept(reply.holds[0], 1) for reply in granted if isinstance(reply, Granted) and reply.holds[0]]
        assert len(kept) == size, "not every reservation was granted"
        taken["commit"], _ = self.taken([Commit((one,), at_ms) for one in kept])
        return taken

    def taken(self, ops: Sequence[Op[object]]) -> tuple[float, list[object]]:
        started = time.process_time()
        replies = [perform(op, self.engine, 30) for op in ops]  # a checkpoint of a thread may be in the way
        return (time.process_time() - started) / len(ops) * 1e6, replies


def small(path: Path) -> None:
    engine = opened(path)
    for n in range(1, SMALL_ORGS + 1):
        engine.attempt(Schedule(f"org:{n}", (PlannedPhase(None, (feature_plan(PLAN),)),), now_ms()))
    engine.close()


def measured(paths: dict[str, tuple[Path, int]], rounds: int, size: int) -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for case in ("hot", "first"):
        subjects = {name: Subject(path, orgs) for name, (path, orgs) in paths.items()}
        for subject in subjects.values():
            for _ in range(3):  # warm
                subject.batch(case, size)
        for _ in range(rounds):
            gc.collect()
            for name in random.sample(list(subjects), len(subjects)):
                for what, microseconds in subjects[name].batch(case, size).items():
                    found.setdefault((name, case, what), []).append(microseconds)
        for subject in subjects.values():
            subject.close()
    return found


def table(found: dict[tuple[str, str, str], list[float]]) -> Iterator[str]:
    yield f"{'us of CPU, median':24}{'empty':>9}{'full':>9}{'ratio':>9}{'p10':>9}{'p90':>9}"
    for case in ("hot", "first"):
        for what in ("can", "reserve", "commit"):
            empty, full = found["empty", case, what], found["full", case, what]
            ratios = [one / other for one, other in zip(full, empty, strict=True)]
            deciles = statistics.quantiles(ratios, n=10)
            yield (
                f"{what + ', ' + case:24}{statistics.median(empty):9.1f}{statistics.median(full):9.1f}"
                f"{statistics.median(full) / statistics.median(empty):9.2f}{deciles[0]:9.2f}{deciles[-1]:9.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale")
    parser.add_argument("--orgs", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=10_000_000, help="entries of the ledger, evenly over the orgs")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch", type=int, default=300, help="operations of each kind in a batch")
    parser.add_argument("--file", type=Path, help="fill this file, or use it as it is; default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.file or Path(folder, "full.db")
        if not path.exists():
            started = time.monotonic()
            fill(path, options.orgs, options.rows)
            print(f"filled in {time.monotonic() - started:.0f} s")
        size = path.stat().st_size
        small(Path(folder, "empty.db"))
        paths = {"empty": (Path(folder, "empty.db"), SMALL_ORGS), "full": (path, options.orgs)}
        found = measured(paths, options.rounds, options.batch)
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, "
          f"{options.rounds} rounds of {options.batch} operations")  # fmt: skip
    print(f"empty: {SMALL_ORGS:,} orgs; full: {options.orgs:,} orgs, {options.rows:,} entries, {size / 2**20:,.0f} "
          f"MiB: {size / options.orgs:,.0f} bytes an org with {options.rows // options.orgs} entries")  # fmt: skip
    for line in table(found):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
