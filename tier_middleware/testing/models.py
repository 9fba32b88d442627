"""Pricing models that are pushed and pulled, and what an engine says of itself."""

from __future__ import annotations

from ..clock import milliseconds_of
from ..errors import InvalidRequest, PricingError
from ..model import Model
from ..ops import EngineInfo, Identify, Pull, Push
from ..pricing import read_model
from .bench import ACME, CALLS, EXPORT, MAILS, MODEL, START, Suite, metered, raised, together

__all__ = ["Models"]


class Models(Suite):
    """Plans that are pushed and pulled."""

    def test_what_was_pushed_is_pulled(self) -> None:
        bench = self.bench()
        assert dict(bench.do(Pull()).plans) == dict(MODEL.plans)

    def test_a_push_says_what_it_did_with_each_feature(self) -> None:
        bench = self.bench()
        more = read_model({"plans": {"plan:new@1": {"features": {CALLS: {}, EXPORT: {}}}}})
        model = Model({**more.plans, "plan:pro@1": MODEL.plans["plan:pro@1"]})
        first = [tuple(result) for result in bench.do(Push(model, bench.now_ms()))]
        known = [
            ("feature:audit@plan:pro@1", "failed", "plan already exists"),
            ("feature:calls@plan:pro@1", "failed", "plan already exists"),
        ]
        assert first == [
            ("feature:calls@plan:new@1", "ok", "created"),
            ("feature:export@plan:new@1", "ok", "created"),
            *known,
        ]
        second = bench.do(Push(model, bench.now_ms()))
        assert {result.reason for result in second} == {"plan already exists"}
        assert bench.do(Pull()).plans["plan:new@1"] == more.plans["plan:new@1"]

    def test_a_conflicting_push_names_the_plan_and_stores_nothing(self) -> None:
        bench = self.bench("plan:free@1")
        conflicting = read_model(
            {
                "plans": {
                    "plan:a@1": {"features": {CALLS: {}}},
                    "plan:free@1": {"features": {CALLS: metered(4), MAILS: metered(2), EXPORT: {}}},
                    "plan:z@1": {"features": {CALLS: {}}},
                }
            }
        )
        before = bench.everything(ACME)
        error = raised(PricingError, bench.do, Push(conflicting, bench.now_ms()))
        assert "plan:free@1" in error.message
        assert error.path == 'plans["plan:free@1"].features["feature:calls"].tiers[0].upto'
        assert bench.everything(ACME) == before
        raised(InvalidRequest, bench.subscribe, ACME, "plan:a@1")

    def test_one_push_by_twenty_threads_stores_each_plan_once(self) -> None:
        bench = self.bench()
        model = read_model({"plans": {f"plan:p{n}@1": {"features": {CALLS: {}}} for n in range(5)}})
        results = together(20, lambda _: bench.do(Push(model, bench.now_ms())))
        created = [result.feature for done in results for result in done if result.status == "ok"]
        assert sorted(created) == [f"feature:calls@plan:p{n}@1" for n in range(5)]

    def test_an_engine_says_what_it_is_and_since_when(self) -> None:
        bench = self.bench()
        bench.pass_(days=1)
        info = bench.do(Identify())
        assert isinstance(info, EngineInfo)
        assert info.kind
        assert "://" in info.url
        assert info.created_ms == milliseconds_of(START, "start")
