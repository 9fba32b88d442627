"""The app: its checks, and the process's clients, which follow the project's settings."""

from __future__ import annotations

from types import ModuleType

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed

from ..engine_urls import register_engine
from . import project
from .checks import check_settings
from .engine import django_engine

__all__ = ["TierConfig"]


class TierConfig(AppConfig):
    name = "tier_middleware.django"
    label = "tier_middleware"
    verbose_name = "Tier"

    def __init__(self, app_name: str, app_module: ModuleType) -> None:
        super().__init__(app_name, app_module)
        register_engine("django", django_engine)
        # before any models.py runs: `from tier_middleware import sync_tier` must mean the database that is gated with
        project.take_over()

    def ready(self) -> None:
        checks.register(check_settings)
        setting_changed.connect(project.follow_settings, dispatch_uid="tier_middleware")
