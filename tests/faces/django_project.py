"""A Django project for the tests of its faces, set up once per process; each test brings its own URLs and ``TIER``."""

from __future__ import annotations

import atexit
import tempfile
import types
from collections.abc import Sequence
from typing import Any

import django
from counting import guard
from django.conf import settings
from django.core.signals import setting_changed
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from tier_middleware import OrgNotFound, Tier

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "tier_middleware.django.TierMiddleware",
]

FOLDER = tempfile.TemporaryDirectory()  # connections to a database in memory cannot be closed
atexit.register(FOLDER.cleanup)


def missing(request: HttpRequest, exception: Exception) -> HttpResponse:
    return HttpResponse("not found", status=404)


def set_up() -> None:
    if settings.configured:
        return
    settings.configure(
        SECRET_KEY="of these tests",
        ALLOWED_HOSTS=["*"],
        USE_TZ=True,
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "rest_framework",
            "tier_middleware.django",
        ],
        MIDDLEWARE=MIDDLEWARE,
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{FOLDER.name}/project.db"}},
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        ROOT_URLCONF=(),
        LOGGING_CONFIG=None,
        TIER={"BASE_URL": "memory://"},
    )
    django.setup()


def change(**options: Any) -> None:
    """Settings that hold until they are changed again; who listens is told, as `override_settings` does."""
    for name, value in options.items():
        setattr(settings, name, value)
        setting_changed.send(sender=None, setting=name, value=value, enter=True)


def urls(patterns: Sequence[Any]) -> types.ModuleType:
    """What ``ROOT_URLCONF`` may be."""
    module = types.ModuleType("urls_of_a_test")
    vars(module).update(urlpatterns=list(patterns), handler404=missing)
    return module


set_up()


class Site:
    """A project of some views, visited with Django's own clients, and what its engine counted."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier

    def serve(self, view: Any = None, *, middleware: Any = MIDDLEWARE, also: Any = (), **given: Any) -> None:
        patterns = [*([path("", view)] if view else []), *also]
        change(
            ROOT_URLCONF=urls(patterns),
            MIDDLEWARE=list(middleware),
            TIER={"TIER": self.tier, "ORG": guard, **given},
        )

    def get(self, url: str = "/", method: str = "GET", org: str = "acme", **more: Any) -> Any:
        client = Client(raise_request_exception=False, enforce_csrf_checks=True)
        return client.generic(method, url, headers={"x-org": org, **more})

    async def aget(self, url: str = "/", method: str = "GET", org: str = "acme", **more: Any) -> Any:
        client = AsyncClient(raise_request_exception=False)
        return await client.generic(method, url, headers={"x-org": org, **more})

    def used(self, feature: str = "feature:convert", org: str = "org:acme") -> tuple[int, int]:
        try:
            usage = self.tier.lookup_limit(org, feature)
        except OrgNotFound:
            return 0, 0
        return usage.used, usage.reserved
