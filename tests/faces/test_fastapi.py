"""What is particular to FastAPI: signatures, dependencies, generators, documents, and its ways to refuse."""

# no string annotations here: the handlers' names are local (fastapi_handlers.py has them)

import asyncio
import functools
import gc
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import fastapi_handlers
import httpx
import pytest
from asgi_driver import Sent, body_of, drive
from counting import guard, used
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Path,
    Query,
    Request,
    Response,
    Security,
)
from fastapi.exception_handlers import http_exception_handler
from fastapi.requests import HTTPConnection
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount

from tier_middleware import AsyncTier, ConfigurationError
from tier_middleware.asgi import FeatureUsage, TierMiddleware, requires_feature
from tier_middleware.fastapi import RefusedHTTPException, RequiresFeature


def wrapped(app: Any, tier: AsyncTier, **options: Any) -> TierMiddleware:
    return TierMiddleware(app, **{"tier": tier, "org": guard, **options})


def org_of(request: Request) -> Any:
    return guard(request)


async def org_of_async(request: Request) -> Any:
    await asyncio.sleep(0)
    return guard(request)


async def visit(app: Any, method: str, url: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, url, **{"headers": {"x-org": "acme"}, **options})


def convert(item: fastapi_handlers.Item) -> str:
    """Has the name of another module's handler."""
    return f"other {item.name}"


# ---- signatures -----------------------------------------------------------------------------------------------------

HANDLERS = {
    "convert": fastapi_handlers.convert,
    "unresolvable": fastapi_handlers.unresolvable,
    "own_connection": fastapi_handlers.own_connection,
    "own_connection_unresolvable": fastapi_handlers.own_connection_unresolvable,
    "own_annotated_connection": fastapi_handlers.own_annotated_connection,
    "sized": fastapi_handlers.sized,
}
ITEM = {"name": "a", "size": 3}


@pytest.mark.parametrize(
    ("name", "body", "answer", "n"),
    [
        ("convert", ITEM, {"name": "a", "size": 1}, 1),
        ("unresolvable", ITEM, 4, 1),
        ("own_connection", None, {"org": "org:acme", "n": 1}, 1),
        ("own_connection_unresolvable", None, "org:acme", 1),
        ("own_annotated_connection", None, {"org": "org:acme", "n": 1}, 1),
        ("sized", {"item": ITEM, "note": "x"}, ITEM, 3),
    ],
)
async def test_string_annotations(tier: AsyncTier, name: str, body: Any, answer: Any, n: int) -> None:
    app = FastAPI()
    app.post("/", response_model=None)(HANDLERS[name])
    got = await visit(wrapped(app, tier), "POST", "/", json=body)
    assert (got.status_code, got.json()) == (200, answer)
    assert await used(tier) == (n, 0)


def gates() -> list[Callable[[Any], Any]]:
    return [requires_feature("feature:convert", amount=2), lambda handler: handler]


def define(app: FastAPI, gate: Callable[[Any], Any]) -> None:
    """Handlers of every signature, behind a gate or not."""

    class Local(BaseModel):
        word: str

    class Query3(BaseModel):
        a: int = 1
        b: str = "b"

    @app.get("/plain/{id}")
    @gate
    async def plain(id: Annotated[int, Path(gt=0)], q: str = "x", many: Annotated[list[int], Query()] = []) -> Any:  # noqa: B006  # as in FastAPI's documents
        return [id, q, many]

    @app.get("/sync/{id}")
    @gate
    def sync(id: int, q: str | None = None) -> Any:
        return [id, q]

    @app.get("/nothing")
    @gate
    async def nothing() -> Any:
        return "nothing"

    @app.get("/request")
    @gate
    async def request(request: Request, q: int = 1) -> Any:
        return [request.url.path, q]

    @app.get("/both")
    @gate
    async def both(request: Request, connection: HTTPConnection) -> Any:
        return request is connection

    @app.get("/connection")
    @gate
    async def connection(connection: HTTPConnection) -> Any:
        return connection.url.path

    @app.get("/rest")
    @gate
    async def rest(*args: Any, **kwargs: Any) -> Any:
        return sorted(kwargs)

    @app.get("/keyword")
    @gate
    async def keyword(*, q: int = 1, **more: Any) -> Any:
        return q

    @app.post("/body")
    @gate
    async def body(item: fastapi_handlers.Item, extra: Annotated[int, Body(embed=True)] = 1) -> Any:
        return [item.name, extra]

    @app.get("/model")
    @gate
    async def model(query: Annotated[Query3, Query()]) -> Any:
        return query

    @app.get("/headers")
    @gate
    async def headers(user_agent: Annotated[str, Header()], response: Response) -> Any:
        response.headers["x-mine"] = "1"
        return user_agent

    @app.get("/depends")
    @gate
    async def depends(org: Annotated[str, Depends(org_of)], other: Annotated[str, Security(org_of_async)]) -> Any:
        return [org, other]

    @app.get("/local", response_model=Local)
    @gate
    async def local(word: str = "w") -> Any:
        return {"word": word, "more": "is filtered"}

    @app.get("/returns")
    @gate
    async def returns() -> fastapi_handlers.Item:
        return fastapi_handlers.Item(name="r")

    @app.get("/created", status_code=201, tags=["t"], summary="s", responses={404: {"description": "no"}})
    @gate
    async def created() -> Any:
        return "created"


