"""Workers are killed by SIGKILL under load, one in each round. What was counted is what clients saw, and no more than
what the killed worker may have done besides.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tier_middleware import Tier, Usage
from tier_middleware.core import Core
from tier_middleware.settings import Settings

from .load import BROKEN, FAILED, STUCK, Load, Seen
from .servers import GUNICORN, UVICORN, Server, serving
from .world import CALLS, MODEL, NARROW, ROUTES, SYNC, WIDE

RESERVATION_SECONDS: Final = 900
SECONDS_BEFORE_A_KILL: Final = 0.4
SECONDS_AFTER_A_KILL: Final = 0.2


def later() -> datetime:
    """When every reservation of now has expired."""
    return datetime.now(UTC) + timedelta(seconds=RESERVATION_SECONDS + 1)


@dataclass
class Shop:
    """A server, and two clients of its engine: one in its time, one for which all of today's reservations are over.

    ``rows_of`` answers how many rows the sync handler has written for an org, where it writes any.
    """

    server: Server
    tier: Tier
    later: Tier
    rows_of: Callable[[str], int] | None = None


@contextmanager
def sqlite_shop(folder: Path) -> Iterator[Shop]:
    url = f"sqlite:///{folder}/tier.db"
    with serving((*UVICORN, "tests.campaigns.shop:app"), folder, TIER_BASE_URL=url) as server:
        settings = Settings(url, on_error="deny", pricing=MODEL)
        with Tier.on(Core(settings, None)) as tier, Tier.on(Core(settings, later)) as after:
            yield Shop(server, tier, after)


@contextmanager
def django_shop(folder: Path) -> Iterator[Shop]:
    os.environ["CAMPAIGN_FOLDER"] = str(folder)
    from . import django_shop as project  # sets Django up in this process, as it does in the workers

    project.make_tables()
    with (
        serving((*GUNICORN, "tests.campaigns.wsgi:application"), folder) as server,
        Tier("django://default", on_error="deny", pricing=MODEL, timeout=20) as tier,
        Tier("django://default", on_error="deny", clock=later, timeout=20) as after,
    ):
        yield Shop(server, tier, after, project.rows_of)


SHOPS: Final[dict[str, Callable[[Path], AbstractContextManager[Shop]]]] = {
    "sqlite": sqlite_shop,
    "django": django_shop,
}


@dataclass
class Totals:
    rounds: int = 0
    with_work_in_flight: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    counted: int = 0
    left_reserved: int = 0
    most_counted_unseen: int = 0

    def lines(self) -> list[str]:
        return [
            f"{self.rounds} rounds, {self.with_work_in_flight} of them with requests in flight on the killed worker",
            f"{sum(self.statuses.values())} requests: "
            + ", ".join(f"{n} {to}" for to, n in sorted(self.statuses.items())),
            f"usage - seen: {self.counted} - {self.seen} = {self.counted - self.seen} in all, "
            f"{self.most_counted_unseen} at most in a round",
            f"units left reserved by killed workers, and back once they had expired: {self.left_reserved}",
        ]


def kills(shop: Shop, rounds: int, seed: int) -> Totals:
    totals, chance = Totals(), random.Random(seed)
    with Load(shop.server.url) as load:
        for number in range(rounds):
            routes = {f"org:round-{number}-narrow": ROUTES, f"org:round-{number}-wide": ROUTES}
            if shop.rows_of is not None:
                routes[f"org:round-{number}-rows-wide"] = (SYNC,)
            for org in routes:
                shop.tier.subscribe(org, f"plan:{org.rpartition('-')[2]}@1")
            workers = shop.server.wait_for()
            load.begin(routes, seed + number)
            time.sleep(chance.uniform(0.1, SECONDS_BEFORE_A_KILL))  # a random moment is what this is about
            shop.server.kill(chance.choice(workers))
            time.sleep(SECONDS_AFTER_A_KILL)
            shop.server.wait_for()  # under load, too
            settled(shop, load.end(), totals)
    log = shop.server.log
    assert "engine away" not in log, log[-4000:]
    assert "usage lost" not in log, log[-4000:]
    return totals


def settled(shop: Shop, seen: dict[str, Seen], totals: Totals) -> None:
    """Hold one round to what was promised, and add it up."""
    unseen = 0
    for org, one in seen.items():
        usage = counted(shop, org, one)
        totals.seen += one.successes
        totals.counted += usage.used
        totals.left_reserved += usage.reserved
        totals.statuses += one.statuses
        unseen += usage.used - one.successes
        if shop.rows_of is not None and "-rows-" in org:
            assert shop.rows_of(org) == usage.used, (org, usage, shop.rows_of(org))
    totals.rounds += 1
    totals.with_work_in_flight += any(one.of(BROKEN) for one in seen.values())
    totals.most_counted_unseen = max(totals.most_counted_unseen, unseen)


def counted(shop: Shop, org: str, seen: Seen) -> Usage:
    usage, in_flight = shop.tier.lookup_limit(org, CALLS), seen.of(BROKEN)
    limit = NARROW if org.endswith("narrow") else WIDE
    assert usage.limit == limit, usage
    assert seen.successes <= usage.used <= seen.successes + in_flight, (org, usage, seen)
    assert usage.used + usage.reserved <= limit, (org, usage)
    assert usage.reserved <= in_flight + seen.of(FAILED), (org, usage, seen)
    assert not seen.of("503"), (org, seen)
    assert not seen.of(STUCK), (org, seen)
    expired = shop.later.lookup_limit(org, CALLS)
    assert (expired.used, expired.reserved) == (usage.used, 0), (org, usage, expired)
    left = limit - usage.used
    assert not shop.later.can(org, CALLS, left + 1).ok
    if left:
        with shop.later.reserve(org, CALLS, left):  # raises where what was held has not come back
            pass
        assert shop.later.lookup_limit(org, CALLS).used == limit
    return usage


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--engine", choices=SHOPS, default="sqlite")
    parser.add_argument("--seed", type=int, default=int(time.time()))


def run(options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, SHOPS[options.engine](Path(folder)) as shop:
        totals = kills(shop, options.rounds, options.seed)
    return [f"seed {options.seed}, {options.engine}", *totals.lines()]
