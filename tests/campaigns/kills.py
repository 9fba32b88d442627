"""Workers are killed by SIGKILL under load, one in each round. What was counted is what clients saw, and no more than
what the killed worker may have done besides.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tier_middleware import Usage

from .load import Load, Seen
from .shops import SHOPS, Shop
from .world import ANSWERED, BROKEN, CALLS, FAILED, NARROW, STUCK, SYNC, WIDE

SECONDS_BEFORE_A_KILL: Final = 0.4
SECONDS_AFTER_A_KILL: Final = 0.2


@dataclass
class Totals:
    rounds: int = 0
    with_work_in_flight: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    seen: int = 0
    counted: int = 0
    left_reserved: int = 0
    most_counted_unseen: int = 0
    over_limit: int = 0

    def lines(self) -> list[str]:
        return [
            f"{self.rounds} rounds, {self.with_work_in_flight} of them with requests in flight on the killed worker",
            f"{sum(self.statuses.values())} requests: "
            + ", ".join(f"{n} {to}" for to, n in sorted(self.statuses.items())),
            f"usage - seen: {self.counted} - {self.seen} = {self.counted - self.seen} in all, "
            f"{self.most_counted_unseen} at most in a round",
            f"among them, messages of a socket that were answered, the worker killed before its next answer: "
            f"at most {self.statuses[ANSWERED]}",
            f"units above a limit: {self.over_limit}",
            f"units left reserved by killed workers, and back once they had expired: {self.left_reserved}",
        ]


def kills(shop: Shop, rounds: int, seed: int) -> Totals:
    totals, chance = Totals(), random.Random(seed)
    with Load(shop.server.url) as load:
        for number in range(rounds):
            routes = {f"org:round-{number}-{plan}": shop.routes for plan in ("narrow", "wide")}
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
        totals.over_limit += max(0, usage.used - (usage.limit or 0))
        unseen += usage.used - one.successes
        if shop.rows_of is not None and "-rows-" in org:
            assert shop.rows_of(org) == usage.used, (org, usage, shop.rows_of(org))
    totals.rounds += 1
    totals.with_work_in_flight += any(one.of(BROKEN) for one in seen.values())
    totals.most_counted_unseen = max(totals.most_counted_unseen, unseen)


def counted(shop: Shop, org: str, seen: Seen) -> Usage:
    usage, in_flight = shop.counted(org), seen.of(BROKEN) + seen.of(ANSWERED)
    assert usage.limit == (NARROW if org.endswith("narrow") else WIDE), usage
    assert seen.successes <= usage.used <= seen.successes + in_flight, (org, usage, seen)
    assert usage.reserved <= in_flight + seen.of(FAILED), (org, usage, seen)
    assert not seen.of("503"), (org, seen)
    assert not seen.of(STUCK), (org, seen)
    assert usage.used + usage.reserved <= usage.limit, (org, usage)
    came_back(shop, org, usage)
    return usage


def came_back(shop: Shop, org: str, usage: Usage) -> None:
    """What a killed worker held is to be had again, all of it and no more."""
    expired = shop.later.lookup_limit(org, CALLS)
    assert (expired.used, expired.reserved) == (usage.used, 0), (org, usage, expired)
    left = (usage.limit or 0) - usage.used
    assert not shop.later.can(org, CALLS, left + 1).ok
    if left:
        with shop.later.reserve(org, CALLS, left):  # raises where what was held has not come back
            pass
        assert shop.later.lookup_limit(org, CALLS).used == usage.limit


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--engine", choices=tuple(SHOPS), default="sqlite")
    parser.add_argument("--seed", type=int, default=int(time.time()))


def run(options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, SHOPS[options.engine](Path(folder)) as shop:
        totals = kills(shop, options.rounds, options.seed)
    return [f"seed {options.seed}, {options.engine}", *totals.lines()]
