"""``tier-middleware demo`` as its users run it: a process, in any folder, from a checkout or an installed wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import tier_middleware

ROOT = Path(tier_middleware.__file__).parents[1]
UNIGNORED = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from tier_middleware.cli import main; sys.exit(main())"
)
IGNORED = shutil.ignore_patterns("__pycache__")


def environment(root: Path, temporary: Path, **variables: str) -> dict[str, str]:
    """One that would lead a demo astray if it followed it."""
    temporary.mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "COLUMNS")}
    astray = {"TIER_BASE_URL": "memory://", "TIER_PRICING": "/nowhere.json", "TIER_DEFAULT_PLAN": "plan:no@1"}
    return {**inherited, **astray, "PYTHONPATH": str(root), "TMPDIR": str(temporary), **variables}


def demo(root: Path, folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    temporary = folder / "temporary"
    done = subprocess.run(
        [sys.executable, "-m", "tier_middleware", "demo", *args],
        cwd=folder,
        env=environment(root, temporary, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert list(temporary.iterdir()) == [], "the temporary folder stayed behind"
    return done


def copied(target: Path, *, installed: bool = False) -> Path:
    """The package and the example as a checkout has them beside each other, or as the wheel installs them."""
    ignored = shutil.ignore_patterns("__pycache__", "examples")
    shutil.copytree(ROOT / "tier_middleware", target / "tier_middleware", ignore=ignored)
    examples = target / "tier_middleware" / "examples" if installed else target
    for example in ("example_fastapi", "example_django"):
        shutil.copytree(ROOT / example, examples / example, ignore=IGNORED)
    return target


@pytest.mark.parametrize(("name", "installed"), [("here", False), ("a folder with % and ü", True)])
def test_the_demo_tells_its_story_from_any_folder(tmp_path: Path, name: str, installed: bool) -> None:
    folder = tmp_path / name
    folder.mkdir()
    done = demo(copied(tmp_path / "site", installed=True) if installed else ROOT, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for told in ("201", "4 left", "500  a damaged document; still 3 left", "0 left", '"code": "limit_reached"',
                 "303  Location: /pricing", "no_entitlement", "100 reserved", "on plan:pro@1", "499 left"):  # fmt: skip
        assert told in done.stdout
    assert "\x1b" not in done.stdout  # readable when piped
    assert [entry.name for entry in folder.iterdir()] == ["temporary"]


def test_the_django_demo_tells_its_story(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    site = copied(tmp_path / "site", installed=True)  # the checkout's is told below, with a step that goes wrong
    done = demo(site, folder, "--django", DJANGO_SETTINGS_MODULE="no.such.settings")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for told in ("0 of 5 labels", "502  the carrier is down; still 3 left", '"code": "limit_reached"', "499 left",
                 "Location: /plans/", "an upgrade button", "bob is no owner", "26 labels as CSV"):  # fmt: skip
        assert told in done.stdout
    assert [entry.name for entry in folder.iterdir()] == ["temporary"]


def test_a_step_that_goes_differently_is_named(tmp_path: Path) -> None:
    root = copied(tmp_path / "checkout")
    example = root / "example_fastapi" / "main.py"
    gate = ', amount=lambda request, arguments: arguments["pages"]'
    assert gate in example.read_text()
    example.write_text(example.read_text().replace(gate, ""))
    done = demo(root, tmp_path)
    assert done.returncode == 1
    assert re.search(r"error: demo: step 6 \(.*\): feature:ocr-pages used.*: expected 15, got 1", done.stderr), done


def test_a_step_of_the_django_demo_that_goes_differently_is_named(tmp_path: Path) -> None:
    root = copied(tmp_path / "checkout")
    views = root / "example_django" / "labels" / "views.py"
    assert '@requires_feature("feature:labels")' in views.read_text()
    views.write_text(views.read_text().replace('@requires_feature("feature:labels")\n', ""))
    done = demo(root, tmp_path, "--django")
    assert done.returncode == 1
    assert re.search(r"error: demo: step 2 \(.*\): feature:labels used.*: expected 1, got 0", done.stderr), done


def test_a_project_that_cannot_migrate_shows_why(tmp_path: Path) -> None:
    root = copied(tmp_path / "checkout")
    settings = root / "example_django" / "settings.py"
    settings.write_text(settings.read_text().replace('"UPGRADE_URL"', '"UPGRADE_ULR"'))
    done = demo(root, tmp_path, "--django")
    assert done.returncode == 1
    assert "TIER['UPGRADE_ULR']: unknown key; did you mean 'UPGRADE_URL'" in done.stderr
    assert "error: demo: example_django.manage ended with status 1" in done.stderr


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    root = copied(tmp_path / "checkout")
    (root / "example_fastapi" / "pricing.json").write_text('{"plans": {"plan:free": {}}}')
    done = demo(root, tmp_path)
    assert done.returncode == 1
    assert "plan:free" in done.stderr
    assert "error: demo: the server ended with status 3" in done.stderr


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = demo(ROOT, tmp_path, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "address already in use" in done.stderr


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    assert told_without("uvicorn", "main()", tmp_path) == '"tier-middleware[demo]" (no uvicorn)'
    assert told_without("rest_framework", "main(django=True)", tmp_path) == (
        '"tier-middleware[demo,drf]" (no rest_framework)'
    )


def told_without(module: str, call: str, tmp_path: Path) -> str:
    program = f"import sys; sys.modules[{module!r}] = None; from tier_middleware.demo import main; sys.exit({call})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(ROOT, tmp_path / "temporary"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    begin = "the demo needs more packages: pip install "
    assert done.stderr.startswith(begin)
    return done.stderr.removeprefix(begin).rstrip()


def tried(told: str) -> list[str]:
    """What the commands answer that a kept demo prints, each typed as it stands."""
    token, answers = "", []
    for command in re.findall(r"^  (curl .*)$", told, re.MULTILINE):
        done = subprocess.run(
            ["sh", "-c", command.replace("curl", "curl -sS", 1)],
            env={**os.environ, "TOKEN": token, "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
        token = token or json.loads(done.stdout)["token"]
    return answers


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_kept_server_ends_with_the_demo(tmp_path: Path, number: signal.Signals, status: int) -> None:
    temporary = tmp_path / "temporary"
    with subprocess.Popen(
        # where this suite runs in the background of a shell, SIGINT is ignored, and children inherit that
        [sys.executable, "-c", UNIGNORED, "demo", "--keep"],
        cwd=tmp_path,
        env=environment(ROOT, temporary),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if "tier-middleware limits" in line:  # the last that it says
                break
        try:
            found = re.search(r"curl -d .*http://127\.0\.0\.1:(\d+)/signup", told)
            assert found, told
            port = int(found[1])
            if number == signal.SIGINT and shutil.which("curl"):
                answers = tried(told)
                assert [json.loads(answers[at]).popitem()[0] for at in (1, 2, 5)] == ["html", "pages", "plan"]
                assert answers[3] == "data: It\n\ndata: rained\n\ndata: [DONE]\n\n"
        finally:
            process.send_signal(number)
        try:
            assert process.wait(timeout=30) == status
        finally:
            process.kill()  # else leaving this block would wait for it without end
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert list(temporary.iterdir()) == []
