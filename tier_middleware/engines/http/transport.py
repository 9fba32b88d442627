"""Requests on the network: the only module that knows httpx. Nothing of it leaves here, nor does the API key."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

import httpx

from ... import forks
from ...clock import monotonic
from ...errors import EngineUnavailable
from ...wire import Request, Response, authorization

__all__ = ["Broken", "NoAnswer", "NotSent", "Transport", "failure_of"]

MAX_ANSWER: Final = 16_000_000  # bytes; a model of ten thousand plans has less
CONNECT_SECONDS: Final = 3.0  # at most, of the whole

_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)
_BROKEN: Final = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError)


class NotSent(EngineUnavailable):
    """The server was not reached, so it has done nothing."""


class NoAnswer(EngineUnavailable):
    """The request was sent, or some of it, and no answer came: what the server has done, nobody knows."""


class Broken(NoAnswer):
    """The connection ended before the answer came, as when a server is started anew."""


class Transport:
    """Connections to one server, for any number of threads; made when first needed, and anew after ``fork()``.

    Proxies come from the environment (``HTTPS_PROXY, NO_PROXY``); for a server on this machine there is none.
    """

    def __init__(self, base_url: str, api_key: str | None, *, is_loopback: bool) -> None:
        self.base_url = base_url
        self._api_key = api_key
        self._is_loopback = is_loopback
        self._reset()
        forks.watch(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._client: httpx.Client | None = None
        self._users: Counter[httpx.Client] = Counter()

    def send(self, request: Request, seconds: float) -> Response:
        """The answer, whatever it is, within so many seconds in all. Raises `NotSent` and `NoAnswer`."""
        try:
            return self._sent(request, monotonic() + seconds, seconds)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, RuntimeError) as error:
            failure = failure_of(error, f"{request.method} {self.base_url}{request.path}")
        raise failure  # here: an error of httpx, with the request and its headers, is not to hang on ours

    def _sent(self, request: Request, deadline: float, seconds: float) -> Response:
        with (
            self._using() as client,
            client.stream(
                request.method,
                self.base_url + request.path,
                params=request.query or None,
                content=request.body,
                headers=list(request.headers),
                timeout=httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
            ) as response,
        ):
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if monotonic() > deadline:
                    raise httpx.ReadTimeout("the answer took too long")
                if len(body) > MAX_ANSWER:
                    raise httpx.DecodingError("the answer is too long")
            return Response(response.status_code, bytes(body), dict(response.headers))

    @contextmanager
    def _using(self) -> Iterator[httpx.Client]:
        """A client that is not closed while it is used."""
        with self._lock:
            client = self._client = self._client or self._new_client()
            self._users[client] += 1
        try:
            yield client
        finally:
            with self._lock:
                self._users[client] -= 1
                is_done = not self._users[client] and client is not self._client
                if not self._users[client]:
                    del self._users[client]
            if is_done:
                client.close()

    def _new_client(self) -> httpx.Client:
        headers = {"user-agent": f"tier-middleware/{version('tier-middleware')}", "accept": "application/json"}
        if self._api_key is not None:
            headers["authorization"] = authorization(self._api_key)
        return httpx.Client(headers=headers, follow_redirects=False, trust_env=not self._is_loopback)

    def close(self) -> None:
        """Let go of connections; of those that are in use, when they are not any more."""
        with self._lock:
            client, self._client = self._client, None
            is_used = client in self._users
        if client is not None and not is_used:
            client.close()

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, is_child: bool) -> None:
        if is_child:
            _inherited.append(self._client)  # not closed: that would say goodbye to the parent's peers
            self._reset()


_inherited: list[httpx.Client | None] = []


def failure_of(error: Exception, where: str) -> NotSent | NoAnswer:
    """What an error of httpx means; what it does not say was done, may have been."""
    text = f"{where}: {error or type(error).__name__}"
    is_unsent = isinstance(error, (*_NOT_SENT, httpx.InvalidURL, RuntimeError))  # RuntimeError: closed meanwhile
    if is_unsent and not isinstance(error, httpx.StreamError):
        return NotSent(text)
    return Broken(text) if isinstance(error, _BROKEN) else NoAnswer(text)
