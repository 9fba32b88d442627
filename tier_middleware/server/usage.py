"""The endpoints that every check and every report asks."""

from __future__ import annotations

import re
from typing import Final

from ..wire import KEY_HEADER
from .endpoint import Call, Endpoint
from .faults import bad_request
from .forms import (
    DONE,
    Done,
    LimitsAnswer,
    OrgQuery,
    ReportBody,
    feature_named,
    limits_answer,
    org_named,
    renamed,
    time_given,
)

__all__ = ["ENDPOINTS"]

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


async def limits(call: Call[OrgQuery]) -> LimitsAnswer:
    return limits_answer(await call.tier.lookup_limits(org_named(call.asked.org)))


async def report(call: Call[ReportBody]) -> Done:
    """With a key it counts once, however often it is sent; the key is sent back, which says so."""
    asked, key = call.asked, call.headers.get(KEY_HEADER)
    feature, org = feature_named(asked.feature), org_named(asked.org)
    if key is not None:
        if not _KEY.fullmatch(key):
            raise bad_request(f"{KEY_HEADER}: must be 1 to 255 printable ASCII characters")
        call.answer_headers[KEY_HEADER] = key
    at = time_given(asked.at)
    with renamed(key=KEY_HEADER):
        await call.tier.report(org, feature, asked.n or 0, at=at, clobber=bool(asked.clobber), key=key)
    return DONE


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/v1/limits",
        limits,
        "What an org may use in its current billing period, and has used.",
        LimitsAnswer,
        query=OrgQuery,
        is_clocked=True,
    ),
    Endpoint(
        "POST",
        "/v1/report",
        report,
        "Count usage that has happened. Never refused for being over the limit.",
        Done,
        body=ReportBody,
        media="text/plain; charset=utf-8",
        is_clocked=True,
        header_about={KEY_HEADER: "Makes the report count once, however often it is sent. It is sent back."},
    ),
)
