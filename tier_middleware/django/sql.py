"""The embedded engine's SQL as Django's connections take it, and what PostgreSQL must be told in other words.

Statements are written once, for SQLite (`tier_middleware.engines.statements`). What stands here is all that is
different: the names of tables, placeholders, a few statements, and how writers wait for each other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

from ..engines import changes
from ..engines.connection import Connection
from ..engines.keys import FORGET_CLOCK_KEYS, FORGET_KEYS
from ..engines.ledger import ENTER_COMMIT
from ..engines.sqlite_transfer import LAST_PLACE, ORDERED_KEYS, ORGS, USAGES_OF_ORG
from ..engines.statements import COUNT, RESERVE
from ..ops import Busy

__all__ = ["DIALECTS", "LOCK_NOT_AVAILABLE", "Dialect", "DjangoConnection"]

TABLE: Final = re.compile(
    r"\b(about|plans|orgs|phases|usage|units|keys|clock_keys|clocks|ledger_days|ledger_due|changes)\b"
)


class Dialect(NamedTuple):
    """One kind of database."""

    begin_reading: str
    """The first statement of a transaction that reads, so that all its statements see one moment."""
    lock: Callable[[Connection, Sequence[str], float], None]
    """Keep the other writers of these names waiting for as long as the transaction lasts; wait for those before in line
    for so many seconds. `Busy`, or the database's error `LOCK_NOT_AVAILABLE`, says that they were not enough.
    """
    lock_all: Callable[[Connection], None]
    """Keep all other writers waiting, or raise as `lock` does. Readers go on."""
    last_id: str | None
    """What asks for the id of the row that was just inserted; None where cursors know it."""
    has_nul: bool
    """Whether a text may have a NUL in it."""
    otherwise: Mapping[str, str]
    """Statements that are said in other words, with the same parameters."""


# ---- SQLite: all writers wait for each other, from a transaction's first statement that writes ----------------------

# Before anything is read: a transaction that reads first and finds that others wrote meanwhile cannot write any more.
WAIT: Final = "UPDATE about SET created_ms = created_ms WHERE id = 0"


def _wait_for_all(db: Connection, names: Sequence[str] = (), seconds: float = 0.0) -> None:
    db.execute(WAIT)


SQLITE: Final = Dialect("", _wait_for_all, _wait_for_all, None, True, {})


# ---- PostgreSQL: writers of one org wait for each other -------------------------------------------------------------

# Sums are compared as numerics: a bigint that overflows is an error, and SQLite's comparison is not.
POSTGRESQL_RESERVE: Final = RESERVE.replace("n + reserved", "n::numeric + reserved")
POSTGRESQL_COUNT: Final = COUNT.replace("AND n + ?", "AND n::numeric + ?")
# Nobody else enters for this org meanwhile, so whether an id is taken can be asked first.
POSTGRESQL_ENTER_COMMIT: Final = (
    "UPDATE units SET id = entry.id, n = entry.n, until_ms = 0, kind = 0, key = units.id "
    "FROM (SELECT ?::bigint AS id, ?::bigint AS n) AS entry "
    "WHERE units.usage_id = ? AND units.id = ? AND units.n = ? AND units.until_ms > ? "
    "AND NOT EXISTS (SELECT 1 FROM units AS taken WHERE taken.usage_id = units.usage_id AND taken.id = entry.id)"
)
# A block of ids that is larger than any import. Nobody else asks the sequence meanwhile: writers wait (`_lock_all`).
POSTGRESQL_LAST_PLACE: Final = (
    "SELECT setval(counted, nextval(counted) + 1099511627776) - 1099511627776 "
    "FROM (SELECT CAST(pg_get_serial_sequence('usage', 'id') AS regclass) AS counted) AS sequence"
)
WRITTEN: Final = "clocks, plans, orgs, phases, usage, units, keys, clock_keys, ledger_days, ledger_due, changes"
MOST_MS: Final = 2**31 - 1  # of a timeout of PostgreSQL's
LOCK_NOT_AVAILABLE: Final = "55P03"
# Transactions commit in another order than that of their numbers, so a cursor is a snapshot: which of them it has seen.
# Numbers ahead of this database's are those of the one that it was restored from.
POSTGRESQL_CHANGED: Final = (
    "SELECT org FROM changes, (SELECT CAST(? AS pg_snapshot) AS since) AS asked "
    "WHERE xid >= CAST(CAST(pg_snapshot_xmin(since) AS text) AS bigint) "
    "AND xid < CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) "
    "AND NOT pg_visible_in_snapshot(CAST(CAST(xid AS text) AS xid8), since) LIMIT ?"
)
POSTGRESQL_ADD_CHANGE: Final = (
    "INSERT INTO changes (org, xid) VALUES (?, CAST(CAST(pg_current_xact_id() AS text) AS bigint))"
)
# One row is enough, and what others are just dropping is left to them: those who delete orgs wait for nobody.
POSTGRESQL_DROP_EVERYBODY: Final = (
    "DELETE FROM changes WHERE id IN (SELECT id FROM changes WHERE org = '' FOR UPDATE SKIP LOCKED)"
)
# At once, since others are waiting now.
LAST_LOCK: Final = (
    "WITH waited AS MATERIALIZED (SELECT pg_advisory_xact_lock(?)) "
    "SELECT set_config('lock_timeout', ?, true) FROM waited"
)
# Old keys are everybody's: whom others are just forgetting is passed over.
PASSING_OVER: Final = "LIMIT 2 FOR UPDATE SKIP LOCKED"


def _lock(db: Connection, names: Sequence[str], seconds: float) -> None:
    """Locks that last as long as the transaction, of names that need not have a row yet.

    Those who wait stand in line, once: whoever left it and came again would be behind all who came meanwhile, and of
    many the same few would wait for ever.
    """
    numbers = sorted(_number(name) for name in names)
    question = " AND ".join(["pg_try_advisory_xact_lock(?)"] * len(numbers))
    if not numbers or db.execute(f"SELECT {question}", numbers).fetchone()[0]:
        return
    milliseconds = min(int(seconds * 1000), MOST_MS)
    if not milliseconds:  # which would be for ever
        raise Busy
    (before,) = db.execute("SELECT current_setting('lock_timeout')").fetchone()
    db.execute("SELECT set_config('lock_timeout', ?, true)", (f"{milliseconds}ms",))
    for number in numbers[:-1]:
        db.execute("SELECT pg_advisory_xact_lock(?)", (number,))
    db.execute(LAST_LOCK, (numbers[-1], before))


def _lock_all(db: Connection) -> None:
    """Those who write are let finish, and not one of them is a deadlock's victim: they have a second, this has less."""
    (before,) = db.execute("SELECT current_setting('lock_timeout')").fetchone()
    db.execute("SELECT set_config('lock_timeout', ?, true)", ("500ms",))
    db.execute(f"LOCK TABLE {WRITTEN} IN EXCLUSIVE MODE")
    db.execute("SELECT set_config('lock_timeout', ?, true)", (before,))


