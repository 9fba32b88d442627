"""What it takes to be let through: who asks, how much, whether there is room, and how the no is said. A flow."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from . import flow
from .context import UNRESOLVED, Part, RefusedRequest, TierContext, ended_meanwhile
from .errors import ConfigurationError, EngineUnavailable, OrgNotFound, PricingError
from .flow import Admitted, Denied, Flow, do, insisted
from .idempotency import HEADER, client_key, metering_key
from .model import Model
from .names import MAX_UNITS, NO_ORG, UNMETERED, OrgMark
from .ops import Ask, Checked, Demand, Pull, Release, Shortfall, Usage
from .policy import Reason
from .refusal import Refusal, bad_key, no_org, refusal_for, unavailable
from .requirement import Requirement, amount_arguments, checked_amount
from .settings import answered

__all__ = ["Allowance", "admission", "allowance", "entitlement", "message_admission"]

logger: Final = logging.getLogger("tier_middleware")


def admission(
    context: TierContext,
    requirements: Sequence[Requirement],
    kwargs: Mapping[str, Any],
    given_org: Any = UNRESOLVED,
) -> Flow[RefusedRequest | None]:
    """Let a request through for all its requirements, or refuse it. None: it may go on.

    ``kwargs`` are the handler's parsed arguments, for amounts that ask for them; ``given_org`` is what a dependency of
    the application has found out already.
    """
    if context.method == "OPTIONS":  # CORS preflights carry no credentials
        context.pass_through(requirements)
        return None
    org = yield from _org_for(context, requirements, given_org)
    if org is UNMETERED:
        logger.info("tier: unmetered request for %s", [requirement.feature for requirement in requirements])
        context.pass_through(requirements)
        return None
    if not isinstance(org, str):
        return (yield from _refused(context, requirements, no_org(requirements[0].feature, is_known=org is NO_ORG)))
    parts = yield from _parts(context, requirements, kwargs)
    try:
        _note_keys(context, org, requirements)
    except ValueError as error:
        return (yield from _refused(context, requirements, bad_key(requirements[0].feature, str(error))))
    paid = yield from _paid(context, parts)
    unpaid = {feature: wanted for feature, wanted in parts.items() if feature not in paid}
    demands = tuple(_demand(feature, wanted) for feature, wanted in unpaid.items())
    reply: Admitted | Shortfall | Denied = Admitted(())
    if demands:
        reply = yield from _reserved(context, org, demands, requirements)
    if isinstance(reply, Admitted):
        context.admit(unpaid, reply)
        for feature in paid:
            context.admit_paid(feature, parts[feature])
        context.admitted.extend(requirements)
        if context.is_over:  # a sync handler's thread goes on when its request is cancelled
            yield from insisted(Release(tuple(filter(None, reply.holds or ())), context.core.now_ms()))
            raise ended_meanwhile(requirements)
        return None
    refusal = yield from _refusal_for(context, org, demands, reply)
    return (yield from _refused(context, requirements, refusal))


def _note_keys(context: TierContext, org: str, requirements: Sequence[Requirement]) -> None:
    """Remember what counts once for the client's key. ValueError for one that is none."""
    inherited = context.options.idempotency
    once = {requirement.feature for requirement in requirements if (requirement.idempotency or inherited) == "header"}
    if not once or context.is_socket:
        return
    request = context.request
    headers = request.headers
    values = headers.getlist(HEADER) if hasattr(headers, "getlist") else [headers[HEADER]] if HEADER in headers else []
    key = client_key(values)
    if key is not None:
        path = getattr(request, "path", None) or request.scope["path"]
        keys = {feature: metering_key(org, feature, request.method, path, key) for feature in once}
        context.keys = {**(context.keys or {}), **keys}


def _paid(context: TierContext, parts: Mapping[str, tuple[Part, ...]]) -> Flow[list[str]]:
    """The features that were counted when the request was sent before."""
    paid = []
    for feature in parts if context.keys else ():
        if (yield from context.has_paid(feature)):
            paid.append(feature)
    return paid


