"""``sqlite://``: the embedded engine. One file, any number of processes and threads.

This module has the connections: opening, transactions, errors, checkpoints and forks. What the operations do is in
`tier_middleware.engines.statements`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Final, TypeVar, cast

from .. import forks
from ..clock import Milliseconds, monotonic, sleep
from ..errors import ConfigurationError, EngineUnavailable, InvalidRequest
from ..ledger import DEFAULT_LEDGER_DAYS
from ..names import MAX_UNITS
from ..ops import Busy, Op
from ..transfer import Line
from .catalogue import Catalogue
from .ledger import Ledger
from .schema import migrate
from .sqlite_errors import is_busy, problem_of
from .sqlite_files import identity, move_log, roll_back
from .statements import NeedsWrite, Statements

__all__ = ["SqliteEngine"]

R = TypeVar("R")

PAGE_SIZE: Final = 1024  # bytes; a commit copies whole pages to the log, and ours change a few dozen bytes
LOADING_CACHE_KIB: Final = 64 * 1024  # of pages; what does not fit goes to the log before its time
CHECKPOINT_EVERY: Final = 1000  # transactions of this process
FORK_WAIT_SECONDS: Final = 5.0  # for transactions and checkpoints of other threads


class SqliteEngine:
    """Keeps everything in one file, with a write-ahead log: readers never wait, writers wait for each other.

    ``synchronous`` is ``"normal"`` (what was committed survives a killed process) or ``"full"`` (and a power cut).
    Entries of the ledger are kept for ``ledger_days``; with 0 none are made.
    """

    def __init__(
        self,
        path: Path,
        now_ms: Milliseconds,
        *,
        synchronous: str = "normal",
        ledger_days: int = DEFAULT_LEDGER_DAYS,
    ) -> None:
        self.path = path
        self._now_ms = now_ms
        self._synchronous = synchronous
        self._ledger_days = ledger_days
        self._connecting = threading.Lock()
        self._reset()
        forks.watch(self)

    def _reset(self) -> None:
        self._pid = 0
        self._is_ready = False
        self._was_ready = False
        self._statements = self._new_statements()
        self._idle: deque[sqlite3.Connection] = deque()
        self._all: list[sqlite3.Connection] = []
        self._commits = 0
        self._checkpointing = threading.Lock()
        self._file: tuple[int, int] | None = None  # device and inode

    def _new_statements(self) -> Statements:
        return Statements(Catalogue(self.address, {}), Ledger(self._ledger_days), {})

    @property
    def address(self) -> str:
        return f"sqlite:///{self.path}"

    # ---- the port ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        self._give_back(self._take())

    def attempt(self, op: Op[R]) -> R:
        connection = self._take()
        try:
            return self._transact(connection, op)
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        finally:
            self._give_back(connection)

    def close(self) -> None:
        with self._checkpointing:  # until one that runs is done
            self._is_ready = False
            self._file = None
        self._close_idle()

    def __del__(self) -> None:
        if self._pid == os.getpid():  # not what a child has inherited
            self._close_idle()  # of a program that closes nothing: newer Pythons warn of each connection

    def export(self) -> Generator[Line, None, None]:
        connection = self._take()
        try:
            connection.execute("BEGIN")  # of a reader: writers go on, and it sees none of it
            yield from self._statements.lines(connection)
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        finally:
            roll_back(connection)
            self._give_back(connection)

    def load(self, lines: Iterable[Line], *, replace: bool = False) -> None:
        connection = self._take()
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA cache_size = {-LOADING_CACHE_KIB}")
            self._statements.take_in(connection, lines, self._now_ms(), replace=replace)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise _translated(error, self.path) from error
        finally:
            roll_back(connection)
            self._drop(connection)  # with its large cache
        self._start_checkpoint()

    # ---- transactions -----------------------------------------------------------------------------------------------

    def _transact(self, connection: sqlite3.Connection, op: Op[R]) -> R:
        perform, writes = self._statements.of(op)
        if not writes:
            try:
                connection.execute("BEGIN")
                reply = perform(connection, op)
                connection.execute("COMMIT")
                return cast("R", reply)
            except NeedsWrite as needs:
                connection.execute("ROLLBACK")
                perform = needs.perform
            except BaseException:
                roll_back(connection)
                raise
        try:
            connection.execute("BEGIN IMMEDIATE")
            reply = perform(connection, op)
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
        self._statements.committed(reply)
        self._commits += 1
        if self._commits >= CHECKPOINT_EVERY:
            self._start_checkpoint()
        return cast("R", reply)

    def _start_checkpoint(self) -> None:
        """Move the log into the database in a thread: it waits for the disk, and nobody should wait for it."""
        self._commits = 0
        if self._checkpointing.acquire(blocking=False):
            try:
                threading.Thread(target=self._run_checkpoint, name="tier-checkpoint", daemon=True).start()
            except RuntimeError:  # at the interpreter's end, or of too many: the next thousand transactions try again
                self._checkpointing.release()

    def _run_checkpoint(self) -> None:
        try:
            if self._is_ready:
                self._move_log()
        finally:
            self._checkpointing.release()

    def _move_log(self) -> None:
        try:
            connection = self._take()
        except (Busy, ConfigurationError, EngineUnavailable):  # the next thousand transactions try again
            return
        try:
            self._check_file()
            move_log(connection, longest=8 * CHECKPOINT_EVERY)
        except (sqlite3.Error, ConfigurationError):  # likewise; a file that is gone is said to the next one who asks
            pass
        finally:
            self._give_back(connection)

    # ---- connections ------------------------------------------------------------------------------------------------

    def _take(self) -> sqlite3.Connection:
        """A connection that nobody else uses; as many exist as threads were inside an attempt at once."""
        if self._pid != os.getpid() or not self._is_ready:
            self._make_ready()
        try:
            return self._idle.pop()
        except IndexError:
            try:
                with self._connecting:
                    return self._connect_again()
            except sqlite3.Error as error:
                raise _translated(error, self.path) from error

    def _give_back(self, connection: sqlite3.Connection) -> None:
        self._idle.append(connection)
        if not self._is_ready:
            self._close_idle()

    def _close_idle(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:  # several threads may be closing
                return
            self._drop(connection)

    def _drop(self, connection: sqlite3.Connection) -> None:
        try:
            connection.close()
        finally:  # not before: a fork waits until nobody is inside SQLite, whose locks a child would inherit
            self._all.remove(connection)

    def _make_ready(self) -> None:
        with self._connecting:
            if self._pid != os.getpid():
                self._forget_parent()
            if self._is_ready:
                return
            self._close_idle()
            self._check_file()
            # what was remembered may speak of another file: one may have been deleted while nothing was open
            self._statements = self._new_statements()
            try:
                connection = self._connect()
                try:
                    self._prepare(connection)
                except BaseException:
                    self._drop(connection)
                    raise
            except sqlite3.Error as error:
                raise _translated(error, self.path, opening=True) from error
            self._file = identity(self.path)
            self._is_ready = True
            self._give_back(connection)

    def _connect_again(self) -> sqlite3.Connection:
        """One more connection, to the same file: what is remembered of it would be somebody else's in another."""
        self._check_file()
        return self._connect()

    def _check_file(self) -> None:
        """Refuse to go on where the open file is not the one at its path any more, until somebody has looked at it."""
        expected = self._file  # read once: another thread may be closing
        if expected is not None and identity(self.path) != expected:
            self._is_ready = False
            raise ConfigurationError(
                f"TIER_BASE_URL: {str(self.path)!r} was deleted or replaced while it was open; restore it and restart",
                path="TIER_BASE_URL",
            )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        self._all.append(connection)
        try:
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        if self.path.exists() and not os.access(self.path, os.W_OK):  # SQLite would open it for reading only
            raise ConfigurationError(f"TIER_BASE_URL: {str(self.path)!r} cannot be written", path="TIER_BASE_URL")
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        migrate(connection, str(self.path), self._now_ms())  # first: a foreign file stays as it is
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigurationError(
                f"TIER_BASE_URL: {str(self.path)!r} is on a file system without shared memory, "
                f"so SQLite has no write-ahead log there (got {mode!r}); put it on a local disk",
                path="TIER_BASE_URL",
            )

    # ---- forks ------------------------------------------------------------------------------------------------------

    def _forget_parent(self) -> None:
        """In a new process: nothing inherited is used, nor closed (that would let go of the parent's file locks)."""
        _inherited.extend(self._all)
        self._reset()
        self._pid = os.getpid()

    def before_fork(self) -> None:
        """Close connections, so that the child inherits none: SQLite believes that it has the locks of inherited
        ones.
        """
        self._connecting.acquire()
        self._was_ready = self._is_ready
        self._is_ready = False  # nobody takes a connection now, and those that come back are closed
        deadline = monotonic() + FORK_WAIT_SECONDS
        self._close_idle()
        while self._all and monotonic() < deadline:
            sleep(0.001)
            self._close_idle()

    def after_fork(self, *, is_child: bool) -> None:
        self._is_ready = self._was_ready
        self._connecting.release()


_inherited: list[sqlite3.Connection] = []


def _translated(error: sqlite3.Error, path: Path, *, opening: bool = False) -> Exception:
    """SQLite's error as ours. What no wait will mend, such as damage, is a mistake in the configuration."""
    if is_busy(error):
        return Busy(str(error))
    if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_CONSTRAINT_CHECK:
        return InvalidRequest(f"n: the usage of a period must be from 0 to {MAX_UNITS} ({error})", path="n")
    problem = problem_of(error, path, opening=opening)
    if problem is not None:
        return ConfigurationError(f"TIER_BASE_URL: {problem}", path="TIER_BASE_URL")
    return EngineUnavailable(f"{str(path)!r}: {error}")
