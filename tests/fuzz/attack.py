"""Sends requests to a server over raw sockets, and says what was wrong with the answers."""

from __future__ import annotations

import random
import re
import socket
from collections import Counter
from collections.abc import Callable

from .mutations import Sent, sent

__all__ = ["Attack"]

TIMEOUT_SECONDS = 15.0  # without a word within it, the server hangs

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Attack:
    """Counts answers by status, and keeps those that must not be."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.sent = 0
        self.statuses: Counter[int] = Counter()
        self.problems: list[str] = []
        self._random = random.Random(seed)
        self._open: socket.socket | None = None

    def run(self, requests: int, progress: Callable[[int], None] = lambda done: None) -> None:
        for number in range(requests):
            self._send(sent(self._random))
            self.sent += 1
            progress(number + 1)
        self._drop()

    def _send(self, request: Sent) -> None:
        is_new = self._open is None
        connection = self._open or socket.create_connection(("127.0.0.1", self.port), TIMEOUT_SECONDS)
        self._open = connection
        try:
            connection.sendall(request.raw)
            if not request.is_framed:
                connection.shutdown(socket.SHUT_WR)  # nothing more comes: whoever waits for it must not wait long
            answer = self._answer(connection, is_whole=request.is_framed)
        except TimeoutError:
            self._problem("hang", request, b"")
            self._drop()
            return None
        except OSError:
            answer = b""  # closed: its right
        if not answer and not is_new:  # an idle connection that the server gave up
            self._drop()
            return self._send(request)
        self._judge(request, answer)
        if not request.is_framed or b"connection: close" in answer.lower() or not answer:
            self._drop()
        return None

    def _answer(self, connection: socket.socket, *, is_whole: bool) -> bytes:
        """One answer of its length, or all that comes until the end."""
        parts = b""
        while chunk := connection.recv(65_536):
            parts += chunk
            head, separator, body = parts.partition(b"\r\n\r\n")
            length = _LENGTH.search(head + b"\r\n")
            if is_whole and separator and length and len(body) >= int(length[1]):
                break
        return parts

    def _judge(self, request: Sent, answer: bytes) -> None:
        found = [int(status) for status in _STATUS.findall(answer)]
        self.statuses.update(found or [0])
        if any(status >= 500 for status in found):
            self._problem("server error", request, answer)
        if b"Traceback" in answer or b"tier_middleware/" in answer:
            self._problem("the inside shows", request, answer)
        if request.is_framed and not found:
            self._problem("no answer", request, answer)

    def _problem(self, what: str, request: Sent, answer: bytes) -> None:
        self.problems.append(f"{what}: {request.raw[:600]!r} -> {answer[:400]!r}")

    def _drop(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
