"""``python -m tests.fuzz --requests 100000 --seed 1``: malformed requests to a server with two workers, two at a time.

It must never hang, never answer 5xx, never show its inside, keep answering, and keep what it was not asked to change.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from served import MODEL, serving  # its folder is on the path since the line above

from tier_middleware import Tier  # likewise

from .attack import Attack  # likewise

THREADS = 2
CANARY = "org:canary"


def attack(folder: Path, requests: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Answers by status, and all that must not be."""
    with Tier(f"sqlite:///{folder}/tier.db") as tier:
        tier.push(MODEL)
        for org in (CANARY, "org:fuzzed"):
            tier.subscribe(org, "plan:free@1")
        tier.report(CANARY, "feature:calls", 7)
    with serving(folder, "--workers", "2") as server, Progress(disable=not sys.stdout.isatty()) as bars:
        bar = bars.add_task("requests", total=requests)
        attacks = [Attack(server.port, seed + number) for number in range(THREADS)]
        share = requests // THREADS
        with ThreadPoolExecutor(THREADS) as pool:
            list(
                pool.map(lambda one: one.run(share, lambda done: bars.advance(bar)), attacks)
            )  # raises what they raise
        assert sum(one.sent for one in attacks) == share * THREADS
        problems = [problem for one in attacks for problem in one.problems]
        if "Traceback" in server.log:
            problems.append("a traceback in the log: " + server.log.partition("Traceback")[2][:2000])
        ended = server.end()
        if ended not in (0, -15):
            problems.append(f"it ended with {ended}")
    with Tier(f"sqlite:///{folder}/tier.db") as tier:
        used = tier.lookup_limit(CANARY, "feature:calls").used
        if used != 7:
            problems.append(f"the canary's usage is {used}")
    return sum((one.statuses for one in attacks), Counter()), problems


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    options = parser.parse_args()
    started = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        statuses, problems = attack(Path(folder), options.requests, options.seed)
    seconds = monotonic() - started
    said = dict(sorted(statuses.items()))
    print(f"{options.requests} requests, seed {options.seed}, {seconds:.0f} s; answers by status: {said}")
    print("\n".join(problems[:20]) or "no 5xx, no hang, nothing of the inside, the canary is untouched")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
