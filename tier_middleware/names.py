"""The names of Tier's world: orgs, features, plans, and the references a subscription lists.

Tier's own server allows ``feature:[A-Za-z0-9:]+``, but its quickstarts write ``feature:feature-id``;
here hyphens and underscores are accepted too. Every check returns its argument, so it can be used in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from enum import Enum
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from .errors import InvalidRequest

__all__ = [
    "MAX_NAME",
    "MAX_UNITS",
    "NO_ORG",
    "UNMETERED",
    "FeaturePlan",
    "OrgMark",
    "OrgValue",
    "checked_clock",
    "checked_clock_name",
    "checked_feature",
    "checked_key",
    "checked_note",
    "checked_org",
    "checked_plan",
    "checked_units",
    "clock_of",
    "feature_plan",
    "is_feature",
    "nearest",
    "org_for",
    "org_key",
    "org_name",
    "shown",
]

MAX_UNITS: Final = 2**63 - 1  # Tier's wire format holds units in an int64
MAX_NAME: Final = 1024  # characters; bounds what is stored and logged of a name that comes from outside

_FEATURE = re.compile(r"feature:[A-Za-z0-9:_-]+")
_PLAN = re.compile(r"plan:[A-Za-z0-9:]+@[A-Za-z0-9]+")
_CLOCK = re.compile(r"clock_[A-Za-z0-9]+")


class OrgMark(Enum):
    """What an org callable may answer in place of an org. Use `UNMETERED` and `NO_ORG`."""

    UNMETERED = "unmetered"
    NO_ORG = "no_org"


UNMETERED: Final = OrgMark.UNMETERED
"""Staff and service accounts: the request passes and nothing is counted."""

NO_ORG: Final = OrgMark.NO_ORG
"""Logged in, but a member of no org: refused with 403."""

OrgValue: TypeAlias = str | int | UUID | OrgMark | None


class FeaturePlan(NamedTuple):
    """One entry of a subscription: a whole plan (``feature`` None) or one feature of a plan."""

    feature: str | None
    plan: str

    def __str__(self) -> str:
        return self.plan if self.feature is None else f"{self.feature}@{self.plan}"


def checked_feature(name: object, field: str = "feature") -> str:
    if not isinstance(name, str) or not name.startswith("feature:"):
        raise InvalidRequest(f"{field}: must start with 'feature:', got {shown(name)}", path=field)
    if not is_feature(name):
        raise InvalidRequest(f"{field}: must match feature:[A-Za-z0-9:_-]+, got {shown(name)}", path=field)
    return name


def is_feature(name: str) -> bool:
    return len(name) <= MAX_NAME and _FEATURE.fullmatch(name) is not None


def checked_plan(name: object, field: str = "plan") -> str:
    if not isinstance(name, str) or not name.startswith("plan:"):
        raise InvalidRequest(f"{field}: must start with 'plan:', got {shown(name)}", path=field)
    if "@" not in name:
        raise InvalidRequest(f"{field}: must have a version, as in {shown(name + '@1')}, got {shown(name)}", path=field)
    if len(name) > MAX_NAME or not _PLAN.fullmatch(name):
        raise InvalidRequest(f"{field}: must match plan:[A-Za-z0-9:]+@[A-Za-z0-9]+, got {shown(name)}", path=field)
    return name


def feature_plan(text: object, field: str = "features") -> FeaturePlan:
    """Read ``plan:free@1`` or ``feature:calls@plan:free@1``."""
    if isinstance(text, str) and text.startswith("feature:") and "@" in text:
        feature, _, plan = text.partition("@")
        return FeaturePlan(checked_feature(feature, field), checked_plan(plan, field))
    return FeaturePlan(None, checked_plan(text, field))


def checked_org(org: object, field: str = "org") -> str:
    if not isinstance(org, str) or not org.startswith("org:"):
        raise InvalidRequest(f"{field}: must start with 'org:', got {shown(org)}", path=field)
    if len(org) == 4:
        raise InvalidRequest(f"{field}: must have a name after 'org:', got {org!r}", path=field)
    if len(org) > MAX_NAME:
        raise InvalidRequest(f"{field}: must have at most {MAX_NAME} characters, got {len(org)}", path=field)
    if not org.isascii() and not _is_unicode(org):
        raise InvalidRequest(f"{field}: must be valid Unicode, got {shown(org)}", path=field)
    return org


def org_for(value: str | int | UUID) -> str:
    """The org named by what an auth guard knows: a raw id gets the ``org:`` prefix."""
    if type(value) is str and 4 < len(value) <= MAX_NAME and value.startswith("org:") and value.isascii():
        return value  # nearly always
    if isinstance(value, str):
        if not value:
            raise InvalidRequest("org: must not be empty, got ''", path="org")
        return checked_org(str.__str__(value) if value.startswith("org:") else "org:" + value)
    if isinstance(value, bool) or not isinstance(value, int | UUID):
        raise InvalidRequest(
            f"org: must be a str, an int, a UUID, None, NO_ORG or UNMETERED, got {value!r}", path="org"
        )
    return f"org:{value}"


def org_key(org: str, clock: str) -> str:
    """How engines know an org that was made under a test clock: no org's own name begins like that."""
    return f"{clock}/{org}"


