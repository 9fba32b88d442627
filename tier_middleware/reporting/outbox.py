"""The outbox: a SQLite file with what has not been delivered. Any number of processes may share it.

Increments of one org and feature are added up in one row until it is claimed, so that the file does not grow with the
reports but with the orgs; a row that was claimed once is never added to. An append is one transaction, which survives a
killed process, and never waits: where another process writes it raises `Busy`, and the driver waits in its own colour.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec.json import encode

from ..clock import Milliseconds
from ..errors import InvalidRequest
from ..names import MAX_UNITS
from ..policy import KEY_LIFETIME_MS
from .batches import Batch, Entry, State, Stock
from .file import File
from .schema import COLUMNS, batch_of, fact, set_fact

__all__ = ["AT_ONCE", "Outbox"]

KEYS_AT_ONCE: Final = 8  # that are forgotten with each new one
LONGEST_WAIT_MS: Final = 3_600_000  # of a batch; one that is due later was set back by a clock that jumped
CLOCK_SLACK_MS: Final = 5_000  # by which clocks are put right while nobody notices
AT_ONCE: Final = 0  # due, whatever the clock says

CLAIMABLE: Final = f"""
SELECT {COLUMNS} FROM batch AS one WHERE state IN ('open', 'sealed') AND (due_ms <= ? OR due_ms > ?) AND NOT EXISTS (
    SELECT 1 FROM batch AS other WHERE other.org = one.org AND other.feature = one.feature AND other.id < one.id
    AND (other.barrier OR one.barrier) AND other.state IN ('open', 'sealed', 'sent')
) ORDER BY due_ms, id LIMIT ?
"""


class Outbox:
    """Appends raise `Busy` and `EngineUnavailable` (disk full, unwritable); nothing of such an append is kept.

    ``server`` is where the reports go: an outbox that has some for another is a `ConfigurationError`.
    """

    def __init__(self, path: Path, now_ms: Milliseconds, *, server: str | None = None) -> None:
        self.path = path
        self.server = server
        self._now_ms = now_ms
        self._file = File(path, server)

    # ---- appending --------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the file ready. Idempotent. Raises `ConfigurationError`, `Busy` or `EngineUnavailable`."""
        self._file.open()

    def close(self) -> None:
        self._file.close()

    def append(self, entries: Sequence[Entry]) -> list[bool]:
        """Keep reports: all of them or none. Answers which are new; one whose key is known is passed over.

        A known key with other contents is an `InvalidRequest`.
        """

        def appended(connection: sqlite3.Connection) -> list[bool]:
            now_ms = self._now_ms()
            return [self._append(connection, entry, now_ms) for entry in entries]

        return self._file.append(appended)

    def _append(self, connection: sqlite3.Connection, entry: Entry, now_ms: int) -> bool:
        is_report = entry.action == "report"
        if is_report and entry.key is not None and not self._is_new(connection, entry, now_ms):
            return False
        place = (entry.org, entry.feature)
        if entry.is_open:
            added = connection.execute(
                "UPDATE batch SET n = n + ?, reports = reports + 1 "
                "WHERE org = ? AND feature = ? AND state = 'open' AND n <= ?",
                (entry.n, *place, MAX_UNITS - entry.n),
            )
            if added.rowcount:
                return True
        state: State = "open" if entry.is_open else "sealed"
        if entry.is_open or entry.is_barrier:
            connection.execute(
                "UPDATE batch SET state = 'sealed' WHERE org = ? AND feature = ? AND state = 'open'", place
            )
        connection.execute(
            "INSERT INTO batch (key, org, feature, n, at_ms, clobber, barrier, state, first_ms, due_ms, action, detail)"
            " VALUES (coalesce(?, lower(hex(randomblob(16)))), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                None if is_report else entry.key,
                *place,
                entry.n,
                entry.at_ms,
                entry.clobber,
                entry.is_barrier,
                state,
                now_ms,
                AT_ONCE,
                entry.action,
                encode(entry.detail).decode(),
            ),
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

    def known_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of these keys that have counted in this outbox."""
        if not keys:
            return set()
        sql = f"SELECT key FROM known_key WHERE until_ms > ? AND key IN ({', '.join('?' * len(keys))})"
        return self._file.look(lambda connection: {key for (key,) in connection.execute(sql, (self._now_ms(), *keys))})

    def undelivered(self, org: str) -> list[Batch]:
        """All that a server may not have counted yet of an org, of every process that shares the file; in order."""
        where = "org = ? AND state != 'buried' ORDER BY id"  # not on the requests' connection: it may be long
        return self._file.read(lambda connection: self._selected(connection, where, (org,)))

    # ---- delivering: for the reporter -------------------------------------------------------------------------------

    def claim(self, lease_ms: int, most: int) -> list[Batch]:
        """The next batches that are due, sealed; nobody else gets them until ``lease_ms``. None waits for another."""

        def claimed(connection: sqlite3.Connection) -> list[Batch]:
            now_ms = self._now_ms()
            rows = connection.execute(CLAIMABLE, (now_ms, now_ms + LONGEST_WAIT_MS, most)).fetchall()
            batches = [batch_of(row)._replace(state="sent", lease_ms=lease_ms) for row in rows]
            connection.executemany(
                "UPDATE batch SET state = 'sent', lease_ms = ?, claimed_ms = ? WHERE id = ?",
                [(lease_ms, now_ms, batch.id) for batch in batches],
            )
            return batches

        return self._file.write(claimed)

    def settle(self, *batches: Batch) -> None:
        """They were delivered. However late that is known, and whoever has taken them over: it is done."""
        rows = [(batch.id,) for batch in batches]
        self._file.write(lambda connection: connection.executemany("DELETE FROM batch WHERE id = ?", rows))

    # What follows answers whether it was done: somebody may have taken the batch over, and decided otherwise.

    def postpone(self, batch: Batch, due_ms: int, reason: str) -> bool:
        """It was not counted, or may be again: send it again, not before ``due_ms``."""
        return self._become(batch, "sealed", "", reason, due_ms)

    def hold(self, batch: Batch, reason: str) -> bool:
        """It may have been counted, or not. (If it was just found out that keys are honoured, it is sent again.)"""

        def held(connection: sqlite3.Connection) -> bool:
            state: State = "sealed" if fact(connection, "honours_keys") == "yes" else "held"
            return self._set(connection, batch, state, "ambiguous", reason, AT_ONCE)

        return self._file.write(held)

    def bury(self, batch: Batch, code: str, reason: str) -> bool:
        """It was refused for good."""
        return self._become(batch, "buried", code, reason, AT_ONCE)

    def drop(self, batch: Batch) -> bool:
        """Give up what may have been counted."""
        sql = "DELETE FROM batch WHERE id = ? AND state = 'sent' AND lease_ms = ?"
        return self._file.write(lambda connection: connection.execute(sql, (batch.id, batch.lease_ms)).rowcount > 0)

    def _become(self, batch: Batch, *values: Any) -> bool:
        return self._file.write(lambda connection: self._set(connection, batch, *values))

    @staticmethod
    def _set(connection: sqlite3.Connection, batch: Batch, state: State, code: str, reason: str, due_ms: int) -> bool:
        done = connection.execute(
            "UPDATE batch SET state = ?, code = ?, reason = ?, due_ms = ?, attempts = attempts + 1 "
            "WHERE id = ? AND state = 'sent' AND lease_ms = ?",
            (state, code, reason[:1000], due_ms, batch.id, batch.lease_ms),
        )
        return done.rowcount > 0

    def abandoned(self) -> list[Batch]:
        """What was claimed by those who did not come back: it may have been counted.

        A lease says nothing once the clock shows a time before it was begun.
        """
        where = "state = 'sent' AND (lease_ms < ? OR claimed_ms > ?) ORDER BY id"
        now_ms = self._now_ms()
        return self._file.read(lambda connection: self._selected(connection, where, (now_ms, now_ms + CLOCK_SLACK_MS)))

    @property
    def honours_keys(self) -> bool:
        """Whether the server was seen to count a key once, however often it is sent."""
        found = self._file.read(lambda connection: fact(connection, "honours_keys"))
        return found == "yes"

    def note_keys(self, *, are_honoured: bool) -> None:
        """Remember it; what was held for not knowing can then be sent again."""

        def noted(connection: sqlite3.Connection) -> None:
            set_fact(connection, "honours_keys", "yes" if are_honoured else "no")
            if are_honoured:
                connection.execute("UPDATE batch SET state = 'sealed' WHERE state = 'held'")

        self._file.write(noted)

    def next_due_ms(self) -> int | None:
        """When there is something to do: to send, or to take over; None where there is nothing."""
        sql = (
            "SELECT min(ms) FROM (SELECT min(due_ms) AS ms FROM batch WHERE state IN ('open', 'sealed') "
            "UNION ALL SELECT min(lease_ms) FROM batch WHERE state = 'sent')"
        )
        (due,) = self._file.read(lambda connection: connection.execute(sql).fetchone())
        return None if due is None else int(due)

    def move_log(self) -> None:
        """Move the log into the file, so that it does not grow for as long as a server is away."""
        self._file.move_log()

    # ---- for people -------------------------------------------------------------------------------------------------

    def stock(self) -> dict[State, Stock]:
        sql = "SELECT state, count(*), sum(reports), sum(n) FROM batch GROUP BY state"
        return {
            row[0]: Stock(*row[1:]) for row in self._file.read(lambda connection: connection.execute(sql).fetchall())
        }

    def listed(self, states: Sequence[State], *, after: int = 0, limit: int = 1000) -> list[Batch]:
        """Batches by id, some at a time."""
        marks = ", ".join("?" * len(states))
        where = f"state IN ({marks}) AND id > ? ORDER BY id LIMIT ?"
        return self._file.read(lambda connection: self._selected(connection, where, (*states, after, limit)))

    def requeue(self, ids: Sequence[int]) -> int:
        """Send held and buried batches again, with their old keys: how many."""
        return self._each(
            "UPDATE batch SET state = 'sealed', due_ms = ? WHERE id = ? AND state IN ('held', 'buried')",
            [(AT_ONCE, id) for id in ids],
        )

    def remove(self, ids: Sequence[int]) -> int:
        """Delete held and buried batches: how many."""
        return self._each("DELETE FROM batch WHERE id = ? AND state IN ('held', 'buried')", [(id,) for id in ids])

    def _each(self, sql: str, rows: Sequence[tuple[int, ...]]) -> int:
        return self._file.write(lambda connection: sum(connection.execute(sql, row).rowcount for row in rows))

    @staticmethod
    def _selected(connection: sqlite3.Connection, where: str, arguments: tuple[Any, ...]) -> list[Batch]:
        return [batch_of(row) for row in connection.execute(f"SELECT {COLUMNS} FROM batch WHERE {where}", arguments)]