URLS = [
    ("GET", "/plain/3?q=y&many=1&many=2", None),
    ("GET", "/sync/3", None),
    ("GET", "/nothing", None),
    ("GET", "/request?q=2", None),
    ("GET", "/both", None),
    ("GET", "/connection", None),
    ("GET", "/rest?args=a&kwargs=b", None),
    ("GET", "/keyword?q=7&more=b", None),
    ("POST", "/body", {"item": {"name": "i"}, "extra": 5}),
    ("GET", "/model?a=3", None),
    ("GET", "/headers", None),
    ("GET", "/depends", None),
    ("GET", "/local?word=hello", None),
    ("GET", "/returns", None),
    ("GET", "/created", None),
]


@pytest.mark.parametrize(("method", "url", "body"), URLS)
async def test_a_gated_handler_answers_as_its_ungated_twin(tier: AsyncTier, method: str, url: str, body: Any) -> None:
    answers = []
    for gate in gates():
        app = FastAPI()
        define(app, gate)
        answers.append(await visit(wrapped(app, tier), method, url, json=body))
    gated, ungated = answers
    assert gated.status_code == ungated.status_code < 300
    assert gated.json() == ungated.json()
    assert gated.headers == ungated.headers
    assert await used(tier) == (2, 0)


@pytest.mark.parametrize("url", ["/plain/0", "/plain/x", "/model?a=x"])
async def test_a_request_that_is_not_valid_is_a_422_and_not_counted(tier: AsyncTier, url: str) -> None:
    app = FastAPI()
    define(app, requires_feature("feature:convert"))
    assert (await visit(wrapped(app, tier), "GET", url)).status_code == 422
    assert await used(tier) == (0, 0)


def define_generators(app: FastAPI, gate: Callable[[Any], Any]) -> None:
    @app.get("/lines")
    @gate
    async def lines(n: int = 2) -> AsyncIterator[fastapi_handlers.Item]:
        for i in range(n):
            yield fastapi_handlers.Item(name=str(i))

    @app.get("/lines-sync")
    @gate
    def lines_sync(n: int = 2) -> Iterator[fastapi_handlers.Item]:
        for i in range(n):
            yield fastapi_handlers.Item(name=str(i))

    @app.get("/events", response_class=EventSourceResponse)
    @gate
    async def events(request: Request, n: int = 2) -> AsyncIterator[ServerSentEvent]:
        for i in range(n):
            yield ServerSentEvent(data=i, event="tick")

    @app.get("/events-sync", response_class=EventSourceResponse)
    @gate
    def events_sync(connection: HTTPConnection, n: int = 2) -> Iterator[ServerSentEvent]:
        for i in range(n):
            yield ServerSentEvent(data=i)


def documents(define: Callable[[FastAPI, Callable[[Any], Any]], None]) -> list[Any]:
    found = []
    for gate in gates():
        app = FastAPI()
        define(app, gate)
        found.append(app.openapi())
    return found


def test_nothing_of_ours_is_in_the_document() -> None:
    for define_some in (define, define_generators):
        gated, ungated = documents(define_some)
        assert gated == ungated
        assert len(gated["paths"]) >= 4
        assert "tier" not in json.dumps(gated)


def test_nor_of_dependencies() -> None:
    found = []
    for is_gated in (True, False):
        gate = [Depends(RequiresFeature("feature:convert", org=org_of))] if is_gated else []
        router = APIRouter(prefix="/r", dependencies=gate)
        router.get("/x")(lambda: "x")
        app = FastAPI(dependencies=gate)
        app.include_router(router, dependencies=gate)

        depends = Depends(RequiresFeature("feature:pages") if is_gated else org_of)

        @app.get("/")
        async def root(usage: Annotated[Any, depends]) -> str:
            return "x"

        found.append(app.openapi())
    assert found[0] == found[1]
    assert set(found[0]["paths"]) == {"/", "/r/x"}


def test_the_handler_keeps_its_name_and_documentation() -> None:
    assert fastapi_handlers.convert.__name__ == "convert"
    assert fastapi_handlers.convert.__doc__ == "Convert an item."
    assert fastapi_handlers.convert.__module__ == "fastapi_handlers"


# ---- generators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/lines", "/lines-sync", "/events", "/events-sync"])
async def test_generators_stream_as_they_do_without_a_gate(tier: AsyncTier, url: str) -> None:
    answers = []
    for gate in gates():
        app = FastAPI()
        define_generators(app, gate)
        answers.append(await drive(wrapped(app, tier), path=url, query="n=3"))
    assert answers[0].messages == answers[1].messages
    assert len(answers[0].chunks) >= 3
    assert await used(tier) == (2, 0)


