"""WebSockets: refused before they are accepted, closed when nothing more is to be had, and counted once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from asgi_driver import drive
from counting import guard, used
from fastapi import Depends, FastAPI
from real_server import serving
from socket_driver import Peer
from starlette.applications import Starlette
from starlette.endpoints import WebSocketEndpoint
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from waiting import auntil
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tier_middleware import AsyncTier, ConfigurationError
from tier_middleware.asgi import Requirement, TierMiddleware, requires_feature
from tier_middleware.fastapi import RequiresFeature

ACME = "org:acme"


class Own(Exception):
    pass


async def talk(ws: WebSocket) -> None:
    """Does what it is told."""
    await ws.accept()
    usage = ws.scope["state"]["tier"]["feature:convert"]
    async for word in ws.iter_text():
        name, _, n = word.partition(" ")
        if name == "add":
            usage.add(int(n))
        elif name == "set":
            usage.set(int(n))
        elif name == "skip":
            usage.skip()
        elif name == "take":
            await usage.take(int(n))
        elif name == "close":
            await ws.close(int(n))
            return
        elif name == "fail":
            raise Own
        elif name == "return":
            return
        await ws.send_text(f"{usage.n}")


def of_org(request: HTTPConnection) -> Any:
    return guard(request)


def starlette(tier: AsyncTier, **needs: Any) -> Any:
    app = Starlette(routes=[WebSocketRoute("/ws", requires_feature("feature:convert", **needs)(talk))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    return app


def endpoint(tier: AsyncTier, **needs: Any) -> Any:
    """A class, whose ``on_connect`` is gated."""

    class Talk(WebSocketEndpoint):
        encoding = "text"

        @requires_feature("feature:convert", **needs)
        async def on_connect(self, ws: WebSocket) -> None:
            await ws.accept()

        async def on_receive(self, ws: WebSocket, data: Any) -> None:
            name, _, n = data.partition(" ")
            usage = ws.scope["state"]["tier"]["feature:convert"]
            if name == "fail":
                raise Own
            if name == "close":
                await ws.close(int(n))
            elif name in ("add", "set"):
                getattr(usage, name)(int(n))

    app = Starlette(routes=[WebSocketRoute("/ws", Talk)])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    return app


def table(tier: AsyncTier, **needs: Any) -> Any:
    app = Starlette(routes=[Mount("/in", routes=[WebSocketRoute("/ws", talk)]), WebSocketRoute("/ws", talk)])
    routes = {"WEBSOCKET /ws": Requirement("feature:convert", **needs)}
    app.add_middleware(TierMiddleware, tier=tier, org=guard, routes=routes)
    return app


def fastapi(tier: AsyncTier, **needs: Any) -> Any:
    app = FastAPI()

    @app.websocket("/ws")
    @requires_feature("feature:convert", **needs)
    async def handler(ws: WebSocket) -> None:
        await talk(ws)

    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    return app


def dependency(tier: AsyncTier, **needs: Any) -> Any:
    app = FastAPI()

    gate = Depends(RequiresFeature("feature:convert", org=of_org, **needs))

    @app.websocket("/ws")
    async def handler(ws: WebSocket, usage: Any = gate) -> None:
        assert usage is ws.scope["state"]["tier"]["feature:convert"]
        await talk(ws)

    app.add_middleware(TierMiddleware, tier=tier)
    return app


FACES = [starlette, endpoint, table, fastapi, dependency]
faces = pytest.mark.parametrize("face", FACES, ids=lambda face: face.__name__)
whole = pytest.mark.parametrize("face", [starlette, table, fastapi, dependency], ids=lambda face: face.__name__)


# ---- refused --------------------------------------------------------------------------------------------------------


@faces
async def test_a_refusal_is_the_answer_to_the_handshake(tier: AsyncTier, face: Any) -> None:
    await tier.subscribe(ACME, "plan:free@1")
    await tier.report(ACME, "feature:convert", 10)
    peer = await Peer(face(tier)).ended()
    start, *bodies = peer.sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 402)
    assert json.loads(b"".join(one.get("body", b"") for one in bodies))["code"] == "limit_reached"
    assert "websocket.accept" not in peer.kinds
    assert await used(tier) == (10, 0)


@faces
async def test_without_the_extension_it_is_closed_before_it_is_accepted(tier: AsyncTier, face: Any) -> None:
    await tier.subscribe(ACME, "plan:free@1")
    await tier.report(ACME, "feature:convert", 10)
    peer = await Peer(face(tier), extensions={}).ended()
    assert peer.kinds == ["websocket.close"]
    assert peer.closed["code"] == 1008
    assert json.loads(peer.closed["reason"]) == {
        "code": "limit_reached", "feature": "feature:convert", "limit": 10, "used": 10,
    }  # fmt: skip
    assert peer.error is None
    assert await used(tier) == (10, 0)


@faces
async def test_nobody_and_staff(tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(tier), org="nobody").ended()
    assert peer.sent[0]["status"] == 401
    peer = await Peer(face(tier), org="staff").accepted()
    for _ in range(20):
        await peer.send("add 5")
    await peer.leave()
    assert await used(tier) == (0, 0)


async def test_a_response_of_the_applications_own(tier: AsyncTier) -> None:
    def own(request: Any, refusal: Any) -> Any:
        return PlainTextResponse(refusal.code, 418)

    app = Starlette(routes=[WebSocketRoute("/ws", requires_feature("feature:audit", on_refused=own)(talk))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    peer = await Peer(app).ended()
    assert (peer.sent[0]["status"], peer.sent[1]["body"]) == (418, b"no_entitlement")


async def test_an_application_that_declines_counts_nothing(tier: AsyncTier) -> None:
    @requires_feature("feature:convert")
    async def declines(ws: WebSocket) -> None:
        ws.scope["state"]["tier"]["feature:convert"].add(2)
        await (ws.close(4001) if "x-closes" in ws.headers else ws.send_denial_response(PlainTextResponse("no", 403)))

    app = Starlette(routes=[WebSocketRoute("/ws", declines)])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    await Peer(app).ended()
    await Peer(app, headers=[(b"x-org", b"acme"), (b"x-closes", b"1")]).ended()
    assert await used(tier) == (0, 0)


async def test_a_gate_that_comes_after_the_connection_was_accepted_closes_it(tier: AsyncTier) -> None:
    @requires_feature("feature:audit")
    async def later(ws: WebSocket) -> None:
        raise AssertionError("never gets here")

    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await later(ws)

    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    peer = await Peer(app).ended()
    assert peer.kinds == ["websocket.accept", "websocket.close"]
    assert (peer.closed["code"], json.loads(peer.closed["reason"])["code"]) == (1008, "no_entitlement")


async def test_what_is_not_gated_costs_nothing(tier: AsyncTier) -> None:
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(await ws.receive_text())

    app = Starlette(routes=[WebSocketRoute("/ws", handler), Route("/ws", PlainTextResponse("http"))])
    app.add_middleware(TierMiddleware, tier=tier, routes={"GET /ws": "feature:audit"})
    peer = await Peer(app).accepted()
    await peer.send("hello")
    await peer.ended()
    assert peer.sent[-1]["text"] == "hello"


# ---- per connection -------------------------------------------------------------------------------------------------


@faces
async def test_a_connection_counts_its_amount_at_its_end(any_tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(any_tier, amount=3)).accepted()
    await peer.send("hello")
    assert await used(any_tier) == (0, 3)
    await peer.leave()
    assert await used(any_tier) == (3, 0)


@faces
@pytest.mark.parametrize(("code", "n"), [(1000, 3), (1001, 3), (3000, 3), (4001, 3), (1011, 0), (1003, 0), (1008, 0)])
async def test_the_code_that_the_application_closes_with_says_whether_it_was_a_success(
    tier: AsyncTier, face: Any, code: int, n: int
) -> None:
    peer = await Peer(face(tier, amount=3)).accepted()
    seen: list[tuple[int, int]] = []

    async def look(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            seen.append(await used(tier))

    peer.at_message = look
    await peer.send(f"close {code}")
    await peer.ended()
    assert seen == [(n, 0)]  # before the client can see it
    assert peer.closed["code"] == code
    assert await used(tier) == (n, 0)


@whole
async def test_what_the_handler_says(tier: AsyncTier, face: Any) -> None:
    for words, n in ((["add 2", "add 3"], 5), (["set 4"], 4), (["add 4", "skip 0"], 0), (["take 6"], 6)):
        peer = await Peer(face(tier, amount=3)).accepted()
        for word in words:
            await peer.send(word)
        await peer.send("return 0")
        await peer.ended()
        assert await used(tier) == (n, 0), words
        await tier.adjust(ACME, "feature:convert", -n)


@faces
async def test_an_error_counts_what_was_added_and_not_the_amount(any_tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(any_tier, amount=3)).accepted()
    await peer.send("fail")
    assert isinstance((await peer.ended()).error, Own)
    assert await used(any_tier) == (0, 0)
    peer = await Peer(face(any_tier, amount=3)).accepted()
    await peer.send("add 2")
    await peer.send("fail")
    assert isinstance((await peer.ended()).error, Own)
    assert await used(any_tier) == (2, 0)


@whole
async def test_it_is_counted_on_the_way_and_renewed(any_tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(any_tier, amount=3)).accepted()
    any_tier.core.tend()
    assert await used(any_tier) == (0, 3)
    for n in (1, 2, 3):
        await peer.send("add 2")
        any_tier.core.tend()
        assert (await used(any_tier))[0] == 2 * n
    await peer.leave()
    assert await used(any_tier) == (6, 0)
    assert not any_tier.core.live


async def test_a_handler_that_lets_the_disconnect_out(tier: AsyncTier) -> None:
    @requires_feature("feature:convert", 2)
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        while True:
            await ws.receive_text()

    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    peer = await Peer(app).accepted()
    await peer.leave()
    assert isinstance(peer.error, WebSocketDisconnect)
    assert await used(tier) == (2, 0)


async def test_a_client_that_is_found_gone_when_it_is_sent_something(tier: AsyncTier) -> None:
    @requires_feature("feature:convert", 2)
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        await ws.send_text("x")

    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    peer = await Peer(app).accepted()
    peer.is_gone = True
    await peer.send()
    await peer.ended()
    assert peer.error is not None
    assert await used(tier) == (2, 0)


@pytest.mark.parametrize("is_accepted", [False, True])
async def test_a_server_that_ends(any_tier: AsyncTier, is_accepted: bool) -> None:
    """By cancelling; what was accepted was delivered."""
    begun = asyncio.Event()

    @requires_feature("feature:convert", 2)
    async def handler(ws: WebSocket) -> None:
        if is_accepted:
            await ws.accept()
        begun.set()
        await asyncio.Event().wait()

    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    app.add_middleware(TierMiddleware, tier=any_tier, org=guard)
    peer = Peer(app)
    await begun.wait()
    assert await used(any_tier) == (0, 2)
    peer.task.cancel()
    await asyncio.wait([peer.task])
    assert await used(any_tier) == (2 if is_accepted else 0, 0)


# ---- per message ----------------------------------------------------------------------------------------------------


@faces
async def test_each_message_counts_once_the_next_is_wanted(any_tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(any_tier, amount=2, per="message")).accepted()
    assert await used(any_tier) == (0, 2)  # of the first, for which the handshake has asked
    for n in (1, 2, 3):
        await peer.send("hello")
        assert await used(any_tier) == (2 * n, 0)
    await peer.leave()
    assert await used(any_tier) == (6, 0)
    assert not any_tier.core.live


@faces
async def test_a_connection_without_messages_counts_nothing(tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(tier, amount=2, per="message")).accepted()
    await peer.leave()
    assert await used(tier) == (0, 0)


@faces
async def test_when_no_more_are_to_be_had_it_is_closed(any_tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(any_tier, amount=4, per="message")).accepted()
    await peer.send("hello")
    await peer.send("hello")
    assert "websocket.close" not in peer.kinds
    await peer.send("hello")
    await peer.ended()
    assert peer.closed["code"] == 1008
    assert json.loads(peer.closed["reason"])["code"] == "limit_reached"
    assert peer.kinds[-1] == "websocket.close"
    assert isinstance(peer.error, WebSocketDisconnect | None)
    assert await used(any_tier) == (8, 0)
    refused = await Peer(face(any_tier, amount=4, per="message")).ended()
    assert refused.sent[0]["status"] == 402


@faces
async def test_a_message_that_fails_counts_nothing_and_those_before_it_stay(any_tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(any_tier, amount=2, per="message")).accepted()
    await peer.send("hello")
    await peer.send("fail")
    assert isinstance((await peer.ended()).error, Own)
    assert await used(any_tier) == (2, 0)


@faces
@pytest.mark.parametrize("per", ["request", "message"])
@pytest.mark.parametrize("last", ["close 1000", "return 0", "fail", ""])
async def test_a_report_if_that_raises_leaves_nothing_held(tier: AsyncTier, face: Any, per: Any, last: str) -> None:
    def report_if(request: Any, status: int) -> bool:
        raise Own

    peer = await Peer(face(tier, amount=2, per=per, report_if=report_if)).accepted()
    if last:
        await peer.send(last)
    if not peer.task.done():
        await peer.leave()
    assert isinstance((await peer.ended()).error, Own)
    assert await used(tier) == (0, 0)


@whole
async def test_what_the_handler_says_is_of_its_message(tier: AsyncTier, face: Any) -> None:
    peer = await Peer(face(tier, amount=2, per="message")).accepted()
    for word, total in (("set 1", 1), ("hello", 3), ("skip 0", 3), ("add 3", 6)):
        await peer.send(word)
        assert await used(tier) == (total, 0), word
    await peer.leave()
    assert await used(tier) == (6, 0)


async def test_what_a_message_takes_besides_is_not_asked_of_the_next_one(tier: AsyncTier) -> None:
    peer = await Peer(starlette(tier, amount=2, per="message")).accepted()
    for word, total in (("take 3", 3), ("hello", 5), ("take 0", 5), ("hello", 7)):
        await peer.send(word)
        assert await used(tier) == (total, 0), word
    await peer.leave()
    assert await used(tier) == (7, 0)


async def test_a_message_that_is_left_to_a_task_is_counted_by_the_task(any_tier: AsyncTier) -> None:
    """The messages after it, whose usage the handler has from before, count by themselves."""
    go_on, tasks = asyncio.Event(), list[asyncio.Task[None]]()

    async def work(later: Any, word: str) -> None:
        async with later:
            await go_on.wait()
            if word == "fail":
                raise Own
            later.add(int(word))

    @requires_feature("feature:pages", 4, per="message")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        usage = ws.state.tier["feature:pages"]
        async for word in ws.iter_text():
            if word == "itself":
                usage.add(30)
            else:
                tasks.append(asyncio.ensure_future(work(usage.detach(), word)))
            await ws.send_text("")

    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    app.add_middleware(TierMiddleware, tier=any_tier, org=guard)
    peer = await Peer(app).accepted()
    for word in ("5", "6", "fail", "itself", "7"):
        await peer.send(word)
    assert await used(any_tier, "feature:pages") == (30, 16)
    any_tier.core.tend()
    await peer.leave()
    assert await used(any_tier, "feature:pages") == (30, 16)
    go_on.set()
    await asyncio.wait(tasks)
    assert await used(any_tier, "feature:pages") == (48, 0)
    assert [type(task.exception()) for task in tasks] == [type(None), type(None), Own, type(None)]


@pytest.mark.parametrize("code", [1000, 1011])
async def test_the_message_in_hand_when_it_is_closed(tier: AsyncTier, code: int) -> None:
    peer = await Peer(starlette(tier, per="message")).accepted()
    await peer.send("hello")
    await peer.send(f"close {code}")
    await peer.ended()
    assert await used(tier) == (2 if code == 1000 else 1, 0)


async def test_both_kinds_on_one_connection(tier: AsyncTier) -> None:
    gate = requires_feature("feature:pages", 5)
    app = Starlette(routes=[WebSocketRoute("/ws", gate(requires_feature("feature:convert", per="message")(talk)))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    peer = await Peer(app).accepted()
    for _ in range(3):
        await peer.send("hello")
    assert (await used(tier), await used(tier, "feature:pages")) == ((3, 0), (0, 5))
    await peer.leave()
    assert (await used(tier), await used(tier, "feature:pages")) == ((3, 0), (5, 0))


async def test_the_message_in_hand_is_renewed(any_tier: AsyncTier) -> None:
    seen: list[Any] = []

    @requires_feature("feature:convert", 2, per="message")
    async def handler(ws: WebSocket) -> None:
        await ws.accept()
        async for _ in ws.iter_text():
            any_tier.core.keeper.tend(seen.append)
            (context,) = any_tier.core.live
            seen.append([kept.n for kept in context.so_far()])

    app = Starlette(routes=[WebSocketRoute("/ws", handler)])
    app.add_middleware(TierMiddleware, tier=any_tier, org=guard)
    peer = await Peer(app).accepted()
    await peer.send()
    await peer.send()
    await peer.leave()
    assert seen == [[0], [0]]
    assert await used(any_tier) == (4, 0)


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["connection", None, 1])
def test_what_an_amount_is_of_is_checked(value: Any) -> None:
    for make in (requires_feature, RequiresFeature, Requirement):
        with pytest.raises(ConfigurationError) as raised:
            make("feature:convert", per=value)
        assert raised.value.path == "per"
        assert repr(value) in raised.value.message


async def test_messages_of_an_http_request_are_a_mistake(tier: AsyncTier) -> None:
    async def handler(request: Any) -> Any:
        raise AssertionError("never gets here")

    app = Starlette(routes=[Route("/", requires_feature("feature:convert", per="message")(handler))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    with pytest.raises(ConfigurationError, match=r"^per: 'message' is for WebSockets"):
        await drive(app)


async def test_one_feature_of_both_kinds_is_a_mistake(tier: AsyncTier) -> None:
    gate = requires_feature("feature:convert")
    app = Starlette(routes=[WebSocketRoute("/ws", gate(requires_feature("feature:convert", per="message")(talk)))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    peer = await Peer(app).ended()
    assert isinstance(peer.error, ConfigurationError)
    assert await used(tier) == (0, 0)


async def test_without_the_middleware_it_is_a_clear_error() -> None:
    app = Starlette(routes=[WebSocketRoute("/ws", requires_feature("feature:convert")(talk))])
    peer = await Peer(app).ended()
    assert isinstance(peer.error, ConfigurationError)
    assert "TierMiddleware is missing" in str(peer.error)


# ---- over a real socket ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(app: Any, ws: str) -> AsyncIterator[str]:
    async with serving(app, ws) as (host, port):
        yield f"ws://{host}:{port}/ws"


@pytest.mark.parametrize("ws", ["websockets-sansio"])
@pytest.mark.parametrize("face", [starlette, dependency], ids=lambda face: face.__name__)
async def test_a_real_server_and_a_real_client(make_tier: Any, face: Any, ws: str) -> None:
    acme = {"x-org": "acme"}
    async with make_tier("sqlite") as tier, served(face(tier, amount=4, per="message"), ws) as url:
        async with connect(url, additional_headers=acme) as client:
            for _ in range(2):
                await client.send("hello")
                assert await client.recv() == "4"
            await client.send("hello")
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, json.loads(closed.value.rcvd.reason)["code"]) == (1008, "limit_reached")
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, additional_headers=acme)
        assert refused.value.response.status_code == 402
        assert json.loads(refused.value.response.body or b"")["feature"] == "feature:convert"
        assert await used(tier) == (8, 0)


async def test_a_real_client_that_is_cut_off(make_tier: Any) -> None:
    async with (
        make_tier("sqlite", flush_seconds=0.02) as tier,
        served(starlette(tier, amount=3), "websockets-sansio") as url,
    ):
        client = await connect(url, additional_headers={"x-org": "acme"})
        await client.send("add 5")
        assert await client.recv() == "5"
        await auntil(lambda: has(tier, (5, 0)))  # counted by the keeper
        assert len(tier.core.live) == 1
        client.transport.abort()
        await auntil(lambda: is_over(tier))
        assert await used(tier) == (5, 0)


async def has(tier: AsyncTier, what: tuple[int, int]) -> bool:
    return await used(tier) == what


async def is_over(tier: AsyncTier) -> bool:
    return not tier.core.live
