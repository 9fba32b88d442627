"""The endpoints about what orgs are subscribed to, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ..errors import InvalidRequest
from .endpoint import Call, Endpoint
from .faults import bad_request, not_found
from .forms import DONE, Done, OrgQuery, org_named, time_given
from .orgs import (
    InfoBody,
    MethodsAnswer,
    OrgAnswer,
    PhaseAnswer,
    PhaseBody,
    PhasesAnswer,
    SubscribeBody,
    WhoisAnswer,
    WhoisQuery,
    org_answer,
    phase_answer,
    phases_answer,
)

__all__ = ["ENDPOINTS", "listed"]


async def subscribe(call: Call[SubscribeBody]) -> Done:
    """One phase without features cancels; without phases only the info is kept, and without both nothing is done."""
    asked, tier = call.asked, call.tier
    info, method = None if asked.info is None else info_given(asked.info), asked.payment_method_id
    if not asked.phases:
        if info is not None or method is not None:
            await tier.subscribe(org_named(asked.org or ""), info=info, payment_method_id=method)
        return DONE
    org, phases = org_named(asked.org or ""), [_phase(phase) for phase in asked.phases]
    if len(phases) > 1 or phases[0].get("features"):
        try:
            await tier.schedule(org, phases, info=info, payment_method_id=method)
        except InvalidRequest as error:
            if error.code == "feature_not_found":  # something twice in one phase: in Tier the org is known from then on
                await tier.update_org(org, {})
            raise
        return DONE
    if info is not None or method is not None:
        await tier.subscribe(org, info=info, payment_method_id=method)
    await tier.cancel(org, at=phases[0].get("effective"))
    return DONE


def info_given(info: InfoBody) -> Mapping[str, Any]:
    given: dict[str, Any] = msgspec.to_builtins(info)
    settings = given.pop("invoice_settings", None) or {}
    given["invoice_settings"] = {name: text for name, text in settings.items() if text is not None}
    return {name: value for name, value in given.items() if value is not None}


def _phase(phase: PhaseBody) -> dict[str, Any]:
    given = {"effective": time_given(phase.effective), "features": listed(phase.features or ()), "trial": phase.trial}
    return {name: value for name, value in given.items() if value is not None}


def listed(features: Sequence[str]) -> list[str]:
    """What is subscribed to; what is obviously no plan is said so in Tier's words."""
    for entry in features:
        if "@" not in entry:
            is_plan = entry.startswith("plan:")
            raise bad_request("plan must have version" if is_plan else "plan name must start with 'plan:'")
    return list(features)


async def phase(call: Call[OrgQuery]) -> PhaseAnswer:
    found = await call.tier.lookup_phase(org_named(call.asked.org))
    if found is None:
        raise not_found()
    return phase_answer(found)


async def phases(call: Call[OrgQuery]) -> PhasesAnswer:
    return phases_answer(await call.tier.lookup_phases(org_named(call.asked.org)))


async def whois(call: Call[WhoisQuery]) -> WhoisAnswer | OrgAnswer:
    org = org_named(call.asked.org)
    if "info" in call.asked.include:
        return org_answer(await call.tier.lookup_org(org))
    found = await call.tier.whois(org)
    return WhoisAnswer(found.org, found.stripe_id)


async def payment_methods(call: Call[OrgQuery]) -> MethodsAnswer:
    found = await call.tier.lookup_payment_methods(org_named(call.asked.org))
    return MethodsAnswer(found.org, [dict(method) for method in found.methods])


ENDPOINTS: Final = (
    Endpoint(
        "POST",
        "/v1/subscribe",
        subscribe,
        "Plan an org's phases, and keep what is known of it. One phase without features cancels.",
        Done,
        body=SubscribeBody,
        media="text/plain; charset=utf-8",
        is_clocked=True,
    ),
    Endpoint(
        "GET",
        "/v1/phase",
        phase,
        "The org's current phase; 404 without a subscription.",
        PhaseAnswer,
        query=OrgQuery,
        is_clocked=True,
        also=frozenset({404}),
    ),
    Endpoint(
        "GET",
        "/v1/phases",
        phases,
        "The org's current phase and those to come.",
        PhasesAnswer,
        query=OrgQuery,
        is_clocked=True,
    ),
    Endpoint(
        "GET",
        "/v1/whois",
        whois,
        "Who an org is; with include=info what is known of it.",
        (WhoisAnswer, OrgAnswer),
        query=WhoisQuery,
        is_clocked=True,
    ),
    Endpoint(
        "GET",
        "/v1/payment_methods",
        payment_methods,
        "The org's payment methods: none where nobody takes payments.",
        MethodsAnswer,
        query=OrgQuery,
        is_clocked=True,
    ),
)
