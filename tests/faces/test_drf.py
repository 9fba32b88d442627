"""What is particular to REST framework: who authenticates, how often it asks, how permissions combine, its own 403s."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from counting import guard
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from django_project import Site
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication, BasicAuthentication
from rest_framework.decorators import action, api_view, permission_classes
from rest_framework.exceptions import NotFound, PermissionDenied
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import SAFE_METHODS, BasePermission, IsAdminUser
from rest_framework.renderers import BrowsableAPIRenderer, JSONRenderer
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.settings import api_settings
from rest_framework.views import APIView, exception_handler
from rest_framework.viewsets import ViewSet

from tier_middleware import ConfigurationError, InvalidRequest
from tier_middleware.django import requires_feature
from tier_middleware.django.drf import HasFeature


class Token(BaseAuthentication):
    """Knows users by a header: ``admin``, or anybody."""

    def authenticate(self, request: Any) -> Any:
        name = request.headers.get("x-token")
        return None if name is None else (User(username=name, is_staff=name == "admin"), name)

    def authenticate_header(self, request: Any) -> str:
        return "Token"


def org_of_token(request: Any) -> str | None:
    return "acme" if request.user.is_authenticated and request.auth == request.user.username else None


class Never(BasePermission):
    def has_permission(self, request: Any, view: Any) -> bool:
        return False


class Owns(BasePermission):
    """Whether the object is the visitor's."""

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return bool(obj == request.auth)


class Always(BasePermission):
    pass


class ReadOnly(BasePermission):
    def has_permission(self, request: Any, view: Any) -> bool:
        return request.method in SAFE_METHODS


Convert, Audit, Top = HasFeature("feature:convert"), HasFeature("feature:audit"), HasFeature("feature:top", 2)


def serve(site: Site, *permissions: Any, **more: Any) -> None:
    site.serve(view_of(*permissions, **more).as_view(), ORG=org_of_token)


def view_of(*permissions: Any, **more: Any) -> Any:
    def get(self: APIView, request: Any) -> Response:
        return Response({"org": str(request.tier.org)})

    also = {"authentication_classes": [Token], "permission_classes": permissions, "get": get, "post": get, **more}
    return type("Rest", (APIView,), also)


def visit(site: Site, token: str | None = "ann", method: str = "GET", **headers: str) -> Any:
    return site.get("/", method, **({} if token is None else {"x-token": token}), **headers)


# ---- who ------------------------------------------------------------------------------------------------------------


def test_the_org_is_found_after_the_frameworks_own_authentication(site: Site) -> None:
    serve(site, Convert)
    assert visit(site).json() == {"org": "org:acme"}
    assert site.used() == (1, 0)


def test_nobody_gets_the_frameworks_challenge_with_our_answer(site: Site) -> None:
    serve(site, Convert)
    answer = visit(site, None)
    assert (answer.status_code, answer.json()["code"]) == (401, "no_org")
    assert answer.headers["www-authenticate"] == "Token"
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_wrong_password_stays_the_frameworks_own_answer(site: Site) -> None:
    class Fails(BasicAuthentication):
        def authenticate_credentials(self, *args: Any, **kwargs: Any) -> Any:
            raise PermissionDenied("who?")

    serve(site, Convert, authentication_classes=[Fails])
    answer = visit(site, authorization="Basic YTpi")
    assert (answer.status_code, answer.json()) == (403, {"detail": "who?"})


def test_callables_get_the_frameworks_request(site: Site) -> None:
    def amount(request: Any, kwargs: Any) -> int:
        return len(request.user.username) + len(request.query_params)

    def on_refused(request: Any, refusal: Any) -> HttpResponse:
        return HttpResponse(f"{request.auth}: {refusal.code}", status=418)

    gate = HasFeature("feature:convert", amount, on_refused=on_refused, report_if=lambda request, status: request.auth)
    serve(site, gate)
    assert visit(site, "ann").status_code == 200
    assert site.used() == (3, 0)
    answer = visit(site, "maximilian")
    assert (answer.status_code, answer.content) == (418, b"maximilian: limit_reached")
    assert site.used() == (3, 0)


