"""Export and import: from one engine to another and back, and what is refused on the way."""

from __future__ import annotations

import json
import random
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import aclosing, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tier_middleware import AsyncTier, EngineUnavailable, InvalidRequest, LimitReached, ManualClock, Tier
from tier_middleware.answers import HistoryEntry
from tier_middleware.names import MAX_UNITS

START = datetime(2024, 1, 31, 10, 30, tzinfo=UTC)
ORGS = ("org:acme", "org:b", "org:\N{SNOWMAN} \u2028'", "org:z\0z", "org:cancelled", "org:named", "org:later")
KINDS = ("memory", "sqlite", "lite", "pg")
"""Engines; the last two are a Django project's, on SQLite and on PostgreSQL."""

FEATURES = ("feature:x", "feature:seats", "feature:peak")
PRICING = {
    "plans": {
        "plan:free@1": {
            "features": {
                "feature:x": {"tiers": [{"upto": 10, "price": 0.000000000001}]},
                "feature:seats": {"tiers": [{"upto": 5}], "aggregate": "perpetual"},
                "feature:sso": {},
            }
        },
        "plan:pro@1": {
            "interval": "@weekly",
            "features": {
                "feature:x": {"tiers": [{}]},
                "feature:peak": {"tiers": [{"upto": 5}], "aggregate": "max"},
            },
        },
    }
}


class Engines:
    """Makes clients of engines of their own, all with one clock."""

    def __init__(self, folder: Path, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.request = request
        self.clock = ManualClock(START)
        self.made: list[Tier] = []

    def new(self, kind: str, **options: Any) -> Tier:
        tier = Tier(self.url(kind), clock=self.clock, **options)
        self.made.append(tier)
        return tier

    def url(self, kind: str) -> str:
        if kind in ("lite", "pg"):  # one database: what was in it before is gone
            import databases

            databases.empty(self.request.getfixturevalue(kind))
            return f"django://{kind}"
        return "memory://" if kind == "memory" else f"sqlite:///{self.folder / f'{len(self.made)}.db'}"

    def path(self, tier: Tier) -> Path:
        return self.folder / f"{self.made.index(tier)}.db"


@pytest.fixture
def engines(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engines]:
    engines = Engines(tmp_path, request)
    yield engines
    for tier in engines.made:
        tier.close()


def live(tier: Tier, clock: ManualClock) -> None:
    """Some days in the life of some orgs, by chance but the same each time."""
    chance = random.Random(7)
    tier.push(PRICING)
    for org in ORGS[:5]:
        tier.subscribe(org, "plan:free@1")
        clock.advance(timedelta(minutes=1))
    tier.update_org("org:named", {"email": "a@example.com", "metadata": {"z": "1", "a": "\N{SNOWMAN}"}})
    tier.subscribe("org:later", "plan:pro@1", effective=START + timedelta(days=90), trial_days=3)
    for n in range(300):
        org, feature = chance.choice(ORGS[:4]), chance.choice(FEATURES)
        clock.advance(timedelta(hours=chance.randint(0, 6), milliseconds=chance.randint(0, 2)))
        if n == 150:
            tier.subscribe("org:acme", "plan:pro@1")
            tier.cancel("org:cancelled")
        if not tier.can(org, feature, 0):
            continue
        if n % 3 == 0:
            with tier.reserve(org, feature, 0) as reservation:
                reservation.set(chance.randint(0, 3))
        elif n % 3 == 1:
            tier.report(org, feature, chance.randint(0, 9), key=f"k{n}", note=chance.choice(("", "a note")))
        else:
            tier.adjust(org, feature, chance.randint(-3, 3), key=f"k{n}", note="why")
    tier.report("org:b", "feature:x", MAX_UNITS, clobber=True, key="most")
    tier.report("org:b", "feature:x", 0, clobber=True, key="least")


def known(tier: Tier) -> list[object]:
    """All that can be asked."""
    answers: list[object] = [tier.pull()]
    for org in ORGS:
        answers += [tier.lookup_limits(org), tier.lookup_phases(org), tier.lookup_org(org)]
        answers += [tier.history(org, feature) for feature in FEATURES]
        answers += [tier.history(org, feature, step="day") for feature in FEATURES]
    return answers


# ---- from engine to engine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_what_was_moved_is_known_and_is_exported_to_the_same_bytes(engines: Engines, first: str, middle: str) -> None:
    tier = engines.new(first)
    live(tier, engines.clock)
    before, exported = known(tier), list(tier.export())
    for kind in (middle, "memory" if first == "sqlite" else "sqlite"):
        tier = engines.new(kind)
        tier.load(exported)
        assert known(tier) == before
        assert list(tier.export()) == exported
    assert json.loads(exported[0]) == {"type": "tier_middleware", "format": 1, "lines": len(exported)}
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in exported)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_moved_goes_on_where_it_was(engines: Engines, kind: str) -> None:
    old, new = engines.new("sqlite" if kind == "memory" else "memory"), engines.new(kind)
    old.push(PRICING)
    old.subscribe("org:acme", "plan:free@1")
    old.report("org:acme", "feature:x", 7, key="k")
    new.load(old.export())
    new.report("org:acme", "feature:x", 7, key="k")  # counts once, here too
    with pytest.raises(InvalidRequest, match="other contents"):
        new.report("org:acme", "feature:x", 8, key="k")
    with new.reserve("org:acme", "feature:x", 3):
        pass
    with pytest.raises(LimitReached), new.reserve("org:acme", "feature:x"):
        pass
    engines.clock.set(START + timedelta(days=29))  # the 29th of February: the period's anchor came along
    assert new.lookup_limit("org:acme", "feature:x").used == 0
    assert [entry.n for entry in new.history("org:acme", "feature:x")] == [7, 3]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_async_twin_moves_the_same(engines: Engines, kind: str) -> None:
    old, new = engines.new(kind), engines.new(kind)
    live(old, engines.clock)
    exported = [line async for line in AsyncTier.on(old.core).export()]
    assert exported == list(old.export())
    await AsyncTier.on(new.core).load(exported)
    assert list(new.export()) == exported
    with pytest.raises(InvalidRequest, match=r"^line 4: org: "):
        await AsyncTier.on(new.core).load(exported)
    async with aclosing(AsyncTier.on(old.core).export()) as lines:
        assert await anext(lines) == exported[0]
    old.report("org:acme", "feature:x", 1)


