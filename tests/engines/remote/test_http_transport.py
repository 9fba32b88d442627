"""The seam to httpx: its errors are ours, its answers are bounded, and a server that does not answer is left alone."""

from __future__ import annotations

import inspect
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from tier_middleware import EngineUnavailable
from tier_middleware.clock import monotonic
from tier_middleware.engines.http import breaker
from tier_middleware.engines.http.breaker import Breaker
from tier_middleware.engines.http.transport import Broken, NoAnswer, NotSent, Transport, failure_of
from tier_middleware.wire import Request

REQUEST = Request("GET", "/v1/whoami")
NOT_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
BROKEN = {"CloseError", "ReadError", "RemoteProtocolError", "WriteError"}


def errors_of_httpx() -> list[type[Exception]]:
    found = [kind for _, kind in inspect.getmembers(httpx, inspect.isclass) if issubclass(kind, Exception)]
    return [kind for kind in found if kind is not httpx.CookieConflict]


def made(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "what it says")
    return error


@pytest.mark.parametrize("kind", errors_of_httpx(), ids=lambda kind: kind.__name__)
def test_every_error_of_httpx_is_one_of_ours(kind: type[Exception]) -> None:
    assert issubclass(kind, httpx.HTTPError | httpx.InvalidURL | httpx.StreamError)  # what `send` catches
    expected = (
        NotSent if kind.__name__ in {*NOT_SENT, "InvalidURL"} else Broken if kind.__name__ in BROKEN else NoAnswer
    )
    assert type(failure_of(made(kind), "here")) is expected


@contextmanager
def answering(*pieces: bytes, pause: float = 0.0) -> Iterator[str]:
    """A peer that answers one connection with these pieces, whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                    is_over.wait(pause)
        except OSError:
            return

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    is_over.set()
    listener.close()
    thread.join()


def sent(url: str, seconds: float = 5.0) -> object:
    transport = Transport(url, None, is_loopback=True)
    try:
        return transport.send(REQUEST, seconds)
    except EngineUnavailable as error:
        return error
    finally:
        transport.close()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert type(sent(f"http://127.0.0.1:{port}")) is NotSent


@pytest.mark.parametrize("pieces", [(), (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",), (b"hello",)])
def test_an_answer_that_breaks_off_is_none(pieces: tuple[bytes, ...]) -> None:
    with answering(*pieces) as url:
        assert type(sent(url)) is Broken


def test_an_answer_that_drips_is_over_when_the_time_is() -> None:
    begun = monotonic()
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", *[b"x"] * 200, pause=0.05) as url:
        assert type(sent(url, 0.3)) is NoAnswer
    assert monotonic() - begun < 3


def test_a_redirect_is_not_followed_and_an_answer_is_what_it_is() -> None:
    with answering(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n") as url:
        assert getattr(sent(url), "status", None) == 302


def test_a_server_on_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as url:
        assert getattr(sent(url), "status", None) == 200


def test_and_others_through_the_environments() -> None:
    with answering(b"HTTP/1.1 418 Proxy\r\ncontent-length: 0\r\n\r\n") as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTP_PROXY", proxy)
        transport = Transport("http://tier.example.invalid", None, is_loopback=False)
        assert transport.send(REQUEST, 5.0).status == 418
        transport.close()


# ---- the breaker ----------------------------------------------------------------------------------------------------


def failing(one: Breaker, times: int) -> None:
    for _ in range(times):
        one.failed(EngineUnavailable("no answer"))


def test_after_some_failures_nobody_asks_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    one = Breaker("https://tier")
    failing(one, breaker.PATIENCE - 1)
    one.check()
    failing(one, 1)
    with pytest.raises(EngineUnavailable, match="not asked again for a moment: no answer"):
        one.check()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "has never answered" in caplog.text


def test_at_the_end_of_a_pause_one_tries_and_the_others_wait_for_it(wait: Callable[[Breaker], None]) -> None:
    one = Breaker("https://tier")
    failing(one, breaker.PATIENCE)
    wait(one)
    one.check()
    with pytest.raises(EngineUnavailable):
        one.check()
    one.succeeded()
    one.check()
    one.check()


@pytest.fixture
def wait() -> Callable[[Breaker], None]:
    def over(one: Breaker) -> None:
        one._closed_from = 0.0  # its pause

    return over


def test_a_server_that_was_reached_before_is_said_to_be_away(caplog: pytest.LogCaptureFixture) -> None:
    one = Breaker("https://tier")
    one.succeeded()
    failing(one, 1)
    assert "https://tier does not answer" in caplog.text
