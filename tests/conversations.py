"""The recorded conversations with the real Tier server, and how its answers are compared with ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = Path(__file__).parent / "vectors"
UNORDERED: Final = ("usage", "results", "features", "plans", "fragments")
ZERO_TIME: Final = "0001-01-01T00:00:00Z"  # Go's "no time"

Step = tuple[str, int]


class Reply(NamedTuple):
    """An answer as it is compared: of an error, the code."""

    status: int
    body: Any


def steps_of(vector: str) -> list[Any]:
    steps: list[Any] = json.loads((FOLDER / f"{vector}.json").read_text())["steps"]
    return steps


def recorded(step: Mapping[str, Any]) -> Reply:
    """What the real server answered, in the form that is compared."""
    status, body = step["response"]["status"], step["response"]["body"]
    return Reply(status, comparable(body) if status == 200 else body["code"])


def comparable(body: Any) -> Any:
    """Without what differs by nature: the ids that Stripe gives, where its clocks are shown, and what has no order."""
    if not isinstance(body, dict):
        return body
    kept = {name: comparable(value) for name, value in body.items() if name != "link"}
    kept |= {name: "an id" for name in ("stripe_id",) if name in kept}
    kept |= {name: in_order(kept[name]) for name in UNORDERED if isinstance(kept.get(name), list)}
    if kept.get("phases"):
        kept["phases"] = [comparable(phase) for phase in kept["phases"]]  # their order is that of time
    return kept


def in_order(entries: list[Any]) -> list[Any]:
    return sorted(entries, key=lambda entry: json.dumps(entry, sort_keys=True))


# ---- answers that differ ---------------------------------------------------------------------------------------------


def used(feature: str, used: int) -> Callable[[Any], Any]:
    """The recorded limits with another usage: what was counted before in another way shows here."""

    def changed(body: Any) -> Any:
        (entry,) = (entry for entry in body["usage"] if entry["feature"] == feature)
        entry["used"] = used
        return body

    return changed


def once(*pairs: tuple[str, int]) -> Callable[[Any], Any]:
    """One entry a feature: of several, the one with the largest limit; and what is used of some."""

    def changed(body: Any) -> Any:
        by_limit = sorted(body["usage"], key=lambda entry: entry["limit"])
        body["usage"] = by_feature = {entry["feature"]: entry for entry in by_limit}
        for feature, used in pairs:
            by_feature[feature]["used"] = used
        body["usage"] = in_order(list(by_feature.values()))
        return body

    return changed


def without_plans(*names: str) -> Callable[[Any], Any]:
    def changed(body: Any) -> Any:
        for name in names:
            del body["plans"][name]
        return body

    return changed


def with_(path: str, value: Any) -> Callable[[Any], Any]:
    def changed(body: Any) -> Any:
        *outer, last = path.split(".")
        inner = body
        for name in outer:
            inner = inner[name]
        assert last in inner, path
        inner[last] = value
        return body

    return changed
