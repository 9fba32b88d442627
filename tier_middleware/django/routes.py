"""``TIER["ROUTES"]``: gates for views that cannot be decorated, such as those of other people's apps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.urls.resolvers import RoutePattern

from ..errors import ConfigurationError, InvalidRequest
from ..requirement import Needs, Requirement, checked_method, requirements_of

__all__ = ["GatedRoute", "gated_routes", "requirements_for"]

KEY: Final = re.compile(r"(?:(?P<method>[A-Z]+) +)?(?P<target>\S+)")


class GatedRoute(NamedTuple):
    """One line of the table: views by URL name (``files:download``), or paths by Django's route syntax."""

    method: str | None
    name: str | None
    path: Any  # a RoutePattern
    requirements: tuple[Requirement, ...]

    def is_for(self, request: HttpRequest) -> bool:
        if self.method not in (None, request.method, "GET" if request.method == "HEAD" else None):
            return False
        if self.path is None:
            return bool(request.resolver_match.view_name == self.name)
        return self.path.match(request.path_info.removeprefix("/")) is not None


def gated_routes(table: Mapping[str, Needs]) -> tuple[GatedRoute, ...]:
    """The lines of the table. Raises `ConfigurationError` that names the line."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"TIER['ROUTES']: must be a dict of routes, got {table!r}", path="TIER['ROUTES']")
    return tuple(_gated_route(key, needs) for key, needs in table.items())


def _gated_route(key: object, needs: Needs) -> GatedRoute:
    line = f"TIER['ROUTES'][{key!r}]"
    found = KEY.fullmatch(key) if isinstance(key, str) else None
    if found is None:
        raise ConfigurationError(
            f"{line}: must be keyed by a URL name or a path, like 'files:download' or 'POST /convert/<int:id>/'",
            path=line,
        )
    method, target = found["method"], found["target"]
    try:
        if method is not None:
            checked_method(method)
        path = RoutePattern(target.removeprefix("/"), is_endpoint=True) if target.startswith("/") else None
        if path is not None:
            path.converters  # noqa: B018  # compiled now: a mistake in it is one of the settings
        return GatedRoute(method, None if path else target, path, requirements_of(needs))
    except (ConfigurationError, ImproperlyConfigured, InvalidRequest, ValueError) as error:
        raise ConfigurationError(f"{line}: {error}", path=line) from error


def requirements_for(routes: Sequence[GatedRoute], request: HttpRequest) -> list[Requirement]:
    """What the table requires of a request whose view has been found."""
    return [requirement for route in routes if route.is_for(request) for requirement in route.requirements]
