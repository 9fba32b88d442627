"""A Tier server for each test, and a folder of its own for the outbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tier_servers import MODEL, TierServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TierServer]:
    started = TierServer(tmp_path)
    started.call("/v1/push", MODEL)
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the outbox is
