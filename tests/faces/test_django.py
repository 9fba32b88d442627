"""What is particular to Django: its decorators and kinds of views, whose callables touch the database, and settings."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import django_project
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from counting import guard
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import AnonymousUser, User
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from django.views.generic import TemplateView
from django_project import Site
from rest_framework.views import APIView

from tier_middleware import ConfigurationError, InvalidRequest
from tier_middleware.django import Requirement, RequiresFeatureMixin, requires_feature


def plain(request: HttpRequest, **kwargs: Any) -> HttpResponse:
    return HttpResponse("done")


async def aplain(request: HttpRequest, **kwargs: Any) -> HttpResponse:
    return HttpResponse("done")


CONVERT = requires_feature("feature:convert")
AUDIT = requires_feature("feature:audit")
BOTH = pytest.mark.parametrize("view", [plain, aplain])


# ---- decorators -----------------------------------------------------------------------------------------------------


class Authentication:
    """Logs in whom the header names, as far as `login_required` looks."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        user = User(username="ann") if "x-user" in request.headers else AnonymousUser()
        request.user = user

        async def auser() -> Any:
            return user

        request.auser = auser
        return self.get_response(request)


WITH_LOGIN = [f"{__name__}.Authentication", "tier_middleware.django.TierMiddleware"]


@BOTH
@pytest.mark.parametrize("order", range(4))
async def test_any_order_with_other_decorators(site: Site, view: Any, order: int) -> None:
    others = [login_required, csrf_exempt, require_POST]
    wrapped = view
    for decorate in [*others[:order], CONVERT, *others[order:]]:
        wrapped = decorate(wrapped)
    assert wrapped.csrf_exempt
    assert wrapped.__name__ == view.__name__
    assert iscoroutinefunction(wrapped) == iscoroutinefunction(view)
    site.serve(wrapped, middleware=WITH_LOGIN, ORG=lambda request: "acme" if request.user.is_authenticated else None)
    for visit in (site.aget, lambda *args, **more: asyncio.to_thread(site.get, *args, **more)):
        before, _ = site.used()
        assert (await visit("/", "POST", **{"x-user": "ann"})).status_code == 200
        assert (await visit("/", "GET", **{"x-user": "ann"})).status_code == 405
        assert (await visit("/", "POST")).status_code == (302 if order == 0 else 401)  # to the login page, or ours
        assert site.used() == (before + 1, 0)


class Sync(View):
    def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        return HttpResponse(type(self).__name__)

    @CONVERT
    def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("posted", status=201)


