"""Usage is counted before the message with which the client can see success, and at no other.

The applications here are raw ASGI, so that each can send exactly the messages it is about.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from asgi_driver import Sent, body_of, drive, http_scope, never
from counting import guard, used
from real_server import serving
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from tier_middleware import AsyncTier, LimitReached
from tier_middleware.asgi import Requirement, TierMiddleware

START = "http.response.start"
BODY = "http.response.body"
TRAILERS = "http.response.trailers"
PATHSEND = "http.response.pathsend"
ZEROCOPY = "http.response.zerocopysend"


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> dict[str, Any]:
    return {"type": START, "status": status, "headers": list(headers), **more}


def body(content: bytes = b"", more: bool | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"type": BODY, "body": content}
    return message if more is None else {**message, "more_body": more}


def length(n: int) -> tuple[bytes, bytes]:
    return (b"content-length", str(n).encode())


def sends(*messages: dict[str, Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    return app


def gated(app: Any, tier: AsyncTier, needs: Any = "feature:convert", **options: Any) -> TierMiddleware:
    table = {"GET /": needs, "POST /": needs}
    return TierMiddleware(app, tier=tier, org=guard, routes=table, **options)


class Watch:
    """What was counted whenever the server was about to take a message."""

    def __init__(self, tier: AsyncTier) -> None:
        self.tier = tier
        self.seen: list[tuple[str, int, int]] = []

    async def __call__(self, message: dict[str, Any]) -> None:
        self.seen.append((message["type"].removeprefix("http.response."), *await used(self.tier)))


async def watched(app: Any, tier: AsyncTier, method: str = "GET", **options: Any) -> list[tuple[str, int, int]]:
    seen = await unfinished(app, tier, method, **options)
    assert (await used(tier))[1] == 0
    return seen


async def unfinished(app: Any, tier: AsyncTier, method: str = "GET", **options: Any) -> list[tuple[str, int, int]]:
    """`watched`, of what may leave something held until the test has looked."""
    watch = Watch(tier)
    await drive(app, method, at_message=watch, **options)
    return watch.seen


# ---- at which message -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "counted_at"),
    [
        ([start(), body(b"x")], 1),
        ([start(), body(b"x", False)], 1),
        ([start(), body(b"x", True), body(b"y", True), body(b"", False)], 3),
        ([start(), {"type": BODY}], 1),
        ([start(200, length(1)), body(b"x")], 1),
        ([start(200, length(2)), body(b"x", True), body(b"y", True), body(b"", False)], 2),
        ([start(200, length(2)), body(b"", True), body(b"xy", True), body(b"", False)], 2),
        ([start(200, length(0)), body(b"", True), body(b"")], 0),
        ([start(200, length(0)), body()], 0),
        ([start(200, (b"content-length", b"junk")), body(b"x", True), body(b"y")], 2),
        ([start(200, length(2)), body(b"x", True), body(b"y", True), body(b"too much")], 2),
        ([start(204), body()], 0),
        ([start(304), body()], 0),
        ([start(200, length(9)), {"type": PATHSEND, "path": "/f"}], 1),
        ([start(), {"type": ZEROCOPY, "file": 1, "more_body": True}, {"type": ZEROCOPY, "file": 1}], 2),
        ([start(), {"type": ZEROCOPY, "file": 1, "more_body": True}, body()], 2),
        ([start(200, length(9)), {"type": ZEROCOPY, "file": 1, "more_body": True}, body()], 2),
        ([start(trailers=True), body(b"x", True), body(b"y"), {"type": TRAILERS, "headers": []}], 3),
        (
            [
                start(trailers=True),
                body(b"x"),
                {"type": TRAILERS, "headers": [], "more_trailers": True},
                {"type": TRAILERS, "headers": [(b"a", b"b")]},
            ],
            3,
        ),
        ([start(200, length(1), trailers=True), body(b"x", True), body(), {"type": TRAILERS, "headers": []}], 3),
        ([start(200, length(0), trailers=True), body(), {"type": TRAILERS, "headers": []}], 2),
        ([{"type": "http.response.early_hint", "links": []}, start(), body()], 2),
        ([{"type": "http.response.push", "path": "/", "headers": []}, start(), body()], 2),
    ],
)
async def test_it_is_counted_before_the_client_has_it_all(
    any_tier: AsyncTier, messages: list[dict[str, Any]], counted_at: int
) -> None:
    seen = await watched(gated(sends(*messages), any_tier), any_tier)
    kinds = [message["type"].removeprefix("http.response.") for message in messages]
    assert seen == [(kind, 1, 0) if i >= counted_at else (kind, 0, 1) for i, kind in enumerate(kinds)]


@pytest.mark.parametrize("status", [400, 402, 404, 500])
async def test_a_failure_gives_back_before_its_body(tier: AsyncTier, status: int) -> None:
    app = gated(sends(start(status), body(b"x", True), body()), tier)
    assert await watched(app, tier) == [("start", 0, 0), ("body", 0, 0), ("body", 0, 0)]


async def test_messages_pass_as_they_are(tier: AsyncTier) -> None:
    messages = [start(200, (b"X-Many", b"1"), (b"X-Many", b"2"), (b"x-y", b"\xff"))]
    messages += [body(bytes([i]) * i, True) for i in range(50)]
    messages += [{**body(b"", False), "of_a_later_version": 1}]
    sent = await drive(gated(sends(*messages), tier))
    assert sent.messages == messages
    assert sent.messages[0]["headers"] == messages[0]["headers"]
    assert len(sent.starts) == 1


async def test_chunks_are_not_held_back(tier: AsyncTier) -> None:
    """Each chunk is with the server before the application makes the next."""
    sent = Sent()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for i in range(5):
            await send(body(b"x", True))
            assert len(sent.chunks) == i + 1
        await send(body())

    async def send(message: dict[str, Any]) -> None:
        sent.messages.append(message)

    await gated(app, tier)(http_scope(), never, send)
    assert len(sent.chunks) == 6


async def test_a_file_of_many_chunks(tier: AsyncTier, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "file").write_bytes(content)
    watch = Watch(tier)
    sent = await drive(gated(FileResponse(tmp_path / "file"), tier), at_message=watch)
    assert sent.body == content
    assert sent.header(b"content-length") == b"300000"
    assert len(sent.starts) == 1
    assert [seen[1] for seen in watch.seen] == [0] * (len(watch.seen) - 1) + [1]


async def test_a_file_that_the_server_sends(tier: AsyncTier, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 10)
    app = gated(FileResponse(tmp_path / "file"), tier)
    seen = await watched(app, tier, extensions={"http.response.pathsend": {}})
    assert seen == [("start", 0, 1), ("pathsend", 1, 0)]


# ---- what goes wrong after the response -----------------------------------------------------------------------------


async def test_what_happens_afterwards_changes_nothing(tier: AsyncTier) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    app = gated(Response("done", background=BackgroundTask(fails)), tier)
    sent = await drive(app, raising=False)
    assert isinstance(sent.error, ZeroDivisionError)
    assert sent.body == b"done"
    assert await used(tier) == (1, 0)


async def test_a_background_task_cannot_change_the_usage(tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Response("done")(scope, receive, send)
        with pytest.raises(RuntimeError, match="settled already"):
            scope["state"]["tier"]["feature:convert"].add(5)
        with pytest.raises(RuntimeError, match="settled already"):
            await scope["state"]["tier"]["feature:convert"].take(5)

    await drive(gated(app, tier))
    assert await used(tier) == (1, 0)


# ---- what goes wrong before -----------------------------------------------------------------------------------------


class Own(Exception):
    pass


class OwnBase(BaseException):
    pass


@pytest.mark.parametrize("kind", [Own, OwnBase])
@pytest.mark.parametrize("after", [0, 1, 3])
async def test_the_applications_exception_is_passed_on_as_it_is(
    any_tier: AsyncTier, kind: type[BaseException], after: int
) -> None:
    error = kind("mine")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in [start(), body(b"x", True), body(b"y", True)][:after]:
            await send(message)
        raise error

    with pytest.raises(kind) as raised:
        await drive(gated(app, any_tier))
    assert raised.value is error
    assert error.__cause__ is None
    assert error.__context__ is None
    assert await used(any_tier) == (0, 0)


async def test_a_stream_that_fails_gives_everything_back(any_tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        usage = scope["state"]["tier"]["feature:convert"]

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(3):
                await usage.take(2)
                yield b"x"
            raise Own

        await StreamingResponse(chunks())(scope, receive, send)

    sent = await drive(gated(app, any_tier), raising=False)
    assert isinstance(sent.error, Own)
    assert sent.chunks == [b"x"] * 3
    assert await used(any_tier) == (0, 0)


async def test_an_application_that_answers_nothing(tier: AsyncTier) -> None:
    sent = await drive(gated(sends(), tier))
    assert sent.messages == []
    assert await used(tier) == (0, 0)


# ---- the client has gone --------------------------------------------------------------------------------------------


async def test_a_client_that_left_a_success_is_counted(tier: AsyncTier) -> None:
    """The server raises at the very message that would complete the response."""
    sent = await drive(gated(sends(start(), body(b"x")), tier), gone_at=1, raising=False)
    assert sent.kinds == ["start"]
    assert isinstance(sent.error, OSError)
    assert await used(tier) == (1, 0)


@pytest.mark.parametrize("spec_version", ["2.4", "2.0"])
async def test_a_client_that_left_a_stream_is_counted_what_was_added(tier: AsyncTier, spec_version: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        usage = scope["state"]["tier"]["feature:convert"]

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(5):
                usage.add(1)
                yield b"x"

        await StreamingResponse(chunks())(scope, receive, send)

    sent = await drive(
        gated(app, tier), gone_at=3, raising=False, asgi={"version": "3.0", "spec_version": spec_version}
    )
    assert sent.kinds == ["start", "body", "body"]
    assert await used(tier) == (3, 0)


async def test_a_client_whose_leaving_cancels_the_stream(tier: AsyncTier) -> None:
    """Old servers do not raise; Starlette listens for ``http.disconnect`` and cancels the stream."""
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        usage = scope["state"]["tier"]["feature:convert"]

        async def chunks() -> AsyncIterator[bytes]:
            usage.add(2)
            yield b"x"
            left.set()
            await asyncio.Event().wait()

        await StreamingResponse(chunks())(scope, receive, send)

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    sent = await drive(gated(app, tier), receive=receive, asgi={"version": "3.0", "spec_version": "2.0"})
    assert sent.chunks == [b"x"]
    assert await used(tier) == (2, 0)


async def test_an_application_that_returns_unfinished(tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"x", True))
        scope["state"]["tier"]["feature:convert"].set(4)

    await drive(gated(app, tier))
    assert await used(tier) == (4, 0)


async def test_an_application_that_swallows_the_servers_error(tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        with suppress(OSError):
            await send(body(b"x", True))

    await drive(gated(app, tier), gone_at=1)
    assert await used(tier) == (1, 0)


async def test_a_client_that_left_a_head_is_not_counted(tier: AsyncTier) -> None:
    await drive(gated(sends(start(), body()), tier), "HEAD", gone_at=1, raising=False)
    assert await used(tier) == (0, 0)


async def test_a_failure_is_not_counted_though_the_client_left(tier: AsyncTier) -> None:
    await drive(gated(sends(start(500), body(b"x", True), body()), tier), gone_at=1, raising=False)
    assert await used(tier) == (0, 0)


# ---- the request is the application's -------------------------------------------------------------------------------


async def test_the_body_is_the_applications(tier: AsyncTier) -> None:
    parts = [os.urandom(64 * 1024) for _ in range(64)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got, more = [], True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        assert got == parts
        await Response("done")(scope, receive, send)

    sent = await drive(gated(app, tier), "POST", receive=body_of(*parts))
    assert sent.body == b"done"
    assert await used(tier) == (1, 0)


async def test_the_middleware_never_receives(tier: AsyncTier) -> None:
    for app in (sends(start(), body()), sends(start(500), body()), sends()):
        await drive(gated(app, tier), receive=never)
    await drive(gated(sends(start(), body()), tier, "feature:audit"), receive=never)  # refused
    assert await used(tier) == (1, 0)


async def test_receive_is_passed_on_untouched(tier: AsyncTier) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(receive)
        await Response("done")(scope, receive, send)

    await drive(gated(app, tier), receive=never)
    assert seen == [never]


async def test_callables_get_a_request_of_the_same_scope(tier: AsyncTier) -> None:
    seen: list[Any] = []

    def amount(request: Request) -> int:
        seen.append(request)
        return 1

    def org(request: Request) -> str:
        seen.append(request)
        return "acme"

    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await Response("done")(scope, receive, send)

    await drive(gated(app, tier, Requirement("feature:convert", amount, org)))
    assert [request.scope for request in seen] == scopes * 2
    assert all(isinstance(request, Request) for request in seen)


# ---- report_if ------------------------------------------------------------------------------------------------------


async def test_report_if_is_asked_with_the_status(tier: AsyncTier) -> None:
    asked = []

    def report_if(request: Any, status: int) -> bool:
        asked.append((request.url.path, status))
        return status == 418

    app = gated(sends(start(418), body()), tier, Requirement("feature:convert", report_if=report_if))
    assert await watched(app, tier) == [("start", 0, 1), ("body", 1, 0)]
    assert set(asked) == {("/", 418)}


async def test_report_if_of_one_of_two(tier: AsyncTier) -> None:
    needs = [
        Requirement("feature:convert", 2, report_if=lambda request, status: True),
        Requirement("feature:convert", 3),
        Requirement("feature:pages", 4),
    ]
    await drive(gated(sends(start(404), body()), tier, needs))
    assert await used(tier) == (2, 0)
    assert await used(tier, "feature:pages") == (0, 0)


@pytest.mark.parametrize("is_finished", [True, False])
async def test_report_if_that_raises_leaves_nothing_held(tier: AsyncTier, is_finished: bool) -> None:
    def report_if(request: Any, status: int) -> bool:
        raise Own

    app = gated(
        sends(start(), body(b"x", more=not is_finished)), tier, Requirement("feature:convert", report_if=report_if)
    )
    with pytest.raises(Own):
        await drive(app)
    assert await used(tier) == (0, 0)


async def test_report_if_that_raises_later_leaves_nothing_held(tier: AsyncTier) -> None:
    asked = []

    def report_if(request: Any, status: int) -> bool:
        asked.append(status)
        if len(asked) > 1:
            raise Own
        return True

    app = gated(sends(start(), body()), tier, Requirement("feature:convert", report_if=report_if))
    await drive(app, raising=False)
    assert (await used(tier))[1] == 0


async def test_report_if_holds_for_what_was_taken(tier: AsyncTier) -> None:
    def app_that(status: int) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await scope["state"]["tier"]["feature:convert"].take(3)
            await Response("done", status)(scope, receive, send)

        return app

    never_counted = Requirement("feature:convert", report_if=lambda request, status: False)
    await drive(gated(app_that(200), tier, never_counted))
    assert await used(tier) == (0, 0)
    always = Requirement("feature:convert", report_if=lambda request, status: True)
    await drive(gated(app_that(404), tier, always))
    assert await used(tier) == (3, 0)


async def test_a_cap_holds_for_what_was_taken(tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        usage = scope["state"]["tier"]["feature:convert"]
        await usage.take(3)
        usage.add(20)
        await Response("done")(scope, receive, send)

    await drive(gated(app, tier, Requirement("feature:convert", overage="cap")))
    assert await used(tier) == (10, 0)


async def test_take_that_is_refused_takes_nothing(any_tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        usage = scope["state"]["tier"]["feature:convert"]
        await usage.take(4)
        assert (usage.used, usage.limit, usage.remaining) == (0, 10, 5)
        with pytest.raises(LimitReached) as refused:
            await usage.take(6)
        assert (refused.value.requested, refused.value.limit) == (6, 10)
        await Response("done")(scope, receive, send)

    await drive(gated(app, any_tier))
    assert await used(any_tier) == (4, 0)


# ---- on a real server -----------------------------------------------------------------------------------------------


async def test_a_streams_peer_that_resets_over_a_real_socket(make_tier: Any, tmp_path: Path) -> None:
    """uvicorn, a socket, and a client that is gone in mid-stream: what was added is counted, nothing stays held."""
    async with make_tier("sqlite") as tier:
        gone = asyncio.Event()
        finished = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            usage = scope["state"]["tier"]["feature:pages"]

            async def chunks() -> AsyncIterator[bytes]:
                usage.add(3)
                yield b"x"
                await gone.wait()
                while (await receive())["type"] != "http.disconnect":
                    pass
                usage.add(4)
                yield b"y"

            try:
                await StreamingResponse(chunks())(scope, receive, send)
            finally:
                finished.set()

        async with serving(gated(app, tier, "feature:pages")) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Org: acme\r\n\r\n")
            await reader.readuntil(b"x\r\n")
            writer.transport.abort()
            gone.set()
            await asyncio.wait_for(finished.wait(), 5)
        assert await used(tier, "feature:pages") == (7, 0)


MISSIZED = {
    "too short": ([start(200, length(3)), body(b"xy")], b"xy"),
    "too short, in parts": ([start(200, length(3)), body(b"x", True), body(b"y", True), body()], b"xy"),
    "too long": ([start(200, length(2)), body(b"xyz")], b""),
    "too long, in parts": ([start(200, length(2)), body(b"x", True), body(b"yz")], b"x"),
}


@pytest.mark.parametrize("kind", MISSIZED)
async def test_a_body_that_a_server_cuts_off_for_its_length_counts_nothing(make_tier: Any, kind: str) -> None:
    messages, arrives = MISSIZED[kind]
    async with make_tier("sqlite") as tier, serving(gated(sends(*messages), tier, "feature:pages")) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Org: acme\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == arrives
        writer.close()
        assert await used(tier, "feature:pages") == (0, 0)


@pytest.mark.parametrize("kind", MISSIZED)
@pytest.mark.parametrize(("policy", "n"), [("report", 1), ("release", 0)])
async def test_where_the_server_lets_it_pass_it_is_a_response_without_an_end(
    any_tier: AsyncTier, kind: str, policy: Any, n: int
) -> None:
    messages, _ = MISSIZED[kind]
    app = gated(sends(*messages), any_tier, Requirement("feature:convert", on_disconnect=policy))
    assert all((counted, held) == (0, 1) for _, counted, held in await unfinished(app, any_tier))
    assert await used(any_tier) == (n, 0)


async def test_what_answers_head_has_no_body_of_the_declared_length(any_tier: AsyncTier) -> None:
    app = gated(sends(start(200, length(3)), body()), any_tier)
    assert await watched(app, any_tier, "HEAD") == [("start", 0, 1), ("body", 0, 0)]


# ---- usage that cannot be counted -----------------------------------------------------------------------------------


class Losing:
    """Takes the database's tables away while the handler works: the commit fails for real, and no retry helps."""

    def __init__(self, path: Path, *messages: dict[str, Any]) -> None:
        self.path = path
        self.messages = messages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with sqlite3.connect(self.path) as db:
            tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
            for (table,) in tables.fetchall():
                db.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        db.close()
        for message in self.messages:
            await send(message)