def test_days_that_were_rolled_up_move_too(engines: Engines) -> None:
    old = engines.new("sqlite", ledger_days=2)
    old.push(PRICING)
    old.subscribe("org:acme", "plan:free@1")
    for _ in range(200):
        old.report("org:acme", "feature:x", 1)
        engines.clock.advance(timedelta(hours=1))
    exported, before = list(old.export()), old.history("org:acme", "feature:x")
    assert {entry.kind for entry in before if isinstance(entry, HistoryEntry)} == {"day", "report"}
    for kind in ("memory", "sqlite"):
        new = engines.new(kind, ledger_days=2)
        new.load(exported)
        assert list(new.export()) == exported
        assert new.history("org:acme", "feature:x") == before
        engines.clock.advance(timedelta(days=10))
        for _ in range(100):
            new.report("org:acme", "feature:x", 0)
        kinds = [entry.kind for entry in new.history("org:acme", "feature:x")]
        assert kinds.count("report") <= 100, "what came from elsewhere is rolled up, too"
        assert sum(entry.n for entry in new.history("org:acme", "feature:x")) == 200


def test_open_reservations_stay_behind(engines: Engines) -> None:
    old, new = engines.new("sqlite"), engines.new("memory")
    old.push(PRICING)
    old.subscribe("org:acme", "plan:free@1")
    with old.reserve("org:acme", "feature:x", 10):
        new.load(old.export())
    assert old.lookup_limit("org:acme", "feature:x").used == 10
    assert new.lookup_limit("org:acme", "feature:x").remaining == 10


