"""An export as it is read: each line is what it says, in its place, and within what an engine can store. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from .clock import DAY_MS
from .errors import InvalidRequest, PricingError
from .ledger import LAST_MS
from .names import (
    MAX_UNITS,
    checked_clock,
    checked_clock_name,
    checked_feature,
    checked_key,
    checked_note,
    checked_org,
    checked_plan,
)
from .orginfo import checked_info
from .schedules import MAX_DAYS_AHEAD
from .transfer import (
    FORMAT,
    ClockLine,
    DayLine,
    EntryLine,
    Header,
    KeyLine,
    Line,
    OrgLine,
    PlanLine,
    UsageLine,
    decoded,
    info_of_line,
    key_of_line,
)

__all__ = ["on_line", "read"]

LAST_PHASE_MS: Final = LAST_MS + MAX_DAYS_AHEAD * DAY_MS
MAX_DAY: Final = MAX_UNITS << 31  # what all entries of a day may add up to
BYTE_ORDER_MARK: Final = "\ufeff"


def read(lines: Iterable[bytes | str]) -> Iterator[Line]:
    """The lines of an export after its header, each checked as it comes.

    Raises `InvalidRequest` that names the line, the field and the value.
    """
    texts = iter(lines)
    first = _header(next(texts, b""))
    place, number = _Place(), 1
    for number, text in enumerate(texts, 2):
        try:
            if number > first.lines:
                raise InvalidRequest(f"lines: the header says {first.lines}, and there are more", path="lines")
            line = _line(text)
            place.follow(line)
            _check(line)
        except InvalidRequest as error:
            raise on_line(number, error) from error
        yield line
    if number < first.lines:
        ends = InvalidRequest(f"lines: the header says {first.lines}, and the file ends here", path="lines")
        raise on_line(number, ends)


def on_line(number: int, error: InvalidRequest | PricingError) -> InvalidRequest:
    """The error with the number of the line that it is about."""
    return InvalidRequest(f"line {number}: {error.message}", path=f"line {number}: {error.path}", code=error.code)


def _header(text: bytes | str) -> Header:
    try:
        first = _line(_unmarked(text))
        if not isinstance(first, Header):
            raise InvalidRequest("type: must be 'tier_middleware', the header of an export", path="type")
        if first.format != FORMAT:
            raise InvalidRequest(f"format: must be {FORMAT}, the one that is known, got {first.format}", path="format")
    except InvalidRequest as error:
        raise on_line(1, error) from error
    return first


def _unmarked(text: bytes | str) -> bytes | str:
    """The text without a byte order mark, which some editors put in front of a file."""
    if isinstance(text, str):
        return text.removeprefix(BYTE_ORDER_MARK)
    return text.removeprefix(BYTE_ORDER_MARK.encode())


def _line(text: bytes | str) -> Line:
    try:
        line: Line = decoded(text)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeError) as error:
        raise _mistake(str(error), text) from error
    return line


class _Place:
    """Where in an export we are: what may come next, and what it must come after."""

    ROWS: Final = {PlanLine: 0, ClockLine: 1, OrgLine: 2, UsageLine: 2, DayLine: 2, EntryLine: 2, KeyLine: 3}

    def __init__(self) -> None:
        self._row = 0
        self._org: str | None = None
        self._plan = self._clock = ""
        self._usage: tuple[str, str, int] | None = None
        self._day_ms: int | None = None
        self._recorded_ms: int | None = None

    def follow(self, line: Line) -> None:
        kind = type(line).__struct_config__.tag
        row = self.ROWS.get(type(line), -1)
        if row < self._row:
            raise InvalidRequest(f"type: {kind!r} must not come here: plans, then clocks, orgs, and keys", path="type")
        self._row = row
        if isinstance(line, PlanLine):
            _ascending("plan", self._plan, line.plan)
            self._plan = line.plan
        elif isinstance(line, ClockLine):
            _ascending("id", self._clock, line.id)
            self._clock = line.id
        elif isinstance(line, OrgLine):
            key = key_of_line(line)
            _ascending("org", self._org or "", key)
            self._org, self._usage = key, None
        elif isinstance(line, UsageLine):
            if self._org is None:
                raise InvalidRequest("type: 'usage' must come after its org", path="type")
            usage = (line.feature, line.plan, line.period_ms)
            _ascending("feature, plan, period_ms", self._usage or ("", "", 0), usage)
            self._usage, self._day_ms, self._recorded_ms = usage, None, None
        elif isinstance(line, DayLine | EntryLine):
            if self._usage is None:
                raise InvalidRequest(f"type: {kind!r} must come after its usage", path="type")
            self._follow_in_ledger(line)

    def _follow_in_ledger(self, line: DayLine | EntryLine) -> None:
        if isinstance(line, EntryLine):
            if self._recorded_ms is not None and line.recorded_ms < self._recorded_ms:
                before = f"recorded_ms: must not lie before that of the entry before it, {self._recorded_ms}"
                raise InvalidRequest(f"{before}, got {line.recorded_ms}", path="recorded_ms")
            self._recorded_ms = line.recorded_ms
            return
        if self._recorded_ms is not None:
            raise InvalidRequest("type: 'day' must come before all entries of its usage", path="type")
        if self._day_ms is not None:
            _ascending("day_ms", self._day_ms, line.day_ms)
        self._day_ms = line.day_ms


def _ascending(field: str, before: Any, value: Any) -> None:
    if value <= before:
        raise InvalidRequest(f"{field}: must come after {before!r}, got {value!r}", path=field)


def _check(line: Line) -> None:
    match line:
        case PlanLine():
            checked_plan(line.plan)
        case ClockLine():
            checked_clock(line.id, "id")
            checked_clock_name(line.name)
            _time("present_ms", line.present_ms)
        case OrgLine():
            checked_org(line.org)
            _check_clock(line)
            checked_info(info_of_line(line))
            _time("created_ms", line.created_ms)
            _time("changed_ms", line.changed_ms)
            effective_ms = [phase.effective_ms for phase in line.phases]
            if effective_ms != sorted(set(effective_ms)):
                raise InvalidRequest(f"phases: must be in order of effective_ms, got {effective_ms}", path="phases")
            for index, phase in enumerate(line.phases):
                _within(f"phases[{index}].effective_ms", phase.effective_ms, 0, LAST_PHASE_MS)
                _within(f"phases[{index}].anchor_ms", phase.anchor_ms, 0, phase.effective_ms)
        case UsageLine():
            checked_feature(line.feature)
            if line.plan:
                checked_plan(line.plan)
            _within("used", line.used, 0, MAX_UNITS)
            _within("period_ms", line.period_ms, -LAST_MS if line.plan else 0, LAST_MS if line.plan else 0)
        case DayLine():
            _time("day_ms", line.day_ms, -LAST_MS)
            if line.day_ms % DAY_MS:
                raise InvalidRequest(f"day_ms: must be midnight of a day in UTC, got {line.day_ms}", path="day_ms")
            _within("n", line.n, -MAX_DAY, MAX_DAY)
        case EntryLine():
            _within("n", line.n, -MAX_UNITS, MAX_UNITS)
            _within("level", line.level or 0, 0, MAX_UNITS)
            _time("at_ms", line.at_ms, -LAST_MS)
            _time("recorded_ms", line.recorded_ms)
            if isinstance(line.key, int):
                _within("key", line.key, 1, MAX_UNITS)
            elif line.key is not None:
                checked_key(line.key)
            checked_note(line.note)
        case KeyLine():
            checked_key(line.key)
            _check_clock(line)
            _time("expires_ms", line.expires_ms)


def _check_clock(line: OrgLine | KeyLine) -> None:
    if line.clock:
        checked_clock(line.clock)


def _time(field: str, ms: int, least: int = 0) -> None:
    _within(field, ms, least, LAST_MS)


def _within(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        span = f"from {least} to {most}" if least < most else str(least)
        raise InvalidRequest(f"{field}: must be {span}, got {_short(value)}", path=field)


def _mistake(message: str, text: bytes | str) -> InvalidRequest:
    """What msgspec found, with the field and the value that it found it in."""
    what, _, path = message.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    shown = _value_at(text, field)
    named = f"{field}: {what}" if field else what
    return InvalidRequest(named if shown is None else f"{named}, got {shown}", path=field or "type")


def _value_at(text: bytes | str, field: str) -> str | None:
    try:
        value = json.loads(text)
        for name, index in re.findall(r"([A-Za-z_]+)|\[(\d+)\]", field):
            value = value[name] if name else value[int(index)]
    except (ValueError, LookupError, TypeError, RecursionError):
        value = text if isinstance(text, str) else text.decode(errors="replace")
    return _short(value)


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
