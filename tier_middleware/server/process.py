"""``tier-middleware serve``: the server in processes of its own, under uvicorn, with any number of workers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection, parent_process
from typing import Any, Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from ..client import AsyncTier, Tier
from ..engine_urls import is_loopback
from ..errors import ConfigurationError
from ..operations import new_key
from .application import TierServer, checked_api_key, checked_public_url

__all__ = ["Options", "application", "run"]

APPLICATION: Final = "tier_middleware.server.process:application"
PUBLIC_URL: Final = "TIER_PUBLIC_URL"
SECRET: Final = "TIER_SERVE_SECRET"  # of one start, shared by its workers
BACKLOG: Final = 2048
SHUTDOWN_SECONDS: Final = 30  # for requests that are under way

LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(process)d %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {name: {"handlers": ["stderr"], "level": "INFO"} for name in ("tier_middleware", "uvicorn")},
}


@dataclass(frozen=True, slots=True)
class Options:
    """What ``serve`` is told; what is None comes from the environment, as everywhere."""

    addr: str = "127.0.0.1:8080"
    base_url: str | None = None
    pricing: str | None = None
    public_url: str | None = None
    workers: int = 1


def application() -> TierServer:
    """The application of one worker, as the environment sets it up."""
    _end_with_parent()
    secret = os.environ.get(SECRET)
    server = TierServer(AsyncTier(), public_url=os.environ.get(PUBLIC_URL), secret=secret.encode() if secret else None)
    _end_waits_when_told(server)
    return server


def _end_waits_when_told(server: TierServer) -> None:
    """Uvicorn tells the application that it ends when all requests have ended, for which some would wait long."""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, partial(_end_waits, server, before))


def _end_waits(server: TierServer, before: Callable[[int, Any], Any], number: int, frame: Any) -> None:
    server.end_waits()
    before(number, frame)


def run(options: Options, say: Callable[[str], None]) -> None:
    """Serve until a signal says to end; what is under way is finished. ``say`` is told where, once that is known.

    All that cannot work is said before anything listens: `ConfigurationError`, `PricingError`, `EngineUnavailable`.
    """
    host, port = _checked(options)
    _hand_on(options)
    with Tier(on_error="deny") as tier:
        engine = tier.core.settings.base_url
    if options.workers > 1 and engine.startswith("memory:"):
        raise ConfigurationError("--workers: with 'memory://' each worker would have its own orgs; use sqlite:///")
    listening = _bound(host, port, options.addr)
    shown = f"[{host}]" if ":" in host else host
    say(f"serving {engine} at http://{shown}:{listening.getsockname()[1]}")
    config = uvicorn.Config(
        APPLICATION,
        factory=True,
        workers=options.workers,
        log_config=LOGGING,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        lifespan="on",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    if options.workers == 1:
        uvicorn.Server(config).run([listening])
    else:
        Multiprocess(config, [listening]).run()


def _checked(options: Options) -> tuple[str, int]:
    host, _, port = options.addr.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"--addr: must be HOST:PORT, as in '127.0.0.1:8080', got {options.addr!r}")
    if checked_api_key(os.environ.get("TIER_API_KEY") or None) is None and not is_loopback(host):
        raise ConfigurationError(
            f"--addr: {options.addr!r} can be reached from elsewhere: set TIER_API_KEY, or listen on 127.0.0.1"
        )
    if options.workers < 1:
        raise ConfigurationError(f"--workers: must be at least 1, got {options.workers}")
    checked_public_url(options.public_url or os.environ.get(PUBLIC_URL))
    return host, int(port)


def _hand_on(options: Options) -> None:
    """Workers are processes that begin anew: what they are told is in their environment."""
    given = {
        "TIER_BASE_URL": options.base_url,
        "TIER_PRICING": None if options.pricing is None else os.path.abspath(options.pricing),
        PUBLIC_URL: options.public_url,
        SECRET: None if os.environ.get("TIER_API_KEY") else new_key(),
    }
    os.environ.update({name: text for name, text in given.items() if text is not None})


def _bound(host: str, port: int, addr: str) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)  # proto: else asyncio leaves Nagle on, and answers take 40 ms
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)  # now, so that whoever is told the address can connect while workers start
    except OSError as error:
        raise ConfigurationError(f"--addr: cannot listen on {addr!r}: {error.strerror or error}") from None
    listening.set_inheritable(True)
    return listening


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on at its port, and nobody could end it but by its number."""
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for, args=(parent.sentinel,), name="tier-parent", daemon=True).start()


def _wait_for(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
