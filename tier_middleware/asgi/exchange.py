"""One request and its response: settles the usage at the message with which the client can see success."""

from __future__ import annotations

import logging
from typing import Final

from starlette.requests import HTTPConnection

from .. import drive
from ..context import BODILESS, RefusedRequest, TierContext
from ..errors import TierError, UsageLost
from .responses import Message, Scope, Send, response_for, unmarked

__all__ = ["REFUSAL_HEADER", "Exchange"]

logger: Final = logging.getLogger("tier_middleware")

REFUSAL_HEADER: Final = b"tier-refusal"
"""Marks the response of an exception that a dependency raised to refuse; never leaves the middleware."""


class Exchange:
    """Stands between an application and the server's ``send``. Messages pass through as they come, unbuffered."""

    _status: int | None = None
    _left: int | None = None  # bytes of the declared length that have not been sent
    _trailers = False
    is_settled = False
    _is_replaced = False
    _held_start: Message | None = None
    _has_client_left = False

    def __init__(self, context: TierContext, scope: Scope, send: Send) -> None:
        self._context = context
        self._scope = scope
        self._send = send

    async def send(self, message: Message) -> None:
        if self._context.is_idle:
            await self._send(message)
            return
        if self._is_replaced:
            return  # the rest of a response that another one took the place of
        if not self.is_settled:
            if message["type"] == "http.response.start":
                if self._begins(message) and not await self._may_begin(message):
                    return
            elif self._completes(message):
                # the straight path of `settle` first
                self.is_settled = self._context.is_settled_at_once(self._status)
                if not self.is_settled and not await self._may_complete():
                    return
        try:
            if self._held_start is not None:
                start, self._held_start = self._held_start, None
                await self._send(start)
            await self._send(message)
        except OSError:  # how servers say that the peer is gone
            self._has_client_left = True
            raise

    def _begins(self, message: Message) -> bool:
        """Note what the response will be; whether there is something to do before it may begin."""
        self._status = status = message["status"]
        self._context.has_begun = status < 400
        for name, value in message.get("headers", ()):
            if name == b"content-length" and value.isdigit():
                self._left = int(value)
        self._trailers = message.get("trailers", False)
        return (
            status >= 400
            or status in BODILESS
            or self._left == 0
            or self._context.has_refused
            or self._context.core.tally.fails_on_loss
        )

    async def _may_begin(self, message: Message) -> bool:
        """Settle what a response settles by its first message; False where that message is not to be sent."""
        refused = self._context.refused
        if refused is not None and any(name.lower() == REFUSAL_HEADER for name, _ in message.get("headers", ())):
            await self._replace(refused, message)
            return False
        if (self._context.has_refused and unmarked(message)) or self._context.is_failure(self._status or 0):
            await self.settle(is_counted=False)  # nobody sees a success: the capacity need not wait for the body
        elif self._has_no_body:
            return await self._may_complete(is_begun=False)
        elif self._left is not None and self._context.core.tally.fails_on_loss:
            self._held_start = message  # may yet become a 503
            return False
        return True

    @property
    def _has_no_body(self) -> bool:
        return (self._status in BODILESS or self._left == 0) and not self._trailers

    def _completes(self, message: Message) -> bool:
        """Whether the client has the whole response once it has this message."""
        kind = message["type"]
        if kind == "http.response.body":
            is_last = not message.get("more_body", False)
            if self._left is not None:
                self._left -= len(message.get("body", b""))
                # of another length than was declared it has no end that the client can see: servers that look raise
                is_last = self._left == 0 or (is_last and self._is_head)
            return is_last and not self._trailers
        if kind == "http.response.trailers":
            return not message.get("more_trailers", False)
        if kind == "http.response.zerocopysend":
            self._left = None  # how much of the file it sends is the server's to know
            return not message.get("more_body", False) and not self._trailers
        return bool(kind == "http.response.pathsend")

    async def _may_complete(self, *, is_begun: bool = True, is_finished: bool = True) -> bool:
        """Settle; False where the loss of the usage was answered with a 503 instead."""
        try:
            await self.settle(is_counted=not self._is_head, is_finished=is_finished)
        except UsageLost as error:
            if self._held_start is not None or not is_begun:
                await self._answer_loss(error)
                return False
            logger.error("tier: usage lost after the response had begun: %s", error)
        return True

    @property
    def _is_head(self) -> bool:
        return bool(self._scope["method"] == "HEAD")

    async def _answer_loss(self, error: TierError) -> None:
        self._held_start = None
        self._is_replaced = True
        refused = self._context.refused_for_loss(error)
        await response_for(refused, HTTPConnection(self._scope))(self._scope, _no_body, self._send)

    async def _replace(self, refused: RefusedRequest, start: Message) -> None:
        """Send the refusal in place of what an exception handler made of its exception.

        Other headers of that response stay: middleware inside of ours (CORS, sessions) may have set them.
        """
        self._is_replaced = True
        await self.settle(is_counted=False)
        ours = response_for(refused, HTTPConnection(self._scope))
        overruled = {REFUSAL_HEADER, b"content-length", b"content-type", b"content-encoding"}
        kept = [(name, value) for name, value in start.get("headers", ()) if name.lower() not in overruled]

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]} - {b"set-cookie", b"vary"}
                kept_too = [(name, value) for name, value in kept if name.lower() not in names]
                message = {**message, "headers": [*message["headers"], *kept_too]}
            await self._send(message)

        await ours(self._scope, _no_body, send)

    # ---- the end ----------------------------------------------------------------------------------------------------

    async def returned(self) -> None:
        """The application is done. What a response counts that it began and did not finish, ``on_disconnect`` says."""
        if self._status is None:
            await self.settle(is_counted=False)
        elif await self._may_complete(is_finished=False) and self._held_start is not None:
            await self._send(self._held_start)

    async def failed(self, error: BaseException) -> None:
        """The application raised, which counts nothing; or it was not its fault that the response has no end: the
        client left, or it was cancelled in the middle. What that counts, ``on_disconnect`` says.
        """
        is_cut_off = self._has_client_left or (self._status is not None and drive.is_cancellation(error))
        try:
            await self.settle(is_counted=is_cut_off and not self._is_head, is_finished=False)
        except TierError as loss:
            logger.error("tier: %s", loss)  # the application's own exception is the one to raise

    async def settle(self, *, is_counted: bool, is_finished: bool = True) -> None:
        settlement = self._context.settlement(self._status, is_counted=is_counted, is_finished=is_finished)
        self.is_settled = True  # before anything is awaited: a cancellation on the way must not settle again
        core = self._context.core
        if not settlement.is_empty:
            await drive.arun(core.settling(settlement), core.engine, core.timeout)


async def _no_body() -> Message:
    return {"type": "http.disconnect"}
