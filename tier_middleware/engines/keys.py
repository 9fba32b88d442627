"""Keys that count once, in SQL. Every function runs inside a transaction that its caller began.

Under each test clock there are others, which age by that clock; the time without one is under ``""``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..policy import KEY_LIFETIME_MS
from .connection import Connection

__all__ = ["FORGET_CLOCK_KEYS", "FORGET_KEYS", "KnownKey", "find_key", "forget_keys", "remember_key"]

FORGET_KEYS: Final = (
    "DELETE FROM keys WHERE key IN (SELECT key FROM keys WHERE expires_ms <= ? ORDER BY expires_ms LIMIT 2)"
)
FORGET_CLOCK_KEYS: Final = (
    "DELETE FROM clock_keys WHERE clock = ? AND key IN "
    "(SELECT key FROM clock_keys WHERE clock = ? AND expires_ms <= ? ORDER BY expires_ms LIMIT 2)"
)


class KnownKey(NamedTuple):
    """What a key was used for, and until when that is remembered."""

    contents: str
    expires_ms: int


def find_key(db: Connection, clock: str, key: str) -> KnownKey | None:
    if clock:
        sql = "SELECT contents, expires_ms FROM clock_keys WHERE clock = ? AND key = ?"
        row = db.execute(sql, (clock, key)).fetchone()
    else:
        row = db.execute("SELECT contents, expires_ms FROM keys WHERE key = ?", (key,)).fetchone()
    return None if row is None else KnownKey(str(row[0]), int(row[1]))


def remember_key(db: Connection, clock: str, key: str, contents: str, now_ms: int) -> None:
    columns = (key, contents, now_ms + KEY_LIFETIME_MS)
    if clock:
        db.execute("INSERT INTO clock_keys VALUES (?, ?, ?, ?)", (*columns, clock))
    else:
        db.execute("INSERT INTO keys VALUES (?, ?, ?)", columns)


def forget_keys(db: Connection, clock: str, now_ms: int) -> None:
    """Two out for each one in: the table shrinks as its keys age, and no report pays for it all."""
    if clock:
        db.execute(FORGET_CLOCK_KEYS, (clock, clock, now_ms))
    else:
        db.execute(FORGET_KEYS, (now_ms,))
