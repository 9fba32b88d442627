"""Each campaign, short, as anybody can run it: ``python -m tests.campaigns NAME``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from .faults import FAULTS
from .load import ROOT

SHORT = {
    "kills": ["kills", "--rounds", "2"],
    "kills of gunicorn's workers": ["kills", "--rounds", "2", "--engine", "django"],
    "kills in front of a server": ["kills", "--rounds", "1", "--engine", "http"],
    "terms": ["terms", "--rounds", "1", "--kind", "uvicorn", "--kind", "gunicorn-gthread", "--kind", "prefork-pool"],
    "faults": ["faults", "--locked-seconds", "0.4", *(f"--fault={name}" for name in FAULTS if name != "tmpfs-full")],
    "grants": ["grants", "--seconds", "3", "--tasks", "50"],
    "isolation": ["isolation", "--orgs", "600"],
    "isolation in memory": ["isolation", "--orgs", "600", "--engine", "memory"],
    "isolation in front of a server": ["isolation", "--orgs", "100", "--engine", "http"],
    "stalls": ["stalls", "--seconds", "1"],
}


@pytest.mark.parametrize("name", SHORT)
def test_what_is_promised_holds(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.campaigns", *SHORT[name]], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r": all held, in \d+ s$", done.stdout.strip()), done.stdout
