"""What a person types, as values: amounts and times. Mistakes are `InvalidRequest`, as everywhere."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ..errors import InvalidRequest
from ..names import checked_units

__all__ = ["time_for", "units_for"]

_WHOLE = re.compile(r"-?[0-9]{1,60}")


def units_for(text: str) -> int:
    """A whole number of units, 0 or more."""
    if not _WHOLE.fullmatch(text):
        raise InvalidRequest(f"n: must be a whole number >= 0, got {_bounded(text)}", path="n")
    return checked_units(int(text))


def time_for(text: str) -> datetime:
    """The moment that an RFC 3339 time names, in UTC. One without an offset names none."""
    try:
        at = datetime.fromisoformat(text.upper())  # RFC 3339 allows t and z
        if at.utcoffset() is None:
            raise InvalidRequest(
                f"at: must end in Z or an offset, as in '2023-03-23T00:00:00Z', got {_bounded(text)}", path="at"
            )
        return at.astimezone(UTC)
    except InvalidRequest:  # is a ValueError, too
        raise
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"at: must be an RFC 3339 time such as '2023-03-23T00:00:00Z', got {_bounded(text)}", path="at"
        ) from None


def _bounded(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
