"""``tier-middleware outbox`` and ``doctor``, for a person who has to decide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tier_servers import TierServer

from tier_middleware.cli.app import run
from tier_middleware.clock import milliseconds
from tier_middleware.reporting.batches import Entry
from tier_middleware.reporting.outbox import Outbox

ACME = "org:acme"
CALLS = "feature:calls"


@pytest.fixture
def outbox(server: TierServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    """One batch held (id 1), one buried (2), one waiting (3)."""
    monkeypatch.setenv("TIER_BASE_URL", server.url)
    with closing(Outbox(tmp_path / "tier-outbox.db", milliseconds(None), server=server.url)) as found:
        fill(found)
        yield found


def fill(found: Outbox) -> None:
    for n, state in ((1, "held"), (2, "buried"), (4, "open")):
        found.append([Entry(ACME, CALLS, n)])
        if state != "open":
            (batch,) = found.claim(2**50, 1)
            found.hold(batch, "lost") if state == "held" else found.bury(batch, "org_not_found", "who?")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["outbox", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_there_is_listed(outbox: Outbox, capsys: pytest.CaptureFixture[str]) -> None:
    listed = said(capsys, "list")
    assert [(one["id"], one["state"], one["n"]) for one in listed["batches"]] == [
        (1, "held", 1), (2, "buried", 2), (3, "open", 4),
    ]  # fmt: skip
    assert [one["code"] for one in said(capsys, "list", "--state", "held")["batches"]] == ["ambiguous"]
    assert run(["outbox", "list"]) == 0
    shown = capsys.readouterr().out
    assert "org_not_found" in shown
    assert "who?" in shown
    assert run(["outbox", "list", "--state", "lost"]) == 2


def test_what_waits_is_sent_and_what_a_person_chose(
    outbox: Outbox, server: TierServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.subscribe(ACME, "plan:pro@1")
    assert said(capsys, "retry") == {"requeued": 0, "left": {"held": 1, "buried": 2}}
    assert server.counted == {ACME: 4}
    assert run(["outbox", "retry", "1"]) == 0
    assert "left: 1 reports buried" in capsys.readouterr().out
    assert run(["outbox", "retry", "--all"]) == 0
    assert capsys.readouterr().out == "all is delivered\n"
    assert server.counted == {ACME: 7}


def test_a_server_that_is_away_leaves_it_there(
    outbox: Outbox, server: TierServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kill()
    assert said(capsys, "retry")["left"] == {"held": 1, "buried": 2, "sealed": 4}


def test_what_is_dropped_is_gone(outbox: Outbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["outbox", "drop", "3"]) == 1
    assert "held or buried, got 3" in capsys.readouterr().err
    assert said(capsys, "drop", "1") == {"dropped": 1}
    assert said(capsys, "drop", "--all") == {"dropped": 1}
    assert [batch.n for batch in outbox.undelivered(ACME)] == [4]


def test_all_of_it_is_exported(outbox: Outbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["outbox", "export", str(tmp_path / "all.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [one["n"] for one in lines] == [1, 2, 4]
    assert all(one["key"] and one["first_at"] for one in lines)
    assert run(["outbox", "export"]) == 0


def test_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["outbox", "list"]) == 1
    assert "there is no outbox" in capsys.readouterr().err
    monkeypatch.setenv("TIER_BASE_URL", "memory://")
    with closing(Outbox(tmp_path / "other.db", milliseconds(None))) as other:
        other.open()
    assert run(["outbox", "retry", "--outbox", "other.db"]) == 1
    assert "must name the engine" in capsys.readouterr().err


def test_reports_are_not_sent_to_another_server(outbox: Outbox, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--base-url", "http://127.0.0.1:9", "outbox", "retry"]) == 1
    assert "for 'http://127.0.0.1:" in capsys.readouterr().err


def test_doctor_says_what_a_person_has_to_decide(
    outbox: Outbox, server: TierServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(["doctor"])
    shown = capsys.readouterr().out
    assert "see tier-middleware outbox list" in shown
    assert "answers" in shown
    server.kill()
    assert run(["doctor"]) == 1
    assert "Connection refused" in capsys.readouterr().out
    outbox.close()
    (tmp_path / "tier-outbox.db").unlink()
    run(["doctor"])
    assert "does not exist yet" in capsys.readouterr().out
    assert not (tmp_path / "tier-outbox.db").exists()
