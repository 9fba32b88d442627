"""The server's plans, as they were last pulled: which features are on/off, and how the others are counted."""

from __future__ import annotations

from collections.abc import Set
from math import inf
from typing import Final

from ... import calls
from ...clock import monotonic
from ...errors import PricingError
from ...model import Model
from ...ops import Pull, Push, PushResult
from ...pricing import plan_conflict
from .. import verdicts
from .server import Cold, Server

__all__ = ["Plans"]

FRESH_SECONDS: Final = 2.0


class Plans:
    """``model`` has the plans that are known. Plans are immutable, so what is known of one never changes."""

    def __init__(self, server: Server) -> None:
        self.model = Model()
        self._server = server
        self._pulled_at = -inf

    def learn_of(self, features: Set[str]) -> None:
        """Pull where there are features that nobody knows: somebody has pushed a plan since."""
        if not features <= self.model.features:
            self._pulled()

    def pull(self, op: Pull, is_final: bool) -> Model:
        if not is_final and monotonic() - self._pulled_at > FRESH_SECONDS:
            raise Cold(self._pulled)
        return self.model

    def _pulled(self) -> None:
        at = monotonic()
        self.model = self._server.asked(calls.pull(), calls.model_in)
        self._pulled_at = at

    def push(self, op: Push) -> tuple[PushResult, ...]:
        self._pulled()
        stored = self.model
        for name, plan in op.model.plans.items():
            conflict = plan_conflict(stored.plans[name], plan) if name in stored.plans else None
            if conflict is not None:
                raise conflict
        new = {name: plan for name, plan in op.model.plans.items() if name not in stored.plans}
        if new:
            for result in self._server.asked(calls.push(Model(new)), calls.push_results_in):
                if result.status != "ok":
                    raise PricingError(f"{result.feature}: {result.reason}", path=result.feature)
            self._pulled()
        return verdicts.push_results(op.model, stored.plans)
