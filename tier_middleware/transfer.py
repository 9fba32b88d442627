"""What an engine knows, as JSON lines: the form in which it leaves one engine and enters another. Pure.

A header says how many lines there are. Then come plans, test clocks, orgs and keys, each kind in order; behind an org
its usages, behind a usage its ledger: days that were rolled up, then entries. So whoever reads holds one line, and
whoever writes finds what belongs together in one place. Open reservations stay behind: they are of processes that work
with the old engine, and an application moves when none of them does. Times are whole milliseconds since the Unix epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Raw, Struct

from .ledger import Change
from .model import Phase, Plan
from .names import (
    clock_of,
    feature_plan,
    org_key,
    org_name,
)
from .orginfo import OrgInfo
from .pricing import plan_text, read_plan

__all__ = [
    "FORMAT",
    "ClockLine",
    "DayLine",
    "EntryLine",
    "Header",
    "KeyLine",
    "Line",
    "OrgLine",
    "PlanLine",
    "UsageLine",
    "change_line",
    "change_of_line",
    "decoded",
    "encoded",
    "header",
    "info_of_line",
    "key_of_line",
    "org_line",
    "phases_of_line",
    "plan_line",
    "plan_of_line",
]

FORMAT: Final = 1
"""The version of the form."""


class _Line(Struct, frozen=True, tag_field="type", omit_defaults=True, forbid_unknown_fields=True):
    pass


class Header(_Line, frozen=True, tag="tier_middleware"):
    """The first line: the version of the format, and how many lines there are, this one too."""

    format: int
    lines: int


class PlanLine(_Line, frozen=True, tag="plan"):
    plan: str
    body: Raw  # as a pricing.json has it: its numbers are exact


class ClockLine(_Line, frozen=True, tag="clock"):
    id: str
    name: str
    present_ms: int


class InfoFields(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    email: str = ""
    name: str = ""
    description: str = ""
    phone: str = ""
    payment_method: str = ""
    default_payment_method: str = ""
    metadata: dict[str, str] = {}


class PhaseFields(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    effective_ms: int
    anchor_ms: int
    features: list[str]
    trial: bool = False


class OrgLine(_Line, frozen=True, tag="org"):
    """An org, with the id of the test clock that it lives under, if it does."""

    org: str
    created_ms: int
    changed_ms: int
    clock: str = ""
    phases: list[PhaseFields] = []
    info: InfoFields = InfoFields()


class UsageLine(_Line, frozen=True, tag="usage"):
    """The usage of a feature by the org before it, in a plan and the billing period from ``period_ms`` on.

    ``plan`` is empty, and ``period_ms`` 0, for a perpetual feature.
    """

    feature: str
    plan: str
    period_ms: int
    used: int


class DayLine(_Line, frozen=True, tag="day"):
    day_ms: int
    n: int


class EntryLine(_Line, frozen=True, tag="entry"):
    kind: Literal["commit", "report", "clobber", "adjust"]
    n: int
    at_ms: int
    recorded_ms: int
    key: str | int | None = None
    level: int | None = None
    note: str = ""


class KeyLine(_Line, frozen=True, tag="key"):
    """A key that counts once, a digest of what was sent with it, and until when it is remembered."""

    key: str
    contents: str
    expires_ms: int
    clock: str = ""


Line: TypeAlias = Header | PlanLine | ClockLine | OrgLine | UsageLine | DayLine | EntryLine | KeyLine

_encode = msgspec.json.Encoder().encode
decoded = msgspec.json.Decoder(Line).decode
"""A line that `encoded` made."""


def encoded(line: Line) -> bytes:
    return _encode(line) + b"\n"


def header(lines: int) -> Header:
    """The header of an export that has so many lines after it."""
    return Header(FORMAT, lines + 1)


def plan_line(plan: Plan) -> PlanLine:
    return PlanLine(plan.name, Raw(plan_text(plan).encode()))


def plan_of_line(line: PlanLine) -> Plan:
    return read_plan(line.plan, bytes(line.body).decode())


def org_line(key: str, created_ms: int, changed_ms: int, phases: Iterable[Phase], info: OrgInfo) -> OrgLine:
    texts = {field: getattr(info, field) for field in InfoFields.__struct_fields__ if field != "metadata"}
    return OrgLine(
        org_name(key),
        created_ms,
        changed_ms,
        clock_of(key),
        [PhaseFields(p.effective_ms, p.anchor_ms, [str(entry) for entry in p.features], p.trial) for p in phases],
        InfoFields(**texts, metadata=dict(sorted(info.metadata.items()))),
    )


def key_of_line(line: OrgLine) -> str:
    """How engines know the org."""
    return org_key(line.org, line.clock) if line.clock else line.org


def phases_of_line(line: OrgLine) -> tuple[Phase, ...]:
    return tuple(
        Phase(p.effective_ms, p.anchor_ms, tuple(feature_plan(entry, "phases") for entry in p.features), p.trial)
        for p in line.phases
    )


def info_of_line(line: OrgLine) -> OrgInfo:
    return OrgInfo(**msgspec.structs.asdict(line.info))


def change_line(change: Change) -> DayLine | EntryLine:
    if change.kind == "day":
        return DayLine(change.at_ms, change.n)
    return EntryLine(
        change.kind, change.n, change.at_ms, change.recorded_ms, change.key, change.level, change.note
    )  # fmt: skip


def change_of_line(line: DayLine | EntryLine) -> Change:
    if isinstance(line, DayLine):
        return Change("day", line.n, line.day_ms, line.day_ms)
    return Change(line.kind, line.n, line.at_ms, line.recorded_ms, line.key, line.level, line.note)
