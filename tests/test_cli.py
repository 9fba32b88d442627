"""The command line as its users have it: a process each, on a database file of its own. Only mistakes are many and
short, and made in this process.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import tier_middleware
from tier_middleware import Tier
from tier_middleware.cli.app import run
from tier_middleware.cli.doctor import EXTRAS
from tier_middleware.pricing import read_model

ROOT = Path(tier_middleware.__file__).parents[1]
PRICING = """{
  // comments and trailing commas are welcome
  "plans": {
    "plan:free@1": {"features": {"feature:convert": {"tiers": [{"upto": 3, "price": 0.000000000001}]}}},
    "plan:pro@1": {"features": {
      "feature:convert": {"tiers": [{"upto": 100}]},
      "feature:api": {"tiers": [{}]},
      "feature:sso": {},
    }},
  },
}"""
EDITED = PRICING.replace(
    '{"tiers": [{"upto": 3, "price": 0.000000000001}]}',
    '{"tiers": [{"upto": 4, "price": 123456789012345.000000000001}]}, "feature:new": {"base": 5}',
)
TYPO = PRICING.replace('"tiers": [{"upto": 100}]', '"teirs": []')
PLAN = 'plans["plan:free@1"]'


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment(**variables: str) -> dict[str, str]:
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith("TIER_") and k not in ("FORCE_COLOR", "COLUMNS")
    }
    return {**inherited, "PYTHONPATH": str(ROOT), **variables}


def cli(folder: Path, *args: str, module: str = "tier_middleware.cli", **variables: str) -> Done:
    return python(folder, "-m", module, *args, **variables)


def python(folder: Path, *args: str, **variables: str) -> Done:
    command = [sys.executable, "-W", "error", *args]
    done = subprocess.run(
        command, cwd=folder, env=environment(**variables), capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database, two plans and some orgs; each test uses an org of its own."""
    folder = tmp_path_factory.mktemp("shop")
    for name, text in (("pricing.json", PRICING), ("edited.json", EDITED), ("typo.json", TYPO)):
        (folder / name).write_text(text)
    with Tier(f"sqlite:///{folder / 'tier.db'}", pricing=PRICING) as tier:
        for org in ("org:limits", "org:can", "org:report", "org:mistaken"):
            tier.subscribe(org, "plan:free@1")
        tier.subscribe("org:pro", "plan:pro@1")
        tier.report("org:limits", "feature:convert", 2)
        tier.report("org:can", "feature:convert", 3)
    return folder


# ---- mistakes -------------------------------------------------------------------------------------------------------

CAN = ("can", "org:mistaken")
REPORT = ("report", "org:mistaken", "feature:convert")