def _number(name: str) -> int:
    """By which PostgreSQL knows a lock, in 64 bits. Two names of one number would only wait for each other."""
    return int.from_bytes(sha256(f"tier_middleware {name}".encode()).digest()[:8], signed=True)


def _bytewise(question: str, *columns: str) -> str:
    """Sorted as SQLite does, whatever the language of the database is."""
    before, order, listed = question.partition(" ORDER BY ")
    return before + order + ", ".join(f'{name} COLLATE "C"' if name in columns else name for name in listed.split(", "))


POSTGRESQL: Final = Dialect(
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
    _lock,
    _lock_all,
    "SELECT lastval()",
    False,
    {
        changes.ADD: POSTGRESQL_ADD_CHANGE,
        changes.CHANGED: POSTGRESQL_CHANGED,
        changes.CURSOR: "SELECT CAST(pg_current_snapshot() AS text)",
        changes.DROP_EVERYBODY: POSTGRESQL_DROP_EVERYBODY,
        RESERVE: POSTGRESQL_RESERVE,
        COUNT: POSTGRESQL_COUNT,
        LAST_PLACE: POSTGRESQL_LAST_PLACE,
        ORGS: _bytewise(ORGS, "name"),
        USAGES_OF_ORG: _bytewise(USAGES_OF_ORG, "feature", "plan"),
        ORDERED_KEYS: _bytewise(ORDERED_KEYS, "clock", "key"),
        ENTER_COMMIT: POSTGRESQL_ENTER_COMMIT,
        FORGET_KEYS: FORGET_KEYS.replace("LIMIT 2", PASSING_OVER),
        FORGET_CLOCK_KEYS: FORGET_CLOCK_KEYS.replace("LIMIT 2", PASSING_OVER),
    },
)

