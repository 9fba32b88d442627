"""Count and work in one transaction: both are there, or neither, on Django's SQLite and on PostgreSQL."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import databases
import django_project
import pytest
from asgiref.sync import sync_to_async
from counting import guard
from django.contrib.auth.models import Group
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django_project import Site
from rest_framework.exceptions import NotFound
from rest_framework.generics import GenericAPIView
from rest_framework.renderers import BrowsableAPIRenderer, JSONRenderer
from rest_framework.response import Response
from rest_framework.serializers import Serializer

from tier_middleware import Tier
from tier_middleware.django import requires_feature
from tier_middleware.django.checks import check_settings
from tier_middleware.django.drf import HasFeature
from tier_middleware.django.engine import DjangoEngine
from tier_middleware.ops import Commit, Release

PRICING: dict[str, Any] = {
    "plans": {
        "plan:free@1": {"features": {"feature:convert": {"tiers": [{}]}, "feature:pages": {"tiers": [{"upto": 3}]}}}
    }
}
CONVERT = requires_feature("feature:convert")


class Shop(Site):
    """A site whose work is rows of the database that usage is counted in."""

    alias: str

    def work(self) -> None:
        Group.objects.using(self.alias).create(name=f"work {Group.objects.using(self.alias).count()}")

    def rows(self) -> int:
        return Group.objects.using(self.alias).count()

    def sees(self) -> tuple[int, int, int]:
        """Rows, and what is used and reserved."""
        return self.rows(), *self.used()


@pytest.fixture
def make_shop(alias: str) -> Iterator[Callable[..., Shop]]:
    made: list[Tier] = []
    Group.objects.using(alias).all().delete()

    def make(**options: Any) -> Shop:
        tier = Tier(f"django://{alias}", pricing=PRICING, default_plan="plan:free@1", **options)
        made.append(tier)
        shop = Shop(tier)
        shop.alias = alias
        return shop

    yield make
    for tier in made:
        tier.close()
    django_project.change(TIER={"BASE_URL": "memory://"}, MIDDLEWARE=django_project.MIDDLEWARE)


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    return make_shop()


@pytest.fixture
def _atomic_requests(alias: str) -> Iterator[None]:
    connections.settings[alias]["ATOMIC_REQUESTS"] = True
    yield
    connections.settings[alias]["ATOMIC_REQUESTS"] = False


atomic_requests = pytest.mark.usefixtures("_atomic_requests")


# ---- ATOMIC_REQUESTS ------------------------------------------------------------------------------------------------


@atomic_requests
def test_rows_are_usage_though_three_of_ten_views_fail_after_their_work(shop: Shop) -> None:
    @CONVERT
    def view(request: HttpRequest, n: int) -> HttpResponse:
        Group.objects.using(shop.alias).create(name=f"work {n}")
        if n % 10 in (2, 5, 7):
            raise ZeroDivisionError
        return HttpResponse("done")

    shop.serve(also=[path("<int:n>/", view)])

    def visit(n: int) -> int:
        try:
            return int(shop.get(f"/{n}/").status_code)
        finally:
            connections[shop.alias].close()

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(visit, range(200)))
    assert (statuses.count(200), statuses.count(500)) == (140, 60)
    assert shop.sees() == (140, 140, 0)
    history = shop.tier.history("org:acme", "feature:convert")
    assert [entry.n for entry in history] == [1] * 140


@atomic_requests
@pytest.mark.parametrize("status", [400, 404, 503])
def test_a_response_that_failed_keeps_its_work_and_counts_nothing(shop: Shop, status: int) -> None:
    """As Django does: only an exception undoes the work."""

    @CONVERT
    def view(request: HttpRequest) -> HttpResponse:
        shop.work()
        return HttpResponse(status=status)

    shop.serve(view)
    assert shop.get().status_code == status
    assert shop.sees() == (1, 0, 0)


@atomic_requests
def test_work_that_is_rolled_back_behind_a_good_response_is_not_counted(shop: Shop) -> None:
    @CONVERT
    def view(request: HttpRequest) -> HttpResponse:
        Group.objects.using(shop.alias).create(id=7, name="work")
        try:
            with transaction.atomic(using=shop.alias, savepoint=False):
                Group.objects.using(shop.alias).create(id=7, name="again")
        except IntegrityError:
            pass
        return HttpResponse("all is well")

    shop.serve(view)
    assert shop.get().status_code == 200
    assert shop.sees() == (0, 0, 0)


@atomic_requests
def test_a_permission_settles_in_the_transaction_of_its_view(shop: Shop) -> None:
    class Rest(GenericAPIView[Any]):
        authentication_classes = ()
        permission_classes = (HasFeature("feature:convert"),)
        renderer_classes = (BrowsableAPIRenderer, JSONRenderer)
        serializer_class = Serializer

        def get(self, request: Any) -> Response:
            shop.work()
            if "fail" in request.GET:
                raise NotFound
            return Response({})

        post = get

    class Inside:
        def __init__(self, get_response: Any) -> None:
            self.get_response = get_response

        def __call__(self, request: HttpRequest) -> Any:
            response = self.get_response(request)
            seen.append(shop.sees())  # the view's transaction is over, and the middleware outside has not settled yet
            return response

    seen: list[tuple[int, int, int]] = []
    vars(sys.modules[__name__])["Inside"] = Inside
    shop.serve(Rest.as_view(), middleware=[*django_project.MIDDLEWARE, f"{__name__}.Inside"])
    assert shop.get(accept="application/json").status_code == 200
    assert shop.get(accept="text/html").status_code == 200  # its forms are rendered after that
    assert shop.get("/?fail").status_code == 404
    assert seen[:2] == [(1, 1, 0), (2, 2, 0)]
    assert shop.sees() == (2, 2, 0)


class BeforeRendering:
    """A middleware inside of ours: the view's transaction is over, and the response may not have been rendered."""

    seen: ClassVar[list[tuple[int, int, int]]] = []
    shop: ClassVar[Shop]

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        self.seen.append(self.shop.sees())
        return response


