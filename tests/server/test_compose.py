"""What the compose file runs, without containers: its server and the example as its client, by its own commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import environment, serving, wait_until

yaml = pytest.importorskip("yaml", reason="no PyYAML, which comes with schemathesis")
ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "example_fastapi" / "compose.yaml").read_text())
KEY = "a-key-for-compose"


def local(text: str, folder: Path) -> str:
    return text.replace("/data/", f"{folder}/").replace("/src", str(ROOT))


def test_its_commands_work_together(tmp_path: Path) -> None:
    tier, example = COMPOSE["services"]["tier"], COMPOSE["services"]["example"]
    name, command, *options = [local(word, tmp_path) for word in tier["command"]]
    assert (name, command, options.pop(0), options.pop(0)) == ("tier-middleware", "serve", "--addr", "127.0.0.1:8080")
    with serving(tmp_path, *options, TIER_API_KEY=KEY) as server:
        given = {name: local(text, tmp_path) for name, text in example["environment"].items()}
        given |= {"TIER_BASE_URL": server.url, "TIER_API_KEY": KEY}
        words = [local(word, tmp_path) for word in example["command"]]
        words[words.index("--port") + 1] = "0"
        log = tmp_path / "example.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *words], env=environment(**given), cwd=tmp_path, stderr=file, stdout=file
            )
        try:
            wait_until(lambda: "Uvicorn running on" in log.read_text() or process.poll() is not None)
            port = re.findall(r"running on http://0\.0\.0\.0:(\d+)", log.read_text())[0]
            assert httpx.get(f"http://127.0.0.1:{port}/pricing").status_code == 200
        finally:
            process.terminate()
            process.wait(20)
        assert "POST /v1/push 200" in server.log, "the example pushes its plans"
        assert KEY not in server.log + log.read_text()


def test_its_health_check_is_the_servers() -> None:
    code = COMPOSE["services"]["tier"]["healthcheck"]["test"][-1]
    assert re.findall(r"http://127.0.0.1:8080(/\w+)", code) == ["/readyz"]


def test_the_files_that_the_image_needs_are_there() -> None:
    lines = (ROOT / "example_fastapi" / "Dockerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied
    assert all(os.path.exists(ROOT / name) for name in copied)
