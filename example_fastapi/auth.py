"""The auth guard: who sends a request, and for which organisation."""

from __future__ import annotations

import os
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request

from tier_middleware import NO_ORG, UNMETERED
from tier_middleware.names import OrgValue

from .accounts import Accounts, User

accounts = Accounts(os.environ.get("EXAMPLE_DB") or "example.db")


def visitor(request: Request) -> User | None:
    """Whoever sent the request: programs show a bearer token, browsers have it in their signed session cookie."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        token = request.session.get("token", "")
    user = accounts.user_of(token.strip()) if token else None
    request.state.user = user
    return user


async def current_user(user: Annotated[User | None, Depends(visitor)]) -> User:
    if user is None:
        raise HTTPException(401, "Log in first.", headers={"WWW-Authenticate": "Bearer"})
    return user


CurrentUser = Annotated[User, Depends(current_user)]


async def current_org(user: CurrentUser) -> OrgValue:
    """Whose plan a request is counted on; all users of an organisation share it. Our staff use everything for free."""
    return UNMETERED if user.is_staff else user.org or NO_ORG


async def own_org(user: CurrentUser) -> str:
    """For routes that are about the organisation itself."""
    if user.org is None:
        raise HTTPException(403, "You belong to no organisation.")
    return user.org


async def org_of_request(request: Any) -> OrgValue:
    """`current_org` for @requires_feature, which sees the request only: the route's guard left the user there."""
    return await current_org(request.state.user)


def not_from_elsewhere(request: Request) -> None:
    """Refuse forms on other sites' pages: browsers would send them with our visitor's cookie (CSRF).

    Browsers say where a form comes from. Programs do not, and have no cookie that a page could misuse.
    """
    if request.method in ("GET", "HEAD", "OPTIONS"):
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        is_ours = site in ("same-origin", "none")
    else:
        is_ours = origin is None or urlsplit(origin).netloc == request.url.netloc
    if not is_ours:
        raise HTTPException(403, "This form is not ours.")
