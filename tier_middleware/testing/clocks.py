"""Test clocks, and orgs that live in their time: apart from all others."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from ..clock import DAY_MS, milliseconds_of
from ..errors import InvalidRequest, NotEntitled, OrgNotFound
from ..names import org_key, org_name
from ..ops import (
    AdvanceClock,
    ClockRecord,
    DeleteOrg,
    Describe,
    LookUpClock,
    LookUpPhases,
    MakeClock,
    Recorded,
    UpdateOrg,
)
from ..orginfo import OrgInfo
from ..policy import KEY_LIFETIME_MS
from .bench import ACME, CALLS, MAILS, SEATS, START, Suite, attempted, raised, together

__all__ = ["Clocks"]

START_MS: Final = milliseconds_of(START, "start")
CLOCK: Final = "clock_1"


class Clocks(Suite):
    """What is asked under a clock says whose it is (`tier_middleware.names.org_key`) and what time it is there."""

    def test_a_clock_is_kept_as_it_was_made(self) -> None:
        bench = self.bench()
        made = bench.do(MakeClock(CLOCK, "rehearsal", START_MS))
        assert made == ClockRecord(CLOCK, "rehearsal", START_MS)
        bench.do(MakeClock("clock_2", "", 0))
        assert bench.do(LookUpClock(CLOCK)) == made
        assert bench.do(LookUpClock("clock_2")) == ClockRecord("clock_2", "", 0)
        bench.engine.close()
        assert bench.do(LookUpClock(CLOCK)) == made

    def test_one_that_is_made_again_stays_as_it_is(self) -> None:
        bench = self.bench()
        bench.do(MakeClock(CLOCK, "rehearsal", START_MS))
        bench.do(AdvanceClock(CLOCK, START_MS + 1000))
        again = bench.do(MakeClock(CLOCK, "rehearsal", START_MS))
        assert again == bench.do(LookUpClock(CLOCK)) == ClockRecord(CLOCK, "rehearsal", START_MS + 1000)

    def test_it_moves_forwards_and_no_other_way(self) -> None:
        bench = self.bench()
        bench.do(MakeClock(CLOCK, "rehearsal", START_MS))
        bench.do(MakeClock("clock_2", "rehearsal", START_MS))
        moved = bench.do(AdvanceClock(CLOCK, START_MS + DAY_MS))
        assert moved == ClockRecord(CLOCK, "rehearsal", START_MS + DAY_MS)
        for to_ms in (START_MS + DAY_MS, START_MS + DAY_MS - 1000, START_MS, 0):
            error = raised(InvalidRequest, bench.do, AdvanceClock(CLOCK, to_ms))
            assert (error.path, error.code, error.status) == ("to", "invalid_request", 400)
            assert "2024-02-01T10:30:00Z" in error.message
        assert "2024-01-31T10:30:00Z" in raised(InvalidRequest, bench.do, AdvanceClock(CLOCK, START_MS)).message
        assert bench.do(LookUpClock(CLOCK)) == moved
        assert bench.do(LookUpClock("clock_2")).present_ms == START_MS

    def test_an_unknown_clock_is_named(self) -> None:
        bench = self.bench()
        for op in (LookUpClock("clock_nope"), AdvanceClock("clock_nope", START_MS)):
            error = raised(InvalidRequest, bench.do, op)
            assert "'clock_nope'" in error.message
            assert (error.path, error.code) == ("clock", "invalid_request")

    def test_of_twenty_threads_that_advance_it_to_one_moment_one_does(self) -> None:
        bench = self.bench()
        bench.do(MakeClock(CLOCK, "rehearsal", START_MS))
        replies = together(20, lambda _: attempted(bench, AdvanceClock(CLOCK, START_MS + 1000)))
        assert sum(isinstance(reply, ClockRecord) for reply in replies) == 1
        assert bench.do(LookUpClock(CLOCK)).present_ms == START_MS + 1000

    def test_an_org_of_the_same_name_is_another_one_under_each_clock(self) -> None:
        bench = self.bench()
        orgs = (ACME, org_key(ACME, "clock_1"), org_key(ACME, "clock_2"), org_key(ACME, "clock_12"))
        for n, org in enumerate(orgs, 1):
            raised(OrgNotFound, bench.do, Describe(org))
            assert bench.refusal(org=org).code == "org_not_found"
            bench.subscribe(org, *(("plan:open@1", "plan:team@1") if n % 2 else ("plan:pro@1", "plan:company@1")))
            bench.do(UpdateOrg(org, OrgInfo(name=f"Acme {n}"), bench.now_ms()))
            bench.use(n=n, org=org)
            bench.use(SEATS, n, org=org)
            bench.hold(n=n, org=org)
        for n, org in enumerate(orgs, 1):
            assert (bench.usage(org=org), bench.used(SEATS, org=org)) == ((n, n), n)
            assert bench.usages(org)[CALLS].limit == (None if n % 2 else 10)
            assert bench.do(Describe(org)).info.name == f"Acme {n}"
        bench.cancel(orgs[1])
        bench.do(DeleteOrg(orgs[2]))
        assert bench.usages(orgs[1]) == {}
        raised(OrgNotFound, bench.do, Describe(orgs[2]))
        assert [bench.usage(org=org) for org in (orgs[0], orgs[3])] == [(1, 1), (4, 4)]

    def test_an_org_is_called_by_its_own_name(self) -> None:
        bench = self.bench()
        key = org_key(ACME, CLOCK)
        assert org_name(key) == ACME
        for refusal in (bench.refusal(org=key), bench.check(org=key).shortfall):
            assert refusal is not None
            assert refusal.org == ACME
        questions = (Describe(key), LookUpPhases(key, bench.now_ms()), DeleteOrg(key))
        for error in [raised(OrgNotFound, bench.do, question) for question in questions]:
            assert error.org == ACME
            assert CLOCK not in error.message
        bench.subscribe(key, "plan:free@1")
        assert bench.refusal(n=4, org=key).org == ACME
        missing = raised(NotEntitled, lambda: bench.record(1, SEATS, org=key))
        assert missing.org == ACME
        early = raised(InvalidRequest, lambda: bench.record(1, org=key, at=START - timedelta(days=1)))
        for message in (missing.message, early.message):
            assert repr(ACME) in message
            assert CLOCK not in message

    def test_keys_of_reports_are_apart(self) -> None:
        bench = self.bench("plan:open@1")
        orgs = (ACME, org_key(ACME, "clock_1"), org_key(ACME, "clock_2"))
        for org in orgs[1:]:
            bench.subscribe(org, "plan:open@1")
        for _ in range(2):
            for n, org in enumerate(orgs, 1):
                for key in ("k", "clock_1/k", "clock_1"):
                    bench.record(n, org=org, key=key)
                bench.adjust(n, org=org, key="a")
        assert [bench.used(org=org) for org in orgs] == [4, 8, 12]
        error = raised(InvalidRequest, lambda: bench.record(9, org=orgs[1], key="k"))
        assert (error.path, "'k'" in error.message) == ("key", True)

    def test_keys_age_with_their_own_clock_and_with_no_other(self) -> None:
        bench = self.bench("plan:open@1")
        key = org_key(ACME, CLOCK)
        years = timedelta(days=3650)
        for org, at in ((ACME, START), (key, START - years), (org_key(ACME, "clock_2"), START + years)):
            bench.clock.set(at)
            bench.subscribe(org, "plan:open@1")
            assert bench.record(1, org=org, key="k") == Recorded()
        for _ in range(3):  # each report forgets keys that are too old: of its own clock
            for org, at in ((ACME, START), (key, START - years), (org_key(ACME, "clock_2"), START + years)):
                bench.clock.set(at)
                bench.record(1, org=org)
                assert bench.record(1, org=org, key="k") == Recorded(is_new=False)
        bench.clock.set(START - years)
        bench.pass_(milliseconds=KEY_LIFETIME_MS)
        bench.record(1, org=key)
        assert bench.record(1, org=key, key="k") == Recorded()

    def test_reservations_expire_in_the_time_of_their_clock(self) -> None:
        bench = self.bench("plan:free@1")
        key = org_key(ACME, CLOCK)
        bench.subscribe(key, "plan:free@1")
        bench.hold(n=3)
        late = bench.hold(n=3, org=key)
        bench.hold(MAILS, n=2, org=key)
        bench.pass_(days=1)
        bench.hold(n=3, org=key)
        assert bench.commit(late).has_expired
        bench.clock.set(START)
        assert bench.refusal().reason == "limit_reached"

    def test_what_is_refused_under_a_clock_changes_nothing_without_it(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=2)
        before = bench.everything(ACME, org_key(ACME, CLOCK))
        raised(InvalidRequest, bench.do, AdvanceClock(CLOCK, START_MS))
        raised(OrgNotFound, bench.do, DeleteOrg(org_key(ACME, CLOCK)))
        raised(OrgNotFound, lambda: bench.record(1, org=org_key(ACME, CLOCK)))
        assert bench.everything(ACME, org_key(ACME, CLOCK)) == before
