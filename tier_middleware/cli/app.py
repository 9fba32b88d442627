"""The commands of ``tier-middleware``. Each is a thin shell: what it says on a terminal is what `Tier` answers.

Exit status: 0 done, 1 an error (one line on stderr), 2 wrong usage, 3 the answer of ``can`` is no, 130 interrupted.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import typer

from .. import __version__
from ..answers import Answer
from ..client import Tier
from ..errors import ConfigurationError, PricingError, TierError
from ..model import Model
from ..names import nearest
from ..pricing import difference_text, dumps, json_value, read_model
from . import outbox, output
from .arguments import time_for, units_for
from .doctor import bare, database_path, findings, is_missing
from .moving import Counting, reading, watched, written
from .pushing import PlanFate, fates, pushed
from .serving import serve

__all__ = ["app", "run"]

REFUSED: Final = 3
STATUS_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
AMOUNTS: Final = {"ignore_unknown_options": True}  # "-1" is an amount that somebody got wrong, not an option

Org = Annotated[str, typer.Argument(metavar="ORG", help="As in org:acme.", show_default=False)]
Feature = Annotated[str, typer.Argument(metavar="FEATURE", help="As in feature:convert.", show_default=False)]
Units = Annotated[str, typer.Argument(metavar="N", help="Whole units.")]  # a str: "1.5" gets our own message
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="The engine; default TIER_BASE_URL, else sqlite:///tier.db."),
]

app = typer.Typer(
    name="tier-middleware",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 done, 1 an error, 2 wrong usage, 3 the answer of 'can' is no.",
)
app.add_typer(outbox.app, name="outbox")
app.command()(serve)


MakeTier: TypeAlias = Callable[..., Tier]


class Asked(NamedTuple):
    """The options that may stand before a command or after it, and how the client is made that they are for."""

    base_url: str | None = None
    json: bool = False
    make: MakeTier = Tier

    def or_else(self, base_url: str | None, json: bool) -> Asked:
        return self._replace(base_url=self.base_url if base_url is None else base_url, json=self.json or json)


def run(args: Sequence[str] | None = None, make: MakeTier = Tier) -> int:
    """Run a command; answers its exit status. An error, of this package or of writing, is one line on stderr.

    ``make`` makes the client of a URL, or of None for the settings at hand.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal can show every org, too
    try:
        status = _status(args, make)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # that reader has seen enough, as in `... | head`
            output.print_error(str(error))
        _discard_output()
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _status(args: Sequence[str] | None, make: MakeTier) -> int:
    try:
        app(args, prog_name="tier-middleware", obj=make)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except TierError as error:
        sys.stdout.flush()  # what was printed before stays before
        output.print_error(error.message)
        return 1
    return 0


def _discard_output() -> None:
    """What is still buffered cannot be written; without this the interpreter would try, and say so, at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- the engine -----------------------------------------------------------------------------------------------------


@contextmanager
def _open(asked: Asked, *, only_reads: bool = False) -> Iterator[Tier]:
    """The client of an engine that somebody has set up. Where nobody has, a command would only leave an empty file."""
    logging.getLogger("tier_middleware").addHandler(logging.NullHandler())  # what it says is in our own line
    tier = asked.make(asked.base_url, on_error="deny")  # "nobody knows" is no answer for a script
    tier = bare(tier) if only_reads else tier
    path = database_path(tier)
    if is_missing(path) and tier.core.settings.pricing is None:
        raise ConfigurationError(
            f"TIER_BASE_URL: there is no database {str(path)!r} yet; push a pricing model, or see --base-url",
            path="TIER_BASE_URL",
        )
    with tier:
        yield tier


def _stored(tier: Tier) -> Model:
    """The plans now stored, without making a database where there is none."""
    if is_missing(database_path(tier)):
        return Model()
    with tier:
        return tier.pull()


# ---- options before the command -------------------------------------------------------------------------------------


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"tier-middleware {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    base_url: BaseUrl = None,
    json: Json = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Plans, limits and usage of your orgs, on the engine that your application uses."""
    context.obj = Asked(base_url, json, context.obj or Tier)


def _asked(context: typer.Context, base_url: str | None, json: bool) -> Asked:
    outer: Asked = context.obj
    return outer.or_else(base_url, json)


# ---- the pricing model ----------------------------------------------------------------------------------------------


