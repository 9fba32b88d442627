"""Export and import of the embedded engine, in SQL. Every function runs inside a transaction that its caller began."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from ..ledger import Change
from ..model import Aggregate, Phase, Plan
from ..names import clock_of
from ..ops import ClockRecord, DeleteOrg, Pull
from ..orginfo import OrgInfo, info_text, read_info
from ..pricing import plan_text
from ..transfer import ClockLine, KeyLine, Line, UsageLine, change_line, header, org_line, plan_line
from .catalogue import Catalogue, phase_columns
from .connection import Connection
from .keys import find_key
from .ledger import ENTER, Ledger, entry_columns, entry_id

__all__ = ["LAST_PLACE", "ORDERED_KEYS", "ORGS", "USAGES_OF_ORG", "SqliteTarget", "lines_of"]

# A usage that is 0 and has no history is as good as none.
WORTH_TELLING = (
    "(units.n > 0 OR EXISTS (SELECT 1 FROM units AS entry WHERE entry.usage_id = usage.id AND entry.id < 0) "
    "OR EXISTS (SELECT 1 FROM ledger_days WHERE ledger_days.usage_id = usage.id))"
)
KEYS = (
    "SELECT key, contents, expires_ms, '' AS clock FROM keys "
    "UNION ALL SELECT key, contents, expires_ms, clock FROM clock_keys"
)
REPLACING = "DO UPDATE SET contents = excluded.contents, expires_ms = excluded.expires_ms"
LAST_PLACE: Final = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'usage'"
ADD_PHASE: Final = "INSERT INTO phases VALUES (?, ?, ?, ?, ?)"
ADD_USAGE: Final = "INSERT INTO usage (id, org_id, feature, plan, start_ms, aggregate) VALUES (?, ?, ?, ?, ?, ?)"
ADD_DUE: Final = "INSERT INTO ledger_due VALUES (?, ?, ?)"
ADD_DAY: Final = "INSERT INTO ledger_days VALUES (?, ?, ?, ?)"
ADD_KEY: Final = f"INSERT INTO keys VALUES (?, ?, ?) ON CONFLICT (key) {REPLACING}"
ADD_CLOCK_KEY: Final = f"INSERT INTO clock_keys VALUES (?, ?, ?, ?) ON CONFLICT (clock, key) {REPLACING}"
AT_ONCE: Final = 1000  # rows
WATCHED_MS: Final = 0  # when an imported counter is looked at for old entries: soon
ORGS: Final = "SELECT id, name, created_ms, changed_ms, info FROM orgs ORDER BY name"
ORDERED_KEYS: Final = f"SELECT * FROM ({KEYS}) AS every_key ORDER BY clock, expires_ms, key"
USAGES = f"FROM usage JOIN units ON usage_id = usage.id AND units.id = 0 WHERE {WORTH_TELLING}"

USAGES_OF_ORG: Final = (
    f"SELECT usage.id, feature, plan, start_ms, n {USAGES} AND org_id = ? ORDER BY feature, plan, start_ms"
)


def lines_of(db: Connection, catalogue: Catalogue, ledger: Ledger) -> Iterator[Line]:
    counted = (
        *(f"SELECT count(*) FROM {table}" for table in ("plans", "clocks", "orgs", "ledger_days")),
        f"SELECT count(*) FROM ({KEYS}) AS every_key",
        f"SELECT count(*) {USAGES}",
        "SELECT count(*) FROM units WHERE id < 0",
    )
    yield header(sum(db.execute(question).fetchone()[0] for question in counted))
    plans = catalogue.pull(db, Pull()).plans
    yield from (plan_line(plans[name]) for name in sorted(plans))
    yield from (ClockLine(*columns) for columns in db.execute("SELECT id, name, present_ms FROM clocks ORDER BY id"))
    for id, name, created_ms, changed_ms, info in db.execute(ORGS):
        yield org_line(name, created_ms, changed_ms, catalogue.phases(db, id), read_info(info))
        for place, *columns in db.execute(USAGES_OF_ORG, (id,)):
            yield UsageLine(*columns)
            yield from map(change_line, ledger.changes(db, place))
    yield from (KeyLine(*columns) for columns in db.execute(ORDERED_KEYS))


class SqliteTarget:
    """Where `tier_middleware.engines.transfer.take_in` puts what it reads.

    Others wait meanwhile, so usage, entries and keys go in many at a time; `finish` stores the last of them.
    """

    def __init__(self, db: Connection, catalogue: Catalogue, now_ms: int) -> None:
        self._db = db
        self._catalogue = catalogue
        self._now_ms = now_ms
        self._org, self._clock = 0, ""
        (self._place,) = db.execute(LAST_PLACE).fetchone()
        self._entry = 0
        self._rows: defaultdict[str, list[tuple[object, ...]]] = defaultdict(list)  # by statement
        self._waiting = 0
        self._keys: dict[tuple[str, str], str] = {}  # those that wait

    def plans(self) -> Mapping[str, Plan]:
        return self._catalogue.pull(self._db, Pull()).plans

    def add_plan(self, plan: Plan) -> None:
        self._db.execute("INSERT INTO plans VALUES (?, ?, ?)", (plan.name, plan_text(plan), self._now_ms))

    def clock(self, id: str) -> ClockRecord | None:
        row = self._db.execute("SELECT id, name, present_ms FROM clocks WHERE id = ?", (id,)).fetchone()
        return None if row is None else ClockRecord(*row)

    def set_clock(self, clock: ClockRecord) -> None:
        self._db.execute(
            "INSERT INTO clocks VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, present_ms = excluded.present_ms",
            clock,
        )

    def has_org(self, name: str) -> bool:
        return self._catalogue.find(self._db, name) is not None

    def drop_org(self, name: str) -> None:
        self._catalogue.delete_org(self._db, DeleteOrg(name))

    def add_org(self, name: str, created_ms: int, changed_ms: int, phases: tuple[Phase, ...], info: OrgInfo) -> None:
        added = self._db.execute(
            "INSERT INTO orgs (name, created_ms, changed_ms, info) VALUES (?, ?, ?, ?)",
            (name, created_ms, changed_ms, "" if info == OrgInfo() else info_text(info)),
        )
        self._org, self._clock = added.lastrowid or 0, clock_of(name)
        for phase in phases:
            self._add(ADD_PHASE, self._org, *phase_columns(phase))

    def add_usage(self, feature: str, plan: str, start_ms: int, aggregate: Aggregate, used: int) -> None:
        self._place, self._entry = self._place + 1, entry_id(0)
        self._add(ADD_USAGE, self._place, self._org, feature, plan, start_ms, aggregate)
        self._add(ENTER, self._place, 0, used, None, WATCHED_MS, None, None, None)
        self._add(ADD_DUE, self._clock, WATCHED_MS, self._place)

    def add_change(self, change: Change) -> None:
        if change.kind == "day":
            self._add(ADD_DAY, self._place, change.at_ms, change.n >> 32, change.n & 0xFFFFFFFF)
            return
        self._entry = max(self._entry + 1, entry_id(change.recorded_ms))
        self._add(ENTER, self._place, self._entry, *entry_columns(change, self._entry))

    def contents_of_key(self, key: str, clock: str) -> str | None:
        if (clock, key) in self._keys:
            return self._keys[clock, key]
        known = find_key(self._db, clock, key)
        return None if known is None else known.contents

    def add_key(self, line: KeyLine) -> None:
        columns = (line.key, line.contents, line.expires_ms)
        self._keys[line.clock, line.key] = line.contents
        if line.clock:
            self._add(ADD_CLOCK_KEY, *columns, line.clock)
        else:
            self._add(ADD_KEY, *columns)

    def _add(self, statement: str, *columns: object) -> None:
        self._rows[statement].append(columns)
        self._waiting += 1
        if self._waiting >= AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Store what waits."""
        for statement, rows in self._rows.items():
            self._db.executemany(statement, rows)
        self._rows.clear()
        self._keys.clear()
        self._waiting = 0
