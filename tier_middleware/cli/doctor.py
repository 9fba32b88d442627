"""What ``tier-middleware doctor`` looks at, step by step. It only looks: nothing is created, migrated or pushed."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal, NamedTuple

from .. import __file__ as package_file
from .. import __version__
from ..client import Tier
from ..clock import Milliseconds
from ..core import Core
from ..engine_urls import outbox_path
from ..engines.schema import APPLICATION_ID, MIGRATIONS
from ..errors import TierError
from ..model import Model
from ..names import nearest
from ..ops import Busy, Pull
from ..pricing import difference_text, read_model
from ..reporting.outbox import Outbox
from ..settings import DEFAULT_URL, Settings
from .pushing import fates

__all__ = ["EXTRAS", "Finding", "bare", "database_path", "findings", "is_missing"]

EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "starlette": ("starlette",),
    "fastapi": ("fastapi",),
    "django": ("django",),
    "drf": ("django", "rest_framework"),
    "http": ("httpx",),
    "cli": ("typer", "rich"),
    "serve": ("typer", "rich", "starlette", "jinja2", "uvicorn"),
    "demo": ("typer", "rich", "fastapi", "httpx", "itsdangerous", "python_multipart", "uvicorn"),
}
"""The modules that the extras of pyproject.toml bring."""

_FRAMEWORKS: Final = ("starlette", "fastapi", "django")
_SHOWN: Final = ("TIER_PRICING", "TIER_DEFAULT_PLAN", "TIER_OUTBOX", "TIER_PUBLIC_URL")  # the others may hold secrets
_VARIABLES: Final = ("TIER_BASE_URL", "TIER_API_KEY", *_SHOWN)


class Finding(NamedTuple):
    status: Literal["ok", "warn", "fail"]
    check: str
    detail: str


def bare(tier: Tier) -> Tier:
    """A client of the same engine that pushes, checks and delivers nothing when it opens."""
    core = Core(replace(tier.core.settings, pricing=None, default_plan=None), None)
    core.backup = None
    return Tier.on(core)


def database_path(tier: Tier) -> Path | None:
    """The file of the embedded engine; None for other engines."""
    path = getattr(tier.core.engine, "path", None)
    return path if isinstance(path, Path) else None


def is_missing(path: Path | None) -> bool:
    """Whether an embedded engine's database has yet to be made; SQLite takes an empty file for none."""
    return path is not None and (not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path)))