# ---- the refusal ----------------------------------------------------------------------------------------------------


def test_a_refusal_is_a_problem_and_never_a_plain_403(site: Site) -> None:
    serve(site, Audit)
    answer = visit(site)
    assert (answer.status_code, answer.headers["content-type"]) == (402, "application/problem+json")
    assert answer.json()["code"] == "no_entitlement"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["allow"] == "GET, POST, HEAD, OPTIONS"  # what the framework says beside it


def of_the_app(error: Any, context: Any) -> Any:
    """An app's own handler, on top of the framework's."""
    response = exception_handler(error, context)
    if response is not None:
        response.data = {"error": {"code": str(error.get_codes())}}
        response["x-handled"] = "1"
        response.set_cookie("seen", "1")
    return response


def with_another_status(error: Any, context: Any) -> Any:
    return Response({"buy": "more"}, status=409)


def test_an_exception_handler_of_the_app_keeps_its_headers_or_its_status(site: Site) -> None:
    serve(site, Audit)
    for handler, status in ((of_the_app, 402), (with_another_status, 409)):
        with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": handler}):
            assert api_settings.EXCEPTION_HANDLER is handler
            answer = visit(site)
        assert answer.status_code == status
        if handler is of_the_app:
            assert answer.json()["code"] == "no_entitlement"
            assert (answer.headers["x-handled"], answer.cookies["seen"].value) == ("1", "1")
        else:
            assert answer.json() == {"buy": "more"}
    assert site.used() == (0, 0)


def with_success(error: Any, context: Any) -> Any:
    return Response({"error": str(error)})


def test_an_exception_counts_nothing_though_a_handler_makes_a_success_of_it(site: Site) -> None:
    def raises(self: APIView, request: Any) -> Response:
        raise ZeroDivisionError

    def get(self: APIView, request: Any) -> Response:
        raise NotFound

    is_404 = HasFeature("feature:convert", report_if=lambda request, status: status == 404)
    with override_settings(REST_FRAMEWORK={"EXCEPTION_HANDLER": with_success}):
        for permissions in ((Convert,), (HasFeature("feature:convert", report_if=lambda request, status: True),)):
            serve(site, *permissions, get=raises)
            assert visit(site).status_code == 200
    assert site.used() == (0, 0)
    serve(site, is_404, get=get)  # an exception that is the framework's way to answer
    assert visit(site).status_code == 404
    assert site.used() == (1, 0)


def test_an_unrelated_403_stays_one(site: Site) -> None:
    def refuses(self: APIView, request: Any) -> Response:
        raise PermissionDenied("not yours")

    serve(site, Convert, get=refuses)
    answer = visit(site)
    assert (answer.status_code, answer.json()) == (403, {"detail": "not yours"})
    serve(site, Convert, Never)
    assert visit(site).json() == {"detail": "You do not have permission to perform this action."}
    assert site.used() == (0, 0)


def test_a_403_of_a_branch_that_was_let_in_otherwise_stays_one(site: Site) -> None:
    serve(site, Audit | Always, Never)
    answer = visit(site)
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/json")


def test_a_browser_is_sent_to_the_upgrade_page(site: Site) -> None:
    site.serve(view_of(Audit).as_view(), ORG=org_of_token, UPGRADE_URL="/pricing/")
    answer = visit(site, accept="text/html")
    assert (answer.status_code, answer.url) == (303, "/pricing/")


# ---- combining ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("permission", [Audit | IsAdminUser, IsAdminUser | Audit, (IsAdminUser & Always) | Audit])
def test_an_admin_branch_admits_and_nothing_is_counted(site: Site, permission: Any) -> None:
    serve(site, permission)
    assert visit(site, "admin").status_code == 200
    assert visit(site, "ann").status_code == 402
    assert site.tier.counts == {}