MISTAKES: dict[str, tuple[tuple[str, ...], Mapping[str, str], str]] = {
    "feature with a space": ((*CAN, "feature:con vert"), {}, "feature: must match feature:[A-Za-z0-9:_-]+, got"),
    "feature without prefix": ((*CAN, "convert"), {}, "feature: must start with 'feature:', got 'convert'"),
    "org without prefix": (("can", "acme", "feature:convert"), {}, "org: must start with 'org:', got 'acme'"),
    "negative n": ((*REPORT, "-1"), {}, "n: must be a whole number >= 0, got -1"),
    "negative n of can": ((*CAN, "feature:convert", "-1"), {}, "n: must be a whole number >= 0, got -1"),
    "broken n": ((*REPORT, "1.5"), {}, "n: must be a whole number >= 0, got '1.5'"),
    "huge n": ((*REPORT, "9" * 5000), {}, "n: must be a whole number >= 0, got '999"),
    "n beyond int64": ((*REPORT, str(2**63)), {}, "n: must be at most 9223372036854775807"),
    "naive time": ((*REPORT, "--at", "2023-03-23T00:00:00"), {}, "at: must end in Z or an offset, as in"),
    "no time": ((*REPORT, "--at", "noon\n"), {}, "at: must be an RFC 3339 time such as"),
    "time before the subscription": (
        (*REPORT, "--at", "2001-01-01T00:00:00Z"),
        {},
        "at: must lie in a period of the sub",
    ),
    "time beyond the calendar": ((*REPORT, "--at", "0001-01-01T00:00:00+14:00"), {}, "at: must be an RFC 3339 time"),
    "report of an on/off feature": (("report", "org:pro", "feature:sso"), {}, "feature not reportable: 'feature:sso'"),
    "report of a feature it has not": (
        ("report", "org:mistaken", "feature:api"),
        {},
        "feature not found: 'org:mistaken'",
    ),
    "plan without version": (("subscribe", "org:mistaken", "plan:pro"), {}, "must have a version, as in 'plan:pro@1'"),
    "plan not in the model": (("subscribe", "org:mistaken", "plan:prp@1"), {}, "did you mean 'plan:pro@1'?"),
    "unknown org": (("limits", "org:nobody"), {}, "org not found: 'org:nobody' was never subscribed"),
    "unknown org of report": (("report", "org:nobody", "feature:convert"), {}, "org not found: 'org:nobody'"),
    "missing file": (("push", "nowhere.json"), {}, "cannot read 'nowhere.json': No such file or directory"),
    "typo in a field": (("push", "typo.json"), {}, "[\"feature:convert\"].teirs: unknown field, did you mean 'tiers'?"),
    "edited plan": (
        ("push", "edited.json"),
        {},
        f'{PLAN}.features["feature:convert"].tiers[0].upto: plan:free@1 is sto',
    ),
    "strange URL": (("limits", "org:mistaken"), {"TIER_BASE_URL": "ftp://x"}, "TIER_BASE_URL: must begin with"),
    "strange URL given": (("pull", "--base-url", "ftp://x"), {}, "TIER_BASE_URL: must begin with 'sqlite:///'"),
    "no database": (("limits", "org:mistaken"), {"TIER_BASE_URL": "sqlite:///new.db"}, "there is no database '"),
    "a file of something else": (("pull",), {"TIER_BASE_URL": "sqlite:///pricing.json"}, "is not a SQLite database"),
    "unknown default plan": (
        (*CAN, "feature:convert"),
        {"TIER_DEFAULT_PLAN": "plan:fre@1"},
        "TIER_DEFAULT_PLAN: 'plan:fre@1' is not in the pricing model, did you mean 'plan:free@1'?",
    ),
    "misspelt default plan": ((*CAN, "feature:convert"), {"TIER_DEFAULT_PLAN": "free"}, "must start with 'plan:'"),
    "escape codes": (("limits", "org:\x1b[31m\x07[bold]x"), {}, "org not found: 'org:\\x1b[31m\\x07[bold]x'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_status_1(
    name: str, shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args, variables, said = MISTAKES[name]
    monkeypatch.chdir(shop)
    for variable in set(os.environ) - set(environment()):
        monkeypatch.delenv(variable)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    done = Done(run(args), *capsys.readouterr())
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.err.endswith("\n")
    assert done.err.removesuffix("\n").isprintable()
    assert said in done.err
    assert (done.status, done.out) == (1, "")
    assert not (shop / "new.db").exists()


@pytest.mark.parametrize("args", [("can", "org:a", "feature:x", "--jsno"), ("push",), ("nonsense",)])
def test_wrong_usage_is_status_2(args: tuple[str, ...], tmp_path: Path) -> None:
    done = cli(tmp_path, *args)
    assert done.status == 2
    assert "Usage: tier-middleware" in done.err
    assert list(tmp_path.iterdir()) == []


# ---- pricing model --------------------------------------------------------------------------------------------------


def test_push_dry_run_push_and_pull(tmp_path: Path) -> None:
    pricing, edited = tmp_path / "pricing.json", tmp_path / "edited.json"
    pricing.write_text(PRICING)
    edited.write_text(EDITED)

    planned = cli(tmp_path, "push", "pricing.json", "--dry-run")
    assert (planned.status, planned.err) == (0, "")
    assert planned.out == "plan:free@1  new\nplan:pro@1   new\n"
    assert sorted(tmp_path.iterdir()) == [edited, pricing]

    # a default plan that this very push brings is no mistake
    first = cli(tmp_path, "push", "pricing.json", TIER_DEFAULT_PLAN="plan:free@1")
    assert first == Done(0, "plan:free@1  created\nplan:pro@1   created\n", "")
    again = cli(tmp_path, "push", "pricing.json", "--json").json
    assert again == {
        "dry_run": False,
        "plans": [
            {"plan": "plan:free@1", "status": "unchanged", "differences": []},
            {"plan": "plan:pro@1", "status": "unchanged", "differences": []},
        ],
    }

    pulled = cli(tmp_path, "pull", TIER_PRICING="edited.json")  # a question: pushes nothing
    assert pulled.status == 0
    assert read_model(pulled.out) == read_model(PRICING)
    tiers = json.loads(pulled.out, parse_float=Decimal)["plans"]["plan:free@1"]["features"]["feature:convert"]["tiers"]
    assert tiers == [{"upto": 3, "price": Decimal("0.000000000001")}]
    (tmp_path / "pulled.json").write_text(pulled.out)
    assert cli(tmp_path, "push", "pulled.json").out == "plan:free@1  unchanged\nplan:pro@1   unchanged\n"


def test_dry_run_names_every_difference_and_stores_nothing(shop: Path) -> None:
    tiers = f'{PLAN}.features["feature:convert"].tiers[0]'
    said = cli(shop, "push", "edited.json", "--dry-run", COLUMNS="20")
    assert said.status == 1
    assert said.out.splitlines() == [
        f"plan:free@1  conflict  {tiers}.upto: stored with 3, pushed with 4",
        f"plan:free@1  conflict  {tiers}.price: stored with 0.000000000001, pushed with 123456789012345.000000000001",
        f'plan:free@1  conflict  {PLAN}.features["feature:new"]: stored with nothing, pushed with {{"base": 5}}',
        "plan:pro@1   unchanged",
    ]
    assert said.err.startswith("error: plan:free@1: ")
    assert said.err.endswith("raise the version\n")
    assert said.err.count("\n") == 1

    conflict, other = cli(shop, "push", "edited.json", "--dry-run", "--json").json["plans"]
    assert conflict == {
        "plan": "plan:free@1",
        "status": "conflict",
        "differences": [
            {"path": f"{tiers}.upto", "kind": "changed", "before": 3, "after": 4},
            {"path": f"{tiers}.price", "kind": "changed", "before": 1e-12, "after": "123456789012345.000000000001"},
            {"path": f'{PLAN}.features["feature:new"]', "kind": "new", "before": None, "after": {"base": 5}},
        ],
    }
    assert other == {"plan": "plan:pro@1", "status": "unchanged", "differences": []}


# ---- orgs -----------------------------------------------------------------------------------------------------------


def test_limits(shop: Path) -> None:
    free = cli(shop, "--json", "limits", "org:limits").json
    (usage,) = free["usage"]
    resets_at = usage.pop("resets_at")
    assert resets_at.endswith("Z")
    assert free["org"] == "org:limits"
    assert usage == {"feature": "feature:convert", "used": 2, "limit": 3, "remaining": 1, "reserved": 0}

    table = cli(shop, "limits", "org:limits", COLUMNS="20").out.splitlines()
    assert [line.split() for line in table] == [
        ["feature", "used", "limit", "remaining", "resets", "at", "(UTC)"],
        ["feature:convert", "2", "3", "1", resets_at],
    ]
    pro = [line.split() for line in cli(shop, "limits", "org:pro").out.splitlines()]
    assert pro[1][:4] == ["feature:api", "0", "unlimited", "unlimited"]
    assert pro[3] == ["feature:sso", "1", "unlimited", "unlimited", "-"]


def test_can(shop: Path) -> None:
    url = f"sqlite:///{shop / 'tier.db'}"
    yes = cli(shop, "can", "org:pro", "feature:convert", "7")
    assert yes == Done(0, "yes: org:pro may use 7 of feature:convert (0 of 100 used, 100 remaining)\n", "")
    no = cli(shop, "can", "org:can", "feature:convert", "--json", "--base-url", url)
    assert (no.status, no.err) == (3, "")
    assert no.json == {
        "n": 1,
        "ok": False,
        "org": "org:can",
        "feature": "feature:convert",
        "used": 3,
        "limit": 3,
        "remaining": 0,
        "reason": "limit_reached",
    }
    misspelt = cli(shop, "can", "org:can", "feature:convrt")
    assert misspelt.status == 3
    assert misspelt.out.startswith("no: org:can has not got feature:convrt (no_entitlement)")
    assert misspelt.out.endswith("did you mean feature:convert?\n")


def test_names_are_neither_markup_nor_escape_codes(shop: Path) -> None:
    done = cli(shop, "can", "org:[red]x[/]\x1b[31m\n", "feature:convert", PYTHONIOENCODING="ascii")
    assert done.status == 3
    assert done.out.startswith("no: org:[red]x[/]\\x1b[31m\\n has not got feature:convert")
    assert done.out.count("\n") == 1


def test_report_and_subscribe(shop: Path) -> None:
    args = ("report", "org:report", "feature:convert", "2", "--key", "job-1")
    counted = Done(0, "reported 2 of feature:convert for org:report; now 2 used, a limit of 3\n", "")
    assert [cli(shop, *args), cli(shop, *args)] == [counted, counted]  # one key counts once

    moved = cli(shop, "subscribe", "org:report", "plan:pro@1")
    assert moved == Done(0, "org:report is on plan:pro@1\n", "")
    mixed = ("plan:free@1", "feature:api@plan:pro@1")
    assert cli(shop, "subscribe", "org:new", *mixed, "--json").json == {"org": "org:new", "features": [*mixed]}
    assert cli(shop, "cancel", "org:new").out == "org:new is cancelled\n"
    assert cli(shop, "can", "org:new", "feature:convert").status == 3
    nobody = cli(shop, "cancel", "org:nobody")
    assert (nobody.status, nobody.err.count("\n")) == (1, 1)

    with Tier(f"sqlite:///{shop / 'tier.db'}") as tier:
        phase = tier.lookup_phase("org:report")
        assert phase is not None
        assert phase.plans == ("plan:pro@1",)
        at = phase.effective.isoformat()
    clobbered = cli(shop, *args[:3], "9", "--clobber", "--at", at, "--json").json
    assert clobbered["usage"].pop("resets_at").endswith("Z")
    assert clobbered == {
        "org": "org:report",
        "feature": "feature:convert",
        "n": 9,
        "at": at.replace("+00:00", "Z").replace("000Z", "Z"),
        "clobber": True,
        "key": None,
        "usage": {"feature": "feature:convert", "used": 9, "limit": 100, "remaining": 91, "reserved": 0},
    }


# ---- doctor ---------------------------------------------------------------------------------------------------------


def doctor(folder: Path, **variables: str) -> tuple[int, dict[str, tuple[str, str]]]:
    done = cli(folder, "doctor", "--json", **variables)
    checks = {check["check"]: (check["status"], check["detail"]) for check in done.json["checks"]}
    assert done.json["ok"] is (done.status == 0)
    return done.status, checks


def test_doctor_of_a_shop_that_is_well(shop: Path) -> None:
    done = cli(shop, "doctor", TIER_API_KEY="s3cret", TIER_DEFAULT_PLAN="plan:free@1", TIER_BASEURL="x")
    assert (done.status, done.err) == (0, "")
    lines = {tuple(line.split(None, 2)[:2]) for line in done.out.splitlines()}
    assert {("ok", name) for name in ("python", "package", "folder", "database", "schema", "opens")} <= lines
    assert "s3cret" not in done.out
    assert "TIER_API_KEY is set, TIER_DEFAULT_PLAN=plan:free@1\n" in done.out
    assert "warn  environment    TIER_BASEURL is not read; did you mean TIER_BASE_URL?\n" in done.out
    assert f"ok    database       {shop / 'tier.db'}\n" in done.out
    assert "ok    journal mode   wal\n" in done.out
    assert "ok    pricing model  2 plans stored\n" in done.out


def test_doctor_creates_nothing(tmp_path: Path) -> None:
    status, checks = doctor(tmp_path)
    assert status == 0
    assert checks["database"] == (
        "warn",
        f"{tmp_path / 'tier.db'} does not exist yet; the first start, or a push, creates it",
    )
    assert checks["pricing model"][0] == "warn"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "check", "detail"),
    [
        ({"TIER_BASE_URL": "ftp://x"}, "settings", "must begin with 'sqlite:///'"),
        ({"TIER_BASE_URL": "sqlite:///no/where/t.db"}, "folder", "does not exist"),
        ({"TIER_BASE_URL": "sqlite:///pricing.json"}, "database", "file is not a database"),
        ({"TIER_BASE_URL": "sqlite:////tmp"}, "database", "is a folder"),
        ({"TIER_DEFAULT_PLAN": "plan:fre@1"}, "default plan", "did you mean 'plan:free@1'?"),
        ({"TIER_PRICING": "typo.json"}, "TIER_PRICING", "unknown field"),
        ({"TIER_PRICING": "edited.json"}, "TIER_PRICING", "raise the version"),
    ],
)
def test_doctor_finds(variables: dict[str, str], check: str, detail: str, shop: Path) -> None:
    status, checks = doctor(shop, **variables)
    assert status == 1
    assert checks[check][0] == "fail"
    assert detail in checks[check][1]


