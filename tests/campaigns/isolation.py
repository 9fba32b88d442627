"""Thousands of orgs whose names are hardly told apart, asked for by threads, tasks and processes all at once: every
answer is the org's own, and in the end each has used exactly its own limit.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import chdir
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple
from unicodedata import normalize

from tier_middleware import AsyncTier, LimitReached, Tier
from tier_middleware.names import MAX_NAME

from .servers import READY_TO_SERVE, SERVE, serving
from .world import CALLS

LIMITS: Final = 7  # plans, each with another limit
MODEL: Final = {
    "plans": {f"plan:up-to{n}@1".replace("-", ""): {"features": {CALLS: {"tiers": [{"upto": n}]}}}
              for n in range(1, LIMITS + 1)}
}  # fmt: skip
PARTIES: Final = 4
THREADS: Final = 8
TIMEOUT: Final = 60.0

BASES: Final = ("acme", "Æsir", "straße", "İstanbul", "ﬁsh", "Ångström", "東京", "👩‍👩‍👧", "a b", "0", "null", "None")
LEGAL: Final = [chr(code) for code in range(1, 0x250)] + list("\u2028\u202e\ufeff\uffff\U0010ffff")


def likenesses(base: str) -> Iterator[str]:
    """Names that some reader, database, path or cache would take for another of them."""
    yield from (base, base.upper(), base.lower(), base.title(), base.casefold())
    yield from (normalize(form, base) for form in ("NFC", "NFD", "NFKC", "NFKD"))
    yield from (f"org:{base}", f"org:org:{base}", f"clock_1f/org:{base}", f"clock_1f/{base}", f"{base}/org:{base}")
    yield from (f" {base}", f"{base} ", f"{base}\t", f"{base}\n", f"{base}\u200b", f"{base}\u0301", f"\ufeff{base}")
    yield from (f"{base}%20", f"{base}+", f"{base}%", f"{base}_", f"{base}*", f"{base}?", f"{base}'--", f'{base}"')
    yield from (
        f"{base}:{CALLS}",
        f"{base},{base}",
        f"{base};{base}",
        f"{base}\\",
        f"{base}/",
        f"../{base}",
        f"{base}#",
    )
    yield from (base.translate(str.maketrans("aeopcx", "\u0430\u0435\u043e\u0440\u0441\u0445")), base[::-1], base * 2)
    yield base.ljust(MAX_NAME - 4, "x")
    yield base.ljust(MAX_NAME - 5, "x") + "y"
    yield base.ljust(MAX_NAME - 5, "x")


def orgs(count: int) -> list[str]:
    """So many different orgs: all likenesses, one of each legal character, and neighbours by number."""
    found = dict.fromkeys(f"org:{name}" for base in BASES for name in likenesses(base) if name)
    found |= dict.fromkeys(f"org:{character}" for character in LEGAL)
    found |= dict.fromkeys(f"org:{number}" for number in range(count))
    return list(islice(found, count))


def limit_of(number: int) -> int:
    return 1 + number % LIMITS


class Ask(NamedTuple):
    """One try of one org, whose limit this is."""

    org: str
    limit: int


def check(ask: Ask, answer: Any) -> None:
    """An answer or a refusal must be the org's own."""
    assert (answer.org, answer.limit) == (ask.org, ask.limit), (ask, vars(answer))
    assert 0 <= answer.used <= ask.limit, (ask, vars(answer))


# ---- those who ask ---------------------------------------------------------------------------------------------------


def threads(url: str, asks: Sequence[Ask]) -> Counter[str]:
    with Tier(url, on_error="deny", timeout=TIMEOUT) as tier:
        return threads_of(tier, asks)