@pytest.mark.parametrize(
    "permission",
    [
        (Convert & Never) | IsAdminUser,
        (Convert & Top & Never) | IsAdminUser,
        ((Convert & Always) & Never) | IsAdminUser,
        (Convert & (Never & Always)) | IsAdminUser,
        (~Audit & Convert & Never) | IsAdminUser,
        (Convert & Audit) | IsAdminUser,
        ((Convert & Never) | (Top & Never)) | IsAdminUser,
    ],
)
def test_a_branch_that_did_not_grant_is_given_back(site: Site, permission: Any) -> None:
    serve(site, permission)
    assert visit(site, "admin").status_code == 200
    assert visit(site, "ann").status_code in (402, 403)
    assert (site.used(), site.used("feature:top")) == ((0, 0), (0, 0))


def test_it_is_given_back_before_the_view_runs(site: Site) -> None:
    seen: list[Any] = []

    def get(self: APIView, request: Any) -> Response:
        seen.append((site.used(), "feature:convert" in request.tier))
        return Response()

    serve(site, (Convert & Never) | IsAdminUser, get=get)
    assert visit(site, "admin").status_code == 200
    assert seen == [((0, 0), False)]


def test_the_first_branch_that_grants_is_the_one_that_is_counted(site: Site) -> None:
    serve(site, Audit | Top | Convert)
    assert visit(site).status_code == 200
    assert (site.used("feature:top"), site.used()) == ((2, 0), (0, 0))
    assert visit(site).status_code == 200  # of 3, one is left and 2 are wanted
    assert (site.used("feature:top"), site.used()) == ((2, 0), (1, 0))


def test_both_of_two(site: Site) -> None:
    serve(site, Convert & Top)
    assert visit(site).status_code == 200
    assert (site.used("feature:top"), site.used()) == ((2, 0), (1, 0))
    assert visit(site).status_code == 429  # no plan has more of the second, and the first is given back
    assert (site.used("feature:top"), site.used()) == ((2, 0), (1, 0))


@pytest.mark.parametrize(
    ("permission", "status"), [(~Audit, 200), (~Convert, 403), (~(Convert & Top), 403), (~~Convert, 200)]
)
def test_a_negation_only_looks(site: Site, permission: Any, status: int) -> None:
    serve(site, permission)
    answer = visit(site)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert (site.used("feature:top"), site.used()) == ((0, 0), (0, 0))


def test_objects_are_asked_about_without_reserving_again(site: Site) -> None:
    def get(self: APIView, request: Any) -> Response:
        self.check_object_permissions(request, "ann")
        return Response()

    serve(site, (Convert & Owns) | IsAdminUser, get=get)
    assert visit(site, "ann").status_code == 200
    assert site.used() == (1, 0)
    assert visit(site, "bob").status_code == 403
    assert site.used() == (1, 0)
    assert visit(site, "admin").status_code == 200  # not the owner: let in as an admin, and the unit is given back
    assert site.used() == (1, 0)


@pytest.mark.parametrize("objects", [["ann", "other"], ["other", "ann"], ["other", "ann", "other"]])
def test_what_let_one_object_be_used_is_counted_whatever_the_others(site: Site, objects: list[str]) -> None:
    class Staff(BasePermission):
        def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
            return bool(obj == "other")

    def get(self: APIView, request: Any) -> Response:
        for obj in objects:
            self.check_object_permissions(request, obj)
        return Response()

    serve(site, ((Convert & Owns) | (Top & Never)) | Staff, get=get)
    assert visit(site, "ann").status_code == 200
    assert (site.used(), site.used("feature:top")) == ((1, 0), (0, 0))


# ---- how often ------------------------------------------------------------------------------------------------------


class Name(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=10)


