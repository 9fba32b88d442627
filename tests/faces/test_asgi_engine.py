"""An engine that is away, one that cannot be opened, and when it is opened and closed."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from asgi_driver import Lifespan, drive
from counting import PRICING, guard, used
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tier_middleware import AsyncTier, EngineUnavailable, TierError
from tier_middleware.asgi import Requirement, TierMiddleware, requires_feature


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Another connection holds the write lock for longer than anybody waits."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            db.execute("ROLLBACK")


def says(answer: bool) -> Any:
    def on_error(request: Any, error: Exception) -> bool:
        assert isinstance(request, Request)
        assert isinstance(error, EngineUnavailable)
        return answer

    return on_error


POLICIES = {"allow": "allow", "deny": "deny", "open": says(True), "closed": says(False), None: None}
OPEN = {"allow": True, "deny": False, "open": True, "closed": False}


@pytest.mark.parametrize("of_tier", ["allow", "deny"])
@pytest.mark.parametrize("of_middleware", [None, "allow", "deny", "closed"])
@pytest.mark.parametrize("of_route", [None, "allow", "deny", "open", "closed"])
async def test_route_before_middleware_before_tier(
    make_tier: Any, tmp_path: Path, of_route: str | None, of_middleware: str | None, of_tier: str
) -> None:
    async with make_tier("sqlite", timeout=0.001, on_error=of_tier) as tier:
        needs = Requirement("feature:convert", on_error=POLICIES[of_route])
        app = TierMiddleware(
            Response("done", 500), tier=tier, org=guard, routes={"GET /": needs}, on_error=POLICIES[of_middleware]
        )
        with away(tmp_path / "tier.db"):
            sent = await drive(app)
        is_open = OPEN[of_route or of_middleware or of_tier]
        assert sent.status == (500 if is_open else 503)
        assert tier.counts == {"fail_open" if is_open else "fail_closed": 1}


async def test_closed_is_503_and_never_402(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.001, on_error="deny") as tier:
        app = TierMiddleware(
            Response("x"), tier=tier, org=guard, routes={"GET /": "feature:convert"}, upgrade_url="/pricing"
        )
        with away(tmp_path / "tier.db"):
            sent = await drive(app)
            browser = await drive(app, headers=[(b"x-org", b"acme"), (b"accept", b"text/html")])
        assert sent.status == browser.status == 503
        assert sent.header(b"retry-after") is not None
        assert sent.header(b"content-type") == b"application/problem+json"
        assert str(tmp_path).encode() not in sent.body + browser.body  # the error's text is for the log
        assert await used(tier) == (0, 0)


async def test_open_and_back_in_time_is_reported(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.01) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        lock = away(tmp_path / "tier.db")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            lock.__exit__(None, None, None)
            scope["state"]["tier"]["feature:convert"].add(3)
            await Response("done")(scope, receive, send)

        lock.__enter__()
        await drive(TierMiddleware(app, tier=tier, org=guard, routes={"GET /": "feature:convert"}))
        assert await used(tier) == (3, 0)
        assert tier.counts == {"fail_open": 1}


async def test_what_passes_the_limit_while_open_is_counted(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.01) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        await tier.report("org:acme", "feature:convert", 10)
        lock = away(tmp_path / "tier.db")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            lock.__exit__(None, None, None)
            await Response("done")(scope, receive, send)

        lock.__enter__()
        await drive(TierMiddleware(app, tier=tier, org=guard, routes={"GET /": "feature:convert"}))
        assert await used(tier) == (11, 0)
        assert tier.counts == {"fail_open": 1, "over_limit.fail_open": 1}


async def test_an_on_off_feature_while_open_loses_nothing(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.01) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        lock = away(tmp_path / "tier.db")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            lock.__exit__(None, None, None)
            await Response("done")(scope, receive, send)

        lock.__enter__()
        sent = await drive(TierMiddleware(app, tier=tier, org=guard, routes={"GET /": "feature:sso"}))
        assert sent.status == 200
        assert tier.counts == {"fail_open": 1}


async def test_still_away_at_the_end_is_a_loss_without_an_outbox(make_tier: Any, tmp_path: Path) -> None:
    told = []
    async with make_tier(
        "sqlite",
        timeout=0.01,
        on_loss=lambda reports, reason: told.append((reports, reason)),
        outbox=tmp_path / "no folder" / "outbox.db",
    ) as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        app = TierMiddleware(
            Response("done"), tier=tier, org=guard, routes={"GET /": Requirement("feature:convert", 4)}
        )
        with away(tmp_path / "tier.db"):
            sent = await drive(app)
        assert sent.status == 200
        assert tier.counts == {"fail_open": 1, "lost.engine_unavailable": 4}
        ((reports, reason),) = told
        ((org, n),) = [(report.org, report.n) for report in reports]
        assert (org, n, reason) == ("org:acme", 4, "engine_unavailable")


async def test_all_requirements_must_agree_to_open(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.001) as tier:
        needs = [Requirement("feature:convert", on_error="allow"), Requirement("feature:pages", on_error="deny")]
        app = TierMiddleware(Response("x"), tier=tier, org=guard, routes={"GET /": needs})
        with away(tmp_path / "tier.db"):
            assert (await drive(app)).status == 503
        assert tier.counts == {"fail_closed": 1}  # one request, one decision


async def test_the_policy_holds_for_what_is_taken(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite", timeout=0.01, on_error="allow") as tier:
        raised: list[BaseException] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            with away(tmp_path / "tier.db"):
                try:
                    await scope["state"]["tier"]["feature:convert"].take(2)
                except TierError as error:
                    raised.append(error)
            await Response("done")(scope, receive, send)

        def gated(**options: Any) -> TierMiddleware:
            return TierMiddleware(
                app, tier=tier, org=guard, routes={"GET /": Requirement("feature:convert", **options)}
            )

        await drive(gated(on_error="deny"))
        assert [type(error) for error in raised] == [EngineUnavailable]
        assert await used(tier) == (1, 0)
        await drive(gated())
        assert len(raised) == 1
        assert await used(tier) == (3, 0)


# ---- an engine that cannot be opened --------------------------------------------------------------------------------


def corrupt(path: Path) -> dict[str, Any]:
    (path / "tier.db").write_bytes(b"this is no database" * 100)
    return {"base_url": f"sqlite:///{path}/tier.db"}


def newer(path: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(path / "tier.db")) as db:
        db.execute("PRAGMA application_id = 1414088018")
        db.execute("PRAGMA user_version = 999")
        db.commit()
    return {"base_url": f"sqlite:///{path}/tier.db"}


def no_folder(path: Path) -> dict[str, Any]:
    return {"base_url": f"sqlite:///{path}/nowhere/tier.db"}


def bad_model(path: Path) -> dict[str, Any]:
    (path / "pricing.json").write_text('{"plans": {"plan:free@1": {"feeatures": {}}}}')
    return {"base_url": "memory://", "pricing": str(path / "pricing.json")}


def no_model(path: Path) -> dict[str, Any]:
    return {"base_url": "memory://", "pricing": str(path / "none.json")}


def no_default(path: Path) -> dict[str, Any]:
    return {"base_url": "memory://", "pricing": PRICING, "default_plan": "plan:fre@1"}


UNUSABLE = [
    (corrupt, "tier.db"),
    (newer, "999"),
    (no_folder, "nowhere"),
    (bad_model, 'plans["plan:free@1"]'),
    (no_model, "none.json"),
    (no_default, "plan:fre@1"),
]


@pytest.mark.parametrize(("make", "named"), UNUSABLE)
async def test_it_fails_the_start(tmp_path: Path, make: Any, named: str, caplog: pytest.LogCaptureFixture) -> None:
    started = []

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        started.append(app)
        yield

    app = Starlette(lifespan=lifespan)
    app.add_middleware(TierMiddleware, tier=AsyncTier(**make(tmp_path)))
    async with Lifespan(app) as server:
        assert server.kinds == ["startup.failed"]
        assert named in server.messages[0]["message"]
    assert started == []
    assert named in caplog.text


@pytest.mark.parametrize("on_error", ["allow", says(True)])
@pytest.mark.parametrize(("make", "named"), UNUSABLE)
async def test_it_is_503_at_first_use(
    tmp_path: Path, make: Any, named: str, on_error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tier = AsyncTier(**make(tmp_path), on_error=on_error)
    ran = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append(scope)

    gated = TierMiddleware(app, tier=tier, org=guard, routes={"GET /": "feature:convert"})
    for _ in range(2):
        sent = await drive(gated)
        assert sent.status == 503
        assert named.encode() not in sent.body
    assert ran == []
    assert named in caplog.text  # whoever runs it learns why


@pytest.mark.parametrize("on_error", ["allow", says(True)])
@pytest.mark.parametrize(("make", "named"), UNUSABLE)
async def test_it_never_fails_open(tmp_path: Path, make: Any, named: str, on_error: Any) -> None:
    ran = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append(scope)

    tier = AsyncTier(**make(tmp_path), on_error=on_error)
    gated = TierMiddleware(app, tier=tier, org=guard, routes={"GET /": "feature:convert"})
    for _ in range(2):
        await drive(gated, raising=False)
    assert ran == []
    assert "fail_open" not in tier.counts


async def test_a_database_that_is_damaged_later_is_503(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite") as tier:
        await tier.subscribe("org:acme", "plan:free@1")
        app = TierMiddleware(Response("x"), tier=tier, org=guard, routes={"GET /": "feature:convert"})
        assert (await drive(app)).status == 200
    for name in ("tier.db", "tier.db-wal", "tier.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    corrupt(tmp_path)
    assert (await drive(app)).status == 503


# ---- when it is opened and closed -----------------------------------------------------------------------------------


async def test_nothing_is_opened_before_it_is_needed(make_tier: Any, tmp_path: Path) -> None:
    tier = make_tier("sqlite")
    app = TierMiddleware(Response("x"), tier=tier, org=guard, routes={"GET /": "feature:convert"})
    await drive(app, path="/ungated")
    assert os.listdir(tmp_path) == []
    assert (await drive(app)).status == 200  # first use
    assert tier.core.is_open
    assert await used(tier) == (1, 0)
    await tier.aclose()


async def test_many_first_uses_open_it_once(make_tier: Any) -> None:
    tier = make_tier("sqlite")
    app = TierMiddleware(Response("x"), tier=tier, org=guard, routes={"GET /": "feature:convert"})
    codes = [sent.status for sent in await asyncio.gather(*[drive(app) for _ in range(20)])]
    assert codes.count(200) == 10
    assert await used(tier) == (10, 0)
    await tier.aclose()


async def test_it_is_open_from_startup_to_shutdown(make_tier: Any, tmp_path: Path) -> None:
    tier = make_tier("sqlite")
    seen = []

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        seen.append((await tier.lookup_limit("org:acme", "feature:convert")).used if tier.core.is_open else None)
        yield {"mine": [1]}
        seen.append(tier.core.is_open)

    async def handler(request: Request) -> JSONResponse:
        return JSONResponse(request.state.mine)

    await tier.open()
    await tier.subscribe("org:acme", "plan:free@1")
    await tier.aclose()
    app = Starlette(routes=[Route("/", requires_feature("feature:convert")(handler))], lifespan=lifespan)
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    state: dict[str, Any] = {}
    async with Lifespan(app, state) as server:
        sent = await drive(app, state=state.copy())
        assert sent.body == b"[1]"  # the lifespan's state is there, beside ours
    assert server.kinds == ["startup.complete", "shutdown.complete"]
    assert seen == [0, True]
    assert not tier.core.is_open
    assert "tier" not in state
    assert not (tmp_path / "tier.db-wal").exists()  # the last connection is gone


class Slow:
    """A stream that is not ended at once: a task of its own is where nobody can interrupt it, as in a thread."""

    def __init__(self) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: Request) -> Response:
        usage = request.state.tier["feature:convert"]

        async def is_deaf() -> None:
            with anyio.CancelScope(shield=True):
                await self.go_on.wait()

        async def parts() -> AsyncIterator[bytes]:
            usage.add(2)
            yield b"x"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(is_deaf)
                usage.add(1)
                self.begun.set()

        return StreamingResponse(parts())


async def begun(tier: AsyncTier, slow: Slow) -> tuple[Lifespan, asyncio.Task[Any]]:
    """A server, and a request that it has cancelled."""
    app = Starlette(routes=[Route("/", requires_feature("feature:convert", 5)(slow))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    server = await Lifespan(app).__aenter__()
    request = asyncio.ensure_future(drive(app))
    await slow.begun.wait()
    request.cancel()
    return server, request


async def test_a_shutdown_waits_for_requests_that_the_server_has_cancelled(make_tier: Any) -> None:
    """As uvicorn does when its time for a graceful one is up: it waits for its lifespan and for nothing else."""
    tier, slow = make_tier("sqlite"), Slow()
    server, request = await begun(tier, slow)
    shutdown = asyncio.ensure_future(server.__aexit__(None, None, None))
    await asyncio.wait([shutdown], timeout=0.1)
    assert not shutdown.done()
    assert tier.core.is_open
    slow.go_on.set()
    await shutdown
    assert not tier.core.is_open
    assert await used(tier) == (3, 0)
    await asyncio.wait([request])
    await tier.aclose()


async def test_a_shutdown_waits_no_longer_than_it_may_and_counts_what_was_added(make_tier: Any) -> None:
    tier, slow = make_tier("sqlite", timeout=0.05), Slow()
    server, request = await begun(tier, slow)
    await server.__aexit__(None, None, None)
    assert not tier.core.is_open
    assert await used(tier) == (3, 2)
    slow.go_on.set()
    await asyncio.wait([request])
    assert await used(tier) == (3, 0)
    assert sum(entry.n for entry in await tier.history("org:acme", "feature:convert")) == 3
    await tier.aclose()


async def test_a_shutdown_waits_for_tasks_that_settle_by_themselves(make_tier: Any) -> None:
    tier, tasks = make_tier("sqlite"), []

    async def work(later: Any, go_on: asyncio.Event) -> None:
        async with later:
            await go_on.wait()

    go_on = asyncio.Event()

    async def handler(request: Request) -> Response:
        tasks.append(asyncio.ensure_future(work(request.state.tier["feature:convert"].detach(), go_on)))
        return Response("done")

    app = Starlette(routes=[Route("/", requires_feature("feature:convert", 5)(handler))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    server = await Lifespan(app).__aenter__()
    await drive(app)
    shutdown = asyncio.ensure_future(server.__aexit__(None, None, None))
    await asyncio.wait([shutdown], timeout=0.1)
    assert not shutdown.done()
    go_on.set()
    await shutdown
    assert await used(tier) == (5, 0)
    await asyncio.gather(*tasks)
    await tier.aclose()


async def test_state_called_tier_of_the_applications_lifespan_survives(make_tier: Any) -> None:
    tier = make_tier()

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield {"tier": tier}

    app = Starlette(lifespan=lifespan, routes=[Route("/", lambda request: Response("x"))])
    app.add_middleware(TierMiddleware, tier=tier, org=guard)
    state: dict[str, Any] = {}
    async with Lifespan(app, state):
        assert (await drive(app, state=state.copy())).status == 200
        assert state == {"tier": tier}


async def test_an_application_whose_start_fails_closes_it(make_tier: Any) -> None:
    tier = make_tier("sqlite")

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        raise ZeroDivisionError("its own")
        yield

    app = Starlette(lifespan=lifespan)
    app.add_middleware(TierMiddleware, tier=tier)
    server = await Lifespan(app).__aenter__()
    assert server.kinds == ["startup.failed"]
    assert "its own" in server.messages[0]["message"]
    with pytest.raises(ZeroDivisionError):
        await server.__aexit__(None, None, None)
    assert not tier.core.is_open


async def test_an_application_without_lifespan(make_tier: Any) -> None:
    """Servers take its exception for "not supported" and serve; so do we."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await Response("done")(scope, receive, send)

    tier = make_tier()
    gated = TierMiddleware(app, tier=tier, org=guard, routes={"GET /": "feature:convert"})
    with pytest.raises(AssertionError):
        async with Lifespan(gated):
            pass
    assert (await drive(gated)).status == 200
    assert await used(tier) == (1, 0)
    await tier.aclose()


