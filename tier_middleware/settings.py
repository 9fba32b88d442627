"""What can be set, from arguments or from ``TIER_...`` variables; a bad value fails at start and names key and
value.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .clock import Milliseconds
from .engines import Engine
from .errors import ConfigurationError, InvalidRequest
from .ledger import DEFAULT_LEDGER_DAYS
from .names import checked_plan
from .reporting.batches import Policy

__all__ = [
    "OnError",
    "OnLoss",
    "Settings",
    "checked_on_error",
    "checked_url",
    "engine_for",
    "is_loopback",
    "is_plain_function",
    "outbox_path",
    "register_engine",
    "settings_for",
]

OnError: TypeAlias = Literal["allow", "deny", "stale"] | Callable[[Any, Exception], bool]
"""What to answer while the engine is away: ``(request, error) -> bool``, where True lets the request pass. ``"stale"``,
of a client of a Tier server: what the server last said, and ``"allow"`` where it has said nothing.
"""

OnLoss: TypeAlias = Literal["fail"] | Callable[[tuple[Any, ...], str], None]
"""What to do with usage that could not be counted: ``(reports, reason)``."""

logger: Final = logging.getLogger("tier_middleware")

DEFAULT_URL: Final = "sqlite:///tier.db"
MAX_SECONDS: Final = 30 * 86_400
MAX_LEDGER_DAYS: Final = 36_500
DEAD_HOST: Final = "api.tier.run"
DEFAULT_OUTBOX: Final = "tier-outbox.db"
POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)


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
    outbox: str | os.PathLike[str] | None = None  # the file of what waits for the engine; None: see outbox_path


def settings_for(environ: Mapping[str, str], **given: Any) -> Settings:
    """The settings of a program.

    What it gives wins over ``TIER_BASE_URL, TIER_API_KEY, TIER_PRICING, TIER_DEFAULT_PLAN, TIER_LEDGER_DAYS`` and
    ``TIER_OUTBOX``.

    An empty variable is one that is not set.
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


class MakeEngine(Protocol):
    """Makes the engine that a URL names, or raises `ConfigurationError`."""

    def __call__(self, base_url: str, now_ms: Milliseconds, *, ledger_days: int) -> Engine: ...


_registered: Final[dict[str, MakeEngine]] = {}


def register_engine(scheme: str, make: MakeEngine) -> None:
    """Say who makes the engines of a URL scheme: for those that only some programs can have, such as Django's."""
    _registered[scheme] = make


def engine_for(settings: Settings, now_ms: Milliseconds) -> Engine:
    """The engine that the settings name. Opens nothing."""
    base_url, ledger_days = settings.base_url, settings.ledger_days
    if not isinstance(base_url, str):
        raise _bad_url(base_url, "must be a text such as 'sqlite:///tier.db' or 'memory://'")
    try:
        url = urlsplit(base_url)
    except ValueError as error:
        raise _bad_url(base_url, f"is not a URL ({error})") from error
    if url.scheme in ("http", "https"):
        return _http_engine(settings, url, now_ms)
    if settings.on_error == "stale":
        raise ConfigurationError(
            "on_error: 'stale' is for Tier servers (http://, https://), which may be away while this process is not; "
            f"got it with {_without_secrets(base_url)!r}",
            path="on_error",
        )
    if url.scheme == "memory":
        if base_url not in ("memory:", "memory://"):
            raise _bad_url(base_url, "must be 'memory://' and nothing more")
        from .engines.memory import MemoryEngine

        return MemoryEngine(now_ms, ledger_days=ledger_days)
    if url.scheme == "sqlite":
        return _sqlite_engine(base_url, now_ms, ledger_days)
    if url.scheme in _registered:
        return _registered[url.scheme](base_url, now_ms, ledger_days=ledger_days)
    if url.scheme == "django":
        raise _bad_url(
            base_url,
            "is for Django projects: 'tier_middleware.django' must be in INSTALLED_APPS, and django.setup() have run",
        )
    if url.scheme in ("redis", "rediss", "redis+cluster"):
        raise _bad_url(base_url, f"this version has no {url.scheme} engine yet; use 'sqlite:///tier.db'")
    raise _bad_url(base_url, "must begin with 'sqlite:///', 'https://' or 'http://', or be 'memory://'")


