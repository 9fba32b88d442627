from __future__ import annotations

from collections.abc import Iterator

import pytest

from tier_middleware.demo.server import Server, serving


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Paperlane with two workers: what one of them knows, the other must know too."""
    with serving(tmp_path_factory.mktemp("paperlane"), workers=2) as running:
        yield running