@pytest.mark.parametrize("last", KINDS)
@pytest.mark.parametrize("first", ["memory", "sqlite"])
def test_test_clocks_move_with_their_orgs_and_keys(engines: Engines, first: str, last: str) -> None:
    old, new = engines.new(first, pricing=PRICING), engines.new(last)
    old.subscribe("org:acme", "plan:free@1")
    old.report("org:acme", "feature:x", 1, key="k")
    clocked = old.with_clock("rehearsal \N{SNOWMAN}", datetime(2030, 1, 1, tzinfo=UTC))
    clocked.subscribe("org:acme", "plan:free@1")
    clocked.report("org:acme", "feature:x", 5, key="k")
    clocked.advance(datetime(2030, 1, 9, tzinfo=UTC))
    exported = list(old.export())
    new.load(exported)
    assert list(new.export()) == exported
    moved = new.on_clock(clocked.clock.id)
    assert moved.clock == clocked.clock
    moved.report("org:acme", "feature:x", 5, key="k")  # counts once, here too
    assert moved.lookup_limits("org:acme") == clocked.lookup_limits("org:acme")
    assert moved.history("org:acme", "feature:x") == clocked.history("org:acme", "feature:x")
    assert new.lookup_limit("org:acme", "feature:x").used == 1
    moved.advance(datetime(2030, 1, 10, tzinfo=UTC))
    before = list(new.export())
    with pytest.raises(InvalidRequest, match=f"line 4: id: '{clocked.clock.id}' is here already"):
        new.load(exported)
    assert list(new.export()) == before
    new.load(exported, replace=True)
    assert new.on_clock(clocked.clock.id).clock == clocked.clock


def test_an_empty_engine_is_a_header(engines: Engines) -> None:
    for kind in ("memory", "sqlite"):
        tier = engines.new(kind)
        assert list(tier.export()) == [b'{"type":"tier_middleware","format":1,"lines":1}\n']
        tier.load(tier.export())


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_of_one_moment_and_writers_go_on(engines: Engines, kind: str) -> None:
    tier = engines.new(kind)
    live(tier, engines.clock)
    expected = list(tier.export())
    lines = tier.export()
    found = [next(lines)]
    tier.report("org:acme", "feature:x", 1)
    tier.subscribe("org:new", "plan:free@1")
    tier.delete_org("org:b")
    found += lines
    assert found == expected
    assert list(tier.export()) != expected


def test_an_export_that_nobody_reads_to_its_end_lets_go_of_the_file(engines: Engines) -> None:
    tier = engines.new("sqlite")
    live(tier, engines.clock)
    lines = tier.export()
    next(lines)
    lines.close()
    tier.report("org:acme", "feature:x", 1)
    tier.close()
    assert not engines.path(tier).with_name(f"{engines.path(tier).name}-wal").exists()


# ---- into an engine that has something ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_org_that_is_there_is_left_alone_unless_it_is_to_be_replaced(engines: Engines, kind: str) -> None:
    old, new = engines.new("memory"), engines.new(kind)
    for tier, n in ((old, 3), (new, 5)):
        tier.push(PRICING)
        tier.subscribe("org:acme", "plan:free@1")
        tier.report("org:acme", "feature:x", n, key="k")
        tier.report("org:acme", "feature:seats", n)
    old.subscribe("org:aaa", "plan:free@1")
    new.subscribe("org:other", "plan:free@1")
    before = list(new.export())
    with pytest.raises(InvalidRequest, match=r"line 5: org: 'org:acme' is here already") as caught:
        new.load(old.export())
    assert caught.value.path == "line 5: org"
    assert list(new.export()) == before
    new.load(old.export(), replace=True)
    assert new.lookup_limit("org:acme", "feature:x").used == 3
    assert [entry.n for entry in new.history("org:acme", "feature:x")] == [3]
    new.report("org:acme", "feature:x", 3, key="k")  # the key that came with it
    assert new.lookup_limit("org:acme", "feature:x").used == 3
    assert new.lookup_limit("org:other", "feature:x").used == 0
    assert new.lookup_phase("org:aaa") is not None


@pytest.mark.parametrize("kind", KINDS)
def test_open_reservations_of_an_org_that_is_replaced_are_dropped(engines: Engines, kind: str) -> None:
    tier = engines.new(kind, on_loss="fail")
    tier.push(PRICING)
    tier.subscribe("org:acme", "plan:free@1")
    tier.report("org:acme", "feature:x", 1)
    exported = list(tier.export())
    with tier.reserve("org:acme", "feature:x", 9):
        tier.load(exported, replace=True)
        assert tier.lookup_limit("org:acme", "feature:x").remaining == 9
    assert list(tier.export()) == exported
    assert tier.counts == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_or_a_key_with_other_contents_is_refused(engines: Engines, kind: str) -> None:
    old, new = engines.new("memory"), engines.new(kind)
    old.push(PRICING)
    old.subscribe("org:acme", "plan:free@1")
    old.report("org:acme", "feature:x", 1, key="k")
    other = json.loads(json.dumps(PRICING).replace('"upto": 10', '"upto": 11'))
    new.push(other)
    with pytest.raises(InvalidRequest, match=r'^line 2: plans\["plan:free@1"\].*raise the version'):
        new.load(old.export(), replace=True)
    new = engines.new(kind, pricing=PRICING)
    new.subscribe("org:b", "plan:free@1")
    new.report("org:b", "feature:x", 2, key="k")
    before = list(new.export())
    with pytest.raises(InvalidRequest, match="key: 'k' was used here before with other contents"):
        new.load(old.export())
    assert list(new.export()) == before


