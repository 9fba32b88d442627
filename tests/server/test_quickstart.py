"""Tier's quickstart in Python, as the README writes it: on the embedded engine, and against our server."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import serving
from test_readme import blocks, run

from tier_middleware import Tier

ORG = "org:customer-id-from-your-db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pricing.json").write_text("".join(blocks("file: pricing.json")))
    return tmp_path


def used(folder: Path) -> int:
    with Tier(f"sqlite:///{folder}/tier.db") as tier:
        return tier.lookup_limit(ORG, "feature:convert").used


def test_on_the_embedded_engine(folder: Path) -> None:
    (quickstart,) = blocks("quickstart")
    done = run(quickstart, folder, TIER_PRICING="pricing.json", TIER_DEFAULT_PLAN="plan:free@1")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert used(folder) == 1


@pytest.mark.parametrize("key", [None, "the-key"])
def test_against_the_server(folder: Path, key: str | None) -> None:
    (quickstart,), (command,) = blocks("quickstart"), blocks("serve")
    pricing = command.split()[command.split().index("--pricing") + 1]
    variables = {} if key is None else {"TIER_API_KEY": key}
    with serving(folder, "--pricing", pricing, **variables) as server:
        with Tier(f"sqlite:///{folder}/tier.db") as tier:
            tier.subscribe(ORG, "plan:free@1")
        done = run(quickstart, folder, TIER_BASE_URL=server.url, **variables)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "POST /v1/reports 200" in server.log
    assert used(folder) == 1
