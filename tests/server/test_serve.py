"""``tier-middleware serve`` as an operator meets it: how it starts, what it refuses, how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import MODEL, Served, command, environment, serving, wait_until

from tier_middleware import Tier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pricing.json").write_text(json.dumps(MODEL))
    return tmp_path


def refusal(folder: Path, *options: str, **variables: str) -> str:
    done = subprocess.run(
        command(*options), cwd=folder, env=environment(**variables), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, "an error is one line"
    return done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_says_where_and_ends_when_told(folder: Path, workers: str) -> None:
    with serving(folder, "--pricing", "pricing.json", "--workers", workers) as server:
        assert httpx.get(f"{server.url}/readyz").json() == {"status": "ready"}
        assert httpx.get(f"{server.url}/v1/whoami").json()["id"] == "sqlite"
        assert (folder / "tier.db").exists()
        server.end()
        assert server.log.count("GET /v1/whoami 200") == 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz")


def test_an_address_that_others_reach_needs_a_key(folder: Path) -> None:
    assert "TIER_API_KEY" in refusal(folder, "--addr", "0.0.0.0:0")
    assert "TIER_API_KEY" in refusal(folder, "--addr", "[::]:0")
    with serving(folder, addr="0.0.0.0:0", TIER_API_KEY="the-key") as server:
        url = f"http://127.0.0.1:{server.port}/v1/whoami"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, auth=("the-key", "")).status_code == 200
        server.end()
        assert "the-key" not in server.log


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--addr", "8080"), "--addr"),
        (("--addr", "127.0.0.1:x"), "--addr"),
        (("--addr", "127.0.0.1:70000"), "--addr"),
        (("--addr", ":8080"), "--addr"),
        (("--workers", "0"), "--workers"),
        (("--workers", "2", "--base-url", "memory://"), "--workers"),
        (("--pricing", "nope.json"), "TIER_PRICING"),
        (("--base-url", "nope://"), "TIER_BASE_URL"),
        (("--public-url", "/pay"), "TIER_PUBLIC_URL"),
        (("--public-url", "javascript:x"), "TIER_PUBLIC_URL"),
    ],
)
def test_what_cannot_work_is_said_at_the_start(folder: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refusal(folder, *options)


def test_an_address_that_is_taken(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        message = refusal(folder, "--addr", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "Address already in use" in message


def test_a_key_that_no_header_can_hold_is_not_shown(folder: Path) -> None:
    message = refusal(folder, TIER_API_KEY="schlüssel")
    assert "TIER_API_KEY" in message
    assert "schlüssel" not in message


def begun(server: Served) -> tuple[socket.socket, bytes]:
    """A report whose body somebody is waiting for, and that body."""
    body = json.dumps({"org": "org:acme", "feature": "feature:calls", "n": 3}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    head = f"POST /v1/report HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    connection.sendall(head.encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    return connection, body


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_under_way_is_finished(folder: Path, workers: str) -> None:
    with serving(folder, "--pricing", "pricing.json", "--workers", workers) as server:
        subscribe(folder)
        connection, body = begun(server)
        with connection:
            ending = threading.Thread(target=server.end)
            ending.start()
            wait_until(lambda: "Shutting down" in server.log)
            connection.sendall(body)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        ending.join(30)
        assert not ending.is_alive()
    assert used(folder) == 3


def test_the_workers_of_a_parent_that_was_killed_end_too(folder: Path) -> None:
    with serving(folder, "--workers", "2") as server:
        server.end(signal.SIGKILL)
        wait_until(lambda: not listens(server.port))


def listens(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


def subscribe(folder: Path) -> None:
    with Tier(f"sqlite:///{folder}/tier.db") as tier:
        tier.subscribe("org:acme", "plan:free@1")


def used(folder: Path) -> Any:
    with Tier(f"sqlite:///{folder}/tier.db") as tier:
        return tier.lookup_limit("org:acme", "feature:calls").used


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head(folder: Path) -> None:
    """Nagle's algorithm and delayed acknowledgements together are 40 ms: then not one of many answers is faster."""
    with serving(folder) as server, httpx.Client(base_url=server.url) as client:
        taken = [client.get("/healthz").elapsed for _ in range(50)]
    assert min(taken).total_seconds() < 0.02


def test_four_workers_count_every_report_once(folder: Path) -> None:
    """Each report is sent twice at the same time, by its key; whoever of the workers gets it."""
    started = serving(folder, "--pricing", "pricing.json", "--workers", "4")
    apart = httpx.Limits(max_keepalive_connections=0)  # each request may meet another worker
    with started as server, httpx.Client(base_url=server.url, timeout=30, limits=apart) as client:
        subscribe(folder)
        wait_until(lambda: server.log.count("Application startup complete") == 4)
        report = {"org": "org:acme", "feature": "feature:calls", "n": 1}

        def sent(number: int) -> int:
            headers = {"Idempotency-Key": f"report-{number % 200}"}
            return client.post("/v1/report", json=report, headers=headers).status_code

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(sent, range(400))) == {200}
        assert len(set(re.findall(r"INFO (\d+) POST /v1/report 200", server.log))) > 1, "one worker did it all"
    assert used(folder) == 200
