"""What is known of an org, without a network: an answer, what it could not include, and what is held."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from faults import Proxy
from tier_servers import MODEL, TierServer

from tier_middleware import InvalidRequest, Tier
from tier_middleware.engines.http.limits import Event, OrgView
from tier_middleware.names import MAX_UNITS
from tier_middleware.ops import Demand, Granted, Reserve, Shortfall, Usage
from tier_middleware.policy import KEY_LIFETIME_MS, Period
from tier_middleware.pricing import read_model
from tier_middleware.reporting.batches import Batch

CALLS, SEATS = "feature:calls", "feature:seats"
ACME = "org:acme"
KNOWN = read_model(MODEL)
USAGES = (Usage(CALLS, 1, 10), Usage(SEATS, 2, 5), Usage("feature:export", 1, None))


def undelivered(n: int, feature: str = CALLS, *, clobber: bool = False, at_ms: int | None = None) -> Batch:
    return Batch(1, "k", ACME, feature, n, 1, at_ms, clobber, "held", 0, 0, 0, 0, "", "")


def view_of(*batches: Batch, since: tuple[Event, ...] = ()) -> OrgView:
    view = OrgView()
    view.begin()
    for event in since:
        view.count(event)
    view.learn(0.0, USAGES, batches, KNOWN, Period(0, 1000))
    return view


def reserve(view: OrgView, *demands: Demand, ids: tuple[int, ...] = (1,), expires_ms: int = 100) -> Granted | Shortfall:
    return view.reserve(Reserve(ACME, demands, ids, 0, expires_ms))


@pytest.mark.parametrize(
    ("batches", "since", "used"),
    [
        ((), (), 1),
        ((undelivered(2),), (), 3),
        ((), (Event(CALLS, 4),), 5),
        ((undelivered(2), undelivered(3)), (Event(CALLS, 4),), 10),
        ((undelivered(7, clobber=True), undelivered(1)), (), 8),
        ((undelivered(7, clobber=True, at_ms=5),), (), 1),  # of another period, as likely as not
        ((undelivered(7, at_ms=5),), (), 8),
        ((undelivered(7),), (Event(CALLS, 2, is_set=True), Event(CALLS, 1)), 3),
        ((undelivered(MAX_UNITS),), (), MAX_UNITS),
        ((undelivered(1, "feature:gone"),), (Event("feature:gone", 1),), 1),
    ],
)
def test_an_answer_and_what_it_could_not_include(
    batches: tuple[Batch, ...], since: tuple[Event, ...], used: int
) -> None:
    view = view_of(*batches, since=since)
    assert view.usage(CALLS).used == used
    view.count(Event(CALLS, 0))
    assert view.usage(CALLS).used == used
    assert view.since is None


def test_what_is_counted_while_nobody_asks_is_counted_once() -> None:
    view = view_of()
    view.count(Event(CALLS, 2))
    view.count(Event(SEATS, 4))
    assert [(usage.feature, usage.used) for usage in view.all_usage()] == [
        (CALLS, 3),
        ("feature:export", 1),
        (SEATS, 4),
    ]
    view.begin()
    view.learn(1.0, (Usage(CALLS, 3, 10),), (), KNOWN, None)
    assert view.usage(CALLS) == Usage(CALLS, 3, 10)
    assert view.usage(SEATS) == Usage(SEATS, 0, 0)


def test_several_demands_are_held_together_or_not_at_all() -> None:
    view = view_of()
    reply = reserve(view, Demand(CALLS, 9), Demand(SEATS, 6), ids=(1, 2))
    assert isinstance(reply, Shortfall)
    assert (reply.feature, reply.reason, view.reserved[CALLS]) == (SEATS, "amount_exceeds_limit", 0)
    granted = reserve(view, Demand(CALLS, 9), Demand(SEATS, 5), Demand("feature:export", 1), ids=(1, 2, 3))
    assert isinstance(granted, Granted)
    assert [hold and hold.n for hold in granted.holds] == [9, 0, None]
    with pytest.raises(InvalidRequest, match="must be given"):
        reserve(view, Demand(SEATS, 1, is_given=False))


def test_what_has_expired_is_given_to_others_and_still_counts_once() -> None:
    view = view_of()
    assert isinstance(reserve(view, Demand(CALLS, 9), expires_ms=100), Granted)
    late = Reserve(ACME, (Demand(CALLS, 9),), (2,), 100, 200)
    assert isinstance(view.reserve(late), Granted)
    assert view.reserved[CALLS] == 9
    assert view.holds[1].n == 0
    assert view.let_go(1) is not None
    assert view.let_go(1) is None
    view.expire(200 + KEY_LIFETIME_MS)
    assert not view.holds
    assert view.reserved[CALLS] == 0


def test_a_period_that_nobody_told_is_not_shown() -> None:
    view = view_of()
    assert view.usage(CALLS).resets_at is not None
    assert view.usage(SEATS).resets_at is None  # perpetual
    view.learn(0.0, USAGES, (), KNOWN, None)
    assert view.usage(CALLS).resets_at is None
    reply = reserve(view, Demand(CALLS, 11))
    assert isinstance(reply, Shortfall)
    assert reply.resets_at_ms is None


def test_how_a_feature_is_counted() -> None:
    plans: dict[str, Any] = {
        "plan:a@1": {"features": {"feature:x": {"tiers": [{}], "aggregate": "max"}, "feature:y": {}}},
        "plan:b@1": {"features": {"feature:x": {"tiers": [{}]}, "feature:y": {"tiers": [{}], "aggregate": "last"}}},
    }
    model = read_model({"plans": plans})
    assert model.aggregate_of("feature:x") == "sum"  # never more than the limit, whichever it is
    assert model.aggregate_of("feature:y") == "last"
    assert not model.is_on_off("feature:y")
    assert KNOWN.is_on_off("feature:export")
    assert not KNOWN.is_on_off("feature:unheard-of")


def test_what_is_reported_while_the_server_is_being_asked_is_not_forgotten(server: TierServer) -> None:
    server.subscribe(ACME, "plan:pro@1")
    answered, go_on = threading.Event(), threading.Event()

    def hold_back(request: bytes) -> None:
        if b"/v1/limits" in request and not answered.is_set():
            answered.set()
            go_on.wait(10)

    proxy = Proxy(server.port, lambda: None, before_reply=hold_back)
    with Tier(proxy.url) as tier:
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(tier.can(ACME, CALLS).used))
        asking.start()
        assert answered.wait(10)
        tier.report(ACME, CALLS, 2)
        go_on.set()
        asking.join()
        assert found == [2]
    proxy.close()
