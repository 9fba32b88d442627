"""What the management commands share: each is one of the command line, on the engine of ``settings.TIER``."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from typing import Any, ClassVar, Final

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ...client import Tier
from ..project import project

__all__ = ["TierCommand"]

COLOURS: Final = {"--no-color": "NO_COLOR", "--force-color": "FORCE_COLOR"}
"""Django's options, and what the command line looks at."""


class TierCommand(BaseCommand):
    """Hands its arguments on as they are; ``--help`` lists them."""

    command: ClassVar[str]
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("args", nargs=argparse.REMAINDER, help="see --help of the command itself")

    def run_from_argv(self, argv: list[str]) -> None:
        own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for option in ("--settings", "--pythonpath"):  # Django has read them already
            own.add_argument(option)
        for option in (*COLOURS, "--skip-checks"):  # of which there are none
            own.add_argument(option, action="store_true")
        given, rest = own.parse_known_args(argv[2:])
        for option, variable in COLOURS.items():
            if vars(given)[option.removeprefix("--").replace("-", "_")]:
                os.environ[variable] = "1"
        sys.exit(self._run(rest))

    def handle(self, *args: str, **options: Any) -> None:
        with redirect_stdout(options.get("stdout") or sys.stdout):
            status = self._run(list(args))
        if status:
            raise CommandError(f"tier_{self.command} ended with status {status}", returncode=status)

    def _run(self, args: list[str]) -> int:
        try:
            from ...cli.app import run
        except ModuleNotFoundError as error:
            raise CommandError(f'this needs more packages: pip install "tier-middleware[cli]" ({error.msg})') from error
        return run([self.command, *args], _client)


def _client(base_url: str | None = None, **options: Any) -> Tier:
    return Tier.on(project().core) if base_url is None else Tier(base_url, **options)
