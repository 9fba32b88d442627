"""Decided in this process: what is granted of what the server said, and what is counted, by way of the outbox.

Each decision is made under the lock of `Orgs`, and raises `Cold` where the server must be asked before.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from ...errors import EngineUnavailable, InvalidRequest
from ...ops import (
    Adjust,
    Check,
    Checked,
    Commit,
    Committed,
    Granted,
    Kept,
    LookUp,
    LookUpKeys,
    Record,
    Recorded,
    Release,
    Renew,
    Reserve,
    Shortfall,
    Usage,
)
from ...reporting.batches import Entry
from ...reporting.outbox import Outbox
from ...reporting.pieces import entry_of_record
from .. import verdicts
from .limits import Event, OpenHold, OrgView
from .orgs import Orgs
from .plans import Plans
from .server import Cold

__all__ = ["Local"]


class Local:
    """Reserves, commits and reports without a network. ``wake`` is called when there is something in the outbox."""

    def __init__(self, orgs: Orgs, plans: Plans, outbox: Outbox, wake: Callable[[], None]) -> None:
        self._orgs = orgs
        self._plans = plans
        self._outbox = outbox
        self._wake = wake

    # ---- what is granted --------------------------------------------------------------------------------------------

    def reserve(self, op: Reserve, is_final: bool) -> Granted | Shortfall:
        with self._orgs.lock:
            view = self._orgs.view(op.org, is_final)
            reply = view.reserve(op)
            if not is_final and isinstance(reply, Shortfall):
                self._orgs.doubt(op.org, view)
            return reply

    def check(self, op: Check, is_final: bool) -> Checked:
        with self._orgs.lock:
            view = self._orgs.view(op.org, is_final)
            reply = view.checked(op.org, op.demand, op.now_ms)
            if not is_final and reply.shortfall is not None:
                self._orgs.doubt(op.org, view)
            return reply

    def look_up(self, op: LookUp, is_final: bool) -> tuple[Usage, ...]:
        with self._orgs.lock:
            view = self._orgs.answered(op.org)
            if view is None or not is_final:
                raise Cold(lambda: self._orgs.ask(op.org, must_answer=True))
            if not view.is_known:
                raise verdicts.unknown_org(op.org)
            view.expire(op.now_ms)
            return view.all_usage()

    def glance(self, org: str) -> tuple[Usage, ...]:
        with self._orgs.lock:
            view = self._orgs.answered(org)
            if view is None:
                raise EngineUnavailable(f"{org!r} has not been asked for yet")
            return view.all_usage()

    # ---- what is counted --------------------------------------------------------------------------------------------

    def commit(self, op: Commit, is_final: bool) -> tuple[Committed, ...]:
        with self._orgs.lock:
            entries: list[Entry] = []
            events: list[tuple[OrgView, Kept, Event, int | None]] = []
            replies: list[Committed] = []
            known = self._outbox.known_keys([kept.key for kept in op.kept if kept.key])
            for kept in op.kept:
                found = self._found(kept)
                if found is None or kept.key in known:
                    replies.append(Committed())  # settled before, or counted for another hold
                    if found is not None:
                        found[0].let_go(kept.hold.id)
                    continue
                view, hold = found
                n, reply = _counted(view, kept, hold, op.now_ms)
                replies.append(reply)
                alone = self._is_level(view, kept.hold.feature)
                events.append((view, kept, Event(kept.hold.feature, n), len(entries) if n or alone else None))
                if n or alone:
                    entries.append(_entry(kept, n, alone=alone))
            are_new = self._outbox.append(entries) if entries else []
            for view, kept, event, place in events:
                view.let_go(kept.hold.id)
                if place is None or are_new[place]:
                    view.count(event)
        if entries:
            self._wake()
        return tuple(replies)

    def look_up_keys(self, op: LookUpKeys, is_final: bool) -> tuple[bool, ...]:
        known = self._outbox.known_keys(op.keys)
        return tuple([key in known for key in op.keys])

    def renew(self, op: Renew, is_final: bool) -> tuple[Committed, ...]:
        """What is counted here before a hold's end stays counted: Tier's API takes nothing back."""
        with self._orgs.lock:
            found = [self._found(kept) for kept in op.kept]
            pairs = list(zip(op.kept, found, strict=True))
            counts = [0 if place is None else _counted_so_far(*place, kept) for kept, place in pairs]
            entries = [Entry(kept.hold.org, kept.hold.feature, n) for kept, n in zip(op.kept, counts, strict=True) if n]
            if entries:
                self._outbox.append(entries)
            replies = [
                Committed() if place is None else place[0].renew(kept.hold.id, n, op)
                for (kept, place), n in zip(pairs, counts, strict=True)
            ]
        if entries:
            self._wake()
        return tuple(replies)

    def _found(self, kept: Kept) -> tuple[OrgView, OpenHold] | None:
        """A hold that is open, and the org that it is of; None where it was settled before."""
        view = self._orgs.views.get(kept.hold.org)
        hold = None if view is None else view.holds.get(kept.hold.id)
        return None if view is None or hold is None else (view, hold)

    def _is_level(self, view: OrgView | None, feature: str) -> bool:
        entitlement = None if view is None else view.entitlements.get(feature)
        if entitlement is not None:
            return entitlement.is_level
        return self._plans.model.aggregate_of(feature) != "sum"

    def release(self, op: Release, is_final: bool) -> None:
        with self._orgs.lock:
            for hold in op.holds:
                view = self._orgs.views.get(hold.org)
                if view is not None:
                    view.let_go(hold.id)

    def record(self, op: Record, is_final: bool, *, is_keyed: bool = False) -> Recorded:
        """``is_keyed``: the server counts a key once, and is sent each report with its own."""
        if self._plans.model.is_on_off(op.feature):
            raise InvalidRequest(f"feature not reportable: {op.feature!r} is on/off", path="feature")
        if op.at_ms is not None:
            verdicts.checked_moment(op.at_ms, op.now_ms)
        with self._orgs.lock:
            alone = self._is_level(self._orgs.views.get(op.org), op.feature)
            entry = entry_of_record(op, is_level=alone)
            if not is_keyed:  # then it is added to others, and its key is known here only
                entry = replace(entry, action="report", contents=verdicts.contents_of(op))
            (is_new,) = self._outbox.append([entry])
            over = self._noted(op) if is_new else 0
        self._wake()
        return Recorded(0 if is_keyed else over, is_new)  # the server says what passed the limit, once it has it

    def _noted(self, op: Record) -> int:
        """Take a report into what is known of the org: how many units passed the limit."""
        view = self._orgs.views.get(op.org)
        if view is None:
            return 0
        before = view.used.get(op.feature, 0)
        if not (op.clobber and op.at_ms is not None):  # that is another period's, as likely as not
            view.count(Event(op.feature, op.n, op.clobber))
        entitlement = view.entitlements.get(op.feature)
        return 0 if entitlement is None else verdicts.over(entitlement.limit, before, view.used[op.feature])

    def adjust(self, op: Adjust, is_final: bool) -> Recorded:
        if op.delta < 0:
            raise InvalidRequest(
                f"delta: Tier's API takes nothing back, got {op.delta}; report(..., clobber=True) sets the usage",
                path="delta",
            )
        return self.record(Record(op.org, op.feature, op.delta, op.key, op.now_ms, note=op.note), is_final)


def _entry(kept: Kept, n: int, *, alone: bool) -> Entry:
    contents = verdicts.ONCE if kept.key else ""
    return Entry(kept.hold.org, kept.hold.feature, n, is_alone=alone, key=kept.key or None, contents=contents)


def _counted_so_far(view: OrgView, hold: OpenHold, kept: Kept) -> int:
    """How many units a renewal counts; none where the org has lost the feature meanwhile."""
    entitlement = view.entitlements.get(hold.feature)
    if entitlement is None:
        return 0
    return verdicts.counted_so_far(
        entitlement.aggregate,
        entitlement.limit,
        view.used[hold.feature],
        view.reserved[hold.feature] - hold.n,
        hold.n,
        kept.n - hold.counted,
        is_capped=kept.is_capped,
    )


def _counted(view: OrgView, kept: Kept, hold: OpenHold, now_ms: int) -> tuple[int, Committed]:
    """How many units a commit counts, and what is to be said of it."""
    feature, held, n = hold.feature, hold.n, max(0, kept.n - hold.counted)
    entitlement = view.entitlements.get(feature)
    has_expired = hold.expires_ms <= now_ms
    if entitlement is None:  # the org has lost the feature meanwhile; the server says what it makes of it
        return n, Committed(has_expired=has_expired)
    used, others = view.used[feature], view.reserved[feature] - held
    limit, aggregate = entitlement.limit, entitlement.aggregate
    allowed = verdicts.counted(aggregate, limit, used, others, held, n) if kept.is_capped else n
    after = used + allowed if aggregate == "sum" else allowed
    return allowed, Committed(verdicts.over(limit, used, after), n - allowed, has_expired)
