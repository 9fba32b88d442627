"""``settings.TIER`` and what it sets up: one engine for the process, and what the middleware does with it.

The environment answers what the setting leaves open. Relative paths are relative to ``BASE_DIR``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from django.conf import settings
from django.utils.functional import Promise
from django.utils.module_loading import import_string

import tier_middleware

from ..client import AsyncTier, Tier
from ..core import Core
from ..engine_urls import DEFAULT_OUTBOX
from ..errors import ConfigurationError
from ..gate_options import GateOptions
from ..names import nearest
from ..settings import DEFAULT_URL
from .routes import GatedRoute, gated_routes

__all__ = ["Project", "follow_settings", "given_settings", "project", "project_of", "sync_tier", "take_over", "tier"]

TIER_KEYS: Final = (
    "BASE_URL", "API_KEY", "PRICING", "DEFAULT_PLAN", "TIMEOUT", "ON_ERROR", "RESERVATION_SECONDS", "FLUSH_SECONDS",
    "ON_LOSS", "LEDGER_DAYS", "OUTBOX", "CLOCK",
)  # fmt: skip
MIDDLEWARE_KEYS: Final = ("TIER", "ORG", "UPGRADE_URL", "ON_REFUSED", "ON_DISCONNECT", "IDEMPOTENCY", "ROUTES")
KEYS: Final = (*TIER_KEYS, *MIDDLEWARE_KEYS)
DOTTED: Final = ("ON_ERROR", "ON_LOSS", "CLOCK", "TIER", "ORG", "ON_REFUSED")
WORDS: Final = {"ON_ERROR": ("allow", "deny", "stale"), "ON_LOSS": ("fail",)}


@dataclass(frozen=True, slots=True)
class Project:
    """What ``settings.TIER`` comes to."""

    core: Core
    options: GateOptions
    routes: tuple[GatedRoute, ...]
    is_own: bool
    """Whether the engine was made for these settings, and is closed with them."""


def project_of(given: Mapping[str, Any]) -> Project:
    """What a setting comes to; opens nothing. Raises `ConfigurationError` that names the key and the value."""
    for key in given:
        if key not in KEYS:
            hint = nearest(str(key), KEYS)
            meant = f"; did you mean {hint!r}?" if hint else f"; known: {', '.join(KEYS)}"
            raise ConfigurationError(f"TIER[{key!r}]: unknown key{meant}", path=f"TIER[{key!r}]")
    options = {key: _imported(key, value) for key, value in given.items() if value is not None}
    try:
        client = options.get("TIER")
        core = _core(options) if client is None else _core_of(client, options)
        gates = GateOptions(
            options.get("ORG"),
            _page(options.get("UPGRADE_URL")),
            options.get("ON_REFUSED"),
            on_disconnect=options.get("ON_DISCONNECT"),
            idempotency=options.get("IDEMPOTENCY"),
        )
    except ConfigurationError as error:
        raise _by_key(error, given) from error
    return Project(core, gates, gated_routes(options.get("ROUTES", {})), client is None)


def _core(options: Mapping[str, Any]) -> Core:
    chosen = {key.lower(): options[key] for key in TIER_KEYS if key in options}
    chosen["base_url"] = _beside_project(options.get("BASE_URL") or os.environ.get("TIER_BASE_URL") or DEFAULT_URL)
    pricing = options.get("PRICING") or os.environ.get("TIER_PRICING") or None
    is_path = isinstance(pricing, os.PathLike) or (isinstance(pricing, str) and "{" not in pricing)
    chosen["pricing"] = _base_dir() / str(pricing) if is_path else pricing
    outbox = options.get("OUTBOX") or os.environ.get("TIER_OUTBOX")
    if outbox or not str(chosen["base_url"]).startswith("sqlite:"):  # whose is beside its database
        chosen["outbox"] = _base_dir() / str(outbox or DEFAULT_OUTBOX)
    return Tier(**chosen).core


def _core_of(client: object, options: Mapping[str, Any]) -> Core:
    if not isinstance(client, Tier | AsyncTier):
        raise ConfigurationError(f'TIER["TIER"]: must be a Tier or an AsyncTier, got {client!r}', path="TIER")
    both = next((key for key in TIER_KEYS if key in options), None)
    if both is not None:
        raise ConfigurationError(f'TIER["{both}"]: the client in TIER["TIER"] has options of its own', path=both)
    return client.core


def _page(url: Any) -> Any:
    """What ``reverse_lazy`` answers is a text once the URLs are there, and another one in each language."""
    return partial(str, url) if isinstance(url, Promise) else url


def _base_dir() -> Path:
    return Path(getattr(settings, "BASE_DIR", None) or Path.cwd())


def _beside_project(base_url: Any) -> Any:
    """The URL of a database, with a path that is relative made relative to the project's folder."""
    if not isinstance(base_url, str) or not base_url.startswith("sqlite:///"):
        return base_url
    path, question, query = base_url.removeprefix("sqlite:///").partition("?")
    if not path or path.startswith("/") or urlsplit(base_url).fragment or path.endswith(":memory:"):
        return base_url  # absolute, or wrong: then it is shown as it was written
    return f"sqlite:///{quote(str(_base_dir() / unquote(path)))}{question}{query}"


