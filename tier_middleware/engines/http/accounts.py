"""What is asked of the server each time: orgs, what they are subscribed to, and how they pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ... import calls, wire
from ...errors import InvalidRequest
from ...ops import (
    Checkout,
    DeleteOrg,
    Describe,
    EngineInfo,
    Identify,
    LookUpPaymentMethods,
    LookUpPhases,
    OrgRecord,
    PhasesInfo,
    ReadHistory,
    Schedule,
    UpdateOrg,
)
from .server import Server

__all__ = ["Accounts"]


class Accounts:
    """``forget`` is told of an org whose limits may have changed."""

    def __init__(self, server: Server, forget: Callable[[str], None]) -> None:
        self._server = server
        self._forget = forget

    def schedule(self, op: Schedule) -> None:
        if op.must_exist:
            self._server.asked(calls.whois(op.org), calls.org_in)
        self._server.asked(calls.subscription(op.org, op.phases), wire.done_in)
        self._forget(op.org)

    def update(self, op: UpdateOrg) -> None:
        self._server.asked(calls.info_update(op.org, op.info), wire.done_in)
        self._forget(op.org)

    def describe(self, op: Describe) -> OrgRecord:
        return self._server.asked(calls.whois(op.org), calls.org_in)

    def payment_methods(self, op: LookUpPaymentMethods) -> tuple[Mapping[str, Any], ...]:
        return self._server.asked(calls.payment_methods(op.org), calls.payment_methods_in)

    def checkout(self, op: Checkout) -> str:
        return self._server.asked(calls.checkout(op), calls.checkout_in)

    def phases(self, op: LookUpPhases) -> PhasesInfo:
        request = calls.phases(op.org)
        return calls.phases_in(request, self._server.answer(request), op.now_ms)

    def identify(self, op: Identify) -> EngineInfo:
        return self._server.asked(calls.whoami(), calls.whoami_in)

    def unsupported(self, op: ReadHistory | DeleteOrg) -> Any:
        call = "history" if isinstance(op, ReadHistory) else "delete_org"
        raise InvalidRequest(f"{call}: Tier's API has no such call", path=call)
