"""Arrows point down only, third parties are confined, and nothing is kept where it could be mixed up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tier_middleware

ROOT = Path(tier_middleware.__file__).parent

# From the bottom up: a module imports from its own row, or from rows before it. A folder stands for its files.
LAYERS = [
    {"names", "errors", "clock", "read_only", "decoders"},
    {"exact_json", "differences", "model"},
    {"policy", "pricing", "prices", "price_text", "schedules", "orginfo", "ledger"},
    {"ops", "flow", "transfer", "transfer_checks", "wire", "calls", "wire_types", "extension"},
    {"forks", "reporting", "engines"},
    {"drive"},
    {"settings", "engine_urls", "answers", "operations", "tally"},
    {"keeper", "backup", "core", "clocked", "client"},
    {
        "requirement",
        "gate_options",
        "refusal",
        "idempotency",
        "detached",
        "feature_usage",
        "context",
        "gate",
        "untrusted",
    },
    {"asgi", "fastapi", "django", "server", "cli", "__main__", "testing", "demo", "examples"},
]
ROW = {name: row for row, names in enumerate(LAYERS) for name in names}

CONFINED = {
    "starlette": {"asgi", "fastapi", "server", "testing"},
    "fastapi": {"fastapi", "testing"},
    "django": {"django"},
    "rest_framework": {"django"},
    "httpx": {"engines", "demo", "testing"},
    "redis": {"redis"},
    "typer": {"cli", "demo"},
    "rich": {"cli", "demo"},
    "jinja2": {"server"},
    "markupsafe": {"server"},
    "uvicorn": {"demo", "server", "testing"},
    "anyio": {"drive", "engines", "server", "testing"},
    "pytest": {"testing"},
    "sqlite3": {"engines", "reporting", "cli", "testing", "demo", "django"},  # there for its error codes
    "slowapi": {"testing"},
    "tenacity": {"reporting"},
}
ANYWHERE = {"msgspec"}  # values that are made for every request
FORBIDDEN = {"contextvars", "asgiref.local"}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part_of(path: Path) -> str:
    """The module at the top of the package that a file belongs to; "" for the package itself."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py").replace("__init__", "")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all that a file imports, at the top or inside a function."""
    package = ["tier_middleware", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def inner(name: str) -> str | None:
    """The part of our package that a name is of; None for other packages."""
    words = name.split(".")
    if words[0] != "tier_middleware":
        return None
    return words[1] if len(words) > 1 and words[1] in ROW else ""


def test_every_module_has_its_row() -> None:
    assert {part_of(path) for path in files()} - {""} <= set(ROW)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    part = part_of(path)
    if not part:  # the root only hands on
        return
    for name, line in imports(path):
        other = inner(name)
        if other == "":  # of the root, only faces may take the process's own client and the version
            assert ROW[part] == len(LAYERS) - 1, f"{path.name}:{line} imports {name}"
        elif other is not None:
            assert ROW[other] <= ROW[part], f"{path.name}:{line}: {part} is below {other} ({name})"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_third_parties_are_confined(path: Path) -> None:
    for name, line in imports(path):
        package = name.partition(".")[0]
        allowed = CONFINED.get(package)
        assert allowed is None or part_of(path) in allowed, f"{path.name}:{line} imports {package}"
        assert not any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN), f"{path.name}:{line}: {name}"


def source_of(module: str) -> Path | None:
    """The file of one of our modules; None for others."""
    first, *words = module.split(".")
    inside = ROOT.joinpath(*words)
    found = [path for path in (inside.with_suffix(".py"), inside / "__init__.py") if path.is_file()]
    return found[0] if first == "tier_middleware" and found else None


def offered_by(path: Path) -> set[str]:
    """A module's ``__all__``."""
    for node in parsed(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_taken_of_a_module_is_what_it_offers(path: Path) -> None:
    for name, line in imports(path):
        module, _, taken = name.rpartition(".")
        source = source_of(module)
        if source is not None and source_of(name) is None and not taken.startswith("__"):
            assert taken in offered_by(source), f"{path.name}:{line}: {taken} is not in __all__ of {module}"


def test_rest_framework_is_in_one_file_of_its_face() -> None:
    users = {path.name for path in files() if any(name.startswith("rest_framework") for name, _ in imports(path))}
    assert users <= {"drf.py"}


def test_httpx_and_the_retries_are_in_one_file_each() -> None:
    for package, file in (("httpx", "transport.py"), ("tenacity", "backoff.py")):
        ours = [path for path in files() if part_of(path) != "demo"]  # which is a client like any other
        assert {path.name for path in ours if any(n.partition(".")[0] == package for n, _ in imports(path))} == {file}


def test_the_pure_layers_import_nothing_that_does() -> None:
    """Domain and decisions have no I/O: no threads, no loops, no files, no sockets."""
    effects = {
        "asyncio",
        "threading",
        "socket",
        "subprocess",
        "sqlite3",
        "time",
        "random",
        "anyio",
        "logging",
        "select",
    }
    pure = set().union(*LAYERS[:4]) - {"clock", "decoders"}  # the lock of the latter is all that it is about
    for path in files():
        if part_of(path) in pure:
            found = {name.partition(".")[0] for name, _ in imports(path)} & effects
            assert not found, f"{path.name} imports {found}"


def test_faces_do_not_import_each_other_but_fastapi_extends_asgi() -> None:
    allowed = {
        ("fastapi", "asgi"),
        ("asgi", "fastapi"),
        ("__main__", "cli"),
        ("cli", "demo"),
        ("demo", "cli"),
        ("django", "cli"),
        ("cli", "server"),
    }
    for path in files():
        part = part_of(path)
        if part in LAYERS[-1] - {"testing", "demo", "examples"}:
            for name, line in imports(path):
                other = inner(name)
                if other in LAYERS[-1] and other != part:
                    assert (part, other) in allowed, f"{path.name}:{line} imports {name}"


def test_asgi_imports_fastapi_only_when_a_generator_asks_for_it() -> None:
    for path in files():
        if part_of(path) == "asgi":
            top = parsed(path).body
            assert not [node for node in top if isinstance(node, ast.ImportFrom) and node.module == "fastapi"]


CLOCKS = {"time", "sleep", "monotonic", "time_ns", "perf_counter"}


def calls(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}", node.lineno


def test_time_is_asked_for_in_one_place() -> None:
    for path in files():
        part = part_of(path)
        if part in ("clock", "testing", "demo", "examples"):
            continue
        assert "time" not in {name.partition(".")[0] for name, _ in imports(path)}, path
        for name, line in calls(path):
            assert name not in ("datetime.now", "datetime.utcnow", "datetime.today", "date.today"), f"{path}:{line}"


def test_randomness_is_in_two_places() -> None:
    """Jitter in `drive`, ids in `operations`."""
    sources = {"random", "secrets", "uuid"}
    found = {
        part_of(path)
        for path in files()
        if {name.partition(".")[0] for name, _ in imports(path)} & sources
        and part_of(path) not in ("testing", "demo", "examples")
    }
    assert found <= {"drive", "operations", "names", "requirement"}  # the last two know the type UUID


def test_engines_know_no_driver() -> None:
    for path in files():
        if part_of(path) in ("engines", "reporting"):
            others = {inner(name) for name, _ in imports(path)}
            assert not others & {"drive", "operations", "tally", "core", "client", "settings", "flow"}, path


def test_this_test_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "names.py"
    bad.write_text("import time\nfrom .client import Tier\ndef late():\n    from contextvars import ContextVar\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [name for name, _ in imports(bad)] == ["time", "tier_middleware.client.Tier", "contextvars.ContextVar"]
    with pytest.raises(AssertionError, match="names is below client"):
        test_arrows_point_down(bad)
    with pytest.raises(AssertionError, match="ContextVar"):
        test_third_parties_are_confined(bad)
    (tmp_path / "client.py").write_text("class Tier: ...\n")
    with pytest.raises(AssertionError, match="Tier is not in __all__"):
        test_what_is_taken_of_a_module_is_what_it_offers(bad)
