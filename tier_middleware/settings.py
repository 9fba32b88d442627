"""What can be set, from arguments or from ``TIER_...`` variables; a bad value fails at start and names key and
value.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

from .errors import ConfigurationError, InvalidRequest
from .ledger import DEFAULT_LEDGER_DAYS
from .names import checked_plan

__all__ = [
    "DEFAULT_URL",
    "OnError",
    "OnLoss",
    "Settings",
    "answered",
    "checked_on_error",
    "checked_url",
    "is_plain_function",
    "settings_for",
]

OnError: TypeAlias = Literal["allow", "deny", "stale"] | Callable[[Any, Exception], bool]
"""What to answer while the engine is away: ``(request, error) -> bool``, where True lets the request pass. ``"stale"``,
of a client of a Tier server: what the server last said, and ``"allow"`` where it has said nothing.
"""

OnLoss: TypeAlias = Literal["fail"] | Callable[[tuple[Any, ...], str], None]
"""What to do with usage that could not be counted: ``(reports, reason)``."""

DEFAULT_URL: Final = "sqlite:///tier.db"
MAX_SECONDS: Final = 30 * 86_400
MAX_LEDGER_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of `Tier` and `AsyncTier`, checked."""

    base_url: str = DEFAULT_URL
    api_key: str | None = field(default=None, repr=False)
    pricing: Any = None  # whatever tier_middleware.pricing.read_model takes
    default_plan: str | None = None
    timeout: float = 5.0  # seconds
    on_error: OnError = "allow"
    reservation_seconds: float = 900.0
    flush_seconds: float = 10.0
    on_loss: OnLoss | None = None
    ledger_days: int = DEFAULT_LEDGER_DAYS  # for which entries are kept; 0: none is made
    outbox: str | os.PathLike[str] | None = None  # the file of what waits for the engine; None: engine_urls.outbox_path


def settings_for(environ: Mapping[str, str], **given: Any) -> Settings:
    """The settings of a program.

    What it gives wins over ``TIER_BASE_URL, TIER_API_KEY, TIER_PRICING, TIER_DEFAULT_PLAN, TIER_LEDGER_DAYS`` and
    ``TIER_OUTBOX``. An empty variable is one that is not set.
    """
    chosen = {
        name: value if value is not None else environ.get(f"TIER_{name.upper()}") or None
        for name, value in given.items()
        if name in ("base_url", "api_key", "pricing", "default_plan", "ledger_days", "outbox")
    }
    settings = Settings(
        base_url=chosen["base_url"] or DEFAULT_URL,
        api_key=chosen["api_key"],
        pricing=chosen["pricing"],
        default_plan=chosen["default_plan"],
        timeout=_seconds(given["timeout"], "timeout"),
        on_error="stale" if given["on_error"] == "stale" else checked_on_error(given["on_error"]),
        reservation_seconds=_seconds(given["reservation_seconds"], "reservation_seconds"),
        flush_seconds=_seconds(given["flush_seconds"], "flush_seconds"),
        on_loss=_checked_on_loss(given["on_loss"]),
        ledger_days=_ledger_days(chosen["ledger_days"], given["ledger_days"] is None),
        outbox=_outbox(chosen["outbox"]),
    )
    if settings.default_plan is not None:
        try:
            checked_plan(settings.default_plan, "TIER_DEFAULT_PLAN")
        except InvalidRequest as error:
            raise ConfigurationError(error.message, path="TIER_DEFAULT_PLAN") from error
    return settings


def checked_on_error(value: object, field: str = "on_error") -> OnError:
    if value not in ("allow", "deny") and not is_plain_function(value):
        raise ConfigurationError(
            f"{field}: must be 'allow', 'deny' or a sync callable of (request, error), got {value!r}", path=field
        )
    return value  # type: ignore[return-value]  # checked just now


def checked_url(url: object, field: str = "upgrade_url") -> str | None:
    """A place to send browsers to, a path or an http(s) URL, that can stand in a header as it is."""
    if url is None:
        return None
    if isinstance(url, str) and url.isascii() and url.isprintable() and not {" ", "\\"} & set(url):
        parts = _split(url)
        is_path = url.startswith("/") and not url.startswith("//")  # browsers take "///x" for another host, too
        if is_path or (parts.scheme in ("http", "https") and parts.netloc):
            return url
    raise ConfigurationError(f"{field}: must be a path or an http(s) URL, got {url!r}", path=field)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as a bracket that is not closed
        return SplitResult("", "", "", "", "")


def is_plain_function(value: object) -> bool:
    """Whether a value can be called without awaiting, as far as it shows: `answered` sees the rest."""
    return callable(value) and not any(map(inspect.iscoroutinefunction, (value, type(value).__call__)))


def answered(value: Any, field: str) -> Any:
    """What a sync callable of the application answered; an un-awaited coroutine would count as a yes."""
    if not inspect.isawaitable(value):
        return value
    shown = repr(value)
    if inspect.iscoroutine(value):
        value.close()
    raise ConfigurationError(f"{field}: must be sync, and answered {shown}", path=field)


def _checked_on_loss(value: object) -> OnLoss | None:
    if value is not None and value != "fail" and not is_plain_function(value):
        raise ConfigurationError(
            f"on_loss: must be None, 'fail' or a sync callable of (reports, reason), got {value!r}", path="on_loss"
        )
    return value  # type: ignore[return-value]  # checked just now


def _seconds(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise ConfigurationError(
            f"{field}: must be a number of seconds > 0, and at most {MAX_SECONDS} (30 days), got {value!r}", path=field
        )
    return float(value)


def _ledger_days(value: object, is_of_environment: bool) -> int:
    field = "TIER_LEDGER_DAYS" if is_of_environment else "ledger_days"
    if value is None:
        return DEFAULT_LEDGER_DAYS
    days = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value) else value
    if isinstance(days, bool) or not isinstance(days, int) or not 0 <= days <= MAX_LEDGER_DAYS:
        raise ConfigurationError(
            f"{field}: must be a whole number of days from 0 (no ledger) to {MAX_LEDGER_DAYS}, got {value!r}",
            path=field,
        )
    return days


def _outbox(value: object) -> str | os.PathLike[str] | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or "\0" in os.fspath(value):
        raise ConfigurationError(f"TIER_OUTBOX: must be the path of a file, got {value!r}", path="TIER_OUTBOX")
    return value
