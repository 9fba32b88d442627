"""Who uses Paperlane: users, their organisations and their log-ins, in a SQLite file that all workers share."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

LOGIN_SECONDS: Final = 30 * 24 * 3600

SCHEMA: Final = """
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS orgs (id TEXT PRIMARY KEY, name TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS users (
        id INTEGER PRIMARY KEY, email TEXT NOT NULL UNIQUE, password TEXT NOT NULL, org TEXT REFERENCES orgs,
        is_staff INTEGER NOT NULL DEFAULT 0  -- set by hand: nobody signs up as staff
    );
    CREATE TABLE IF NOT EXISTS logins (
        token_hash BLOB PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users, expires_at INTEGER NOT NULL
    );
    CREATE TABLE IF NOT EXISTS invitations (code_hash BLOB PRIMARY KEY, org TEXT NOT NULL REFERENCES orgs);
    CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    COMMIT;
"""


class User(NamedTuple):
    """``org`` is the name that Tier knows the user's organisation by (``org:...``), None for a user without one."""

    id: int
    email: str
    org: str | None
    is_staff: bool


class EmailTaken(Exception):
    """Somebody has signed up with this address before."""


class UnknownInvitation(Exception):
    """No such invitation, or it was used before."""


class Accounts:
    """Every method is a transaction of its own and blocks: call it from sync dependencies, or in a thread."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.path.touch(mode=0o600)  # nobody else on this machine has business with password hashes
        with self._transaction() as db:
            db.executescript(SCHEMA)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # a connection each: FastAPI calls from many threads, and opening a local file costs next to nothing
        with closing(sqlite3.connect(self.path)) as db, db:
            yield db

    def signing_key(self) -> str:
        """The key that session cookies are signed with, made at the first start: all workers must have the same."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO settings VALUES ('signing_key', ?)", (secrets.token_urlsafe(32),))
            (key,) = db.execute("SELECT value FROM settings WHERE name = 'signing_key'").fetchone()
        return str(key)

    # ---- users and organisations ------------------------------------------------------------------------------------

    def found_org(self, org: str, name: str, email: str, password: str) -> int:
        """Add an organisation and its first user. Raises `EmailTaken`."""
        password = hashed_password(password)  # before the transaction: it is slow on purpose
        with self._transaction() as db:
            db.execute("INSERT INTO orgs VALUES (?, ?)", (org, name))
            return _added_user(db, email, password, org)

    def join_org(self, invitation: str, email: str, password: str) -> int:
        """Add a user to the organisation that invited them. Raises `UnknownInvitation` or `EmailTaken`."""
        password = hashed_password(password)
        with self._transaction() as db:
            code = _hash(invitation)
            row = db.execute("DELETE FROM invitations WHERE code_hash = ? RETURNING org", (code,)).fetchone()
            if row is None:
                raise UnknownInvitation
            return _added_user(db, email, password, row[0])

    def add_loner(self, email: str, password: str) -> int:
        """Add a user who belongs to no organisation yet. Raises `EmailTaken`."""
        password = hashed_password(password)
        with self._transaction() as db:
            return _added_user(db, email, password, None)

    def invite(self, org: str) -> str:
        """A code with which one more user may join the organisation."""
        code = secrets.token_urlsafe(16)
        with self._transaction() as db:
            db.execute("INSERT INTO invitations VALUES (?, ?)", (_hash(code), org))
        return code

    # ---- log-ins ----------------------------------------------------------------------------------------------------

    def checked_password(self, email: str, password: str) -> int | None:
        """The user's id; None where the address or the password is wrong, which takes equally long to find out."""
        with self._transaction() as db:
            row = db.execute("SELECT id, password FROM users WHERE email = ?", (email.lower(),)).fetchone()
        user_id, stored = row or (None, NOBODYS_PASSWORD)
        return user_id if is_password(password, stored) else None

    def log_in(self, user_id: int) -> str:
        """A new bearer token. Only its hash is stored: who reads the database cannot log in with what is there."""
        token, now = secrets.token_urlsafe(32), int(time.time())
        with self._transaction() as db:
            db.execute("DELETE FROM logins WHERE expires_at <= ?", (now,))
            db.execute("INSERT INTO logins VALUES (?, ?, ?)", (_hash(token), user_id, now + LOGIN_SECONDS))
        return token

    def log_out(self, token: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM logins WHERE token_hash = ?", (_hash(token),))

    def user_of(self, token: str) -> User | None:
        """Who is logged in with this token."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT id, email, org, is_staff FROM logins JOIN users ON id = user_id "
                "WHERE token_hash = ? AND expires_at > ?",
                (_hash(token), int(time.time())),
            ).fetchone()
        return None if row is None else User(row[0], row[1], row[2], bool(row[3]))


def _added_user(db: sqlite3.Connection, email: str, password: str, org: str | None) -> int:
    try:
        values = (email.lower(), password, org)
        cursor = db.execute("INSERT INTO users (email, password, org) VALUES (?, ?, ?)", values)
    except sqlite3.IntegrityError as error:
        raise EmailTaken from error
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()  # fast: unlike passwords, tokens are too long to guess


def hashed_password(password: str) -> str:
    salt = secrets.token_bytes(16)
    return f"{salt.hex()}:{_scrypt(password, salt).hex()}"


def is_password(password: str, stored: str) -> bool:
    salt, _, digest = stored.partition(":")
    return hmac.compare_digest(_scrypt(password, bytes.fromhex(salt)), bytes.fromhex(digest))


def _scrypt(password: str, salt: bytes) -> bytes:
    # as OWASP's Password Storage Cheat Sheet has it: 16 MB and a fifth of a second for each guess
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=5)


NOBODYS_PASSWORD: Final = f"{bytes(16).hex()}:{bytes(64).hex()}"  # no password has this hash
