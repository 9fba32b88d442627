"""``django://ALIAS``: the embedded engine's statements on Django's own connection, and in its transactions.

Inside of a transaction of the project's (``ATOMIC_REQUESTS``, ``atomic()``) an operation is a savepoint of it, and is
there or not there with the rest of it. Elsewhere it is a transaction of its own.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import weakref
from collections import ChainMap
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError, Error, connections, transaction
from django.db.models.signals import post_migrate
from django.utils.connection import ConnectionDoesNotExist

from ..clock import Milliseconds, monotonic
from ..engines.catalogue import Catalogue
from ..engines.ledger import Ledger
from ..engines.statements import PLACES_KEPT, NeedsWrite, Perform, Statements
from ..errors import ConfigurationError, EngineUnavailable, InvalidRequest
from ..ledger import DEFAULT_LEDGER_DAYS
from ..model import Plan
from ..names import MAX_UNITS, clock_of
from ..ops import (
    Adjust,
    AdvanceClock,
    Busy,
    Commit,
    Granted,
    MakeClock,
    OnLoop,
    Op,
    Push,
    Record,
    Release,
    Renew,
    Reserve,
    Shortfall,
)
from ..transfer import Line
from .sql import DIALECTS, LOCK_NOT_AVAILABLE, DjangoConnection

__all__ = ["DjangoEngine", "django_engine"]

R = TypeVar("R")

# Of PostgreSQL: could not serialise, deadlock, lock not available, somebody else inserted the same.
AGAIN: Final = frozenset({"40001", "40P01", "55P03", "23505", sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
OUT_OF_RANGE: Final = frozenset({"23514", "22003", sqlite3.SQLITE_CONSTRAINT_CHECK})
NO_TABLE: Final = "42P01"


class _Turn(NamedTuple):
    """One attempt."""

    statements: Statements
    plans: MutableMapping[str, Plan]
    """That were met in a transaction of the project's, which may yet be rolled back."""
    is_inside: bool
    deadline: float
    """Of waiting for other writers."""


