"""Whose limits have changed, in SQL. Every function runs inside a transaction that its caller began.

An org's last change is one row, so the table grows with the orgs and not with their changes. The name of a deleted org
is not kept: that it is gone is told to everybody, as a change of anybody's limits.
"""

from __future__ import annotations

import re
from typing import Final

from ..ops import Changes, ReadChanges
from .connection import Connection

__all__ = [
    "ADD",
    "CHANGED",
    "CURSOR",
    "DROP",
    "DROP_EVERYBODY",
    "EVERYBODY",
    "MAX_CHANGES",
    "add_change",
    "position_in",
    "read_changes",
]

MAX_CHANGES: Final = 1000  # orgs that one answer names
EVERYBODY: Final = ""

DROP: Final = "DELETE FROM changes WHERE org = ?"
DROP_EVERYBODY: Final = "DELETE FROM changes WHERE org = ''"
ADD: Final = "INSERT INTO changes (org) VALUES (?)"
CURSOR: Final = "SELECT CAST(coalesce(max(id), 0) AS TEXT) FROM changes"
CHANGED: Final = "SELECT org FROM changes WHERE id > CAST(? AS INTEGER) LIMIT ?"

# When the database was made, and how far it was read: a number, or a snapshot of PostgreSQL.
_CURSOR: Final = re.compile(r"([0-9]{1,20})-(([0-9]{1,20})(?::[0-9]{1,20}:[0-9,]*)?)")


def add_change(db: Connection, org: str = EVERYBODY) -> None:
    """Note that an org's limits change, or anybody's."""
    if org == EVERYBODY:
        db.execute(DROP_EVERYBODY)
    else:
        db.execute(DROP, (org,))
    db.execute(ADD, (org,))


def _cursor(db: Connection) -> str:
    (created_ms,) = db.execute("SELECT created_ms FROM about").fetchone()
    (position,) = db.execute(CURSOR).fetchone()  # before the changes are read: what comes between is told twice
    return f"{created_ms}-{position}"


def read_changes(db: Connection, op: ReadChanges) -> Changes:
    cursor = _cursor(db)
    if op.since is None or op.since == cursor:
        return Changes(cursor)
    position = position_in(op.since, cursor)
    if position is None:
        return Changes(cursor, is_everything=True)
    orgs = tuple([org for (org,) in db.execute(CHANGED, (position, MAX_CHANGES + 1))])
    if EVERYBODY in orgs or len(orgs) > MAX_CHANGES:
        return Changes(cursor, is_everything=True)
    return Changes(cursor, orgs)


def position_in(since: str, cursor: str) -> str | None:
    """From where to read; None for a cursor of another database, or of a time that this one has not seen yet."""
    asked, present = _CURSOR.fullmatch(since), _CURSOR.fullmatch(cursor)
    assert present is not None, cursor
    if asked is None or asked[1] != present[1] or int(asked[3]) > int(present[3]):
        return None
    return asked[2]
