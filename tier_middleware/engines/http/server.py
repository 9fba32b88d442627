"""A server: what is asked of it, and whether it is left alone for the moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ... import wire
from ...errors import EngineUnavailable
from ...ops import Busy
from .breaker import Breaker
from .transport import Transport

__all__ = ["Cold", "Server"]

R = TypeVar("R")


class Cold(Busy):
    """The server must be asked first: ``ask`` does that, and blocks. Then the operation is decided here."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self.ask = ask


class Server:
    """One server, for any number of threads. Each answer, and each that does not come, is told to the breaker."""

    def __init__(self, base_url: str, api_key: str | None, *, is_loopback: bool, timeout: float) -> None:
        self.base_url = base_url
        self.timeout = timeout
        self._transport = Transport(base_url, api_key, is_loopback=is_loopback)
        self._breaker = Breaker(base_url)

    @property
    def is_left_alone(self) -> bool:
        """Whether it did not answer of late, and is not asked for a while."""
        return self._breaker.is_open

    def asked(self, request: wire.Request, read: Callable[[wire.Request, wire.Response], R]) -> R:
        """The answer as ``read`` understands it; raises what it says went wrong."""
        return read(request, self.answer(request))

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
        else:
            self._breaker.succeeded()
        return response

    def close(self) -> None:
        self._transport.close()
