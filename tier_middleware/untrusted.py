"""An org that clients name themselves: for programs that only others of one's own can reach."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from .errors import ConfigurationError, InvalidRequest
from .names import org_for

__all__ = ["org_from_untrusted_header"]

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")  # RFC 9110: a token
_VALUE: Final = re.compile(r"[!-+\--~]{1,1024}")  # all visible ASCII but the comma


def org_from_untrusted_header(name: str) -> Callable[[Any], str | None]:
    """An ``org=`` callable that believes a header of the request: whoever can send a request can be any org.

    For services behind a gateway that authenticates, sets this header and removes it from what clients send; nowhere
    else. A request is nobody's (401) without the header, with more than one, and where its value is no org's id, has a
    comma (which is how WSGI joins two) or more than visible ASCII (of which servers make different texts). Raises
    `ConfigurationError` for a name that no header has.
    """
    if not isinstance(name, str) or not _HEADER.fullmatch(name):
        raise ConfigurationError(f"org_from_untrusted_header: must be a header's name, got {name!r}", path="org")

    def org_from_header(request: Any) -> str | None:
        headers = request.headers
        values = headers.getlist(name) if hasattr(headers, "getlist") else [headers.get(name, "")]
        if len(values) != 1 or not _VALUE.fullmatch(values[0]):
            return None
        try:
            return org_for(values[0])
        except InvalidRequest:
            return None

    return org_from_header