def test_an_import_waits_for_other_writers(engines: Engines) -> None:
    old, new = engines.new("memory"), engines.new("sqlite")
    live(old, engines.clock)
    new.open()
    with closing(sqlite3.connect(engines.path(new), isolation_level=None, check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.05, lambda: writer.execute("COMMIT"))
        timer.start()
        new.load(old.export())
        timer.join()
    assert list(new.export()) == list(old.export())


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_waits_while_the_lines_of_an_import_come_in(engines: Engines, kind: str) -> None:
    old, new = engines.new("memory"), engines.new(kind, timeout=0.1)
    live(old, engines.clock)
    exported = list(old.export())
    new.push(PRICING)
    new.subscribe("org:other", "plan:free@1")

    def slowly() -> Iterator[bytes]:
        for line in exported:
            if new.lookup_limit("org:other", "feature:x").used < 10:
                new.report("org:other", "feature:x", 1)
            yield line

    new.load(slowly())
    assert new.lookup_limit("org:other", "feature:x").used == 10
    assert new.history("org:acme", "feature:x") == old.history("org:acme", "feature:x")


def test_plans_may_be_written_on_several_lines(engines: Engines) -> None:
    tier = engines.new("sqlite")
    tier.load((HEADER.replace("LINES", "2"), PLAN.replace(",", ",\n")))
    assert list(tier.pull().plans) == ["plan:a@1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_an_import_for_which_there_is_no_room_is_taken_in_not_at_all(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = engines.new("sqlite")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: open("/dev/full", "wb", buffering=0))  # noqa: SIM115
    lines = [HEADER.replace("LINES", "30001"), *(KEY.replace('"k"', f'"k{n:06}"') for n in range(30_000))]
    with pytest.raises(EngineUnavailable, match="no room to keep the export while it is checked"):
        tier.load(lines)
    assert len(list(tier.export())) == 1


# ---- mistakes -------------------------------------------------------------------------------------------------------

HEADER = '{"type":"tier_middleware","format":1,"lines":LINES}'
PLAN = '{"type":"plan","plan":"plan:a@1","body":{"features":{"feature:x":{"tiers":[{"upto":5}]},"feature:on":{}}}}'
ORG = '{"type":"org","org":"org:a","created_ms":1,"changed_ms":1,"phases":[{"effective_ms":1,"anchor_ms":1,"features":["plan:a@1"]}]}'  # noqa: E501
USAGE = '{"type":"usage","feature":"feature:x","plan":"plan:a@1","period_ms":1,"used":3}'
ENTRY = '{"type":"entry","kind":"report","n":3,"at_ms":1,"recorded_ms":1,"key":"k"}'
DAY = '{"type":"day","day_ms":86400000,"n":3}'
KEY = '{"type":"key","key":"k","contents":"digest","expires_ms":1}'
CLOCK = '{"type":"clock","id":"clock_1","name":"rehearsal","present_ms":1}'
CLOCKED = ORG.replace('"created_ms"', '"clock":"clock_1","created_ms"')
GOOD = (HEADER, PLAN, ORG, USAGE, ENTRY, KEY)

MISTAKES: dict[str, tuple[int, str, str, str]] = {
    # the line, what stands there, what is put in its place, what is said of it
    "no JSON": (3, ORG, "{", "line 3: "),
    "no text": (3, ORG, '{"type":"org","org":"\udcff"}', "line 3: "),
    "no object": (3, ORG, "7", "line 3: Expected `object`, got `int`, got 7"),
    "an empty line": (3, ORG, "", "line 3: "),
    "no header": (1, HEADER, PLAN, "line 1: type: must be 'tier_middleware'"),
    "a newer format": (1, '"format":1', '"format":2', "line 1: format: must be 1, the one that is known, got 2"),
    "an unknown type": (3, '"org","org"', '"orc","org"', "line 3: type: Invalid value 'orc', got 'orc'"),
    "an unknown field": (3, '"created_ms"', '"creatd_ms"', "line 3: "),
    "a text for a number": (4, '"used":3', '"used":"3"', "line 4: used: Expected `int`, got `str`, got '3'"),
    "a float for a number": (4, '"used":3', '"used":3.5', "line 4: used: Expected `int`, got `float`, got 3.5"),
    "a negative usage": (4, '"used":3', '"used":-3', "line 4: used: must be from 0 to 9223372036854775807, got -3"),
    "a usage beyond counting": (4, '"used":3', f'"used":{2**63}', "line 4: used: must be from 0 to"),
    "a missing field": (4, ',"used":3', "", "line 4: Object missing required field `used`"),
    "a bad org": (3, '"org:a"', '"acme"', "line 3: org: must start with 'org:', got 'acme'"),
    "a bad clock": (3, '"created_ms"', '"clock":"1","created_ms"', "line 3: clock: must be a test clock's id"),
    "an org of no clock": (3, ORG, CLOCKED, "line 3: clock: is no clock of this export or engine, got 'clock_1'"),
    "a key of no clock": (6, '"contents"', '"clock":"clock_1","contents"', "line 6: clock: is no clock of this export"),
    "a clock with a bad id": (3, ORG, CLOCK.replace("clock_1", "1"), "line 3: id: must be a test clock's id"),
    "a clock out of place": (5, ENTRY, CLOCK, "line 5: type: 'clock' must not come here"),
    "a clock before time": (3, ORG, CLOCK.replace(":1}", ":-1}"), "line 3: present_ms: must be from 0 to"),
    "a bad feature": (4, '"feature:x"', '"feature:x y"', "line 4: feature: must match"),
    "a bad plan": (2, '"plan:a@1"', '"plan:a"', "line 2: plan: must have a version"),
    "a mistake in a plan": (2, '"upto":5', '"upto":-5', 'line 2: plans["plan:a@1"].features["feature:x"].tiers[0]'),
    "a plan that is not there": (4, '"plan:a@1"', '"plan:b@1"', "line 4: plan: is no plan of this export or engine"),
    "a feature that the plan has not got": (4, "feature:x", "feature:y", "line 4: feature: is not in 'plan:a@1'"),
    "a phase of no plan": (3, '"plan:a@1"', '"plan:b@1"', "line 3: features: 'plan:b@1' is not in the pricing model"),
    "phases out of order": (
        3, '"phases":[', '"phases":[{"effective_ms":9,"anchor_ms":1,"features":[]},',
        "line 3: phases: must be in order of effective_ms, got [9, 1]",
    ),
    "a phase beyond time": (
        3, '"effective_ms":1', f'"effective_ms":{2**62}', "line 3: phases[0].effective_ms: must be from 0 to 3834",
    ),
    "a phase of a period that begins before time": (
        3, '"anchor_ms":1', '"anchor_ms":-1', "line 3: phases[0].anchor_ms: must be from 0 to 1, got -1",
    ),
    "a phase before the start of its subscription": (
        3, '"anchor_ms":1', '"anchor_ms":2', "line 3: phases[0].anchor_ms: must be from 0 to 1, got 2",
    ),
    "a time that has endless digits": (
        3, '"effective_ms":1', f'"effective_ms":{"9" * 400}', "line 3: phases[0].effective_ms: must be from 0 to",
    ),
    "a period of what has none": (
        4, '"plan":"plan:a@1","period_ms":1', '"plan":"","period_ms":1', "line 4: period_ms: must be 0, got 1",
    ),
    "a period beyond time": (4, '"period_ms":1', f'"period_ms":{2**60}', "line 4: period_ms: must be from"),
    "a day beyond counting": (5, ENTRY, DAY.replace('"n":3', f'"n":{2**95}'), "line 5: n: must be from -"),
    "a day that begins at noon": (5, ENTRY, DAY.replace("86400000", "43200000"), "line 5: day_ms: must be midnight"),
    "a day twice": (5, ENTRY, f"{DAY}\n{DAY}", "line 6: day_ms: must come after 86400000, got 86400000"),
    "days out of order": (
        5, ENTRY, f"{DAY}\n{DAY.replace('86400000', '0')}", "line 6: day_ms: must come after 86400000, got 0",
    ),
    "a day after an entry": (5, ENTRY, f"{ENTRY}\n{DAY}", "line 6: type: 'day' must come before all entries"),
    "an entry from before the one before it": (
        5, ENTRY, ENTRY.replace('"recorded_ms":1', '"recorded_ms":2') + "\n" + ENTRY,
        "line 6: recorded_ms: must not lie before that of the entry before it, 2, got 1",
    ),
    "a bad e-mail": (3, '"created_ms"', '"info":{"email":"x"},"created_ms"', "line 3: info.email: must be an e-mail"),
    "metadata that are no texts": (
        3, '"created_ms"', '"info":{"metadata":{"a":1}},"created_ms"', "line 3: info.metadata[...]: Expected `str`",
    ),
    "an unknown kind": (5, '"report"', '"rapport"', "line 5: kind: Invalid enum value 'rapport', got 'rapport'"),
    "a note that is too long": (5, '"key"', f'"note":"{"x" * 1025}","key"', "line 5: note: must be a text of at most"),
    "a time beyond time": (5, '"at_ms":1', f'"at_ms":{2**50}', "line 5: at_ms: must be from"),
    "a usage before its org": (3, ORG, USAGE, "line 3: type: 'usage' must come after its org"),
    "an entry before its usage": (4, USAGE, ENTRY, "line 4: type: 'entry' must come after its usage"),
    "a plan behind an org": (4, USAGE, PLAN, "line 4: type: 'plan' must not come here"),
    "an org twice": (4, USAGE, ORG, "line 4: org: must come after 'org:a', got 'org:a'"),
    "a usage twice": (5, ENTRY, USAGE, "line 5: feature, plan, period_ms: must come after"),
    "a second header": (4, USAGE, HEADER, "line 4: type: 'tier_middleware' must not come here"),
    "fewer lines than it says": (1, "LINES", "9", "line 6: lines: the header says 9, and the file ends here"),
    "more lines than it says": (1, "LINES", "3", "line 4: lines: the header says 3, and there are more"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_nothing_is_taken_in(engines: Engines, name: str, kind: str) -> None:
    number, good, bad, message = MISTAKES[name]
    lines = list(GOOD)
    assert good in lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(good, bad)
    lines = "\n".join(lines).split("\n")
    lines = [line.replace("LINES", str(len(lines))) for line in lines]
    tier = engines.new(kind)
    with pytest.raises(InvalidRequest) as caught:
        tier.load(line.encode(errors="surrogateescape") for line in lines)
    assert caught.value.message.startswith(message), caught.value.message
    assert len(caught.value.message) < 400
    assert list(tier.export()) == [b'{"type":"tier_middleware","format":1,"lines":1}\n']
    tier.load(line.replace("LINES", str(len(GOOD))) for line in GOOD)
    assert tier.lookup_org("org:a").org == "org:a"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_byte_order_mark_is_passed_over(engines: Engines, kind: str) -> None:
    text = "\ufeff" + "\n".join(GOOD).replace("LINES", str(len(GOOD)))
    for lines in (text.splitlines(), text.encode().splitlines()):
        tier = engines.new(kind)
        tier.load(lines)
        assert tier.lookup_limit("org:a", "feature:x").limit == 5


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_entries_of_one_moment_keep_their_times(engines: Engines, kind: str) -> None:
    many = 2**18 + 2  # more than a database tells apart in one millisecond
    lines = [HEADER.replace("LINES", str(many + 4)), PLAN, ORG, USAGE, *[ENTRY] * many]
    tier = engines.new(kind)
    tier.load(lines)
    until = datetime(1970, 1, 1, 0, 0, 0, 2000, UTC)  # the end of the millisecond 1
    (step,) = tier.history("org:a", "feature:x", step=timedelta(milliseconds=1), until=until)
    assert step.n == 3 * many


@pytest.mark.parametrize("text", ["", "\n", "not an export\n", '{"plans":{}}'])
def test_what_is_no_export_is_refused(engines: Engines, text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^line 1: "):
        engines.new("memory").load(text.splitlines())


def test_a_reader_that_fails_half_way_leaves_nothing(engines: Engines) -> None:
    old = engines.new("memory")
    live(old, engines.clock)
    exported = list(old.export())

    def torn() -> Iterator[bytes]:
        yield from exported[:50]
        raise ConnectionError("gone")

    for kind in ("memory", "sqlite"):
        tier = engines.new(kind)
        with pytest.raises(ConnectionError):
            tier.load(torn())
        assert len(list(tier.export())) == 1
        tier.load(exported)
        assert list(tier.export()) == exported