def template(request: HttpRequest, shop: Shop, text: str) -> TemplateResponse:
    shop.work()
    return TemplateResponse(request, engines["django"].from_string(text), {"fail": lambda: 1 // 0})


class Renders(GenericAPIView[Any]):
    authentication_classes = ()
    permission_classes = (HasFeature("feature:convert"),)
    renderer_classes = (JSONRenderer,)
    shop: Any = None

    def get(self, request: Any) -> Response:
        self.shop.work()
        return Response({"data": object() if "fail" in request.GET else 1})


@atomic_requests
@pytest.mark.parametrize("is_rest", [False, True])
def test_what_cannot_be_rendered_counts_nothing(shop: Shop, is_rest: bool) -> None:
    """Django has committed the work by then, and its count with it."""

    @CONVERT
    def view(request: HttpRequest) -> TemplateResponse:
        return template(request, shop, "{{ fail }}" if "fail" in request.GET else "done")

    BeforeRendering.seen, BeforeRendering.shop = [], shop
    middleware = [*django_project.MIDDLEWARE, f"{__name__}.BeforeRendering"]
    shop.serve(Renders.as_view(shop=shop) if is_rest else view, middleware=middleware)
    assert shop.get("/").status_code == 200
    assert shop.get("/?fail").status_code == 500
    assert shop.get("/").status_code == 200
    assert BeforeRendering.seen == [(1, 1, 0), (2, 2, 0), (3, 2, 0)]
    assert shop.sees() == (3, 2, 0)
    assert sum(entry.n for entry in shop.tier.history("org:acme", "feature:convert")) == 2
    assert shop.tier.counts == {}


@atomic_requests
@pytest.mark.parametrize(("text", "status", "n"), [("done", 200, 1), ("{{ fail }}", 500, 0)])
def test_what_is_settled_when_it_is_rendered_may_be_settled_later(
    make_shop: Callable[..., Shop], tmp_path: Path, text: str, status: int, n: int
) -> None:
    """The database goes away in between, and what was counted already is not counted again."""
    shop = make_shop(outbox=tmp_path / "outbox.db")

    @CONVERT
    def view(request: HttpRequest) -> TemplateResponse:
        return template(request, shop, text)

    shop.serve(view)
    shop.tier.open()
    shop.tier.core.engine.__class__ = AwayAtTheEnd
    assert shop.get().status_code == status
    assert shop.used() == (1, 0)
    shop.tier.core.engine.__class__ = DjangoEngine
    shop.tier.close()
    assert shop.sees() == (1, n, 0)
    assert not [name for name in shop.tier.counts if name.startswith("lost")]


@atomic_requests
@pytest.mark.parametrize("last", ["set", "skip"])
def test_what_is_said_while_it_is_rendered(shop: Shop, last: str) -> None:
    @requires_feature("feature:convert", 3)
    def view(request: HttpRequest) -> TemplateResponse:
        usage = request.tier["feature:convert"]
        say = usage.skip if last == "skip" else lambda: usage.set(5)
        return TemplateResponse(request, engines["django"].from_string("{{ say }}"), {"say": say})

    shop.serve(view)
    assert shop.get().status_code == 200
    assert shop.used() == (5 if last == "set" else 0, 0)


@atomic_requests
def test_a_key_of_what_cannot_be_rendered_is_unused(shop: Shop) -> None:
    @requires_feature("feature:convert", idempotency="header")
    def view(request: HttpRequest) -> TemplateResponse:
        return template(request, shop, "{{ fail }}" if "fail" in request.GET else "done")

    shop.serve(view)
    for url, n in (("/?fail", 0), ("/", 1), ("/", 1), ("/?fail", 1)):
        assert shop.get(url, **{"idempotency-key": "k"}).status_code == (500 if "fail" in url else 200)
        assert shop.used() == (n, 0)


@atomic_requests
def test_what_the_handler_says_is_counted_and_only_by_the_outermost_gate(shop: Shop) -> None:
    @method_decorator(CONVERT, name="dispatch")
    class Pages(View):
        @method_decorator(requires_feature("feature:pages", 2))
        def get(self, request: HttpRequest) -> HttpResponse:
            shop.work()
            return HttpResponse("done")

        def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            response = super().dispatch(request, *args, **kwargs)
            request.tier["feature:convert"].set(5)  # after the inner gate is done
            return response

    shop.serve(Pages.as_view())
    assert [shop.get().status_code for _ in range(2)] == [200, 429]
    assert shop.sees() == (1, 5, 0)
    assert shop.used("feature:pages") == (2, 0)


@atomic_requests
def test_a_refusal_is_none_of_the_work(shop: Shop) -> None:
    @requires_feature("feature:pages", 4)
    def view(request: HttpRequest) -> HttpResponse:
        raise AssertionError("was called")

    shop.serve(view)
    assert shop.get().json()["code"] == "amount_exceeds_limit"
    assert shop.used("feature:pages") == (0, 0)


@atomic_requests
def test_a_stream_is_counted_at_its_end(shop: Shop) -> None:
    @CONVERT
    def view(request: HttpRequest) -> StreamingHttpResponse:
        shop.work()
        return StreamingHttpResponse([b"a", b"b"])

    shop.serve(view)
    response = shop.get()
    assert shop.sees() == (1, 0, 1)
    assert b"".join(response.streaming_content) == b"ab"
    assert shop.sees() == (1, 1, 0)


@atomic_requests
def test_a_file_is_counted_with_the_response(shop: Shop, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"contents")

    @CONVERT
    def view(request: HttpRequest) -> FileResponse:
        return FileResponse((tmp_path / "file").open("rb"))

    shop.serve(view)
    response = shop.get()
    assert shop.used() == (1, 0)
    response.close()


@atomic_requests
def test_a_route_of_the_table_is_held_and_counted_outside(shop: Shop) -> None:
    def view(request: HttpRequest, fails: int) -> HttpResponse:
        shop.work()
        if fails:
            raise ZeroDivisionError
        return HttpResponse("done")

    shop.serve(also=[path("<int:fails>/", view)], ROUTES={"/<int:fails>/": "feature:convert"})
    assert [shop.get(f"/{fails}/").status_code for fails in (0, 1)] == [200, 500]
    assert shop.sees() == (1, 1, 0)


class Away(DjangoEngine):
    """When a request is to be counted, the database has an error of its own."""

    fails: Any = Commit

    def _transact(self, op: Any, turn: Any) -> Any:
        if isinstance(op, self.fails):
            with connections[self.alias].cursor() as cursor, transaction.atomic(using=self.alias):
                cursor.execute("SELECT no_such_function_of_anybodys()")
        return super()._transact(op, turn)


class AwayAtTheEnd(Away):
    fails = (Commit, Release)


@atomic_requests
@pytest.mark.parametrize("fails", [False, True])
def test_usage_that_the_database_cannot_count_waits_for_the_work_to_be_certain(
    make_shop: Callable[..., Shop], tmp_path: Path, fails: bool
) -> None:
    shop = make_shop(outbox=tmp_path / "outbox.db")
    shop.tier.core.engine.__class__ = Away

    def view(request: HttpRequest) -> HttpResponse:
        shop.work()
        response = CONVERT(lambda request: HttpResponse("done"))(request)
        if fails:
            raise ZeroDivisionError  # after the gate has settled: the transaction around it is rolled back
        return response

    shop.serve(view)
    assert shop.get().status_code == (500 if fails else 200)
    assert shop.tier.counts == ({} if fails else {"outbox.kept": 1})
    assert shop.sees() == ((0, 0, 0) if fails else (1, 0, 1))
    shop.tier.core.engine.__class__ = DjangoEngine
    shop.tier.close()
    assert shop.sees() == ((0, 0, 0) if fails else (1, 1, 0))


@atomic_requests
def test_usage_that_is_lost_undoes_the_work_where_it_should_fail_the_request(
    make_shop: Callable[..., Shop], tmp_path: Path
) -> None:
    shop = make_shop(on_loss="fail", outbox=tmp_path / "no folder" / "outbox.db")
    shop.tier.core.engine.__class__ = Away

    @CONVERT
    def view(request: HttpRequest) -> HttpResponse:
        shop.work()
        return HttpResponse("done")

    shop.serve(view)
    assert shop.get().status_code == 503
    assert shop.sees() == (0, 0, 0)


@atomic_requests
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_view_leaves_to_a_task_is_as_certain_as_the_view(shop: Shop, fails: bool) -> None:
    """A task that is quicker than its view waits for it; with a view that is undone, there is nothing to count."""
    tasks: list[threading.Thread] = []

    @CONVERT
    def view(request: HttpRequest) -> HttpResponse:
        shop.work()
        usage = request.tier["feature:convert"].detach_sync()

        def work() -> None:
            with usage:
                usage.set(2)
            connections[shop.alias].close()

        tasks.append(threading.Thread(target=work))
        tasks[0].start()
        if fails:
            raise ZeroDivisionError
        return HttpResponse(status=202)

    shop.serve(view)
    assert shop.get().status_code == (500 if fails else 202)
    tasks[0].join()
    assert shop.sees() == ((0, 0, 0) if fails else (1, 2, 0))


# ---- settle() -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_settle_counts_in_the_views_own_transaction(shop: Shop, fails: bool) -> None:
    @CONVERT
    def view(request: HttpRequest) -> HttpResponse:
        try:
            with transaction.atomic(using=shop.alias):
                shop.work()
                request.tier["feature:convert"].set(3)
                request.tier.settle()
                assert shop.used() == (3, 0)
                with pytest.raises(RuntimeError, match="settled already"):
                    request.tier.settle()
                if fails:
                    raise DatabaseError
        except DatabaseError:
            return HttpResponse("the work failed")
        return HttpResponse("done", status=500)  # what comes later changes nothing

    shop.serve(view)
    assert shop.get().status_code == (200 if fails else 500)
    assert shop.sees() == ((0, 0, 0) if fails else (1, 3, 0))


def test_settle_outside_of_a_transaction_counts_at_once(shop: Shop) -> None:
    @CONVERT
    def view(request: HttpRequest) -> HttpResponse:
        request.tier.settle()
        assert shop.used() == (1, 0)
        raise ZeroDivisionError

    shop.serve(view)
    assert shop.get().status_code == 500
    assert shop.used() == (1, 0)


def test_settle_works_on_every_engine(site: Site) -> None:
    @CONVERT
    def view(request: HttpRequest) -> HttpResponse:
        request.tier.settle()
        assert site.used() == (1, 0)
        raise ZeroDivisionError

    def ungated(request: HttpRequest) -> HttpResponse:
        request.tier.settle()
        return HttpResponse("nothing to settle")

    site.serve(view, also=[path("ungated/", ungated)])
    assert site.get().status_code == 500
    assert site.get("/ungated/").status_code == 200
    assert site.used() == (1, 0)


# ---- without a transaction, and async -------------------------------------------------------------------------------


def test_views_without_a_transaction_are_settled_when_the_response_leaves(shop: Shop) -> None:
    @CONVERT
    def view(request: HttpRequest, fails: int) -> HttpResponse:
        shop.work()
        if fails:
            raise ZeroDivisionError
        return HttpResponse(str(request.tier["feature:convert"].used))

    shop.serve(also=[path("<int:fails>/", view)])
    assert [shop.get(f"/{fails}/").content for fails in (0, 0)] == [b"0", b"1"]
    assert shop.get("/1/").status_code == 500
    assert shop.sees() == (3, 2, 0)


async def test_async_views_settle_in_a_transaction_of_their_own(lite: str) -> None:
    await sync_to_async(databases.empty)(lite)
    tier = Tier(f"django://{lite}", pricing=PRICING, default_plan="plan:free@1")
    site = Site(tier)

    @CONVERT
    async def view(request: HttpRequest) -> HttpResponse:
        await request.tier["feature:convert"].take(1)
        with pytest.raises(RuntimeError, match="on an event loop await"):
            _ = request.tier["feature:convert"].used
        if request.headers.get("x-fails"):
            raise ZeroDivisionError
        return HttpResponse("done")

    @CONVERT
    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        async def parts() -> Any:
            yield b"a"

        return StreamingHttpResponse(parts())

    @CONVERT
    def sync(request: HttpRequest) -> HttpResponse:
        return HttpResponse(threading.current_thread().name)

    site.serve(view, also=[path("stream/", stream), path("sync/", sync)])
    assert (await site.aget()).status_code == 200
    assert (await site.aget(**{"x-fails": "yes"})).status_code == 500
    response = await site.aget("/stream/")
    assert [part async for part in response.streaming_content] == [b"a"]
    assert (await site.aget("/sync/")).status_code == 200
    assert await sync_to_async(site.used)() == (3, 0)
    await sync_to_async(lambda: connections[lite].close())()
    django_project.change(TIER={"BASE_URL": "memory://"})


async def test_what_an_async_view_has_used_is_kept_while_the_database_is_away(lite: str, tmp_path: Path) -> None:
    await sync_to_async(databases.empty)(lite)
    options: Any = {"pricing": PRICING, "default_plan": "plan:free@1", "outbox": tmp_path / "outbox.db"}
    tier = Tier(f"django://{lite}", **options)
    tier.core.engine.__class__ = Away
    site = Site(tier)

    @CONVERT
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("done")

    site.serve(view)
    assert (await site.aget()).status_code == 200
    assert tier.counts == {"outbox.kept": 1}
    tier.core.engine.__class__ = DjangoEngine
    await sync_to_async(tier.close)()
    assert await sync_to_async(site.used)() == (1, 0)
    await sync_to_async(lambda: connections[lite].close())()
    django_project.change(TIER={"BASE_URL": "memory://"})


# ---- checks ---------------------------------------------------------------------------------------------------------


def test_sqlite_under_atomic_requests_wants_immediate_transactions(lite: str) -> None:
    def found(alias: str) -> list[str | None]:
        with override_settings(TIER={"BASE_URL": f"django://{alias}", "ORG": guard}):
            return [one.id for one in check_settings(None)]

    recommended = connections.settings[lite]
    connections.settings["deferred"] = {**recommended, "OPTIONS": {}, "ATOMIC_REQUESTS": True}
    connections.settings["lenient"] = {**recommended, "OPTIONS": {}, "ATOMIC_REQUESTS": False}
    connections.settings["immediate"] = {**recommended, "ATOMIC_REQUESTS": True}
    assert found("deferred") == ["tier_middleware.W010"]
    assert found("lenient") == []
    assert found("immediate") == []
    assert found("nowhere") == ["tier_middleware.E001"]
    for alias in ("deferred", "lenient", "immediate"):
        del connections[alias], connections.settings[alias]
