"""Which engine a URL names, and where its outbox is. A bad URL fails at start and is shown without its secrets."""

from __future__ import annotations

import logging
import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Protocol, get_args
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from .clock import Milliseconds
from .engines import Engine
from .errors import ConfigurationError
from .reporting.batches import Policy
from .settings import Settings

__all__ = ["DEFAULT_OUTBOX", "engine_for", "is_loopback", "outbox_path", "register_engine"]

logger: Final = logging.getLogger("tier_middleware")

DEAD_HOST: Final = "api.tier.run"
DEFAULT_OUTBOX: Final = "tier-outbox.db"
POLICIES: Final[tuple[Policy, ...]] = get_args(Policy)


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
    ambiguous = _checked_server(settings, url)
    try:
        from .engines.http import HttpEngine
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tier_middleware"):
            raise
        problem = f"needs more packages: pip install 'tier-middleware[http]' ({error.msg})"
        raise _bad_url(settings.base_url, problem) from error
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
        is_loopback=is_loopback(url.hostname),
        timeout=settings.timeout,
        default_plan=settings.default_plan,
        serves_stale=settings.on_error == "stale",
        ambiguous=ambiguous,
    )


def _checked_server(settings: Settings, url: SplitResult) -> Policy:
    """Check a server's URL and key; answers what the URL says of reports that may have been counted."""
    base_url = settings.base_url
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
    if settings.api_key is not None and url.scheme == "http" and not is_loopback(url.hostname):
        raise _bad_url(base_url, "must be an https:// URL: with http:// everybody on the way could read TIER_API_KEY")
    if settings.api_key is not None and not (settings.api_key.isascii() and settings.api_key.isprintable()):
        raise ConfigurationError("TIER_API_KEY: must be printable ASCII (it is not shown here)", path="TIER_API_KEY")
    return ambiguous


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


def outbox_path(settings: Settings) -> Path:
    """The file of what waits for the engine: beside an embedded engine's own, else in the current folder."""
    if settings.outbox is not None:
        return Path(os.path.abspath(settings.outbox))
    if settings.base_url.startswith("sqlite:"):
        path = _sqlite_path(settings.base_url)
        return path.with_name(f"{path.stem}-outbox{path.suffix}")
    return Path(os.path.abspath(DEFAULT_OUTBOX))


def _bad_url(base_url: object, problem: str) -> ConfigurationError:
    shown = repr(base_url if not isinstance(base_url, str) else _without_secrets(base_url))
    return ConfigurationError(f"TIER_BASE_URL: {problem}, got {shown}", path="TIER_BASE_URL")


def _without_secrets(base_url: str) -> str:
    """The URL as it may be shown: neither what stands before an ``@`` in it, nor options that might be a secret."""
    if base_url.startswith("sqlite:"):  # whose paths may have one
        without_password = re.sub(r"(//)[^/]*@", r"\1***@", base_url)
    else:  # people write passwords with slashes as they are
        before, at, after = base_url.rpartition("@")
        scheme, colon, _ = before.partition("://")
        without_password = f"{scheme}{colon}***@{after}" if colon else f"***@{after}" if at else after
    return re.sub(r"([?&](?!synchronous=|ambiguous=)[^=&?]*)=[^&]*", r"\1=***", without_password)
