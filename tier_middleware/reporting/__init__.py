"""Reports on their way to a server: the outbox that keeps them, and the reporter that empties it."""

from __future__ import annotations

from .batches import Batch, Entry, Policy, State, Tally
from .outbox import Outbox
from .outcomes import Delivered, Later, Outcome, Refused, Unknown, outcome_of
from .reporter import Reporter

__all__ = [
    "Batch",
    "Delivered",
    "Entry",
    "Later",
    "Outbox",
    "Outcome",
    "Policy",
    "Refused",
    "Reporter",
    "State",
    "Tally",
    "Unknown",
    "outcome_of",
]