def _http_engine(settings: Settings, url: SplitResult, now_ms: Milliseconds) -> Engine:
    base_url = settings.base_url
    is_local = is_loopback(url.hostname)
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    ambiguous = options.pop("ambiguous", "hold")
    if not url.hostname or url.fragment or _port(url) is None:
        raise _bad_url(base_url, "must name a server, as in 'https://tier.example.com'")
    if "@" in url.netloc:
        raise _bad_url(base_url, "must have no user and password: give the key as TIER_API_KEY")
    if options:
        raise _bad_url(base_url, f"has an unknown option {next(iter(options))!r}; known: 'ambiguous'")
    if ambiguous not in POLICIES:
        raise _bad_url(base_url, f"ambiguous must be one of {', '.join(map(repr, POLICIES))}, got {ambiguous!r}")
    if settings.api_key is not None and url.scheme == "http" and not is_local:
        raise _bad_url(base_url, "must be an https:// URL: with http:// everybody on the way could read TIER_API_KEY")
    if settings.api_key is not None and not (settings.api_key.isascii() and settings.api_key.isprintable()):
        raise ConfigurationError("TIER_API_KEY: must be printable ASCII (it is not shown here)", path="TIER_API_KEY")
    try:
        from .engines.http import HttpEngine
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tier_middleware"):
            raise
        raise _bad_url(base_url, f"needs more packages: pip install 'tier-middleware[http]' ({error.msg})") from error
    from .reporting.outbox import Outbox

    server = f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}"
    if url.hostname == DEAD_HOST:
        logger.warning(
            "tier: TIER_BASE_URL names %s, which is gone for good; use 'sqlite:///tier.db', the embedded engine", server
        )
    return HttpEngine(
        server,
        now_ms,
        Outbox(outbox_path(settings), now_ms, server=server),
        api_key=settings.api_key,
        is_loopback=is_local,
        timeout=settings.timeout,
        default_plan=settings.default_plan,
        serves_stale=settings.on_error == "stale",
        ambiguous=ambiguous,
    )


def is_loopback(host: str | None) -> bool:
    """Whether a host's name or address is this machine's own, and nobody else's."""
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _port(url: SplitResult) -> int | None:
    """The URL's port, 0 for the scheme's own; None where it is no port."""
    try:
        return url.port or 0
    except ValueError:
        return None


def _sqlite_engine(base_url: str, now_ms: Milliseconds, ledger_days: int) -> Engine:
    url = urlsplit(base_url)
    if url.netloc or not url.path.startswith("/") or url.path == "/" or url.fragment:
        raise _bad_url(base_url, "must name a file: 'sqlite:///tier.db' (this folder) or 'sqlite:////var/lib/tier.db'")
    if url.path.endswith(":memory:"):
        raise _bad_url(base_url, "must name a file; for a database in memory use 'memory://'")
    if "\0" in unquote(url.path):
        raise _bad_url(base_url, "must name a file, and no file's name has a NUL in it")
    options = dict(parse_qsl(url.query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "normal")
    if options:
        raise _bad_url(base_url, f"has an unknown option {next(iter(options))!r}; known: 'synchronous'")
    if synchronous not in ("normal", "full"):
        raise _bad_url(base_url, f"synchronous must be 'normal' or 'full', got {synchronous!r}")
    from .engines.sqlite import SqliteEngine

    return SqliteEngine(_sqlite_path(base_url), now_ms, synchronous=synchronous, ledger_days=ledger_days)


def _sqlite_path(base_url: str) -> Path:
    return Path(os.path.abspath(unquote(urlsplit(base_url).path[1:])))


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
        is_path = url.startswith("/") and parts.path and not parts.scheme and not parts.netloc
        if is_path or (parts.scheme in ("http", "https") and parts.netloc):
            return url
    raise ConfigurationError(f"{field}: must be a path or an http(s) URL, got {url!r}", path=field)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as a bracket that is not closed
        return SplitResult("", "", "", "", "")


def is_plain_function(value: object) -> bool:
    """Whether a value can be called without awaiting: an un-awaited coroutine would count as a yes."""
    return callable(value) and not inspect.iscoroutinefunction(value)


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


def outbox_path(settings: Settings) -> Path:
    """The file of what waits for the engine: beside an embedded engine's own, else in the current folder."""
    if settings.outbox is not None:
        return Path(os.path.abspath(settings.outbox))
    if settings.base_url.startswith("sqlite:"):
        path = _sqlite_path(settings.base_url)
        return path.with_name(f"{path.stem}-outbox{path.suffix}")
    return Path(os.path.abspath(DEFAULT_OUTBOX))


def _outbox(value: object) -> str | os.PathLike[str] | None:
    if value is None:
        return None
    if not isinstance(value, str | os.PathLike) or "\0" in os.fspath(value):
        raise ConfigurationError(f"TIER_OUTBOX: must be the path of a file, got {value!r}", path="TIER_OUTBOX")
    return value


def _bad_url(base_url: object, problem: str) -> ConfigurationError:
    shown = repr(base_url if not isinstance(base_url, str) else _without_secrets(base_url))
    return ConfigurationError(f"TIER_BASE_URL: {problem}, got {shown}", path="TIER_BASE_URL")


def _without_secrets(base_url: str) -> str:
    """The URL as it may be shown: neither what stands before an ``@`` in it, nor options that might be a secret."""
    without_password = re.sub(r"(//)[^/]*@", r"\1***@", base_url)
    return re.sub(r"([?&](?!synchronous=|ambiguous=)[^=&?]*)=[^&]*", r"\1=***", without_password)
