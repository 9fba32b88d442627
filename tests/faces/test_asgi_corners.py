"""What a gate does where two of them meet, or where an application's own callable is odd."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from tier_middleware import AsyncTier, Tier
from tier_middleware.asgi import TierMiddleware, requires_feature
from tier_middleware.fastapi import RequiresFeature

MODEL = {"plans": {"plan:free@1": {"features": {"feature:a": {"tiers": [{}]}, "feature:b": {"tiers": [{}]}}}}}


def current_org() -> str:
    return "acme"


def test_a_decorator_takes_the_org_that_a_dependency_has_found() -> None:
    tier = AsyncTier("memory://", pricing=MODEL, default_plan="plan:free@1")
    app = FastAPI()
    app.add_middleware(TierMiddleware, tier=tier)

    @app.get("/")
    @requires_feature("feature:b")
    async def both(usage: Annotated[Any, Depends(RequiresFeature("feature:a", org=current_org))]) -> str:
        return "ok"

    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    usage = Tier.on(tier.core).lookup_limits("org:acme")
    assert (usage["feature:a"].used, usage["feature:b"].used) == (1, 1)


@dataclass
class OrgOfHeader:
    """A callable that cannot be hashed, as dataclasses are."""

    header: str

    def __call__(self, request: Request) -> str | None:
        return request.headers.get(self.header)


def test_an_org_callable_need_not_be_hashable() -> None:
    tier = AsyncTier("memory://", pricing=MODEL, default_plan="plan:free@1")
    handler = requires_feature("feature:a")(lambda request: Response("ok"))
    app = TierMiddleware(Starlette(routes=[Route("/", handler)]), tier=tier, org=OrgOfHeader("x-org"))
    with TestClient(app) as client:
        assert client.get("/", headers={"x-org": "acme"}).status_code == 200
        assert client.get("/").status_code == 401


def test_an_on_loss_that_raises_is_logged_and_the_response_goes_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_loss(reports: object, reason: str) -> None:
        raise ZeroDivisionError("on_loss is broken")

    path = tmp_path / "tier.db"
    tier = AsyncTier(f"sqlite:///{path}", pricing=MODEL, default_plan="plan:free@1", timeout=0.01, on_loss=on_loss)

    @requires_feature("feature:a")
    async def handler(request: Request) -> Response:
        locker.execute("BEGIN IMMEDIATE")  # from here on nothing can be written
        return Response("done")

    app = TierMiddleware(Starlette(routes=[Route("/", handler)]), tier=tier, org=lambda request: "acme")
    with TestClient(app) as client:
        locker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        with caplog.at_level(logging.ERROR):
            answer = client.get("/")
        locker.execute("ROLLBACK")
        locker.close()
        assert (answer.status_code, answer.text) == (200, "done")
    assert "on_loss is broken" in caplog.text
    assert tier.counts["lost.engine_unavailable"] == 1