def threads_of(tier: Tier, asks: Sequence[Ask]) -> Counter[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return Counter(org for org in pool.map(lambda ask: asked(tier, ask), asks) if org)


def asked(tier: Tier, ask: Ask) -> str | None:
    """The org, if it was granted a unit."""
    check(ask, tier.can(ask.org, CALLS))
    try:
        with tier.reserve(ask.org, CALLS):
            return ask.org
    except LimitReached as refusal:
        check(ask, refusal)
        return None


def tasks(url: str, asks: Sequence[Ask]) -> Counter[str]:
    async def asking() -> Counter[str]:
        async with AsyncTier(url, on_error="deny", timeout=TIMEOUT) as tier:
            return await tasks_of(tier, asks)

    return asyncio.run(asking())


async def tasks_of(tier: AsyncTier, asks: Sequence[Ask]) -> Counter[str]:
    granted: Counter[str] = Counter()
    left = iter(asks)
    async with asyncio.TaskGroup() as group:

        async def visitor() -> None:
            for ask in left:
                check(ask, await tier.can(ask.org, CALLS))
                try:
                    async with tier.reserve(ask.org, CALLS):
                        await asyncio.sleep(0)
                        granted[ask.org] += 1
                except LimitReached as refusal:
                    check(ask, refusal)

        for _ in range(THREADS):
            group.create_task(visitor())
    return granted


def one_process(tier: Tier, everyone: Sequence[Sequence[Ask]]) -> Iterator[Counter[str]]:
    """Threads and event loops of this process, all of them on one engine."""
    ours = AsyncTier.on(tier.core)
    with ThreadPoolExecutor(len(everyone)) as pool:
        yield from pool.map(
            lambda asks, number: threads_of(tier, asks) if number % 2 else asyncio.run(tasks_of(ours, asks)),
            everyone,
            range(len(everyone)),
        )


def processes(url: str, everyone: Sequence[Sequence[Ask]], setup: Any) -> Iterator[Counter[str]]:
    with ProcessPoolExecutor(len(everyone), multiprocessing.get_context("spawn"), setup) as pool:
        running = [pool.submit(threads if number % 2 else tasks, url, asks) for number, asks in enumerate(everyone)]
        yield from (one.result() for one in running)


# ---- the campaign ----------------------------------------------------------------------------------------------------


def isolation(url: str, count: int, seed: int, setup: Any = None, asked_at: str | None = None) -> list[str]:
    """The books are at ``url``; who asks does so there, or at the server in front of it."""
    names = orgs(count)
    limits = {org: limit_of(number) for number, org in enumerate(names)}
    granted: Counter[str] = Counter()
    with Tier(url, pricing=MODEL, on_error="deny", timeout=TIMEOUT) as tier:
        for org, limit in limits.items():
            tier.subscribe(org, f"plan:upto{limit}@1", info={"name": org})
        tries = 1 + LIMITS // PARTIES
        everyone = [[Ask(org, limit) for org, limit in limits.items()] * tries for _ in range(PARTIES)]
        for number, asks in enumerate(everyone):
            random.Random(seed + number).shuffle(asks)
        is_shared = url != "memory://"
        for found in processes(asked_at or url, everyone, setup) if is_shared else one_process(tier, everyone):
            granted += found
        entries = 0
        for org, limit in limits.items():
            usage, keys = tier.lookup_limit(org, CALLS), {entry.key for entry in tier.history(org, CALLS)}
            assert granted[org] == usage.used == usage.limit == limit == len(keys), (org, granted[org], usage, keys)
            assert usage.reserved == 0, (org, usage)
            assert tier.lookup_org(org).name == org
            entries += len(keys)
    refused = PARTIES * tries * len(limits) - sum(granted.values())
    parties = f"{PARTIES} processes" if is_shared else f"one process with {PARTIES} pools or loops"
    return [
        f"{len(limits)} orgs, {parties} of {THREADS} threads or tasks: {sum(granted.values())} units "
        f"granted, {refused} refused, {entries} entries; every answer, refusal and entry its org's own"
    ]


def in_django() -> None:
    from . import django_shop

    assert django_shop  # sets Django up


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--orgs", type=int, default=4000)
    parser.add_argument("--engine", choices=("memory", "sqlite", "django", "http"), default="sqlite")
    parser.add_argument("--seed", type=int, default=int(time.time()))


def run(options: argparse.Namespace) -> list[str]:
    if options.engine == "memory":
        return isolation("memory://", options.orgs, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/tier.db"
        if options.engine == "sqlite":
            return isolation(url, options.orgs, options.seed)
        if options.engine == "http":
            with serving(SERVE, Path(folder), READY_TO_SERVE, 1, TIER_BASE_URL=url) as server, chdir(folder):
                return isolation(url, options.orgs, options.seed, None, server.url)
        os.environ["CAMPAIGN_FOLDER"] = folder
        from . import django_shop as project  # sets Django up in this process, as it does in the others

        project.make_tables()
        return isolation("django://default", options.orgs, options.seed, in_django)