@pytest.mark.parametrize("url", ["/lines", "/lines-sync", "/events", "/events-sync"])
async def test_a_generator_is_refused_before_its_response_begins(tier: AsyncTier, url: str) -> None:
    app = FastAPI()
    define_generators(app, requires_feature("feature:audit"))
    sent = await drive(wrapped(app, tier, upgrade_url="/pricing"), path=url)
    assert sent.status == 402
    assert sent.header(b"content-type") == b"application/problem+json"
    assert json.loads(sent.body)["code"] == "no_entitlement"
    assert sent.header(b"tier-refusal") is None


async def test_a_generator_counts_what_it_adds_when_it_ends(any_tier: AsyncTier) -> None:
    app = FastAPI()

    @app.get("/")
    @requires_feature("feature:convert")
    async def handler(request: Request, fail: bool = False) -> AsyncIterator[fastapi_handlers.Item]:
        for i in range(3):
            request.state.tier["feature:convert"].add(2)
            yield fastapi_handlers.Item(name=str(i))
        if fail:
            raise ZeroDivisionError

    seen = []

    async def at_message(message: dict[str, Any]) -> None:
        seen.append(await used(any_tier))

    await drive(wrapped(app, any_tier), at_message=at_message)
    assert seen == [(0, 1)] * (len(seen) - 1) + [(6, 0)]
    await drive(wrapped(app, any_tier), query="fail=true", raising=False)
    assert await used(any_tier) == (6, 0)


async def test_a_generator_that_is_left_is_closed(tier: AsyncTier) -> None:
    closed = []
    app = FastAPI()

    @app.get("/")
    @requires_feature("feature:convert")
    async def handler(request: Request) -> AsyncIterator[fastapi_handlers.Item]:
        try:
            while True:
                request.state.tier["feature:convert"].add(1)
                yield fastapi_handlers.Item(name="x")
        finally:
            closed.append(True)

    await drive(wrapped(app, tier), gone_at=3, raising=False)
    gc.collect()  # FastAPI leaves the generator to the collector
    for _ in range(5):
        await asyncio.sleep(0)
    assert closed == [True]
    counted, held = await used(tier)
    assert counted >= 2
    assert held == 0


async def test_gates_of_generators_stack_all_or_none(tier: AsyncTier) -> None:
    app = FastAPI()

    def noted(handler: Any) -> Any:
        @functools.wraps(handler)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            async for item in handler(*args, **kwargs):
                yield item

        return inner

    for path, inner in (("/ok", "feature:pages"), ("/refused", "feature:audit")):

        @app.get(path)
        @requires_feature("feature:convert")
        @noted
        @requires_feature(inner, 3)
        @requires_feature("feature:top")
        async def handler() -> AsyncIterator[str]:
            yield "x"

    assert (await drive(wrapped(app, tier), path="/ok")).status == 200
    for feature, n in (("feature:convert", 1), ("feature:pages", 3), ("feature:top", 1)):
        assert await used(tier, feature) == (n, 0)
    assert (await drive(wrapped(app, tier), path="/refused")).status == 402
    assert await used(tier) == (1, 0)
    assert await used(tier, "feature:top") == (1, 0)


@pytest.mark.parametrize("make", ["generator", "dependency"])
def test_an_amount_of_arguments_that_are_not_parsed_yet_is_an_error(make: str) -> None:
    def amount(request: Request, kwargs: Any) -> int:
        return 1

    async def handler() -> AsyncIterator[str]:
        yield "x"

    define = {
        "generator": lambda: requires_feature("feature:convert", amount)(handler),
        "dependency": lambda: RequiresFeature("feature:convert", amount),
    }[make]
    with pytest.raises(ConfigurationError, match=r"amount: .*must be a callable of \(request\) only"):
        define()


# ---- amounts --------------------------------------------------------------------------------------------------------


async def test_an_amount_of_the_parsed_arguments(tier: AsyncTier) -> None:
    seen = []

    async def amount(request: Request, kwargs: dict[str, Any]) -> int:
        seen.append((request.url.path, sorted(kwargs)))
        return int(kwargs["item"].size) * kwargs["factor"]

    app = FastAPI()

    @app.post("/{factor}")
    @requires_feature("feature:pages", amount)
    async def handler(factor: int, item: fastapi_handlers.Item, request: Request) -> str:
        return "x"

    assert (await visit(wrapped(app, tier), "POST", "/4", json=ITEM)).status_code == 200
    assert await used(tier, "feature:pages") == (12, 0)
    assert seen == [("/4", ["factor", "item", "request"])]


async def test_an_amount_that_reads_the_body_leaves_it_to_the_handler(tier: AsyncTier) -> None:
    """The application may read; the middleware never does."""

    async def amount(request: Request) -> int:
        return len(await request.body())

    app = FastAPI()

    @app.post("/")
    @requires_feature("feature:pages", amount)
    async def handler(request: Request) -> int:
        return len(await request.body())

    sent = await drive(wrapped(app, tier), "POST", receive=body_of(b"x" * 20, b"y" * 10))
    assert sent.body == b"30"
    assert await used(tier, "feature:pages") == (30, 0)


