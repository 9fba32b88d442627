"""Sending what is in the outbox to the server."""

from __future__ import annotations

from collections.abc import Callable

from ... import wire
from ...errors import EngineUnavailable, TierError
from ...reporting.batches import Batch
from ...reporting.outcomes import Later, Outcome, Refused, Unknown, outcome_of
from .server import Server
from .transport import NotSent

__all__ = ["Delivery"]


class Delivery:
    """Delivers batches for the reporter. ``give_default_plan``, where there is one, makes an org known."""

    def __init__(self, server: Server, give_default_plan: Callable[[str], None] | None) -> None:
        self._server = server
        self._give_default_plan = give_default_plan

    def deliver(self, batch: Batch, seconds: float) -> Outcome:
        """Send a batch within so many seconds: what became of it. Raises nothing."""
        outcome = self._sent(batch, seconds)
        if self._give_default_plan is None or not (isinstance(outcome, Refused) and outcome.code == "org_not_found"):
            return outcome
        try:
            self._give_default_plan(batch.org)
        except TierError as error:
            return Later(error.message)
        return self._sent(batch, seconds)

    def _sent(self, batch: Batch, seconds: float) -> Outcome:
        at_ms = batch.at_ms
        request = wire.report(batch.org, batch.feature, batch.n, key=batch.key, at_ms=at_ms, clobber=batch.clobber)
        try:
            response = self._server.sent(request, seconds)
        except NotSent as error:
            return Later(error.message)
        except EngineUnavailable as error:
            return Unknown(error.message)
        return outcome_of(request, response)