@app.command()
def push(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pricing.json.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and store nothing.")] = False,
    json: Json = False,
    base_url: BaseUrl = None,
) -> None:
    """Store the plans of a pricing model. One that is stored with other content is an error: then nothing is stored."""
    asked = _asked(context, base_url, json)
    model = read_model(file)
    tier = bare(asked.make(asked.base_url))  # TIER_PRICING and the default plan are not what is pushed here
    if dry_run:
        done = fates(_stored(tier), model)
    else:
        with tier:
            done = pushed(tier.push(model))
    _print_fates(done, asked, is_dry_run=dry_run)
    conflicts = [fate.plan for fate in done if fate.status == "conflict"]
    if conflicts:
        raise PricingError(
            f"{', '.join(conflicts)}: stored with other content, and plans are immutable: raise the version"
        )


def _print_fates(done: Sequence[PlanFate], asked: Asked, *, is_dry_run: bool) -> None:
    if asked.json:
        output.print_json({"dry_run": is_dry_run, "plans": [_fate_json(fate) for fate in done]})
        return
    if not done:
        output.print_line("the model has no plans")
    width = max((len(fate.plan) for fate in done), default=0)
    for fate in done:
        for text in map(difference_text, fate.differences):
            output.print_line(f"{fate.plan:{width}}  ", (fate.status, "red"), f"  {text}")
        if not fate.differences:
            output.print_line(f"{fate.plan:{width}}  ", (fate.status, "green"))


def _fate_json(fate: PlanFate) -> dict[str, object]:
    found = [
        {"path": one.path, "kind": one.kind, "before": json_value(one.before), "after": json_value(one.after)}
        for one in fate.differences
    ]
    return {"plan": fate.plan, "status": fate.status, "differences": found}


@app.command()
def pull(context: typer.Context, json: Json = False, base_url: BaseUrl = None) -> None:
    """Print all stored plans as a pricing.json, which can be pushed again. (It is JSON with --json and without.)"""
    with _open(_asked(context, base_url, json), only_reads=True) as tier:
        text = dumps(tier.pull())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # what push reads
    sys.stdout.write(text + "\n")


# ---- orgs -----------------------------------------------------------------------------------------------------------


@app.command()
def limits(context: typer.Context, org: Org, json: Json = False, base_url: BaseUrl = None) -> None:
    """Show what an org may use in its current billing period, and has used."""
    asked = _asked(context, base_url, json)
    with _open(asked, only_reads=True) as tier:
        found = tier.lookup_limits(org)
    if asked.json:
        output.print_json({"org": org, "usage": [output.usage_json(usage) for usage in found]})
    elif found:
        output.print_table(output.USAGE_COLUMNS, map(output.usage_row, found), numeric=("used", "limit", "remaining"))
    else:
        output.print_line(f"{org} has no features: it has no subscription now")


@app.command(context_settings=AMOUNTS)
def can(
    context: typer.Context, org: Org, feature: Feature, n: Units = "1", json: Json = False, base_url: BaseUrl = None
) -> None:
    """Ask whether an org may use N units of a feature now. Exit status: 0 yes, 3 no, 1 an error."""
    asked, units = _asked(context, base_url, json), _units(n)
    with _open(asked) as tier:
        answer = tier.can(org, feature, units)
        known = tier.core.model.features
    if answer.err is not None:
        raise answer.err
    if asked.json:
        output.print_json({"n": units, **_answer_json(answer)})
    else:
        output.print_line(("yes", "green") if answer else ("no", "red"), f": {_why(answer, units, known)}")
    if not answer:
        raise typer.Exit(REFUSED)


def _answer_json(answer: Answer) -> dict[str, object]:
    names = ("ok", "org", "feature", "used", "limit", "remaining", "reason")
    return {name: getattr(answer, name) for name in names}


def _why(answer: Answer, n: int, known: frozenset[str]) -> str:
    who, what = answer.org, answer.feature
    if answer.reason == "no_entitlement":
        text = f"{who} has not got {what} (no_entitlement)"
        if what in known:
            return f"{text}; put it on a plan that has: tier-middleware subscribe ORG PLAN, or set TIER_DEFAULT_PLAN"
        meant = nearest(what, known)
        return f"{text}, which is in no plan" + (f"; did you mean {meant}?" if meant else "")
    limit = (
        "unlimited" if answer.limit is None else f"{answer.used} of {answer.limit} used, {answer.remaining} remaining"
    )
    if answer.ok:
        return f"{who} may use {n} of {what} ({limit})"
    return f"{who} may not use {n} of {what}: {answer.reason} ({limit})"


