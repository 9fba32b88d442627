"""The embedded engine's ledger, in SQL. Every method runs inside a transaction that its caller began.

Entries are rows of the table ``units``: an entry stands next to the counter that it changed, so that a commit turns
its reservation into an entry and still writes one page. They have ids below 0, which begin with the time when they were
recorded (see `entry_id`): the newest is the counter's neighbour, and a span of time is a range of ids, for which no
index has to be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from ..clock import DAY_MS
from ..ledger import KINDS, LAST_MS, Change, Entry
from ..names import clock_of
from .connection import Connection

__all__ = ["ENTER", "ENTER_COMMIT", "Ledger", "entry_columns", "entry_id"]

SHIFT: Final = 18  # so many bits of an id tell entries of one millisecond apart
LEAST: Final = -(2**63)
MASK: Final = (1 << SHIFT) - 1
SLACK_MS: Final = DAY_MS  # an entry speaks of a time at most minutes after it was recorded; clocks of machines differ

ROLL_UP_EVERY: Final = 16  # entries of this process; then twice as many are rolled up, where so many are due

# A reservation that is settled as it was made becomes an entry. Where another process has just taken that id, nothing
# happens, and the way of everything else finds another.
ENTER_COMMIT: Final = (
    "UPDATE OR IGNORE units SET id = ?, n = ?, until_ms = 0, kind = 0, key = id "
    "WHERE usage_id = ? AND id = ? AND n = ? AND until_ms > ?"
)
ENTER: Final = (
    "INSERT INTO units (usage_id, id, n, kind, at_ms, key, level, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO NOTHING"
)
# The sum of a day may need more than 64 bits, though hardly anybody's will: it is kept in two halves.
ADD_DAYS: Final = f"""
INSERT INTO ledger_days (usage_id, day_ms, high, low)
SELECT usage_id, at_ms - (at_ms % {DAY_MS} + {DAY_MS}) % {DAY_MS}, sum(n >> 32), sum(n & 4294967295)
FROM (
    SELECT usage_id, n, coalesce(at_ms, (id + {-(LEAST + 1)} + 1) >> {SHIFT}) AS at_ms
    FROM units WHERE usage_id = ? AND id <= ?
) AS entries
GROUP BY 1, 2
ON CONFLICT (usage_id, day_ms)
DO UPDATE SET high = ledger_days.high + excluded.high, low = ledger_days.low + excluded.low
"""

DUE: Final = "SELECT due_ms, usage_id FROM ledger_due WHERE clock = ? AND due_ms <= ? ORDER BY due_ms LIMIT ?"
DUE_OF_ORG: Final = (
    "SELECT due_ms, usage_id FROM ledger_due JOIN usage ON usage.id = usage_id JOIN orgs ON orgs.id = org_id "
    "WHERE clock = ? AND due_ms <= ? AND orgs.name = ? ORDER BY due_ms LIMIT ?"
)


def entry_id(recorded_ms: int) -> int:
    """The first id of an entry that was recorded in this millisecond."""
    return LEAST + (min(max(recorded_ms, 0), LAST_MS) << SHIFT)


def recorded_ms(id: int) -> int:
    """When an entry was recorded."""
    return (id - LEAST) >> SHIFT


def entry_columns(change: Change, id: int) -> tuple[object, ...]:
    """What `ENTER` is given after the place and the id, which says when it was recorded."""
    at_ms = None if change.at_ms == recorded_ms(id) else change.at_ms
    return change.n, KINDS.index(change.kind), at_ms, change.key, change.level, change.note or None


class Ledger:
    """The entries of one database. With ``days`` of 0 none is made, and those of others are left alone.

    Each counter that may have entries is watched: ``ledger_due`` says when the first of them may be due, by the clock
    of its org. Entries that are so old are added to the sum of their day, two for each one made, so that nobody pays
    for many at once. Whose they are does not matter where all writers wait for each other; with ``is_shared`` those of
    one org do, and only the entries of the org that is written for are looked at.
    """

    def __init__(self, days: int, *, is_shared: bool = False) -> None:
        self.kept_ms = days * DAY_MS
        self._is_shared = is_shared
        self._made = 0

    def due_ms(self, now_ms: int) -> int:
        """When an entry that is made now will be due."""
        return now_ms + self.kept_ms

    def enter(self, db: Connection, org: str, place: int, change: Change) -> None:
        while (id := self.new_id(db, org, change.recorded_ms)) is not None:  # where it is taken, the next
            if db.execute(ENTER, (place, id, *entry_columns(change, id))).rowcount:
                return

    def new_id(self, db: Connection, org: str, now_ms: int) -> int | None:
        """An id for an entry that is about to be made, after those that this process made; None where none is kept.

        Rolls up what is due by the org's clock, too.
        """
        if not self.kept_ms:
            return None
        self._made = made = (self._made + 1) & MASK
        if made % ROLL_UP_EVERY == 0:
            self._roll_up(db, org, now_ms)
        return entry_id(now_ms) + made

    def _roll_up(self, db: Connection, org: str, now_ms: int) -> None:
        room, clock = 2 * ROLL_UP_EVERY, clock_of(org)
        question, whose = (DUE_OF_ORG, (org,)) if self._is_shared else (DUE, ())
        for due_ms, place in db.execute(question, (clock, now_ms, *whose, room)).fetchall():
            room -= max(1, self._roll_up_one(db, place, now_ms, room))
            db.execute("DELETE FROM ledger_due WHERE clock = ? AND due_ms = ? AND usage_id = ?", (clock, due_ms, place))
            self.watch(db, clock, place, self._next_due_ms(db, place, now_ms))
            if room <= 0:
                return

    def _roll_up_one(self, db: Connection, place: int, now_ms: int, room: int) -> int:
        """Roll up entries of one counter: how many that were."""
        old = "SELECT id FROM units WHERE usage_id = ? AND id < ? ORDER BY id LIMIT ?"
        ids = [id for (id,) in db.execute(old, (place, entry_id(now_ms - self.kept_ms + 1), room))]
        if ids:
            db.execute(ADD_DAYS, (place, ids[-1]))
            db.execute("DELETE FROM units WHERE usage_id = ? AND id <= ?", (place, ids[-1]))
        return len(ids)

    def _next_due_ms(self, db: Connection, place: int, now_ms: int) -> int | None:
        (oldest,) = db.execute("SELECT min(id) FROM units WHERE usage_id = ? AND id < 0", (place,)).fetchone()
        if oldest is not None:
            return recorded_ms(oldest) + self.kept_ms
        # one that is current, or has open reservations, gets entries without anybody seeing whether it is watched
        in_use = "SELECT 1 FROM units WHERE usage_id = ? AND (id > 0 OR (id = 0 AND until_ms > ?)) LIMIT 1"
        return now_ms + self.kept_ms if db.execute(in_use, (place, now_ms)).fetchone() else None

    def watch(self, db: Connection, clock: str, place: int, due_ms: int | None) -> None:
        """Look at a counter again at that time; one that is not watched already. None: not before it is used again."""
        db.execute("UPDATE units SET at_ms = ? WHERE usage_id = ? AND id = 0", (due_ms, place))
        if due_ms is not None:
            db.execute("INSERT INTO ledger_due VALUES (?, ?, ?)", (clock, due_ms, place))

    def entries(self, db: Connection, org_id: int, feature: str, since_ms: int | None) -> Iterator[Entry]:
        """All entries of an org's feature that may speak of a time since then, counter by counter."""
        counters = db.execute(
            "SELECT id, plan, start_ms FROM usage WHERE org_id = ? AND feature = ? ORDER BY start_ms, plan",
            (org_id, feature),
        ).fetchall()
        for place, plan, start_ms in counters:
            for change in self.changes(db, place, since_ms):
                yield Entry(plan, start_ms, change)

    def changes(self, db: Connection, place: int, since_ms: int | None = None) -> Iterator[Change]:
        """All entries of one counter, the oldest first."""
        days = "SELECT day_ms, high, low FROM ledger_days WHERE usage_id = ? ORDER BY day_ms"
        for day_ms, high, low in db.execute(days, (place,)):
            yield Change("day", (high << 32) + low, day_ms, day_ms)
        first = LEAST if since_ms is None else entry_id(since_ms - SLACK_MS)
        rows = db.execute(
            "SELECT id, kind, n, at_ms, key, level, note FROM units "
            "WHERE usage_id = ? AND id >= ? AND id < 0 ORDER BY id",
            (place, first),
        )
        for id, kind, n, at_ms, key, level, note in rows:
            recorded = recorded_ms(id)
            if type(key) is str and KINDS[kind] == "commit" and key.isdecimal():
                key = int(key)  # a reservation's id, in a database whose columns have one type
            yield Change(KINDS[kind], n, recorded if at_ms is None else at_ms, recorded, key, level, note or "")
