"""One WebSocket connection: refused before it is accepted or closed later, settled message by message or at its end.

The messages are those of https://asgi.readthedocs.io/en/latest/specs/www.html#websocket.
"""

from __future__ import annotations

import logging
from typing import Final

from starlette.websockets import WebSocket, WebSocketState

from .. import drive
from ..context import RefusedRequest, TierContext
from ..errors import TierError
from ..flow import Settlement
from ..gate import message_admission
from ..refusal import Refusal, close_reason
from .responses import Message, Receive, Scope, Send, response_for

__all__ = ["POLICY_VIOLATION", "SocketExchange", "refuse"]

logger: Final = logging.getLogger("tier_middleware")

SWITCHED: Final = 101
"""The status of a connection that is accepted."""

POLICY_VIOLATION: Final = 1008
NORMAL: Final = frozenset({1000, 1001, 1005})
OWN_CODES: Final = 3000  # and above: what they mean, only the application knows


async def refuse(refused: RefusedRequest, socket: WebSocket) -> None:
    """Answer the handshake with the refusal, where the server can; else close, which is a 403 before it is accepted."""
    is_accepted = socket.application_state is not WebSocketState.CONNECTING
    if not is_accepted and "websocket.http.response" in socket.scope.get("extensions", {}):
        await response_for(refused, socket)(socket.scope, socket.receive, socket.send)
    else:
        await socket.close(POLICY_VIOLATION, close_reason(refused.refusal))


class SocketExchange:
    """Stands between an application and the server's ``receive`` and ``send``.

    A message that counts by itself holds its units while it is worked on. It is counted when the application asks for
    the next one, or ends.
    """

    is_settled = False
    _is_accepted = False
    _has_message = False
    _is_closed = False
    _has_client_left = False

    def __init__(self, context: TierContext, scope: Scope, receive: Receive, send: Send) -> None:
        self._context = context
        self._scope = scope
        self._receive = receive
        self._send = send

    # ---- what the client sends --------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        if self._is_closed:
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION, "reason": ""}
        await self._end_message(is_counted=True)
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._has_client_left = True
        elif message["type"] == "websocket.receive" and self._context.message_parts:
            refusal = await self._begin_message()
            if refusal is not None:
                await self._close(refusal)
                return await self.receive()
        return message

    async def _begin_message(self) -> Refusal | None:
        """Hold what a message needs; the first one has it from the handshake."""
        if self._context.holds_message:
            self._has_message = True
            return None
        core = self._context.core
        refusal = await drive.arun(message_admission(self._context), core.engine, core.timeout)
        self._has_message = refusal is None
        return refusal

    async def _end_message(self, *, is_counted: bool) -> None:
        if self._has_message:
            self._has_message = False  # before anything is awaited
            await self._perform(self._context.message_settlement(SWITCHED, is_counted=is_counted))

    async def _close(self, refusal: Refusal) -> None:
        """Nothing more is to be had: the end of the connection, as the client and the application see it."""
        self._is_closed = True
        await self._settle(SWITCHED)
        await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": close_reason(refusal)})

    # ---- what the application sends ---------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        if self._is_closed:
            return  # as servers drop what is sent to a client that has gone
        kind = message["type"]
        if kind == "websocket.accept":
            self._is_accepted = self._context.has_begun = True
        elif kind == "websocket.close":
            if self._is_raised_refusal:
                await self._deny()
                return
            await self._end(is_success=is_success(message.get("code", 1000)))
        elif kind == "websocket.http.response.start":
            await self._end(is_success=False)
        try:
            await self._send(message)
        except OSError:
            self._has_client_left = True
            raise

    @property
    def _is_raised_refusal(self) -> bool:
        return not self._is_accepted and self._context.refused is not None and self._context.has_raised

    async def _deny(self) -> None:
        """In place of the close that was made of an exception."""
        await self._end(is_success=False)
        assert self._context.refused is not None
        await refuse(self._context.refused, WebSocket(self._scope, self._receive, self._send))

    # ---- the end ----------------------------------------------------------------------------------------------------

    async def returned(self) -> None:
        """The application is done."""
        await self._end(is_success=True)

    async def failed(self, error: BaseException) -> None:
        """The application raised: what it has added was done, and nothing else. That the client left, or the server
        ended the connection, is how connections end; what the latter interrupts is not done.
        """
        is_success = self._has_client_left or drive.is_cancellation(error)
        try:
            await self._end(is_success=is_success, is_message_done=self._has_client_left)
        except TierError as loss:
            logger.error("tier: %s", loss)  # the application's own exception is the one to raise

    async def _end(self, *, is_success: bool, is_message_done: bool = True) -> None:
        if self.is_settled or self._context.is_idle:
            return
        await self._end_message(is_counted=self._is_accepted and is_success and is_message_done)
        await self._settle(SWITCHED if self._is_accepted else None, is_said_only=not is_success)

    async def _settle(self, status: int | None, *, is_said_only: bool = False) -> None:
        self.is_settled = True  # before anything is awaited: a cancellation on the way must not settle again
        await self._perform(self._context.settlement(status, is_said_only=is_said_only))

    async def _perform(self, settlement: Settlement) -> None:
        core = self._context.core
        if not settlement.is_empty:
            await drive.arun(core.settling(settlement), core.engine, core.timeout)


def is_success(code: int) -> bool:
    """Whether an application that closes a connection with this code has done what it was asked for."""
    return code in NORMAL or code >= OWN_CODES
