"""Who may ask: whoever has the API key; without one, programs of this machine. Pure.

Browsers send what they remember of a site along with the requests of any page, and reach this machine's own ports, so a
page of another origin may never ask.
"""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Mapping
from hashlib import sha256
from urllib.parse import urlsplit

from ..engine_urls import is_loopback
from .faults import Fault

__all__ = ["admit", "is_of_other_page"]


def admit(headers: Mapping[str, str], peer: str | None, api_key: bytes | None, *, is_guarded: bool = False) -> None:
    """Raise the `Fault` that says why a request may not ask. ``peer`` is the other end's address, where it has one.

    ``is_guarded``: the application around the server has checked who asks.
    """
    if api_key is not None:
        given = _given_key(headers.get("authorization", ""))
        if not hmac.compare_digest(sha256(given).digest(), sha256(api_key).digest()):  # not even its length shows
            raise _no_key("invalid api key")
    elif not is_guarded:
        if peer is not None and not is_loopback(peer):
            raise _no_key("this server has no TIER_API_KEY, so only programs of its own machine may ask")
        if "x-forwarded-for" in headers or "forwarded" in headers:
            raise _no_key("there is a proxy in front of this server: set TIER_API_KEY")
        if not is_loopback(_host(headers)):  # a page whose name was made to lead here
            raise Fault(403, "forbidden", "without a TIER_API_KEY it must be asked as 127.0.0.1 or localhost")
    if is_of_other_page(headers):
        raise Fault(403, "forbidden", "pages of other origins may not ask")


def _no_key(message: str) -> Fault:
    return Fault(401, "invalid_api_key", message, {"www-authenticate": 'Basic realm="tier", charset="UTF-8"'})


def _given_key(authorization: str) -> bytes:
    """The user name of HTTP Basic authentication whose password is empty."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        decoded = b64decode(credentials.strip(), validate=True)
    except ValueError:
        return b""
    return decoded[:-1] if decoded.endswith(b":") else b""


def is_of_other_page(headers: Mapping[str, str], public_url: str | None = None) -> bool:
    """Whether a browser sends this for a page of another origin: of none that is reached as this one, or publicly."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    own = {headers.get("host", "").lower(), _netloc(public_url or "")} - {""}
    return origin is not None and _netloc(origin) not in own


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _host(headers: Mapping[str, str]) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None