class Async(View):
    async def get(self, request: HttpRequest, **kwargs: Any) -> HttpResponse:
        await asyncio.sleep(0)
        return HttpResponse(type(self).__name__)

    @CONVERT
    async def post(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("posted", status=201)


@method_decorator(CONVERT, name="dispatch")
class SyncDispatch(Sync):
    pass


@method_decorator([csrf_exempt, CONVERT], name="dispatch")
class AsyncDispatch(Async):
    pass


@method_decorator(CONVERT, name="get")
class SyncMethod(Sync):
    pass


class SyncOwnDispatch(Sync):
    @CONVERT
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


class AsyncOwnDispatch(Async):
    @CONVERT
    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().dispatch(request, *args, **kwargs)


class SyncMixin(RequiresFeatureMixin, Sync):
    feature_required = "feature:convert"


class AsyncMixin(RequiresFeatureMixin, Async):
    feature_required = Requirement("feature:convert")


class AmountMixin(RequiresFeatureMixin, Sync):
    feature_required = "feature:convert"

    def feature_amount(self, request: HttpRequest) -> int:
        return len(self.kwargs)


class AsyncAmountMixin(RequiresFeatureMixin, Async):
    feature_required = ("feature:convert",)

    async def feature_amount(self, request: HttpRequest) -> int:
        return len(self.kwargs)


CLASSES = [
    SyncDispatch, AsyncDispatch, SyncMethod, SyncOwnDispatch, AsyncOwnDispatch, SyncMixin, AsyncMixin, AmountMixin,
    AsyncAmountMixin,
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
async def test_classes(site: Site, kind: Any) -> None:
    site.serve(also=[path("<slug:id>/", kind.as_view())])
    for i in range(1, 10, 2):
        assert (await site.aget("/a/")).content == kind.__name__.encode()
        assert (await asyncio.to_thread(site.get, "/a/")).content == kind.__name__.encode()
        assert site.used() == (i + 1, 0)
    for answer in (await site.aget("/a/"), await asyncio.to_thread(site.get, "/a/")):
        assert answer.status_code == 402
    assert site.used() == (10, 0)


@pytest.mark.parametrize("kind", [Sync, Async])
async def test_a_method_is_decorated_as_a_function_is(site: Site, kind: Any) -> None:
    site.serve(kind.as_view())
    assert (await site.aget("/")).status_code == 200
    assert site.used() == (0, 0)
    assert (await site.aget("/", "POST")).status_code == 201
    assert site.used() == (1, 0)


@pytest.mark.parametrize("kind", [Sync, Async])
async def test_gates_of_a_class_and_of_its_method_let_through_for_both_or_count_neither(site: Site, kind: Any) -> None:
    site.serve(method_decorator(requires_feature("feature:top"), name="dispatch")(type("Both", (kind,), {})).as_view())
    assert (await site.aget("/", "POST")).status_code == 201
    assert (site.used("feature:top"), site.used()) == ((1, 0), (1, 0))
    site.tier.report("org:acme", "feature:convert", 9)
    assert (await site.aget("/", "POST")).status_code == 402
    assert (site.used("feature:top"), site.used()) == ((1, 0), (10, 0))  # the first was given back


def test_stacked_on_a_class_they_are_one_gate(site: Site) -> None:
    stacked = method_decorator(CONVERT, name="dispatch")(
        method_decorator(AUDIT, name="dispatch")(type("Stacked", (Sync,), {}))
    )
    site.serve(stacked.as_view())
    assert site.get().status_code == 402
    assert site.used() == (0, 0)
    site.serve(requires_feature("feature:top")(SyncDispatch.as_view()))
    assert site.get().status_code == 200
    assert (site.used("feature:top"), site.used()) == ((1, 0), (1, 0))


def test_mistakes_raise_at_decoration() -> None:
    with pytest.raises(InvalidRequest, match="convert"):
        requires_feature("convert")
    with pytest.raises(ConfigurationError, match="amount"):
        requires_feature("feature:convert", amount=lambda: 1)
    with pytest.raises(ConfigurationError, match="method_decorator"):
        CONVERT(Sync)
    with pytest.raises(InvalidRequest, match="nothing"):
        type("Wrong", (RequiresFeatureMixin, View), {"feature_required": "nothing"})
    with pytest.raises(ConfigurationError, match="without a request"):
        CONVERT(plain)("no request")


@pytest.mark.parametrize("base", [View, TemplateView, APIView])
def test_a_mixin_after_the_view_is_told_apart(base: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^Wrong: RequiresFeatureMixin must be before"):
        type("Wrong", (base, RequiresFeatureMixin), {"feature_required": "feature:convert"})
    type("Right", (RequiresFeatureMixin, base), {"feature_required": "feature:convert"})


def test_without_the_middleware_a_gated_view_fails_and_says_why(site: Site) -> None:
    site.serve(CONVERT(plain), middleware=[])
    with pytest.raises(ConfigurationError, match=r"add 'tier_middleware\.django\.TierMiddleware' to"):
        Client().get("/")


# ---- callables of any colour ----------------------------------------------------------------------------------------


def with_database() -> None:
    """Fails on an event loop, as any query does."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()


def sync_org(request: HttpRequest) -> str:
    with_database()
    return guard(request)


async def async_org(request: HttpRequest) -> str:
    await asyncio.sleep(0)
    return guard(request)


def sync_amount(request: HttpRequest, kwargs: dict[str, Any]) -> int:
    with_database()
    return kwargs["n"]


async def async_amount(request: HttpRequest, kwargs: dict[str, Any]) -> int:
    await asyncio.sleep(0)
    return kwargs["n"]


def sync_refused(request: HttpRequest, refusal: Any) -> HttpResponse:
    with_database()
    return HttpResponse(f"no: {refusal.code}", status=418)


async def async_refused(request: HttpRequest, refusal: Any) -> HttpResponse:
    await asyncio.sleep(0)
    return HttpResponse(f"no: {refusal.code}", status=418)


@BOTH
@pytest.mark.parametrize("org", [sync_org, async_org])
@pytest.mark.parametrize("amount", [sync_amount, async_amount])
@pytest.mark.parametrize("on_refused", [sync_refused, async_refused])
async def test_callables_of_any_colour(site: Site, view: Any, org: Any, amount: Any, on_refused: Any) -> None:
    gated = requires_feature("feature:convert", amount, on_refused=on_refused)(view)
    site.serve(also=[path("<int:n>/", gated)], ORG=org)
    assert (await site.aget("/3/")).status_code == 200
    assert (await asyncio.to_thread(site.get, "/4/")).status_code == 200
    assert site.used() == (7, 0)
    for answer in (await site.aget("/5/"), await asyncio.to_thread(site.get, "/5/")):
        assert (answer.status_code, answer.content) == (418, b"no: limit_reached")
    assert site.used() == (7, 0)


@BOTH
async def test_what_on_refused_returns_must_be_a_response(site: Site, view: Any) -> None:
    site.serve(requires_feature("feature:audit", on_refused=lambda request, refusal: "no")(view))
    assert (await site.aget()).status_code == 500


def test_taking_more_in_a_sync_view(site: Site) -> None:
    def take(request: HttpRequest, n: int) -> HttpResponse:
        async_to_sync(request.tier["feature:convert"].take)(n)
        return HttpResponse()

    site.serve(also=[path("<int:n>/", CONVERT(take))])
    assert site.get("/9/").status_code == 200
    assert site.used() == (9, 0)
    assert site.get("/1/").status_code == 500
    assert site.used() == (9, 0)


@BOTH
async def test_the_org_of_one_request_never_shows_in_another(site: Site, view: Any) -> None:
    barrier = threading.Barrier(4)

    def org(request: HttpRequest) -> str:
        return guard(request)

    def show(request: HttpRequest) -> HttpResponse:
        barrier.wait(10)
        return HttpResponse(request.tier.org)

    async def ashow(request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0.01)
        return HttpResponse(request.tier.org)

    site.serve(CONVERT(show if view is plain else ashow), ORG=org)
    names = ["ann", "bob", "eve", "joe"]
    if view is plain:
        answers = await asyncio.gather(*[asyncio.to_thread(site.get, org=name) for name in names])
    else:
        answers = await asyncio.gather(*[site.aget(org=name) for name in names])
    assert [answer.content.decode() for answer in answers] == [f"org:{name}" for name in names]
    for name in names:
        assert site.used(org=f"org:{name}") == (1, 0)


@BOTH
async def test_a_task_that_goes_on_settles_by_itself(site: Site, view: Any) -> None:
    tasks: list[Any] = []

    def leave(request: HttpRequest) -> HttpResponse:
        usage = request.tier["feature:convert"]
        tasks.append(usage.detach_sync() if view is plain else usage.detach())
        return HttpResponse(status=202)

    async def aleave(request: HttpRequest) -> HttpResponse:
        return leave(request)

    site.serve(CONVERT(leave if view is plain else aleave))
    visit = site.aget if view is aplain else sync_to_async(site.get)
    assert [(await visit()).status_code for _ in range(2)] == [202, 202]
    assert site.used() == (0, 2)
    done, failed = tasks
    if view is plain:
        with done:
            done.set(3)
        with pytest.raises(ZeroDivisionError), failed:
            raise ZeroDivisionError
    else:
        async with done:
            done.set(3)
        with pytest.raises(ZeroDivisionError):
            async with failed:
                raise ZeroDivisionError
    assert site.used() == (3, 0)


def test_the_body_is_left_for_the_view(site: Site) -> None:
    def read(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.read())

    site.serve(csrf_exempt(CONVERT(read)))
    assert Client(headers={"x-org": "acme"}).post("/", b"all of it", "text/plain").content == b"all of it"


# ---- exceptions -----------------------------------------------------------------------------------------------------


class Apologises:
    """A middleware around ours that makes a page of any exception."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse:
        return HttpResponse("sorry")


def fails(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


async def afails(request: HttpRequest) -> HttpResponse:
    raise ZeroDivisionError


@pytest.mark.parametrize("view", [fails, afails])
async def test_a_failure_that_others_make_a_page_of_is_not_counted(site: Site, view: Any) -> None:
    site.serve(CONVERT(view), middleware=[f"{__name__}.Apologises", *django_project.MIDDLEWARE])
    for answer in (await site.aget(), await asyncio.to_thread(site.get)):
        assert (answer.status_code, answer.content) == (200, b"sorry")
    assert site.used() == (0, 0)


@pytest.mark.parametrize(("error", "status", "n"), [(Http404, 404, 1), (PermissionDenied, 403, 0)])
def test_an_answer_by_exception_is_judged_by_its_status(site: Site, error: Any, status: int, n: int) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        raise error

    site.serve(requires_feature("feature:convert", report_if=lambda request, status: status == 404)(view))
    assert site.get().status_code == status
    assert site.used() == (n, 0)


@BOTH
async def test_a_report_if_that_raises_leaves_nothing_held(site: Site, view: Any) -> None:
    site.serve(requires_feature("feature:convert", report_if=lambda request, status: 1 // 0 == 0)(view))
    for visit in (lambda: asyncio.to_thread(site.get), site.aget):
        assert (await visit()).status_code == 500
        assert site.used() == (0, 0)


@pytest.mark.parametrize("asked_before", [0, 1])
def test_a_report_if_that_raises_for_a_stream_leaves_nothing_held(site: Site, asked_before: int) -> None:
    asked: list[int] = []

    def report_if(request: HttpRequest, status: int) -> bool:
        asked.append(status)
        return len(asked) <= asked_before or 1 // 0 == 0

    def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(iter([b"chunk"]))

    site.serve(requires_feature("feature:convert", report_if=report_if)(view))
    answer = site.get()
    assert answer.status_code == (200 if asked_before else 500)
    if asked_before:
        with pytest.raises(ZeroDivisionError):
            list(answer)
    assert site.used() == (0, 0)


# ---- the table ------------------------------------------------------------------------------------------------------


@BOTH
async def test_routes_by_name_by_namespace_and_by_path(site: Site, view: Any) -> None:
    app = ([path("<int:id>/", view, name="get"), path("free/", view, name="free")], "files")
    urls = [path("files/", include(app)), path("named/", view, name="named"), path("by/<slug:name>/", view)]
    table = {
        "files:get": "feature:convert",
        "POST named": Requirement("feature:convert", 2),
        "/by/<slug:name>/": "feature:audit",
    }
    site.serve(also=urls, ROUTES=table)
    assert (await site.aget("/files/7/")).status_code == 200
    assert (await asyncio.to_thread(site.get, "/files/7/")).status_code == 200
    assert (await site.aget("/files/7/", "HEAD")).status_code == 200
    assert site.used() == (2, 0)
    assert (await site.aget("/named/", "POST")).status_code == 200
    assert (await site.aget("/named/")).status_code == 200
    assert (await site.aget("/files/free/", org="nobody")).status_code == 200
    assert (await site.aget("/none/")).status_code == 404
    assert site.used() == (4, 0)
    assert (await site.aget("/by/name/")).status_code == 402
    assert (await asyncio.to_thread(site.get, "/by/name/")).status_code == 402


def test_a_get_route_is_checked_for_head(site: Site) -> None:
    site.serve(plain, ROUTES={"GET /": "feature:audit"})
    assert site.get().status_code == 402
    assert site.get(method="HEAD").status_code == 402
    assert site.get(method="POST").status_code == 200


def test_the_table_and_a_decorator_are_settled_together(site: Site) -> None:
    site.serve(CONVERT(plain), ROUTES={"/": "feature:top"})
    assert site.get().status_code == 200
    assert (site.used("feature:top"), site.used()) == ((1, 0), (1, 0))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (["files:get"], "must be a dict"),
        ({"two words here": "feature:x"}, "must be keyed by a URL name or a path"),
        ({3: "feature:x"}, "must be keyed by a URL name or a path"),
        ({"files:get": []}, r"\['files:get'\]: must be a feature, a Requirement or a list"),
        ({"files:get": "convert"}, r"\['files:get'\].*'convert'"),
        ({"/<wrong:id>/": "feature:x"}, r"\['/<wrong:id>/'\].*wrong"),
    ],
)
def test_a_mistake_in_the_table_is_named(site: Site, table: Any, message: str) -> None:
    site.serve(plain, ROUTES=table)
    with pytest.raises(ConfigurationError, match=rf"TIER\['ROUTES'\].*{message}"):
        Client().get("/")


def test_a_line_by_name_is_told_from_a_path_in_a_mounted_project(site: Site, tmp_path: Path) -> None:
    site.serve(also=[path("a/", plain)], ROUTES={"/a/": "feature:audit"})
    assert Client(headers={"x-org": "acme"}).get("/a/", SCRIPT_NAME="/mounted").status_code == 402
