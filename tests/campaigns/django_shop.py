"""The same shop in Django, whose usage commits in the view's transaction, beside a row of the view's own.

    gunicorn --workers 4 tests.campaigns.wsgi:application

``CAMPAIGN_FOLDER`` is where the database lies, or
``CAMPAIGN_POSTGRES`` the name of one in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from .world import CALLS, MODEL, WORK_SECONDS, reservation_seconds


def database() -> dict[str, Any]:
    name = os.environ.get("CAMPAIGN_POSTGRES")
    if name:
        return {"ENGINE": "django.db.backends.postgresql", "NAME": name, "ATOMIC_REQUESTS": True}
    options = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ["CAMPAIGN_FOLDER"]) / "shop.db",
        "OPTIONS": options | {"timeout": 20},
        "ATOMIC_REQUESTS": True,
    }


settings.configure(
    SECRET_KEY="of these campaigns",
    ALLOWED_HOSTS=["*"],
    USE_TZ=True,
    INSTALLED_APPS=["tier_middleware.django"],
    MIDDLEWARE=["tier_middleware.django.TierMiddleware"],
    DATABASES={"default": database()},
    ROOT_URLCONF=__name__,
    TIER={
        "BASE_URL": "django://default",
        "PRICING": MODEL,
        "ORG": lambda request: request.GET["org"],
        "ON_ERROR": "deny",
        "TIMEOUT": 20,
        "RESERVATION_SECONDS": reservation_seconds(),
    },
)
django.setup()

from tier_middleware.django import requires_feature  # noqa: E402  # it wants the settings


def ended(request: HttpRequest) -> HttpResponse:
    """The end that the campaign asked for."""
    fail = request.GET.get("fail")
    if fail == "raise":
        raise ZeroDivisionError("as asked")
    return HttpResponse("done", status=500 if fail else 200)


@transaction.non_atomic_requests  # Django has no transactions around async views
@requires_feature(CALLS)
async def coroutine(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(WORK_SECONDS)
    return ended(request)


@requires_feature(CALLS)
def function(request: HttpRequest) -> HttpResponse:
    """Writes a row for each success, in the transaction in which it is counted."""
    if "fail" not in request.GET:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO work (org) VALUES (%s)", [request.GET["org"]])
    return ended(request)


@requires_feature(CALLS)
def stream(request: HttpRequest) -> StreamingHttpResponse:
    def chunks() -> Iterator[bytes]:
        for number in range(3):
            time.sleep(WORK_SECONDS / 3)  # work
            if number == 2 and "fail" in request.GET:
                raise ZeroDivisionError("in mid-stream, as asked")
            yield b"chunk"

    return StreamingHttpResponse(chunks())


urlpatterns = [path("async", coroutine), path("sync", function), path("stream", stream)]


def rows_of(org: str) -> int:
    """What the view `function` has written for an org."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM work WHERE org = %s", [org])
        return int(cursor.fetchone()[0])


def make_tables() -> None:
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE work (org text)")
