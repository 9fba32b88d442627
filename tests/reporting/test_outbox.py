"""The outbox: real files, several processes, kills."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from forking import exit_status, forked, hammered

from tier_middleware import ConfigurationError, EngineUnavailable, InvalidRequest, ManualClock
from tier_middleware.clock import milliseconds
from tier_middleware.names import MAX_UNITS
from tier_middleware.ops import Busy
from tier_middleware.policy import KEY_LIFETIME_MS
from tier_middleware.reporting.batches import NOTHING_MORE, Batch, Detail, Entry, State, Stock
from tier_middleware.reporting.outbox import Outbox

CALLS = "feature:calls"
ACME = "org:acme"
LEASE_MS = 60_000
V1 = Path(__file__).with_name("outbox_v1.sql")
V1_MS = 1_706_659_200_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2024, 1, 31, tzinfo=UTC))


@pytest.fixture
def outbox(tmp_path: Path, clock: ManualClock) -> Iterator[Outbox]:
    with closing(Outbox(tmp_path / "outbox.db", milliseconds(clock))) as outbox:
        yield outbox


def add(outbox: Outbox, n: int = 1, org: str = ACME, **options: object) -> bool:
    (is_new,) = outbox.append([Entry(org, CALLS, n, **options)])  # type: ignore[arg-type]
    return is_new


def claim(outbox: Outbox) -> Batch | None:
    return next(iter(outbox.claim(outbox._now_ms() + LEASE_MS, 1)), None)


def claimed(outbox: Outbox) -> Batch:
    batch = claim(outbox)
    assert batch is not None
    return batch


def drained(outbox: Outbox) -> list[int]:
    """Claim and settle all there is: the units, in order."""
    found = []
    while (batch := claim(outbox)) is not None:
        outbox.settle(batch)
        found.append(-batch.n if batch.clobber else batch.n)
    return found


# ---- coalescing, sealing and order ----------------------------------------------------------------------------------


def test_increments_of_one_org_and_feature_are_sent_as_one(outbox: Outbox) -> None:
    for n in (1, 2, 3):
        add(outbox, n)
    add(outbox, 5, "org:other")
    first, second = claimed(outbox), claimed(outbox)
    assert (first.org, first.n, first.reports) == (ACME, 6, 3)
    assert (second.org, second.n, second.reports) == ("org:other", 5, 1)
    assert first.key != second.key
    assert claim(outbox) is None


def test_what_was_claimed_is_never_added_to(outbox: Outbox) -> None:
    add(outbox, 1)
    first = claimed(outbox)
    add(outbox, 2)
    outbox.postpone(first, 0, "refused")
    add(outbox, 4)
    assert sorted([claimed(outbox), claimed(outbox)]) == sorted(
        [first._replace(state="sent", attempts=1, due_ms=0, reason="refused"), outbox.listed(["sent"])[1]]
    )
    assert outbox.stock() == {"sent": Stock(2, 3, 7)}


def test_an_explicit_time_is_a_batch_of_its_own(outbox: Outbox) -> None:
    add(outbox, 1)
    add(outbox, 2, at_ms=7)
    add(outbox, 4)
    batches = [claimed(outbox), claimed(outbox)]
    assert sorted((batch.n, batch.at_ms) for batch in batches) == [(2, 7), (5, None)]


def test_a_clobber_is_a_barrier_in_both_directions(outbox: Outbox) -> None:
    add(outbox, 1)
    add(outbox, 10, clobber=True)
    add(outbox, 3)
    first = claimed(outbox)
    assert (first.n, claim(outbox)) == (1, None)  # the clobber waits for what was before it
    outbox.postpone(first, 0, "away")
    assert drained(outbox) == [1, -10, 3]


def test_what_waits_behind_a_barrier_waits_for_it_only(outbox: Outbox) -> None:
    add(outbox, 10, clobber=True)
    add(outbox, 7, "org:other")
    barrier = claimed(outbox)
    add(outbox, 3)
    assert claimed(outbox).org == "org:other"
    assert claim(outbox) is None
    outbox.hold(barrier, "lost")  # set aside: it holds nobody up
    assert claimed(outbox).n == 3


def test_levels_are_not_added_up_and_keep_their_order(outbox: Outbox) -> None:
    for n in (5, 3, 4):
        add(outbox, n, is_alone=True)
    assert drained(outbox) == [5, 3, 4]


def test_several_reports_are_kept_together_or_not_at_all(outbox: Outbox) -> None:
    add(outbox, 1, key="k", contents="1")
    with pytest.raises(InvalidRequest, match="other contents"):
        outbox.append([Entry(ACME, CALLS, 5), Entry(ACME, CALLS, 2, key="k", contents="2")])
    assert drained(outbox) == [1]


def test_a_sum_that_no_server_could_hold_is_two_batches(outbox: Outbox) -> None:
    add(outbox, MAX_UNITS)
    add(outbox, 2)
    assert sorted(drained(outbox)) == [2, MAX_UNITS]


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_counts_once_also_after_it_was_delivered(outbox: Outbox, clock: ManualClock) -> None:
    assert add(outbox, 1, key="k", contents="c")
    assert not add(outbox, 1, key="k", contents="c")
    assert drained(outbox) == [1]
    assert not add(outbox, 1, key="k", contents="c")
    assert drained(outbox) == []
    clock.advance(timedelta(milliseconds=KEY_LIFETIME_MS + 1))
    add(outbox, 1, key="other", contents="c")  # which forgets old ones
    assert add(outbox, 1, key="k", contents="c")


# ---- settling -------------------------------------------------------------------------------------------------------


def test_nobody_gets_what_another_has_claimed_until_its_lease_is_over(outbox: Outbox, clock: ManualClock) -> None:
    add(outbox)
    batch = claimed(outbox)
    assert claim(outbox) is None
    assert outbox.abandoned() == []
    clock.advance(timedelta(milliseconds=LEASE_MS + 1))
    assert outbox.abandoned() == [batch]
    outbox.hold(batch, "did not come back")
    assert outbox.abandoned() == []
    assert [(found.state, found.code, found.reason) for found in outbox.undelivered(ACME)] == [
        ("held", "ambiguous", "did not come back")
    ]


def test_who_comes_back_late_changes_nothing_but_may_say_that_it_was_delivered(
    outbox: Outbox, clock: ManualClock
) -> None:
    add(outbox)
    late = claimed(outbox)
    clock.advance(timedelta(milliseconds=LEASE_MS + 1))
    outbox.postpone(outbox.abandoned()[0], 0, "taken over")
    other = claimed(outbox)
    outbox.bury(late, "x", "too late")
    outbox.postpone(late, 0, "too late")
    assert outbox.listed(["sent"]) == [other]
    outbox.settle(late)
    assert outbox.stock() == {}


def test_what_is_postponed_comes_when_it_is_due_with_its_old_key(outbox: Outbox, clock: ManualClock) -> None:
    add(outbox)
    batch = claimed(outbox)
    outbox.postpone(batch, outbox._now_ms() + 5000, "away")
    assert claim(outbox) is None
    assert outbox.next_due_ms() == outbox._now_ms() + 5000
    clock.advance(timedelta(seconds=5))
    again = claimed(outbox)
    assert (again.key, again.n, again.attempts, again.reason) == (batch.key, batch.n, 1, "away")


def test_what_is_buried_is_kept_for_a_person_and_is_not_owed_to_the_server(outbox: Outbox) -> None:
    add(outbox, 3)
    outbox.bury(claimed(outbox), "feature_not_found", "no such feature")
    (batch,) = outbox.listed(["buried"])
    assert (batch.n, batch.code, batch.reason) == (3, "feature_not_found", "no such feature")
    assert outbox.undelivered(ACME) == []
    assert outbox.requeue([batch.id]) == 1
    assert claimed(outbox).key == batch.key


def test_a_person_deletes_what_is_held_and_nothing_else(outbox: Outbox) -> None:
    add(outbox, 1)
    outbox.hold(claimed(outbox), "lost")
    add(outbox, 2)
    ids = [batch.id for batch in outbox.listed(["open", "held"])]
    assert outbox.remove(ids) == 1
    assert outbox.stock() == {"open": Stock(1, 1, 2)}


def test_what_was_held_is_sent_again_once_the_server_is_known_to_count_a_key_once(outbox: Outbox) -> None:
    add(outbox)
    held = claimed(outbox)
    outbox.hold(held, "lost")
    assert not outbox.honours_keys
    outbox.note_keys(are_honoured=True)
    assert outbox.honours_keys
    assert claimed(outbox).key == held.key


def test_what_has_not_been_delivered_of_an_org_is_all_of_it(outbox: Outbox) -> None:
    add(outbox, 1)
    claimed(outbox)
    add(outbox, 2)
    outbox.hold(claimed(outbox), "lost")
    add(outbox, 4)
    add(outbox, 8, "org:other")
    assert [batch.n for batch in outbox.undelivered(ACME)] == [1, 2, 4]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_outbox_is_left_alone(tmp_path: Path, clock: ManualClock) -> None:
    for name, content in (("text", b"hello" * 1000), ("folder/outbox.db", None)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigurationError, match="TIER_OUTBOX") as caught:
            Outbox(path, milliseconds(clock)).open()
        assert repr(str(path)) in caught.value.message
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(ConfigurationError, match="no outbox"):
        Outbox(tmp_path / "other.db", milliseconds(clock)).open()
    assert (tmp_path / "other.db").read_bytes() == before


def test_what_version_1_has_written_is_all_there(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(V1.read_text())
    server = "http://tier.example.com"
    with closing(Outbox(path, lambda: V1_MS + LEASE_MS + 1, server=server)) as found:
        found.open()
        before = [(batch.id, batch.state, batch.n, batch.reports) for batch in found.listed(get_args(State))]
        assert before == [
            (1, "held", 1, 1), (2, "buried", 2, 1), (3, "sent", 3, 1), (4, "open", 9, 2),
            (5, "sealed", 6, 1), (6, "sealed", 7, 1), (7, "open", 8, 1),
        ]  # fmt: skip
        assert {(batch.action, batch.detail) for batch in found.listed(get_args(State))} == {("report", NOTHING_MORE)}
        assert found.append([Entry(ACME, CALLS, 2, key="once", contents="abc")]) == [False]
        add(found, 1)
        (abandoned,) = found.abandoned()
        assert found.postpone(abandoned, 0, "")
        assert sorted(drained(found)) == [-7, 3, 6, 8, 10]
        found.append([Entry(ACME, CALLS, 4, action="commit", detail=Detail(hold=7))])
    with closing(Outbox(path, lambda: V1_MS, server=server)) as again:
        assert [batch.detail.hold for batch in again.undelivered(ACME)] == [0, 7]


def test_a_file_that_was_deleted_while_it_was_open_is_made_anew(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    add(outbox, 1)
    for beside in outbox.path.parent.glob("outbox.db*"):
        beside.unlink()
    add(outbox, 2)
    assert "was deleted or replaced" in caplog.text
    assert outbox.path.exists()
    assert drained(outbox) == [2]


def test_a_file_is_for_its_owner_and_group(outbox: Outbox) -> None:
    umask = os.umask(0o022)
    try:
        add(outbox)
    finally:
        os.umask(umask)
    files = list(outbox.path.parent.glob("outbox.db*"))
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}


# ---- clocks that jump -----------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_stalls_nothing(outbox: Outbox, clock: ManualClock) -> None:
    add(outbox, 1, "org:a")
    add(outbox, 2, "org:b")
    outbox.postpone(claimed(outbox), outbox._now_ms() + 600_000, "it may have been counted")
    taken = claimed(outbox)  # and its process is killed
    clock.advance(-timedelta(days=1))
    assert outbox.abandoned() == [taken]
    assert outbox.postpone(taken, 0, "")
    assert drained(outbox) == [2, 1]


def test_a_clock_that_is_put_right_by_a_little_takes_nothing_from_who_is_sending(
    outbox: Outbox, clock: ManualClock
) -> None:
    add(outbox)
    claimed(outbox)
    clock.advance(-timedelta(seconds=2))
    assert outbox.abandoned() == []


# ---- actions --------------------------------------------------------------------------------------------------------


def test_an_action_has_what_it_needs_and_is_not_added_up(outbox: Outbox) -> None:
    detail = Detail(hold=2**61, place=3, held=4, is_capped=True, expires_ms=5, default_plan="plan:x@1", note="n\u2028")
    for n in (1, 2):
        outbox.append([Entry(ACME, CALLS, n, key=f"key {n}", action="commit", detail=detail)])
    add(outbox, 3)
    outbox.append([Entry(ACME, CALLS, -4, action="adjust", key="same"), Entry(ACME, CALLS, 5, action="record")])
    found = outbox.undelivered(ACME)
    assert [(batch.n, batch.action, batch.state) for batch in found] == [
        (1, "commit", "sealed"), (2, "commit", "sealed"), (3, "report", "open"), (-4, "adjust", "sealed"),
        (5, "record", "sealed"),
    ]  # fmt: skip
    assert found[0].detail == detail
    assert [batch.key for batch in found if batch.action in ("commit", "adjust")] == ["key 1", "key 2", "same"]


def test_a_row_that_nobody_can_read_keeps_nobody_from_the_others(outbox: Outbox) -> None:
    outbox.append([Entry(ACME, CALLS, 1, action="commit", detail=Detail(hold=1))])
    add(outbox, 2)
    with closing(sqlite3.connect(outbox.path)) as raw, raw:
        raw.execute('UPDATE batch SET detail = \'{"hold": "x\' WHERE id = 1')
    assert drained(outbox) == [1, 2]


def test_an_outbox_of_a_newer_version_is_left_alone(outbox: Outbox, tmp_path: Path) -> None:
    outbox.open()
    outbox.close()
    raw = sqlite3.connect(tmp_path / "outbox.db")
    raw.execute("PRAGMA user_version = 99")
    raw.close()
    with pytest.raises(ConfigurationError, match="newer"):
        outbox.open()


def test_reports_for_one_server_are_not_sent_to_another(tmp_path: Path, clock: ManualClock) -> None:
    path, now_ms = tmp_path / "outbox.db", milliseconds(clock)
    with closing(Outbox(path, now_ms, server="https://one")) as first:
        add(first)
        with pytest.raises(ConfigurationError, match="1 reports for 'https://one'"):
            Outbox(path, now_ms, server="https://two").open()
        assert drained(first) == [1]
    with closing(Outbox(path, now_ms, server="https://two")) as second:
        second.open()


def test_a_disk_that_is_full_keeps_nothing_of_an_append(outbox: Outbox) -> None:
    add(outbox, 1)
    connection = outbox._file._front.connection
    assert connection is not None
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite answers as it does on a full disk
    many = [Entry(f"org:{'x' * 500}{index}", CALLS, 1) for index in range(100)]
    with pytest.raises(EngineUnavailable, match="full") as caught:
        outbox.append(many)
    assert caught.value.code == "outbox_unavailable"
    connection.execute("PRAGMA max_page_count = 1000000")
    add(outbox, 2)
    assert drained(outbox) == [3]


def test_while_another_process_writes_an_append_is_busy_and_the_reporter_waits(outbox: Outbox, tmp_path: Path) -> None:
    add(outbox, 1)
    other = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Busy):
        add(outbox, 2)
    timer = threading.Timer(0.1, lambda: other.execute("COMMIT"))
    timer.start()
    assert claimed(outbox).n == 1
    timer.join()
    other.close()


# ---- processes ------------------------------------------------------------------------------------------------------

APPENDS = """
import sys
from pathlib import Path
from tier_middleware.clock import milliseconds
from tier_middleware.ops import Busy
from tier_middleware.reporting.batches import Entry
from tier_middleware.reporting.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), milliseconds(None))
number = 0
while number < int(sys.argv[2]):
    try:
        outbox.append([Entry(f"org:{number % 7}", "feature:calls", 1)])
    except Busy:
        continue
    number += 1
    print(number, flush=True)
