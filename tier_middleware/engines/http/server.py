"""A server: what is asked of it, what it can do, and whether it is left alone for the moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ... import wire
from ...errors import EngineUnavailable
from ...extension.asking import extensions_in
from ...ops import Busy
from .breaker import Breaker
from .transport import Broken, NotSent, Transport

__all__ = ["Cold", "Server", "There"]

R = TypeVar("R")


class Cold(Busy):
    """The server must be asked first: ``ask`` does that, and blocks. Then the operation is decided here."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self.ask = ask


class There(Cold):
    """The server performs the operation: ``ask`` has its reply, and ``undo`` takes back what nobody waits for."""

    def __init__(self, ask: Callable[[], object], undo: Callable[[Any], None] | None = None) -> None:
        super().__init__(ask)
        self.undo = undo


class Server:
    """One server, for any number of threads. Each answer, and each that does not come, is told to the breaker.

    ``extensions`` are what it adds to Tier's API, as its last answer said: one may be replaced by another. Before its
    first answer, up to which it is not ``is_met``, nobody knows.
    ``when_back``, where it is set, is called when it answers again after it did not.
    """

    def __init__(self, base_url: str, api_key: str | None, *, is_loopback: bool, timeout: float) -> None:
        self.base_url = base_url
        self.timeout = timeout
        self.extensions: frozenset[str] = frozenset()
        self.is_met = False
        self.when_back: Callable[[], None] | None = None
        self._transport = Transport(base_url, api_key, is_loopback=is_loopback)
        self._waiting = Transport(base_url, api_key, is_loopback=is_loopback)
        self._breaker = Breaker(base_url)

    @property
    def is_left_alone(self) -> bool:
        """Whether it did not answer of late, and is not asked for a while."""
        return self._breaker.is_open

    def asked(self, request: wire.Request, read: Callable[[wire.Request, wire.Response], R]) -> R:
        """The answer as ``read`` understands it; raises what it says went wrong."""
        return read(request, self.answer(request))

    def repeated(self, request: wire.Request, read: Callable[[wire.Request, wire.Response], R]) -> R:
        """`asked`, of what may be asked twice: once more where a connection ends, as those of before a restart do."""
        try:
            return self.asked(request, read)
        except Broken as broken:
            try:
                return read(request, self.sent(request, self.timeout))
            except NotSent:  # what the first one has done, nobody knows
                raise broken from None

    def answer(self, request: wire.Request) -> wire.Response:
        """The answer, whatever it is. Raises `EngineUnavailable` where none comes, or the server is left alone."""
        self._breaker.check()
        return self.sent(request, self.timeout)

    def sent(self, request: wire.Request, seconds: float) -> wire.Response:
        """`answer`, also of a server that is left alone: for the reporter, which has pauses of its own."""
        try:
            response = self._transport.send(request, seconds)
        except EngineUnavailable as error:
            self._breaker.failed(error)
            raise
        failure = wire.error_in(request, response) if wire.is_away(response.status) else None
        if isinstance(failure, EngineUnavailable):
            self._breaker.failed(failure)
            return response
        self._answered(response)
        return response

    def waited(self, request: wire.Request, seconds: float) -> wire.Response:
        """`sent`, of a question that waits long, on a connection of its own. That it has no answer says nothing of the
        server, which may be left alone, or closed here meanwhile.
        """
        response = self._waiting.send(request, seconds)
        if not wire.is_away(response.status):
            self._answered(response)
        return response

    def _answered(self, response: wire.Response) -> None:
        extensions = extensions_in(response.headers)
        if extensions or wire.is_of_tier(response):  # and not of somebody in between
            self.extensions, self.is_met = extensions, True
        if self._breaker.succeeded() and self.when_back is not None:
            self.when_back()

    def close(self) -> None:
        self._waiting.close()
        self._transport.close()
