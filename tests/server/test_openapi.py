"""The OpenAPI document, and what a fuzzer makes of it: schemathesis, with all its checks, against a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from served import MODEL, serving

from tier_middleware import AsyncTier, Tier
from tier_middleware.server import TierServer
from tier_middleware.server.routes import ENDPOINTS

KEY = "a-key"

# Tier answers 400 for an org or a feature that is not there, however well it is spelled, and 404 without a phase.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = [200, 400, 404]
"""


def checked(folder: Path, url: str, examples: int, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color"]
    command += ["--checks", "all", "--mode", "all", "--max-examples", str(examples), "--request-timeout", "10"]
    return subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=880)


def failures_in(output: str) -> str:
    return output.partition("= FAILURES =")[2] or output[-6000:]


def run(folder: Path, examples: int, key: str | None) -> None:
    """Keyed and keyless, with an org and plans that the document's examples name."""
    with Tier(f"sqlite:///{folder}/tier.db") as tier:
        tier.push(MODEL)
        tier.subscribe("org:acme", "plan:free@1")
    variables = {} if key is None else {"TIER_API_KEY": key}
    with serving(folder, **variables) as server:
        options = () if key is None else ("--auth", f"{key}:")
        done = checked(folder, server.url, examples, *options)
        assert done.returncode == 0, failures_in(done.stdout) + done.stderr[-2000:]
        assert "Traceback" not in server.log
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert server.end() is not None


@pytest.mark.parametrize("key", [None, KEY])
def test_nothing_that_it_allows_or_forbids_is_answered_otherwise(tmp_path: Path, key: str | None) -> None:
    run(tmp_path, 5, key)


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, KEY])
def test_nothing_at_length(tmp_path: Path, key: str | None) -> None:
    run(tmp_path, 300, key)


async def test_it_has_every_endpoint_and_is_open() -> None:
    transport = httpx.ASGITransport(TierServer(AsyncTier("memory://"), api_key=KEY))
    async with httpx.AsyncClient(transport=transport, base_url="http://tier.example.com") as client:
        document = (await client.get("/openapi.json")).json()
    served = {(one.method.lower(), one.path) for one in ENDPOINTS if one.is_documented}
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == served
    assert document["servers"] == [{"url": "http://tier.example.com"}]
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


async def test_the_key_is_described_where_there_is_one() -> None:
    for options, has_key in (({"api_key": KEY}, True), ({}, False)):
        transport = httpx.ASGITransport(TierServer(AsyncTier("memory://"), **options))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            document = (await client.get("/openapi.json")).json()
        assert ("security" in document["paths"]["/v1/limits"]["get"]) is has_key
        assert "security" not in document["paths"]["/healthz"]["get"]
