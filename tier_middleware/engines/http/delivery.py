"""Sending what is in the outbox to the server: one by one, or together to one that takes many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec.structs import replace

from ... import calls, wire
from ...errors import ConfigurationError, EngineUnavailable, TierError
from ...extension import asking
from ...extension.forms import MAX_AT_ONCE, RESERVE, WireFault
from ...names import clock_of
from ...ops import Committed, Record, Recorded
from ...reporting.batches import Batch
from ...reporting.outcomes import Delivered, Later, Outcome, Refused, Unknown, outcome_of
from ...reporting.pieces import kept_of, record_of
from .server import Server
from .transport import NotSent

__all__ = ["Delivery"]


class Delivery:
    """Delivers batches for the reporter. ``give_default_plan`` makes an org known, where there is such a plan.

    ``late`` is told what the server says of commits and reports, once they are delivered.
    """

    def __init__(
        self,
        server: Server,
        default_plan: str | None,
        give_default_plan: Callable[[str], None],
        late: Callable[[Committed | Recorded], None],
    ) -> None:
        self._server = server
        self._default_plan = default_plan
        self._give_default_plan = give_default_plan
        self._late = late

    def most(self) -> int:
        """How many batches the server takes at once."""
        return MAX_AT_ONCE if RESERVE in self._server.extensions else 1

    def deliver(self, batch: Batch, seconds: float) -> Outcome:
        """Send a batch within so many seconds: what became of it. Raises nothing."""
        if batch.action in ("commit", "release") and not self._server.is_met:
            self._meet(seconds)
            if not self._server.is_met:
                return Later("the server has not answered yet, and may be one that keeps the reservation")
        if RESERVE in self._server.extensions:
            (outcome,) = self.deliver_some([batch], seconds)
            return outcome
        if batch.action == "release":
            return Delivered(None)  # of another server, which has been replaced: with it went what it held
        outcome = self._sent(batch, seconds)
        if self._default_plan is None or not (isinstance(outcome, Refused) and outcome.code == "org_not_found"):
            return outcome
        try:
            self._give_default_plan(batch.org)
        except TierError as error:
            return Later(error.message)
        return self._sent(batch, seconds)

    def _meet(self, seconds: float) -> None:
        """Ask what the server is: a process that has just started sends what another one has left before it asks
        anything, and as a report a commit would count beside its reservation, and once more when it is committed.
        """
        with suppress(EngineUnavailable):
            self._server.sent(calls.whoami(), seconds)

    def _sent(self, batch: Batch, seconds: float) -> Outcome:
        at_ms = batch.at_ms
        request = calls.report(batch.org, batch.feature, batch.n, key=batch.key, at_ms=at_ms, clobber=batch.clobber)
        try:
            response = self._server.sent(request, seconds)
        except NotSent as error:
            return Later(error.message)
        except EngineUnavailable as error:
            return _unknown(batch, error.message)
        outcome = outcome_of(request, response)
        return _unknown(batch, outcome.reason) if isinstance(outcome, Unknown) else outcome

    # ---- together ---------------------------------------------------------------------------------------------------

    def deliver_some(self, batches: Sequence[Batch], seconds: float) -> Sequence[Outcome]:
        """Send batches in as few requests as there are kinds and clocks: what became of each. Raises nothing."""
        groups: dict[tuple[str, str], list[Batch]] = {}
        for batch in batches:
            kind = "report" if batch.action in ("report", "record") else str(batch.action)
            groups.setdefault((kind, clock_of(batch.org)), []).append(batch)
        outcomes: dict[int, Outcome] = {}
        failure: Outcome | None = None
        for (kind, _), group in groups.items():
            found = [failure] * len(group) if failure is not None else self._sent_together(kind, group, seconds)
            failure = next((one for one in found if isinstance(one, Later)), failure)
            outcomes.update(zip((batch.id for batch in group), found, strict=True))
        return [outcomes[batch.id] for batch in batches]

    def _sent_together(self, kind: str, group: Sequence[Batch], seconds: float) -> Sequence[Outcome]:
        """What is sent here counts once, so whatever has no certain outcome is sent again."""
        send = {"commit": self._committed, "release": self._released, "report": self._reported}[kind]
        try:
            return send(group, seconds)
        except (EngineUnavailable, ConfigurationError) as error:
            if RESERVE not in self._server.extensions:  # it was replaced by a server that has no such call
                return [self.deliver(batch, seconds) for batch in group]
            return [Later(error.message)] * len(group)
        except TierError as error:
            if len(group) == 1:
                return [Refused(error.code or "invalid_request", error.message)]
        return [outcome for batch in group for outcome in self._sent_together(kind, [batch], seconds)]

    def _committed(self, group: Sequence[Batch], seconds: float) -> Sequence[Outcome]:
        kept = [kept_of(batch) for batch in group]
        request = asking.commit(kept)
        replies = asking.committed_in(request, self._server.sent(request, seconds))
        for reply in replies:
            self._late(reply)
        return [Delivered(None)] * len(group)

    def _released(self, group: Sequence[Batch], seconds: float) -> Sequence[Outcome]:
        request = asking.release([kept_of(batch).hold for batch in group])
        wire.done_in(request, self._server.sent(request, seconds))
        return [Delivered(None)] * len(group)

    def _reported(self, group: Sequence[Batch], seconds: float) -> Sequence[Outcome]:
        request = asking.reports([self._record(batch) for batch in group])
        results = asking.results_in(request, self._server.sent(request, seconds))
        return [self._outcome(batch, result) for batch, result in zip(group, results, strict=True)]

    def _record(self, batch: Batch) -> Record:
        record = record_of(batch, 0)
        return record if record.default_plan is not None else replace(record, default_plan=self._default_plan)

    def _outcome(self, batch: Batch, result: Recorded | WireFault) -> Outcome:
        if isinstance(result, WireFault):
            return Refused(result.code, f"{batch.org!r} {batch.feature!r}: {result.message}")
        self._late(result)
        return Delivered(True)


def _unknown(batch: Batch, reason: str) -> Outcome:
    """A commit that went to a server which counts no holds, as a report, may count twice if it is sent again."""
    return Refused("ambiguous", reason) if batch.is_repeatable else Unknown(reason)