def test_doctor_knows_the_extras_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == {name for name in declared if not name.startswith("test")}


# ---- the process ----------------------------------------------------------------------------------------------------


def test_version_and_help(tmp_path: Path) -> None:
    version = cli(tmp_path, "--version", module="tier_middleware")
    assert version == Done(0, f"tier-middleware {tier_middleware.__version__}\n", "")
    shown = cli(tmp_path, "--help").out
    commands = ("push", "pull", "limits", "can", "report", "subscribe", "cancel", "doctor", "demo")
    assert all(f" {command} " in shown for command in commands)


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_line_says_what_to_install(missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from tier_middleware.cli import main; sys.exit(main())"
    done = python(tmp_path, "-c", code)
    assert (done.status, done.out) == (1, "")
    assert 'pip install "tier-middleware[cli]"' in done.err
    assert done.err.count("\n") == 1


DEMO = """
import sys, types
demo = types.ModuleType("tier_middleware.demo")
def main(keep, port, django):
    {body}
demo.main = main
sys.modules["tier_middleware.demo"] = demo
from tier_middleware.cli.app import run
sys.exit(run(["demo", "--keep", "--port", "8123", "--django"]))
"""


def test_demo_gets_its_options(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", DEMO.format(body="print(keep, port, django); return 4"))
    assert (done.status, done.out) == (4, "True 8123 True\n")


def test_demo_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    done = python(tmp_path, "-c", DEMO.format(body="sys.modules['uvicorn'] = None; import uvicorn"))
    assert done.status == 1
    assert 'pip install "tier-middleware[demo]"' in done.err
    assert done.err.count("\n") == 1


def test_full_disk_is_one_line(shop: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "tier_middleware.cli", "pull"]
        done = subprocess.run(command, cwd=shop, env=environment(), stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"error: [Errno 28] No space left on device\n")


def test_interrupt_is_quiet(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pricing.json")
    # a shell that runs the tests in the background has them ignore interrupts, and their children inherit that
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from tier_middleware.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "push", "pricing.json"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        with open(tmp_path / "pricing.json", "w"):  # waits until the command reads
            # one that comes just before the read begins is seen only once that returns, which is why people press again
            for _ in range(30):
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
                break
            else:
                process.kill()
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (130, b"", b"")


# ---- export and import ----------------------------------------------------------------------------------------------


def used(folder: Path, url: str) -> Any:
    return cli(folder, "limits", "org:limits", "--json", TIER_BASE_URL=url).json["usage"][0]["used"]


def test_an_export_is_imported_elsewhere_and_exported_to_the_same_bytes(shop: Path) -> None:
    done = cli(shop, "export", "all.jsonl")
    lines = (shop / "all.jsonl").read_bytes()
    count = lines.count(b"\n")
    assert (done.status, done.err, done.out) == (0, "", f"exported {count} lines to all.jsonl\n")
    assert cli(shop, "export", "all.jsonl", "--json").json == {"lines": count}  # again: it is replaced
    assert cli(shop, "export").out.encode() == lines
    other = {"TIER_BASE_URL": "sqlite:///other.db", "TIER_PRICING": "not-there.json"}
    done = cli(shop, "import", "all.jsonl", **other)
    assert (done.status, done.err, done.out) == (0, "", f"imported {count} lines from all.jsonl\n")
    assert cli(shop, "export", "-", **other).out.encode() == lines
    assert used(shop, "sqlite:///other.db") == 2
    refused = cli(shop, "import", "all.jsonl", **other)
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("error: line 4: org: 'org:can' is here already")
    assert cli(shop, "import", "all.jsonl", "--replace", "--json", **other).json == {"lines": count}
    assert cli(shop, "import", "all.jsonl", TIER_BASE_URL="memory://").status == 0  # only checked
    assert not list(shop.glob("*.unfinished")) + list(shop.glob(".*"))


def test_an_import_from_a_pipe(shop: Path) -> None:
    command = f"{sys.executable} -m tier_middleware.cli"
    piped = f"{command} export - | {command} --base-url sqlite:///piped.db import -"
    done = subprocess.run(piped, shell=True, cwd=shop, env=environment(), capture_output=True, timeout=60, check=True)
    assert done.stderr == b""
    assert done.stdout.decode().endswith(" lines from -\n")
    assert used(shop, "sqlite:///piped.db") == 2


def test_a_bar_shows_on_a_terminal_only(shop: Path) -> None:
    terminal, of_process = os.openpty()
    command = [sys.executable, "-m", "tier_middleware.cli", "export", "-"]
    variables = environment(TERM="xterm")
    done = subprocess.run(
        command, cwd=shop, env=variables, stdout=subprocess.PIPE, stderr=of_process, timeout=60, check=True
    )
    os.close(of_process)
    shown = os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert "exporting" in shown
    assert "100%" in shown
    assert done.stdout.decode() == cli(shop, "export").out


def test_mistakes_of_an_import_are_one_line(shop: Path) -> None:
    (shop / "bad.jsonl").write_text('{"type":"tier_middleware","format":1,"lines":2}\n{"type":"org","org":7}\n')
    for args, said in (
        (("import", "bad.jsonl"), "error: line 2: org: Expected `str`, got `int`, got 7\n"),
        (("import", "missing.jsonl"), "error: file: cannot be read (No such file or directory), got 'missing.jsonl'\n"),
        (("import", "."), "error: file: cannot be read (Is a directory), got '.'\n"),
        (("import", "pricing.json"), "error: line 1: "),
        (("export", "no/such/folder"), "error: file: cannot be written (No such file or directory), got 'no/such/fol"),
        (("--base-url", "sqlite:///none.db", "export"), "error: TIER_BASE_URL: there is no database"),
    ):
        done = cli(shop, *args)
        assert (done.status, done.out) == (1, ""), args
        assert done.err.startswith(said), done.err
        assert done.err.count("\n") == 1
    assert not (shop / "none.db").exists()


def test_an_export_never_replaces_a_database(shop: Path) -> None:
    before = cli(shop, "export").out
    with Tier(f"sqlite:///{shop / 'elsewhere.db'}", pricing=PRICING):
        pass
    (shop / "linked.db").symlink_to("tier.db")
    with Tier(f"sqlite:///{shop / 'tier.db'}") as tier:
        tier.whoami()  # which makes the files beside it
        for file, said in (
            ("tier.db", "is the database that is exported"),
            ("linked.db", "is the database that is exported"),
            (f"../{shop.name}/tier.db-wal", "is the database that is exported"),
            ("tier.db-shm", "is the database that is exported"),
            ("elsewhere.db", "is a database, which an export would replace"),
        ):
            done = cli(shop, "export", file)
            assert (done.status, done.out, done.err) == (1, "", f"error: file: {said}, got {file!r}\n")
    assert cli(shop, "export").out == before
    (shop / "linked.db").unlink()


ENDLESS = """
import sys
from itertools import repeat
from tier_middleware import Tier
Tier.export = lambda self: repeat(b'{}\\n')
from tier_middleware.cli import main
sys.exit(main())
"""


def test_an_export_that_is_told_to_end_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    target = tmp_path / "all.jsonl"
    target.write_text("the one before")
    command = [sys.executable, "-c", ENDLESS, "export", str(target)]
    with subprocess.Popen(command, cwd=shop, env=environment(), stdout=-1, stderr=-1) as process:
        while not list(tmp_path.glob(".*.unfinished")):
            assert process.poll() is None
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (143, b"", b"")
    assert [file.name for file in tmp_path.iterdir()] == ["all.jsonl"]
    assert target.read_text() == "the one before"


def test_a_full_disk_leaves_no_half_export(shop: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs a disk that is full")
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "tier_middleware.cli", "export", "-"]
        done = subprocess.run(
            command, cwd=shop, env=environment(), stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
    assert b"Traceback" not in done.stderr
