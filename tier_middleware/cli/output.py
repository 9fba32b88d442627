"""How commands print: tables for people, one JSON document for programs, errors on one line.

On a terminal there is colour; piped, tables are plain columns. No name is ever broken, however narrow the place.
Nothing that comes from outside is read as rich markup or reaches the terminal as a control character.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..ops import Usage

__all__ = ["print_error", "print_json", "print_line", "print_table", "rfc3339", "usage_json", "usage_row"]

WIDTH: Final = 100_000  # wider than any row: what does not fit a terminal is wrapped by the terminal itself

USAGE_COLUMNS: Final = ("feature", "used", "limit", "remaining", "resets at (UTC)")


def line(text: str) -> str:
    """A text on one line, with control characters and invisible ones spelled out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def rfc3339(at: datetime) -> str:
    """The time in UTC with a Z, to the millisecond where it has some."""
    utc = at.astimezone(UTC)
    return utc.isoformat(timespec="milliseconds" if utc.microsecond else "seconds").removesuffix("+00:00") + "Z"


def usage_json(usage: Usage) -> dict[str, object]:
    """Stable keys; ``limit`` and ``remaining`` are null for unlimited, ``resets_at`` where usage is never reset."""
    return {
        "feature": usage.feature,
        "used": usage.used,
        "limit": usage.limit,
        "remaining": usage.remaining,
        "reserved": usage.reserved,
        "resets_at": None if usage.resets_at is None else rfc3339(usage.resets_at),
    }


def usage_row(usage: Usage) -> tuple[str, ...]:
    resets_at = "-" if usage.resets_at is None else rfc3339(usage.resets_at)
    return usage.feature, str(usage.used), _units(usage.limit), _units(usage.remaining), resets_at


def _units(units: int | None) -> str:
    return "unlimited" if units is None else str(units)


def print_json(value: object) -> None:
    """A price that no float holds exactly is printed as a text."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_line(*parts: str | tuple[str, str]) -> None:
    """Print one line of texts and (text, style) pairs."""
    pairs = ((part, "") if isinstance(part, str) else part for part in parts)
    text = Text.assemble(*((line(text), style) for text, style in pairs))
    _console().print(text, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Sequence[str] = ()) -> None:
    table = Table(box=SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left")
    for row in rows:
        table.add_row(*(Text(line(cell)) for cell in row))
    _console().print(table)


def print_error(message: str) -> None:
    sys.stderr.write(f"error: {line(message)}\n")


def _console() -> Console:
    return Console(width=WIDTH, markup=False, emoji=False, highlight=False)
