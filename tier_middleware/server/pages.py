"""The server's own pages, for people. Everything in them is escaped, and they load nothing from anywhere."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import HTMLResponse

from ..model import Model, Plan
from ..names import FeaturePlan
from ..price_text import describe

__all__ = ["PlanView", "page", "plan_views", "sorry"]

STYLE: Final = "style.css"


class PlanView(NamedTuple):
    """A plan as a page shows it: what of it is subscribed, and what that costs."""

    title: str
    features: tuple[tuple[str, str], ...]


def plan_views(model: Model, entries: Sequence[FeaturePlan]) -> tuple[PlanView, ...]:
    """What a phase lists, by plan: whole plans with all their features, others with those that are listed."""
    listed: dict[str, set[str | None]] = {}
    for entry in entries:
        listed.setdefault(entry.plan, set()).add(entry.feature)
    return tuple(_plan_view(model.plans[name], features) for name, features in listed.items())


def _plan_view(plan: Plan, listed: set[str | None]) -> PlanView:
    shown = {name: one for name, one in plan.features.items() if None in listed or name in listed}
    priced = ((one.title or name.removeprefix("feature:"), one) for name, one in shown.items())
    texts = ((title, describe(one, plan.currency, plan.interval)) for title, one in priced)
    return PlanView(plan.title or plan.name, tuple(texts))


def page(template: str, **values: Any) -> HTMLResponse:
    return _page(template, 200, values)


def sorry(status: int, title: str, text: str) -> HTMLResponse:
    """A page that says why there is none."""
    return _page("sorry.html", status, {"title": title, "text": text})


def _page(template: str, status: int, values: dict[str, Any]) -> HTMLResponse:
    pages = _pages()
    style = Markup(pages.get_template(STYLE).render())  # ours: nothing from outside is in it
    response = HTMLResponse(pages.get_template(template).render(style=style, **values), status)
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    response.headers["content-security-policy"] = (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["referrer-policy"] = "same-origin"  # an address of ours is a permission
    response.headers["x-frame-options"] = "DENY"
    return response


@cache
def _pages() -> Environment:
    return Environment(loader=PackageLoader("tier_middleware.server"), autoescape=True, undefined=StrictUndefined)
