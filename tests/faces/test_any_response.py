"""Any response, whatever its handler says and however it ends, counts what the README says of it; and any conversation
on a WebSocket.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import pytest
from asgi_driver import body_of, http_scope
from counting import PRICING, guard, used
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import AMOUNTS, BEFORE_IT, CONVERT, START, STEPS, Said, Speaker, Step, counted_of, is_let_through
from socket_driver import socket_scope

from tier_middleware import AsyncTier, ManualClock
from tier_middleware.asgi import Requirement, TierMiddleware
from tier_middleware.requirement import OnDisconnect, Overage, Per

ENGINES = st.sampled_from(["memory", "sqlite"])
MANY = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@asynccontextmanager
async def books(engine: str, before_it: int) -> AsyncIterator[Speaker]:
    """An engine on which the org has used something before."""
    clock = ManualClock(START)
    with tempfile.TemporaryDirectory() as folder:
        url = "memory://" if engine == "memory" else f"sqlite:///{folder}/tier.db"
        async with AsyncTier(url, pricing=PRICING, default_plan="plan:free@1", clock=clock) as tier:
            await tier.report("org:acme", CONVERT, before_it)
            yield Speaker(tier, clock)


async def balance(tier: AsyncTier, n: int) -> None:
    """So much is counted now, and nothing is held, looked after or lost."""
    assert await used(tier) == (n, 0)
    assert sum(entry.n for entry in await tier.history("org:acme", CONVERT)) == n
    assert not tier.core.live
    assert not [reason for reason in tier.counts if reason.startswith("lost") and reason != "lost.capped"]


async def cancelled() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    await asyncio.sleep(0)


# ---- responses ------------------------------------------------------------------------------------------------------


class Response(NamedTuple):
    """``before`` is said before it begins, and ``during`` after that."""

    engine: str
    before_it: int
    amount: int
    status: int
    before: Sequence[Step]
    has_begun: bool
    during: Sequence[Step]
    on_disconnect: OnDisconnect
    overage: Overage
    end: str = ""


RESPONSES = st.builds(
    Response,
    ENGINES,
    BEFORE_IT,
    amount=AMOUNTS,
    status=st.sampled_from([200, 200, 302, 404]),
    before=STEPS,
    has_begun=st.sampled_from([True, True, False]),
    during=STEPS,
    on_disconnect=st.sampled_from(["report", "estimate", "release"]),
    overage=st.sampled_from(["record", "cap"]),
)


def expected(response: Response, said: Said) -> int:
    is_whole = response.end == "completes"
    is_success = response.status < 400 and (response.has_begun or is_whole) and response.end != "raises"
    return counted_of(response, said, is_success=is_success, is_whole=is_whole)


async def respond(response: Response) -> None:
    async with books(response.engine, response.before_it) as speaker:
        said, was_called, is_gone = Said(response.amount), False, False

        async def send(message: Any) -> None:
            if is_gone:
                raise OSError("the peer is gone")

        async def handler(scope: Any, receive: Any, send: Any) -> None:
            nonlocal was_called, is_gone
            usage, was_called = scope["state"]["tier"][CONVERT], True
            await speaker.say(usage, response.before, said)
            if response.has_begun or response.end == "completes":
                await send({"type": "http.response.start", "status": response.status, "headers": []})
                if response.status < 400:  # else it is settled, and nothing more can be said
                    await speaker.say(usage, response.during, said)
                await send({"type": "http.response.body", "body": b"chunk", "more_body": True})
            if response.end == "raises":
                raise ZeroDivisionError
            if response.end == "is cancelled":
                await cancelled()
            if response.end == "client leaves":
                is_gone = True
                await send({"type": "http.response.body", "body": b"lost", "more_body": True})
            if response.end == "completes":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                with pytest.raises(RuntimeError, match="settled"):
                    usage.add(1)

        needs = Requirement(CONVERT, response.amount, on_disconnect=response.on_disconnect, overage=response.overage)
        app = TierMiddleware(handler, tier=speaker.tier, org=guard, routes={"GET /": needs})
        with suppress(ZeroDivisionError, OSError, asyncio.CancelledError):
            await asyncio.ensure_future(app(http_scope(), body_of(b""), send))
        assert was_called == is_let_through(response.before_it, response.amount)
        await balance(speaker.tier, response.before_it + (expected(response, said) if was_called else 0))


@pytest.mark.parametrize("end", ["completes", "returns", "raises", "is cancelled", "client leaves"])
@MANY
@given(response=RESPONSES)
def test_any_response(response: Response, end: str) -> None:
    asyncio.run(respond(response._replace(end=end)))


# ---- conversations --------------------------------------------------------------------------------------------------


class Conversation(NamedTuple):
    """What the handler says of each message; it has declined the connection where it does not accept it."""

    engine: str
    before_it: int
    amount: int
    is_accepted: bool
    messages: Sequence[Sequence[Step]]
    per: Per = "request"
    end: str = ""


CONVERSATIONS = st.builds(
    Conversation,
    ENGINES,
    BEFORE_IT,
    amount=AMOUNTS,
    is_accepted=st.sampled_from([True, True, True, False]),
    messages=st.lists(STEPS, max_size=4),
)
FAILS = ("closes oddly", "raises")


def counted_in(talk: Conversation, said: Sequence[Said], is_closed: bool) -> int:
    """What a conversation counts of what was said of each message; ``is_closed``: there was no room for another."""
    if not talk.is_accepted:
        return 0
    if talk.per == "message":
        is_last_done = is_closed or talk.end not in (*FAILS, "is cancelled")
        return sum(one.total for one in (said if is_last_done else said[:-1]))
    (whole,) = said
    return whole.total if talk.end not in FAILS else whole.only


async def converse(talk: Conversation) -> None:
    async with books(talk.engine, talk.before_it) as speaker:
        said, was_called, is_closed = list[Said](), False, False
        incoming = [{"type": "websocket.receive", "text": "hello"} for _ in talk.messages]
        incoming = [{"type": "websocket.connect"}, *incoming, {"type": "websocket.disconnect", "code": 1005}]

        async def from_client() -> Any:
            return incoming.pop(0)

        async def to_client(message: Any) -> None:
            nonlocal is_closed
            is_closed = is_closed or message.get("code") == 1008

        async def handler(scope: Any, receive: Any, send: Any) -> None:
            nonlocal was_called
            usage, was_called = scope["state"]["tier"][CONVERT], True
            await receive()
            if talk.per == "request":
                said.append(Said(talk.amount))
            if not talk.is_accepted:
                await send({"type": "websocket.close", "code": 1000})
                return
            await send({"type": "websocket.accept"})
            for steps in talk.messages:
                if (await receive())["type"] == "websocket.disconnect":
                    return
                if talk.per == "message":
                    said.append(Said(talk.amount))
                await speaker.say(usage, steps, said[-1])
            if talk.end == "client leaves":
                assert (await receive())["type"] == "websocket.disconnect"
            elif talk.end == "raises":
                raise ZeroDivisionError
            elif talk.end == "is cancelled":
                await cancelled()
            elif talk.end != "returns":
                await send({"type": "websocket.close", "code": 1000 if talk.end == "closes" else 1011})

        needs = Requirement(CONVERT, talk.amount, per=talk.per)
        app = TierMiddleware(handler, tier=speaker.tier, org=guard, routes={"WEBSOCKET /ws": needs})
        with suppress(ZeroDivisionError, asyncio.CancelledError):
            await asyncio.ensure_future(app(socket_scope(), from_client, to_client))
        assert was_called == is_let_through(talk.before_it, talk.amount)
        await balance(speaker.tier, talk.before_it + (counted_in(talk, said, is_closed) if was_called else 0))


@pytest.mark.parametrize("per", ["request", "message"])
@pytest.mark.parametrize("end", ["client leaves", "closes", "closes oddly", "returns", "raises", "is cancelled"])
@MANY
@given(talk=CONVERSATIONS)
def test_any_conversation(talk: Conversation, per: Per, end: str) -> None:
    asyncio.run(converse(talk._replace(per=per, end=end)))
