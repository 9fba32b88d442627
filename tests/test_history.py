"""The ledger as it is asked for: pure sums and spans, and `Tier.history` in both colours on both engines."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware import AsyncTier, InvalidRequest, ManualClock, OrgNotFound, Tier
from tier_middleware.answers import HistoryEntry, HistoryStep
from tier_middleware.clock import DAY_MS, milliseconds_of
from tier_middleware.ledger import MAX_HISTORY, Change, Entry, Sum, day_of, entries_in, step_ms_for, sums_in

HOUR_MS = DAY_MS // 24
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
START = datetime(2024, 1, 31, 10, 30, tzinfo=UTC)


def ms(*moment: int) -> int:
    return milliseconds_of(datetime(*moment, tzinfo=UTC), "moment")  # type: ignore[misc]  # year, month, day, ...


def entry(at_ms: int, n: int = 1) -> Entry:
    return Entry("plan:a@1", 0, Change("report", n, at_ms, at_ms))


# ---- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "length"),
    [("day", DAY_MS), ("hour", HOUR_MS), (timedelta(minutes=5), 300_000), (timedelta(milliseconds=1), 1)],
)
def test_the_length_of_a_step(step: object, length: int) -> None:
    assert step_ms_for(step) == length


@pytest.mark.parametrize(
    "step", ["week", "", 0, 60, 1.5, True, timedelta(), timedelta(days=-1), timedelta(microseconds=1), DAY_MS]
)
def test_what_is_no_step_is_named(step: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        step_ms_for(step)
    assert caught.value.path == "step"
    assert repr(step) in caught.value.message


CASES: dict[str, tuple[list[Entry], int, int | None, int | None, int, list[tuple[int, int]]]] = {
    "nothing": ([], DAY_MS, None, None, ms(2024, 1, 2), []),
    "nothing, but asked from a time on": (
        [], DAY_MS, ms(2024, 1, 1, 5), None, ms(2024, 1, 2), [(ms(2024, 1, 1), 0), (ms(2024, 1, 2), 0)],
    ),
    "one, up to now": (
        [entry(ms(2024, 1, 1, 5), 3)], DAY_MS, None, None, ms(2024, 1, 3, 4),
        [(ms(2024, 1, 1), 3), (ms(2024, 1, 2), 0), (ms(2024, 1, 3), 0)],
    ),
    "the last moment of a day and the first of the next": (
        [entry(ms(2024, 2, 29) - 1, 1), entry(ms(2024, 2, 29), 2)], DAY_MS, None, None, ms(2024, 2, 29),
        [(ms(2024, 2, 28), 1), (ms(2024, 2, 29), 2)],
    ),
    "until is not included": (
        [entry(ms(2024, 1, 1), 1), entry(ms(2024, 1, 2), 2)], DAY_MS, None, ms(2024, 1, 2), ms(2025, 1, 1),
        [(ms(2024, 1, 1), 1)],
    ),
    "the first and the last step hold only the span": (
        [entry(ms(2024, 1, 1, h), 1) for h in range(24)], DAY_MS, ms(2024, 1, 1, 6), ms(2024, 1, 1, 18),
        ms(2024, 1, 2), [(ms(2024, 1, 1), 12)],
    ),
    "ups and downs": (
        [entry(ms(2024, 1, 1), 5), entry(ms(2024, 1, 1), -7)], HOUR_MS, None, None, ms(2024, 1, 1),
        [(ms(2024, 1, 1), -2)],
    ),
    "the day on which Europe's clocks go forward has 24 hours": (
        [entry(ms(2024, 3, 31, h), 1) for h in range(24)], DAY_MS, None, None, ms(2024, 3, 31, 23),
        [(ms(2024, 3, 31), 24)],
    ),
    "before 1970": (
        [entry(-1, 1), entry(0, 2)], DAY_MS, None, None, 0, [(-DAY_MS, 1), (0, 2)],
    ),
    "a report ahead of the clock": (
        [entry(ms(2024, 1, 2), 1)], DAY_MS, None, None, ms(2024, 1, 2) - 1, [(ms(2024, 1, 2), 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_sums(case: str) -> None:
    entries, step_ms, since_ms, until_ms, now_ms, expected = CASES[case]
    found = sums_in(entries, step_ms, since_ms, until_ms, now_ms)
    assert found == tuple(Sum(start, start + step_ms, n) for start, n in expected)


@given(
    st.lists(st.tuples(st.integers(-(10**11), 10**13), st.integers(-(2**63), 2**63))),
    st.integers(10**10, 10**12),
)
def test_no_step_loses_or_doubles_anything(changes: list[tuple[int, int]], step_ms: int) -> None:
    entries = [entry(at_ms, n) for at_ms, n in changes]
    found = sums_in(entries, step_ms, None, None, 0)
    assert sum(part.n for part in found) == sum(n for _, n in changes)
    assert all(one.end_ms == other.start_ms for one, other in itertools.pairwise(found))
    for part in found:
        assert part.n == sum(n for at_ms, n in changes if part.start_ms <= at_ms < part.end_ms)


@given(st.integers(-(10**14), 10**14))
def test_days_begin_at_midnight_in_utc(at_ms: int) -> None:
    start = day_of(at_ms)
    assert start <= at_ms < start + DAY_MS
    assert start % DAY_MS == 0


def test_as_many_entries_as_an_answer_holds_and_not_one_more() -> None:
    entries = [entry(at_ms) for at_ms in range(MAX_HISTORY)]
    assert entries_in(reversed(entries), None, None) == tuple(entries)
    with pytest.raises(InvalidRequest) as caught:
        entries_in([*entries, entry(0)], None, None)
    assert caught.value.path == "since"
    assert len(entries_in([*entries, entry(0)], 1, None)) == MAX_HISTORY - 1
    assert len(sums_in(entries, 1, None, None, 0)) == MAX_HISTORY
    with pytest.raises(InvalidRequest):
        sums_in(entries, 1, None, MAX_HISTORY + 1, 0)


# ---- clients --------------------------------------------------------------------------------------------------------

PRICING = {
    "plans": {
        "plan:free@1": {
            "features": {
                "feature:x": {"tiers": [{"upto": 10}]},
                "feature:seats": {"tiers": [{"upto": 5}], "aggregate": "perpetual"},
            }
        }
    }
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture(params=["memory", "sqlite"])
def tier(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[Tier]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/tier.db"
    with Tier(url, pricing=PRICING, clock=clock) as tier:
        tier.subscribe("org:acme", "plan:free@1")
        yield tier


@pytest.fixture(params=["sync", "async"])
def history(request: pytest.FixtureRequest, tier: Tier) -> Any:
    if request.param == "sync":
        return tier.history
    return lambda *args, **options: asyncio.run(AsyncTier.on(tier.core).history(*args, **options))


def test_what_happened_in_the_words_of_the_api(tier: Tier, history: Any, clock: ManualClock) -> None:
    with tier.reserve("org:acme", "feature:x", 2):
        pass
    clock.advance(timedelta(hours=1))
    tier.report("org:acme", "feature:x", 3, key="k", note="a batch", at=START + timedelta(minutes=1))
    tier.adjust("org:acme", "feature:x", -1, note="refund", key="r")
    tier.report("org:acme", "feature:seats", 4, key="s")
    commit, report, adjustment = history("org:acme", "feature:x")
    assert isinstance(commit, HistoryEntry)
    assert (commit.kind, commit.n, commit.at, commit.recorded_at) == ("commit", 2, START, START)
    assert commit.key is not None
    assert commit.key.startswith("reservation:")
    assert report == HistoryEntry(
        org="org:acme", feature="feature:x", kind="report", n=3, level=None, plan="plan:free@1", period=START,
        at=START + timedelta(minutes=1), recorded_at=clock(), key="k", note="a batch",
    )  # fmt: skip
    assert (adjustment.kind, adjustment.n, adjustment.note, adjustment.key) == ("adjust", -1, "refund", "r")
    (seats,) = history("org:acme", "feature:seats")
    assert (seats.plan, seats.period, seats.n, seats.level) == (None, None, 4, 4)
    with pytest.raises(AttributeError):
        commit.n = 7


def test_steps_and_spans(tier: Tier, history: Any, clock: ManualClock) -> None:
    for n in range(1, 4):
        tier.report("org:acme", "feature:x", n)
        clock.advance(timedelta(days=1))
    days = history("org:acme", "feature:x", step="day")
    assert days[0] == HistoryStep(datetime(2024, 1, 31, tzinfo=UTC), datetime(2024, 2, 1, tzinfo=UTC), 1)
    assert [day.n for day in days] == [1, 2, 3, 0]
    assert [part.n for part in history("org:acme", "feature:x", step=timedelta(days=7))] == [1, 5]
    tokyo = timezone(timedelta(hours=9))
    since = (START + timedelta(days=1)).astimezone(tokyo)
    assert [found.n for found in history("org:acme", "feature:x", since)] == [2, 3]
    assert [found.n for found in history("org:acme", "feature:x", since, since + timedelta(days=1))] == [2]
    berlin = datetime(2024, 1, 31, 12, tzinfo=ZoneInfo("Europe/Berlin"))  # half an hour later
    assert [found.n for found in history("org:acme", "feature:x", until=berlin)] == [1]


@pytest.mark.parametrize(
    ("path", "arguments", "options"),
    [
        ("org", ("acme", "feature:x"), {}),
        ("feature", ("org:acme", "x"), {}),
        ("since", ("org:acme", "feature:x", datetime(2024, 1, 1)), {}),  # that is the mistake
        ("until", ("org:acme", "feature:x"), {"until": "tomorrow"}),
        ("until", ("org:acme", "feature:x", START, START), {}),
        ("step", ("org:acme", "feature:x"), {"step": "week"}),
        ("step", ("org:acme", "feature:x", START), {"step": timedelta(days=999_999_999)}),
        ("step", ("org:acme", "feature:x", FIRST), {"step": timedelta(days=999_999_999), "until": LAST}),
        ("step", ("org:acme", "feature:x", LAST - timedelta(hours=1)), {"step": "day", "until": LAST}),
        ("step", ("org:acme", "feature:x", FIRST, START), {"step": timedelta(days=9999)}),
    ],
)
def test_mistakes_are_named(history: Any, path: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        history(*arguments, **options)
    assert caught.value.path == path


def test_an_unknown_org_is_not_found(history: Any) -> None:
    with pytest.raises(OrgNotFound):
        history("org:nobody", "feature:x")


@pytest.mark.parametrize("note", [None, 7, "x" * 1025, "\ud800"])
def test_a_note_is_a_text(tier: Tier, note: Any) -> None:
    with pytest.raises(InvalidRequest, match="note"):
        tier.report("org:acme", "feature:x", note=note)
    with pytest.raises(InvalidRequest, match="note"):
        tier.adjust("org:acme", "feature:x", 1, note=note)
    assert tier.history("org:acme", "feature:x") == ()


def test_a_strange_note_comes_back_as_it_was(tier: Tier) -> None:
    note = "a 'note'; DROP TABLE units -- \0 \N{SNOWMAN} \n"
    tier.report("org:acme", "feature:x", note=note)
    tier.report("org:acme", "feature:x", key="k", note="first")
    tier.report("org:acme", "feature:x", key="k", note="another note is the same report")
    assert [entry.note for entry in tier.history("org:acme", "feature:x")] == [note, "first"]


# ---- for how long ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["memory://", "sqlite"])
def test_entries_are_kept_for_ledger_days_and_then_as_days(engine: str, tmp_path: Path, clock: ManualClock) -> None:
    url = engine if engine != "sqlite" else f"sqlite:///{tmp_path}/tier.db"
    with Tier(url, pricing=PRICING, clock=clock, ledger_days=2) as tier:
        tier.subscribe("org:acme", "plan:free@1")
        for _ in range(20 * 24):
            tier.report("org:acme", "feature:x", 1)
            tier.report("org:acme", "feature:seats", 3)
            clock.advance(timedelta(hours=1))
        for feature, total in (("feature:x", 480), ("feature:seats", 3)):
            entries = tier.history("org:acme", feature)
            kinds = [entry.kind for entry in entries]
            assert kinds == sorted(kinds)  # days, then reports
            reports = kinds.count("report")
            assert 2 * 24 <= reports <= 2 * 24 + 40  # cleaned now and then, a few at a time
            assert sum(entry.n for entry in entries) == total
        assert [day.n for day in tier.history("org:acme", "feature:x", step="day")][1:-1] == [24] * 19
        assert tier.lookup_limit("org:acme", "feature:x").used == 480


@pytest.mark.parametrize("engine", ["memory://", "sqlite"])
def test_no_days_keep_no_entries(engine: str, tmp_path: Path) -> None:
    url = engine if engine != "sqlite" else f"sqlite:///{tmp_path}/tier.db"
    with Tier(url, pricing=PRICING, ledger_days=0) as tier:
        tier.subscribe("org:acme", "plan:free@1")
        with tier.reserve("org:acme", "feature:x", 2):
            pass
        tier.report("org:acme", "feature:x")
        tier.adjust("org:acme", "feature:x", 1)
        tier.report("org:acme", "feature:seats", 1)
        assert tier.history("org:acme", "feature:x") == tier.history("org:acme", "feature:seats") == ()
        assert tier.lookup_limit("org:acme", "feature:x").used == 4
