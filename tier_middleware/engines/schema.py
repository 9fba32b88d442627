"""The embedded engine's tables, and how a database file gets from one version to the next.

``PRAGMA user_version`` says which version a file has; ``application_id`` that it is ours.
Each migration brings a file one version further, and all that are due run in one transaction.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from ..clock import DAY_MS
from ..errors import ConfigurationError
from ..names import MAX_UNITS

__all__ = ["APPLICATION_ID", "MIGRATIONS", "marks_of", "migrate"]

APPLICATION_ID: Final = 0x54494552  # "TIER"

# ids are AUTOINCREMENT where other processes remember them: an id that came back would be somebody else's usage.
# A row of usage names what is counted: one org, feature, plan and billing period. Its units are in a table of their
# own, where the counter (id 0: n used, reserved, and limit_units, MAX_UNITS for unlimited) and its open reservations
# (id > 0: n held, until_ms, in reserved what renewals have counted; of levels also limit_units) are neighbours, so
# that a transaction writes one page and not two. A counter is current from from_ms up to until_ms: in that time it
# answers for the feature without a look at the phases. A reservation that expired stays with n = 0, so that a late
# commit counts once; a settled one is gone.
FIRST: Final = f"""
CREATE TABLE about (created_ms INTEGER NOT NULL);
CREATE TABLE plans (name TEXT PRIMARY KEY, body TEXT NOT NULL, pushed_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE orgs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL, changed_ms INTEGER NOT NULL
);
CREATE TABLE phases (
    org_id INTEGER NOT NULL, effective_ms INTEGER NOT NULL, anchor_ms INTEGER NOT NULL,
    trial INTEGER NOT NULL, features TEXT NOT NULL,
    PRIMARY KEY (org_id, effective_ms)
) WITHOUT ROWID;
CREATE TABLE usage (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    org_id INTEGER NOT NULL, feature TEXT NOT NULL, plan TEXT NOT NULL, start_ms INTEGER NOT NULL,
    aggregate TEXT NOT NULL,
    UNIQUE (org_id, feature, plan, start_ms)
);
CREATE TABLE units (
    usage_id INTEGER NOT NULL, id INTEGER NOT NULL,
    n INTEGER NOT NULL CHECK (n BETWEEN 0 AND {MAX_UNITS}),
    reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved BETWEEN 0 AND {MAX_UNITS}),
    limit_units INTEGER NOT NULL DEFAULT 0, from_ms INTEGER NOT NULL DEFAULT 0, until_ms INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (usage_id, id)
) WITHOUT ROWID;
CREATE TABLE keys (key TEXT PRIMARY KEY, contents TEXT NOT NULL, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX keys_by_age ON keys (expires_ms);
"""

SECOND: Final = """
ALTER TABLE orgs ADD COLUMN info TEXT NOT NULL DEFAULT '';
"""

# Keys of reports under a clock are apart: they age with that clock, and not with the others' time.
CLOCKS: Final = """
CREATE TABLE clocks (id TEXT PRIMARY KEY, name TEXT NOT NULL, present_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE clock_keys (
    key TEXT NOT NULL, contents TEXT NOT NULL, expires_ms INTEGER NOT NULL, clock TEXT NOT NULL,
    PRIMARY KEY (clock, key)
) WITHOUT ROWID;
CREATE INDEX clock_keys_by_age ON clock_keys (clock, expires_ms);
"""

# Entries of the ledger stand beside the counter that they changed (see `tier_middleware.engines.ledger`): id < 0,
# n the change, which may be negative, and columns of their own. Their days are kept when they are rolled up. The at_ms
# of a counter says when it is next to be looked at for that, and so does a row of ledger_due; by the clock of its org.
# What was used before there was a ledger is the sum of the day on which the period began, or, for perpetual features,
# on which the org was made.
LEDGER: Final = f"""
CREATE TABLE units_with_entries (
    usage_id INTEGER NOT NULL, id INTEGER NOT NULL,
    n INTEGER NOT NULL CHECK (id < 0 OR n BETWEEN 0 AND {MAX_UNITS}),
    reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved BETWEEN 0 AND {MAX_UNITS}),
    limit_units INTEGER NOT NULL DEFAULT 0, from_ms INTEGER NOT NULL DEFAULT 0, until_ms INTEGER NOT NULL DEFAULT 0,
    kind INTEGER, at_ms INTEGER, key, level INTEGER, note TEXT,
    PRIMARY KEY (usage_id, id)
) WITHOUT ROWID;
INSERT INTO units_with_entries (usage_id, id, n, reserved, limit_units, from_ms, until_ms)
    SELECT usage_id, id, n, reserved, limit_units, from_ms, until_ms FROM units;
DROP TABLE units;
ALTER TABLE units_with_entries RENAME TO units;
CREATE TABLE ledger_days (
    usage_id INTEGER NOT NULL, day_ms INTEGER NOT NULL, high INTEGER NOT NULL, low INTEGER NOT NULL,
    PRIMARY KEY (usage_id, day_ms)
) WITHOUT ROWID;
CREATE TABLE ledger_due (
    clock TEXT NOT NULL, due_ms INTEGER NOT NULL, usage_id INTEGER NOT NULL, PRIMARY KEY (clock, due_ms, usage_id)
) WITHOUT ROWID;
INSERT INTO ledger_days
    SELECT usage_id, first_ms - (first_ms % {DAY_MS} + {DAY_MS}) % {DAY_MS}, n >> 32, n & 4294967295
    FROM (
        SELECT usage_id, n, max(start_ms, created_ms) AS first_ms
        FROM units JOIN usage ON usage.id = usage_id JOIN orgs ON orgs.id = org_id WHERE units.id = 0 AND n > 0
    ) AS counters;
UPDATE units SET at_ms = 0 WHERE id = 0;
INSERT INTO ledger_due
    SELECT iif(name LIKE 'org:%', '', substr(name, 1, instr(name, '/') - 1)), at_ms, usage_id
    FROM units JOIN usage ON usage.id = usage_id JOIN orgs ON orgs.id = org_id WHERE units.id = 0;
"""

# Whose limits have changed, an org's last change only; an empty org is everybody. A change is numbered in the
# transaction that makes it, and writers wait for each other: the order of ids is that of commits.
CHANGES: Final = """
CREATE TABLE changes (id INTEGER PRIMARY KEY AUTOINCREMENT, org TEXT NOT NULL);
CREATE INDEX changes_by_org ON changes (org);
"""

MIGRATIONS: Final = (FIRST, SECOND, CLOCKS, LEDGER, CHANGES)


def migrate(connection: sqlite3.Connection, path: str, now_ms: int) -> None:
    """Bring a file to the newest version, in one transaction. Several processes may try at once: one does it.

    Raises `ConfigurationError` for a file of a newer version or of another application.
    """
    if _version(connection, path) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, path)
        for migration in MIGRATIONS[version:]:
            for statement in migration.split(";"):
                connection.execute(statement)
        if version == 0:
            connection.execute("INSERT INTO about VALUES (?)", (now_ms,))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute("ROLLBACK")
        raise


def marks_of(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """How many tables a file has, its version, and whose it is. Another process may be making it meanwhile.

    That is one transaction, after which all three are there: so what is read last is there if anything before it is.
    """
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    return tables, version, application


def _version(connection: sqlite3.Connection, path: str) -> int:
    tables, version, application = marks_of(connection)
    if (tables or version or application) and application != APPLICATION_ID:
        raise ConfigurationError(
            f"TIER_BASE_URL: {path!r} is a database of another application; name a file of its own",
            path="TIER_BASE_URL",
        )
    if version > len(MIGRATIONS):
        raise ConfigurationError(
            f"TIER_BASE_URL: {path!r} was written by a newer tier_middleware (its schema is {version}, "
            f"this one knows {len(MIGRATIONS)}); upgrade the package",
            path="TIER_BASE_URL",
        )
    return int(version)
