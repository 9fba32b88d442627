"""Both halves of the extension's wire: what a client sends, a server reads as the same operation, and so back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tier_middleware.clock import moment
from tier_middleware.extension import asking, forms, serving
from tier_middleware.ops import (
    UNPLACED,
    Adjust,
    Changes,
    Check,
    Checked,
    Commit,
    Committed,
    Demand,
    Granted,
    Hold,
    Kept,
    LookUpKeys,
    Record,
    Release,
    Renew,
    Reserve,
    Shortfall,
    Usage,
)
from tier_middleware.wire import Request, Response

ACME, CALLS, NOW, LATER = "org:acme", "feature:calls", 1_700_000_000_123, 1_700_000_900_123
HOLD = Hold(5, ACME, CALLS, 3, 7)
KEPT = (Kept(HOLD, 2, is_capped=True, key="k"), Kept(replace(HOLD, id=6, place=UNPLACED), 0))
RECORDS = (
    Record(ACME, CALLS, 2, "a", NOW, NOW - 1, True, "plan:free@1", "why"),
    Record(ACME, CALLS, 2**63 - 1, "b", NOW),
)


def same(org: str) -> str:
    return org


def read(request: Request, kind: type[Any]) -> Any:
    assert request.body is not None
    return msgspec.json.decode(request.body, type=kind)


@pytest.mark.parametrize(
    ("op", "request_", "kind", "again"),
    [
        (
            op := Reserve(ACME, (Demand(CALLS, 3), Demand("feature:x", 0, False)), (1, 2**62), NOW, LATER, "plan:a@1"),
            asking.reserve(op),
            forms.ReserveBody,
            lambda asked: serving.reserve_of(asked, same, NOW, None),
        ),
        (
            op := Commit(KEPT, NOW),
            asking.commit(KEPT),
            forms.CommitBody,
            lambda asked: serving.commit_of(asked, same, NOW),
        ),
        (
            op := Renew(KEPT, NOW, LATER),
            asking.renew(op),
            forms.RenewBody,
            lambda asked: serving.renew_of(asked, same, NOW),
        ),
        (
            op := Adjust(ACME, CALLS, -3, "k", NOW, "refund"),
            asking.adjust(op),
            forms.AdjustBody,
            lambda asked: serving.adjust_of(asked, same, NOW),
        ),
        (
            RECORDS,
            asking.reports(RECORDS),
            forms.ReportsBody,
            lambda asked: serving.records_of(asked, same, NOW, None),
        ),
        (
            op := Check(ACME, Demand(CALLS, 2, False), NOW, "plan:free@1"),
            asking.check(op),
            forms.CheckBody,
            lambda asked: serving.check_of(asked, same, NOW, None),
        ),
        (
            op := LookUpKeys(ACME, ("a", "b"), NOW),
            asking.keys(op),
            forms.KeysBody,
            lambda asked: serving.keys_of(asked, same, NOW),
        ),
    ],
    ids=["reserve", "commit", "renew", "adjust", "reports", "check", "keys"],
)
def test_what_is_sent_is_read_as_the_same_operation(
    op: Any, request_: Request, kind: type[Any], again: Callable[[Any], Any]
) -> None:
    found = again(read(request_, kind))
    if isinstance(op, Commit | Renew):  # what a hold that has no place holds is known to the server only
        assert (found.kept[0], found.kept[1].hold.place) == (op.kept[0], UNPLACED)
        found = replace(found, kept=op.kept)
    assert found == op


def test_a_release_needs_no_more_than_where_a_hold_is() -> None:
    asked = read(asking.release([HOLD]), forms.ReleaseBody)
    assert serving.release_of(asked, same, NOW) == Release((replace(HOLD, n=0),), NOW)


def test_an_org_under_a_clock_is_named_by_its_name_and_the_clock_by_a_header() -> None:
    request = asking.commit((Kept(replace(HOLD, org=f"clock_1/{ACME}"), 1),))
    assert ("tier-clock", "clock_1") in request.headers
    assert read(request, forms.CommitBody).kept[0].org == ACME


SHORTFALL = Shortfall(ACME, CALLS, 2, 1, 1, 3, "limit_reached", "limit_reached", LATER)
USAGE = Usage(CALLS, 1, None, 2, moment(LATER))
RESERVE = Reserve(ACME, (Demand(CALLS, 3), Demand("feature:x", 1)), (5, 6), NOW, LATER)
ASKED = Request("POST", "/v1/x", body=b"{}")


@pytest.mark.parametrize(
    ("reply", "answer", "read_in"),
    [
        (
            reply := Granted((HOLD, None)),
            serving.reserve_answer(reply),
            lambda *answer: asking.reserved_in(RESERVE, *answer),
        ),
        (SHORTFALL, serving.reserve_answer(SHORTFALL), lambda *answer: asking.reserved_in(RESERVE, *answer)),
        (
            reply := (Committed(1, 2, True), Committed()),
            serving.committed_answer(reply),
            asking.committed_in,
        ),
        ((USAGE,), serving.usage_answer(ACME, (USAGE,)), asking.usages_in),
        (reply := Checked(USAGE, SHORTFALL), serving.check_answer(reply), asking.checked_in),
        (reply := Checked(USAGE, None), serving.check_answer(reply), asking.checked_in),
        (reply := Changes("1-2", (ACME,), True), serving.changes_answer(reply, same), asking.changes_in),
    ],
    ids=["granted", "shortfall", "committed", "usage", "no", "yes", "changes"],
)
def test_what_is_answered_is_read_as_the_same_reply(
    reply: object, answer: object, read_in: Callable[[Request, Response], object]
) -> None:
    assert read_in(ASKED, Response(200, msgspec.json.encode(answer), {})) == reply


def test_extensions_are_told_by_a_header() -> None:
    assert asking.extensions_in({"tier-extensions": "reserve, changes"}) == {"reserve", "changes"}
    assert asking.extensions_in({}) == frozenset()
