"""The client's ``Idempotency-Key``: a request that is sent again counts once. Pure.

Of https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header, which has it quoted; many clients
send it bare.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

__all__ = ["HEADER", "MAX_KEY", "client_key", "metering_key"]

HEADER: Final = "Idempotency-Key"
MAX_KEY: Final = 255  # characters

QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')  # a string of RFC 8941
BARE: Final = re.compile(r"[!#-+\--:<-\[\]-~]+")  # what has no quote, comma, semicolon, backslash or space in it


def client_key(values: Sequence[str]) -> str | None:
    """The key in a request's headers of that name; None where there is none. ValueError says what is wrong with it."""
    if not values:
        return None
    if len(values) > 1:
        raise ValueError("is there more than once")
    value = values[0].strip(" \t")
    if len(value) > 2 * MAX_KEY + 2:
        raise ValueError(f"has more than {MAX_KEY} characters")
    quoted = QUOTED.fullmatch(value)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else value
    if not key or not (quoted or BARE.fullmatch(value)):
        raise ValueError("must be a string in double quotes, or a word of printable ASCII")
    if len(key) > MAX_KEY:
        raise ValueError(f"has more than {MAX_KEY} characters")
    return key


def metering_key(org: str, feature: str, method: str, path: str, key: str) -> str:
    """What counts once: the same key of the same org, for the same feature, on the same route."""
    return "request:" + sha256(repr((org, feature, method, path, key)).encode()).hexdigest()
