"""Tier's own client for Node, from npm, drives our server: every call it has, and every error it makes an object of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from served import serving

CLIENT = "tier@5.10.0"
SCRIPT = Path(__file__).with_name("node_client.mjs")
KEY = "sk_for_node"


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client was answered, call by call."""
    folder = tmp_path_factory.mktemp("node")
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm on this machine")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), CLIENT]
    fetched = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if fetched.returncode:
        pytest.skip(f"npm cannot fetch {CLIENT}: {fetched.stderr.strip()[-200:]}")
    script = Path(shutil.copy(SCRIPT, folder))
    with serving(folder, TIER_API_KEY=KEY) as server:
        variables = {**os.environ, "TIER_BASE_URL": server.url, "TIER_API_KEY": KEY, "NODE_NO_WARNINGS": "1"}
        done = subprocess.run(["node", str(script)], capture_output=True, text=True, env=variables, timeout=120)
        assert done.returncode == 0, done.stderr + server.log[-2000:]
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_plans(said: dict[str, Any]) -> None:
    features = ["calls@plan:free@1", "calls@plan:pro@1", "calls@plan:pro@2", "sso@plan:pro@1"]
    assert said["push"]["results"] == [
        {"feature": f"feature:{name}", "status": "ok", "reason": "created"} for name in features
    ]
    assert {(one["status"], one["reason"]) for one in said["pushed again"]["results"]} == {
        ("failed", "plan already exists")
    }
    assert set(said["pull"]["plans"]) == {"plan:free@1", "plan:pro@1", "plan:pro@2"}
    assert set(said["pullLatest"]["plans"]) == {"plan:free@1", "plan:pro@2"}
    assert said["whoami"]["id"] == "sqlite"


def test_checks_and_reports(said: dict[str, Any]) -> None:
    assert said["limits"] == {"org": "org:acme", "usage": [{"feature": "feature:calls", "used": 0, "limit": 10}]}
    assert said["limit of none"] == {"feature": "feature:nope", "used": 0, "limit": 0}
    assert said["can"] == {"ok": True}
    assert said["answer.report"] == said["report"] == said["report at, clobber"] == {}
    assert said["after two reports"]["used"] == 6
    assert said["after clobber"]["used"] == 10
    assert said["can no more"] == {"ok": False}


def test_orgs(said: dict[str, Any]) -> None:
    assert said["whois"] == {"org": "org:acme", "stripe_id": ""}
    org = said["lookupOrg"]
    assert (org["email"], org["name"], org["description"]) == ("ann@acme.example", "Acme", "a customer")
    assert org["metadata"] == {"k": "v"}
    assert org["invoiceSettings"] == {"defaultPaymentMethod": ""}
    assert said["payment methods"] == {"org": "org:acme", "methods": []}
    assert "/checkout?token=" in said["checkout"]["url"]


def test_phases_and_trials(said: dict[str, Any]) -> None:
    phase = said["phase"]
    assert (phase["plans"], phase["features"], phase["trial"]) == (
        ["plan:free@1"],
        ["feature:calls@plan:free@1"],
        False,
    )
    assert moment(phase["current"]["effective"]) == moment(phase["effective"])
    for name, days in (("trial", 14), ("trial2", 7)):
        trial = said[name]
        assert trial["trial"] is True
        length = moment(trial["end"]) - moment(trial["effective"])
        assert abs(length - timedelta(days=days)) < timedelta(minutes=1)
    assert said["cancel"] == {}


def test_a_clock(said: dict[str, Any]) -> None:
    assert said["clock"]["id"].startswith("clock_")
    assert (said["clocked can"], said["clocked can after"]) == ({"ok": False}, {"ok": True})
    assert moment(said["clocked phase"]["current"]["effective"]) == datetime(2024, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "status", "code", "path"),
    [
        ("org_not_found", 400, "org_not_found", "/v1/limits"),
        ("bad org", 400, "invalid_request", "/v1/limits"),
        ("feature_not_found", 400, "feature_not_found", "/v1/report"),
        ("not reportable", 400, "invalid_request", "/v1/report"),
        ("bad feature", 400, "invalid_request", "/v1/report"),
        ("negative", 400, "invalid_request", "/v1/report"),
        ("TERR1020", 400, "TERR1020", "/v1/subscribe"),
        ("no version", 400, "invalid_request", "/v1/subscribe"),
        ("invalid_email", 400, "invalid_email", "/v1/subscribe"),
        ("invalid_metadata", 400, "invalid_metadata", "/v1/subscribe"),
        ("no phase", 404, "not_found", "/v1/phase"),
        ("bad model", 400, "invalid_request", "/v1/push"),
        ("backwards", 400, "invalid_request", "/v1/clock"),
        ("bad success_url", 400, "invalid_request", "/v1/checkout"),
        ("invalid_api_key", 401, "invalid_api_key", "/v1/whoami"),
    ],
)
def test_errors_are_its_own_objects(said: dict[str, Any], name: str, status: int, code: str, path: str) -> None:
    error = said[name]
    assert (error["is"], error["status"], error["code"], error["path"]) == ("TierError", status, code, path)
    assert error["message"]
    assert error["responseData"] == {"status": status, "code": code, "message": error["message"]}


def test_where_it_cannot_know_its_check_does_not_crash(said: dict[str, Any]) -> None:
    assert said["can of nobody"] == {"ok": True, "code": "org_not_found"}  # fails open: its own doing
    assert said["can without subscription"] == {"ok": False}  # with usage null it was a TypeError