def org_name(key: str) -> str:
    """The org's own name, whatever clock it lives under."""
    return key if key.startswith("org:") else key.partition("/")[2]


def clock_of(key: str) -> str:
    """The id of the test clock that an org lives under; empty for none."""
    return "" if key.startswith("org:") else key.partition("/")[0]


def checked_clock(id: object, field: str = "clock") -> str:
    if not isinstance(id, str) or len(id) > MAX_NAME or not _CLOCK.fullmatch(id):
        raise InvalidRequest(f"{field}: must be a test clock's id, as in 'clock_1f', got {shown(id)}", path=field)
    return id


def checked_clock_name(name: object, field: str = "name") -> str:
    if not isinstance(name, str) or len(name) > MAX_NAME or not _is_unicode(name):
        raise InvalidRequest(f"{field}: must be a text of at most {MAX_NAME} characters, got {shown(name)}", path=field)
    return name


def checked_units(n: object, field: str = "n") -> int:
    """A whole number of units, 0 or more. Bools and floats are refused, whole floats too."""
    if type(n) is not int and (not isinstance(n, int) or isinstance(n, bool)):
        raise InvalidRequest(f"{field}: must be a whole number >= 0, got {shown(n)}", path=field)
    if n < 0:
        raise InvalidRequest(f"{field}: must be a whole number >= 0, got {shown(n)}", path=field)
    if n > MAX_UNITS:
        raise InvalidRequest(f"{field}: must be at most {MAX_UNITS}, got {shown(n)}", path=field)
    return n if type(n) is int else int(n)  # an IntEnum's repr would make other contents of the same report


def checked_key(key: object, field: str = "key") -> str:
    if not isinstance(key, str) or not key or len(key) > MAX_NAME or not _is_unicode(key):
        raise InvalidRequest(f"{field}: must be a text of 1 to {MAX_NAME} characters, got {shown(key)}", path=field)
    return key


def checked_note(note: object, field: str = "note") -> str:
    if not isinstance(note, str) or len(note) > MAX_NAME or not _is_unicode(note):
        raise InvalidRequest(f"{field}: must be a text of at most {MAX_NAME} characters, got {shown(note)}", path=field)
    return note


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most likely meant."""
    return next(iter(get_close_matches(name, list(known), n=1)), None)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates: no file, socket or database takes them
        return False
    return True


def shown(value: object) -> str:
    """How a value from outside appears in a message: quoted, so it cannot forge lines, and bounded."""
    is_huge = (
        isinstance(value, int) and value.bit_length() > 256
    )  # Python refuses to write those of thousands of digits
    text = f"a number of {value.bit_length()} bits" if is_huge else repr(value)  # type: ignore[attr-defined]  # an int
    return text if len(text) <= 80 else text[:77] + "..."
