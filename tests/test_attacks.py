"""What comes from outside: names that would forge a log, texts that would take for ever, sizes without end."""

from __future__ import annotations

import ast
import json
import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import tier_middleware
from tier_middleware import EngineUnavailable, InvalidRequest, Tier, TierError, wire

CALLS = "feature:calls"
MODEL: dict[str, Any] = {"plans": {"plan:free@1": {"features": {CALLS: {"tiers": [{"upto": 3}]}}}}}
ROOT = Path(tier_middleware.__file__).parent

FORGERIES = [
    "a\nERROR tier: usage lost",
    "a\r\nERROR",
    "a\x1b[2Jb",
    "a\u2028ERROR",
    "a\x85ERROR",
    "a\x00b",
    "a\u202eb",  # writes from right to left from here on
]


# ---- logs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, logger="tier_middleware"):
        yield caplog


@pytest.mark.parametrize("name", FORGERIES)
def test_a_name_makes_no_line_of_a_log(name: str, lines: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Every call with a hostile org, feature, key or note, on an engine that works and on one that is lost."""
    path = tmp_path / "tier.db"
    with Tier(f"sqlite:///{path}", pricing=MODEL, default_plan="plan:free@1", on_error="deny") as tier:
        errors = list(called(tier, name))
        with tier.reserve(f"org:late {name}", CALLS):
            path.rename(path.with_name("gone.db"))  # so it is lost, and said to be
            path.write_bytes(b"another file")
            tier.core.engine.close()
        errors += called(tier, name)
    assert any("usage lost" in record.getMessage() for record in lines.records)
    assert len(errors) > 10
    for text in [*map(str, errors), *(record.getMessage() for record in lines.records)]:
        assert text.isprintable(), repr(text)


def called(tier: Tier, name: str) -> Iterator[TierError]:
    calls = [
        lambda: tier.report(f"org:{name}", CALLS, key=name, note=name),
        lambda: tier.report("org:acme", f"feature:{name}"),
        lambda: tier.report("org:acme", CALLS, key=name),
        lambda: tier.report("org:globex", CALLS, key=name),
        lambda: tier.adjust(f"org:{name}", CALLS, -1, note=name),
        lambda: tier.adjust(f"org:no {name}", CALLS, -1, note=name),
        lambda: tier.can(name, CALLS),
        lambda: tier.can(f"org:{name}", name),
        lambda: tier.lookup_limits(f"org:unknown {name}"),
        lambda: tier.subscribe(f"org:{name}", f"plan:{name}@1"),
        lambda: tier.subscribe(name, "plan:free@1"),
        lambda: tier.cancel(f"org:unknown {name}"),
        lambda: tier.update_org(f"org:{name}", {"email": name}),
        lambda: tier.push({"plans": {f"plan:{name}@1": {"features": {}}}}),
        lambda: tier.push({"plans": {"plan:x@1": {name: name, "features": {f"feature:{name}": {}}}}}),
        lambda: tier.on_clock(name),
        lambda: list(reserved(tier, f"org:{name}")),
    ]
    for call in calls:
        try:
            call()
        except TierError as error:
            yield error


def reserved(tier: Tier, org: str) -> Iterator[None]:
    for _ in range(4):
        with tier.reserve(org, CALLS):
            yield


def test_an_error_keeps_what_was_said_as_it_was() -> None:
    error = EngineUnavailable("a\nb\x1bé")
    assert (error.message, str(error)) == ("a\nb\x1bé", "a\\nb\\x1bé")


def test_what_a_server_says_makes_no_line_of_a_log_either() -> None:
    said = json.dumps({"status": 400, "code": "org_not_found", "message": "no org\nERROR tier: usage lost"}).encode()
    request = wire.Request("GET", "/v1/limits", org="org:acme")
    error = wire.error_in(request, wire.Response(400, said, {}))
    assert "no org\\nERROR" in str(error)
    assert str(error).isprintable()


# ---- sizes -----------------------------------------------------------------------------------------------------------

ENDLESS = 2_000_000


@pytest.mark.parametrize("prefix", ["", "org:", "feature:", "plan:", "plan:x@", "clock_"])
def test_no_name_is_too_long_to_be_refused_in_a_few_words(prefix: str, tmp_path: Path) -> None:
    name = prefix + "x" * ENDLESS
    with Tier(f"sqlite:///{tmp_path}/tier.db", pricing=MODEL, default_plan="plan:free@1") as tier:
        refused = [
            lambda: tier.can(name, CALLS),
            lambda: tier.can("org:acme", name),
            lambda: tier.can(f"org:{name}", CALLS),
            lambda: tier.report("org:acme", CALLS, key=name),
            lambda: tier.report("org:acme", CALLS, note=name),
            lambda: tier.adjust("org:acme", CALLS, 1, note=name),
            lambda: tier.subscribe("org:acme", name),
            lambda: tier.update_org("org:acme", {"email": name}),
            lambda: tier.update_org("org:acme", {"metadata": {name: "x"}}),
            lambda: tier.update_org("org:acme", {"metadata": {str(n): "x" for n in range(ENDLESS // 1000)}}),
            lambda: tier.push({"plans": {name: {"features": {}}}}),
            lambda: tier.push({"plans": {"plan:x@1": {"title": name, "features": {}}}}),
            lambda: tier.push({"plans": {"plan:x@1": {name: 1, "features": {}}}}),
            lambda: tier.push('{"plans": {"' + name + '": {}}}'),
            lambda: tier.on_clock(name),
            lambda: tier.with_clock(name, datetime(2026, 1, 1, tzinfo=UTC)),
        ]
        for call in refused:
            with pytest.raises(TierError) as caught:
                call()
            assert len(str(caught.value)) < 2_500, str(caught.value)[:200]
        assert (tmp_path / "tier.db-wal").stat().st_size < ENDLESS  # nothing of it is stored


AMOUNTS = {
    "2**63": 2**63, "5000 digits": 10**5000, "and less than 0": -(10**5000), "1e300": 1e300, "nan": float("nan"),
    "a text": "9" * 5000, "True": True, "None": None, "a list": [1] * ENDLESS,
}  # fmt: skip


@pytest.mark.parametrize("n", AMOUNTS.values(), ids=AMOUNTS)
def test_no_amount_is_too_large_to_be_refused(n: Any) -> None:
    with Tier("memory://", pricing=MODEL, default_plan="plan:free@1") as tier:
        for call in (tier.can, tier.report, tier.adjust):
            with pytest.raises(InvalidRequest) as caught:
                call("org:acme", CALLS, n)
            assert len(str(caught.value)) < 300
        with pytest.raises(InvalidRequest), tier.reserve("org:acme", CALLS, n):
            pass
        assert tier.can("org:acme", CALLS).used == 0


# ---- texts that would take for ever ----------------------------------------------------------------------------------

# Of what the package's expressions repeat, so that they look for its end again and again, if they ever do.
REPEATED = [
    "a", "a:", ":", "1", "-", " ", "@", "a@", "<", "<a", "<a:", "/", "//", "//a", "?a", "?a=", "&a=", "/*", "*", "*/",
    '"', '\\', '"\\', '\\"', "[", "{", ",", ", ", "`", ".", "a.", "[0]", "\n", "é", "1-", "1:", "1,",
    "<string>:1 ", "Expected `", " - at `", "`, got `", "Object missing required field `", "A ", "feature:a", "plan:a@",
]  # fmt: skip
BEGINNINGS = ["", "feature:", "plan:a@", '"', "/*", "[", "Expected `", "1-1:1:", "A "]
ENDS = ["", "\x00", "`"]
SHORT, LONG = 2_000, 8_000
UNNOTICED_SECONDS = 0.03  # what is linear takes a hundredth of that; what is not, a second and more


def expressions() -> dict[str, tuple[re.Pattern[Any], set[str]]]:
    """Every regular expression of the package, and the methods that are called on it."""
    sources = {path: ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
    calls = [(path, node) for path, tree in sources.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    methods = {
        (node.func.value.id, node.func.attr)
        for _, node in calls
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    names = {
        id(node.value): node.targets[0] if isinstance(node, ast.Assign) else node.target
        for tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
    }
    found = {}
    for path, node in calls:
        if ast.unparse(node.func) in {f"re.{method}" for method in ("compile", *METHODS)}:
            flags = re.DOTALL if "re.DOTALL" in ast.unparse(node) else 0
            name = names.get(id(node))
            is_kept = ast.unparse(node.func) == "re.compile" and name is not None
            called = {m for owner, m in methods if owner == ast.unparse(name)} if is_kept else {node.func.attr}
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            found[where] = re.compile(ast.literal_eval(node.args[0]), flags), called & set(METHODS)
    return found


METHODS = {
    "match": lambda pattern, text: pattern.match(text),
    "fullmatch": lambda pattern, text: pattern.fullmatch(text),
    "search": lambda pattern, text: pattern.search(text),
    "findall": lambda pattern, text: pattern.findall(text),
    "finditer": lambda pattern, text: list(pattern.finditer(text)),
    "sub": lambda pattern, text: pattern.sub(text[:0], text),
    "split": lambda pattern, text: pattern.split(text),
}
EXPRESSIONS = expressions()


def test_every_expression_is_found_and_used() -> None:
    assert len(EXPRESSIONS) > 25
    assert not [where for where, (_, methods) in EXPRESSIONS.items() if not methods]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_no_expression_is_quadratic(where: str) -> None:
    pattern, methods = EXPRESSIONS[where]
    for method in sorted(methods):
        for parts in product(BEGINNINGS, REPEATED, ENDS):
            if seconds_for(pattern, method, parts, LONG) > UNNOTICED_SECONDS:  # or the machine was busy elsewhere
                short = min(seconds_for(pattern, method, parts, SHORT) for _ in range(3))
                long = min(seconds_for(pattern, method, parts, LONG) for _ in range(3))
                assert long < 8 * short or long < UNNOTICED_SECONDS, (pattern.pattern, method, parts, short, long)


def seconds_for(pattern: re.Pattern[Any], method: str, parts: tuple[str, str, str], length: int) -> float:
    beginning, repeated, end = parts
    text: Any = beginning + repeated * (length // len(repeated)) + end
    text = text.encode() if isinstance(pattern.pattern, bytes) else text
    began = time.perf_counter()
    METHODS[method](pattern, text)
    return time.perf_counter() - began
