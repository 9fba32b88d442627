"""The outbox's file and the connections to it, which forks, other writers and a deleted file do not tear."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from .. import forks
from ..clock import monotonic, sleep
from ..engines.sqlite_errors import is_busy, problem_of
from ..engines.sqlite_files import identity, move_log, roll_back
from ..errors import EngineUnavailable, TierError
from ..ops import Busy
from .schema import check_whose, mistake, prepare

__all__ = ["File"]

R = TypeVar("R")

logger: Final = logging.getLogger("tier_middleware")

PATIENCE_SECONDS: Final = 5.0  # of the reporter and of people; appends have their driver's
MODE: Final = 0o660  # less the umask: the names of orgs are nobody else's business
LOG_BYTES: Final = 1_000_000  # up to which the log is left alone, and to which it is cut once it was moved
LOG_PAGES: Final = 1000  # from which on writers wait until all of it is moved


class _Line:
    """One connection and its lock: requests append on one, and never wait for what the reporter does on the other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self.opened: tuple[int, int] | None = None  # the file's device and inode


class File:
    """Transactions on the file at ``path``, whose reports are for ``server``. It is made when it is first needed."""

    def __init__(self, path: Path, server: str | None) -> None:
        self.path = path
        self._server = server
        self._front, self._back = _Line(), _Line()
        forks.watch(self)

    def append(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """Write, of a request: raises `Busy` at once where others write."""
        with self._using(self._front) as connection, _writing(connection):
            return work(connection)

    def look(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """Read a little, as requests may: on their connection, and without waiting for anybody."""
        with self._using(self._front) as connection:
            return work(connection)

    def read(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """Read, waiting for others where that is needed."""
        deadline = monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._using(self._back) as connection:
                    return work(connection)
            except Busy:
                if monotonic() >= deadline:
                    raise EngineUnavailable(f"{str(self.path)!r} was locked by other processes") from None
                sleep(0.002)

    def write(self, work: Callable[[sqlite3.Connection], R]) -> R:
        """Write, waiting for others."""

        def written(connection: sqlite3.Connection) -> R:
            with _writing(connection):
                return work(connection)

        return self.read(written)

    def move_log(self) -> None:
        """Move a log that has grown long into the file, waiting for the disk."""
        try:
            is_long = self.path.with_name(f"{self.path.name}-wal").stat().st_size > LOG_BYTES
        except OSError:
            is_long = False
        if is_long:
            self.read(partial(move_log, longest=LOG_PAGES))

    def open(self) -> None:
        with self._using(self._front):
            pass

    def close(self) -> None:
        for line in (self._front, self._back):
            with line.lock:
                _close(line)

    # ---- connections ------------------------------------------------------------------------------------------------

    @contextmanager
    def _using(self, line: _Line) -> Iterator[sqlite3.Connection]:
        with line.lock:
            if line.connection is not None and identity(self.path) != line.opened:
                logger.error("tier: the outbox %r was deleted or replaced while it was open", str(self.path))
                _close(line)
            is_opening = line.connection is None
            try:
                if line.connection is None:
                    line.connection = self._connect(is_front=line is self._front)
                    line.opened = identity(self.path)
                yield line.connection
            except sqlite3.Error as error:
                raise _translated(error, self.path, opening=is_opening) from error

    def _connect(self, *, is_front: bool) -> sqlite3.Connection:
        with suppress(OSError):  # there already; or SQLite says what is wrong
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, MODE))
        if self.path.exists() and not os.access(self.path, os.W_OK):  # SQLite would open it for reading only
            raise mistake(f"{str(self.path)!r} cannot be written")
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            check_whose(connection, self.path)  # first: a foreign file stays as it is
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise mistake(f"{str(self.path)!r} is on a file system without shared memory; put it on a local disk")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            if is_front:
                connection.execute("PRAGMA wal_autocheckpoint = 0")  # the disk is waited for by the reporter
            with _writing(connection):
                prepare(connection, self.path, self._server)
        except BaseException:
            connection.close()
            raise
        return connection

    # ---- forks ------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the connections, so that a child inherits none: SQLite believes that it has their locks."""
        for line in (self._front, self._back):
            line.lock.acquire()
            _close(line)

    def after_fork(self, *, is_child: bool) -> None:
        for line in (self._back, self._front):
            line.lock.release()


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def _close(line: _Line) -> None:
    if line.connection is not None:
        line.connection.close()
        line.connection = None


def _translated(error: sqlite3.Error, path: Path, *, opening: bool) -> Busy | TierError:
    if is_busy(error):
        return Busy(str(error))
    problem = problem_of(error, path, opening=opening)
    if problem is not None:
        return mistake(problem)
    return EngineUnavailable(f"the outbox {str(path)!r}: {error}", code="outbox_unavailable")
