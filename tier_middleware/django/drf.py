"""The face for Django REST framework: a gate as a permission, after the framework's own authentication.

REST framework asks permissions more often than it runs a view: for the forms of its browsable pages, for OPTIONS, for
each object. A request reserves once, for the method that it was sent with; every other question only looks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, ClassVar

from rest_framework import permissions

from ..client import Tier
from ..context import TierContext
from ..errors import ConfigurationError, TierError
from ..flow import insisted
from ..gate import admission, entitlement
from ..ops import Release
from ..requirement import ONE, Amount, Idempotency, OnDisconnect, OnRefused, OrgOf, Overage, ReportIf, Requirement
from ..settings import OnError
from .asking import asked
from .denials import denials_of
from .entrance import context_of
from .transactions import settle_with

__all__ = ["HasFeature"]


def HasFeature(  # stands among the classes of permission_classes, and makes one
    feature: str,
    amount: Amount = ONE,
    *,
    actions: Collection[str] | None = None,
    org: OrgOf | None = None,
    on_refused: OnRefused | None = None,
    on_error: OnError | None = None,
    report_if: ReportIf | None = None,
    overage: Overage = "record",
    on_disconnect: OnDisconnect | None = None,
    idempotency: Idempotency | None = None,
) -> Any:
    """``permission_classes = [HasFeature("feature:x", amount=2)]``: the view runs only if the org may use the feature.

    ``org`` and ``amount`` are asked with REST framework's request, whose ``user`` and ``auth`` are known. ``actions``
    are those of a viewset that need it (default: all); others are let through, and a name that is none of its methods
    raises `ConfigurationError` in a request. The rest is as in `tier_middleware.django.requires_feature`. A refusal is
    answered as everywhere, in place of the framework's 403.

    May be combined by ``&``, ``|`` and ``~``. Of ``A | B``, a side that does not grant is given back where one side is
    made by this function or by these operators of it; ``~`` only looks. Make it once, not for each request.
    """
    requirement = Requirement(
        feature, amount, org, on_refused, on_error, report_if, overage, on_disconnect, idempotency=idempotency
    )
    if isinstance(actions, str):
        raise ConfigurationError(f"actions: must be a list of names, got {actions!r}", path="actions")
    chosen = None if actions is None else frozenset(actions)
    return _Composable("HasFeature", (_FeaturePermission,), {"requirement": requirement, "actions": chosen})


# ---- combining ------------------------------------------------------------------------------------------------------


class _Operators:
    """Builds our own operands, in whichever place ours stands."""

    def __and__(self, other: Any) -> Any:
        return _Holder(_Both, self, other)

    def __rand__(self, other: Any) -> Any:
        return _Holder(_Both, other, self)

    def __or__(self, other: Any) -> Any:
        return _Holder(_Either, self, other)

    def __ror__(self, other: Any) -> Any:
        return _Holder(_Either, other, self)

    def __invert__(self) -> Any:
        return _SingleHolder(_Not, self)


class _Composable(_Operators, permissions.BasePermissionMetaclass):
    pass


class _Holder(_Operators, permissions.OperandHolder):
    pass


class _SingleHolder(_Operators, permissions.SingleOperandHolder):
    pass


class _Both(permissions.AND):
    def looks(self, request: Any, view: Any) -> bool:
        return _looks(self.op1, request, view) and _looks(self.op2, request, view)


class _Either(permissions.OR):
    """Gives back what a side holds that does not grant, and forgets a side's refusal where the other grants."""

    def looks(self, request: Any, view: Any) -> bool:
        return _looks(self.op1, request, view) or _looks(self.op2, request, view)

    def has_permission(self, request: Any, view: Any) -> bool:
        if _is_question(request, view):
            return self.looks(request, view)
        return any(self._grants(side, request, view) for side in (self.op1, self.op2))

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        if _is_question(request, view):
            return any(
                _looks(side, request, view) and side.has_object_permission(request, view, obj)
                for side in (self.op1, self.op2)
            )
        return any(self._grants(side, request, view, (obj,)) for side in (self.op1, self.op2))

    def _grants(self, side: Any, request: Any, view: Any, objects: tuple[Any, ...] = ()) -> bool:
        is_granted: bool = side.has_permission(request, view) and all(
            side.has_object_permission(request, view, obj) for obj in objects
        )
        context, denials, held = context_of(request), denials_of(request._request), tuple(_requirements_in(side))
        if is_granted:
            context.refused = denials.standing = None
            denials.for_objects.update(
                requirement for requirement in held if objects and requirement in context.admitted
            )
        else:
            _give_back(context, tuple(requirement for requirement in held if requirement not in denials.for_objects))
        return is_granted