@app.command(context_settings=AMOUNTS)
def report(
    context: typer.Context,
    org: Org,
    feature: Feature,
    n: Units = "1",
    at: Annotated[str | None, typer.Option(metavar="RFC3339", help="When it was used; default now.")] = None,
    clobber: Annotated[bool, typer.Option("--clobber", help="Make N the whole usage of that billing period.")] = False,
    key: Annotated[str | None, typer.Option(metavar="K", help="Counts once, however often it is sent.")] = None,
    json: Json = False,
    base_url: BaseUrl = None,
) -> None:
    """Count N units of a feature as used. Never refused for being over the limit."""
    asked, units = _asked(context, base_url, json), _units(n)
    moment = None if at is None else time_for(at)
    with _open(asked) as tier:
        tier.report(org, feature, units, at=moment, clobber=clobber, key=key)
        usage = tier.lookup_limit(org, feature)
    if asked.json:
        shown_at = None if moment is None else output.rfc3339(moment)
        said = {"org": org, "feature": feature, "n": units, "at": shown_at, "clobber": clobber, "key": key}
        output.print_json({**said, "usage": output.usage_json(usage)})
    else:
        limit = "unlimited" if usage.limit is None else f"a limit of {usage.limit}"
        output.print_line(f"reported {units} of {feature} for {org}; now {usage.used} used, {limit}")


@app.command()
def subscribe(
    context: typer.Context,
    org: Org,
    plans: Annotated[
        list[str],
        typer.Argument(metavar="PLAN...", help="As in plan:pro@1, or feature:x@plan:pro@1.", show_default=False),
    ],
    json: Json = False,
    base_url: BaseUrl = None,
) -> None:
    """Put an org on plans from now on, instead of those it has."""
    asked = _asked(context, base_url, json)
    with _open(asked) as tier:
        tier.subscribe(org, plans)
    if asked.json:
        output.print_json({"org": org, "features": plans})
    else:
        output.print_line(f"{org} is on {', '.join(plans)}")


@app.command()
def cancel(context: typer.Context, org: Org, json: Json = False, base_url: BaseUrl = None) -> None:
    """End an org's subscription now."""
    asked = _asked(context, base_url, json)
    with _open(asked) as tier:
        tier.cancel(org)
    if asked.json:
        output.print_json({"org": org, "features": []})
    else:
        output.print_line(f"{org} is cancelled")


def _units(text: str) -> int:
    if text.startswith("--"):  # see AMOUNTS
        raise typer.BadParameter(f"No such option: {text}")
    return units_for(text)


# ---- moving to another engine ---------------------------------------------------------------------------------------


@app.command("export")
def export_(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write; - is standard output.")] = "-",
    json: Json = False,
    base_url: BaseUrl = None,
) -> None:
    """Write all that is stored as JSON lines: plans, orgs, usage, ledger, keys. Open reservations are left out."""
    asked = _asked(context, base_url, json)
    with _open(asked, only_reads=True) as tier:
        count = written(watched(tier.export(), "exporting"), file, database_path(tier))
    if file != "-":
        _print_moved(asked, "exported", count, f"to {file}")


@app.command("import")
def import_(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="What export wrote; - is standard input.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace orgs that are there already. Drops their open reservations.")
    ] = False,
    json: Json = False,
    base_url: BaseUrl = None,
) -> None:
    """Take in what export wrote: all of it, or nothing. With --base-url memory:// it is only checked."""
    asked = _asked(context, base_url, json)
    counted = Counting()
    with reading(file) as lines, bare(asked.make(asked.base_url)) as tier:
        tier.load(counted(watched(lines, "importing")), replace=replace)
    _print_moved(asked, "imported", counted.lines, f"from {file}")


def _print_moved(asked: Asked, done: str, lines: int, where: str) -> None:
    if asked.json:
        output.print_json({"lines": lines})
    else:
        output.print_line(f"{done} {lines} lines {where}")


# ---- help -----------------------------------------------------------------------------------------------------------


@app.command()
def doctor(context: typer.Context, json: Json = False, base_url: BaseUrl = None) -> None:
    """Check the installation, the settings and the database. Changes nothing. Exit status 1 where a check fails."""
    asked = _asked(context, base_url, json)
    found = []
    for finding in findings(asked.base_url, os.environ, asked.make):
        found.append(finding)
        if not asked.json:
            style = STATUS_STYLES[finding.status]
            output.print_line((f"{finding.status:4}", style), f"  {finding.check:13}  {finding.detail}")
    is_well = all(finding.status != "fail" for finding in found)
    if asked.json:
        output.print_json({"ok": is_well, "checks": [finding._asdict() for finding in found]})
    if not is_well:
        raise typer.Exit(1)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running, until Ctrl-C.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: a free one.")] = None,
    django: Annotated[bool, typer.Option("--django", help="The example for Django, not that for FastAPI.")] = False,
) -> None:
    """Run the example application and walk through it."""
    try:
        module: Any = importlib.import_module("tier_middleware.demo")
        status: int = module.main(keep=keep, port=port, django=django)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tier_middleware"):
            raise
        raise ConfigurationError(
            f'the demo needs more packages: pip install "tier-middleware[demo]" ({error.msg})'
        ) from error
    raise typer.Exit(status)
