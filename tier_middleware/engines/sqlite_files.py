"""What SQLite's files ask of whoever keeps them open for long: the embedded engine, and the outbox."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

__all__ = ["identity", "move_log", "roll_back"]


def identity(path: Path) -> tuple[int, int] | None:
    """The device and the inode of a file, by which one that was replaced is known; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def move_log(connection: sqlite3.Connection, *, longest: int) -> None:
    """Move the log into the database, waiting for the disk. Where it has more than ``longest`` pages writers wait, too:
    under an unbroken load it never is empty, and never starts again by itself.
    """
    try:
        _, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > longest:
            connection.execute("PRAGMA busy_timeout = 1000")
            _, pages, moved = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        if pages == moved:
            _begin_log(connection)
    finally:
        roll_back(connection)
        connection.execute("PRAGMA busy_timeout = 0")


def _begin_log(connection: sqlite3.Connection) -> None:
    """Write what is there already. The first to write after a log was moved waits for the disk: not an event loop."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("COMMIT")
