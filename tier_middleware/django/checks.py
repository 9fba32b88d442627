"""``manage.py check``: what is wrong with the settings, before a request finds out."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as Warn
from django.db import connections
from django.urls import get_resolver
from django.urls.resolvers import URLResolver
from django.utils.module_loading import import_string

from ..errors import TierError
from ..names import nearest
from ..pricing import read_model
from .engine import DjangoEngine
from .middleware import TierMiddleware
from .project import Project, given_settings, project_of

__all__ = ["check_settings"]

OURS: Final = "tier_middleware.django.TierMiddleware"
AUTHENTICATION: Final = "django.contrib.auth.middleware.AuthenticationMiddleware"


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """All that can be known without opening the engine."""
    found = list(_middleware(list(settings.MIDDLEWARE)))
    try:
        ours = project_of(given_settings())
    except TierError as error:
        return [*found, Error(error.message, id="tier_middleware.E001")]
    return [*found, *_callables(ours), *_pricing(ours), *_names(ours), *_transactions(ours)]


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
