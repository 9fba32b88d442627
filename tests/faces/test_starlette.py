"""What is particular to Starlette: kinds of endpoints, mounts, and responses of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from asgi_driver import drive
from counting import guard, used
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles

from tier_middleware import AsyncTier
from tier_middleware.asgi import TierMiddleware, requires_feature


def wrapped(app: Any, tier: AsyncTier, **options: Any) -> TierMiddleware:
    return TierMiddleware(app, **{"tier": tier, "org": guard, **options})


@requires_feature("feature:convert")
async def function(request: Request) -> Response:
    return PlainTextResponse(request.path_params.get("id", "none"))


@requires_feature("feature:convert")
def sync_function(request: Request) -> Response:
    return PlainTextResponse(request.path_params.get("id", "none"))


@requires_feature("feature:convert")
async def positional_only(request: Request, /) -> Response:
    return PlainTextResponse(request.path_params["id"])


class Endpoint(HTTPEndpoint):
    @requires_feature("feature:convert")
    async def get(self, request: Request) -> Response:
        return PlainTextResponse(type(self).__name__)

    @requires_feature("feature:convert", 3)
    def post(self, request: Request) -> Response:
        return PlainTextResponse("posted", 201)

    @requires_feature("feature:audit")
    async def put(self, request: Request) -> Response:
        raise AssertionError("ran")

    async def delete(self, request: Request) -> Response:
        return PlainTextResponse("ungated")


@pytest.mark.parametrize("handler", [function, sync_function, positional_only])
async def test_functions(any_tier: AsyncTier, handler: Any) -> None:
    app = Starlette(routes=[Route("/{id}", handler)])
    for i in range(3):
        assert (await drive(wrapped(app, any_tier), path=f"/{i}")).body == str(i).encode()
    assert await used(any_tier) == (3, 0)


async def test_methods_of_an_endpoint(any_tier: AsyncTier) -> None:
    app = wrapped(Starlette(routes=[Route("/", Endpoint)]), any_tier)
    assert (await drive(app)).body == b"Endpoint"
    assert (await drive(app, "HEAD")).status == 200
    assert await used(any_tier) == (1, 0)
    assert (await drive(app, "POST")).status == 201
    assert await used(any_tier) == (4, 0)
    assert (await drive(app, "PUT")).status == 402
    assert (await drive(app, "DELETE")).status == 200
    assert (await drive(app, "PATCH")).status == 405
    assert await used(any_tier) == (4, 0)


async def test_mounts_and_routers(tier: AsyncTier) -> None:
    routes = [
        Mount("/a", routes=[Route("/{id}", function)]),
        Mount("/b", Router([Route("/{id}", function)])),
        Mount("/c", Starlette(routes=[Mount("/d", Starlette(routes=[Route("/{id}", function)]))])),
    ]
    app = wrapped(Starlette(routes=routes), tier)
    for path in ("/a/1", "/b/1", "/c/d/1"):
        assert (await drive(app, path=path)).body == b"1"
    assert await used(tier) == (3, 0)


async def test_static_files_through_the_table(tier: AsyncTier, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("content")
    static = Starlette(routes=[Mount("/static", StaticFiles(directory=tmp_path))])
    app = wrapped(static, tier, routes={"GET /static/{path:path}": "feature:convert"})
    sent = await drive(app, path="/static/f.txt")
    assert sent.body == b"content"
    assert await used(tier) == (1, 0)
    again = await drive(
        app, path="/static/f.txt", headers=[(b"x-org", b"acme"), (b"if-none-match", sent.header(b"etag") or b"")]
    )
    assert again.status == 304
    assert await used(tier) == (2, 0)
    assert (await drive(app, path="/static/none.txt")).status == 404
    assert await used(tier) == (2, 0)


NAMES = ["stream", "sync stream", "stream with a length", "file", "redirect", "empty", "text", "background"]


def answers(tmp_path: Path) -> dict[str, Any]:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    (tmp_path / "file").write_bytes(b"x" * 150_000)
    return {
        "stream": lambda: StreamingResponse(chunks()),
        "sync stream": lambda: StreamingResponse(iter([b"a", b"b"])),
        "stream with a length": lambda: StreamingResponse(chunks(), headers={"content-length": "2"}),
        "file": lambda: FileResponse(tmp_path / "file"),
        "redirect": lambda: RedirectResponse("/else"),
        "empty": lambda: Response(status_code=204),
        "text": lambda: PlainTextResponse("text"),
        "background": lambda: PlainTextResponse("text", background=BackgroundTask(lambda: None)),
    }


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("name", NAMES)
async def test_every_response_is_as_without_a_gate(any_tier: AsyncTier, tmp_path: Path, name: str, kind: str) -> None:
    answer = answers(tmp_path)[name]

    async def asynchronous(request: Request) -> Response:
        return answer()

    def synchronous(request: Request) -> Response:
        return answer()

    plain: Any = asynchronous if kind == "async" else synchronous
    seen: list[tuple[int, int]] = []

    async def at_message(message: dict[str, Any]) -> None:
        seen.append(await used(any_tier))

    gated = wrapped(Starlette(routes=[Route("/", requires_feature("feature:convert")(plain))]), any_tier)
    with_gate = await drive(gated, at_message=at_message)
    without = await drive(Starlette(routes=[Route("/", plain)]))
    assert with_gate.messages == without.messages
    assert seen[-1] == (1, 0)
    assert set(seen) <= {(0, 1), (1, 0)}


async def test_background_tasks_run_after_the_usage_is_counted(any_tier: AsyncTier) -> None:
    seen: list[tuple[int, int]] = []

    async def look() -> None:
        seen.append(await used(any_tier))

    async def fails() -> None:
        raise ZeroDivisionError

    @requires_feature("feature:convert")
    async def handler(request: Request) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(look)
        tasks.add_task(fails)
        tasks.add_task(look)
        return PlainTextResponse("x", background=tasks)

    sent = await drive(wrapped(Starlette(routes=[Route("/", handler)]), any_tier), raising=False)
    assert isinstance(sent.error, ZeroDivisionError)
    assert sent.body == b"x"
    assert seen == [(1, 0)]
    assert await used(any_tier) == (1, 0)


async def test_a_background_task_that_is_cancelled_changes_nothing(tier: AsyncTier) -> None:
    running = anyio.Event()

    async def waits() -> None:
        running.set()
        await anyio.sleep_forever()

    @requires_feature("feature:convert")
    async def handler(request: Request) -> Response:
        return PlainTextResponse("x", background=BackgroundTask(waits))

    app = wrapped(Starlette(routes=[Route("/", handler)]), tier)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(drive, app)
        await running.wait()
        tasks.cancel_scope.cancel()
    assert await used(tier) == (1, 0)


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        if "x-org" in conn.headers:
            return AuthCredentials(["authenticated"]), SimpleUser(conn.headers["x-org"])
        return None


async def test_behind_an_auth_middleware(tier: AsyncTier) -> None:
    """The table checks in the middleware, so that what authenticates is outside of it."""

    def org(request: Request) -> str | None:
        return request.user.display_name if request.user.is_authenticated else None

    app = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("x")), Route("/decorated", function)],
        middleware=[
            Middleware(AuthenticationMiddleware, backend=Backend()),
            Middleware(TierMiddleware, tier=tier, org=org, routes={"GET /": "feature:convert"}),
        ],
    )
    for path in ("/", "/decorated"):
        assert (await drive(app, path=path)).status == 200
        assert (await drive(app, path=path, headers=[])).status == 401
    assert await used(tier) == (2, 0)


class Timing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-timing"] = "1"
        return response


@pytest.mark.parametrize("where", ["inside", "outside"])
async def test_beside_a_base_http_middleware(any_tier: AsyncTier, where: str) -> None:
    async def chunks(fail: bool) -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"
        if fail:
            raise ZeroDivisionError

    @requires_feature("feature:convert")
    async def handler(request: Request) -> Response:
        return StreamingResponse(chunks("fail" in request.query_params))

    ours = Middleware(TierMiddleware, tier=any_tier, org=guard)
    layers = [ours, Middleware(Timing)] if where == "inside" else [Middleware(Timing), ours]
    app = Starlette(
        routes=[Route("/", handler), Route("/no", requires_feature("feature:audit")(handler))], middleware=layers
    )
    sent = await drive(app)
    assert (sent.body, sent.header(b"x-timing")) == (b"ab", b"1")
    assert await used(any_tier) == (1, 0)
    sent = await drive(app, query="fail=1", raising=False)
    assert sent.error is not None
    # inside of ours it completes the response of a stream that failed, and raises afterwards: the client saw a success
    assert await used(any_tier) == (2 if where == "inside" else 1, 0)
    assert (await drive(app, path="/no")).status == 402


@pytest.mark.parametrize("where", ["inside", "outside"])
async def test_what_a_client_left_behind_a_base_http_middleware(any_tier: AsyncTier, where: str) -> None:
    begun = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        begun.set()
        await asyncio.Event().wait()

    async def leaves() -> dict[str, Any]:
        await begun.wait()
        return {"type": "http.disconnect"}

    @requires_feature("feature:convert", on_disconnect="release")
    async def handler(request: Request) -> Response:
        return StreamingResponse(chunks())

    app = Starlette(routes=[Route("/", handler)])
    adds = [lambda: app.add_middleware(TierMiddleware, tier=any_tier, org=guard), lambda: app.add_middleware(Timing)]
    for add in adds if where == "outside" else reversed(adds):
        add()
    older = {"version": "3.0", "spec_version": "2.3"}  # as servers are: they tell by `receive` that a client has left
    sent = await drive(app, receive=leaves, asgi=older)
    assert sent.body == b"a"
    assert await used(any_tier) == (1 if where == "inside" else 0, 0)


async def test_an_exit_stack_around_the_middleware_closes_the_client_once(make_tier: Any) -> None:
    tier = make_tier("sqlite")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(tier)
        await drive(wrapped(Starlette(routes=[Route("/", function)]), tier))
        await tier.aclose()
    await tier.aclose()
    assert await used(tier) == (1, 0)
    await tier.aclose()
