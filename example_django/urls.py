"""Pages at the root, the JSON API below ``/api/``."""

from __future__ import annotations

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import include, path
from rest_framework.authtoken.views import obtain_auth_token
from rest_framework.routers import SimpleRouter

from .labels import api, views


class LogIn(LoginView):
    template_name = "labels/form.html"
    extra_context = {"title": "Log in"}


router = SimpleRouter()
router.register("labels", api.LabelViewSet, basename="api-label")

urlpatterns = [
    path("", views.board, name="board"),
    path("signup/", views.sign_up, name="signup"),
    path(
        "login/", LoginView.as_view(template_name="labels/form.html", extra_context={"title": "Log in"}), name="login"
    ),
    path("logout/", LogoutView.as_view(), name="logout"),
    path("members/", views.add_member, name="members"),
    path("plans/", views.plans, name="plans"),
    path("labels/", views.buy_label, name="labels"),
    path("labels/export/", views.Export.as_view(), name="export"),
    path("addresses/check/", views.check_address, name="check"),
    path("api/token/", obtain_auth_token),
    path("api/usage/", api.Usage.as_view()),
    path("api/", include(router.urls)),
]
