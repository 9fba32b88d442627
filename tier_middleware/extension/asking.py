"""The half of a client: from operations to requests, and from answers to replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..clock import milliseconds_of, moment
from ..names import org_name
from ..ops import (
    Adjust,
    Changes,
    Check,
    Checked,
    Committed,
    Granted,
    Hold,
    Kept,
    LookUp,
    LookUpKeys,
    Record,
    Recorded,
    Renew,
    Reserve,
    Shortfall,
    Usage,
)
from ..wire import Request, Response, asked_for, decoded, posted
from .forms import (
    EXTENSIONS_HEADER,
    AdjustBody,
    ChangesAnswer,
    CheckAnswer,
    CheckBody,
    CommitBody,
    CommittedAnswer,
    DemandForm,
    HoldForm,
    KeptForm,
    KeysAnswer,
    KeysBody,
    RecordedAnswer,
    ReleaseBody,
    RenewBody,
    ReportForm,
    ReportsAnswer,
    ReportsBody,
    ReserveAnswer,
    ReserveBody,
    ShortfallForm,
    UsageAnswer,
    UsageForm,
    WireFault,
)

__all__ = [
    "adjust",
    "changes",
    "changes_in",
    "check",
    "checked_in",
    "commit",
    "committed_in",
    "extensions_in",
    "keys",
    "keys_in",
    "recorded_in",
    "release",
    "renew",
    "reports",
    "reserve",
    "reserved_in",
    "results_in",
    "usage",
    "usages_in",
]


def extensions_in(headers: Mapping[str, str]) -> frozenset[str]:
    """What a server says that it adds to Tier's API."""
    return frozenset(name.strip() for name in headers.get(EXTENSIONS_HEADER, "").split(",")) - {""}


# ---- requests -------------------------------------------------------------------------------------------------------


def reserve(op: Reserve) -> Request:
    demands = [DemandForm(demand.feature, demand.n, demand.is_given) for demand in op.demands]
    seconds = _seconds(op)
    body = ReserveBody(org_name(op.org), demands, list(op.ids), seconds, op.default_plan)
    return posted("/v1/reserve", body, op.org)


def _seconds(op: Reserve | Renew) -> float:
    return max(1, op.expires_ms - op.now_ms) / 1000  # from when it arrives: clocks of machines differ


def commit(kept: Sequence[Kept]) -> Request:
    """Holds of one clock, as everything that is sent together."""
    return posted("/v1/commit", CommitBody(_kept(kept)), kept[0].hold.org)


def renew(op: Renew) -> Request:
    seconds = _seconds(op)
    return posted("/v1/renew", RenewBody(_kept(op.kept), seconds), op.kept[0].hold.org)


def _kept(kept: Sequence[Kept]) -> list[KeptForm]:
    return [
        KeptForm(org_name(hold.org), hold.feature, hold.id, one.n, hold.place, hold.n, one.is_capped, one.key)
        for one in kept
        for hold in (one.hold,)
    ]


def release(holds: Sequence[Hold]) -> Request:
    forms = [HoldForm(org_name(hold.org), hold.feature, hold.id, hold.place) for hold in holds]
    return posted("/v1/release", ReleaseBody(forms), holds[0].org)


def adjust(op: Adjust) -> Request:
    request = posted("/v1/adjust", AdjustBody(org_name(op.org), op.feature, op.delta, op.key, op.note), op.org)
    return request._replace(feature=op.feature)


def reports(records: Sequence[Record]) -> Request:
    return posted("/v1/reports", ReportsBody([_report(record) for record in records]), records[0].org)


def _report(op: Record) -> ReportForm:
    at = None if op.at_ms is None else moment(op.at_ms)
    return ReportForm(org_name(op.org), op.feature, op.n, op.key, at, op.clobber, op.default_plan, op.note)


def check(op: Check) -> Request:
    demand = op.demand
    body = CheckBody(org_name(op.org), demand.feature, demand.n, demand.is_given, op.default_plan)
    return posted("/v1/check", body, op.org)


def keys(op: LookUpKeys) -> Request:
    return posted("/v1/keys", KeysBody(org_name(op.org), list(op.keys)), op.org)


def usage(op: LookUp) -> Request:
    return asked_for("/v1/usage", op.org)


def changes(since: str, wait_seconds: float) -> Request:
    return Request("GET", "/v1/changes", (("since", since), ("wait", f"{wait_seconds:.3f}")))


# ---- answers --------------------------------------------------------------------------------------------------------


def reserved_in(op: Reserve, request: Request, response: Response) -> Granted | Shortfall:
    answer = decoded(request, response, ReserveAnswer)
    if answer.shortfall is not None:
        return _shortfall(answer.shortfall)
    forms = zip(answer.granted or (), op.demands, strict=True)
    return Granted(
        tuple([None if form is None else Hold(form.id, op.org, one.feature, form.n, form.place) for form, one in forms])
    )


def _shortfall(form: ShortfallForm) -> Shortfall:
    numbers = (form.requested, form.used, form.reserved, form.limit)
    resets_at_ms = None if form.resets_at is None else milliseconds_of(form.resets_at, "resets_at")
    return Shortfall(form.org, form.feature, *numbers, form.reason, form.code, resets_at_ms)


def committed_in(request: Request, response: Response) -> tuple[Committed, ...]:
    forms = decoded(request, response, CommittedAnswer).committed
    return tuple([Committed(form.over, form.capped, form.has_expired) for form in forms])


def recorded_in(request: Request, response: Response) -> Recorded:
    answer = decoded(request, response, RecordedAnswer)
    return Recorded(answer.over, answer.is_new)


def results_in(request: Request, response: Response) -> tuple[Recorded | WireFault, ...]:
    """What became of each report: counted, or why not."""
    results = decoded(request, response, ReportsAnswer).results
    return tuple([Recorded(one.over, one.is_new) if one.error is None else one.error for one in results])


def checked_in(request: Request, response: Response) -> Checked:
    answer = decoded(request, response, CheckAnswer)
    return Checked(_usage(answer.usage), None if answer.shortfall is None else _shortfall(answer.shortfall))


def keys_in(request: Request, response: Response) -> tuple[bool, ...]:
    return tuple(decoded(request, response, KeysAnswer).have_counted)


def usages_in(request: Request, response: Response) -> tuple[Usage, ...]:
    return tuple([_usage(form) for form in decoded(request, response, UsageAnswer).usage])


def _usage(form: UsageForm) -> Usage:
    return Usage(form.feature, form.used, form.limit, form.reserved, form.resets_at)


def changes_in(request: Request, response: Response) -> Changes:
    answer = decoded(request, response, ChangesAnswer)
    return Changes(answer.cursor, tuple(answer.orgs), answer.is_everything)
