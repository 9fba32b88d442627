"""Clients for tests that tell one story of both twins, on each embedded engine."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tier_middleware import AsyncTier, Tier


class Waiting:
    """An `AsyncTier` that is called like a `Tier`, so that one test tells the story of both."""

    def __init__(self, tier: AsyncTier) -> None:
        self.tier = tier
        self.runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.tier, "aclose" if name == "close" else name)
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *arguments, **options: self._waited(found(*arguments, **options))

    def _waited(self, coroutine: Any) -> Any:
        answer = self.runner.run(coroutine)
        if hasattr(answer, "report"):
            return WaitingAnswer(answer, self)
        return answer

    def reserve(self, *arguments: Any, **options: Any) -> Any:
        return self._reserve(self.tier.reserve(*arguments, **options))

    @contextmanager
    def _reserve(self, manager: Any) -> Iterator[Any]:
        reservation = self.runner.run(manager.__aenter__())
        try:
            yield reservation
        except BaseException as error:
            if not self.runner.run(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self.runner.run(manager.__aexit__(None, None, None))


class WaitingAnswer:
    def __init__(self, answer: Any, waiting: Waiting) -> None:
        self.answer = answer
        self.waiting = waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self.answer, name)

    def __bool__(self) -> bool:
        return bool(self.answer)

    def report(self, *arguments: Any, **options: Any) -> None:
        self.waiting._waited(self.answer.report(*arguments, **options))


@pytest.fixture(params=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes clients; in the end all are closed."""
    made: list[Any] = []

    def client(*arguments: Any, **options: Any) -> Any:
        tier = Tier(*arguments, **options) if request.param == "sync" else Waiting(AsyncTier(*arguments, **options))
        made.append(tier)
        return tier

    yield client
    for tier in made:
        tier.close()
        if isinstance(tier, Waiting):
            tier.runner.close()


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The alias of a database of Django's, on SQLite as the README wants it, with our tables in it."""
    import databases

    databases.add("lite", **databases.recommended(tmp_path_factory.mktemp("lite") / "lite.db"))
    return "lite"


@pytest.fixture(scope="session")
def pg() -> str:
    """The same on PostgreSQL."""
    import databases

    databases.add("pg", **databases.postgresql_settings())
    return "pg"


@pytest.fixture(params=["lite", "pg"])
def alias(request: pytest.FixtureRequest) -> str:
    """Both in turn, with nothing in our tables."""
    import databases

    name: str = request.getfixturevalue(request.param)
    databases.empty(name)
    return name


@pytest.fixture(params=["memory://", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param if request.param != "sqlite" else f"sqlite:///{tmp_path}/tier.db"