class _Not(permissions.NOT):
    def looks(self, request: Any, view: Any) -> bool:
        return not _looks(self.op1, request, view)

    has_permission = looks

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return not (_looks(self.op1, request, view) and self.op1.has_object_permission(request, view, obj))


def _is_question(request: Any, view: Any) -> bool:
    """Whether it is the browsable page's forms that ask: with a copy of the request that has another method, or for a
    view that has answered already.
    """
    return request.method != request._request.method or getattr(view, "response", None) is not None


def _looks(permission: Any, request: Any, view: Any) -> bool:
    looks = getattr(permission, "looks", permission.has_permission)
    return bool(looks(request, view))


def _requirements_in(permission: Any) -> Iterator[Requirement]:
    if isinstance(permission, _FeaturePermission):
        yield permission.requirement
    for name in ("op1", "op2"):
        if hasattr(permission, name):
            yield from _requirements_in(getattr(permission, name))


def _give_back(context: TierContext, requirements: tuple[Requirement, ...]) -> None:
    for requirement in requirements:
        holds = context.withdraw(requirement) if requirement in context.admitted else ()
        if holds:
            with suppress(TierError):  # else it expires
                Tier.on(context.core).run(insisted(Release(holds, context.core.now_ms())))


# ---- the permission -------------------------------------------------------------------------------------------------


class _FeaturePermission(permissions.BasePermission):
    requirement: ClassVar[Requirement]
    actions: ClassVar[frozenset[str] | None]

    def has_permission(self, request: Any, view: Any) -> bool:
        if not self._is_for(view):
            return True
        if _is_question(request, view):
            return self.looks(request, view)
        if request.method == "OPTIONS":
            context_of(request).pass_through((self.requirement,))
            return True
        return self._lets_in(request, view)

    def looks(self, request: Any, view: Any) -> bool:
        """Whether the request would be let in; holds nothing."""
        if request.method == "OPTIONS" or not self._is_for(view):
            return True
        former = request.tier.request
        context = request.tier if request.tier.is_over else context_of(request)  # or it is rendered
        try:
            return Tier.on(context.core).run(asked(entitlement(context, self.requirement)))
        finally:
            context.request = former

    def _is_for(self, view: Any) -> bool:
        if self.actions is None or getattr(view, "action", None) in self.actions:
            return True
        unknown = sorted(name for name in self.actions - {"metadata"} if not callable(getattr(view, name, None)))
        if unknown or not hasattr(view, "action"):
            wrong = f"has no {', '.join(map(repr, unknown))}" if hasattr(view, "action") else "is no viewset"
            raise ConfigurationError(
                f"actions: {type(view).__name__} {wrong}, so {self.requirement.feature!r} would not be required by "
                f"{sorted(self.actions)}",
                path="actions",
            )
        return False

    def _lets_in(self, request: Any, view: Any) -> bool:
        context, denials, requirement = context_of(request), denials_of(request._request), self.requirement
        if requirement in context.admitted:
            return True
        refused = denials.by_requirement.get(requirement)
        if refused is None:
            if context.admit_at_once(requirement):
                settle_with(view, request)
                return True
            refused = Tier.on(context.core).run(asked(admission(context, (requirement,), view.kwargs)))
            if refused is None:
                settle_with(view, request)
                return True
            denials.by_requirement[requirement] = refused
        context.refused = denials.standing = refused
        self.message, self.code = refused.refusal.detail, refused.refusal.code  # what an exception handler sees
        return False
