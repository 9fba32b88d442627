"""``manage.py tier_report``."""

from __future__ import annotations

from ..base import TierCommand

__all__ = ["Command"]


class Command(TierCommand):
    command = "report"
    help = "Count usage: tier_report org:acme feature:convert 3"
