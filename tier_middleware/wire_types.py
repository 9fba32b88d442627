"""Types of fields on the wire: what their values must be, and what a document of the API says of them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from .names import MAX_NAME, MAX_UNITS

__all__ = ["Feature", "Org", "Time", "Units"]

Org = Annotated[
    str,
    Meta(
        description="An org: any text after the prefix",
        examples=["org:acme"],
        extra_json_schema={"pattern": r"^org:[\s\S]+$", "maxLength": MAX_NAME},  # checked by `names.checked_org`
    ),
]
Feature = Annotated[
    str,
    Meta(
        description="A feature's name",
        examples=["feature:convert"],
        extra_json_schema={"pattern": "^feature:[A-Za-z0-9:_-]+$", "maxLength": MAX_NAME},  # `names.checked_feature`
    ),
]
Units = Annotated[int, Meta(ge=0, le=MAX_UNITS)]
Time = Annotated[datetime, Meta(tz=True, description="RFC 3339, with an offset or Z")]
