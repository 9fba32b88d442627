"""What is on the wire, as structs: they check what is asked, and document it. And answers of the library in that form.

Pure. The names and types are those of Tier's API; lists are never null.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from msgspec import Struct

from ..answers import Limits, Whoami
from ..errors import InvalidRequest
from ..names import MAX_UNITS, checked_org, is_feature
from ..wire_types import Feature, Org, Time, Units
from .faults import bad_request

__all__ = [
    "DONE",
    "ZERO_TIME",
    "Done",
    "Feature",
    "LimitsAnswer",
    "Org",
    "OrgQuery",
    "ReportBody",
    "Time",
    "UsageEntry",
    "WhoamiAnswer",
    "feature_named",
    "limits_answer",
    "org_named",
    "renamed",
    "time_given",
    "whoami_answer",
]


class Done(Struct, frozen=True):
    """It is done."""


DONE: Final = Done()
ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)  # Go's "no time"


class OrgQuery(Struct):
    org: Org


class ReportBody(Struct, forbid_unknown_fields=True):
    """Usage that has happened. Without ``n`` it is 0; without ``at`` it is now."""

    org: Org
    feature: Feature
    n: Units | None = None
    at: Time | None = None
    clobber: bool | None = None


class UsageEntry(Struct):
    """``limit`` is 9223372036854775807 for unlimited; on/off features show ``used`` 1 of that."""

    feature: str
    used: int
    limit: int


class LimitsAnswer(Struct):
    org: str
    usage: list[UsageEntry]


class WhoamiAnswer(Struct):
    id: str
    email: str
    created: datetime
    key_source: str
    isolated: bool
    url: str


def org_named(name: str) -> str:
    """An org's name; a mistake is said in Tier's words."""
    if not name.startswith("org:"):
        raise bad_request('org must be prefixed with "org:"')
    return checked_org(name)


def feature_named(name: str) -> str:
    """A feature's name without a plan; a mistake is said in Tier's words."""
    if not name.startswith("feature:"):
        raise bad_request("feature name must start with 'feature:'")
    if not is_feature(name):
        raise bad_request("feature name must match [a-zA-Z0-9:_-]+")
    return name


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Mistakes in the library's arguments are said of the wire's fields: ``renamed(to="present")``."""
    try:
        yield
    except InvalidRequest as error:
        path = error.path or ""
        if path not in names:
            raise
        raise bad_request(names[path] + error.message.removeprefix(path)) from None


def time_given(at: datetime | None) -> datetime | None:
    """A time that was asked for; Go's zero time is none."""
    return None if at == ZERO_TIME else at


def limits_answer(limits: Limits) -> LimitsAnswer:
    return LimitsAnswer(
        limits.org,
        [UsageEntry(one.feature, one.used, MAX_UNITS if one.limit is None else one.limit) for one in limits],
    )


def whoami_answer(whoami: Whoami, url: str) -> WhoamiAnswer:
    """Who answers. An embedded engine has no address that means anything elsewhere: then it is the server's."""
    is_elsewhere = whoami.url.startswith(("http://", "https://"))
    return WhoamiAnswer(
        whoami.id,
        whoami.email,
        whoami.created,
        whoami.key_source,
        whoami.isolated,
        whoami.url if is_elsewhere else url,
    )