async def test_an_upload_is_not_touched(tier: AsyncTier) -> None:
    app = FastAPI()

    @app.post("/")
    @requires_feature("feature:convert")
    async def handler(request: Request) -> int:
        return sum([len(chunk) async for chunk in request.stream()])

    parts = [b"z" * 65536] * 100
    sent = await drive(wrapped(app, tier), "POST", receive=body_of(*parts))
    assert sent.body == b"6553600"


# ---- stacking -------------------------------------------------------------------------------------------------------


def noted(log: list[str]) -> Callable[[Any], Any]:
    """Somebody else's decorator."""

    def decorate(handler: Any) -> Any:
        @functools.wraps(handler)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            log.append("in")
            try:
                return await handler(*args, **kwargs)
            finally:
                log.append("out")

        return inner

    return decorate


ORDERS: dict[str, Callable[[list[str], Any], list[Any]]] = {
    "outside": lambda log, gates: [noted(log), *gates],
    "inside": lambda log, gates: [*gates, noted(log)],
    "between": lambda log, gates: [gates[0], noted(log), *gates[1:]],
    "everywhere": lambda log, gates: [noted(log), gates[0], noted(log), noted(log), *gates[1:], noted(log)],
    "none": lambda log, gates: list(gates),
}


def stacked(handler: Any, decorators: list[Any]) -> Any:
    for decorator in reversed(decorators):
        handler = decorator(handler)
    return handler


@pytest.mark.parametrize("kind", ["fastapi", "starlette", "request"])
@pytest.mark.parametrize("order", ORDERS)
async def test_gates_and_other_decorators_in_any_order(any_tier: AsyncTier, order: str, kind: str) -> None:
    log: list[str] = []

    async def with_request(request: Request) -> Response:
        log.append("ran")
        return PlainTextResponse("x")

    async def without() -> Response:
        log.append("ran")
        return PlainTextResponse("x")

    plain = without if kind == "fastapi" else with_request
    ok = [requires_feature("feature:convert", 2), requires_feature("feature:pages", 3), requires_feature("feature:top")]
    refused = [requires_feature("feature:convert", 2), requires_feature("feature:audit")]
    app: Any = Starlette() if kind == "starlette" else FastAPI()
    app.add_route("/ok", stacked(plain, ORDERS[order](log, ok))) if kind == "starlette" else app.get("/ok")(
        stacked(plain, ORDERS[order](log, ok))
    )
    app.add_route("/refused", stacked(plain, ORDERS[order](log, refused))) if kind == "starlette" else app.get(
        "/refused"
    )(stacked(plain, ORDERS[order](log, refused)))
    assert (await drive(wrapped(app, any_tier), path="/ok")).status == 200
    assert log.count("ran") == 1
    for feature, n in (("feature:convert", 2), ("feature:pages", 3), ("feature:top", 1)):
        assert await used(any_tier, feature) == (n, 0)
    assert (await drive(wrapped(app, any_tier), path="/refused")).status == 402
    assert log.count("ran") == 1
    assert await used(any_tier) == (2, 0)


async def test_two_functions_with_one_name_share_nothing(tier: AsyncTier) -> None:
    app = FastAPI()
    app.post("/a")(requires_feature("feature:pages", 5)(convert))
    app.post("/b")(fastapi_handlers.convert)
    assert (await visit(wrapped(app, tier), "POST", "/a", json=ITEM)).json() == "other a"
    assert await used(tier, "feature:pages") == (5, 0)
    assert await used(tier) == (0, 0)
    await visit(wrapped(app, tier), "POST", "/b", json=ITEM)
    assert await used(tier) == (1, 0)
    assert await used(tier, "feature:pages") == (5, 0)


async def test_the_same_function_can_be_gated_twice_apart(tier: AsyncTier) -> None:
    app = FastAPI()
    app.post("/a")(requires_feature("feature:convert")(convert))
    app.post("/b")(requires_feature("feature:pages")(convert))
    app.post("/c")(convert)
    for path in ("/a", "/b", "/c"):
        assert (await visit(wrapped(app, tier), "POST", path, json=ITEM)).status_code == 200
    assert (await used(tier), await used(tier, "feature:pages")) == ((1, 0), (1, 0))


async def test_path_parameters_share_one_count(tier: AsyncTier) -> None:
    app = FastAPI()

    @app.get("/{id}")
    @requires_feature("feature:top")
    async def handler(id: int) -> int:
        return id

    codes = [(await drive(wrapped(app, tier), path=f"/{i}")).status for i in range(5)]
    assert codes.count(200) == 3


async def test_callable_objects_and_methods(tier: AsyncTier) -> None:
    class Views:
        prefix = "v"

        @requires_feature("feature:convert")
        async def method(self, q: int = 1) -> str:
            return f"{self.prefix}{q}"

        async def __call__(self, q: int = 1) -> str:
            return f"called {q}"

    app = FastAPI()
    app.get("/method")(Views().method)
    app.get("/bound")(requires_feature("feature:convert")(functools.partial(Views.method, Views())))
    app.get("/called")(requires_feature("feature:convert")(Views()))
    for path, answer in (("/method", "v2"), ("/called", "called 2")):
        assert (await visit(wrapped(app, tier), "GET", f"{path}?q=2")).json() == answer
    assert await used(tier) == (2, 0)


