"""Orgs, their info and their phases on the wire: structs, and answers of the library in that form. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from ..answers import OrgDetails, PeriodView, Phases, PhaseView
from .forms import ZERO_TIME, Org, Time

__all__ = [
    "InfoBody",
    "MethodsAnswer",
    "OrgAnswer",
    "PhaseAnswer",
    "PhaseBody",
    "PhasesAnswer",
    "SubscribeBody",
    "TaxBody",
    "WhoisAnswer",
    "WhoisQuery",
    "org_answer",
    "phase_answer",
    "phases_answer",
]

Listed = Annotated[list[str], Meta(description="Plans, and features of plans: plan:free@1, feature:calls@plan:free@1")]
Metadata = Annotated[  # what may be in it, `tier_middleware.orginfo` says, with Tier's own code
    dict[str, Any], Meta(description="Texts by text", extra_json_schema={"additionalProperties": {"type": "string"}})
]


class PhaseBody(Struct, forbid_unknown_fields=True):
    """A phase; the first begins now unless it says otherwise."""

    effective: Time | None = None
    features: Listed | None = None
    trial: bool | None = None


class InvoiceSettingsBody(Struct, forbid_unknown_fields=True):
    default_payment_method: str | None = None


class InfoBody(Struct, forbid_unknown_fields=True):
    """What is known of an org: an empty text changes nothing, and deletes a key of the metadata."""

    email: str | None = None
    name: str | None = None
    description: str | None = None
    phone: str | None = None
    metadata: Metadata | None = None
    payment_method: str | None = None
    invoice_settings: InvoiceSettingsBody | None = None
    created: Annotated[Any, Meta(description="The server's own: accepted and ignored")] = None


class TaxBody(Struct, forbid_unknown_fields=True):
    """The payment provider's: accepted, and without meaning where nobody takes payments."""

    automatic: bool | None = None
    collect_id: bool | None = None


class SubscribeBody(Struct, forbid_unknown_fields=True):
    org: Annotated[str, Meta(description="Must be an org's name where there is something to do")] | None = None
    phases: list[PhaseBody] | None = None
    info: InfoBody | None = None
    payment_method_id: str | None = None
    tax: TaxBody | None = None


class PeriodAnswer(Struct):
    effective: datetime
    end: datetime


class PhaseAnswer(Struct, omit_defaults=True):
    """``current`` is the billing period. ``plans`` are subscribed whole, ``fragments`` are features of others."""

    effective: datetime
    features: list[str]
    current: PeriodAnswer
    end: datetime | None = None
    plans: list[str] = field(default_factory=list)
    fragments: list[str] = field(default_factory=list)
    trial: bool = False


class PhasesAnswer(Struct):
    """``current`` is of the year 1 without a current phase."""

    current: PeriodAnswer
    phases: list[PhaseAnswer]


class WhoisQuery(Struct):
    org: Org
    include: Annotated[list[str], Meta(description="info: what is known of the org")] = field(default_factory=list)


class WhoisAnswer(Struct):
    """``stripe_id`` is empty where nobody takes payments."""

    org: str
    stripe_id: str


class InvoiceSettingsAnswer(Struct):
    default_payment_method: str


class OrgAnswer(Struct):
    """``payment_method`` is always empty, as in Tier."""

    org: str
    stripe_id: str
    email: str
    name: str
    description: str
    phone: str
    created: datetime
    metadata: dict[str, str]
    payment_method: str
    invoice_settings: InvoiceSettingsAnswer


class MethodsAnswer(Struct):
    """Payment methods, as the payment provider has them."""

    org: str
    methods: list[dict[str, Any]]


def phase_answer(phase: PhaseView) -> PhaseAnswer:
    return PhaseAnswer(
        phase.effective,
        list(phase.features),
        _period(phase.current),
        phase.end,
        list(phase.plans),
        list(phase.fragments),
        phase.trial,
    )


def phases_answer(found: Phases) -> PhasesAnswer:
    current = PeriodAnswer(ZERO_TIME, ZERO_TIME) if found.current is None else _period(found.current)
    return PhasesAnswer(current, [phase_answer(phase) for phase in found.phases])


def _period(period: PeriodView) -> PeriodAnswer:
    return PeriodAnswer(period.effective, period.end)


def org_answer(details: OrgDetails) -> OrgAnswer:
    return OrgAnswer(
        org=details.org,
        stripe_id=details.stripe_id,
        email=details.email,
        name=details.name,
        description=details.description,
        phone=details.phone,
        created=details.created,
        metadata=dict(details.metadata),
        payment_method="",
        invoice_settings=InvoiceSettingsAnswer(details.default_payment_method),
    )
