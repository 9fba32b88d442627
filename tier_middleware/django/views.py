"""`RequiresFeatureMixin` for class-based views, sync and async."""

from __future__ import annotations

from typing import Any, ClassVar

from django.http import HttpRequest
from django.views import View

from ..errors import ConfigurationError
from ..requirement import ONE, Amount, Needs, Requirement, requirements_of
from .decorator import gated_call

__all__ = ["RequiresFeatureMixin"]


class RequiresFeatureMixin:
    """Put it before the view's other base classes, and after those that must run first (`LoginRequiredMixin`).

    ``feature_required`` is a feature, a `Requirement` (for all the options of `requires_feature`), or a list of them:
    all or none. ``feature_amount`` is the amount of those that are given by name: whole units, or a method
    ``def feature_amount(self, request)``, sync or async. A subclass requires what its own attributes say.
    """

    feature_required: Needs | None = None
    feature_amount: Amount = ONE

    _tier_fixed: ClassVar[tuple[Requirement, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if View in cls.__mro__ and cls.__mro__.index(View) < cls.__mro__.index(RequiresFeatureMixin):
            raise ConfigurationError(
                f"{cls.__name__}: RequiresFeatureMixin must be before the view's other base classes, else nothing is "
                "required"
            )
        cls._tier_fixed = () if cls.feature_required is None else requirements_of(cls.feature_required)

    def get_requirements(self) -> tuple[Requirement, ...]:
        """What this request needs; for views that decide it by request."""
        if self.feature_required is None:
            raise ConfigurationError(
                f"{type(self).__name__} has no feature_required: give it one, or define get_requirements()",
                path="feature_required",
            )
        if self.feature_amount is ONE and self.feature_required is type(self).feature_required:
            return self._tier_fixed
        needs = self.feature_required
        listed = (needs,) if isinstance(needs, str | Requirement) else needs
        return tuple(
            need if isinstance(need, Requirement) else Requirement(need, self.feature_amount) for need in listed
        )

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        view: Any = super().dispatch  # type: ignore[misc]  # of the View that this is mixed into
        return gated_call(view, self.get_requirements(), request, (request, *args), kwargs)
