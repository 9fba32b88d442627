"""``manage.py tier_push``."""

from __future__ import annotations

from ..base import TierCommand

__all__ = ["Command"]


class Command(TierCommand):
    command = "push"
    help = "Store the plans of a pricing model: tier_push pricing.json [--dry-run]"
