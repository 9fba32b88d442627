"""The endpoints that let machines share exact limits: reservations, corrections, many reports at once, and changes.

What each means is said by the operation of `tier_middleware.ops` that it performs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import anyio.lowlevel

from ..errors import ConfigurationError, EngineUnavailable, TierError
from ..extension import serving
from ..extension.forms import (
    CHANGES,
    RESERVE,
    AdjustBody,
    ChangesAnswer,
    ChangesQuery,
    CheckAnswer,
    CheckBody,
    CommitBody,
    CommittedAnswer,
    KeysAnswer,
    KeysBody,
    RecordedAnswer,
    ReleaseBody,
    RenewBody,
    ReportResult,
    ReportsAnswer,
    ReportsBody,
    ReserveAnswer,
    ReserveBody,
    UsageAnswer,
    UsageQuery,
    WireFault,
)
from ..flow import at_time, do
from ..names import clock_of, org_name
from ..ops import LookUp, Op, Record
from .endpoint import Call, Endpoint
from .faults import bad_request, fault_for
from .forms import DONE, Done, org_named

__all__ = ["ENDPOINTS"]

A = TypeVar("A")
P = TypeVar("P", ReserveBody, CheckBody)
R = TypeVar("R")


async def _done(call: Call[A], make: Callable[[A, serving.KeyOf, int], Op[R]]) -> R:
    """The engine's reply to an operation of the request's present, made of what it asks."""
    operations = call.tier.core.operations
    return await call.tier.run(do(operations.dated(lambda now_ms: make(call.asked, operations.key_of, now_ms))))


async def _done_with_plan(call: Call[P], make: Callable[[P, serving.KeyOf, int, str | None], Op[R]]) -> R:
    """`_done`, of what may give an org its default plan. One that the request names and nobody knows is its mistake."""
    ours = call.tier.core.settings.default_plan
    try:
        return await _done(call, lambda asked, key_of, now_ms: make(asked, key_of, now_ms, ours))
    except ConfigurationError as error:
        given = call.asked.default_plan
        if given is None or error.path != "TIER_DEFAULT_PLAN":
            raise
        raise bad_request(f"default_plan: {given!r} is not in the pricing model") from None


async def reserve(call: Call[ReserveBody]) -> ReserveAnswer:
    org_named(call.asked.org)
    return serving.reserve_answer(await _done_with_plan(call, serving.reserve_of))


async def commit(call: Call[CommitBody]) -> CommittedAnswer:
    return serving.committed_answer(await _done(call, serving.commit_of))


async def renew(call: Call[RenewBody]) -> CommittedAnswer:
    return serving.committed_answer(await _done(call, serving.renew_of))


async def release(call: Call[ReleaseBody]) -> Done:
    await _done(call, serving.release_of)
    return DONE


async def adjust(call: Call[AdjustBody]) -> RecordedAnswer:
    org_named(call.asked.org)
    reply = await _done(call, serving.adjust_of)
    return RecordedAnswer(reply.over, reply.is_new)


async def reports(call: Call[ReportsBody]) -> ReportsAnswer:
    """One after the other. Where the engine goes away in between, all may be sent again: each has its key."""
    core = call.tier.core
    results: list[ReportResult] = []
    for record in serving.records_of(call.asked, core.operations.key_of, core.now_ms(), core.settings.default_plan):
        results.append(await _result(call, record))
        await anyio.lowlevel.checkpoint()  # others do not wait for all of them
    return ReportsAnswer(results)


async def _result(call: Call[ReportsBody], record: Record) -> ReportResult:
    try:
        reply = await call.tier.run(do(call.tier.core.operations.dated(at_time(record))))
    except EngineUnavailable:
        raise
    except TierError as error:
        fault = fault_for(error).body
        return ReportResult(error=WireFault(fault.status, fault.code, fault.message))
    call.tier.core.tally.count("over_limit.report", reply.over)
    return ReportResult(reply.over, reply.is_new)


async def check(call: Call[CheckBody]) -> CheckAnswer:
    org_named(call.asked.org)
    return serving.check_answer(await _done_with_plan(call, serving.check_of))


async def keys(call: Call[KeysBody]) -> KeysAnswer:
    org_named(call.asked.org)
    return KeysAnswer(list(await _done(call, serving.keys_of)))


async def usage(call: Call[UsageQuery]) -> UsageAnswer:
    org = org_named(call.asked.org)
    return serving.usage_answer(org, await _done(call, lambda asked, key_of, now_ms: LookUp(key_of(org), now_ms)))


async def changes(call: Call[ChangesQuery]) -> ChangesAnswer:
    clock = clock_of(call.tier.core.operations.key_of("org:any"))
    own = lambda key: org_name(key) if clock_of(key) == clock else None  # noqa: E731
    found = await call.service.watch.changes(call.tier, call.asked.since or None, call.asked.wait, own)
    return serving.changes_answer(found, own)


def _post(path: str, handler: Any, about: str, answer: type[Any], body: type[Any]) -> Endpoint:
    return Endpoint("POST", path, handler, about, answer, body=body, is_clocked=True, extension=RESERVE)


ENDPOINTS: Final = (
    _post("/v1/reserve", reserve, "Hold capacity, or say why not.", ReserveAnswer, ReserveBody),
    _post("/v1/commit", commit, "Count the work of holds.", CommittedAnswer, CommitBody),
    _post("/v1/release", release, "Give back holds.", Done, ReleaseBody),
    _post("/v1/renew", renew, "Keep holds alive, and count what was used so far.", CommittedAnswer, RenewBody),
    _post("/v1/adjust", adjust, "Correct a usage.", RecordedAnswer, AdjustBody),
    _post("/v1/reports", reports, "Count usage that has happened, many reports at once.", ReportsAnswer, ReportsBody),
    _post("/v1/keys", keys, "Which keys of commits and reports have counted.", KeysAnswer, KeysBody),
    _post("/v1/check", check, "Whether so many units would be granted now.", CheckAnswer, CheckBody),
    Endpoint(
        "GET",
        "/v1/usage",
        usage,
        "What an org may use, has used and holds, and when its billing period ends.",
        UsageAnswer,
        query=UsageQuery,
        is_clocked=True,
        extension=RESERVE,
    ),
    Endpoint(
        "GET",
        "/v1/changes",
        changes,
        "Whose limits have changed since a cursor; waits for a change if it is told to.",
        ChangesAnswer,
        query=ChangesQuery,
        is_clocked=True,
        extension=CHANGES,
    ),
)
