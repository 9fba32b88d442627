"""Who is in which team, and so whose plan a request is on."""

from __future__ import annotations

from typing import Any

from tier_middleware import NO_ORG, UNMETERED

from .models import Membership, Team


def org_of_request(request: Any) -> Any:
    """Asked by every gate, of Django's requests and of REST framework's; the user is known by then."""
    if not request.user.is_authenticated:
        return None
    if request.user.is_staff:
        return UNMETERED
    team = team_of(request.user)
    return NO_ORG if team is None else team.org


def team_of(user: Any) -> Team | None:
    membership = membership_of(user)
    return None if membership is None else membership.team


def membership_of(user: Any) -> Membership | None:
    found: Membership | None = Membership.objects.select_related("team").filter(user_id=user.pk).first()
    return found
