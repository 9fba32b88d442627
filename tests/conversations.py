"""The recorded conversations with the real Tier server, how answers are compared with it, and where ours differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = Path(__file__).parent / "vectors"
UNORDERED: Final = ("usage", "results", "features", "plans", "fragments")
ZERO_TIME: Final = "0001-01-01T00:00:00Z"  # Go's "no time"

Step = tuple[str, int]  # the recording, and the number of the step in it


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


# ---- answers that differ: how ----------------------------------------------------------------------------------------


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


# ---- answers that differ: which, and why -----------------------------------------------------------------------------

# quoted from "What our server and engines do where the real one is wrong" in tier-protocol/README.md
NULL_LISTS: Final = "`null` for empty lists | `[]`"
MISTAKES: Final = (
    "500 for a client's mistake (wrong types, truncated JSON, negative `n`, `at` outside the period, [...] report "
    "without a subscription) | 400 with `invalid_request` (or the fitting code)"
)
CLOBBER: Final = "clobber replaces one second | clobber makes n the whole usage of the feature in the billing period"
TWO_PLANS: Final = "two plans with one feature: two entries | one entry, the larger limit"
# quoted from the design
ORGS: Final = "Orgs: any non-empty text after `org:`"
# quoted from the docstring of `Tier.lookup_payment_methods`
NO_PAYMENTS: Final = "The org's payment methods: none on an engine that takes no payments"

REASONS: Final = (NULL_LISTS, MISTAKES, CLOBBER, TWO_PLANS, ORGS, NO_PAYMENTS)

INVALID: Final = Reply(400, "invalid_request")
NO_FEATURE: Final = Reply(400, "feature_not_found")
DONE: Final = Reply(200, {})
CALLS: Final = "feature:calls"

Differences = Mapping[Step, tuple[str, Reply | Callable[[Any], Any]]]
"""Why, and what ours answers: a function of the recorded body, or another reply, of an error with its code."""

DIFFERENCES: Final[Differences] = {
    # whether ours is asked through Python or over HTTP; each has a few of its own beside these
    ("02_push_pull_valid", 4): (MISTAKES, INVALID),
    ("05_subscribe", 21): (TWO_PLANS, once()),
    ("05_subscribe", 23): (TWO_PLANS, once((CALLS, 3))),
    ("05_subscribe", 39): (ORGS, INVALID),
    ("05_subscribe", 51): (MISTAKES, INVALID),
    ("05_subscribe", 52): (MISTAKES, INVALID),
    ("09_org_info", 5): (NULL_LISTS, with_("phases", [])),
    ("09_org_info", 6): (NULL_LISTS, with_("usage", [])),
    ("09_org_info", 18): (MISTAKES, Reply(400, "invalid_metadata")),
    ("09_org_info", 23): (NO_PAYMENTS, with_("methods", [])),
    ("09_org_info", 24): (NO_PAYMENTS, with_("invoice_settings.default_payment_method", "pm_card_us")),
    ("09_org_info", 25): (NO_PAYMENTS, DONE),
    ("09_org_info", 26): (NO_PAYMENTS, DONE),
    ("09_org_info", 30): (NO_PAYMENTS, with_("invoice_settings.default_payment_method", "pm_nope")),
    ("10_limits", 6): (NULL_LISTS, with_("usage", [])),
    ("11_report", 9): (MISTAKES, INVALID),
    ("11_report", 16): (CLOBBER, used(CALLS, 5)),
    ("11_report", 18): (CLOBBER, used(CALLS, 1)),
    ("11_report", 21): (CLOBBER, used(CALLS, 1 + 4 + 4)),
    ("11_report", 23): (MISTAKES, INVALID),
    ("11_report", 24): (MISTAKES, INVALID),
    ("11_report", 28): (MISTAKES, INVALID),
    ("11_report", 29): (MISTAKES, INVALID),
    ("11_report", 30): (CLOBBER, used(CALLS, 9 + 4)),
    ("11_report", 49): (MISTAKES, INVALID),
    ("11_report", 50): (MISTAKES, INVALID),
    ("11_report", 51): (MISTAKES, INVALID),
    ("11_report", 52): (MISTAKES, INVALID),
    ("11_report", 54): (MISTAKES, INVALID),
    ("11_report", 57): (MISTAKES, NO_FEATURE),
    ("11_report", 58): (MISTAKES, NO_FEATURE),
}


def differing(answer: Reply, difference: tuple[str, Reply | Callable[[Any], Any]]) -> Reply:
    """What ours answers where the real server answered ``answer``."""
    _, differs = difference
    if isinstance(differs, Reply):
        return differs
    changed = json.loads(json.dumps(answer.body))
    return Reply(answer.status, differs(changed) or changed)
