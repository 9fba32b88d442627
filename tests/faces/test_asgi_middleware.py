"""How the middleware is set up: its options, its table of routes, mounts, and what it says of what is missing."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
from asgi_driver import Lifespan, drive, http_scope
from counting import PRICING, guard, used
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

import tier_middleware
from tier_middleware import AsyncTier, ConfigurationError, InvalidRequest, Tier
from tier_middleware.asgi import Refusal, Requirement, TierMiddleware, requires_feature
from tier_middleware.fastapi import RequiresFeature


async def done(request: Request) -> Response:
    return Response("done")


gated = requires_feature("feature:convert")(done)


def wrapped(app: Any, tier: AsyncTier, **options: Any) -> TierMiddleware:
    return TierMiddleware(app, **{"tier": tier, "org": guard, **options})


# ---- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tier": Tier("memory://")}, "tier: must be an AsyncTier"),
        ({"tier": "memory://"}, "'memory://'"),
        ({"org": "org:acme"}, "org: must be a callable, got 'org:acme'"),
        ({"on_refused": 402}, "on_refused: must be a callable, got 402"),
        ({"on_error": "open"}, "on_error: must be 'allow', 'deny' or a sync callable of (request, error), got 'open'"),
        ({"on_error": True}, "on_error"),
        ({"routes": {"/convert": "feature:convert"}}, "'/convert'"),
        ({"routes": {"post /convert": "feature:convert"}}, "'post /convert'"),
        ({"routes": {"POST convert": "feature:convert"}}, "'POST convert'"),
        ({"routes": {"POST": "feature:convert"}}, "'POST'"),
        (
            {"routes": {"POTS /x": "feature:convert"}},
            "routes['POTS /x']: 'POTS' is no HTTP method; did you mean 'POST'?",
        ),
        ({"routes": {"ANY /x": "feature:convert"}}, "routes['ANY /x']: 'ANY' is no HTTP method"),
        ({"routes": {"POST  /x": "feature:convert"}}, "'POST  /x'"),
        ({"routes": {"POST /{id:nope}": "feature:convert"}}, "POST /{id:nope}"),
        ({"routes": {"POST /{id}/{id}": "feature:convert"}}, "POST /{id}/{id}"),
        ({"routes": {"POST /x": "convert"}}, "routes['POST /x']: feature: must start with 'feature:', got 'convert'"),
        ({"routes": {"POST /x": ["feature:convert", "feature:bad name"]}}, "feature:bad name"),
        ({"routes": {"POST /x": []}}, "POST /x"),
        ({"routes": {"POST /x": None}}, "POST /x"),
        ({"routes": {"POST /x": 5}}, "POST /x"),
        ({"routes": {"POST /x": [5]}}, "5"),
        ({"routes": {5: "feature:convert"}}, "5"),
        ({"routes": ["POST /x"]}, "routes"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        TierMiddleware(done, **{"tier": AsyncTier("memory://"), **options})
    assert said in str(raised.value)
    assert raised.value.path is not None


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "//evil.example", "///evil.example", "////evil.example/x", "/\\evil.example", "/a b",
     "/a\nb", "/a\r\nSet-Cookie: a=b", "",
     "pricing", "data:text/html,x", "ftp://x", "http://", "https:///x", "http:x", " /x", "/\x00", "/ü",
     "http://[::1", 5, b"/x"],
)  # fmt: skip
def test_a_bad_upgrade_url_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="upgrade_url: must be a path or an http"):
        wrapped(done, AsyncTier("memory://"), upgrade_url=url)


@pytest.mark.parametrize(
    "url",
    ["/", "/pricing", "/pricing?plan=pro&x=%20#top", "https://example.org/pricing", "http://localhost:8000", None],
)
def test_a_good_upgrade_url_is_kept(url: str | None) -> None:
    assert wrapped(done, AsyncTier("memory://"), upgrade_url=url).options.upgrade_url == url


def test_the_default_is_the_processs_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = AsyncTier("memory://")
    monkeypatch.setitem(vars(tier_middleware), "tier", mine)
    assert TierMiddleware(done).tier is mine


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="upgrade"):
        wrapped(done, AsyncTier("memory://"), upgrade="/pricing")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert",), "'convert'"),
        (("feature:a b",), "feature:a b"),
        (("feature:x", -1), "amount: must be a whole number >= 0, got -1"),
        (("feature:x", 1.5), "1.5"),
        (("feature:x", True), "True"),
        (("feature:x", "2"), "'2'"),
        (("feature:x", lambda: 1), "amount: must be a whole number or a callable of (request) or (request, kwargs)"),
        (("feature:x", lambda a, b, c: 1), "amount"),
    ],
)
def test_the_decorator_checks_its_arguments_at_once(arguments: tuple[Any, ...], said: str) -> None:
    for make in (requires_feature, RequiresFeature, Requirement):
        with pytest.raises((ConfigurationError, InvalidRequest)) as raised:
            make(*arguments)
        assert said in str(raised.value)


@pytest.mark.parametrize(
    "option", [{"org": "acme"}, {"on_refused": 5}, {"on_error": "maybe"}, {"report_if": 200}, {"overage": "drop"}]
)
def test_and_its_options(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    for make in (requires_feature, RequiresFeature, Requirement):
        with pytest.raises(ConfigurationError, match=f"{name}: must be .*, got {value!r}"):
            make("feature:x", **option)


def test_a_class_cannot_be_decorated() -> None:
    with pytest.raises(ConfigurationError, match="a method of 'Endpoint', not the class"):

        @requires_feature("feature:x")
        class Endpoint(HTTPEndpoint):
            pass


def test_nor_can_what_is_no_callable() -> None:
    with pytest.raises(ConfigurationError):
        requires_feature("feature:x")("handler")  # type: ignore[type-var]


# ---- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Starlette, FastAPI])
async def test_without_the_middleware_the_first_request_says_what_to_add(make: Any) -> None:
    app = make(routes=[Route("/x", gated)])
    with pytest.raises(ConfigurationError, match=r"app\.add_middleware\(TierMiddleware") as raised:
        await drive(app, path="/x")
    assert "'/x'" in str(raised.value)


async def test_a_dependency_without_the_middleware_too() -> None:
    app = FastAPI(dependencies=[Depends(RequiresFeature("feature:convert"))])
    app.get("/")(done)
    with pytest.raises(ConfigurationError, match=r"app\.add_middleware\(TierMiddleware"):
        await drive(app)


async def test_nobody_who_says_the_org(tier: AsyncTier) -> None:
    app = wrapped(Starlette(routes=[Route("/", gated)]), tier, org=None)
    with pytest.raises(ConfigurationError, match=r"org: 'feature:convert' is required and nobody says for whom"):
        await drive(app)


async def test_a_handler_called_without_its_request(tier: AsyncTier) -> None:
    async def calls(request: Request) -> Response:
        return await gated("no request")  # type: ignore[arg-type]

    with pytest.raises(ConfigurationError, match="done was called without a request"):
        await drive(wrapped(Starlette(routes=[Route("/", calls)]), tier))


def test_ungated_websockets_pass(tier: AsyncTier) -> None:
    async def handler(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    app = wrapped(Starlette(routes=[WebSocketRoute("/ws", handler)]), tier, routes={"GET /ws": "feature:convert"})
    with TestClient(app).websocket_connect("/ws") as websocket:
        assert websocket.receive_text() == "hello"


# ---- routes= --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "method", "path", "is_gated"),
    [
        ("GET /x", "GET", "/x", True),
        ("GET /x", "POST", "/x", False),
        ("GET /x", "GET", "/x/", False),
        ("GET /x", "GET", "/X", False),
        ("GET /x", "GET", "/xy", False),
        ("GET /x", "GET", "/y/x", False),
        ("POST /convert/{id}", "POST", "/convert/1", True),
        ("POST /convert/{id}", "POST", "/convert/a b", True),
        ("POST /convert/{id}", "POST", "/convert/1/2", False),
        ("POST /convert/{id}", "POST", "/convert/", False),
        ("POST /convert/{id:int}", "POST", "/convert/1", True),
        ("POST /convert/{id:int}", "POST", "/convert/x", False),
        ("PUT /files/{path:path}", "PUT", "/files/a/b/c", True),
        ("DELETE /x", "DELETE", "/x", True),
        ("POST /x", "HEAD", "/x", False),
        ("OPTIONS /x", "OPTIONS", "/x", False),
        ("GET /a.b", "GET", "/aXb", False),
    ],
)
async def test_which_requests_a_pattern_gates(
    tier: AsyncTier, pattern: str, method: str, path: str, is_gated: bool
) -> None:
    app = wrapped(Response("done"), tier, routes={pattern: "feature:audit"})  # a feature that nobody has
    assert (await drive(app, method, path)).status == (402 if is_gated else 200)


async def test_head_is_checked_as_get_and_not_counted(tier: AsyncTier) -> None:
    app = wrapped(Response("done"), tier, routes={"GET /": "feature:convert", "GET /audit": "feature:audit"})
    assert (await drive(app, "HEAD")).status == 200
    assert await used(tier) == (0, 0)
    assert (await drive(app, "HEAD", "/audit")).status == 402


@pytest.mark.parametrize(
    ("root_path", "path", "is_gated"),
    [
        ("", "/x", True),
        ("/api", "/api/x", True),
        ("/api", "/x", True),
        ("/api", "/apix", False),
        ("/api", "/api/api/x", False),
        ("/api/", "/api//x", True),
        ("/api/v1", "/api/v1/x", True),
    ],
)
async def test_the_path_is_the_one_that_the_application_sees(
    tier: AsyncTier, root_path: str, path: str, is_gated: bool
) -> None:
    """What the table gates and what Starlette routes to ``/x`` is the same."""
    ran = []

    async def handler(request: Request) -> Response:
        ran.append(request)
        return Response("x")

    app = wrapped(Starlette(routes=[Route("/x", handler)]), tier, routes={"GET /x": "feature:audit"})
    assert (await drive(app, path=path, root_path=root_path)).status == (402 if is_gated else 404)
    assert ran == []


async def test_fastapis_root_path(tier: AsyncTier) -> None:
    app = FastAPI()

    @app.get("/x")
    def handler() -> str:
        return "x"

    app.add_middleware(TierMiddleware, tier=tier, org=guard, routes={"GET /x": "feature:audit"})
    assert (await drive(app, path="/x", root_path="/api")).status == 402  # a proxy has cut it off
    assert (await drive(app, path="/api/x", root_path="/api")).status == 402


async def test_mounts_are_part_of_the_path(tier: AsyncTier) -> None:
    inner = Starlette(routes=[Route("/x", done)])
    app = wrapped(
        Starlette(routes=[Mount("/v1", inner), Mount("/v2", inner)]), tier, routes={"GET /v1/x": "feature:audit"}
    )
    assert (await drive(app, path="/v1/x")).status == 402
    assert (await drive(app, path="/v2/x")).status == 200


async def test_every_pattern_that_matches_counts(tier: AsyncTier) -> None:
    table = {
        "GET /x": ["feature:convert", Requirement("feature:pages", 3)],
        "GET /{any}": Requirement("feature:convert", 2),
        "GET /{any:path}": "feature:sso",
    }
    await drive(wrapped(Response("done"), tier, routes=table), path="/x")
    assert await used(tier) == (3, 0)
    assert await used(tier, "feature:pages") == (3, 0)


async def test_the_table_and_the_decorator_add(tier: AsyncTier) -> None:
    app = wrapped(Starlette(routes=[Route("/", gated)]), tier, routes={"GET /": Requirement("feature:convert", 2)})
    await drive(app)
    assert await used(tier) == (3, 0)


async def test_the_second_gate_refuses_and_the_first_is_given_back(any_tier: AsyncTier) -> None:
    audited = requires_feature("feature:audit")(done)
    app = wrapped(Starlette(routes=[Route("/", audited)]), any_tier, routes={"GET /": "feature:convert"})
    assert (await drive(app)).status == 402
    assert await used(any_tier) == (0, 0)


# ---- the table of a middleware in a mounted application -------------------------------------------------------------


async def test_a_mounted_application_with_a_middleware_of_its_own(make_tier: Any) -> None:
    async with make_tier() as outer, make_tier() as inner:
        seen = []

        async def handler(request: Request) -> Response:
            seen.append(request.state.tier.org)
            return Response("done")

        mounted = Starlette(
            routes=[Route("/x", requires_feature("feature:convert", 2)(handler))],
            middleware=[Middleware(TierMiddleware, tier=inner, org=lambda request: "inner")],
        )
        app = Starlette(
            routes=[Mount("/sub", mounted), Route("/", gated)],
            middleware=[
                Middleware(TierMiddleware, tier=outer, org=guard, routes={"GET /sub/{rest:path}": "feature:pages"})
            ],
        )
        assert (await drive(app, path="/sub/x")).status == 200
        assert await used(inner, org="org:inner") == (2, 0)
        assert await used(outer, "feature:pages") == (1, 0)
        assert await used(outer) == (0, 0)
        assert seen == ["org:inner"]
        assert (await drive(app)).status == 200
        assert await used(outer) == (1, 0)


async def test_the_outer_context_is_back_after_a_mounted_application(tier: AsyncTier) -> None:
    inner = wrapped(Response("inner"), tier)

    async def handler(scope: Any, receive: Any, send: Any) -> None:
        context = scope["state"]["tier"]
        await inner(scope, receive, send)
        assert scope["state"]["tier"] is context

    await drive(wrapped(handler, tier))


# ---- on_refused -----------------------------------------------------------------------------------------------------


def page(request: Request, refusal: Refusal) -> Response:
    assert isinstance(request, Request)
    return PlainTextResponse(f"{refusal.code} {refusal.feature} {refusal.org} {refusal.plans}", 418)


async def page_async(request: Request, refusal: Refusal) -> Response:
    return page(request, refusal)


def ours(request: Request, refusal: Refusal) -> None:
    return None


def other(request: Request, refusal: Refusal) -> Response:
    return PlainTextResponse("other", 419)


@pytest.mark.parametrize("how", ["routes", "decorator", "sync", "dependency"])
@pytest.mark.parametrize(
    ("of_route", "of_middleware", "status"),
    [
        (None, None, 402),
        (page, None, 418),
        (None, page, 418),
        (page_async, None, 418),
        (None, page_async, 418),
        (page, other, 418),
        (ours, None, 402),
        (None, ours, 402),
        (ours, other, 402),
    ],
)
async def test_the_applications_own_response(
    tier: AsyncTier, how: str, of_route: Any, of_middleware: Any, status: int
) -> None:
    def sync(request: Request) -> Response:
        return Response("done")

    options = {"on_refused": of_route}
    table = None
    app: Any
    if how == "routes":
        app, table = Response("x"), {"GET /": Requirement("feature:audit", **options)}
    elif how == "dependency":
        app = FastAPI()
        app.get("/", dependencies=[Depends(RequiresFeature("feature:audit", **options))])(done)
    else:
        handler: Any = done if how == "decorator" else sync
        app = Starlette(routes=[Route("/", requires_feature("feature:audit", **options)(handler))])
    sent = await drive(wrapped(app, tier, on_refused=of_middleware, routes=table))
    assert sent.status == status
    if status == 418:
        assert sent.body == b"no_entitlement feature:audit org:acme ('plan:pro@1',)"
    assert sent.header(b"tier-refusal") is None
    assert len(sent.starts) == 1


async def test_a_refusal_of_ones_own_counts_nothing_even_with_200(tier: AsyncTier) -> None:
    async def fine(request: Request, refusal: Refusal) -> Response:
        return Response("please upgrade", 200)

    app = wrapped(Starlette(routes=[Route("/", requires_feature("feature:audit")(done))]), tier, on_refused=fine,
                  routes={"GET /": "feature:convert"})  # fmt: skip
    sent = await drive(app)
    assert (sent.status, sent.body) == (200, b"please upgrade")
    assert await used(tier) == (0, 0)


async def test_the_requirement_that_was_refused_answers(tier: AsyncTier) -> None:
    needs = [Requirement("feature:convert", on_refused=other), Requirement("feature:audit", on_refused=page)]
    sent = await drive(wrapped(Response("x"), tier, routes={"GET /": needs}))
    assert sent.status == 418


@pytest.mark.parametrize("answer", [{"detail": "no"}, "no", 402])
async def test_what_is_no_response_is_an_error_and_not_a_200(tier: AsyncTier, answer: Any) -> None:
    def wrong(request: Request, refusal: Refusal) -> Any:
        return answer

    app = FastAPI()

    @app.get("/")
    @requires_feature("feature:audit", on_refused=wrong)
    async def handler() -> str:
        return "ran"

    with pytest.raises(ConfigurationError, match="on_refused"):
        await drive(wrapped(app, tier))


async def test_on_refused_that_raises_is_the_applications_error(tier: AsyncTier) -> None:
    def fails(request: Request, refusal: Refusal) -> Response:
        raise ZeroDivisionError

    needs = ["feature:convert", Requirement("feature:audit", on_refused=fails)]
    with pytest.raises(ZeroDivisionError):
        await drive(wrapped(Response("x"), tier, routes={"GET /": needs}))
    assert await used(tier) == (0, 0)


# ---- a gate that is passed a second time ----------------------------------------------------------------------------


async def test_an_amount_that_failed_once_does_not_open_the_gate(tier: AsyncTier) -> None:
    """A decorator around the gate that tries again must meet the gate again."""
    amounts = [ZeroDivisionError(), 3]

    def amount(request: Request) -> int:
        value = amounts.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    tried = requires_feature("feature:convert", amount)(done)

    async def again(request: Request) -> Response:
        try:
            return await tried(request)
        except ZeroDivisionError:
            return await tried(request)

    assert (await drive(wrapped(Starlette(routes=[Route("/", again)]), tier))).status == 200
    assert await used(tier) == (3, 0)


async def test_a_refusal_is_still_one_when_asked_again(tier: AsyncTier) -> None:
    ran = []

    @requires_feature("feature:audit")
    async def handler(request: Request) -> Response:
        ran.append(request)
        return Response("ran")

    async def twice(request: Request) -> Response:
        assert (await handler(request)).status_code == 402
        return await handler(request)

    assert (await drive(wrapped(Starlette(routes=[Route("/", twice)]), tier))).status == 402
    assert ran == []


@pytest.mark.parametrize("other", [gated, requires_feature("feature:pages")(gated)], ids=["one", "two"])
async def test_a_handler_that_falls_back_to_another_is_counted(tier: AsyncTier, other: Any) -> None:
    audited = requires_feature("feature:audit")(done)

    async def falls_back(request: Request) -> Response:
        answer = await audited(request)
        return answer if answer.status_code == 200 else await other(request)

    sent = await drive(wrapped(Starlette(routes=[Route("/", falls_back)]), tier))
    assert (sent.status, sent.body) == (200, b"done")
    assert await used(tier) == (1, 0)


async def test_a_handler_that_is_tried_again_is_counted_once(tier: AsyncTier) -> None:
    failures = [ZeroDivisionError()]

    @requires_feature("feature:convert")
    async def flaky(request: Request) -> Response:
        if failures:
            raise failures.pop()
        return Response("done")

    async def again(request: Request) -> Response:
        try:
            return await flaky(request)
        except ZeroDivisionError:
            return await flaky(request)

    assert (await drive(wrapped(Starlette(routes=[Route("/", again)]), tier))).status == 200
    assert await used(tier) == (1, 0)


# ---- misspelt features ----------------------------------------------------------------------------------------------

MISSPELT = "feature:convrt"


def plain(make: Any = Starlette) -> Any:
    return make(routes=[Route("/", requires_feature(MISSPELT)(done))])


def endpoint() -> Any:
    class Endpoint(HTTPEndpoint):
        @requires_feature(MISSPELT)
        async def get(self, request: Request) -> Response:
            return Response("x")

    return Starlette(routes=[Route("/", Endpoint)])


def mounted() -> Any:
    return Starlette(routes=[Mount("/sub", plain()), Mount("/list", routes=plain().routes)])


def hosted() -> Any:
    return Starlette(routes=[Host("a.example", plain())])


def behind_middleware() -> Any:
    return Starlette(routes=[Mount("/sub", TierMiddleware(plain(), tier=AsyncTier("memory://")))])


def noted(handler: Any) -> Any:
    @functools.wraps(handler)
    async def inner(*args: Any, **kwargs: Any) -> Any:
        return await handler(*args, **kwargs)

    return inner


def fastapi_decorated() -> Any:
    app = FastAPI()
    app.get("/")(noted(requires_feature(MISSPELT)(done)))
    return app


def fastapi_generator() -> Any:
    app = FastAPI()

    @app.get("/")
    @requires_feature(MISSPELT)
    async def handler() -> Any:
        yield "x"

    return app


def fastapi_dependency() -> Any:
    app = FastAPI()
    app.get("/", dependencies=[Depends(RequiresFeature(MISSPELT))])(done)
    return app


def fastapi_application_dependency() -> Any:
    app = FastAPI(dependencies=[Depends(RequiresFeature(MISSPELT))])
    app.get("/")(done)
    return app


def fastapi_nested_dependency() -> Any:
    def outer(usage: Any) -> None: ...

    gate = Depends(RequiresFeature(MISSPELT))
    outer.__defaults__ = (gate,)
    app = FastAPI()
    app.get("/", dependencies=[Depends(outer)])(done)
    return app


def fastapi_router() -> Any:
    router = APIRouter()
    router.get("/")(requires_feature(MISSPELT)(done))
    app = FastAPI()
    app.include_router(router, prefix="/x")
    return app


def fastapi_router_dependency() -> Any:
    router = APIRouter(dependencies=[Depends(RequiresFeature(MISSPELT))])
    router.get("/")(done)
    app = FastAPI()
    app.include_router(router)
    return app


def fastapi_included_with() -> Any:
    inner, outer = APIRouter(), APIRouter()
    inner.get("/")(done)
    outer.include_router(inner, prefix="/inner")
    app = FastAPI()
    app.include_router(outer, prefix="/outer", dependencies=[Depends(RequiresFeature(MISSPELT))])
    return app


def fastapi_mounted() -> Any:
    app = FastAPI()
    app.mount("/sub", fastapi_dependency())
    return app


APPS = [plain, endpoint, mounted, hosted, behind_middleware, fastapi_decorated, fastapi_generator, fastapi_dependency,
        fastapi_application_dependency, fastapi_nested_dependency, fastapi_router, fastapi_router_dependency,
        fastapi_included_with, fastapi_mounted]  # fmt: skip


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("outside", [False, True], ids=["add_middleware", "wrapped"])
@pytest.mark.parametrize("make", APPS)
async def test_a_misspelt_feature_is_told_at_start(
    make: Any, outside: bool, tier: AsyncTier, caplog: pytest.LogCaptureFixture
) -> None:
    app = make()
    if outside:
        app = wrapped(app, tier)
    else:
        app.add_middleware(TierMiddleware, tier=tier, org=guard)
    async with Lifespan(app) as server:
        assert server.kinds == ["startup.complete"]
    (warning,) = warnings_in(caplog)
    assert "'feature:convrt'" in warning
    assert "did you mean 'feature:convert'?" in warning


async def test_a_misspelt_feature_of_the_table_is_told_at_start(
    tier: AsyncTier, caplog: pytest.LogCaptureFixture
) -> None:
    table = {"GET /": MISSPELT, "POST /": [Requirement(MISSPELT), "feature:convert"]}
    async with Lifespan(wrapped(Starlette(), tier, routes=table)):
        pass
    (warning,) = warnings_in(caplog)
    assert "did you mean 'feature:convert'?" in warning


async def test_without_a_start_it_is_told_once_at_first_use(tier: AsyncTier, caplog: pytest.LogCaptureFixture) -> None:
    app = wrapped(plain(), tier)
    for _ in range(3):
        assert (await drive(app)).status == 402
    (warning,) = warnings_in(caplog)
    assert "did you mean 'feature:convert'?" in warning


async def test_a_feature_of_another_plan_is_not_misspelt(tier: AsyncTier, caplog: pytest.LogCaptureFixture) -> None:
    app = wrapped(Starlette(routes=[Route("/", requires_feature("feature:audit")(done))]), tier)
    async with Lifespan(app):
        await drive(app)
    assert warnings_in(caplog) == []


async def test_a_plan_pushed_by_another_process_counts(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path}/tier.db"
    async with AsyncTier(url, pricing=PRICING, default_plan="plan:free@1") as tier, AsyncTier(url) as elsewhere:
        await elsewhere.push({"plans": {"plan:new@1": {"features": {"feature:newest": {}}}}})
        sent = await drive(wrapped(Response("x"), tier, routes={"GET /": "feature:newest"}))
        assert b'"plan:new@1"' in sent.body
    assert warnings_in(caplog) == []


# ---- it is a good neighbour -----------------------------------------------------------------------------------------


async def test_other_scopes_pass(tier: AsyncTier) -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["type"], receive, send))

    async def receive() -> Any: ...

    async def send(message: Any) -> None: ...

    await wrapped(app, tier)({"type": "of-a-later-version"}, receive, send)
    assert seen == [("of-a-later-version", receive, send)]


async def test_a_scope_without_state(tier: AsyncTier) -> None:
    scope = http_scope()
    assert "state" not in scope
    assert (await drive(wrapped(Starlette(routes=[Route("/", gated)]), tier))).status == 200


async def test_the_context_says_what_is_not_required(tier: AsyncTier) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        context = scope["state"]["tier"]
        with pytest.raises(KeyError, match="'feature:other' is not required by this route"):
            context["feature:other"]
        assert "feature:convert" in context
        assert "feature:other" not in context
        answers = context.answers
        assert list(answers) == ["feature:convert"]
        assert answers["feature:convert"].ok
        assert (answers["feature:convert"].limit, answers["feature:convert"].org) == (10, "org:acme")
        await Response("x")(scope, receive, send)

    await drive(wrapped(app, tier, routes={"GET /": "feature:convert"}))
