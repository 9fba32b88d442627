"""The shops of the campaigns: a server of each kind, and who knows what it has counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tier_middleware import Tier, Usage, flow
from tier_middleware.clock import milliseconds
from tier_middleware.core import Core
from tier_middleware.ops import Commit, Op, Release
from tier_middleware.reporting.batches import Batch
from tier_middleware.reporting.outbox import Outbox
from tier_middleware.reporting.pieces import kept_of, record_of
from tier_middleware.settings import Settings

from .load import ROOT
from .servers import ASGI, GUNICORN, READY_TO_SERVE, SERVE, UVICORN, WSGI, Server, serving
from .world import CALLS, MODEL, ROUTES, SOCKET

RESERVATION_SECONDS: Final = 900


def later() -> datetime:
    """When every reservation of now has expired."""
    return datetime.now(UTC) + timedelta(seconds=RESERVATION_SECONDS + 1)


@dataclass
class Shop:
    """A server, and clients of the engine that counts: one in its time, one for which today's reservations are over.

    ``routes`` are those that the load asks. ``rows_of`` answers how many rows the sync handler has written for an org,
    where it writes any; ``count`` what was counted, where some of it is on its way.
    """

    server: Server
    tier: Tier
    later: Tier
    routes: tuple[str, ...] = (*ROUTES, SOCKET)
    rows_of: Callable[[str], int] | None = None
    count: Callable[[str], Usage] | None = None

    def counted(self, org: str) -> Usage:
        return self.tier.lookup_limit(org, CALLS) if self.count is None else self.count(org)


@contextmanager
def engines(url: str) -> Iterator[tuple[Tier, Tier]]:
    """The clients of an embedded engine."""
    settings = Settings(url, on_error="deny", pricing=MODEL)
    with Tier.on(Core(settings, None)) as tier, Tier.on(Core(settings, later)) as after:
        yield tier, after


@contextmanager
def sqlite_shop(folder: Path) -> Iterator[Shop]:
    url = f"sqlite:///{folder}/tier.db"
    with serving((*UVICORN, ASGI), folder, TIER_BASE_URL=url) as server, engines(url) as (tier, after):
        yield Shop(server, tier, after)


@contextmanager
def django_shop(folder: Path, **database: str) -> Iterator[Shop]:
    os.environ.update(database, CAMPAIGN_FOLDER=str(folder))
    from . import django_shop as project  # sets Django up in this process, as it does in the workers

    project.make_tables()
    with (
        serving((*GUNICORN, WSGI), folder, **database) as server,
        Tier("django://default", on_error="deny", pricing=MODEL, timeout=20) as tier,
        Tier("django://default", on_error="deny", clock=later, timeout=20) as after,
    ):
        yield Shop(server, tier, after, ROUTES, project.rows_of)


POSTGRES: Final = """
import sys, databases
found = databases.postgresql_settings("campaign")
print(found["HOST"], found["USER"], flush=True)
sys.stdin.read()
"""


@contextmanager
def postgres_shop(folder: Path) -> Iterator[Shop]:
    """The same on a PostgreSQL of its own, which comes with the extra ``test-postgres``."""
    environ = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "faces")}
    with subprocess.Popen(
        [sys.executable, "-c", POSTGRES],
        env=environ,
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as postgres:
        assert postgres.stdout is not None
        host, user = postgres.stdout.readline().split()
        with django_shop(folder, CAMPAIGN_POSTGRES="campaign", PGHOST=host, PGUSER=user) as shop:
            yield shop
            shop.server.stop()  # before its database


@contextmanager
def http_shop(folder: Path) -> Iterator[Shop]:
    """The HTTP engine in the workers, with one outbox, in front of ``tier-middleware serve`` on SQLite."""
    url = f"sqlite:///{folder}/served.db"
    served = folder / "served"
    served.mkdir()
    with (
        serving(SERVE, served, READY_TO_SERVE, 1, TIER_BASE_URL=url) as tier_server,
        serving((*UVICORN, ASGI), folder, TIER_BASE_URL=tier_server.url) as server,
        engines(url) as (tier, after),
        closing(Outbox(folder / "tier-outbox.db", milliseconds(None))) as outbox,
    ):

        def counted(org: str) -> Usage:
            """What is counted once all is that waits in the outbox, also with a killed worker. Each counts once."""
            done: set[int] = set()
            while left := [batch for batch in outbox.undelivered(org) if batch.id not in done]:
                for batch in left:
                    tier.run(flow.do(settling(batch, tier.core.now_ms())))
                    done.add(batch.id)
            return tier.lookup_limit(org, CALLS)

        yield Shop(server, tier, after, count=counted)


def settling(batch: Batch, now_ms: int) -> Op[Any]:
    """What the server does when it gets a batch."""
    if batch.action == "commit":
        return Commit((kept_of(batch),), now_ms)
    if batch.action == "release":
        return Release((kept_of(batch).hold,), now_ms)
    return record_of(batch, now_ms)


SHOPS: Final[dict[str, Callable[[Path], AbstractContextManager[Shop]]]] = {
    "sqlite": sqlite_shop,
    "django": django_shop,
    "postgres": postgres_shop,
    "http": http_shop,
}
