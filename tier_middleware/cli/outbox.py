"""``tier-middleware outbox``: what the engine has not got yet, and what a person has to decide about it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast, get_args

import typer
from msgspec import to_builtins
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..client import Tier
from ..clock import milliseconds, moment
from ..engine_urls import outbox_path
from ..errors import ConfigurationError, InvalidRequest
from ..reporting.batches import Batch, State
from ..reporting.outbox import Outbox
from . import output
from .moving import written

if TYPE_CHECKING:
    from ..reporting.reporter import Reporter

__all__ = ["app"]

STATES: Final[tuple[State, ...]] = get_args(State)
DECIDED: Final[tuple[State, ...]] = ("held", "buried")  # by a person, or not at all
FLUSH_SECONDS: Final = 1.0  # between two steps of the bar
COLUMNS: Final = ("id", "state", "action", "org", "feature", "n", "reports", "since (UTC)", "code", "reason")

Ids = Annotated[list[int] | None, typer.Argument(metavar="ID...", help="As in `outbox list`.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All that is held or buried.")]
File = Annotated[
    str | None, typer.Option("--outbox", metavar="FILE", help="Default TIER_OUTBOX, else that of the engine.")
]
BaseUrl = Annotated[str | None, typer.Option("--base-url", metavar="URL", help="The engine; default TIER_BASE_URL.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(no_args_is_help=True, help="Show and decide what the engine has not got yet.")


@contextmanager
def _opened(context: typer.Context, file: str | None) -> Iterator[Outbox]:
    path = Path(os.path.abspath(file)) if file else outbox_path(context.obj.make(context.obj.base_url).core.settings)
    if not path.exists():
        raise ConfigurationError(f"TIER_OUTBOX: there is no outbox {str(path)!r}; see --outbox", path="TIER_OUTBOX")
    with closing(Outbox(path, milliseconds(None))) as found:
        yield found


def _batches(outbox: Outbox, states: Sequence[State]) -> Iterator[Batch]:
    after = 0
    while found := outbox.listed(states, after=after):
        yield from found
        after = found[-1].id


def _json(batch: Batch) -> dict[str, Any]:
    shown = batch._asdict()
    del shown["lease_ms"]
    shown["detail"] = to_builtins(batch.detail)
    for name in ("first", "due", "at"):
        ms = shown.pop(f"{name}_ms")
        shown[f"{name}_at"] = output.rfc3339(moment(ms)) if ms else None
    return shown


@app.command("list")
def list_(
    context: typer.Context,
    state: Annotated[
        list[str] | None, typer.Option(metavar="STATE", help=f"One of {', '.join(STATES)}; default all.")
    ] = None,
    json: Json = False,
    outbox: File = None,
) -> None:
    """Show what is waiting, being sent, held (it may have been counted) or buried (refused for good)."""
    for name in state or ():
        if name not in STATES:
            raise typer.BadParameter(f"must be one of {', '.join(STATES)}, got {name!r}")
    with _opened(context, outbox) as found:
        batches = list(_batches(found, cast("list[State]", state) or STATES))
    if json or context.obj.json:
        output.print_json({"outbox": str(found.path), "batches": [_json(batch) for batch in batches]})
    elif batches:
        output.print_table(COLUMNS, map(_row, batches), numeric=("id", "n", "reports"))
    else:
        output.print_line("nothing is there")


def _row(batch: Batch) -> tuple[str, ...]:
    since = output.rfc3339(moment(batch.first_ms))
    numbers = str(batch.n), str(batch.reports)
    return str(batch.id), batch.state, batch.action, batch.org, batch.feature, *numbers, since, batch.code, batch.reason


def _chosen(outbox: Outbox, ids: Sequence[int] | None, is_all: bool) -> list[int]:
    decided = [batch.id for batch in _batches(outbox, DECIDED)]
    if is_all:
        return decided
    for id in ids or ():
        if id not in decided:
            raise InvalidRequest(f"id: must be that of a batch that is held or buried, got {id}", path="id")
    return list(ids or ())


@app.command()
def retry(
    context: typer.Context,
    ids: Ids = None,
    is_all: All = False,
    json: Json = False,
    outbox: File = None,
    base_url: BaseUrl = None,
) -> None:
    """Send what waits, now. With IDs, or --all, also what is held or buried: what was held may then count twice."""
    context.obj = context.obj.or_else(base_url, json)
    with _opened(context, outbox) as found, _delivering(context, found) as (tier, reporter):
        chosen = _chosen(found, ids, is_all)
        found.requeue(chosen)
        _drain(found, reporter)
        tier.close()
        stock = found.stock()
    if json or context.obj.json:
        output.print_json({"requeued": len(chosen), "left": {state: part.n for state, part in stock.items()}})
    elif stock:
        left = ", ".join(f"{part.reports} reports {state}" for state, part in sorted(stock.items()))
        output.print_line(f"left: {left}; see `tier-middleware outbox list`")
    else:
        output.print_line("all is delivered")


@contextmanager
def _delivering(context: typer.Context, outbox: Outbox) -> Iterator[tuple[Tier, Reporter]]:
    """The engine that an outbox is for."""
    with closing(context.obj.make(context.obj.base_url, outbox=outbox.path)) as tier:
        reporter = tier.core.reporter
        if reporter is None:
            raise ConfigurationError("TIER_BASE_URL: must name the engine that these reports are for")
        reporter.outbox.open()  # which says whether they are
        yield tier, reporter


def _drain(outbox: Outbox, reporter: Reporter) -> None:
    """Send for as long as it helps, with a bar where somebody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("delivering"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        left = total = _waiting(outbox)
        task = progress.add_task("", total=total)
        while left:
            is_done = reporter.flush(FLUSH_SECONDS)
            before, left = left, _waiting(outbox)
            progress.update(task, completed=total - left)
            if is_done or left >= before:
                return


def _waiting(outbox: Outbox) -> int:
    return sum(part.batches for state, part in outbox.stock().items() if state in ("open", "sealed"))


@app.command()
def drop(context: typer.Context, ids: Ids = None, is_all: All = False, json: Json = False, outbox: File = None) -> None:
    """Delete what is held or buried, by ID or --all: it was counted after all, or never will be."""
    with _opened(context, outbox) as found:
        count = found.remove(_chosen(found, ids, is_all))
    if json or context.obj.json:
        output.print_json({"dropped": count})
    else:
        output.print_line(f"dropped {count}")


@app.command()
def export(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write; - is standard output.")] = "-",
    outbox: File = None,
) -> None:
    """Write all that is in the outbox as JSON lines."""
    with _opened(context, outbox) as found:
        count = written((json.dumps(_json(batch)).encode() + b"\n" for batch in _batches(found, STATES)), file)
    if file != "-":
        output.print_line(f"exported {count} batches to {file}")
