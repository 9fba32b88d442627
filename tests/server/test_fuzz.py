"""A short campaign of malformed requests; ``python -m tests.fuzz`` is a long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.__main__ import attack


@pytest.mark.parametrize("requests", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_nothing_malformed_hurts_the_server(tmp_path: Path, requests: int) -> None:
    statuses, problems = attack(tmp_path, requests, seed=1)
    assert problems == []
    assert {200, 400, 404, 405} <= set(statuses), "it was not asked in all ways"