class DjangoEngine:
    """Keeps everything in tables of one of the project's databases, on SQLite or PostgreSQL.

    It has no connections of its own: Django opens, checks and closes them. All that is remembered between operations
    was committed: of what a transaction may yet undo, nothing is.
    """

    def __init__(self, alias: str, now_ms: Milliseconds, *, ledger_days: int = DEFAULT_LEDGER_DAYS) -> None:
        self.alias = alias
        self._now_ms = now_ms
        self._dialect = DIALECTS[connections[alias].vendor]
        self._ledger = Ledger(ledger_days, is_shared=True)
        self._lost: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._forget()
        post_migrate.connect(self._migrated)  # which `flush` sends, too

    def _forget(self) -> None:
        self._has_tables = False
        self._plans: dict[str, Plan] = {}
        self._places: dict[tuple[str, str], int] = {}
        self._short: set[tuple[str, str]] = set()  # of which there was too little the last time
        self._statements = self._statements_with(self._plans)

    def _statements_with(self, plans: Any) -> Statements:
        return Statements(Catalogue(f"django://{self.alias}", plans, "django"), self._ledger, self._places)

    def _migrated(self, *, using: str, **kwargs: Any) -> None:
        if using == self.alias:
            self._forget()
            for lost in [found for ref in self._lost if (found := ref()) is not None]:
                lost()

    @property
    def address(self) -> str:
        settings = connections[self.alias].settings_dict
        place = ":".join(str(settings[part]) for part in ("HOST", "PORT", "NAME") if settings.get(part))
        return f"django://{self.alias}?{place}"

    # ---- the port ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        _refuse_event_loop()
        with self._errors(), transaction.atomic(using=self.alias):
            self._check_tables()
            db = self._db()
            if db.execute("SELECT created_ms FROM about").fetchone() is None:
                db.execute("INSERT INTO about VALUES (1, ?) ON CONFLICT DO NOTHING", (self._now_ms(),))

    def attempt(self, op: Op[R]) -> R:
        return self.attempt_within(op, 0.0)

    def attempt_within(self, op: Op[R], seconds: float) -> R:
        _refuse_event_loop()
        if not self._has_tables:
            self.open()
        is_inside = self.is_in_transaction()
        plans = ChainMap({}, self._plans)
        statements = self._statements_with(plans) if is_inside else self._statements
        turn = _Turn(statements, plans.maps[0], is_inside, monotonic() + seconds)
        with self._errors():
            return cast("R", self._reserve(op, turn) if type(op) is Reserve else self._transact(op, turn))

    def close(self) -> None:
        self._forget()

    def export(self) -> Generator[Line, None, None]:
        _refuse_event_loop()
        # of its own: what is read for long takes part in no transaction of the project's
        connection = connections[self.alias].copy()
        connection.inc_thread_sharing()  # an async reader is in threads
        db = DjangoConnection(connection, self._dialect)
        try:
            if self._dialect.begin_reading:
                connection.set_autocommit(False)
            db.execute(self._dialect.begin_reading or "BEGIN DEFERRED")
            yield from self._statements.lines(db)
        except Error as error:
            raise self._translated(error, is_inside=False) from error
        finally:
            connection.close()

    def load(self, lines: Iterable[Line], *, replace: bool = False) -> None:
        _refuse_event_loop()
        plans = ChainMap({}, self._plans)
        with self._errors(), self._in_line(), transaction.atomic(using=self.alias):
            db = self._db()
            self._dialect.lock_all(db)
            self._statements_with(plans).take_in(db, lines, self._now_ms(), replace=replace)
            self.when_certain(partial(self._plans.update, plans.maps[0]))

    # ---- being a guest ----------------------------------------------------------------------------------------------

    def is_in_transaction(self) -> bool:
        """Whether what is done now is part of a transaction of the project's."""
        connection = connections[self.alias]
        return bool(connection.in_atomic_block or not connection.get_autocommit())

    @property
    def is_in_good_transaction(self) -> bool:
        """The same, and of one that is not to be rolled back whatever comes."""
        connection = connections[self.alias]
        return bool(connection.in_atomic_block and not connection.needs_rollback)

    async def in_thread(self, work: Callable[[], None]) -> BaseException | None:
        working = asyncio.ensure_future(sync_to_async(work, thread_sensitive=True)())
        cancelled: BaseException | None = None
        while not working.done():
            try:
                await asyncio.wait([working])
            except asyncio.CancelledError as error:
                cancelled = error
        working.result()
        return cancelled

    def when_certain(self, then: Callable[[], None]) -> None:
        _refuse_event_loop()
        around = connections[self.alias].atomic_blocks
        if around and getattr(around[0], "_from_testcase", False):
            return  # that is rolled back, and those who count its hooks count theirs
        transaction.on_commit(then, using=self.alias)

    def leave_thread(self) -> None:
        if not self.is_in_transaction():
            connections[self.alias].close()

    def when_lost(self, then: Callable[[], None]) -> None:
        self._lost = [ref for ref in self._lost if ref() is not None]
        self._lost.append(weakref.WeakMethod(then))

    # ---- transactions -----------------------------------------------------------------------------------------------

    def _db(self) -> DjangoConnection:
        return DjangoConnection(connections[self.alias], self._dialect)

    def _transact(self, op: Op[Any], turn: _Turn) -> Any:
        perform, writes = turn.statements.of(op)
        if not writes:
            try:
                with self._reading(turn) as db:
                    return perform(db, op)
            except NeedsWrite as needs:
                perform = needs.perform
        return self._write(op, perform, turn)

    def _reserve(self, op: Reserve, turn: _Turn) -> Granted | Shortfall:
        """A no is read: who gets one neither stands in line for it nor keeps others waiting."""
        features = {(op.org, demand.feature) for demand in op.demands}
        if self._short.isdisjoint(features) and features <= self._places.keys():
            granted: Granted | None = self._write(op, partial(self._at_once, turn), turn)
            if granted is not None:
                return granted
        reply: Granted | Shortfall = self._shortfall(op, turn) or self._write(op, turn.statements.reserve_all, turn)
        if isinstance(reply, Granted):
            self._short -= features
        else:
            if len(self._short) >= PLACES_KEPT:
                self._short.clear()
            self._short.add((op.org, reply.feature))
        return reply

    def _at_once(self, turn: _Turn, db: DjangoConnection, op: Reserve) -> Granted | None:
        granted = turn.statements.reserve_at_once(db, op)
        if granted is None:
            transaction.set_rollback(True, using=self.alias)  # of nothing; but those in line go on
        return granted

    def _shortfall(self, op: Reserve, turn: _Turn) -> Shortfall | None:
        with self._reading(turn) as db:
            return turn.statements.shortfall(db, op)

    def _write(self, op: Op[Any], perform: Perform, turn: _Turn) -> Any:
        with self._in_line(), transaction.atomic(using=self.alias):
            db = self._db()
            self._dialect.lock(db, _written(op), max(0.0, turn.deadline - monotonic()))
            reply = perform(db, op)
            if type(reply) is Granted and self._is_news(reply):
                self.when_certain(partial(self._statements.committed, reply))
            if turn.plans:
                self.when_certain(partial(self._plans.update, turn.plans))
        return reply

    @contextmanager
    def _in_line(self) -> Iterator[None]:
        """Others had the lock for too long. Only a savepoint was lost, so it can be asked for again anywhere."""
        try:
            yield
        except Error as error:
            if _code(error) != LOCK_NOT_AVAILABLE:
                raise
            raise Busy(str(error)) from error

    def _is_news(self, reply: Granted) -> bool:
        held = [hold for hold in reply.holds if hold is not None and hold.n]
        return any(self._places.get((hold.org, hold.feature)) != hold.place for hold in held)

    @contextmanager
    def _reading(self, turn: _Turn) -> Iterator[DjangoConnection]:
        """A transaction that sees one moment and keeps no writer waiting; inside of the project's, a savepoint."""
        db = self._db()
        if turn.is_inside:
            with transaction.atomic(using=self.alias):
                yield db
        elif self._dialect.begin_reading:
            with transaction.atomic(using=self.alias):
                db.execute(self._dialect.begin_reading)
                yield db
        else:  # past Django, whose transactions on SQLite may be those of writers
            db.execute("BEGIN DEFERRED")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")

    def _check_tables(self) -> None:
        from .models import TABLES  # here: models are made after this module was imported

        if not self._has_tables:
            missing = set(TABLES) - set(connections[self.alias].introspection.table_names())
            if missing:
                raise self._unmigrated(f"has no table {min(missing)!r}")
            self._has_tables = True

    def _unmigrated(self, problem: str) -> ConfigurationError:
        database = "" if self.alias == "default" else f" --database {self.alias}"
        return ConfigurationError(
            f"TIER_BASE_URL: the database {self.alias!r} {problem}; run: manage.py migrate tier_middleware{database}",
            path="TIER_BASE_URL",
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Django's errors as ours."""
        try:
            yield
        except Error as error:
            connection = connections[self.alias]
            ours = self._translated(error, is_inside=connection.in_atomic_block)
            if isinstance(ours, EngineUnavailable) and not connection.in_atomic_block and not _is_usable(connection):
                connection.close()  # so that the next attempt connects anew
            raise ours from error

    def _translated(self, error: Error, *, is_inside: bool) -> Exception:
        code = _code(error)
        if code in AGAIN and not is_inside:  # inside, all of the transaction would have to be done again
            return Busy(str(error))
        if code in OUT_OF_RANGE:
            return InvalidRequest(f"n: the usage of a period must be from 0 to {MAX_UNITS} ({error})", path="n")
        if code == NO_TABLE or "no such table" in str(error):
            return self._unmigrated(f"is not migrated ({error})")
        if isinstance(error, DataError):
            return InvalidRequest(f"the database {self.alias!r} cannot keep this: {error}")
        return EngineUnavailable(f"the database {self.alias!r}: {error}")


def _is_usable(connection: Any) -> bool:
    return connection.connection is None or connection.is_usable()


def _code(error: Error) -> str | int | None:
    """PostgreSQL's code of five characters, or SQLite's primary code."""
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if code is not None:
        return str(code)
    extended: int = getattr(cause, "sqlite_errorcode", 0)
    return extended if extended == sqlite3.SQLITE_CONSTRAINT_CHECK else extended & 0xFF


def _written(op: Op[Any]) -> Sequence[str]:
    """Whose writers an operation waits for: those of its org, and of its key, since keys are of all orgs."""
    if isinstance(op, Commit | Renew):
        keys = {f"key {clock_of(kept.hold.org)} {kept.key}" for kept in op.kept if kept.key}
        return sorted({kept.hold.org for kept in op.kept} | keys)
    if isinstance(op, Release):
        return sorted({hold.org for hold in op.holds})
    if isinstance(op, Push):
        return ("plans",)
    if isinstance(op, MakeClock | AdvanceClock):
        return (f"clock {op.id}",)
    org: str = op.org  # type: ignore[attr-defined]  # all others that write are about one
    return (org, f"key {clock_of(org)} {op.key}") if isinstance(op, Record | Adjust) else (org,)


def _refuse_event_loop() -> None:
    """As Django does, with its own way out of it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise OnLoop(
            "the engine is on Django's connection, which blocks: on an event loop await AsyncTier's calls "
            "(tier_middleware.tier), or ask in a thread (sync_to_async)"
        )


def django_engine(base_url: str, now_ms: Milliseconds, *, ledger_days: int = DEFAULT_LEDGER_DAYS) -> DjangoEngine:
    """The engine that ``django://ALIAS`` names. Raises `ConfigurationError` that names the alias, or its database."""
    url = urlsplit(base_url)
    alias = url.netloc
    if base_url != f"django://{alias}" or not alias:
        raise _bad_url(base_url, "must be 'django://' and an alias of DATABASES, such as 'django://default'")
    try:
        vendor = connections[alias].vendor
    except ConnectionDoesNotExist as error:
        known = ", ".join(repr(name) for name in connections)
        raise _bad_url(base_url, f"{alias!r} is not in DATABASES, which has {known}") from error
    except ImproperlyConfigured as error:
        raise _bad_url(base_url, f"the database {alias!r} cannot be used ({error})") from error
    if vendor not in DIALECTS:
        raise _bad_url(base_url, f"the database {alias!r} is {vendor!r}, and must be SQLite or PostgreSQL")
    return DjangoEngine(alias, now_ms, ledger_days=ledger_days)


def _bad_url(base_url: str, problem: str) -> ConfigurationError:
    return ConfigurationError(f"TIER_BASE_URL: {problem}, got {base_url!r}", path="TIER_BASE_URL")
