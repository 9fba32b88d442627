"""What every engine must do so that servers can share it out: tell of changes, and know what is sent again."""

from __future__ import annotations

import threading
from datetime import timedelta

from msgspec.structs import replace

from ..errors import InvalidRequest, OrgNotFound
from ..names import org_key
from ..ops import (
    UNPLACED,
    Changes,
    Committed,
    DeleteOrg,
    Demand,
    Granted,
    Hold,
    MakeClock,
    Push,
    ReadChanges,
    Release,
    Reserve,
    Shortfall,
)
from .bench import ACME, CALLS, DISK, EXPORT, MAILS, MODEL, START, Bench, Suite, planned, raised, together

__all__ = ["Changing", "Resending"]


def since(bench: Bench, cursor: str | None = None) -> Changes:
    return bench.do(ReadChanges(cursor))


def told(bench: Bench, cursor: str) -> tuple[tuple[str, ...], bool]:
    found = since(bench, cursor)
    return found.orgs, found.is_everything


class Changing(Suite):
    """Whose limits have changed is told to everybody who asks, once he has a cursor."""

    def test_whoever_asks_first_gets_a_place_to_go_on_from(self) -> None:
        bench = self.bench("plan:free@1")
        first = since(bench)
        assert (first.orgs, first.is_everything) == ((), False)
        assert told(bench, first.cursor) == ((), False)

    def test_a_schedule_is_a_change_of_its_org(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        bench.subscribe("org:b", "plan:pro@1")
        bench.subscribe(ACME, "plan:pro@1")
        bench.cancel("org:b")
        bench.schedule(planned("plan:free@1", at=START + timedelta(days=3)), org="org:c")
        found = since(bench, cursor)
        assert (sorted(found.orgs), found.is_everything) == ([ACME, "org:b", "org:c"], False)
        assert since(bench, found.cursor).orgs == ()

    def test_two_who_ask_are_told_the_same(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        bench.subscribe("org:b", "plan:free@1")
        early = since(bench, cursor)
        bench.subscribe("org:c", "plan:free@1")
        assert since(bench, early.cursor).orgs == ("org:c",)
        assert sorted(since(bench, cursor).orgs) == ["org:b", "org:c"]

    def test_a_default_plan_is_a_change_and_only_the_first_time(self) -> None:
        bench = self.bench()
        cursor = since(bench).cursor
        bench.reserve(Demand(CALLS, 1), default_plan="plan:free@1")
        found = since(bench, cursor)
        assert found.orgs == (ACME,)
        bench.reserve(Demand(CALLS, 1), default_plan="plan:free@1")
        bench.check(org="org:b", default_plan="plan:free@1")
        assert since(bench, found.cursor).orgs == ("org:b",)

    def test_usage_and_info_are_no_changes(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        bench.use()
        bench.hold()
        bench.record(1)
        bench.adjust(-1)
        bench.update(name="Acme")
        bench.do(Push(MODEL, bench.now_ms()))
        bench.check()
        assert told(bench, cursor) == ((), False)

    def test_what_raises_is_no_change(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        raised(InvalidRequest, bench.subscribe, "org:b", "plan:no@1")
        raised(OrgNotFound, bench.do, DeleteOrg("org:nobody"))
        assert since(bench, cursor).orgs == ()

    def test_a_deletion_is_told_to_everybody_and_keeps_no_name(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        bench.subscribe("org:b", "plan:free@1")
        for _ in range(3):
            bench.do(DeleteOrg(ACME))
            found = since(bench, cursor)
            assert found.is_everything
            assert ACME not in found.orgs
            bench.subscribe(ACME, "plan:free@1")
            assert since(bench, found.cursor).orgs == (ACME,)
            cursor = since(bench).cursor

    def test_more_than_one_answer_names_are_everybody(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        for n in range(1000):
            bench.subscribe(f"org:{n}", "plan:free@1")
        assert len(since(bench, cursor).orgs) == 1000
        bench.subscribe("org:1000", "plan:free@1")
        assert told(bench, cursor) == ((), True)

    def test_orgs_under_a_test_clock_are_named_by_their_keys(self) -> None:
        bench = self.bench("plan:free@1")
        bench.do(MakeClock("clock_1", "rehearsal", bench.now_ms()))
        cursor = since(bench).cursor
        bench.subscribe(org_key(ACME, "clock_1"), "plan:free@1")
        assert since(bench, cursor).orgs == (org_key(ACME, "clock_1"),)

    def test_a_cursor_that_this_database_never_gave_means_everybody(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        created, _, position = cursor.partition("-")
        for foreign in ("", "x", "1-1", f"{created}-{'9' * 15}", f"{int(created) + 1}-{position}", f"{cursor}\n"):
            assert told(bench, foreign) == ((), True), foreign

    def test_a_cursor_outlives_a_restart(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        bench.subscribe("org:b", "plan:free@1")
        bench.restart()
        assert since(bench, cursor).orgs == ("org:b",)

    def test_somebody_who_follows_misses_nothing_of_what_many_threads_change(self) -> None:
        bench = self.bench("plan:free@1")
        cursor = since(bench).cursor
        seen: set[str] = set()
        is_over = threading.Event()
        writers = 6

        def follow() -> None:
            nonlocal cursor
            is_last = False
            while not is_last:
                is_last = is_over.is_set()  # looked at before the last question
                found = since(bench, cursor)
                assert not found.is_everything
                seen.update(found.orgs)
                cursor = found.cursor

        def change(index: int) -> None:
            for n in range(15):
                bench.subscribe(f"org:{index}:{n}", "plan:free@1")

        follower = threading.Thread(target=lambda: together(1, lambda _: follow()))
        follower.start()
        together(writers, change)
        is_over.set()
        follower.join()
        assert seen == {f"org:{index}:{n}" for index in range(writers) for n in range(15)}


class Resending(Suite):
    """A reservation whose answer was lost may be sent again, or given back."""

    def test_a_reservation_that_is_sent_again_is_the_same(self) -> None:
        bench = self.bench("plan:free@1")
        op = reservation(bench, Demand(CALLS, 2), Demand(MAILS, 1), Demand(EXPORT, 1))
        first = bench.do(op)
        assert bench.do(op) == first
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 2), (0, 1))

    def test_it_is_granted_though_it_has_taken_the_last_unit_itself(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use()
        for demands in ((Demand(CALLS, 2),), (Demand(MAILS, 2), Demand(EXPORT, 1))):
            op = reservation(bench, *demands)
            first = bench.do(op)
            assert bench.do(op) == first
        assert isinstance(bench.do(reservation(bench, Demand(CALLS, 1))), Shortfall)
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((1, 2), (0, 2))

    def test_its_commit_counts_once(self) -> None:
        bench = self.bench("plan:free@1")
        op = reservation(bench, Demand(CALLS, 2))
        hold = held(bench.do(op))
        assert held(bench.do(op)) == hold
        assert bench.commit(hold) == Committed()
        assert bench.commit(hold, 1) == Committed()
        assert bench.usage() == (2, 0)

    def test_a_level_that_is_sent_again_is_the_same(self) -> None:
        bench = self.bench("plan:team@1")
        op = reservation(bench, Demand(DISK, 4))
        assert bench.do(op) == bench.do(op)
        assert bench.commit(held(bench.do(op)), 4) == Committed()
        assert bench.usage(DISK) == (4, 0)

    def test_one_that_has_expired_is_reserved_anew(self) -> None:
        bench = self.bench("plan:free@1")
        op = reservation(bench, Demand(CALLS, 2), seconds=60)
        bench.do(op)
        bench.pass_(seconds=60)
        again = replace(op, now_ms=bench.now_ms(), expires_ms=bench.now_ms() + 60_000)
        assert isinstance(bench.do(again), Granted)
        assert bench.usage() == (0, 2)
        bench.pass_(seconds=60)
        bench.hold(n=3)  # what has expired is taken back, and is there with 0
        assert isinstance(bench.do(replace(again, now_ms=bench.now_ms())), Shortfall)
        assert bench.usage() == (0, 3)

    def test_an_id_that_holds_another_amount_is_refused(self) -> None:
        bench = self.bench("plan:free@1")
        op = reservation(bench, Demand(CALLS, 2), Demand(MAILS, 1))
        bench.do(op)
        for demands in ((Demand(CALLS, 1), Demand(MAILS, 1)), (Demand(CALLS, 2), Demand(MAILS, 2))):
            error = raised(InvalidRequest, bench.do, replace(op, demands=demands))
            assert error.path == "ids"
            assert str(op.ids[0 if demands[0].n == 1 else 1]) in error.message
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 2), (0, 1))

    def test_twenty_threads_that_send_one_reservation_make_one(self) -> None:
        bench = self.bench("plan:free@1")
        op = reservation(bench, Demand(CALLS, 2))
        replies = together(20, lambda _: bench.do(op))
        assert {held(reply).id for reply in replies} == {op.ids[0]}
        assert bench.usage() == (0, 2)

    def test_what_a_lost_answer_may_have_taken_is_given_back(self) -> None:
        bench = self.bench("plan:free@1", "plan:team@1")
        other = bench.hold()
        op = reservation(bench, Demand(CALLS, 2), Demand(MAILS, 1), Demand(DISK, 5))
        bench.do(op)
        for _ in range(2):
            bench.do(Release(unplaced(op), bench.now_ms()))
            assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 1), (0, 0))
        bench.commit(other)
        bench.hold(n=2)

    def test_what_was_never_taken_is_not_given_back(self) -> None:
        bench = self.bench("plan:free@1")
        bench.hold(n=2)
        bench.do(Release(unplaced(reservation(bench, Demand(CALLS, 1))), bench.now_ms()))
        bench.do(Release((Hold(1 << 61, "org:nobody", CALLS, 1, UNPLACED),), bench.now_ms()))
        assert bench.usage() == (0, 2)

    def test_it_is_found_in_the_plan_and_period_where_it_was_taken(self) -> None:
        bench = self.bench("plan:daily@1")
        op = reservation(bench, Demand(CALLS, 2), seconds=100_000)
        bench.do(op)
        bench.pass_(days=1)
        bench.subscribe(ACME, "plan:pro@1")
        (kept,) = unplaced(op)
        assert bench.commit(kept, 2) == Committed()
        assert [(entry.plan, entry.change.n) for entry in bench.entries()] == [("plan:daily@1", 2)]
        assert bench.usage() == (0, 0)

    def test_an_id_of_another_org_or_feature_is_not_found(self) -> None:
        bench = self.bench("plan:free@1")
        bench.subscribe("org:b", "plan:free@1")
        hold = bench.hold(n=2)
        for other in (replace(hold, org="org:b", place=UNPLACED), replace(hold, feature=MAILS, place=UNPLACED)):
            bench.release(other)
            assert bench.commit(other) == Committed()
        assert bench.usage() == (0, 2)


def reservation(bench: Bench, *demands: Demand, seconds: int = 900) -> Reserve:
    ids = tuple(next(Bench._ids) for _ in demands)
    return Reserve(ACME, demands, ids, bench.now_ms(), bench.now_ms() + seconds * 1000)


def held(reply: Granted | Shortfall) -> Hold:
    assert isinstance(reply, Granted), reply
    (hold,) = reply.holds
    assert hold is not None
    return hold


def unplaced(op: Reserve) -> tuple[Hold, ...]:
    """The holds of a reservation as those know them who have no answer to it."""
    pairs = zip(op.ids, op.demands, strict=True)
    return tuple(Hold(id, op.org, demand.feature, demand.n, UNPLACED) for id, demand in pairs)