def _imported(key: str, value: Any) -> Any:
    """What a dotted path names, for the options that may be one."""
    if key not in DOTTED or not isinstance(value, str) or value in WORDS.get(key, ()):
        return value
    try:
        return import_string(value)
    except ImportError as error:
        raise ConfigurationError(
            f"TIER[{key!r}]: {value!r} cannot be imported ({error}); expected the dotted path of a callable"
            + (f", or {' or '.join(map(repr, WORDS[key]))}" if key in WORDS else ""),
            path=f"TIER[{key!r}]",
        ) from error


def _by_key(error: ConfigurationError, given: Mapping[str, Any]) -> ConfigurationError:
    """The error by the name of the key that it is about; of a variable, where that is what was read."""
    key = (error.path or "").removeprefix("TIER_").upper()
    if key not in given or error.message.startswith("TIER["):
        return error
    message = error.message.replace(f"{error.path}:", f"TIER[{key!r}]:", 1)
    return ConfigurationError(message, path=f"TIER[{key!r}]")


def given_settings() -> Mapping[str, Any]:
    """``settings.TIER`` as the project wrote it."""
    given = getattr(settings, "TIER", None)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"TIER: must be a dict of options, got {given!r}", path="TIER")
    return given


# ---- the process's own ----------------------------------------------------------------------------------------------

_making: Final = threading.RLock()  # what a setting imports may ask for the clients
_made: Project | None = None


def project() -> Project:
    """What the settings of this process come to; made when first asked for."""
    global _made
    made = _made
    if made is None:
        with _making:
            if _made is None:
                _made = project_of(given_settings())
            made = _made
    return made


def follow_settings(*, setting: str, **kwargs: Any) -> None:
    """Begin anew with other settings, as ``override_settings`` makes them in tests."""
    global _made
    if setting in ("TIER", "BASE_DIR"):
        with _making:
            former, _made = _made, None
        if former is not None and former.is_own:
            former.core.close()


class ProjectTier(Tier):
    """The project's client. What ``settings.TIER`` says is read when it is first used, and again when it changes."""

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name == "core":
            return project().core
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class AsyncProjectTier(AsyncTier):
    """The async twin of `ProjectTier`."""

    def __init__(self) -> None:
        pass

    __getattr__ = ProjectTier.__getattr__


sync_tier: Final = ProjectTier()
tier: Final = AsyncProjectTier()


def take_over() -> None:
    """Make the process-wide clients the project's, those too that a module has asked for before the apps were there."""
    for name, ours in (("tier", tier), ("sync_tier", sync_tier)):
        former = vars(tier_middleware).get(name, ours)
        if former is not ours:
            former.core.close()
            vars(former).clear()
            former.__class__ = type(ours)  # the module has bound this very object
        setattr(tier_middleware, name, ours)
