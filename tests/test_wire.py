"""The wire and its calls: every answer that the real server was recorded to give becomes the right value or error, and
the requests of our calls are those that it was sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tier_middleware import (
    ConfigurationError,
    EngineUnavailable,
    InvalidRequest,
    NotEntitled,
    OrgNotFound,
    TierError,
    calls,
    wire,
)
from tier_middleware.answers import current_phase_view, phases_view
from tier_middleware.clock import milliseconds_of, moment
from tier_middleware.model import Model
from tier_middleware.names import MAX_UNITS, feature_plan
from tier_middleware.ops import PushResult, Usage
from tier_middleware.orginfo import OrgInfo
from tier_middleware.policy import PlannedPhase
from tier_middleware.pricing import as_dict, read_model
from tier_middleware.wire import Request, Response

FOLDER: Final = Path(__file__).parent / "vectors"
NOW_MS: Final = milliseconds_of(datetime(2024, 1, 15, 12, tzinfo=UTC), "now")
DEFINITE: Final = {"org_not_found": OrgNotFound, "feature_not_found": NotEntitled}

Step = Mapping[str, Any]


def steps() -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        for number, step in enumerate(json.loads(path.read_text())["steps"]):
            found.append(pytest.param(step, id=f"{path.stem}-{number}"))
    return found


def response_of(step: Step) -> Response:
    answer = step["response"]
    raw = answer["body_raw"] if "body_raw" in answer else json.dumps(answer["body"])
    return Response(answer["status"], raw.encode(), {"content-type": answer["content_type"]})


def request_of(step: Step) -> Request:
    asked = step["request"]
    query = {name: str(value) for name, value in asked.get("query", {}).items()}
    body = asked.get("body")
    sent = body if isinstance(body, dict) else {}
    org, feature = query.get("org") or str(sent.get("org", "")), str(sent.get("feature", ""))
    raw = None if not sent else json.dumps(sent).encode()
    return Request(asked["method"], asked["path"], tuple(query.items()), raw, org=org, feature=feature)


# ---- successes: the value must say what the recorded body says ------------------------------------------------------


def shown_limits(request: Request, response: Response) -> Any:
    limits = calls.limits_in(request, response)
    return {one.feature: (one.used, MAX_UNITS if one.limit is None else one.limit) for one in limits}


def recorded_limits(body: Any) -> Any:
    found: dict[str, tuple[int, int]] = {}
    for entry in body["usage"] or []:
        used, limit = found.get(entry["feature"], (0, 0))
        is_unlimited = entry["limit"] == MAX_UNITS
        total = max(used, entry["used"]) if is_unlimited else used + entry["used"]
        found[entry["feature"]] = (total, max(limit, entry["limit"]))
    return found


def time_form(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def shown_phases(request: Request, response: Response) -> Any:
    info = calls.phases_in(request, response, NOW_MS)
    views = phases_view(request.org, info)
    assert views.current == (None if current_phase_view(info) is None else views.phases[0].current)
    return [
        {
            "effective": time_form(phase.effective),
            "features": list(phase.features),
            "current": {"effective": time_form(phase.current.effective), "end": time_form(phase.current.end)},
            **({"plans": list(phase.plans)} if phase.plans else {}),
            **({"fragments": list(phase.fragments)} if phase.fragments else {}),
            **({"end": time_form(phase.end)} if phase.end else {}),
            **({"trial": True} if phase.trial else {}),
        }
        for phase in views.phases
    ]


def shown_period(request: Request, response: Response) -> Any:
    period = calls.period_in(request, response)
    assert period is not None
    return {"effective": time_form(moment(period.start_ms)), "end": time_form(moment(period.end_ms))}


def shown_org(request: Request, response: Response) -> Any:
    record = calls.org_in(request, response)
    return record.stripe_id, record.info, record.created_ms


def recorded_org(body: Any) -> Any:
    names = ("email", "name", "description", "phone", "payment_method")
    default = body.get("invoice_settings", {}).get("default_payment_method", "")
    texts = {name: body.get(name, "") for name in names}
    info = OrgInfo(**texts, metadata=body.get("metadata", {}), default_payment_method=default)
    created = body.get("created")
    return body["stripe_id"], info, milliseconds_of(datetime.fromisoformat(created), "created") if created else 0


def shown_clock(request: Request, response: Response) -> Any:
    record, has_arrived = calls.clock_in(request, response)
    return record.id, time_form(moment(record.present_ms)), has_arrived


SUCCESSES: Final[dict[str, tuple[Callable[[Request, Response], Any], Callable[[Any], Any]]]] = {
    "/v1/limits": (shown_limits, recorded_limits),
    "/v1/phases": (shown_phases, lambda body: body["phases"] or []),
    "/v1/phase": (shown_period, lambda body: body["current"]),
    "/v1/pull": (lambda *asked: as_dict(calls.model_in(*asked)), lambda body: body),
    "/v1/push": (
        lambda *asked: [one._asdict() for one in calls.push_results_in(*asked)],
        lambda body: sorted(body.get("results", []), key=lambda one: one["feature"]),
    ),
    "/v1/whois": (shown_org, recorded_org),
    "/v1/whoami": (
        lambda *asked: (calls.whoami_in(*asked).kind, calls.whoami_in(*asked).email, calls.whoami_in(*asked).url),
        lambda body: (body["id"], body["email"], body["url"]),
    ),
    "/v1/payment_methods": (
        lambda *asked: list(calls.payment_methods_in(*asked)),
        lambda body: body["methods"] or [],
    ),
    "/v1/clock": (shown_clock, lambda body: (body["id"], body["present"], body["status"] != "advancing")),
    "/v1/report": (wire.done_in, lambda body: None),
    "/v1/subscribe": (wire.done_in, lambda body: None),
}


@pytest.mark.parametrize("step", steps())
def test_every_recorded_answer_is_the_right_value_or_error(step: Step) -> None:
    request, response = request_of(step), response_of(step)
    if response.status == 404 and request.path == "/v1/phase":
        assert calls.period_in(request, response) is None
        return
    if response.status == 200:
        shown, recorded = SUCCESSES[request.path]
        assert shown(request, response) == recorded(json.loads(response.body))
        return
    error = wire.error_in(request, response)
    body = step["response"]["body"]
    assert type(error) is expected_kind(request, response.status, body["code"])
    assert (error.code, error.status) == (body["code"], body["status"])
    assert body["message"] in error.message
    assert error.path == request.path
    assert error.response_data == body


def expected_kind(request: Request, status: int, code: str) -> type[TierError]:
    if code == "feature_not_found" and request.path == "/v1/subscribe":
        return InvalidRequest
    if status >= 500:
        return EngineUnavailable
    return DEFINITE.get(code, ConfigurationError if status == 404 else InvalidRequest)


# ---- requests -------------------------------------------------------------------------------------------------------


def call_of(step: Step) -> Request | None:
    """The request of ours that stands for a recorded one; None where no call of ours is like it."""
    asked, key = step["request"], step["request"].get("headers", {}).get("Tier-Clock")
    body = asked.get("body")
    if response_of(step).status != 200 or (body is not None and not isinstance(body, dict)):
        return None
    sent, query = body or {}, asked.get("query", {})
    org = query.get("org") or sent.get("org", "")
    org = f"clock_1/{org}" if key else org
    path = asked["path"]
    if path == "/v1/report" and set(sent) == {"org", "feature", "n"}:
        return calls.report(org, sent["feature"], sent["n"])
    if path == "/v1/subscribe" and set(sent) == {"org", "phases"} and sent["phases"]:
        planned = [
            PlannedPhase(None, tuple(map(feature_plan, one.get("features", ()))), one.get("trial", False))
            for one in sent["phases"]
            if "effective" not in one
        ]
        return calls.subscription(org, planned) if len(planned) == len(sent["phases"]) else None
    simple = {"/v1/limits": calls.limits, "/v1/phase": calls.phase, "/v1/phases": calls.phases}
    return simple[path](org) if path in simple and asked["method"] == "GET" else None


def test_our_requests_are_those_that_were_recorded() -> None:
    compared: set[str] = set()
    for parameter in steps():
        step = parameter.values[0]
        ours, asked = call_of(step), step["request"]
        if ours is None:
            continue
        assert (ours.method, ours.path, dict(ours.query)) == (asked["method"], asked["path"], asked.get("query", {}))
        assert dict(ours.headers).get("tier-clock") == ("clock_1" if "headers" in asked else None)
        if ours.body is not None:
            sent = json.loads(ours.body)
            assert sent.pop("clobber", False) is False
            assert sent == asked["body"]
        compared.add(ours.path)
    assert compared == {"/v1/report", "/v1/subscribe", "/v1/limits", "/v1/phase", "/v1/phases"}


def test_a_report_says_when_and_what_makes_it_count_once() -> None:
    request = calls.report("org:a", "feature:x", 2, key="k1", at_ms=NOW_MS, clobber=True)
    assert json.loads(request.body or b"") == {
        "org": "org:a", "feature": "feature:x", "n": 2, "at": "2024-01-15T12:00:00Z", "clobber": True,
    }  # fmt: skip
    assert dict(request.headers)["idempotency-key"] == "k1"


def test_the_key_is_the_user_name_of_basic_auth() -> None:
    assert wire.authorization("sk_test_1") == "Basic c2tfdGVzdF8xOg=="  # sk_test_1:


def test_what_is_known_of_an_org_is_sent_without_what_is_empty() -> None:
    info = OrgInfo(email="a@example.com", metadata={"k": ""}, default_payment_method="pm_1")
    assert json.loads(calls.info_update("org:a", info).body or b"")["info"] == {
        "email": "a@example.com", "metadata": {"k": ""}, "invoice_settings": {"default_payment_method": "pm_1"},
    }  # fmt: skip


# ---- what others answer ---------------------------------------------------------------------------------------------

LIMITS: Final = calls.limits("org:a")


def answer(status: int, body: object, **headers: str) -> Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, raw, headers)


@pytest.mark.parametrize("status", [200, 301, 400, 404, 502])
def test_a_page_of_somebody_elses_is_no_answer_and_no_no(status: int) -> None:
    with pytest.raises(EngineUnavailable, match="hello"):
        calls.limits_in(LIMITS, answer(status, b"<html>hello</html>"))


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 503])
def test_what_says_nothing_of_the_org_is_never_a_no(status: int) -> None:
    error = wire.error_in(LIMITS, answer(status, {"code": "invalid_api_key", "message": "no"}))
    assert type(error) is EngineUnavailable
    assert error.code == "invalid_api_key"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"usage": [{"used": 1}]}', b'{"usage": 7}', b"\xff"])
def test_an_answer_in_another_form_is_no_answer(body: bytes) -> None:
    with pytest.raises(EngineUnavailable):
        calls.limits_in(LIMITS, answer(200, body))


def test_unknown_fields_are_passed_over() -> None:
    body = {"org": "org:a", "new": 1, "usage": [{"feature": "feature:x", "used": 1, "limit": 2, "new": []}]}
    assert calls.limits_in(LIMITS, answer(200, body)) == (Usage("feature:x", 1, 2),)
    plan = {"new": 1, "features": {"feature:x": {"new": 1, "tiers": [{"upto": 3, "new": 1}]}}}
    model = calls.model_in(calls.pull(), answer(200, {"plans": {"plan:a@1": plan}, "new": 1}))
    assert model == read_model({"plans": {"plan:a@1": {"features": {"feature:x": {"tiers": [{"upto": 3}]}}}}})
    assert calls.model_in(calls.pull(), answer(200, {"plans": None})) == Model({})


def test_a_model_that_nobody_can_read_is_no_answer() -> None:
    with pytest.raises(EngineUnavailable, match="interval"):
        calls.model_in(calls.pull(), answer(200, {"plans": {"plan:a@1": {"interval": "@never"}}}))


def test_pushed_results_are_in_order() -> None:
    body = {"results": [{"feature": "feature:b", "status": "failed", "reason": "r"}, {"feature": "a", "status": "ok"}]}
    results = calls.push_results_in(calls.push(Model()), answer(200, body))
    assert results == (PushResult("a", "ok", ""), PushResult("feature:b", "failed", "r"))


def test_a_cancellation_to_come_ends_the_last_phase() -> None:
    current = {"effective": "2024-01-15T12:00:00Z", "end": "2024-02-15T12:00:00Z"}
    phase = {
        "effective": "2024-01-15T12:00:00Z", "end": "2024-03-01T00:00:00Z", "plans": ["plan:a@1"],
        "features": ["feature:x@plan:a@1"], "current": current,
    }  # fmt: skip
    info = calls.phases_in(calls.phases("org:a"), answer(200, {"current": current, "phases": [phase]}), NOW_MS)
    (view,) = phases_view("org:a", info).phases
    assert view.end == datetime(2024, 3, 1, tzinfo=UTC)


def test_who_honours_a_key_sends_it_back() -> None:
    request = calls.report("org:a", "feature:x", 1, key="k1")
    assert wire.is_keyed(request, answer(200, {}, **{"idempotency-key": "k1"}))
    assert not wire.is_keyed(request, answer(200, {}, **{"idempotency-key": "k2"}))
    assert not wire.is_keyed(LIMITS, answer(200, {}))


@pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("", None), ("-1", None), ("soon", None), ("9" * 30, 3600)])
def test_how_long_to_wait(said: str, seconds: float | None) -> None:
    assert wire.retry_after_seconds(answer(429, {}, **{"retry-after": said})) == seconds


def test_an_error_shows_what_was_asked_and_no_header() -> None:
    request = calls.report("org:a", "feature:x", 1, key="k1")
    error = wire.error_in(request, answer(400, {"code": "feature_not_found", "message": "feature not found"}))
    assert isinstance(error, NotEntitled)
    assert (error.org, error.feature) == ("org:a", "feature:x")
    assert error.request_data == {"org": "org:a", "feature": "feature:x", "n": 1, "clobber": False}
