"""The outbox's file: its tables, earlier versions of them, and whose it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import DecodeError
from msgspec.json import decode

from ..engines.schema import marks_of
from ..errors import ConfigurationError
from .batches import NOTHING_MORE, Batch, Detail

__all__ = ["COLUMNS", "batch_of", "check_whose", "fact", "mistake", "prepare", "set_fact"]

APPLICATION_ID: Final = 0x54494F42  # "TIOB"

VERSION_1: Final = """
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

VERSION_2: Final = """
ALTER TABLE batch ADD COLUMN claimed_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN action TEXT NOT NULL DEFAULT 'report';
ALTER TABLE batch ADD COLUMN detail TEXT NOT NULL DEFAULT '{}';
"""

MIGRATIONS: Final = (VERSION_1, VERSION_2)

COLUMNS: Final = (
    "id, key, org, feature, n, reports, at_ms, clobber, state, first_ms, attempts, due_ms, lease_ms, code, reason, "
    "action, detail"
)


def prepare(connection: sqlite3.Connection, path: Path, server: str | None) -> None:
    """Make the tables, or bring those of an earlier version up to date; inside of a transaction."""
    version = check_whose(connection, path)
    for migration in MIGRATIONS[version:]:
        for statement in migration.strip().split(";\n"):
            connection.execute(statement)
    if version < len(MIGRATIONS):
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    if server is not None:
        _check_server(connection, path, server)


def check_whose(connection: sqlite3.Connection, path: Path) -> int:
    """The version of an outbox, 0 for one that has yet to be made; a `ConfigurationError` for another database."""
    tables, version, application = marks_of(connection)
    if tables and application != APPLICATION_ID:
        raise mistake(f"{str(path)!r} is a database, and no outbox")
    if version > len(MIGRATIONS):
        raise mistake(f"{str(path)!r} is of a newer version of tier_middleware; upgrade this one")
    return int(version)


def _check_server(connection: sqlite3.Connection, path: Path, server: str) -> None:
    known = fact(connection, "server")
    if known == server:
        return
    (count,) = connection.execute("SELECT count(*) FROM batch").fetchone()
    if known is not None and count:
        raise mistake(
            f"{str(path)!r} has {count} reports for {known!r} that are not delivered; "
            f"deliver them, or give {server!r} an outbox of its own"
        )
    set_fact(connection, "server", server)
    set_fact(connection, "honours_keys", "no")


def batch_of(row: Sequence[Any]) -> Batch:
    """A row of `COLUMNS`. A detail that nobody can read, since somebody has been at the file, is none."""
    found = Batch(*row)
    try:
        detail = decode(str(found.detail), type=Detail)
    except DecodeError:
        detail = NOTHING_MORE
    return found._replace(clobber=bool(found.clobber), detail=detail)


def fact(connection: sqlite3.Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def set_fact(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))


def mistake(problem: str) -> ConfigurationError:
    return ConfigurationError(f"TIER_OUTBOX: {problem}", path="TIER_OUTBOX")