class Browsable(GenericAPIView[Any]):
    authentication_classes = (Token,)
    permission_classes = (Convert,)
    renderer_classes = (BrowsableAPIRenderer, JSONRenderer)
    serializer_class = Name

    def get_object(self) -> Any:
        return {"name": "x"}

    def get(self, request: Any) -> Response:
        return Response({"name": "x"})

    def post(self, request: Any) -> Response:
        return Response({"name": "y"})

    def put(self, request: Any) -> Response:
        return Response({"name": "z"})


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_browsable_page_reserves_once_however_many_forms_it_has(site: Site, method: str) -> None:
    site.serve(Browsable.as_view(), ORG=org_of_token)
    answer = visit(site, "ann", method, accept="text/html")
    assert answer.status_code == 200
    assert b"<form" in answer.content
    assert site.used() == (1, 0)


@pytest.mark.parametrize("permission", [(Convert & ReadOnly) | IsAdminUser, (Convert & ReadOnly & Owns) | IsAdminUser])
def test_the_forms_of_a_page_give_nothing_back(site: Site, permission: Any) -> None:
    methods: list[str] = []

    def is_success(request: Any, status: int) -> bool:
        methods.append(request.method)
        return status < 400

    def get(self: Any, request: Any) -> Response:
        self.check_object_permissions(request, "ann")
        return Response({"name": "x"})

    class Page(Browsable):
        permission_classes = (permission, HasFeature("feature:pages", report_if=is_success))

    Page.get = get  # type: ignore[method-assign,assignment]
    site.serve(Page.as_view(), ORG=org_of_token)
    answer = visit(site, accept="text/html")
    assert answer.status_code == 200
    assert b'method="POST" enctype' not in answer.content
    assert (site.used(), site.used("feature:pages")) == ((1, 0), (1, 0))
    assert set(methods) == {"GET"}


def test_a_form_that_would_be_shown_lets_no_refusal_pass(site: Site) -> None:
    class Page(Browsable):
        permission_classes = (ReadOnly | Audit,)

    site.serve(Page.as_view(), ORG=org_of_token, UPGRADE_URL="/pricing/")
    answer = visit(site, method="POST", accept="text/html")
    assert (answer.status_code, answer.headers.get("location")) == (303, "/pricing/")


def test_a_page_of_the_last_unit_has_no_forms_and_is_counted(site: Site) -> None:
    site.serve(Browsable.as_view(), ORG=org_of_token)
    site.tier.subscribe("org:acme", "plan:free@1")
    site.tier.report("org:acme", "feature:convert", 9)
    answer = visit(site, accept="text/html")
    assert answer.status_code == 200
    assert b'method="POST" enctype' not in answer.content
    assert site.used() == (10, 0)
    assert visit(site, accept="text/html").status_code == 402


def test_options_tells_what_may_be_done_and_reserves_nothing(site: Site) -> None:
    site.serve(Browsable.as_view(), ORG=org_of_token)
    for token, actions in (("ann", {"POST", "PUT"}), (None, set())):
        answer = visit(site, token, "OPTIONS", accept="application/json")
        assert answer.status_code == 200
        assert set(answer.json().get("actions", {})) == actions
    assert site.used() == (0, 0)


def test_a_permission_that_is_asked_twice_reserves_once(site: Site) -> None:
    def get(self: APIView, request: Any) -> Response:
        self.check_permissions(request)
        return Response()

    serve(site, Convert, get=get)
    assert visit(site).status_code == 200
    assert site.used() == (1, 0)


def test_head_is_checked_and_not_counted(site: Site) -> None:
    serve(site, Convert)
    assert visit(site, method="HEAD").status_code == 200
    assert site.used() == (0, 0)


def test_a_throttled_request_is_not_counted(site: Site) -> None:
    class Stops:
        def allow_request(self, request: Any, view: Any) -> bool:
            return False

        def wait(self) -> int:
            return 7

    serve(site, Convert, throttle_classes=[Stops])
    assert visit(site).status_code == 429
    assert site.used() == (0, 0)


# ---- viewsets and functions -----------------------------------------------------------------------------------------


