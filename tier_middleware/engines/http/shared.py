"""Decided by the server, where it is one of ours: exact limits for any number of processes and machines.

A reservation is one call. What comes after the work is an append to the outbox, and waits for no network: until it is
delivered, the server keeps what it holds, so that nothing is granted twice meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from msgspec.structs import replace

from ...clock import monotonic, sleep
from ...errors import EngineUnavailable, TierError
from ...extension import asking
from ...extension.forms import RESERVE
from ...ops import (
    UNPLACED,
    Adjust,
    Busy,
    Changes,
    Check,
    Checked,
    Commit,
    Committed,
    Granted,
    Hold,
    Kept,
    LookUp,
    LookUpKeys,
    ReadChanges,
    Record,
    Recorded,
    Release,
    Renew,
    Reserve,
    Shortfall,
    Usage,
)
from ...reporting.outbox import Outbox
from ...reporting.pieces import entry_of_hold
from ...reporting.reporter import Reporter
from .local import Local
from .orgs import Orgs
from .server import Server, There
from .transport import NoAnswer

__all__ = ["Shared"]

R = TypeVar("R")

HERE: Final = 0  # the place of holds that this process has granted itself; the server's places follow
GIVEN_BACK_SECONDS: Final = 1.0  # in which what was given back has certainly arrived, or the server is away
PATIENCE_SECONDS: Final = 1.0  # for others that write to the outbox, of what nobody waits for


class Shared:
    """Operations of a server with the extension ``reserve``.

    Holds that were made by this process alone, of a server before or while this one is away, stay with ``local``.
    """

    def __init__(
        self, server: Server, orgs: Orgs, local: Local, outbox: Outbox, reporter: Reporter, *, serves_stale: bool
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._server = server
        self._orgs = orgs
        self._local = local
        self._outbox = outbox
        self._reporter = reporter
        self._serves_stale = serves_stale
        self._gave_back_at = -GIVEN_BACK_SECONDS

    @property
    def is_there(self) -> bool:
        return RESERVE in self._server.extensions

    # ---- what is granted --------------------------------------------------------------------------------------------

    def reserve(self, op: Reserve, is_final: bool) -> Granted | Shortfall:
        self._orgs.see(op.org, is_final)
        raise There(lambda: self._reserved(op), lambda reply: self._give_back(op, reply))

    def _reserved(self, op: Reserve, *, is_last: bool = False) -> Granted | Shortfall:
        request = asking.reserve(op)
        try:
            reply = self._server.repeated(request, lambda *answer: asking.reserved_in(op, *answer))
        except EngineUnavailable as error:
            if isinstance(error, NoAnswer) or error.status is not None:
                self._give_back(op)
            return self._stale(error, op.org, lambda: self._local.reserve(op, True))
        if isinstance(reply, Shortfall):
            if not is_last and monotonic() - self._gave_back_at < GIVEN_BACK_SECONDS:
                self._deliver(op.org)  # what was given back here a moment ago may be what is missing
                return self._reserved(op, is_last=True)
            return reply
        ours = Granted(tuple([None if hold is None else replace(hold, place=hold.place + 1) for hold in reply.holds]))
        if not self._orgs.took(op, ours):
            with suppress(TierError):  # it has its default plan now; what is granted is granted, shown or not
                self._orgs.ask(op.org)
        return ours

    def _give_back(self, op: Reserve, reply: Granted | Shortfall | None = None) -> None:
        """Give back what was granted to nobody, or may have been where no reply came."""
        if reply is None:
            pairs = zip(op.ids, op.demands, strict=True)
            holds = [Hold(id, op.org, demand.feature, demand.n, UNPLACED) for id, demand in pairs]
        else:
            holds = [hold for hold in getattr(reply, "holds", ()) if hold is not None]
        if not holds:
            return None
        deadline = monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.release(Release(tuple(holds), op.now_ms), True)
            except Busy:
                if monotonic() > deadline:
                    return None  # it expires
                sleep(0.002)
            except TierError:  # likewise
                return None

    def check(self, op: Check, is_final: bool) -> Checked:
        raise There(lambda: self._checked(op))

    def _checked(self, op: Check) -> Checked:
        try:
            self._deliver(op.org)
            return self._server.repeated(asking.check(op), asking.checked_in)
        except EngineUnavailable as error:
            return self._stale(error, op.org, lambda: self._local.check(op, True))

    def _stale(self, error: EngineUnavailable, org: str, decide: Callable[[], R]) -> R:
        """What the server last said may do while it is away."""
        if not self._serves_stale or not self._orgs.is_known(org):
            raise error
        self.counts["stale"] += 1
        return decide()

    def look_up(self, op: LookUp, is_final: bool) -> tuple[Usage, ...]:
        raise There(lambda: self._looked_up(op))

    def _looked_up(self, op: LookUp) -> tuple[Usage, ...]:
        self._deliver(op.org)
        asked_at = monotonic()
        usages = self._server.repeated(asking.usage(op), asking.usages_in)
        self._orgs.heard(op.org, usages, asked_at)
        return usages

    def look_up_keys(self, op: LookUpKeys, is_final: bool) -> tuple[bool, ...]:
        raise There(lambda: self._keys(op))

    def _keys(self, op: LookUpKeys) -> tuple[bool, ...]:
        self._deliver(op.org)
        return self._server.repeated(asking.keys(op), asking.keys_in)

    def _deliver(self, org: str) -> None:
        """Have the server know what was done here of an org, before it is asked what that comes to."""
        if any(batch.state in ("open", "sealed", "sent") for batch in self._outbox.undelivered(org)):
            self._reporter.flush(self._server.timeout)

    def read_changes(self, op: ReadChanges) -> Changes:
        """Of orgs without a test clock: those of a clock are told to who asks in its time."""
        return self._server.repeated(asking.changes(op.since or "", 0), asking.changes_in)

    # ---- what is counted --------------------------------------------------------------------------------------------

    def commit(self, op: Commit, is_final: bool) -> tuple[Committed, ...]:
        if all(kept.hold.place == HERE for kept in op.kept):
            return self._local.commit(op, is_final)
        if any(kept.is_capped and kept.n > kept.hold.n for kept in op.kept) and not is_final:
            raise There(lambda: self._committed(op))  # what a cap leaves out is to be told
        here = Commit(tuple([kept for kept in op.kept if kept.hold.place == HERE]), op.now_ms)
        there = [kept for kept in op.kept if kept.hold.place != HERE]
        self._outbox.append(
            [
                entry_of_hold(_theirs(kept.hold), "commit", kept.n, is_capped=kept.is_capped, once=kept.key)
                for kept in there
            ]
        )
        if any(kept.n < kept.hold.n for kept in there):
            self._gave_back_at = monotonic()
        self._reporter.wake()
        self._orgs.settled(there)
        replies = iter(self._local.commit(here, is_final) if here.kept else ())
        return tuple([next(replies) if kept.hold.place == HERE else Committed() for kept in op.kept])

    def _committed(self, op: Commit) -> tuple[Committed, ...]:
        theirs = [replace(kept, hold=_theirs(kept.hold)) for kept in op.kept if kept.hold.place != HERE]
        try:
            replies = iter(self._server.repeated(asking.commit(theirs), asking.committed_in))
        except EngineUnavailable:
            return self.commit(op, True)
        self._orgs.settled([kept for kept in op.kept if kept.hold.place != HERE])
        return tuple(
            [
                next(replies) if kept.hold.place != HERE else self._local.commit(Commit((kept,), op.now_ms), True)[0]
                for kept in op.kept
            ]
        )

    def release(self, op: Release, is_final: bool) -> None:
        here = tuple([hold for hold in op.holds if hold.place == HERE])
        there = [hold for hold in op.holds if hold.place != HERE]
        if there:
            self._outbox.append([entry_of_hold(_theirs(hold), "release") for hold in there])
            self._gave_back_at = monotonic()
            self._reporter.wake()
            self._orgs.settled([Kept(hold, 0) for hold in there])
        if here:
            self._local.release(Release(here, op.now_ms), is_final)

    def renew(self, op: Renew, is_final: bool) -> tuple[Committed, ...]:
        if all(kept.hold.place == HERE for kept in op.kept):
            return self._local.renew(op, is_final)
        raise There(lambda: self._renewed(op))  # a renewal that came late would be none, and what it counts comes again

    def _renewed(self, op: Renew) -> tuple[Committed, ...]:
        here = replace(op, kept=tuple([kept for kept in op.kept if kept.hold.place == HERE]))
        theirs = tuple([replace(kept, hold=_theirs(kept.hold)) for kept in op.kept if kept.hold.place != HERE])
        request = asking.renew(replace(op, kept=theirs))
        replies = iter(self._server.repeated(request, asking.committed_in))
        local = iter(self._local.renew(here, True) if here.kept else ())
        return tuple([next(local if kept.hold.place == HERE else replies) for kept in op.kept])

    def record(self, op: Record, is_final: bool) -> Recorded:
        return self._local.record(op, is_final, is_keyed=True)

    def adjust(self, op: Adjust, is_final: bool) -> Recorded:
        raise There(lambda: self._adjusted(op))

    def _adjusted(self, op: Adjust) -> Recorded:
        self._deliver(op.org)  # a correction of what was not counted yet would take nothing off
        reply = self._server.repeated(asking.adjust(op), asking.recorded_in)
        self._orgs.changed([op.org])
        return reply

    def late(self, done: Committed | Recorded) -> None:
        """What the server says of a commit or a report, once it has it: how much of it passed the limit."""
        if done.over:
            reason = "report" if isinstance(done, Recorded) else "expired" if done.has_expired else "overage"
            self.counts[f"over_limit.{reason}"] += done.over


def _theirs(hold: Hold) -> Hold:
    return hold if hold.place == UNPLACED else replace(hold, place=hold.place - 1)
