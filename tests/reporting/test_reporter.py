"""The reporter: what it does with each outcome, its thread, forks, and what it leaves behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from forking import exit_status, forked, no_more_threads

from tier_middleware import ManualClock
from tier_middleware.calls import report
from tier_middleware.clock import milliseconds, monotonic
from tier_middleware.ops import Busy
from tier_middleware.reporting.backoff import batch_backoff_seconds, server_backoff_seconds
from tier_middleware.reporting.batches import Batch, Detail, Entry
from tier_middleware.reporting.outbox import Outbox
from tier_middleware.reporting.outcomes import Delivered, Later, Outcome, Refused, Unknown, outcome_of
from tier_middleware.reporting.reporter import Reporter
from tier_middleware.wire import Response

CALLS = "feature:calls"
REQUEST = report("org:acme", CALLS, 1, key="k")


class Server:
    """What delivers: counts what it is given, and answers what it was told to, then ``Delivered``."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.is_keyed = False
        self.sent: list[Batch] = []
        self.has_sent = threading.Event()

    def __call__(self, batch: Batch, seconds: float) -> Outcome:
        self.sent.append(batch)
        outcome = self.outcomes.pop(0) if self.outcomes else Delivered(self.is_keyed)
        self.has_sent.set()
        return outcome


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2024, 1, 31, tzinfo=UTC))


@pytest.fixture
def outbox(tmp_path: Path, clock: ManualClock) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path / "outbox.db", milliseconds(clock))) as outbox:
        yield outbox


@pytest.fixture
def make(outbox: Outbox, clock: ManualClock) -> Iterator[Callable[..., Reporter]]:
    made: list[Reporter] = []

    def reporter(server: Server, **options: Any) -> Reporter:
        quick = {"linger_seconds": 0.001, "look_seconds": 0.02}
        made.append(Reporter(outbox, server, milliseconds(clock), **{**quick, **options}))
        return made[-1]

    yield reporter
    for one in made:
        one.stop()


def add(outbox: Outbox, n: int = 1, org: str = "org:acme") -> None:
    while True:
        try:
            outbox.append([Entry(org, CALLS, n)])
            return
        except Busy:  # for the driver to wait
            continue


def states(outbox: Outbox) -> dict[Any, int]:
    return {state: part.n for state, part in outbox.stock().items()}


# ---- outcomes -------------------------------------------------------------------------------------------------------


