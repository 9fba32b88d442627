"""The benchmark of a drain, short: it holds the server's books to what was queued."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_drain_beside_a_gated_route() -> None:
    words = ["--reports", "600", "--turns", "2", "--seconds", "0.2"]
    command = [sys.executable, "-m", "tests.benchmarks.drain", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "the server has counted each of them once" in done.stdout
