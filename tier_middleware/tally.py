"""What a process let pass a limit, refused to decide or lost: counted by reason, logged, and told to ``on_loss``."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from . import forks
from .clock import Milliseconds, Seldom, moment
from .errors import TierError, UsageLost
from .flow import Outcome, Piece, Settlement
from .names import org_name
from .ops import Committed, Kept, Record
from .settings import OnError, OnLoss, answered

__all__ = ["Report", "Tally"]

logger: Final = logging.getLogger("tier_middleware")


@dataclass(frozen=True, slots=True)
class Report:
    """Usage as it is handed to ``on_loss``: n units of a feature, used by an org at a time. ``key`` counts it once."""

    org: str
    feature: str
    n: int
    at: datetime
    key: str


class Tally:
    """The counts of one client and its twin, by reason (see `Tier.counts`)."""

    def __init__(self, now_ms: Milliseconds, on_loss: OnLoss | None) -> None:
        self.fails_on_loss = on_loss == "fail"
        self._on_loss = on_loss
        self._now_ms = now_ms
        self._counts: Counter[str] = Counter()
        self._seldom = Seldom()
        self.after_fork(is_child=True)
        forks.watch(self)

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, is_child: bool) -> None:
        """In a child nobody lets go of a lock that a thread of the parent held."""
        if is_child:
            self._counting = threading.Lock()

    @property
    def counts(self) -> dict[str, int]:
        with self._counting:
            return dict(self._counts)

    def count(self, reason: str, n: int = 1) -> None:
        if n:
            with self._counting:
                self._counts[reason] += n

    def fails_open(self, on_error: OnError, request: Any) -> Callable[[TierError], bool]:
        """The policy for an engine that is away, as a flow asks for it; every answer is counted and logged."""

        def decide(error: TierError) -> bool:
            is_open = on_error in ("allow", "stale")
            if callable(on_error):
                try:
                    is_open = bool(answered(on_error(request, error), "on_error"))
                except Exception:  # the application's policy does not know either
                    logger.exception("tier: on_error failed, the gate stays closed")
            self.count("fail_open" if is_open else "fail_closed")
            logger.warning("tier: engine away, gate %s: %s", "open" if is_open else "closed", error)
            return is_open

        return decide

    # ---- settlements ------------------------------------------------------------------------------------------------

    def committed(self, done: Committed) -> None:
        """Count what a commit let pass the limit."""
        if done.over:
            self.count("over_limit.expired" if done.has_expired else "over_limit.overage", done.over)

    def finished(self, outcome: Outcome, settlement: Settlement) -> None:
        """Count what a settlement let pass the limit and what it lost; raises `UsageLost` under ``on_loss="fail"``."""
        capped: list[Report] = []
        for kept, done in zip(settlement.kept, outcome.committed, strict=False):
            self.committed(done)
            if done.capped:
                capped.append(self._report(kept, done.capped))
        if outcome.over_reported:
            self.count("over_limit.fail_open", outcome.over_reported)
        if capped:
            self.lose(capped, "capped")
        if outcome.error is not None:
            self.lose_work((*outcome.lost_kept, *outcome.lost_records), outcome.error)

    def lose_work(self, work: Sequence[Piece], error: TierError | None) -> None:
        reports = [self._report(one, one.n) for one in work if isinstance(one, Kept)]
        reports += [_reported(one) for one in work if isinstance(one, Record)]
        if reports:
            self.lose(reports, (error.code if error else None) or "engine_unavailable", error)
        else:
            logger.warning("tier: reservations could not be given back, they will expire: %s", error)

    def _report(self, kept: Kept, n: int) -> Report:
        hold = kept.hold
        return Report(org_name(hold.org), hold.feature, n, moment(self._now_ms()), f"reservation:{hold.id}")

    def lose(self, reports: Sequence[Report], reason: str, error: TierError | None = None) -> None:
        """Usage that cannot be counted: counted as lost, logged, and handed to ``on_loss``."""
        self.count(f"lost.{reason}", sum(report.n for report in reports))
        if self._seldom.is_due("loss"):
            logger.error("tier: usage lost (%s): %r %s", reason, tuple(reports), error or "")
        if self.fails_on_loss:
            if reason != "capped":  # a cap is what the application asked for
                raise UsageLost(f"usage lost ({reason}): {tuple(reports)!r}", reports=reports, reason=reason)
        elif callable(self._on_loss):
            try:
                answered(self._on_loss(tuple(reports), reason), "on_loss")
            except Exception:  # the response goes out all the same
                logger.exception("tier: on_loss failed with %r (%s)", tuple(reports), reason)


def _reported(record: Record) -> Report:
    return Report(org_name(record.org), record.feature, record.n, moment(record.now_ms), record.key)
