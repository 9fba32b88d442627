"""Servers are told to end (SIGTERM) while requests are under way: what clients saw as a success is counted once, and
nothing stays reserved.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from tier_middleware import Tier, Usage

from .load import Load, Seen
from .servers import ASGI, BOOTED, GUNICORN, READY, UVICORN, WSGI, Server, serving
from .world import ANSWERED, BROKEN, CALLS, MODEL, ROUTES, SOCKET, STUCK

UVICORN_WORKER: Final = "--worker-class=uvicorn_worker.UvicornWorker"
SERVERS: Final = {
    "uvicorn": (*UVICORN, ASGI),
    "gunicorn-uvicorn": (*GUNICORN, UVICORN_WORKER, ASGI),
    "gunicorn-uvicorn-preload": (*GUNICORN, UVICORN_WORKER, "--preload", ASGI),
    "gunicorn-sync": (*GUNICORN, "--worker-class=sync", WSGI),
    "gunicorn-gthread": (*GUNICORN, "--worker-class=gthread", "--threads=4", WSGI),
    "gunicorn-gthread-preload": (*GUNICORN, "--worker-class=gthread", "--threads=4", "--preload", WSGI),
}
POOL: Final = "prefork-pool"
KINDS: Final = (*SERVERS, POOL)
ORG: Final = "org:terms-wide"
SECONDS: Final = 0.6


@contextmanager
def clients(kind: str, folder: Path) -> Iterator[Tier]:
    """A client of the engine that this kind of server uses."""
    if WSGI not in SERVERS[kind]:
        with Tier(f"sqlite:///{folder}/tier.db", pricing=MODEL) as tier:
            yield tier
        return
    os.environ["CAMPAIGN_FOLDER"] = str(folder)
    from . import django_shop as project  # sets Django up in this process, as it does in the workers

    project.make_tables()
    with Tier("django://default", pricing=MODEL, timeout=20) as tier:
        yield tier


def ready_by(kind: str) -> re.Pattern[str]:
    return BOOTED if "--preload" in SERVERS[kind] else READY


def term(kind: str, folder: Path, seed: int) -> str:
    """One server, under load from its start until it has ended."""
    with (
        clients(kind, folder) as tier,
        serving(SERVERS[kind], folder, ready_by(kind), TIER_BASE_URL=f"sqlite:///{folder}/tier.db") as server,
        Load(server.url) as load,
    ):
        tier.subscribe(ORG, "plan:wide@1")
        load.begin({ORG: ROUTES if WSGI in SERVERS[kind] else (*ROUTES, SOCKET)}, seed)
        time.sleep(random.Random(seed).uniform(SECONDS / 2, SECONDS))  # a random moment is what this is about
        status = server.stop(signal.SIGTERM)
        seen = load.end()[ORG]
        return held(kind, tier.lookup_limit(ORG, CALLS), seen, server, status)


def held(kind: str, usage: Usage, seen: Seen, server: Server, status: int) -> str:
    assert status in (0, -signal.SIGTERM), (kind, status, server.log[-4000:])
    assert seen.successes > 0, (kind, seen, server.log[-4000:])
    assert seen.successes <= usage.used <= seen.successes + seen.of(BROKEN) + seen.of(ANSWERED), (kind, usage, seen)
    assert usage.reserved == 0, (kind, usage, seen, server.log[-4000:])
    assert not seen.of(STUCK), (kind, seen)
    assert "usage lost" not in server.log, server.log[-4000:]
    return (
        f"{kind}: {seen.successes} successes seen, {usage.used} counted, {usage.reserved} left reserved, "
        f"{seen.of(BROKEN)} connections broken, {seen.of(ANSWERED)} messages answered before a connection ended"
    )


# ---- a pool of forked workers, as Celery's ---------------------------------------------------------------------------


def working(tier: Tier, done: Connection) -> None:
    """Task after task, until it is told to end; then the present one is finished, as Celery's warm shutdown has it."""
    is_told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: is_told.append(number))
    count = 0
    while not is_told:
        with tier.reserve(ORG, CALLS):
            count += 1
            done.send(None) if count == 1 else None
    done.send(count)


def pool(folder: Path) -> str:
    tier = Tier(f"sqlite:///{folder}/tier.db", pricing=MODEL)
    tier.subscribe(ORG, "plan:wide@1")
    tier.report(ORG, CALLS)  # before the fork: its connections must not be shared
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(4)]
    workers = [fork.Process(target=working, args=(tier, theirs)) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    for ours, _ in pipes:
        ours.recv()  # it works
    for worker in workers:
        worker.terminate()
    counts = [ours.recv() for ours, _ in pipes]
    for worker in workers:
        worker.join()
    usage = tier.lookup_limit(ORG, CALLS)
    tier.close()
    assert (usage.used, usage.reserved) == (1 + sum(counts), 0), (usage, counts)
    return f"{POOL}: {sum(counts)} tasks done by 4 forked workers, {usage.used - 1} counted, 0 left reserved"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: each of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))


def run(options: argparse.Namespace) -> Iterator[str]:
    kinds = options.kind or KINDS
    # Django is set up once in a process, for one database: a process for each
    spawn = multiprocessing.get_context("spawn")
    for number in range(options.rounds):
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, spawn) as process:
                yield process.submit(one, kind, Path(folder), options.seed + number).result()


def one(kind: str, folder: Path, seed: int) -> str:
    return pool(folder) if kind == POOL else term(kind, folder, seed)