def findings(
    base_url: str | None, environ: Mapping[str, str], make: Callable[[str | None], Tier] = Tier
) -> Iterator[Finding]:
    """All checks in order; one that the next ones build on ends them when it fails."""
    yield Finding("ok", "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    yield Finding("ok", "package", f"tier_middleware {__version__} in {Path(package_file).parent}")
    yield _extras()
    yield from _environment(environ)
    try:
        tier = make(base_url)
    except TierError as error:
        yield Finding("fail", "settings", error.message)
        return
    settings = tier.core.settings
    yield Finding("ok", "base URL", settings.base_url + (" (the default)" if settings.base_url == DEFAULT_URL else ""))
    path = database_path(tier)
    outbox = getattr(tier.core.engine, "outbox", None)
    if isinstance(outbox, Outbox):
        yield from _server(tier, outbox)
    elif path is None:
        yield Finding("warn", "database", "in memory: each process begins with an empty one")
        yield from _model(settings, Model())
    else:
        yield from _database(tier, path)


def _server(tier: Tier, outbox: Outbox) -> Iterator[Finding]:
    """A Tier server, and what waits to be sent to it."""
    if is_missing(outbox.path):
        yield Finding("ok", "outbox", f"{outbox.path} does not exist yet; the first start creates it")
        yield _folder(outbox.path, "the outbox")
    else:
        found = _outbox(outbox.path, tier.core.now_ms)
        yield found
        if found.status == "fail":
            return
    try:
        stored = tier.core.engine.attempt(Pull())  # without opening, which creates an outbox
    except TierError as error:
        yield Finding("fail", "server", error.message)
        return
    finally:
        tier.core.engine.close()
    yield Finding("ok", "server", "answers")
    yield from _model(tier.core.settings, stored)


def _outbox(path: Path, now_ms: Milliseconds) -> Finding:
    """What waits in an outbox that exists."""
    try:
        with closing(Outbox(path, now_ms)) as found:
            stock = found.stock()
    except (TierError, Busy) as error:
        return Finding("fail", "outbox", str(error))
    waiting = ", ".join(f"{part.reports} {state}" for state, part in stock.items()) or "nothing in it"
    needs_person = "held" in stock or "buried" in stock
    advice = "; see tier-middleware outbox list" if needs_person else ""
    return Finding("warn" if needs_person else "ok", "outbox", f"{path}: {waiting}{advice}")


def _extras() -> Finding:
    installed = [extra for extra, modules in EXTRAS.items() if all(find_spec(module) for module in modules)]
    others = [extra for extra in EXTRAS if extra not in installed]
    detail = f"installed: {', '.join(installed) or 'none'}" + (f"; not: {', '.join(others)}" if others else "")
    if any(extra in installed for extra in _FRAMEWORKS):
        return Finding("ok", "extras", detail)
    return Finding("warn", "extras", f"{detail}; no web framework that this package knows is installed")


def _environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    given = [name for name in _VARIABLES if environ.get(name)]
    shown = [f"{name}={environ[name]}" if name in _SHOWN else f"{name} is set" for name in given]
    yield Finding("ok", "environment", ", ".join(shown) or "no TIER_... variable is set")
    for name in sorted(environ):
        meant = nearest(name, _VARIABLES) if name.startswith("TIER_") and name not in _VARIABLES else None
        if meant is not None:
            yield Finding("warn", "environment", f"{name} is not read; did you mean {meant}?")


def _database(tier: Tier, path: Path) -> Iterator[Finding]:
    folder = _folder(path, "the database")
    yield folder
    if folder.status == "fail":
        return
    if is_missing(path):
        yield Finding("warn", "database", f"{path} does not exist yet; the first start, or a push, creates it")
        yield from _model(tier.core.settings, Model())
        return
    found = list(_schema(path))
    yield from found
    if any(finding.status != "ok" for finding in found):  # opening would migrate the file, or fail in the same way
        return
    try:
        with bare(tier) as opened:
            stored = opened.pull()
    except TierError as error:
        yield Finding("fail", "opens", error.message)
        return
    yield Finding("ok", "opens", "for reading and writing")
    kept = outbox_path(tier.core.settings)
    if not is_missing(kept):  # made when the database was away
        yield _outbox(kept, tier.core.now_ms)
    yield from _model(tier.core.settings, stored)


def _folder(path: Path, what: str) -> Finding:
    if not path.parent.is_dir():
        return Finding("fail", "folder", f"{path.parent} does not exist; create it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return Finding("fail", "folder", f"{path.parent} is not writable: SQLite keeps its log beside {what}")
    return Finding("ok", "folder", f"{path.parent} is writable")


def _schema(path: Path) -> Iterator[Finding]:
    if path.is_dir():
        yield Finding("fail", "database", f"{path} is a folder; name a file")
        return
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            application, version, mode = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("application_id", "user_version", "journal_mode")
            )
    except sqlite3.Error as error:
        yield Finding("fail", "database", f"{path} cannot be read: {error}")
        return
    if application != APPLICATION_ID:
        yield Finding("fail", "database", f"{path} is a database of another application; name a file of its own")
        return
    yield Finding("ok" if os.access(path, os.W_OK) else "fail", "database", str(path) + _not_writable(path))
    yield _version(version)
    yield Finding(
        "ok" if mode == "wal" else "warn", "journal mode", mode if mode == "wal" else f"{mode}; the next start sets wal"
    )


def _not_writable(path: Path) -> str:
    return "" if os.access(path, os.W_OK) else " is not writable"


def _version(version: int) -> Finding:
    newest = len(MIGRATIONS)
    if version > newest:
        return Finding("fail", "schema", f"version {version}, this package knows {newest}; upgrade the package")
    if version < newest:
        return Finding("warn", "schema", f"version {version}; the next start brings it to {newest}")
    return Finding("ok", "schema", f"version {version}, the newest")


def _model(settings: Settings, stored: Model) -> Iterator[Finding]:
    plans = dict(stored.plans)
    count = f"{len(plans)} plan{'' if len(plans) == 1 else 's'} stored"
    if settings.pricing is None and not plans:
        yield Finding("warn", "pricing model", f"{count}; push one: tier-middleware push pricing.json")
    elif plans:
        yield Finding("ok", "pricing model", count)
    if settings.pricing is not None:
        try:
            model = read_model(settings.pricing)
        except TierError as error:
            yield Finding("fail", "TIER_PRICING", error.message)
            return
        conflicts = [difference for fate in fates(stored, model) for difference in fate.differences]
        for conflict in conflicts:
            text = f"{difference_text(conflict)}; plans are immutable: raise the version"
            yield Finding("fail", "TIER_PRICING", text)
        if not conflicts:
            new = len(model.plans.keys() - plans.keys())
            yield Finding("ok", "TIER_PRICING", f"{len(model.plans)} plans, {new} of them new; pushed at start")
        plans |= model.plans
    yield _default_plan(settings.default_plan, plans)


def _default_plan(name: str | None, plans: Mapping[str, object]) -> Finding:
    if name is None:
        return Finding("ok", "default plan", "not set: an org without a subscription has no features")
    if name in plans:
        return Finding("ok", "default plan", name)
    hint = nearest(name, plans)
    meant = f", did you mean {hint!r}?" if hint else ""
    return Finding("fail", "default plan", f"TIER_DEFAULT_PLAN: {name!r} is not in the pricing model{meant}")
