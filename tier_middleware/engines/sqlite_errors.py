"""What SQLite's errors mean, for the embedded engine and for the outbox."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

__all__ = ["is_busy", "problem_of"]

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_DAMAGED: Final = {
    sqlite3.SQLITE_NOTADB: "is not a SQLite database",
    sqlite3.SQLITE_CORRUPT: "is a damaged database",
}
_NOT_OURS: Final = _DAMAGED | {
    sqlite3.SQLITE_CANTOPEN: "cannot be opened or created",
    sqlite3.SQLITE_READONLY: "cannot be written",
    sqlite3.SQLITE_PERM: "cannot be written",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether others are writing."""
    return _primary_code(error) in _BUSY


def problem_of(error: sqlite3.Error, path: Path, *, opening: bool) -> str | None:
    """What is wrong with a file where no wait will mend it, such as damage; None for all else."""
    code = _primary_code(error)
    if code == sqlite3.SQLITE_CANTOPEN and opening and not path.parent.is_dir():
        return f"{str(path)!r} is in a folder that does not exist; create it"
    problem = (_NOT_OURS if opening else _DAMAGED).get(code)
    return None if problem is None else f"{str(path)!r} {problem}: {error}"


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # extended ones add detail above it
