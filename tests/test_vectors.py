"""Conversations recorded from the real Tier server, replayed through the Python API on both embedded engines.

Each recorded request becomes the call that it stands for, and each answer or error the form it has on the wire. All
must be as recorded, except for what is in two tables: `ON_PURPOSE`, where ours differs and says so in the protocol's
README or in the design (most of that is also so over HTTP), and `NO_CALL`, what no Python call can say. An entry that
is not needed fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from conversations import (
    CALLS,
    CLOBBER,
    DIFFERENCES,
    INVALID,
    REASONS,
    ZERO_TIME,
    Differences,
    Reply,
    Step,
    comparable,
    differing,
    recorded,
    steps_of,
    used,
    without_plans,
)

from tier_middleware import ManualClock, Tier, TierError
from tier_middleware.answers import PeriodView, PhaseView
from tier_middleware.names import MAX_UNITS
from tier_middleware.pricing import as_dict

VECTORS: Final = ("02_push_pull_valid", "03_push_duplicate", "05_subscribe", "09_org_info", "10_limits", "11_report")


# ---- where ours differs on purpose ----------------------------------------------------------------------------------

# quoted from the design
IMMUTABLE = "Plans are immutable: a different one under the same version is a start-up error"
# quoted from the docstring of `ops`
REFUSED = "Each operation is atomic: it happens whole or not at all"
# of the replay
SKIPPED = "what a step of NO_CALL did is not there"

OWN: Final[Differences] = {
    ("02_push_pull_valid", 6): (SKIPPED, without_plans("plan:case@1", "plan:dup@1")),
    ("03_push_duplicate", 2): (IMMUTABLE, INVALID),
    ("03_push_duplicate", 3): (IMMUTABLE, INVALID),
    ("03_push_duplicate", 4): (IMMUTABLE, without_plans("plan:a@2")),
    ("05_subscribe", 35): (REFUSED, Reply(400, "org_not_found")),
    ("11_report", 55): (CLOBBER, used(CALLS, 13)),
}
ON_PURPOSE: Final[Differences] = {**DIFFERENCES, **OWN}

# ---- what no Python call can say ------------------------------------------------------------------------------------

ANY_CASE = "JSON names in any case are an answer of the HTTP server's decoder"
UNKNOWN = "unknown JSON fields: Python has its own TypeError for an argument that does not exist"
RAW = "about the text of the request: no JSON, an empty body, more than one value"
TWICE = "a JSON name twice: a Python mapping has none"
LEFT_OUT = "a feature left out: a Python call without its argument is a TypeError"

NO_CALL: Final[dict[Step, str]] = {
    ("02_push_pull_valid", 2): ANY_CASE,
    ("02_push_pull_valid", 3): TWICE,
    ("05_subscribe", 43): UNKNOWN,
    ("05_subscribe", 45): RAW,
    ("05_subscribe", 46): RAW,
    ("05_subscribe", 47): RAW,
    ("05_subscribe", 48): RAW,
    ("05_subscribe", 49): RAW,
    ("05_subscribe", 50): RAW,
    ("05_subscribe", 53): RAW,
    ("05_subscribe", 54): ANY_CASE,
    ("11_report", 38): LEFT_OUT,
    ("11_report", 43): UNKNOWN,
    ("11_report", 44): ANY_CASE,
    ("11_report", 45): RAW,
    ("11_report", 46): RAW,
    ("11_report", 47): RAW,
    ("11_report", 48): RAW,
}


# ---- from the wire to a call, and back ------------------------------------------------------------------------------


class NoCall(Exception):
    """No call of the Python API stands for this request."""


class Wire:
    """A client that is asked as the server would be."""

    def __init__(self, tier: Tier, clock: ManualClock) -> None:
        self.tier = tier
        self.clock = clock
        self.calls: dict[tuple[str, str], Callable[[Mapping[str, Any]], Any]] = {
            ("POST", "/v1/clock"): self.set_clock,
            ("POST", "/v1/push"): self.push,
            ("GET", "/v1/pull"): self.pull,
            ("POST", "/v1/subscribe"): self.subscribe,
            ("POST", "/v1/report"): self.report,
            ("GET", "/v1/limits"): self.limits,
            ("GET", "/v1/phase"): self.phase,
            ("GET", "/v1/phases"): self.phases,
            ("GET", "/v1/whois"): self.whois,
            ("GET", "/v1/payment_methods"): self.payment_methods,
        }

    def reply_to(self, request: Mapping[str, Any]) -> Reply:
        """What ours answers. Raises `NoCall`."""
        call = self.calls[request["method"], request["path"]]
        try:
            body = call(request)
        except TierError as error:
            return Reply(error.status or 0, error.code if error.message else "no message")
        return Reply(404, "not_found") if body is None else Reply(200, body)

    def set_clock(self, request: Mapping[str, Any]) -> Any:
        """Not a call: the test's own clock stands for the test clock."""
        self.clock.set(datetime.fromisoformat(request["body"]["present"]))
        return {"id": "<clock:1>", "present": time_form(self.clock()), "status": ""}

    def push(self, request: Mapping[str, Any]) -> Any:
        results = self.tier.push(request.get("body_raw") or request["body"])
        return {"results": [result._asdict() for result in results]}

    def pull(self, request: Mapping[str, Any]) -> Any:
        return as_dict(self.tier.pull())

    def subscribe(self, request: Mapping[str, Any]) -> Any:
        body = body_of(request, "org", "phases", "info")
        org, phases, info = body.get("org", ""), body.get("phases"), body.get("info")
        if not phases:
            self.tier.subscribe(org) if info is None else self.tier.update_org(org, info)
        elif len(phases) == 1 and set(phases[0]) == {"features"}:
            self.tier.subscribe(org, phases[0]["features"], info=info)
        else:
            timed = [{**phase, "effective": time_of(phase.get("effective"))} for phase in phases]
            self.tier.schedule(org, timed, info=info)
        return {}

    def report(self, request: Mapping[str, Any]) -> Any:
        body = body_of(request, "org", "feature", "n", "at", "clobber")
        if "feature" not in body:
            raise NoCall
        n = 0 if body.get("n") is None else body["n"]
        clobber = body.get("clobber", False)
        self.tier.report(body.get("org", ""), body["feature"], n, at=time_of(body.get("at")), clobber=clobber)
        return {}

    def limits(self, request: Mapping[str, Any]) -> Any:
        limits = self.tier.lookup_limits(org_of(request))
        return {
            "org": limits.org,
            "usage": [
                {
                    "feature": usage.feature,
                    "used": usage.used,
                    "limit": MAX_UNITS if usage.limit is None else usage.limit,
                }
                for usage in limits
            ],
        }

    def phase(self, request: Mapping[str, Any]) -> Any:
        phase = self.tier.lookup_phase(org_of(request))
        return None if phase is None else phase_form(phase)

    def phases(self, request: Mapping[str, Any]) -> Any:
        found = self.tier.lookup_phases(org_of(request))
        return {"current": period_form(found.current), "phases": [phase_form(phase) for phase in found.phases]}

    def whois(self, request: Mapping[str, Any]) -> Any:
        included = request.get("query", {}).get("include", [])
        if "info" not in ([included] if isinstance(included, str) else included):
            identity = self.tier.whois(org_of(request))
            return {"org": identity.org, "stripe_id": identity.stripe_id}
        details = self.tier.lookup_org(org_of(request))
        return {
            "email": details.email,
            "name": details.name,
            "description": details.description,
            "phone": details.phone,
            "created": time_form(details.created),
            "metadata": dict(details.metadata),
            "payment_method": "",
            "invoice_settings": {"default_payment_method": details.default_payment_method},
            "org": details.org,
            "stripe_id": details.stripe_id,
        }

    def payment_methods(self, request: Mapping[str, Any]) -> Any:
        found = self.tier.lookup_payment_methods(org_of(request))
        return {"org": found.org, "methods": list(found.methods)}


