"""Lines of an export on their way in: all of them are read and checked before an engine is asked to take the first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from ..errors import EngineUnavailable
from ..transfer import Line, decoded, encoded

__all__ = ["spooled"]

IN_MEMORY: Final = 1 << 20  # bytes; what is larger goes to a file


@contextmanager
def spooled(lines: Iterable[Line]) -> Iterator[Iterable[Line]]:
    """The same lines, at hand: as often as somebody asks for them, and without a wait for where they come from.

    Raises `EngineUnavailable` where there is no room for them.
    """
    import tempfile  # here: hardly anybody needs it, and it is slow to import

    with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
        for line in lines:
            try:
                _write(file, line)
            except OSError as error:
                where = f"no room to keep the export while it is checked, in {tempfile.gettempdir()!r}"
                raise EngineUnavailable(f"{where}: {error.strerror}") from error
        yield _Spool(file)


def _write(file: IO[bytes], line: Line) -> None:
    # a plan's body is as it was written, which may be on several lines; in a text no line break stands for itself
    file.write(encoded(line)[:-1].replace(b"\n", b" ") + b"\n")


class _Spool:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __iter__(self) -> Iterator[Line]:
        self._file.seek(0)
        return map(decoded, self._file)
