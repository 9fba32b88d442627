"""The pages: a board with the team's labels and usage, plans, members."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from django.contrib.auth import get_user_model, login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.core.exceptions import BadRequest, PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views import View
from django.views.decorators.http import require_GET, require_POST

from tier_middleware import OrgNotFound
from tier_middleware.django import RequiresFeatureMixin, requires_feature, sync_tier
from tier_middleware.model import Plan
from tier_middleware.price_text import money
from tier_middleware.prices import fixed_price, newest_plans

from . import carrier
from .forms import LabelForm, MemberForm, SignUpForm
from .models import Membership, Team
from .teams import membership_of, team_of


def sign_up(request: HttpRequest) -> HttpResponse:
    """Founds a team, or waits to be added to one. A new team is on the default plan of the settings."""
    form = SignUpForm(request.POST or None)
    if not form.is_valid():
        return render(
            request, "labels/form.html", {"form": form, "title": "Sign up"}, status=422 if request.POST else 200
        )
    with transaction.atomic():
        user = form.save()
        if form.cleaned_data["team"]:
            team = Team.objects.create(name=form.cleaned_data["team"])
            Membership.objects.create(user=user, team=team, role=Membership.Role.OWNER)
    login(request, user)
    return redirect("board")


@login_required
@require_GET
def board(request: HttpRequest) -> HttpResponse:
    membership = membership_of(request.user)
    labels = [] if membership is None else membership.team.labels.order_by("-pk")[:20]
    return render(request, "labels/board.html", {"membership": membership, "labels": labels, "form": LabelForm()})


@login_required
@require_POST
@requires_feature("feature:labels")
def buy_label(request: HttpRequest) -> HttpResponse:
    """One label each. A form with mistakes answers 422, a carrier that is down raises: neither is counted."""
    form = LabelForm(request.POST)
    if not form.is_valid():
        return render(request, "labels/form.html", {"form": form, "title": "Buy a label"}, status=422)
    form.instance.team = team_of(request.user)
    carrier.register(form.instance.address)
    form.save()
    return redirect("board")


@requires_feature("feature:address-checks")
async def check_address(request: HttpRequest) -> JsonResponse:
    """An async view; who asks is found by sync code with the ORM all the same."""
    address = request.GET.get("address", "")
    if not address:
        raise BadRequest("address is missing")
    return JsonResponse({"address": address, "deliverable": await carrier.is_deliverable(address)})


class Export(LoginRequiredMixin, RequiresFeatureMixin, View):
    """The team's labels as CSV, as a stream: a feature that a plan has or has not, and that nobody counts."""

    feature_required = "feature:export"

    def get(self, request: HttpRequest) -> StreamingHttpResponse:
        team = team_of(request.user)
        labels = [] if team is None else team.labels.order_by("pk").iterator()
        return StreamingHttpResponse(_rows(labels), content_type="text/csv")


class _Line:
    def write(self, text: str) -> str:
        return text


def _rows(labels: Any) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield writer.writerow(("bought at", "address"))
    for label in labels:
        safe = f"'{label.address}" if label.address.startswith(("=", "+", "-", "@")) else label.address
        yield writer.writerow((label.bought_at.isoformat(), safe))


@login_required
def plans(request: HttpRequest) -> HttpResponse:
    """What is sold. Owners choose with a button; no payment is taken here: a shop would ask for it first."""
    membership = membership_of(request.user)
    offered = sorted(newest_plans(sync_tier.pull()), key=fixed_price)
    if request.method == "POST":
        if membership is None or membership.role != Membership.Role.OWNER:
            raise PermissionDenied("Only owners choose a plan.")
        if request.POST.get("plan") not in [plan.name for plan in offered]:
            raise BadRequest("This plan is not for sale.")
        sync_tier.subscribe(membership.team.org, request.POST["plan"])
        return redirect("board")
    current = () if membership is None else _plans_of(membership.team.org)
    cards = [(plan, _price(plan), plan.name in current) for plan in offered]
    return render(request, "labels/plans.html", {"cards": cards, "membership": membership})


def _plans_of(org: str) -> tuple[str, ...]:
    try:
        phase = sync_tier.lookup_phase(org)
    except OrgNotFound:  # it has used nothing yet
        return ("plan:free@1",)
    return () if phase is None else phase.plans


def _price(plan: Plan) -> str:
    return f"{money(fixed_price(plan), plan.currency)} a month" if fixed_price(plan) else "Free"


@login_required
@require_POST
def add_member(request: HttpRequest) -> HttpResponse:
    """Owners add users who have signed up and have no team; they share its plan."""
    membership = membership_of(request.user)
    if membership is None or membership.role != Membership.Role.OWNER:
        raise PermissionDenied("Only owners add members.")
    form = MemberForm(request.POST)
    if not form.is_valid():
        return render(request, "labels/form.html", {"form": form, "title": "Add a member"}, status=422)
    user = get_object_or_404(get_user_model(), username=form.cleaned_data["username"], membership=None)
    Membership.objects.create(user=user, team=membership.team, role=form.cleaned_data["role"])
    return redirect("board")
