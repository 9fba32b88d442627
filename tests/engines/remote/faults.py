"""A TCP proxy between a client and a Tier server that does what networks do: it refuses, resets, delays, loses a reply.

It reads requests far enough to answer in the server's place; each fault is for one request.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable

__all__ = ["FAULTS", "Proxy"]

ANSWERS = {
    "500": b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
    "503": b"HTTP/1.1 503 Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "429": b"HTTP/1.1 429 Too Many\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "html": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>",
}
FAULTS = ("refuse", "reset", "delay", "black hole", "drop reply", *ANSWERS)
"""``reset``: before the server has the request. ``drop reply``: after it has answered."""


class Proxy:
    """Forwards to a port. ``plan`` is asked for each request: a fault, or None to let it pass. ``before_reply`` is
    called with each request that the server has answered, before its client has the answer.
    """

    def __init__(
        self, port: int, plan: Callable[[], str | None], *, before_reply: Callable[[bytes], None] | None = None
    ) -> None:
        self.plan = plan
        self.before_reply = before_reply
        self.target = port
        self.faults: list[str] = []
        self._is_over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._is_over.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        try:
            with client:
                while (request := _message(client)) is not None:
                    fault = self.plan()
                    if fault is not None:
                        self.faults.append(fault)
                    if fault in ("refuse", "reset"):
                        _reset(client)
                        return
                    if fault in ANSWERS:
                        client.sendall(ANSWERS[fault])
                        return
                    if fault == "black hole":
                        self._is_over.wait(3)
                        return
                    if fault == "delay":
                        self._is_over.wait(0.05)
                    if server is None:
                        server = socket.create_connection(("127.0.0.1", self.target))
                    server.sendall(request)
                    reply = _message(server)
                    if fault == "drop reply" or reply is None:
                        _reset(client)
                        return
                    if self.before_reply is not None:
                        self.before_reply(request)
                    client.sendall(reply)
        except OSError:
            return
        finally:
            if server is not None:
                server.close()


def _message(peer: socket.socket) -> bytes | None:
    """One whole request or answer; None at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = peer.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        piece = peer.recv(65536)
        if not piece:
            return None
        body += piece
    return head + b"\r\n\r\n" + body


def _reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def at_random(share: float, seed: int, *, faults: tuple[str, ...] = FAULTS) -> Callable[[], str | None]:
    """A plan in which so large a share of all requests meets a fault."""
    dice, lock = random.Random(seed), threading.Lock()

    def plan() -> str | None:
        with lock:
            return dice.choice(faults) if dice.random() < share else None

    return plan
