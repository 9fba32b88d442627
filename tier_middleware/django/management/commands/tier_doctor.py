"""``manage.py tier_doctor``."""

from __future__ import annotations

from ..base import TierCommand

__all__ = ["Command"]


class Command(TierCommand):
    command = "doctor"
    help = "Check the installation, the settings and the database."