DIALECTS: Final[Mapping[str, Dialect]] = {"sqlite": SQLITE, "postgresql": POSTGRESQL}
"""By what Django calls the vendor."""


LARGE: Final = frozenset({ORGS, ORDERED_KEYS})
"""Questions about everybody, whose answers come some rows at a time."""

# ---- connections ----------------------------------------------------------------------------------------------------


class DjangoConnection:
    """Django's connection, as statements expect one."""

    def __init__(self, connection: Any, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> DjangoCursor:
        cursor = self._connection.chunked_cursor() if sql in LARGE else self._connection.cursor()
        cursor.execute(_text(self._connection.vendor, sql), self._written(parameters))
        return DjangoCursor(cursor, self)

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> DjangoCursor:
        cursor = self._connection.cursor()
        cursor.executemany(_text(self._connection.vendor, sql), [self._written(row) for row in parameters])
        return DjangoCursor(cursor, self)

    def _written(self, parameters: Sequence[Any]) -> Sequence[Any]:
        return parameters if self._dialect.has_nul else [_without_nul(value) for value in parameters]

    def read(self, row: Sequence[Any]) -> Sequence[Any]:
        return row if self._dialect.has_nul else tuple([_with_nul(value) for value in row])

    def last_id(self, cursor: Any) -> int:
        question = self._dialect.last_id
        return int(cursor.lastrowid if question is None else self.execute(question).fetchone()[0])


class DjangoCursor:
    """Django's cursor, which knows the last id on every database."""

    __slots__ = ("_cursor", "_db")

    def __init__(self, cursor: Any, db: DjangoConnection) -> None:
        self._cursor = cursor
        self._db = db

    @property
    def rowcount(self) -> int:
        return int(self._cursor.rowcount)

    @property
    def lastrowid(self) -> int:
        return self._db.last_id(self._cursor)

    def fetchone(self) -> Any:
        row = self._cursor.fetchone()
        return row if row is None else self._db.read(row)

    def fetchall(self) -> list[Any]:
        return list(self)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from map(self._db.read, self._cursor)
        finally:
            self._cursor.close()


MARK: Final = "\uf8ff"  # of Unicode's private use; what follows says whether it stands for itself or for a NUL


def _without_nul(value: Any) -> Any:
    if type(value) is str and ("\0" in value or MARK in value):
        return value.replace(MARK, f"{MARK}1").replace("\0", f"{MARK}0")
    return value


def _with_nul(value: Any) -> Any:
    if type(value) is str and MARK in value:
        return value.replace(f"{MARK}0", "\0").replace(f"{MARK}1", MARK)
    return value


@cache
def _text(vendor: str, sql: str) -> str:
    """A statement as Django's cursors of a database take it. There are a few dozen."""
    said = DIALECTS[vendor].otherwise.get(sql, sql)
    return TABLE.sub(r"tier_\1", said.replace("%", "%%").replace("?", "%s"))
