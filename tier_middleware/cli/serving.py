"""``tier-middleware serve``: an engine as a Tier server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from . import output

__all__ = ["serve"]


def serve(
    context: typer.Context,
    addr: Annotated[str, typer.Option("--addr", metavar="HOST:PORT", help="Port 0: a free one.")] = "127.0.0.1:8080",
    base_url: Annotated[
        str | None, typer.Option("--base-url", metavar="URL", help="The engine; default TIER_BASE_URL.")
    ] = None,
    pricing: Annotated[Path | None, typer.Option("--pricing", metavar="FILE", help="A pricing.json to push.")] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", help="Processes, on one SQLite file.")] = 1,
    public_url: Annotated[
        str | None, typer.Option("--public-url", metavar="URL", help="Where people reach its pages.")
    ] = None,
) -> None:
    """Serve an engine as Tier's API, until Ctrl-C. Asks for TIER_API_KEY as HTTP Basic user name, where it is set."""
    try:
        from ..server.process import Options, run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tier_middleware"):
            raise
        raise ConfigurationError(
            f'serve needs more packages: pip install "tier-middleware[serve]" ({error.msg})'
        ) from error
    run(
        Options(addr, base_url or context.obj.base_url, None if pricing is None else str(pricing), public_url, workers),
        say=_say,
    )


def _say(text: str) -> None:
    output.print_line(text)
    sys.stdout.flush()  # whoever waits for it may read from a pipe
