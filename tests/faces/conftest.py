"""Every face is told the same contract (`test_contract.py`) through an application with the same routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import django_project
import pytest
from counting import PRICING
from django_project import Site

from tier_middleware import AsyncTier, Tier


@pytest.fixture
def make_tier(tmp_path: Path) -> Callable[..., AsyncTier]:
    """A client with the pricing model of these tests; on SQLite where it is asked for."""

    def make(url: str = "memory://", **options: Any) -> AsyncTier:
        if url == "sqlite":
            url = f"sqlite:///{tmp_path}/tier.db"
        return AsyncTier(url, **{"pricing": PRICING, "default_plan": "plan:free@1", **options})

    return make


@pytest.fixture
async def tier(make_tier: Callable[..., AsyncTier]) -> AsyncIterator[AsyncTier]:
    async with make_tier() as tier:
        yield tier


@pytest.fixture(params=["memory://", "sqlite"])
async def any_tier(request: pytest.FixtureRequest, make_tier: Callable[..., AsyncTier]) -> AsyncIterator[AsyncTier]:
    async with make_tier(request.param) as tier:
        yield tier


@pytest.fixture
def site(make_tier: Callable[..., AsyncTier]) -> Iterator[Site]:
    tier = Tier.on(make_tier().core)
    with tier:
        yield Site(tier)
    django_project.change(TIER={"BASE_URL": "memory://"}, MIDDLEWARE=django_project.MIDDLEWARE)