def message_admission(context: TierContext) -> Flow[Refusal | None]:
    """Let one more message of a connection through. None: it may go on."""
    org, parts = str(context.org), context.message_parts or {}
    requirements = [requirement for wanted in parts.values() for requirement, _ in wanted]
    demands = tuple(_demand(feature, wanted) for feature, wanted in parts.items())
    reply = yield from _reserved(context, org, demands, requirements)
    if isinstance(reply, Admitted):
        context.admit(parts, reply)
        return None
    return (yield from _refusal_for(context, org, demands, reply))


def _reserved(
    context: TierContext, org: str, demands: tuple[Demand, ...], requirements: Sequence[Requirement]
) -> Flow[Admitted | Shortfall | Denied]:
    policy = _policy(context, requirements)
    absurd = next((demand for demand in demands if demand.n > MAX_UNITS), None)
    if absurd is not None:
        return (yield from _uncountable(context, org, absurd, policy))
    return (yield from flow.admit(context.core.operations.reserve(org, demands), policy))


def _refusal_for(context: TierContext, org: str, demands: Sequence[Demand], reply: Shortfall | Denied) -> Flow[Refusal]:
    if isinstance(reply, Shortfall):
        model = yield from _model(context)
        if reply.reason == "no_entitlement":
            context.core.warn_of_unknown(reply.feature, model)
        return refusal_for(reply, model, context.options.upgrade_page(), context.core.now_ms())
    if not isinstance(reply.error, EngineUnavailable):
        context.core.log_unusable(reply.error)
    return unavailable(demands[0].feature, demands[0].n, org, reply.error)


def _uncountable(context: TierContext, org: str, demand: Demand, policy: flow.FailsOpen) -> Flow[Shortfall | Denied]:
    """Refuse what no counter can hold, with the org's limit where it has one. No open gate lets it through."""
    try:
        reply = yield from flow.check(context.core.operations.check(org, demand.feature, MAX_UNITS), policy)
    except (ConfigurationError, PricingError) as error:
        return Denied(error)
    if isinstance(reply, Denied):
        return reply
    if isinstance(reply, Checked) and reply.shortfall is not None:
        return replace(reply.shortfall, requested=demand.n)
    used, reserved = (reply.usage.used, reply.usage.reserved) if isinstance(reply, Checked) else (0, 0)
    reason: Reason = "amount_exceeds_limit"
    return Shortfall(org, demand.feature, demand.n, used, reserved, None, reason, reason)


def entitlement(context: TierContext, requirement: Requirement) -> Flow[bool]:
    """Whether a request would be let through now. Holds and refuses nothing. An amount that must be asked for is 0."""
    org = yield from _org_for(context, (requirement,), UNRESOLVED)
    if not isinstance(org, str):
        return org is UNMETERED
    n = 0 if callable(requirement.amount) else requirement.amount
    op = context.core.operations.check(org, requirement.feature, n)
    reply = yield from flow.check(op, _policy(context, (requirement,)))
    return reply.shortfall is None if isinstance(reply, Checked) else isinstance(reply, Admitted)


class Allowance(NamedTuple):
    """What an org may use and has used, as a page shows it. ``others`` is the limit of what is not listed."""

    listed: tuple[Usage, ...] = ()
    others: int | None = 0

    def usage_of(self, feature: str) -> Usage:
        unlisted = Usage(feature, used=0, limit=self.others)
        return next((usage for usage in self.listed if usage.feature == feature), unlisted)


def allowance(context: TierContext, request: Any) -> Flow[Allowance]:
    """All that the org of a request may use. An org that never had a plan gets the default one, as by a gate.

    Where the engine is away, ``on_error`` decides whether all is shown or nothing.
    """
    core, of = context.core, context.options.org
    if not context.has_org:
        if of is None:
            raise ConfigurationError("org: nobody says for whom; give the middleware an org=", path="org")
        context.agree_on(of, (yield from do(Ask(of, (request,)))))
    org = context.org
    if not isinstance(org, str):
        return Allowance(others=None if org is UNMETERED else 0)
    try:
        try:
            return Allowance((yield from do(core.operations.look_up(org))))
        except OrgNotFound:
            model = core.model.plans.get(core.settings.default_plan or "")
            if model is None or not model.features:
                return Allowance()
            yield from do(core.operations.check(org, next(iter(model.features)), 0))
            return Allowance((yield from do(core.operations.look_up(org))))
    except EngineUnavailable as error:
        policy = context.options.on_error or core.settings.on_error
        return Allowance(others=None if core.tally.fails_open(policy, request)(error) else 0)


