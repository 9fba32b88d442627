"""The one page that Paperlane has: plans, usage, and the forms to log in and to upgrade. Everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from fastapi.responses import HTMLResponse

from tier_middleware import Usage
from tier_middleware.model import Plan
from tier_middleware.price_text import describe, money
from tier_middleware.prices import fixed_price

from .accounts import User

HEADERS: Final = {
    "cache-control": "no-store",  # it shows one organisation's usage
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'",
}

PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Paperlane: plans</title>
<style>
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
  main {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem }}
  section, form {{ border: 1px solid #ccc; border-radius: .5rem; padding: 1rem }}
  section form {{ border: 0; padding: 0 }}
  label {{ display: block }} td, th {{ padding: 0 1rem 0 0; text-align: left }}
</style>
<h1>Paperlane</h1>
{visitor}
<main>{plans}</main>
</html>
"""

ENTRANCE: Final = """<main>
<form method="post" action="/signup"><h2>Sign up</h2>
  <label>E-mail <input name="email" type="email" required></label>
  <label>Password <input name="password" type="password" minlength="10" required></label>
  <label>Organisation <input name="organisation" required></label>
  <button>Sign up</button></form>
<form method="post" action="/login"><h2>Log in</h2>
  <label>E-mail <input name="email" type="email" required></label>
  <label>Password <input name="password" type="password" required></label>
  <button>Log in</button></form>
</main><h2>Plans</h2>"""


def pricing_page(
    plans: Sequence[Plan], current: Sequence[str], user: User | None, usage: Iterable[Usage]
) -> HTMLResponse:
    """The plans, cheapest first; ``current`` are the organisation's."""
    can_buy = user is not None and user.org is not None
    cards = "\n".join(_card(plan, is_current=plan.name in current, can_buy=can_buy) for plan in plans)
    visitor = ENTRANCE if user is None else _greeting(user, usage)
    return HTMLResponse(PAGE.format(visitor=visitor, plans=cards), headers=HEADERS)


def _card(plan: Plan, *, is_current: bool, can_buy: bool) -> str:
    price = f"{money(fixed_price(plan), plan.currency)} a month" if fixed_price(plan) else "Free"
    features = "".join(f"<li>{_offer(plan, name)}</li>" for name in plan.features)
    end = "<p><strong>Your plan</strong></p>" if is_current else _button(plan) if can_buy else ""
    return f"<section><h2>{escape(plan.title or plan.name)}</h2><p>{price}</p><ul>{features}</ul>{end}</section>"


def _offer(plan: Plan, name: str) -> str:
    feature = plan.features[name]
    title = escape(feature.title or name)
    return f"{title}: {describe(feature, plan.currency, plan.interval)}" if feature.is_metered else title


def _button(plan: Plan) -> str:
    return (
        f'<form method="post" action="/upgrade"><input type="hidden" name="plan" value="{escape(plan.name)}">'
        f"<button>Choose {escape(plan.title or plan.name)}</button></form>"
    )


def _greeting(user: User, usage: Iterable[Usage]) -> str:
    metered = (one for one in usage if one.resets_at is not None)  # on/off features have nothing to show
    rows = "".join(
        f"<tr><td>{escape(one.feature)}<td>{one.used}<td>{'unlimited' if one.limit is None else one.limit}"
        for one in metered
    )
    table = f"<table><tr><th>This month<th>Used<th>Limit{rows}</table>" if rows else ""
    leave = '<form method="post" action="/logout"><button>Log out</button></form>'
    return f"<p>You are {escape(user.email)}.</p>{table}{leave}<h2>Plans</h2>"