async def test_a_router_and_its_inclusion(tier: AsyncTier) -> None:
    router = APIRouter(prefix="/r", dependencies=[Depends(RequiresFeature("feature:top", org=org_of))])

    @router.get("/x")
    @requires_feature("feature:convert")
    async def handler() -> str:
        return "x"

    app = FastAPI(dependencies=[Depends(RequiresFeature("feature:calls", org=org_of))])
    app.include_router(router, prefix="/v1", dependencies=[Depends(RequiresFeature("feature:pages", 4, org=org_of))])
    assert (await drive(wrapped(app, tier), path="/v1/r/x")).status == 200
    for feature, n in (("feature:convert", 1), ("feature:top", 1), ("feature:pages", 4), ("feature:calls", 1)):
        assert await used(tier, feature) == (n, 0)


# ---- RequiresFeature ------------------------------------------------------------------------------------------------


class User(BaseModel):
    name: str
    org: str | None


def current_user(authorization: Annotated[str | None, Header()] = None) -> User:
    if authorization is None:
        raise HTTPException(401, "log in", headers={"WWW-Authenticate": "Bearer"})
    return User(name="ann", org=None if authorization == "none" else authorization)


def current_org(user: Annotated[User, Depends(current_user)]) -> str | None:
    return user.org


async def current_org_async(user: Annotated[User, Depends(current_user)]) -> str | None:
    return user.org


class Guard:
    """A guard that is an object."""

    def __call__(self, user: Annotated[User, Depends(current_user)]) -> str | None:
        return user.org


def guarded(org: Any, **options: Any) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def handler(
        user: Annotated[User, Depends(current_user)],
        usage: Annotated[FeatureUsage, Depends(RequiresFeature("feature:convert", 2, org=org, **options))],
    ) -> dict[str, Any]:
        usage.add(3)
        return {"user": user.name, "limit": usage.limit}

    return app


@pytest.mark.parametrize("org", [current_org, current_org_async, Guard(), functools.partial(current_org)])
async def test_a_dependency_on_the_applications_own_guard(tier: AsyncTier, org: Any) -> None:
    app = TierMiddleware(guarded(org), tier=tier)  # no org of its own
    got = await visit(app, "GET", "/", headers={"authorization": "acme"})
    assert got.json() == {"user": "ann", "limit": 10}
    assert await used(tier) == (3, 0)


async def test_the_guards_own_refusal_stays(tier: AsyncTier) -> None:
    got = await visit(TierMiddleware(guarded(current_org), tier=tier, upgrade_url="/pricing"), "GET", "/",
                      headers={"accept": "text/html"})  # fmt: skip
    assert (got.status_code, got.json()) == (401, {"detail": "log in"})
    assert got.headers["www-authenticate"] == "Bearer"


async def test_a_guard_that_knows_no_org(tier: AsyncTier) -> None:
    got = await visit(TierMiddleware(guarded(current_org), tier=tier), "GET", "/", headers={"authorization": "none"})
    assert (got.status_code, got.json()["code"]) == (401, "no_org")


async def test_the_guard_runs_once_for_all_requirements(tier: AsyncTier) -> None:
    calls = []

    async def counted() -> str:
        calls.append(1)
        return "acme"

    gates = [Depends(RequiresFeature(feature, org=counted)) for feature in ("feature:convert", "feature:pages")]
    app = FastAPI(dependencies=gates)
    app.get("/")(lambda: "x")
    assert (await drive(TierMiddleware(app, tier=tier))).status == 200
    assert calls == [1]


async def test_dependency_overrides(tier: AsyncTier) -> None:
    app = guarded(current_org)
    app.dependency_overrides[current_user] = lambda: User(name="test", org="of-a-test")
    got = await visit(TierMiddleware(app, tier=tier), "GET", "/")
    assert got.json() == {"user": "test", "limit": 10}
    assert await used(tier, org="org:of-a-test") == (3, 0)


async def test_the_gate_itself_can_be_overridden(tier: AsyncTier) -> None:
    gate = RequiresFeature("feature:audit", org=org_of)
    app = FastAPI()
    app.get("/", dependencies=[Depends(gate)])(lambda: "x")
    assert (await drive(TierMiddleware(app, tier=tier))).status == 402
    app.dependency_overrides[gate] = lambda: None
    assert (await drive(TierMiddleware(app, tier=tier))).status == 200


async def test_a_class_that_depends_on_a_gate(tier: AsyncTier) -> None:
    class Service:
        def __init__(self, usage: Annotated[FeatureUsage, Depends(RequiresFeature("feature:convert", org=org_of))]):
            self.usage = usage

        def work(self) -> int:
            self.usage.set(4)
            return self.usage.n

    app = FastAPI()

    @app.get("/")
    async def handler(service: Annotated[Service, Depends()]) -> int:
        return service.work()

    assert (await drive(TierMiddleware(app, tier=tier))).body == b"4"
    assert await used(tier) == (4, 0)


