"""What a checkout page offers, as an address that nobody can make or change but this server. Pure.

All of it is in the address, signed, so that any worker can show the page, and one that was started anew as well, where
there is an API key to sign with.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

import msgspec
from msgspec import Struct

from ..decoders import decoder_of

__all__ = ["LIFETIME_MS", "NoOffer", "Offer", "csrf_for", "offer_in", "signed"]

LIFETIME_MS: Final = 86_400_000  # a day, as with Stripe's


class Offer(Struct, frozen=True):
    """Who may subscribe to what, and where they go then. ``clock`` is empty outside of test clocks."""

    org: str
    features: tuple[str, ...]
    trial_days: int
    success_url: str
    cancel_url: str
    expires_ms: int
    nonce: str
    clock: str = ""


class NoOffer(Exception):
    """An address that this server has not made; with ``has_expired`` one that it has made, too long ago."""

    def __init__(self, *, has_expired: bool = False) -> None:
        super().__init__()
        self.has_expired = has_expired


def signed(offer: Offer, secret: bytes) -> str:
    """The offer and its signature, as they stand in an address."""
    body = msgspec.json.encode(offer)
    return f"{_text(body)}.{_text(_signature(body, secret, b'offer'))}"


def offer_in(token: str, secret: bytes, now_ms: int) -> Offer:
    """The offer of an address. Raises `NoOffer`."""
    encoded, _, signature = token.partition(".")
    try:
        body, given = _bytes(encoded), _bytes(signature)
    except ValueError:
        raise NoOffer from None
    if not hmac.compare_digest(given, _signature(body, secret, b"offer")):
        raise NoOffer
    offer = decoder_of(Offer).decode(body)
    if offer.expires_ms <= now_ms:
        raise NoOffer(has_expired=True)
    return offer


def csrf_for(token: str, cookie: str, secret: bytes) -> str:
    """What a form must send back, that was shown to the browser with this cookie."""
    return _text(_signature(f"{token} {cookie}".encode(), secret, b"form"))


def _signature(body: bytes, secret: bytes, purpose: bytes) -> bytes:
    key = hmac.digest(secret, b"tier_middleware checkout " + purpose, hashlib.sha256)
    return hmac.digest(key, body, hashlib.sha256)


def _text(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