def body_of(request: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The fields of a request, each of which must be an argument of the call."""
    body = request.get("body")
    if body is None:  # a whole JSON value that is not easily written down otherwise, such as 1.0, comes as raw text
        try:
            body = json.loads(request["body_raw"])
        except ValueError:
            raise NoCall from None
    if not isinstance(body, dict) or set(body) - set(names):
        raise NoCall
    return body


def org_of(request: Mapping[str, Any]) -> Any:
    return request.get("query", {}).get("org", "")


def time_of(value: Any) -> Any:
    """A time of the wire; what is none stays as it is, and the library says so."""
    if value == ZERO_TIME:
        return None
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return value


def time_form(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def period_form(period: PeriodView | None) -> Any:
    if period is None:
        return {"effective": ZERO_TIME, "end": ZERO_TIME}
    return {"effective": time_form(period.effective), "end": time_form(period.end)}


def phase_form(phase: PhaseView) -> Any:
    """Without what is empty, as Go leaves it out."""
    lists = {"plans": phase.plans, "fragments": phase.fragments}
    return {
        "effective": time_form(phase.effective),
        "features": list(phase.features),
        "current": period_form(phase.current),
        **{name: list(entries) for name, entries in lists.items() if entries},
        **({} if phase.end is None else {"end": time_form(phase.end)}),
        **({"trial": True} if phase.trial else {}),
    }


# ---- the comparison -------------------------------------------------------------------------------------------------


def ours(wire: Wire, step: Mapping[str, Any]) -> Reply | None:
    """What ours answers, None where no call stands for the request."""
    try:
        reply = wire.reply_to(step["request"])
    except NoCall:
        return None
    return Reply(200, comparable(reply.body)) if reply.status == 200 else reply


@pytest.fixture(params=["memory", "sqlite"])
def wire(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Wire]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/tier.db"
    clock = ManualClock(datetime(2024, 1, 1, tzinfo=UTC))
    with Tier(url, clock=clock) as tier:
        yield Wire(tier, clock)


@pytest.mark.parametrize("vector", VECTORS)
def test_the_answers_are_those_of_the_real_server_save_for_the_two_tables(vector: str, wire: Wire) -> None:
    for number, step in enumerate(steps_of(vector)):
        at, said = (vector, number), f"step {number}: {step.get('note') or ''} {step['request']}"
        reply, expected = ours(wire, step), recorded(step)
        if at in NO_CALL:
            assert reply != expected, f"NO_CALL[{at}] is not needed: {said}"
            continue
        if at in ON_PURPOSE:
            assert reply != expected, f"ON_PURPOSE[{at}] is not needed: {said}"
            expected = differing(expected, ON_PURPOSE[at])
        assert reply == expected, said


def test_the_tables_name_steps_that_exist_and_no_step_twice() -> None:
    steps = {(vector, number) for vector in VECTORS for number in range(len(steps_of(vector)))}
    assert set(ON_PURPOSE) | set(NO_CALL) <= steps
    assert not set(ON_PURPOSE) & set(NO_CALL)
    assert not set(OWN) & set(DIFFERENCES)


def test_every_reason_is_used() -> None:
    assert {reason for reason, _ in DIFFERENCES.values()} == {*REASONS}
    assert {reason for reason, _ in OWN.values()} == {IMMUTABLE, REFUSED, SKIPPED, CLOBBER}
    assert set(NO_CALL.values()) == {ANY_CASE, UNKNOWN, RAW, TWICE, LEFT_OUT}