async def test_the_second_dependency_refuses_and_the_first_is_given_back(any_tier: AsyncTier) -> None:
    gates = [Depends(RequiresFeature(feature, org=org_of)) for feature in ("feature:convert", "feature:audit")]
    app = FastAPI(dependencies=gates)
    app.get("/")(lambda: "x")
    sent = await drive(TierMiddleware(app, tier=any_tier))
    assert (sent.status, json.loads(sent.body)["feature"]) == (402, "feature:audit")
    assert await used(any_tier) == (0, 0)


async def test_a_422_after_the_gate_gives_back(any_tier: AsyncTier) -> None:
    app = FastAPI()

    @app.get("/", dependencies=[Depends(RequiresFeature("feature:convert", org=org_of))])
    async def handler(q: int) -> int:
        return q

    assert (await drive(TierMiddleware(app, tier=any_tier), query="q=x")).status == 422
    assert await used(any_tier) == (0, 0)
    assert (await drive(TierMiddleware(app, tier=any_tier), query="q=1")).status == 200
    assert await used(any_tier) == (1, 0)


@pytest.mark.parametrize("order", ["before", "after"])
async def test_another_dependency_that_raises(any_tier: AsyncTier, order: str) -> None:
    def fails() -> None:
        raise HTTPException(418, "its own", headers={"x-own": "1"})

    gate = Depends(RequiresFeature("feature:convert", org=org_of))
    app = FastAPI(dependencies=[Depends(fails), gate] if order == "before" else [gate, Depends(fails)])
    app.get("/")(lambda: "x")
    sent = await drive(TierMiddleware(app, tier=any_tier))
    assert (sent.status, sent.body, sent.header(b"x-own")) == (418, b'{"detail":"its own"}', b"1")
    assert await used(any_tier) == (0, 0)


async def test_yield_dependencies_see_the_refusal_and_clean_up(tier: AsyncTier) -> None:
    log: list[str] = []

    async def session() -> AsyncIterator[str]:
        try:
            yield "session"
        except HTTPException as error:
            log.append(f"rolled back {error.status_code}")
            raise
        finally:
            log.append("closed")

    app = FastAPI(dependencies=[Depends(session), Depends(RequiresFeature("feature:audit", org=org_of))])
    app.get("/")(lambda: "x")
    assert (await drive(TierMiddleware(app, tier=tier))).status == 402
    assert log[-1] == "closed"


async def test_a_guard_with_scopes_and_the_openapi_security(tier: AsyncTier) -> None:
    bearer = HTTPBearer()

    def org(credentials: Annotated[Any, Depends(bearer)]) -> str:
        return str(credentials.credentials)

    app = FastAPI()
    app.get("/", dependencies=[Depends(RequiresFeature("feature:convert", org=org))])(lambda: "x")
    assert app.openapi()["paths"]["/"]["get"]["security"] == [{"HTTPBearer": []}]
    got = await visit(TierMiddleware(app, tier=tier), "GET", "/", headers={"authorization": "Bearer acme"})
    assert got.status_code == 200
    assert (await visit(TierMiddleware(app, tier=tier), "GET", "/", headers={})).status_code in (401, 403)
    assert await used(tier) == (1, 0)


# ---- refusals through FastAPI ---------------------------------------------------------------------------------------


class Strict(BaseModel):
    must: int


@pytest.mark.parametrize("kind", ["async", "sync", "generator", "dependency"])
async def test_a_refusal_is_not_validated_as_the_response_model(tier: AsyncTier, kind: str) -> None:
    app = FastAPI()
    gate = requires_feature("feature:audit")
    if kind == "async":

        @app.get("/", response_model=Strict)
        @gate
        async def handler() -> Any:
            return {"must": 1}
    elif kind == "sync":

        @app.get("/", response_model=Strict, status_code=201)
        @gate
        def handler2() -> Any:
            return {"must": 1}
    elif kind == "generator":

        @app.get("/")
        @gate
        async def handler3() -> AsyncIterator[Strict]:
            yield Strict(must=1)
    else:

        @app.get("/", response_model=Strict, dependencies=[Depends(RequiresFeature("feature:audit"))])
        async def handler4() -> Any:
            return {"must": 1}

    sent = await drive(wrapped(app, tier))
    assert sent.status == 402
    assert json.loads(sent.body)["code"] == "no_entitlement"


async def test_every_way_to_refuse_says_the_same(tier: AsyncTier) -> None:
    bodies = []
    for url in ("decorator", "dependency", "table"):
        app = FastAPI()
        if url == "decorator":
            app.get("/")(requires_feature("feature:audit")(_nothing))
        elif url == "dependency":
            app.get("/", dependencies=[Depends(RequiresFeature("feature:audit"))])(_nothing)
        else:
            app.get("/")(_nothing)
        table = {"GET /": "feature:audit"} if url == "table" else None
        sent = await drive(wrapped(app, tier, routes=table, upgrade_url="/pricing"))
        bodies.append((sent.status, sorted(sent.headers), sent.body))
    assert bodies[0] == bodies[1] == bodies[2]


