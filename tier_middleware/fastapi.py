"""The face for FastAPI: a gate as a dependency, after the application's own auth guard. `TierMiddleware` settles it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import wraps
from typing import Any, Final

from fastapi import Depends, HTTPException, WebSocketException
from starlette.requests import HTTPConnection

from .asgi import TierMiddleware, requires_feature
from .asgi.decorator import signature_of, with_parameter
from .asgi.exchange import REFUSAL_HEADER
from .asgi.responses import context_of
from .asgi.sockets import POLICY_VIOLATION
from .client import AsyncTier
from .context import UNRESOLVED, FeatureUsage, RefusedRequest
from .errors import ConfigurationError
from .gate import admission
from .refusal import close_reason
from .requirement import ONE, Amount, Idempotency, OnDisconnect, OnRefused, Overage, Per, ReportIf, Requirement
from .settings import OnError

__all__ = ["RefusedHTTPException", "RequiresFeature", "TierMiddleware", "gated_generator", "requires_feature"]

GATE: Final = "tier_gate_"
"""A keyword-only parameter of handlers that are generators; it shows in no OpenAPI document."""


class RefusedHTTPException(HTTPException):
    """What a dependency raises to refuse. `TierMiddleware` puts the real answer in the place of its response.

    An exception handler of the application that makes a response without this exception's headers keeps it.
    """

    def __init__(self, refused: RefusedRequest) -> None:
        refusal = refused.refusal
        headers = {REFUSAL_HEADER.decode(): refusal.code}
        super().__init__(status_code=refusal.status, detail=refusal.detail, headers=headers)
        self.refusal = refusal


class RequiresFeature:
    """``usage = Depends(RequiresFeature("feature:x", org=current_org))``: the handler runs only if the org may.

    ``org`` is a dependency of the application's own, usually its auth guard, sync or async: it answers an org's id,
    None (401), `NO_ORG` (403) or `UNMETERED`. Without it the middleware's ``org`` is asked. The other arguments are
    those of `tier_middleware.asgi.requires_feature`; ``amount`` may be a callable of ``(request)``. The dependency's
    value is the `FeatureUsage`. Also for ``dependencies=[...]`` of routes, routers and applications.
    """

    def __init__(
        self,
        feature: str,
        amount: Amount = ONE,
        *,
        org: Callable[..., Any] | None = None,
        on_refused: OnRefused | None = None,
        on_error: OnError | None = None,
        report_if: ReportIf | None = None,
        overage: Overage = "record",
        on_disconnect: OnDisconnect | None = None,
        per: Per = "request",
        idempotency: Idempotency | None = None,
    ) -> None:
        if org is not None and not callable(org):
            raise ConfigurationError(f"org: must be a dependency (a callable), got {org!r}", path="org")
        self.requirement = Requirement(
            feature,
            amount,
            on_refused=on_refused,
            on_error=on_error,
            report_if=report_if,
            overage=overage,
            on_disconnect=on_disconnect,
            per=per,
            idempotency=idempotency,
        )
        _without_kwargs(self.requirement)
        self.__tier_requirements__ = (self.requirement,)
        empty = inspect.Signature()
        self.__signature__ = with_parameter(empty, "connection", HTTPConnection)
        if org is not None:
            self.__signature__ = with_parameter(self.__signature__, "org", Any, Depends(org))

    async def __call__(self, connection: HTTPConnection, org: Any = UNRESOLVED) -> FeatureUsage:
        await _admit(connection, (self.requirement,), org)
        return context_of(connection)[self.requirement.feature]


async def _admit(connection: HTTPConnection, requirements: tuple[Requirement, ...], org: Any = UNRESOLVED) -> None:
    context = context_of(connection)
    if org is UNRESOLVED and len(requirements) == 1 and context.admit_at_once(requirements[0]):
        return
    missing = [needed for needed in requirements if needed not in context.admitted]
    if missing:
        refused = await AsyncTier.on(context.core).run(admission(context, missing, {}, org))
        if refused is not None:
            context.has_raised = True
            if context.is_socket:
                raise WebSocketException(POLICY_VIOLATION, close_reason(refused.refusal))
            raise RefusedHTTPException(refused)


def gated_generator(handler: Callable[..., Any], requirements: tuple[Requirement, ...]) -> Callable[..., Any]:
    """A handler that is a generator (SSE, JSON lines) behind its gate.

    Its response begins before its body runs, so the check is a dependency, which FastAPI solves before that.
    """
    for requirement in requirements:
        _without_kwargs(requirement)

    async def gate(connection: HTTPConnection) -> None:
        await _admit(connection, requirements)

    inner = signature_of(handler)
    is_passed_on = GATE in inner.parameters

    def without_gate(kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs if is_passed_on else {name: value for name, value in kwargs.items() if name != GATE}

    if inspect.isasyncgenfunction(handler):

        @wraps(handler)
        async def gated(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async with aclosing(handler(*args, **without_gate(kwargs))) as items:
                async for item in items:
                    yield item

    else:

        @wraps(handler)
        def gated(*args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from handler(*args, **without_gate(kwargs))

    kept = [parameter for parameter in inner.parameters.values() if parameter.name != GATE]
    signature = with_parameter(inner.replace(parameters=kept), GATE, None, Depends(gate))
    gated.__signature__ = signature  # type: ignore[attr-defined]  # how inspect is told
    gated.__tier_requirements__ = requirements  # type: ignore[attr-defined]  # for gates and checks around this one
    return gated


def _without_kwargs(requirement: Requirement) -> None:
    if requirement.takes_kwargs:
        raise ConfigurationError(
            f"amount: the check of {requirement.feature!r} runs before the handler's arguments are parsed, so it must "
            f"be a callable of (request) only, got {requirement.amount!r}",
            path="amount",
        )
