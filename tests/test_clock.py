"""Time: whole milliseconds inside, aware datetimes outside."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.clock import ManualClock, milliseconds, milliseconds_of, moment
from tier_middleware.errors import ConfigurationError, InvalidRequest

START = datetime(2024, 2, 29, 12, tzinfo=UTC)

offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=offsets)


@given(moments)
def test_milliseconds_are_cut_off_and_never_rounded(at: datetime) -> None:
    ms = milliseconds_of(at, "at")
    assert moment(ms) <= at < moment(ms + 1)


@given(st.integers(-(10**13), 10**14))
def test_a_moment_and_its_milliseconds_are_the_same(ms: int) -> None:
    assert milliseconds_of(moment(ms), "at") == ms
    assert moment(ms).utcoffset() == timedelta(0)


def test_one_moment_has_one_number_in_all_time_zones() -> None:
    tokyo = START.astimezone(timezone(timedelta(hours=9)))
    assert milliseconds_of(tokyo, "at") == milliseconds_of(START, "at") == 1709208000000


def test_before_1970_too_the_past_is_cut_off() -> None:
    assert milliseconds_of(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "at") == -1


@pytest.mark.parametrize(
    "value", [datetime(2024, 1, 1), date(2024, 1, 1), 1704067200, 1.5, "2024-01-01T00:00:00Z", None]
)
def test_what_is_no_aware_datetime_is_refused_by_name_and_value(value: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        milliseconds_of(value, "at")
    assert caught.value.path == "at"
    assert caught.value.message.startswith("at: must be an aware datetime")
    assert repr(value) in caught.value.message


def test_the_machines_own_clock_is_the_default() -> None:
    before = time.time_ns() // 1_000_000
    now = milliseconds(None)()
    assert before <= now <= time.time_ns() // 1_000_000


def test_a_clock_of_the_application_is_read_each_time() -> None:
    clock = ManualClock(START)
    now_ms = milliseconds(clock)
    first = now_ms()
    clock.advance(timedelta(seconds=1, microseconds=999))
    assert now_ms() == first + 1000
    clock.set(START)
    assert now_ms() == first


@pytest.mark.parametrize("clock", [START, 7, "now"])
def test_a_clock_that_cannot_be_called_is_a_mistake_in_the_configuration(clock: object) -> None:
    with pytest.raises(ConfigurationError, match="clock: must be a callable"):
        milliseconds(clock)  # type: ignore[arg-type]  # on purpose


def test_a_clock_that_answers_naive_times_is_refused_when_it_is_read() -> None:
    with pytest.raises(InvalidRequest, match="clock: must be an aware datetime"):
        milliseconds(lambda: datetime(2024, 1, 1))()


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(START)
    assert clock() == clock() == START
    clock.advance(timedelta(days=-1))
    assert clock() == START - timedelta(days=1)


def test_a_manual_clock_takes_aware_times_only() -> None:
    with pytest.raises(InvalidRequest, match="start"):
        ManualClock(datetime(2024, 1, 1))
    clock = ManualClock(START)
    with pytest.raises(InvalidRequest, match="now"):
        clock.set(datetime(2024, 1, 1))
    assert clock() == START