async def _nothing() -> str:
    return "x"


def refusing(**options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.get("/", dependencies=[Depends(RequiresFeature("feature:audit", org=org_of))])(_nothing)
    return app


async def test_an_exception_handler_that_keeps_the_headers_is_replaced(tier: AsyncTier) -> None:
    app = refusing()

    @app.exception_handler(StarletteHTTPException)
    async def handler(request: Request, error: StarletteHTTPException) -> Response:
        response = await http_exception_handler(request, error)
        response.headers["x-handled"] = "1"
        response.set_cookie("seen", "1")
        return response

    sent = await drive(TierMiddleware(app, tier=tier))
    assert sent.status == 402
    assert json.loads(sent.body)["code"] == "no_entitlement"
    assert sent.header(b"x-handled") == b"1"
    assert sent.header(b"set-cookie") is not None
    assert sent.header(b"tier-refusal") is None
    assert [name for name, _ in sent.headers].count(b"content-type") == 1
    assert sent.header(b"content-length") == str(len(sent.body)).encode()


async def test_one_that_drops_them_keeps_its_own_response(tier: AsyncTier) -> None:
    app = refusing()

    @app.exception_handler(RefusedHTTPException)
    async def handler(request: Request, error: RefusedHTTPException) -> Response:
        return JSONResponse({"mine": error.refusal.code, "plans": error.refusal.plans}, error.status_code)

    sent = await drive(TierMiddleware(app, tier=tier))
    assert (sent.status, json.loads(sent.body)) == (402, {"mine": "no_entitlement", "plans": ["plan:pro@1"]})


async def test_one_that_answers_200_counts_nothing(any_tier: AsyncTier) -> None:
    app = FastAPI()
    gates = [Depends(RequiresFeature(feature, org=org_of)) for feature in ("feature:convert", "feature:audit")]
    app.get("/", dependencies=gates)(_nothing)

    @app.exception_handler(RefusedHTTPException)
    async def handler(request: Request, error: RefusedHTTPException) -> Response:
        return JSONResponse({"ok": False}, 200)

    assert (await drive(TierMiddleware(app, tier=any_tier))).status == 200
    assert await used(any_tier) == (0, 0)


async def test_a_mounted_application_refuses_through_the_outer_middleware(any_tier: AsyncTier) -> None:
    inner = FastAPI()
    inner.get("/no", dependencies=[Depends(RequiresFeature("feature:audit", org=org_of))])(_nothing)
    inner.get("/yes", dependencies=[Depends(RequiresFeature("feature:convert", org=org_of))])(_nothing)
    app = wrapped(Starlette(routes=[Mount("/sub", inner)]), any_tier, upgrade_url="/pricing")
    sent = await drive(app, path="/sub/no")
    assert json.loads(sent.body)["upgrade"] == {"url": "/pricing", "plans": ["plan:pro@1"]}
    assert sent.header(b"tier-refusal") is None
    browser = await drive(app, path="/sub/no", headers=[(b"x-org", b"acme"), (b"accept", b"text/html")])
    assert (browser.status, browser.header(b"location")) == (303, b"/pricing")
    assert (await drive(app, path="/sub/yes")).status == 200
    assert await used(any_tier) == (1, 0)


CORS = [(b"x-org", b"acme"), (b"origin", b"https://front.example")]


@pytest.mark.parametrize("kind", ["dependency", "decorator"])
async def test_the_headers_of_an_inner_cors_middleware_stay(tier: AsyncTier, kind: str) -> None:
    app = FastAPI()
    if kind == "dependency":
        app.get("/", dependencies=[Depends(RequiresFeature("feature:audit"))])(_nothing)
    else:
        app.get("/")(requires_feature("feature:audit")(_nothing))
    app.add_middleware(CORSMiddleware, allow_origins=["https://front.example"], allow_credentials=True)
    sent = await drive(wrapped(app, tier), headers=CORS)
    assert sent.status == 402
    assert sent.header(b"access-control-allow-origin") == b"https://front.example"
    assert sent.header(b"access-control-allow-credentials") == b"true"
    vary = b", ".join(value for name, value in sent.headers if name == b"vary").lower()
    assert b"origin" in vary
    assert b"accept" in vary


async def test_a_preflight_is_answered_by_cors(tier: AsyncTier) -> None:
    app = refusing()
    app.add_middleware(CORSMiddleware, allow_origins=["https://front.example"])
    headers = [*CORS[1:], (b"access-control-request-method", b"GET")]
    sent = await drive(wrapped(app, tier, routes={"GET /": "feature:audit"}), "OPTIONS", headers=headers)
    assert sent.status == 200
    assert sent.header(b"access-control-allow-origin") == b"https://front.example"


@pytest.mark.parametrize("where", ["inside", "outside"])
async def test_gzip_on_either_side(tier: AsyncTier, where: str) -> None:
    app: Any = refusing()

    @app.get("/big")
    @requires_feature("feature:convert")
    async def big() -> Response:
        return PlainTextResponse("x" * 10_000)

    if where == "inside":
        app.add_middleware(GZipMiddleware, minimum_size=10)
        app = wrapped(app, tier)
    else:
        app = GZipMiddleware(wrapped(app, tier), minimum_size=10)
    headers = [(b"x-org", b"acme"), (b"accept-encoding", b"gzip")]
    sent = await drive(app, headers=headers)
    body = gzip.decompress(sent.body) if sent.header(b"content-encoding") == b"gzip" else sent.body
    assert (sent.status, json.loads(body)["code"]) == (402, "no_entitlement")
    big_sent = await drive(app, path="/big", headers=headers)
    assert gzip.decompress(big_sent.body) == b"x" * 10_000
    assert await used(tier) == (1, 0)


async def test_a_client_cannot_forge_a_refusal_nor_hide_one(tier: AsyncTier) -> None:
    headers = [(b"x-org", b"acme"), (b"tier-refusal", b"limit_reached")]
    app = FastAPI()

    @app.get("/echo", dependencies=[Depends(RequiresFeature("feature:convert"))])
    async def echo(request: Request) -> Response:
        return PlainTextResponse("mine", headers={"x-echo": request.headers["tier-refusal"]})

    app.get("/no", dependencies=[Depends(RequiresFeature("feature:audit"))])(_nothing)
    sent = await drive(wrapped(app, tier), path="/echo", headers=headers)
    assert (sent.status, sent.body) == (200, b"mine")
    assert await used(tier) == (1, 0)
    refused = await drive(wrapped(app, tier), path="/no", headers=headers)
    assert refused.status == 402
    assert refused.header(b"tier-refusal") is None


# ---- what routes answer ---------------------------------------------------------------------------------------------


async def counted_at_last(app: Any, tier: AsyncTier) -> Sent:
    seen: list[tuple[int, int]] = []

    async def at_message(message: dict[str, Any]) -> None:
        seen.append(await used(tier))

    sent = await drive(app, at_message=at_message)
    assert seen[0] == (0, 1)
    assert seen[-1] == (1, 0)
    return sent


async def test_streams_files_and_background_tasks(any_tier: AsyncTier, tmp_path: Any) -> None:
    (tmp_path / "f.txt").write_bytes(b"f" * 200_000)
    done: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"c"

    answers: list[Any] = [
        lambda: StreamingResponse(chunks()),
        lambda: StreamingResponse(iter([b"a", b"b"])),
        lambda: FileResponse(tmp_path / "f.txt"),
        lambda: JSONResponse({"a": 1}, background=BackgroundTask(done.append, 1)),
        lambda: {"plain": "dict"},
    ]
    for i, answer in enumerate(answers):
        app = FastAPI()
        app.get("/", response_model=None)(requires_feature("feature:convert")(_answering(answer)))
        before = (await used(any_tier))[0]
        sent = await drive(wrapped(app, any_tier))
        assert (sent.status, await used(any_tier)) == (200, (before + 1, 0)), i
    assert done == [1]


def _answering(answer: Callable[[], Any]) -> Any:
    async def handler() -> Any:
        return answer()

    return handler


async def test_a_streaming_response_counts_at_its_end(any_tier: AsyncTier) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"c"

    app = FastAPI()
    app.get("/", response_model=None)(
        requires_feature("feature:convert")(_answering(lambda: StreamingResponse(chunks())))
    )
    sent = await counted_at_last(wrapped(app, any_tier), any_tier)
    assert sent.chunks == [b"c"] * 4 + [b""]


async def test_background_tasks_of_fastapi_cannot_undo_it(tier: AsyncTier) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    app = FastAPI()

    @app.get("/")
    @requires_feature("feature:convert")
    async def handler(tasks: BackgroundTasks) -> str:
        tasks.add_task(fails)
        return "x"

    sent = await drive(wrapped(app, tier), raising=False)
    assert isinstance(sent.error, ZeroDivisionError)
    assert sent.status == 200
    assert await used(tier) == (1, 0)


async def test_an_http_exception_of_the_handler_counts_nothing(any_tier: AsyncTier) -> None:
    app = FastAPI()

    @app.get("/")
    @requires_feature("feature:convert")
    async def handler() -> str:
        raise HTTPException(404, "not here")

    sent = await drive(wrapped(app, any_tier))
    assert (sent.status, sent.body) == (404, b'{"detail":"not here"}')
    assert await used(any_tier) == (0, 0)


async def test_a_response_that_cannot_be_serialised_counts_nothing(tier: AsyncTier) -> None:
    app = FastAPI()

    @app.get("/", response_model=Strict)
    @requires_feature("feature:convert")
    async def handler() -> Any:
        return {"must": "no number"}

    sent = await drive(wrapped(app, tier), raising=False)
    assert sent.error is not None
    assert await used(tier) == (0, 0)