"""


def appending(path: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPENDS, str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Outbox]:
    """An outbox in the time of the processes that share it."""
    with closing(Outbox(tmp_path / "outbox.db", milliseconds(None))) as outbox:
        yield outbox


def test_four_processes_append_to_one_file_and_nothing_is_lost(real: Outbox, tmp_path: Path) -> None:
    processes = [appending(tmp_path / "outbox.db", 300) for _ in range(4)]
    total = 0
    while any(process.poll() is None for process in processes):
        total += sum(drained(real))
    total += sum(drained(real))
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    assert total == 1200


def test_what_was_appended_survives_a_kill(real: Outbox, tmp_path: Path) -> None:
    said = 0
    for kill_after in (1, 50, 120):
        process = appending(tmp_path / "outbox.db", 100_000)
        assert process.stdout is not None
        for _ in range(kill_after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        said += kill_after + len(process.stdout.read().splitlines())
        process.wait()
        process.stdout.close()
    total = sum(drained(real))
    assert said <= total <= said + 3  # one append of each may have been done and not been said


def test_a_child_appends_though_the_parents_threads_were_appending(outbox: Outbox) -> None:
    def append(org: str) -> bool:
        try:
            return add(outbox, 1, org)
        except Busy:
            return False

    def child() -> bool:
        while not append("org:child"):
            pass
        return True

    with hammered(lambda number: append(ACME), 2):
        statuses = [exit_status(forked(child)) for _ in range(10)]
    assert statuses == [0] * 10
    assert sum(batch.n for batch in outbox.undelivered("org:child")) == 10