async def test_an_engine_that_is_away_at_start_is_tried_again(
    make_tier: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with make_tier("sqlite") as tier:
        await tier.subscribe("org:acme", "plan:free@1")
    new = {"plans": {"plan:new@1": {"features": {"feature:x": {}}}}}  # which has to be written
    tier = make_tier("sqlite", timeout=0.01, pricing=new)
    app = TierMiddleware(Starlette(routes=[Route("/", lambda r: Response("x"))]), tier=tier, org=guard,
                         routes={"GET /": "feature:convert"})  # fmt: skip
    with away(tmp_path / "tier.db"):
        server = Lifespan(app)
        await server.__aenter__()
    assert server.kinds == ["startup.complete"]
    assert "away at start" in caplog.text
    assert (await drive(app)).status == 200
    assert await used(tier) == (1, 0)
    await server.__aexit__(None, None, None)


async def test_requests_while_it_is_away_from_the_first_use(make_tier: Any, tmp_path: Path) -> None:
    async with make_tier("sqlite") as tier:
        await tier.subscribe("org:acme", "plan:free@1")
    for on_error, status in (("allow", 404), ("deny", 503)):
        tier = make_tier("sqlite", timeout=0.01, on_error=on_error)
        app = TierMiddleware(Response("x", 404), tier=tier, org=guard, routes={"GET /": "feature:convert"})
        with away(tmp_path / "tier.db"):
            assert (await drive(app)).status == status
        await tier.aclose()


async def test_the_file_is_named_at_start(make_tier: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tier_middleware")
    async with make_tier("sqlite"):
        assert str(tmp_path / "tier.db") in caplog.text
