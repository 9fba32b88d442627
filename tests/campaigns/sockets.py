"""A client of the WebSocket route, which notes what became of each of its messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from .world import ANSWERED, BROKEN, BYE, FAIL, FAILED, STUCK, STUCK_SECONDS, UNSENT, WORK

REFUSALS: Final = {"limit_reached": "402", "engine_unavailable": "503"}
"""The statuses of an HTTP response for what is said in the reason of a close."""

NORMAL: Final = 1000
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011


async def outcomes(url: str, fails: Sequence[bool]) -> list[str]:
    """What became of the messages of one connection; of its handshake, where that was as far as it came.

    The server counts a message when it goes on to the next one, which may be the last: that is answered by a close. So
    a message is a success once the one after it is answered; its own answer is not enough.
    """
    try:
        async with asyncio.timeout(STUCK_SECONDS):
            try:
                client = await connect(url, proxy=None, open_timeout=None)
            except InvalidStatus as refused:
                return [str(refused.response.status_code)]
            except ConnectionRefusedError:
                return [UNSENT]
            except (OSError, EOFError, InvalidHandshake):
                return [BROKEN]
            async with client:
                return await _conversation(client, fails)
    except TimeoutError:
        return [STUCK]


async def _conversation(client: ClientConnection, fails: Sequence[bool]) -> list[str]:
    sent = 0
    messages = [*(FAIL if is_to_fail else WORK for is_to_fail in fails), BYE]
    try:
        for message in messages:
            sent += 1
            await client.send(message)
            await client.recv()
    except ConnectionClosed as closed:
        done = ["200"] * max(0, sent - 2)  # the one before the last was answered, at most
        return done + _end(messages[:sent][-2:], closed)
    raise AssertionError("the last message is answered by a close")


def _end(last: Sequence[str], closed: ConnectionClosed) -> list[str]:
    """What became of the last messages that were sent, by the way in which the connection ended."""
    before, message = ["200"] * (len(last) - 1), last[-1]
    code = closed.rcvd.code if closed.rcvd is not None else None
    if code == NORMAL and message == BYE:
        return [*before, "200"]
    if code == INTERNAL_ERROR and message == FAIL:
        return [*before, "500"]
    if code == POLICY_VIOLATION:
        assert closed.rcvd is not None
        return [*before, REFUSALS[json.loads(closed.rcvd.reason)["code"]]]
    return [ANSWERED] * len(before) + [FAILED if message == FAIL else BROKEN]
