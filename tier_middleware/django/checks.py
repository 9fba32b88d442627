"""``manage.py check``: what is wrong with the settings, before a request finds out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Warn
from django.db import connections
from django.urls import NoReverseMatch, Resolver404, get_resolver
from django.urls.resolvers import LocalePrefixPattern, URLResolver
from django.utils.module_loading import import_string

from ..errors import ConfigurationError, TierError
from ..names import nearest
from ..pricing import read_model
from .engine import DjangoEngine
from .middleware import TierMiddleware
from .project import Project, given_settings, project_of

__all__ = ["check_settings"]

OURS: Final = "tier_middleware.django.TierMiddleware"
PARAMETER: Final = re.compile(r"<(?:(\w+):)?\w+>")
ID: Final = "123e4567-e89b-12d3-a456-426614174000"
EXAMPLES: Final = (
    {"int": "1", "str": "a", "slug": "a", "uuid": ID, "path": "a/b"},
    {"int": "2026", "str": "2026", "slug": "2026", "uuid": ID, "path": "2026"},
    {"int": "12", "str": ID, "slug": ID, "uuid": ID, "path": "a"},
)
AUTHENTICATION: Final = "django.contrib.auth.middleware.AuthenticationMiddleware"


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """All that can be known without opening the engine."""
    found = [*_middleware(list(settings.MIDDLEWARE)), *_commands()]
    try:
        ours = project_of(given_settings())
    except TierError as error:
        return [*found, Error(error.message, id="tier_middleware.E001")]
    for part in (_callables, _upgrade_page, _pricing, _names, _paths, _transactions):
        found.extend(part(ours))
    return found


def _middleware(listed: Sequence[str]) -> Iterator[CheckMessage]:
    at = next((index for index, name in enumerate(listed) if _is_ours(name)), None)
    if at is None:
        yield Error(
            f"MIDDLEWARE has no {OURS!r}: views that require a feature would fail",
            hint=f'MIDDLEWARE += ["{OURS}"]',
            id="tier_middleware.E002",
        )
        return
    if AUTHENTICATION in listed[at:]:
        yield Error(
            f"MIDDLEWARE has {listed[at]!r} before {AUTHENTICATION!r}: nobody would be logged in yet",
            hint="Make it the last.",
            id="tier_middleware.E003",
        )
    elif at != len(listed) - 1:
        yield Warn(
            f"MIDDLEWARE has {listed[-1]!r} after {listed[at]!r}: what it makes of a response would be counted as it "
            "was before, and what it raises is not seen",
            hint="Make it the last.",
            id="tier_middleware.W004",
        )


def _is_ours(name: str) -> bool:
    """Whether a line of MIDDLEWARE names our class, by whatever path, or a subclass of it."""
    try:
        found = import_string(name)
    except Exception:  # Django says it when the handler is made
        return False
    return isinstance(found, type) and issubclass(found, TierMiddleware)


def _callables(ours: Project) -> Iterator[CheckMessage]:
    for key, takes in (("ORG", ("request",)), ("ON_REFUSED", ("request", "refusal"))):
        function = getattr(ours.options, key.lower())
        if function is not None and not _takes(function, takes):
            yield Error(
                f"TIER[{key!r}]: must be a callable of ({', '.join(takes)}), got {function!r}",
                id="tier_middleware.E005",
            )


def _takes(function: Any, arguments: Sequence[str]) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # some builtins have none
        return True
    return True


def _upgrade_page(ours: Project) -> Iterator[CheckMessage]:
    try:
        ours.options.upgrade_page()
    except (NoReverseMatch, ConfigurationError) as error:  # of `reverse_lazy`; a text has been checked
        yield Error(f"TIER['UPGRADE_URL']: {error}", id="tier_middleware.E011")


def _commands() -> Iterator[CheckMessage]:
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        yield Warn(
            f"manage.py tier_push, tier_limits, tier_report and tier_doctor would fail: {' and '.join(missing)} cannot "
            "be imported",
            hint="pip install 'tier-middleware[cli]'",
            id="tier_middleware.W012",
        )


def _pricing(ours: Project) -> Iterator[CheckMessage]:
    pricing = ours.core.settings.pricing
    if pricing is None:
        return
    try:
        read_model(pricing)
    except TierError as error:
        yield Error(f"TIER['PRICING']: {error.message}", id="tier_middleware.E006")


def _names(ours: Project) -> Iterator[CheckMessage]:
    wanted = [route.name for route in ours.routes if route.name is not None]
    known = set(_view_names(get_resolver().url_patterns)) if wanted else set()
    for name in wanted:
        if name not in known:
            hint = nearest(name, known)
            yield Warn(
                f"TIER['ROUTES'][{name!r}]: no URL has this name, so nothing is gated by it",
                hint=f"Did you mean {hint!r}?" if hint else "A path begins with '/'.",
                id="tier_middleware.W007",
            )


def _paths(ours: Project) -> Iterator[CheckMessage]:
    by_path = [route for route in ours.routes if route.path is not None]
    if not by_path:
        return
    resolver = get_resolver()
    if any(isinstance(pattern.pattern, LocalePrefixPattern) for pattern in resolver.url_patterns):
        return  # what matches depends on the language of a request
    for route in by_path:
        examples = list(_examples(str(route.path)))
        if examples and not any(_is_found(resolver, f"/{example}") for example in examples):
            yield Warn(
                f"TIER['ROUTES']['/{route.path}']: no URL has a path like it, so nothing is gated by it",
                hint="A view can be named by its URL's name.",
                id="tier_middleware.W008",
            )


def _examples(path: str) -> Iterator[str]:
    """Some paths that a route is for; none where it has converters that are not Django's."""
    for values in EXAMPLES:
        example = PARAMETER.sub(lambda found: values.get(found[1] or "str", found[0]), path)  # noqa: B023  # used here
        if "<" not in example:
            yield example


def _is_found(resolver: URLResolver, path: str) -> bool:
    try:
        resolver.resolve(path)
    except Resolver404:
        return False
    return True


def _transactions(ours: Project) -> Iterator[CheckMessage]:
    engine = ours.core.engine
    if not isinstance(engine, DjangoEngine) or connections[engine.alias].vendor != "sqlite":
        return
    database = connections.settings[engine.alias]
    mode = str(database["OPTIONS"].get("transaction_mode") or "DEFERRED").upper()
    if database["ATOMIC_REQUESTS"] and mode == "DEFERRED":
        yield Warn(
            f"DATABASES[{engine.alias!r}]: under ATOMIC_REQUESTS, requests that read and then write while others do "
            "fail with 'database is locked', however long they would wait",
            hint=f'DATABASES[{engine.alias!r}]["OPTIONS"] = {{"transaction_mode": "IMMEDIATE"}}',
            id="tier_middleware.W010",
        )


def _view_names(patterns: Iterable[Any], namespace: str = "") -> Iterator[str]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            inner = f"{namespace}{pattern.namespace}:" if pattern.namespace else namespace
            yield from _view_names(pattern.url_patterns, inner)
        elif pattern.name:
            yield namespace + pattern.name
