"""Exports to files and imports from them, with a progress bar where somebody watches."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import IO, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import InvalidRequest
from ..transfer import Header

__all__ = ["Counting", "reading", "watched", "written"]

MAGIC: Final = b"SQLite format 3\0"
ENDINGS: Final = ("", "-wal", "-shm", "-journal")  # of the files of a database


@contextmanager
def reading(file: str) -> Iterator[IO[bytes]]:
    """A file to read; ``-`` is standard input. Raises `InvalidRequest` where it cannot be read."""
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115  # closed below; a `with` here would catch errors of the caller's block
    except OSError as error:
        raise InvalidRequest(f"file: cannot be read ({error.strerror}), got {file!r}", path="file") from error
    with opened:
        yield opened


def written(lines: Iterable[bytes], file: str, database: Path | None = None) -> int:
    """Write lines to a file, ``-`` for standard output: how many they are. The file is there once it is complete.

    Raises `InvalidRequest` where it cannot be written, and where it is a database, such as the one that is exported.
    """
    counted = Counting()
    if file == "-":
        sys.stdout.buffer.writelines(counted(lines))
        return counted.lines
    path = Path(file)
    if database is not None and any(_is_same(path, Path(f"{database}{end}")) for end in ENDINGS):
        raise InvalidRequest(f"file: is the database that is exported, got {file!r}", path="file")
    if _is_database(path):
        raise InvalidRequest(f"file: is a database, which an export would replace, got {file!r}", path="file")
    try:
        with _unfinished(path) as opened:
            opened.writelines(counted(lines))
    except OSError as error:
        raise InvalidRequest(f"file: cannot be written ({error.strerror}), got {file!r}", path="file") from error
    return counted.lines


@contextmanager
def _unfinished(path: Path) -> Iterator[IO[bytes]]:
    """A new file that becomes ``path`` at the end, or, if anything ends the block before, nothing."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    with _ended_by_exit():
        try:
            with open(unfinished, "xb") as opened:
                yield opened
                opened.flush()
                os.fsync(opened.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


@contextmanager
def _ended_by_exit() -> Iterator[None]:
    """Let a SIGTERM raise `SystemExit`, so that what is half done is cleaned up, where nobody else answers it."""
    is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(SIGTERM) is signal.SIG_DFL
    if is_ours:
        signal.signal(SIGTERM, _exit)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(SIGTERM, signal.SIG_DFL)


def _exit(*_: object) -> None:
    sys.exit(128 + SIGTERM)  # as a shell has it


def _is_same(path: Path, other: Path) -> bool:
    return path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other))


def _is_database(path: Path) -> bool:
    if not path.is_file():  # nor one that blocks, such as a pipe
        return False
    try:
        with path.open("rb") as opened:
            return opened.read(len(MAGIC)) == MAGIC
    except OSError:  # what cannot be read may be replaced
        return False


class Counting:
    """Counts lines that pass."""

    def __init__(self) -> None:
        self.lines = 0

    def __call__(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            self.lines += 1
            yield line


def watched(lines: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The same lines, with a bar on the terminal that moves as they pass. Their header says how many there are."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        number = 0
        for number, line in enumerate(lines, 1):
            if number == 1:
                progress.update(task, total=_lines_of(line))
            elif number % 1000 == 0:
                progress.update(task, completed=number)
            yield line
        progress.update(task, completed=number)


def _lines_of(header: bytes) -> int | None:
    try:
        return msgspec.json.decode(header, type=Header).lines
    except (msgspec.DecodeError, UnicodeError):  # for the reader to say
        return None
