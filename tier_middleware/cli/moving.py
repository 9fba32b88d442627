"""Exports to files and imports from them, with a progress bar where somebody watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "xb") as opened:
            opened.writelines(counted(lines))
            opened.flush()
            os.fsync(opened.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise InvalidRequest(f"file: cannot be written ({error.strerror}), got {file!r}", path="file") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return counted.lines


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
