"""The outbox: a SQLite file with reports that have not been delivered. Any number of processes may share it.

Increments of one org and feature are added up in one row until it is claimed, so that the file does not grow with the
reports but with the orgs; a row that was claimed once is never added to. An append is one transaction, which survives a
killed process, and never waits: where another process writes it raises `Busy`, and the driver waits in its own colour.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from .. import forks
from ..clock import Milliseconds, monotonic, sleep
from ..engines.sqlite_errors import is_busy, problem_of
from ..errors import ConfigurationError, EngineUnavailable, InvalidRequest, TierError
from ..names import MAX_UNITS
from ..ops import Busy
from ..policy import KEY_LIFETIME_MS
from .batches import Batch, Entry, State, Tally

__all__ = ["Outbox"]

R = TypeVar("R")

APPLICATION_ID: Final = 0x54494F42  # "TIOB"
VERSION: Final = 1
PATIENCE_SECONDS: Final = 5.0  # of the reporter and of people; appends have their driver's
KEYS_AT_ONCE: Final = 8  # that are forgotten with each new one

SCHEMA: Final = """
CREATE TABLE batch (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL DEFAULT (lower(hex(randomblob(16)))),
    org TEXT NOT NULL,
    feature TEXT NOT NULL,
    n INTEGER NOT NULL,
    reports INTEGER NOT NULL DEFAULT 1,
    at_ms INTEGER,
    clobber INTEGER NOT NULL,
    barrier INTEGER NOT NULL,
    state TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_ms INTEGER NOT NULL,
    lease_ms INTEGER NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX open_of ON batch (org, feature) WHERE state = 'open';
CREATE INDEX batch_of ON batch (org, feature, id);
CREATE INDEX waiting ON batch (due_ms, id) WHERE state IN ('open', 'sealed');
CREATE INDEX lease ON batch (lease_ms) WHERE state = 'sent';
CREATE TABLE known_key (key TEXT PRIMARY KEY, contents TEXT NOT NULL, until_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX key_age ON known_key (until_ms);
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""

COLUMNS: Final = (
    "id, key, org, feature, n, reports, at_ms, clobber, state, first_ms, attempts, due_ms, lease_ms, code, reason"
)
CLAIMABLE: Final = f"""
SELECT {COLUMNS} FROM batch AS one WHERE state IN ('open', 'sealed') AND due_ms <= ? AND NOT EXISTS (
    SELECT 1 FROM batch AS other WHERE other.org = one.org AND other.feature = one.feature AND other.id < one.id
    AND (other.barrier OR one.barrier) AND other.state IN ('open', 'sealed', 'sent')
) ORDER BY due_ms, id LIMIT 1
"""


class _Line:
    """One connection and its lock: requests append on one, and never wait for what the reporter does on the other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None


class Outbox:
    """Appends raise `Busy` and `EngineUnavailable` (disk full, unwritable); nothing of such an append is kept.

    ``server`` is where the reports go: an outbox that has some for another is a `ConfigurationError`.
    """

    def __init__(self, path: Path, now_ms: Milliseconds, *, server: str | None = None) -> None:
        self.path = path
        self.server = server
        self._now_ms = now_ms
        self._front, self._back = _Line(), _Line()
        forks.watch(self)

    # ---- appending --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the file ready. Idempotent. Raises `ConfigurationError`, `Busy` or `EngineUnavailable`."""
        with self._using(self._front):
            pass

    def close(self) -> None:
        for line in (self._front, self._back):
            with line.lock:
                _close(line)

    def append(self, entries: Sequence[Entry]) -> list[bool]:
        """Keep reports: all of them or none. Answers which are new; one whose key is known is passed over.

        A known key with other contents is an `InvalidRequest`.
        """
        with self._using(self._front) as connection, _writing(connection):
            now_ms = self._now_ms()
            return [self._append(connection, entry, now_ms) for entry in entries]

    def _append(self, connection: sqlite3.Connection, entry: Entry, now_ms: int) -> bool:
        if entry.key is not None and not self._is_new(connection, entry, now_ms):
            return False
        place = (entry.org, entry.feature)
        if entry.at_ms is None and not entry.is_barrier:
            added = connection.execute(
                "UPDATE batch SET n = n + ?, reports = reports + 1 "
                "WHERE org = ? AND feature = ? AND state = 'open' AND n <= ?",
                (entry.n, *place, MAX_UNITS - entry.n),
            )
            if added.rowcount:
                return True
        state: State = "open" if entry.at_ms is None and not entry.is_barrier else "sealed"
        if entry.at_ms is None or entry.is_barrier:
            connection.execute(
                "UPDATE batch SET state = 'sealed' WHERE org = ? AND feature = ? AND state = 'open'", place
            )
        connection.execute(
            "INSERT INTO batch (org, feature, n, at_ms, clobber, barrier, state, first_ms, due_ms) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*place, entry.n, entry.at_ms, entry.clobber, entry.is_barrier, state, now_ms, now_ms),
        )
        return True

    def _is_new(self, connection: sqlite3.Connection, entry: Entry, now_ms: int) -> bool:
        known = connection.execute("SELECT contents FROM known_key WHERE key = ?", (entry.key,)).fetchone()
        if known is not None and known[0] != entry.contents:
            raise InvalidRequest(f"key: {entry.key!r} was used before with other contents", path="key")
        if known is None:
            connection.execute(
                "DELETE FROM known_key WHERE key IN (SELECT key FROM known_key WHERE until_ms < ? LIMIT ?)",
                (now_ms, KEYS_AT_ONCE),
            )
            connection.execute(
                "INSERT INTO known_key VALUES (?, ?, ?)", (entry.key, entry.contents, now_ms + KEY_LIFETIME_MS)
            )
        return known is None

    def undelivered(self, org: str) -> list[Batch]:
        """All that a server may not have counted yet of an org, of every process that shares the file; in order."""
        where = "org = ? AND state != 'buried' ORDER BY id"  # not on the requests' connection: it may be long
        return self._patient(lambda connection: self._selected(connection, where, (org,)))

    # ---- delivering: for the reporter -------------------------------------------------------------------------------

    def claim(self, lease_ms: int) -> Batch | None:
        """The next batch that is due, sealed; nobody else gets it until ``lease_ms``. None where there is none."""

        def claimed(connection: sqlite3.Connection) -> Batch | None:
            row = connection.execute(CLAIMABLE, (self._now_ms(),)).fetchone()
            if row is None:
                return None
            batch = _batch(row)._replace(state="sent", lease_ms=lease_ms)
            connection.execute("UPDATE batch SET state = 'sent', lease_ms = ? WHERE id = ?", (lease_ms, batch.id))
            return batch

        return self._written(claimed)

    def settle(self, batch: Batch) -> None:
        """It was delivered. However late that is known, and whoever has taken it over: it is done."""
        self._written(lambda connection: connection.execute("DELETE FROM batch WHERE id = ?", (batch.id,)))

    def postpone(self, batch: Batch, due_ms: int, reason: str) -> None:
        """It was not counted: send it again, not before ``due_ms``."""
        self._become(batch, "sealed", "", reason, due_ms, batch.attempts + 1)

    def hold(self, batch: Batch, reason: str) -> None:
        """It may have been counted, or not. (If it was just found out that keys are honoured, it is sent again.)"""

        def held(connection: sqlite3.Connection) -> None:
            state: State = "sealed" if _fact(connection, "honours_keys") == "yes" else "held"
            self._set(connection, batch, state, "ambiguous", reason, batch.due_ms, batch.attempts + 1)

        self._written(held)

    def bury(self, batch: Batch, code: str, reason: str) -> None:
        """It was refused for good."""
        self._become(batch, "buried", code, reason, batch.due_ms, batch.attempts + 1)

    def drop(self, batch: Batch) -> None:
        """Give up what may have been counted."""
        self._written(
            lambda connection: connection.execute(
                "DELETE FROM batch WHERE id = ? AND state = 'sent' AND lease_ms = ?", (batch.id, batch.lease_ms)
            )
        )

    def _become(self, batch: Batch, *values: Any) -> None:
        self._written(lambda connection: self._set(connection, batch, *values))

    @staticmethod
    def _set(
        connection: sqlite3.Connection, batch: Batch, state: State, code: str, reason: str, due_ms: int, attempts: int
    ) -> None:
        connection.execute(
            "UPDATE batch SET state = ?, code = ?, reason = ?, due_ms = ?, attempts = ? "
            "WHERE id = ? AND state = 'sent' AND lease_ms = ?",  # unless somebody has taken it over
            (state, code, reason[:1000], due_ms, attempts, batch.id, batch.lease_ms),
        )

    def abandoned(self) -> list[Batch]:
        """What was claimed by those who did not come back: it may have been counted."""
        where = "state = 'sent' AND lease_ms < ? ORDER BY id"
        return self._patient(lambda connection: self._selected(connection, where, (self._now_ms(),)))

    @property
    def honours_keys(self) -> bool:
        """Whether the server was seen to count a key once, however often it is sent."""
        found = self._patient(lambda connection: _fact(connection, "honours_keys"))
        return found == "yes"

    def note_keys(self, *, are_honoured: bool) -> None:
        """Remember it; what was held for not knowing can then be sent again."""

        def noted(connection: sqlite3.Connection) -> None:
            _set_fact(connection, "honours_keys", "yes" if are_honoured else "no")
            if are_honoured:
                connection.execute("UPDATE batch SET state = 'sealed' WHERE state = 'held'")

        self._written(noted)

    def next_due_ms(self) -> int | None:
        """When there is something to do: to send, or to take over; None where there is nothing."""
        sql = (
            "SELECT min(ms) FROM (SELECT min(due_ms) AS ms FROM batch WHERE state IN ('open', 'sealed') "
            "UNION ALL SELECT min(lease_ms) FROM batch WHERE state = 'sent')"
        )
        (due,) = self._patient(lambda connection: connection.execute(sql).fetchone())
        return None if due is None else int(due)

    def move_log(self) -> None:
        """Move the log into the file, so that it does not grow for as long as a server is away."""
        self._patient(lambda connection: connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone())

    # ---- for people -------------------------------------------------------------------------------------------------

    def tallies(self) -> dict[State, Tally]:
        sql = "SELECT state, count(*), sum(reports), sum(n) FROM batch GROUP BY state"
        return {row[0]: Tally(*row[1:]) for row in self._patient(lambda connection: connection.execute(sql).fetchall())}

    def listed(self, states: Sequence[State], *, after: int = 0, limit: int = 1000) -> list[Batch]:
        """Batches by id, some at a time."""
        marks = ", ".join("?" * len(states))
        where = f"state IN ({marks}) AND id > ? ORDER BY id LIMIT ?"
        return self._patient(lambda connection: self._selected(connection, where, (*states, after, limit)))

    def requeue(self, ids: Sequence[int]) -> int:
        """Send held and buried batches again, with their old keys: how many."""
        return self._each(
            "UPDATE batch SET state = 'sealed', due_ms = ? WHERE id = ? AND state IN ('held', 'buried')",
            [(self._now_ms(), id) for id in ids],
        )

    def remove(self, ids: Sequence[int]) -> int:
        """Delete held and buried batches: how many."""
        return self._each("DELETE FROM batch WHERE id = ? AND state IN ('held', 'buried')", [(id,) for id in ids])

    def _each(self, sql: str, rows: Sequence[tuple[int, ...]]) -> int:
        return self._written(lambda connection: sum(connection.execute(sql, row).rowcount for row in rows))

    # ---- connections ------------------------------------------------------------------------------------------------

    @staticmethod
    def _selected(connection: sqlite3.Connection, where: str, arguments: tuple[Any, ...]) -> list[Batch]:
        return [_batch(row) for row in connection.execute(f"SELECT {COLUMNS} FROM batch WHERE {where}", arguments)]

    def _written(self, work: Callable[[sqlite3.Connection], R]) -> R:
        def written(connection: sqlite3.Connection) -> R:
            with _writing(connection):
                return work(connection)

        return self._patient(written)

    def _patient(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """On the second connection, waiting for other writers."""
        deadline = monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._using(self._back) as connection:
                    return work(connection)
            except Busy:
                if monotonic() >= deadline:
                    raise EngineUnavailable(f"{str(self.path)!r} was locked by other processes") from None
                sleep(0.002)

    @contextmanager
    def _using(self, line: _Line) -> Iterator[sqlite3.Connection]:
        with line.lock:
            is_opening = line.connection is None
            try:
                if line.connection is None:
                    line.connection = self._connect(is_front=line is self._front)
                yield line.connection
            except sqlite3.Error as error:
                raise _translated(error, self.path, opening=is_opening) from error

    def _connect(self, *, is_front: bool) -> sqlite3.Connection:
        if self.path.exists() and not os.access(self.path, os.W_OK):  # SQLite would open it for reading only
            raise _mistake(f"{str(self.path)!r} cannot be written")
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise _mistake(f"{str(self.path)!r} is on a file system without shared memory; put it on a local disk")
            connection.execute("PRAGMA synchronous = NORMAL")
            if is_front:
                connection.execute("PRAGMA wal_autocheckpoint = 0")  # the disk is waited for by the reporter
            with _writing(connection):
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not tables:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif application != APPLICATION_ID:
            raise _mistake(f"{str(self.path)!r} is a database, and no outbox")
        elif version > VERSION:
            raise _mistake(f"{str(self.path)!r} is of a newer version of tier_middleware; upgrade this one")
        if self.server is not None:
            self._check_server(connection, self.server)

    def _check_server(self, connection: sqlite3.Connection, server: str) -> None:
        known = _fact(connection, "server")
        if known == server:
            return
        (count,) = connection.execute("SELECT count(*) FROM batch").fetchone()
        if known is not None and count:
            raise _mistake(
                f"{str(self.path)!r} has {count} reports for {known!r} that are not delivered; "
                f"deliver them, or give {server!r} an outbox of its own"
            )
        _set_fact(connection, "server", server)
        _set_fact(connection, "honours_keys", "no")

    # ---- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the connections, so that a child inherits none: SQLite believes that it has their locks."""
        for line in (self._front, self._back):
            line.lock.acquire()
            _close(line)

    def after_fork(self, *, is_child: bool) -> None:
        for line in (self._back, self._front):
            line.lock.release()


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _close(line: _Line) -> None:
    if line.connection is not None:
        line.connection.close()
        line.connection = None


def _batch(row: Sequence[Any]) -> Batch:
    found = Batch(*row)
    return found._replace(clobber=bool(found.clobber))


def _fact(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def _set_fact(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))


def _mistake(problem: str) -> ConfigurationError:
    return ConfigurationError(f"TIER_OUTBOX: {problem}", path="TIER_OUTBOX")


def _translated(error: sqlite3.Error, path: Path, *, opening: bool) -> Busy | TierError:
    if is_busy(error):
        return Busy(str(error))
    problem = problem_of(error, path, opening=opening)
    if problem is not None:
        return _mistake(problem)
    return EngineUnavailable(f"the outbox {str(path)!r}: {error}", code="outbox_unavailable")
