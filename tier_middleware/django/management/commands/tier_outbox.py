"""``manage.py tier_outbox``."""

from __future__ import annotations

from ..base import TierCommand

__all__ = ["Command"]


class Command(TierCommand):
    command = "outbox"
    help = "Show and decide what the engine has not got yet."
