"""What permissions have refused: REST framework hears only False of it, and makes a 403 that is ours to replace."""

from __future__ import annotations

from typing import Final

from django.http import HttpRequest

from ..context import RefusedRequest
from ..requirement import Requirement

__all__ = ["Denials", "denials_of", "denied_by_permission"]

ATTRIBUTE: Final = "_tier_denials"


class Denials:
    """Of one request: each requirement's refusal, and the one that stands unless another branch lets it in.

    ``for_objects`` are the requirements that let some object be used: they stay, whatever becomes of other objects.
    """

    __slots__ = ("by_requirement", "for_objects", "standing")

    def __init__(self) -> None:
        self.by_requirement: dict[Requirement, RefusedRequest] = {}
        self.standing: RefusedRequest | None = None
        self.for_objects: set[Requirement] = set()


def denials_of(request: HttpRequest) -> Denials:
    """The request's own; made when first asked for."""
    found = getattr(request, ATTRIBUTE, None)
    if found is None:
        found = Denials()
        setattr(request, ATTRIBUTE, found)
    return found


def denied_by_permission(request: HttpRequest) -> RefusedRequest | None:
    found = getattr(request, ATTRIBUTE, None)
    return None if found is None else found.standing
