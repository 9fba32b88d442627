"""The half of a server: from what was asked to operations, and from replies to answers.

Raises `InvalidRequest` that names the field and the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..clock import milliseconds_of, moment
from ..errors import InvalidRequest
from ..names import checked_feature, checked_key, checked_note, checked_org, checked_plan, shown
from ..ops import (
    Adjust,
    Changes,
    Check,
    Checked,
    Commit,
    Committed,
    Demand,
    Granted,
    Hold,
    Kept,
    LookUpKeys,
    Record,
    Release,
    Renew,
    Reserve,
    Shortfall,
    Usage,
)
from .forms import (
    AdjustBody,
    ChangesAnswer,
    CheckAnswer,
    CheckBody,
    CommitBody,
    CommittedAnswer,
    CommittedForm,
    DemandForm,
    GrantedForm,
    HoldForm,
    KeptForm,
    KeysBody,
    ReleaseBody,
    RenewBody,
    ReportForm,
    ReportsBody,
    ReserveAnswer,
    ReserveBody,
    ShortfallForm,
    UsageAnswer,
    UsageForm,
)

__all__ = [
    "KeyOf",
    "adjust_of",
    "changes_answer",
    "check_answer",
    "check_of",
    "commit_of",
    "committed_answer",
    "keys_of",
    "records_of",
    "release_of",
    "renew_of",
    "reserve_answer",
    "reserve_of",
    "usage_answer",
]

KeyOf = Callable[[str], str]
"""How the engine knows an org, whose name is checked: under the test clock of the request, if there is one."""


def reserve_of(asked: ReserveBody, key_of: KeyOf, now_ms: int, default_plan: str | None) -> Reserve:
    if len(asked.ids) != len(asked.demands):
        raise _mistake("ids", f"must be one for each of {len(asked.demands)} demands", asked.ids)
    if len(set(asked.ids)) != len(asked.ids):
        raise _mistake("ids", "must be different from each other", asked.ids)
    demands = tuple([_demand(form, index) for index, form in enumerate(asked.demands)])
    features = [demand.feature for demand in demands]
    if len(set(features)) != len(features):
        raise _mistake("demands", "must name different features", features)
    expires_ms = now_ms + round(asked.reservation_seconds * 1000)
    plan = _plan_or(asked.default_plan, default_plan)
    return Reserve(key_of(asked.org), demands, tuple(asked.ids), now_ms, expires_ms, plan)


def _demand(form: DemandForm, index: int) -> Demand:
    return Demand(checked_feature(form.feature, f"demands[{index}].feature"), form.n, form.is_given)


def _plan_or(given: str | None, default_plan: str | None) -> str | None:
    return default_plan if given is None else checked_plan(given, "default_plan")


def commit_of(asked: CommitBody, key_of: KeyOf, now_ms: int) -> Commit:
    return Commit(_kept(asked.kept, key_of), now_ms)


def renew_of(asked: RenewBody, key_of: KeyOf, now_ms: int) -> Renew:
    return Renew(_kept(asked.kept, key_of), now_ms, now_ms + round(asked.reservation_seconds * 1000))


def _kept(forms: Sequence[KeptForm], key_of: KeyOf) -> tuple[Kept, ...]:
    return tuple(
        [
            Kept(
                _hold(form, key_of, f"kept[{index}]", form.held),
                form.n,
                form.is_capped,
                form.key and checked_key(form.key, f"kept[{index}].key"),
            )
            for index, form in enumerate(forms)
        ]
    )


def _hold(form: HoldForm | KeptForm, key_of: KeyOf, field: str, n: int = 0) -> Hold:
    org = key_of(checked_org(form.org, f"{field}.org"))
    return Hold(form.id, org, checked_feature(form.feature, f"{field}.feature"), n, form.place)


def release_of(asked: ReleaseBody, key_of: KeyOf, now_ms: int) -> Release:
    return Release(tuple([_hold(form, key_of, f"holds[{n}]") for n, form in enumerate(asked.holds)]), now_ms)


def adjust_of(asked: AdjustBody, key_of: KeyOf, now_ms: int) -> Adjust:
    org, feature = key_of(asked.org), checked_feature(asked.feature)
    return Adjust(org, feature, asked.delta, checked_key(asked.key), now_ms, checked_note(asked.note))


def records_of(asked: ReportsBody, key_of: KeyOf, now_ms: int, default_plan: str | None) -> tuple[Record, ...]:
    return tuple([_record(form, f"reports[{n}]", key_of, now_ms, default_plan) for n, form in enumerate(asked.reports)])


def _record(form: ReportForm, field: str, key_of: KeyOf, now_ms: int, default_plan: str | None) -> Record:
    return Record(
        key_of(checked_org(form.org, f"{field}.org")),
        checked_feature(form.feature, f"{field}.feature"),
        form.n,
        checked_key(form.key, f"{field}.key"),
        now_ms,
        None if form.at is None else milliseconds_of(form.at, f"{field}.at"),
        form.clobber,
        _plan_or(form.default_plan, default_plan),
        checked_note(form.note, f"{field}.note"),
    )


def keys_of(asked: KeysBody, key_of: KeyOf, now_ms: int) -> LookUpKeys:
    return LookUpKeys(key_of(asked.org), tuple(asked.keys), now_ms)


def check_of(asked: CheckBody, key_of: KeyOf, now_ms: int, default_plan: str | None) -> Check:
    demand = Demand(checked_feature(asked.feature), asked.n, asked.is_given)
    return Check(key_of(asked.org), demand, now_ms, _plan_or(asked.default_plan, default_plan))


def reserve_answer(reply: Granted | Shortfall) -> ReserveAnswer:
    if isinstance(reply, Shortfall):
        return ReserveAnswer(shortfall=_shortfall_form(reply))
    return ReserveAnswer([None if hold is None else GrantedForm(hold.id, hold.n, hold.place) for hold in reply.holds])


def _shortfall_form(one: Shortfall) -> ShortfallForm:
    resets_at = None if one.resets_at_ms is None else moment(one.resets_at_ms)
    numbers = (one.requested, one.used, one.reserved, one.limit)
    return ShortfallForm(one.org, one.feature, *numbers, one.reason, one.code, resets_at)


def committed_answer(reply: Sequence[Committed]) -> CommittedAnswer:
    return CommittedAnswer([CommittedForm(one.over, one.capped, one.has_expired) for one in reply])


def usage_answer(org: str, reply: Sequence[Usage]) -> UsageAnswer:
    return UsageAnswer(org, [_usage_form(usage) for usage in reply])


def _usage_form(usage: Usage) -> UsageForm:
    return UsageForm(usage.feature, usage.used, usage.limit, usage.reserved, usage.resets_at)


def check_answer(reply: Checked) -> CheckAnswer:
    shortfall = None if reply.shortfall is None else _shortfall_form(reply.shortfall)
    return CheckAnswer(_usage_form(reply.usage), shortfall)


def changes_answer(reply: Changes, own: Callable[[str], str | None]) -> ChangesAnswer:
    """``own`` answers the name of an org that the asker may know by it; None for those under other clocks."""
    orgs = [name for key in reply.orgs if (name := own(key)) is not None]
    return ChangesAnswer(reply.cursor, orgs, reply.is_everything)


def _mistake(field: str, problem: str, got: object) -> InvalidRequest:
    return InvalidRequest(f"{field}: {problem}, got {shown(got)}", path=field)
