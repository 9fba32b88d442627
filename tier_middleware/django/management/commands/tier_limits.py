"""``manage.py tier_limits``."""

from __future__ import annotations

from ..base import TierCommand

__all__ = ["Command"]


class Command(TierCommand):
    command = "limits"
    help = "Show what an org may use, and has used: tier_limits org:acme"