def _org_for(context: TierContext, requirements: Sequence[Requirement], given: Any) -> Flow[str | OrgMark | None]:
    """The org of the request. Each callable is asked once, however many requirements share it."""
    if given is not UNRESOLVED:
        context.agree_on(requirements[0], given)
        return context.org
    for requirement in requirements:
        of = requirement.org or context.options.org
        if of is None and context.has_org:
            continue  # another gate of this request has found out
        if of is None:
            raise ConfigurationError(
                f"org: {requirement.feature!r} is required and nobody says for whom; give TierMiddleware or "
                "the requirement an org= (a callable of the request)",
                path="org",
            )
        value = context.answer_of(of)
        if value is UNRESOLVED:
            value = yield from do(Ask(of, (context.request,)))
        elif isinstance(value, Awaitable):
            value = yield from do(Ask(lambda begun: begun, (value,)))
        context.agree_on(of, value)
    return context.org


def _parts(
    context: TierContext, requirements: Sequence[Requirement], kwargs: Mapping[str, Any]
) -> Flow[dict[str, tuple[Part, ...]]]:
    """What is asked for, by feature: a feature that is required twice is asked for with both amounts."""
    parts: dict[str, tuple[Part, ...]] = {}
    for requirement in requirements:
        n: Any = requirement.amount
        if callable(n):
            n = yield from do(Ask(n, amount_arguments(requirement, context.request, kwargs)))
        part = (requirement, checked_amount(n, requirement.feature))
        parts[requirement.feature] = (*parts.get(requirement.feature, ()), part)
        _check_per(context, [requirement for requirement, _ in parts[requirement.feature]])
    return parts


def _check_per(context: TierContext, requirements: Sequence[Requirement]) -> None:
    """Refuse what makes no sense together."""
    first = requirements[0]
    if first.per == "message" and not context.is_socket:
        raise ConfigurationError(
            f"per: 'message' is for WebSockets, and {first.feature!r} is required of an HTTP request", path="per"
        )
    if any(requirement.per != first.per for requirement in requirements):
        raise ConfigurationError(
            f"per: {first.feature!r} is required once per request and once per message: name two features", path="per"
        )


def _demand(feature: str, parts: Sequence[Part]) -> Demand:
    return Demand(feature, sum(n for _, n in parts), all(requirement.is_amount_given for requirement, _ in parts))


def _policy(context: TierContext, requirements: Sequence[Requirement]) -> flow.FailsOpen:
    """Route before middleware before Tier; the gate opens only where every requirement would open it."""
    inherited = context.options.on_error or context.core.settings.on_error

    def opens(request: Any, error: Exception) -> bool:
        policies = [requirement.on_error or inherited for requirement in requirements]
        return all(
            bool(answered(policy(request, error), "on_error")) if callable(policy) else policy != "deny"
            for policy in policies
        )

    return context.core.tally.fails_open(opens, context.request)


def _refused(context: TierContext, requirements: Sequence[Requirement], refusal: Refusal) -> Flow[RefusedRequest]:
    own = (r.on_refused for r in requirements if r.on_refused is not None and r.feature == refusal.feature)
    on_refused = next(own, None) or context.options.on_refused
    response = None
    if on_refused is not None:
        response = yield from do(Ask(on_refused, (context.request, refusal)))
    return context.refuse(refusal, response)


def _model(context: TierContext) -> Flow[Model]:
    with suppress(EngineUnavailable, ConfigurationError):
        context.core.model = yield from do(Pull())  # another process may have pushed a plan since
    return context.core.model
