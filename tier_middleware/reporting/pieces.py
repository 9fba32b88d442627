"""What is left to count, as entries of the outbox, and back from its batches."""

from __future__ import annotations

from ..ops import Hold, Kept, Record
from .batches import Action, Batch, Detail, Entry

__all__ = ["entry_of_hold", "entry_of_record", "kept_of", "record_of"]


def entry_of_hold(hold: Hold, action: Action, n: int = 0, *, is_capped: bool = False, once: str = "") -> Entry:
    """The commit or the release of a hold, by whose id it is known. ``once`` is the key of a `Kept`."""
    detail = Detail(hold=hold.id, place=hold.place, held=hold.n, is_capped=is_capped, once=once)
    is_level = action == "commit" and not hold.n  # of a level nothing is reserved
    return Entry(
        hold.org,
        hold.feature,
        n,
        is_alone=is_level,
        key=f"reservation:{hold.id}",
        action=action,
        detail=detail,
    )


def entry_of_record(record: Record, *, is_level: bool) -> Entry:
    """A report with its own key."""
    detail = Detail(default_plan=record.default_plan, note=record.note)
    return Entry(
        record.org,
        record.feature,
        record.n,
        record.at_ms,
        record.clobber,
        is_level,
        record.key,
        "",
        "record",
        detail,
    )


def kept_of(batch: Batch) -> Kept:
    detail = batch.detail
    hold = Hold(detail.hold, batch.org, batch.feature, detail.held, detail.place)
    return Kept(hold, batch.n, detail.is_capped, detail.once)


def record_of(batch: Batch, now_ms: int) -> Record:
    detail, at_ms, clobber = batch.detail, batch.at_ms, batch.clobber
    parts = (batch.org, batch.feature, batch.n, batch.key, now_ms)
    return Record(*parts, at_ms, clobber, detail.default_plan, detail.note)