@pytest.mark.parametrize(
    "messages",
    [
        [start(200, length(2)), body(b"xy")],
        [start(200, length(0)), body()],
        [start(204), body()],
        [start(), body(b"x", True), body(b"y")],
        [start(200, length(2)), body(b"x", True), body(b"y")],
    ],
)
async def test_what_is_lost_is_told_and_the_response_goes_out(
    tmp_path: Path, make_tier: Any, messages: list[dict[str, Any]]
) -> None:
    told: list[tuple[Any, str]] = []
    outbox = tmp_path / "no folder" / "outbox.db"
    tier = make_tier("sqlite", outbox=outbox, on_loss=lambda reports, reason: told.append((reports, reason)))
    await tier.open()
    sent = await drive(gated(Losing(tmp_path / "tier.db", *messages), tier))
    assert sent.messages == messages
    ((reports, reason),) = told
    assert [(report.org, report.feature, report.n) for report in reports] == [("org:acme", "feature:convert", 1)]
    assert reason == "engine_unavailable"
    assert tier.counts == {"lost.engine_unavailable": 1}
    await tier.aclose()


@pytest.mark.parametrize(
    ("messages", "is_503"),
    [
        ([start(200, length(2)), body(b"xy")], True),
        ([start(200, length(2), (b"set-cookie", b"a=b")), body(b"xy")], True),
        ([start(200, length(0)), body()], True),
        ([start(204), body()], True),
        ([start(200, length(2)), body(b"x", True), body(b"y")], False),
        ([start(200, length(3)), body(b"x", True), body(b"y", True), body(b"z", True), body()], False),
        ([start(), body(b"x", True), body(b"y")], False),
        ([start(trailers=True), body(b"x"), {"type": TRAILERS, "headers": []}], False),
    ],
)
async def test_a_loss_can_fail_a_response_that_has_not_begun(
    tmp_path: Path, make_tier: Any, messages: list[dict[str, Any]], is_503: bool
) -> None:
    tier = make_tier("sqlite", outbox=tmp_path / "no folder" / "outbox.db", on_loss="fail")
    await tier.open()
    sent = await drive(gated(Losing(tmp_path / "tier.db", *messages), tier))
    if is_503:
        assert sent.status == 503
        assert b"engine_unavailable" in sent.body
        assert sent.header(b"content-length") == str(len(sent.body)).encode()
        assert sent.header(b"set-cookie") is None
    else:
        assert sent.messages == messages
    assert len(sent.starts) == 1
    await tier.aclose()


async def test_with_fail_a_good_response_is_unchanged(make_tier: Any) -> None:
    async with make_tier(on_loss="fail") as tier:
        for messages in (
            [start(200, length(3)), body(b"x", True), body(b"y", True), body(b"z")],
            [start(200, length(1)), body(b"x")],
            [start(), body(b"x", True), body()],
            [start(204), body()],
            [start(500, length(1)), body(b"x")],
            [start(200, length(9)), body(b"unfinish", True)],
            [start(200, length(9))],
        ):
            sent = await drive(gated(sends(*messages), tier))
            assert sent.messages == messages
        assert await used(tier) == (6, 0)
