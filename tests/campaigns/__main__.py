"""``python -m tests.campaigns NAME``: run one campaign and print its totals."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from . import faults, grants, isolation, kills, stalls, terms

CAMPAIGNS = {
    "faults": faults,
    "grants": grants,
    "isolation": isolation,
    "kills": kills,
    "stalls": stalls,
    "terms": terms,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, campaign in CAMPAIGNS.items():
        command = commands.add_parser(name, description=campaign.__doc__, help=campaign.__doc__)
        campaign.add_options(command)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # what was started is ended, too
    began = time.monotonic()
    for line in CAMPAIGNS[options.name].run(options):
        print(line, flush=True)
    print(f"{options.name}: all held, in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