def test_what_is_delivered_is_gone(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    reporter = make(Server())
    add(outbox, 3)
    assert reporter.flush(5)
    assert outbox.stock() == {}
    assert reporter.counts == {"outbox.delivered": 3}


def test_what_is_refused_for_good_is_buried_and_said_once(
    outbox: Outbox, make: Callable[..., Reporter], caplog: pytest.LogCaptureFixture
) -> None:
    reporter = make(Server(Refused("feature_not_found", "no such feature"), Refused("feature_not_found", "likewise")))
    for org in ("org:a", "org:b", "org:c"):
        add(outbox, 2, org)
    assert reporter.flush(5)
    assert states(outbox) == {"buried": 4}
    assert reporter.counts == {"outbox.buried": 4, "outbox.delivered": 2}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_server_that_is_away_is_left_alone_and_nothing_is_lost(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    server = Server(Later("connection refused"))
    reporter = make(server)
    add(outbox, 1, "org:a")
    add(outbox, 2, "org:b")
    assert not reporter.flush(5)
    assert len(server.sent) == 1  # the others would meet the same
    assert reporter.flush(5)
    assert [batch.n for batch in server.sent] == [1, 2, 1]
    assert server.sent[0].key == server.sent[2].key


def test_the_thread_waits_as_long_as_the_server_asks(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    server = Server(Later("429", 0.3))
    reporter = make(server)
    add(outbox)
    begun = monotonic()
    reporter.wake()
    assert server.has_sent.wait(5)
    server.has_sent.clear()
    assert server.has_sent.wait(5)
    assert monotonic() - begun >= 0.3


def test_what_may_have_been_counted_is_held_for_a_person(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    reporter = make(Server(Unknown("the connection was lost")))
    add(outbox, 3)
    assert reporter.flush(5)
    assert states(outbox) == {"held": 3}
    assert reporter.counts == {"outbox.held": 3}
    assert [batch.reason for batch in outbox.listed(["held"])] == ["the connection was lost"]


def test_or_sent_again_or_dropped_where_somebody_chose_that(
    outbox: Outbox, make: Callable[..., Reporter], clock: ManualClock
) -> None:
    retrying = make(Server(Unknown("lost")), ambiguous="retry")
    add(outbox, 3)
    assert not retrying.flush(5)
    clock.advance(timedelta(seconds=5))
    assert retrying.flush(5)
    assert retrying.counts == {"outbox.delivered": 3}
    dropping = make(Server(Unknown("lost")), ambiguous="drop")
    add(outbox, 3)
    assert dropping.flush(5)
    assert (states(outbox), dropping.counts) == ({}, {"lost.ambiguous": 3})


def test_a_server_that_honours_keys_gets_it_again_with_the_same_key(
    outbox: Outbox, make: Callable[..., Reporter], clock: ManualClock
) -> None:
    server = Server(Unknown("lost"))
    server.is_keyed = True
    reporter = make(server)
    add(outbox, 1, "org:a")
    add(outbox, 2, "org:b")
    reporter.flush(5)  # org:a is held; then org:b's answer shows that keys are honoured
    assert outbox.honours_keys
    reporter.flush(5)
    assert outbox.stock() == {}
    assert [batch.n for batch in server.sent] == [1, 2, 1]
    assert server.sent[0].key == server.sent[2].key
    server.outcomes.append(Unknown("lost"))
    add(outbox, 4)
    reporter.flush(5)
    clock.advance(timedelta(seconds=5))
    assert reporter.flush(5)
    assert states(outbox) == {}


def test_a_server_that_no_longer_honours_keys_is_believed(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    server = Server()
    server.is_keyed = True
    reporter = make(server)
    add(outbox)
    reporter.flush(5)
    server.is_keyed = False
    add(outbox)
    reporter.flush(5)
    assert not outbox.honours_keys


def test_what_a_dead_process_was_sending_is_taken_over(
    outbox: Outbox, make: Callable[..., Reporter], clock: ManualClock
) -> None:
    add(outbox, 3)
    assert outbox.claim(milliseconds(clock)() + 1000, 1)  # and is killed
    reporter = make(Server())
    reporter.flush(5)
    assert states(outbox) == {"sent": 3}
    clock.advance(timedelta(seconds=2))
    reporter.flush(5)
    assert states(outbox) == {"held": 3}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"{}", Delivered),
        (200, b"<html>log in to this network</html>", Unknown),
        (200, b"", Unknown),
        (302, b"", Later),
        (400, b'{"code": "org_not_found", "message": ""}', Refused),
        (400, b'{"code": "feature_not_found", "message": ""}', Refused),
        (400, b'{"code": "invalid_request", "message": "feature not reportable"}', Refused),
        (400, b"<html>bad request</html>", Later),
        (401, b'{"code": "invalid_api_key", "message": ""}', Later),
        (403, b"", Later),
        (404, b'{"code": "not_found", "message": "Not Found"}', Later),
        (408, b"", Later),
        (429, b"", Later),
        (500, b'{"code": "internal_error", "message": ""}', Unknown),
        (502, b"<html>bad gateway</html>", Unknown),
        (503, b"", Later),
        (504, b"", Unknown),
    ],
)
def test_what_an_answer_means(status: int, body: bytes, expected: type[Outcome]) -> None:
    assert type(outcome_of(REQUEST, Response(status, body, {}))) is expected


def test_an_answer_says_how_long_to_wait_and_that_keys_are_honoured() -> None:
    assert outcome_of(REQUEST, Response(503, b"", {"retry-after": "9"}))[1] == 9
    assert outcome_of(REQUEST, Response(200, b"{}", {"idempotency-key": "k"})) == Delivered(True)


def test_pauses_grow_and_have_a_bound() -> None:
    for backoff_seconds, longest in ((server_backoff_seconds, 30.2), (batch_backoff_seconds, 601)):
        pauses = [backoff_seconds(attempt) for attempt in (1, 4, 7, 5000)]
        assert pauses == sorted(pauses)
        assert pauses[-1] <= longest
    assert len({server_backoff_seconds(1) for _ in range(20)}) > 1


def test_what_counts_once_is_sent_again_whatever_the_server_is_like(
    outbox: Outbox, make: Callable[..., Reporter], clock: ManualClock
) -> None:
    server = Server(Unknown("lost"), Delivered(None))
    reporter = make(server)
    outbox.append([Entry("org:acme", CALLS, 3, action="commit", detail=Detail(hold=7))])
    assert outbox.claim(milliseconds(clock)() + 1000, 1)  # by a process that is killed
    clock.advance(timedelta(seconds=2))
    for _ in range(3):
        reporter.flush(5)
        clock.advance(timedelta(seconds=5))
    assert states(outbox) == {}
    assert [batch.detail.hold for batch in server.sent] == [7, 7]
    assert not outbox.honours_keys


def test_one_that_cannot_be_sent_keeps_nobody_from_the_others(
    outbox: Outbox, make: Callable[..., Reporter], caplog: pytest.LogCaptureFixture
) -> None:
    class Choking(Server):
        def __call__(self, batch: Batch, seconds: float) -> Outcome:
            if batch.org == "org:bad":
                raise ZeroDivisionError("nobody thought of this")
            return super().__call__(batch, seconds)

    reporter = make(Choking())
    add(outbox, 1, "org:bad")
    add(outbox, 2, "org:good")
    assert reporter.flush(5)
    assert states(outbox) == {"held": 1}
    assert "nobody thought of this" in caplog.text


class Deaf(Server):
    """Never has an answer for one org."""

    def __init__(self, answer: Outcome) -> None:
        super().__init__()
        self.answer = answer

    def __call__(self, batch: Batch, seconds: float) -> Outcome:
        outcome = super().__call__(batch, seconds)
        return self.answer if batch.org == "org:bad" else outcome


def test_one_that_always_has_to_wait_keeps_nobody_from_the_others(
    outbox: Outbox, make: Callable[..., Reporter]
) -> None:
    server = Deaf(Later("a guard before the server does not like its name"))
    reporter = make(server)
    add(outbox, 1, "org:bad")
    add(outbox, 2, "org:a")
    assert not reporter.flush(5)
    assert not reporter.flush(5)
    add(outbox, 3, "org:b")
    assert not reporter.flush(5)
    assert [batch.org for batch in server.sent] == ["org:bad", "org:a", "org:bad", "org:b", "org:bad"]
    assert states(outbox) == {"sealed": 1}


def test_a_server_that_answers_nothing_is_left_alone_before_everything_is_held(
    outbox: Outbox, make: Callable[..., Reporter]
) -> None:
    reporter = make(Server(*[Unknown("no answer")] * 100))
    for number in range(100):
        add(outbox, 1, f"org:{number}")
    assert not reporter.flush(5)
    assert states(outbox) == {"held": 3, "open": 97}


def test_threads_that_cannot_be_started_cost_no_report(
    outbox: Outbox, make: Callable[..., Reporter], caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    reporter = make(server)
    add(outbox)
    with no_more_threads():
        reporter.wake()
    assert "stay in the outbox" in caplog.text
    reporter.wake()
    assert server.has_sent.wait(5)


def test_two_who_find_an_abandoned_batch_at_once_count_it_once(
    tmp_path: Path, outbox: Outbox, make: Callable[..., Reporter], clock: ManualClock
) -> None:
    add(outbox, 3)
    (claimed,) = outbox.claim(milliseconds(clock)() + 1000, 1)
    clock.advance(timedelta(seconds=2))
    first, second = make(Server(), ambiguous="drop"), make(Server(), ambiguous="hold")
    for reporter in (first, second):  # each has seen it before either has decided
        reporter._unknown(claimed, "the process that sent it did not come back")
    assert (first.counts, second.counts) == ({"lost.ambiguous": 3}, {})


# ---- the thread -----------------------------------------------------------------------------------------------------


def test_there_is_no_thread_before_the_first_report_and_none_after_a_stop(
    outbox: Outbox, make: Callable[..., Reporter]
) -> None:
    server = Server()
    reporter = make(server)
    assert "tier-reporter" not in {thread.name for thread in threading.enumerate()}
    add(outbox)
    reporter.wake()
    assert server.has_sent.wait(5)
    reporter.stop()
    assert "tier-reporter" not in {thread.name for thread in threading.enumerate()}
    server.has_sent.clear()
    add(outbox)
    reporter.wake()
    assert server.has_sent.wait(5)


def test_what_another_process_left_behind_is_found(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    server = Server()
    reporter = make(server)
    reporter.wake()
    add(outbox, 1)
    assert server.has_sent.wait(5)
    server.has_sent.clear()
    add(outbox, 2)  # nobody wakes
    assert server.has_sent.wait(5)


def test_a_stop_does_not_wait_for_a_server_that_is_away(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    server = Server(Later("away", 3600))
    reporter = make(server)
    add(outbox)
    reporter.wake()
    assert server.has_sent.wait(5)
    begun = monotonic()
    reporter.stop()
    assert monotonic() - begun < 2
    assert "tier-reporter" not in {thread.name for thread in threading.enumerate()}


def test_the_log_does_not_grow_while_a_server_asks_for_a_long_pause(
    outbox: Outbox, make: Callable[..., Reporter]
) -> None:
    server = Server(Later("429", 3600))
    make(server).wake()
    add(outbox)
    assert server.has_sent.wait(5)
    log = outbox.path.with_name("outbox.db-wal")
    deadline = monotonic() + 20
    appended = 0
    while appended < 2000 or log.stat().st_size > appended * 4096 / 3:  # each append is a page, or more
        assert monotonic() < deadline
        add(outbox)
        appended += 1
    assert len(server.sent) == 1


def test_a_flush_is_bounded(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    begins = threading.Event()
    release = threading.Event()

    def slow(batch: Batch, seconds: float) -> Outcome:
        begins.set()
        release.wait(10)
        return Delivered(False)

    reporter = make(slow)
    add(outbox)
    reporter.wake()
    assert begins.wait(5)
    begun = monotonic()
    assert not reporter.flush(0.1)
    assert monotonic() - begun < 2
    release.set()


def test_a_child_has_a_thread_of_its_own_once_it_reports(outbox: Outbox, make: Callable[..., Reporter]) -> None:
    server = Server()
    reporter = make(server, look_seconds=60)  # so that the parent does not find what the child reports
    add(outbox)
    reporter.wake()
    assert server.has_sent.wait(5)
    assert reporter.flush(5)  # and it looks for no more

    def child() -> bool:
        server.has_sent.clear()
        add(outbox, 1, "org:child")
        reporter.wake()
        return server.has_sent.wait(10) and server.sent[-1].org == "org:child"

    assert exit_status(forked(child)) == 0


def test_a_reporter_goes_on_after_an_outbox_that_cannot_be_read(
    outbox: Outbox, make: Callable[..., Reporter], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    reporter = make(server)
    (tmp_path / "outbox.db").mkdir()
    reporter.wake()
    while not caplog.records:
        threading.Event().wait(0.005)
    assert "cannot be emptied" in caplog.text
    (tmp_path / "outbox.db").rmdir()
    add(outbox, 2)
    assert server.has_sent.wait(5)
    reporter.flush(5)
    assert outbox.stock() == {}