class Documents(ViewSet):
    authentication_classes = (Token,)
    permission_classes = (
        HasFeature("feature:convert", lambda request: len(json.loads(request.body)), actions=["create"]),
        HasFeature("feature:pages", 5, actions={"retrieve", "again"}),
    )

    def list(self, request: Any) -> Response:
        return Response([])

    def create(self, request: Any) -> Response:
        return Response(request.data, status=201)

    def retrieve(self, request: Any, pk: str) -> Response:
        return Response({"pk": pk})

    @action(detail=True, permission_classes=[Audit])
    def export(self, request: Any, pk: str) -> Response:
        raise AssertionError("ran")

    @action(detail=True)
    def again(self, request: Any, pk: str) -> Response:
        return Response({"pk": pk})


def test_a_viewset_has_a_feature_and_an_amount_for_each_action(site: Site) -> None:
    router = SimpleRouter()
    router.register("documents", Documents, basename="document")
    site.serve(also=[path("", include(router.urls))], ORG=org_of_token)
    ann = {"x-token": "ann"}
    assert site.get("/documents/", **ann).status_code == 200
    assert (site.used(), site.used("feature:pages")) == ((0, 0), (0, 0))
    answer = Client(headers=ann).post("/documents/", ["a", "b", "c"], "application/json")
    assert (answer.status_code, answer.json()) == (201, ["a", "b", "c"])  # the body was left to the framework
    assert (site.used(), site.used("feature:pages")) == ((3, 0), (0, 0))
    assert site.get("/documents/7/", **ann).status_code == 200
    assert site.get("/documents/7/again/", **ann).status_code == 200
    assert site.used("feature:pages") == (10, 0)
    assert site.get("/documents/7/export/", **ann).status_code == 402


def test_functions_and_decorated_methods(site: Site) -> None:
    @api_view(["GET"])
    @permission_classes([Convert])
    def function(request: Any) -> Response:
        return Response()

    @requires_feature("feature:convert", org=guard)
    def get(self: APIView, request: Any) -> Response:
        return Response({"org": request.tier.org})

    site.serve(function)
    assert site.get().status_code == 200
    serve(site, Always, get=get)
    site.serve(view_of(Always, get=get).as_view(), ORG=None)
    assert visit(site).json() == {"org": "org:acme"}
    assert site.used() == (2, 0)


def test_a_decorated_method_is_asked_with_the_frameworks_request(site: Site) -> None:
    @requires_feature("feature:audit", org=org_of_token)
    def get(self: APIView, request: Any) -> Response:
        raise AssertionError("ran")

    serve(site, Always, get=get)
    assert (visit(site).status_code, visit(site, None).status_code) == (402, 401)


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_mistakes_raise_where_it_is_made() -> None:
    with pytest.raises(InvalidRequest, match="convert"):
        HasFeature("convert")
    with pytest.raises(ConfigurationError, match="actions: must be a list of names, got 'create'"):
        HasFeature("feature:convert", actions="create")


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (view_of(HasFeature("feature:audit", actions=["get"])).as_view(), "Rest is no viewset, so 'feature:audit'"),
        (
            type(
                "Typo", (Documents,), {"permission_classes": [HasFeature("feature:audit", actions=["lst", "create"])]}
            ).as_view({"get": "list"}),
            "Typo has no 'lst', so 'feature:audit' would not be required by",
        ),
    ],
)
def test_actions_that_match_nothing_do_not_leave_a_view_open(site: Site, view: Any, message: str) -> None:
    site.serve(view)
    with pytest.raises(ConfigurationError, match=f"^actions: {message}"):
        Client(headers={"x-token": "ann"}).get("/")


def test_without_the_middleware_it_says_what_is_missing(site: Site) -> None:
    site.serve(view_of(Convert).as_view(), middleware=[])
    with pytest.raises(ConfigurationError, match=re.escape("TierMiddleware is missing: '/'")):
        Client(headers={"x-token": "ann"}).get("/")
