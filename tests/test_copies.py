"""What callers are given goes through pools, queues and caches: it is pickled, copied and written as JSON."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest

from tier_middleware import NO_ORG, UNMETERED, Tier, errors
from tier_middleware.errors import Refused, TierError, UsageLost
from tier_middleware.model import Model
from tier_middleware.orginfo import OrgInfo
from tier_middleware.read_only import ReadOnlyDict
from tier_middleware.tally import Report

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MODEL = {"plans": {"plan:free@1": {"features": {"feature:x": {"tiers": [{"upto": 3, "price": 2}]}}}}}
WAYS = {"pickled": lambda value: pickle.loads(pickle.dumps(value)), "copied": copy.copy, "deeply": copy.deepcopy}


def made(kind: type[TierError]) -> TierError:
    if issubclass(kind, Refused):
        return kind("no more", org="org:acme", feature="feature:x", requested=2, used=3, limit=3, resets_at=NOON)
    if kind is UsageLost:
        return UsageLost("lost", reports=[Report("org:acme", "feature:x", 1, NOON, "a-key")], reason="capped")
    return kind("wrong", status=418, code="a_code", path="field", response_data={"message": "no"})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", errors.__all__)
def test_errors(name: str, way: str) -> None:
    error = made(getattr(errors, name))
    error.add_note("a note")
    again = WAYS[way](error)
    assert type(again) is type(error)
    assert (vars(again), again.args, str(again)) == (vars(error), error.args, str(error))


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    with Tier("memory://", pricing=MODEL, clock=lambda: NOON) as tier:
        tier.subscribe("org:acme", "plan:free@1", info={"email": "ann@acme.example", "metadata": {"seat": "7"}})
        tier.report("org:acme", "feature:x", 2)
        return {
            "usage": tier.lookup_limit("org:acme", "feature:x"),
            "limits": tier.lookup_limits("org:acme"),
            "phases": tier.lookup_phases("org:acme"),
            "phase": tier.lookup_phase("org:acme"),
            "details": tier.lookup_org("org:acme"),
            "history": tier.history("org:acme", "feature:x"),
            "methods": tier.lookup_payment_methods("org:acme"),
            "whois": tier.whois("org:acme"),
            "whoami": tier.whoami(),
            "model": tier.pull(),
            "push": tier.push({"plans": {"plan:pro@1": MODEL["plans"]["plan:free@1"]}}),
        }


NAMES = ("usage", "limits", "phases", "phase", "details", "history", "methods", "whois", "whoami", "model", "push")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_values(values: dict[str, Any], name: str, way: str) -> None:
    assert WAYS[way](values[name]) == values[name]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mark", [NO_ORG, UNMETERED], ids=repr)
def test_marks_stay_themselves(mark: Any, way: str) -> None:
    assert WAYS[way](mark) is mark


def test_info_is_a_dict_and_its_metadata_json(values: dict[str, Any]) -> None:
    assert asdict(values["details"])["metadata"] == {"seat": "7"}
    assert json.dumps(values["details"].metadata) == '{"seat": "7"}'
    assert asdict(values["model"])["plans"]["plan:free@1"]["features"]["feature:x"]["tiers"][0]["upto"] == 3


CHANGES: dict[str, Callable[[Any], Any]] = {
    "set": lambda found: found.__setitem__("a", 1),
    "delete": lambda found: found.__delitem__("a"),
    "clear": lambda found: found.clear(),
    "pop": lambda found: found.pop("a"),
    "popitem": lambda found: found.popitem(),
    "setdefault": lambda found: found.setdefault("b", 1),
    "update": lambda found: found.update(b=1),
    "merge": lambda found: found.__ior__({"b": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", [*WAYS, "made"])
def test_what_is_read_only_stays_as_it_was_made(change: str, way: str) -> None:
    found = WAYS.get(way, lambda value: value)(ReadOnlyDict({"a": 0}))
    with pytest.raises(TypeError, match="read-only"):
        CHANGES[change](found)
    assert found == {"a": 0}


def test_the_defaults_are_read_only() -> None:
    for found in (OrgInfo().metadata, Model().plans):
        assert type(found) is ReadOnlyDict
