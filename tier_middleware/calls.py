"""The calls of Tier's HTTP API: which request an operation is, and what its answer says. Pure.

The format is that of the real server (``tests/vectors``): lists may be null, unlimited is 2^63 - 1, and fields that
nobody here knows are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from .clock import milliseconds_of, rfc3339
from .errors import TierError
from .model import Feature, Model, Phase, Plan
from .names import MAX_UNITS, FeaturePlan, org_name
from .ops import Checkout, ClockRecord, EngineInfo, OrgRecord, PhasesInfo, PushResult, Usage
from .orginfo import OrgInfo
from .policy import Period, PlannedPhase
from .pricing import dumps, read_model
from .wire import JSON, KEY_HEADER, Request, Response, asked_for, decoded, foreign, posted

__all__ = [
    "advance_clock",
    "checkout",
    "checkout_in",
    "clock",
    "clock_in",
    "info_update",
    "limits",
    "limits_in",
    "make_clock",
    "model_in",
    "org_in",
    "payment_methods",
    "payment_methods_in",
    "period_in",
    "phase",
    "phases",
    "phases_in",
    "pull",
    "push",
    "push_results_in",
    "report",
    "subscription",
    "whoami",
    "whoami_in",
    "whois",
]

# ---- requests -------------------------------------------------------------------------------------------------------


def limits(org: str) -> Request:
    return asked_for("/v1/limits", org)


def phase(org: str) -> Request:
    return asked_for("/v1/phase", org)


def phases(org: str) -> Request:
    return asked_for("/v1/phases", org)


def whois(org: str) -> Request:
    return asked_for("/v1/whois", org, ("include", "info"))


def payment_methods(org: str) -> Request:
    return asked_for("/v1/payment_methods", org)


def whoami() -> Request:
    return Request("GET", "/v1/whoami")


def pull() -> Request:
    return Request("GET", "/v1/pull")


def push(model: Model) -> Request:
    return Request("POST", "/v1/push", body=dumps(model, indent=None).encode(), headers=(JSON,))


def report(
    org: str, feature: str, n: int, *, key: str | None = None, at_ms: int | None = None, clobber: bool = False
) -> Request:
    """Usage; the ``key`` makes it count once, where the server knows what that is."""
    body: dict[str, Any] = {"org": org_name(org), "feature": feature, "n": n, "clobber": clobber}
    if at_ms is not None:
        body["at"] = rfc3339(at_ms)
    request = posted("/v1/report", body, org)
    keyed = () if key is None else ((KEY_HEADER, key),)
    return request._replace(headers=(*request.headers, *keyed), feature=feature)


def subscription(org: str, planned: Sequence[PlannedPhase]) -> Request:
    return posted("/v1/subscribe", {"org": org_name(org), "phases": [_phase_body(phase) for phase in planned]}, org)


def info_update(org: str, info: OrgInfo) -> Request:
    given: dict[str, Any] = {
        name: getattr(info, name) for name in ("email", "name", "description", "phone", "payment_method")
    }
    body = {name: text for name, text in given.items() if text}
    if info.metadata:
        body["metadata"] = dict(info.metadata)
    if info.default_payment_method:
        body["invoice_settings"] = {"default_payment_method": info.default_payment_method}
    return posted("/v1/subscribe", {"org": org_name(org), "info": body}, org)


def checkout(op: Checkout) -> Request:
    body: dict[str, Any] = {"org": org_name(op.org), "success_url": op.success_url}
    if op.features:
        body["features"] = [str(entry) for entry in op.features]
    given = {
        "trial_days": op.trial_days,
        "cancel_url": op.cancel_url,
        "require_billing_address": op.require_billing_address,
        "tax": op.tax,
    }
    return posted("/v1/checkout", body | {name: value for name, value in given.items() if value}, op.org)


def make_clock(name: str, present_ms: int) -> Request:
    return posted("/v1/clock", {"name": name, "present": rfc3339(present_ms)})


def advance_clock(id: str, present_ms: int) -> Request:
    return posted("/v1/clock", {"id": id, "present": rfc3339(present_ms)})


def clock(id: str) -> Request:
    return Request("GET", "/v1/clock", (("id", id),))


def _phase_body(phase: PlannedPhase) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if phase.effective_ms is not None:
        body["effective"] = rfc3339(phase.effective_ms)
    if phase.features:
        body["features"] = [str(entry) for entry in phase.features]
    if phase.trial:
        body["trial"] = True
    return body


# ---- answers --------------------------------------------------------------------------------------------------------


class _Usage(msgspec.Struct):
    feature: str
    used: int = 0
    limit: int = 0


class _Limits(msgspec.Struct):
    usage: list[_Usage] | None = None


class _Period(msgspec.Struct):
    effective: datetime
    end: datetime


class _Phase(msgspec.Struct):
    effective: datetime
    current: _Period | None = None
    end: datetime | None = None
    features: list[str] | None = None
    plans: list[str] | None = None
    fragments: list[str] | None = None
    trial: bool = False


class _Phases(msgspec.Struct):
    current: _Period | None = None
    phases: list[_Phase] | None = None


class _Result(msgspec.Struct):
    feature: str
    status: str
    reason: str = ""


class _Results(msgspec.Struct):
    results: list[_Result] | None = None


class _InvoiceSettings(msgspec.Struct):
    default_payment_method: str = ""


class _Org(msgspec.Struct):
    stripe_id: str = ""
    created: datetime | None = None
    email: str = ""
    name: str = ""
    description: str = ""
    phone: str = ""
    metadata: dict[str, str] | None = None
    payment_method: str = ""
    invoice_settings: _InvoiceSettings | None = None


class _Methods(msgspec.Struct):
    methods: list[dict[str, Any]] | None = None


class _Checkout(msgspec.Struct):
    url: str


class _Clock(msgspec.Struct):
    id: str
    present: datetime
    name: str = ""
    status: str = ""


class _Whoami(msgspec.Struct):
    id: str = ""
    email: str = ""
    created: datetime | None = None
    key_source: str = ""
    isolated: bool = False
    url: str = ""


def limits_in(request: Request, response: Response) -> tuple[Usage, ...]:
    """Usage by feature name. A feature of two plans is one entry: the larger limit, and what was counted in both."""
    found: dict[str, list[_Usage]] = {}
    for entry in decoded(request, response, _Limits).usage or ():
        found.setdefault(entry.feature, []).append(entry)
    return tuple(_merged(feature, found[feature]) for feature in sorted(found))


def _merged(feature: str, entries: Sequence[_Usage]) -> Usage:
    limit = max(entry.limit for entry in entries)
    used = [entry.used for entry in entries]
    if limit >= MAX_UNITS:  # on/off features show 1 in each plan
        return Usage(feature, max(used), None)
    return Usage(feature, sum(used), limit)


def phases_in(request: Request, response: Response, now_ms: int) -> PhasesInfo:
    """The current phase and those to come, with the billing periods as the server has them."""
    wire = decoded(request, response, _Phases)
    found = sorted(wire.phases or (), key=lambda phase: phase.effective)
    coming = found[_index_of_current(found, now_ms) :]
    read = [_phase_of(phase) for phase in coming]
    periods = [_period_of(phase) for phase in coming]
    if coming and coming[-1].end is not None:  # a cancellation to come
        read.append(Phase(_ms(coming[-1].end), read[-1].anchor_ms))
        periods.append(periods[-1])
    is_current = wire.current is not None and wire.current.effective.year > 1 and bool(read)
    present_ms = max(now_ms, read[0].effective_ms) if is_current else now_ms  # its clock may be ahead of ours
    return PhasesInfo(tuple(read), _model_of(coming), present_ms, tuple(periods))


def _index_of_current(found: Sequence[_Phase], now_ms: int) -> int:
    begun = [index for index, phase in enumerate(found) if _ms(phase.effective) <= now_ms]
    return begun[-1] if begun else 0


def _phase_of(phase: _Phase) -> Phase:
    listed = [FeaturePlan(None, plan) for plan in phase.plans or ()]
    listed += [_feature_plan(text) for text in phase.fragments or ()]
    return Phase(_ms(phase.effective), _period_of(phase).start_ms, tuple(listed), phase.trial)


def _period_of(phase: _Phase) -> Period:
    if phase.current is None:
        return Period(_ms(phase.effective), _ms(phase.end or phase.effective))
    return Period(_ms(phase.current.effective), _ms(phase.current.end))


def _feature_plan(text: str) -> FeaturePlan:
    feature, _, plan = text.partition("@")
    return FeaturePlan(feature, plan)


def _model_of(phases: Iterable[_Phase]) -> Model:
    """The plans that phases name, with the names of their features; what these cost is in ``pull`` only."""
    features: dict[str, dict[str, Feature]] = {}
    for found in phases:
        for plan in found.plans or ():
            features.setdefault(plan, {})
        for text in found.features or ():
            feature, plan = _feature_plan(text)
            features.setdefault(plan, {})[feature or ""] = Feature()
    return Model({name: Plan(name, features=found) for name, found in features.items()})


def period_in(request: Request, response: Response) -> Period | None:
    """The current billing period; None for an org without a phase."""
    if response.status == 404:
        return None
    return _period_of(decoded(request, response, _Phase))


def push_results_in(request: Request, response: Response) -> tuple[PushResult, ...]:
    results = decoded(request, response, _Results).results or ()
    return tuple(sorted(PushResult(one.feature, _status(one.status), one.reason) for one in results))


def _status(text: str) -> Any:
    return "ok" if text == "ok" else "failed"


def model_in(request: Request, response: Response) -> Model:
    """All plans. What they have besides what is known here is passed over."""
    plans = decoded(request, response, dict[str, Any]).get("plans") or {}
    try:
        return read_model(json.dumps({"plans": {name: _known(plan, _PLAN) for name, plan in plans.items()}}))
    except (TierError, AttributeError) as error:
        raise foreign(request, response, str(error)) from None


_PLAN: Final[Mapping[str, Any]] = {
    "title": None,
    "currency": None,
    "interval": None,
    "features": {
        "*": {
            **dict.fromkeys(("title", "base", "mode", "aggregate")),
            "tiers": dict.fromkeys(("upto", "price", "base")),
            "divide": dict.fromkeys(("by", "rounding")),
        }
    },
}


def _known(value: Any, fields: Mapping[str, Any] | None) -> Any:
    """A part of a model with the fields that are known, without those that are null."""
    if fields is None:
        return value
    if isinstance(value, list):
        return [_known(item, fields) for item in value]
    every = fields.get("*")
    return {
        name: _known(item, every or fields[name])
        for name, item in value.items()
        if item is not None and (every or name in fields)
    }


def org_in(request: Request, response: Response) -> OrgRecord:
    org = decoded(request, response, _Org)
    info = OrgInfo(
        org.email,
        org.name,
        org.description,
        org.phone,
        org.metadata or {},
        org.payment_method,
        org.invoice_settings.default_payment_method if org.invoice_settings else "",
    )
    return OrgRecord(0 if org.created is None else _ms(org.created), info, org.stripe_id)


def payment_methods_in(request: Request, response: Response) -> tuple[Mapping[str, Any], ...]:
    return tuple(decoded(request, response, _Methods).methods or ())


def checkout_in(request: Request, response: Response) -> str:
    return decoded(request, response, _Checkout).url


def clock_in(request: Request, response: Response, name: str = "") -> tuple[ClockRecord, bool]:
    """A test clock, and whether it has arrived where it stands."""
    found = decoded(request, response, _Clock)
    return ClockRecord(found.id, found.name or name, _ms(found.present)), found.status != "advancing"


def whoami_in(request: Request, response: Response) -> EngineInfo:
    found = decoded(request, response, _Whoami)
    created_ms = 0 if found.created is None else _ms(found.created)
    return EngineInfo(found.id, found.url, created_ms, found.email, found.key_source, found.isolated)


def _ms(at: datetime) -> int:
    return milliseconds_of(at, "time")
