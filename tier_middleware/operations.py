"""The operations that callers ask for: what they say is checked, and made into what engines are asked. No I/O."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from . import flow, forks
from .clock import Milliseconds, milliseconds_of, whole_seconds
from .errors import ConfigurationError, InvalidRequest
from .ledger import History, Step, step_ms_for
from .names import checked_clock_name, checked_feature, checked_key, checked_note, checked_org, checked_units
from .ops import (
    Adjust,
    Check,
    Checked,
    Checkout,
    Committed,
    DeleteOrg,
    Demand,
    Describe,
    Granted,
    Kept,
    LookUp,
    LookUpKeys,
    LookUpPaymentMethods,
    LookUpPhases,
    MakeClock,
    Op,
    OrgRecord,
    PhasesInfo,
    Push,
    ReadHistory,
    Record,
    Recorded,
    Renew,
    Reserve,
    Schedule,
    Shortfall,
    UpdateOrg,
    Usage,
)
from .orginfo import NO_INFO, OrgInfo, checked_info, checked_text
from .policy import PlannedPhase
from .pricing import read_model
from .schedules import effective_from, listed_features, planned_phases, trial_length
from .settings import Settings

__all__ = ["Operations", "new_key"]

R = TypeVar("R")


class Operations:
    """Makes operations for one engine. Raises `InvalidRequest` that names the argument and the value."""

    def __init__(self, settings: Settings, now_ms: Milliseconds, *, takes_payments: bool) -> None:
        self.now_ms = now_ms
        self._base_url = settings.base_url
        self._default_plan = settings.default_plan
        self._reservation_ms = int(settings.reservation_seconds * 1000)
        self.takes_payments = takes_payments
        self.after_fork(is_child=True)
        forks.watch(self)

    def before_fork(self) -> None:
        pass

    def after_fork(self, *, is_child: bool) -> None:
        """The ids of a child must be its own."""
        if is_child:
            self._random = random.Random(os.urandom(16))  # our own: an application may seed the other

    def key_of(self, org: str) -> str:
        """How the engine knows an org, whose name is checked here."""
        return checked_org(org)

    def dated(self, make: Callable[[int], Op[R]]) -> Op[R]:
        """An operation of the present: of this moment, or under a test clock of the moment it is performed."""
        return make(self.now_ms())

    def reserve(self, org: str, demands: tuple[Demand, ...]) -> Op[Granted | Shortfall]:
        """For faces, whose names and amounts are checked already."""
        now_ms = self.now_ms()
        new_id = self._random.getrandbits
        ids = (new_id(62) or 1,) if len(demands) == 1 else tuple([new_id(62) or 1 for _ in demands])
        return Reserve(org, demands, ids, now_ms, now_ms + self._reservation_ms, self._default_plan)

    def checked_reserve(self, org: str, feature: str, n: int) -> Op[Granted | Shortfall]:
        demand = Demand(checked_feature(feature), checked_units(n))
        return self.reserve(checked_org(org), (demand,))

    def renewal(self, kept: tuple[Kept, ...]) -> Op[tuple[Committed, ...]]:
        return self.dated(lambda now_ms: Renew(kept, now_ms, now_ms + self._reservation_ms))

    def check(self, org: str, feature: str, n: int) -> Op[Checked]:
        demand, key = Demand(checked_feature(feature), checked_units(n)), self.key_of(org)
        return self.dated(lambda now_ms: Check(key, demand, now_ms, self._default_plan))

    def record(
        self,
        org: str,
        feature: str,
        n: int,
        at: datetime | None = None,
        clobber: bool = False,
        key: str | None = None,
        note: str = "",
    ) -> Record:
        """For a settlement, which dates it when it is performed."""
        return Record(
            self.key_of(org),
            checked_feature(feature),
            checked_units(n),
            new_key() if key is None else checked_key(key),
            self.now_ms(),
            None if at is None else milliseconds_of(at, "at"),
            _checked_flag(clobber, "clobber"),
            self._default_plan,
            checked_note(note),
        )

    def report(
        self, org: str, feature: str, n: int, at: datetime | None, clobber: bool, key: str | None, note: str = ""
    ) -> Op[Recorded]:
        return self.dated(flow.at_time(self.record(org, feature, n, at, clobber, key, note)))

    def adjustment(self, org: str, feature: str, delta: int, note: str, key: str | None) -> Op[Recorded]:
        size = checked_units(-delta if isinstance(delta, int) and delta < 0 else delta, "delta")
        org, feature = self.key_of(org), checked_feature(feature)
        key, note = new_key() if key is None else checked_key(key), checked_note(note)
        return self.dated(lambda now_ms: Adjust(org, feature, -size if delta < 0 else size, key, now_ms, note))

    def look_up(self, org: str) -> Op[tuple[Usage, ...]]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: LookUp(key, now_ms))

    def look_up_keys(self, org: str, keys: tuple[str, ...]) -> Op[tuple[bool, ...]]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: LookUpKeys(key, keys, now_ms))

    def history(
        self, org: str, feature: str, since: datetime | None, until: datetime | None, step: Step | None
    ) -> Op[History]:
        key, feature = self.key_of(org), checked_feature(feature)
        since_ms = None if since is None else milliseconds_of(since, "since")
        until_ms = None if until is None else milliseconds_of(until, "until")
        if since_ms is not None and until_ms is not None and since_ms >= until_ms:
            raise InvalidRequest(f"until: must be after since ({since!r}), got {until!r}", path="until")
        step_ms = None if step is None else step_ms_for(step)
        return self.dated(lambda now_ms: ReadHistory(key, feature, now_ms, since_ms, until_ms, step_ms))

    def look_up_phases(self, org: str) -> Op[PhasesInfo]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: LookUpPhases(key, now_ms))

    def describe(self, org: str) -> Op[OrgRecord]:
        return Describe(self.key_of(org))

    def payment_methods(self, org: str) -> Op[tuple[Mapping[str, Any], ...]]:
        return LookUpPaymentMethods(self.key_of(org))

    def checkout(
        self,
        org: str,
        success_url: str,
        features: str | Sequence[str] | None,
        trial_days: int,
        cancel_url: str | None,
        require_billing_address: bool,
        tax: Mapping[str, Any] | None,
    ) -> Op[str]:
        if not self.takes_payments:
            raise ConfigurationError(
                f"checkout: {self._base_url!r} takes no payments; send people to a page of your payment "
                "provider, and call subscribe() when it says that they have paid",
                path="TIER_BASE_URL",
            )
        for field, url in (("success_url", success_url), ("cancel_url", cancel_url)):
            if url is not None or field == "success_url":
                checked_text(url, field)
        trial_length(trial_days)
        listed = () if features is None else listed_features(features)
        flag = _checked_flag(require_billing_address, "require_billing_address")
        return Checkout(self.key_of(org), success_url, listed, trial_days, cancel_url, flag, tax)

    def delete(self, org: str) -> DeleteOrg:
        return DeleteOrg(self.key_of(org))

    def push(self, model: Any) -> Push:
        return Push(read_model(model), self.now_ms())

    def new_clock(self, name: str, start: datetime) -> MakeClock:
        id = f"clock_{self._random.getrandbits(64):016x}"
        return MakeClock(id, checked_clock_name(name), whole_seconds(start, "start"))

    def subscription(
        self, org: str, features: str | Sequence[str], trial_days: int, effective: datetime | None
    ) -> Op[None]:
        """A subscription, with a trial phase before it where there are trial days."""
        listed = listed_features(features)
        trial_ms, key = trial_length(trial_days), self.key_of(org)

        def make(now_ms: int) -> Schedule:
            effective_ms = None if effective is None else effective_from(effective, now_ms)
            if not trial_ms:
                return Schedule(key, (PlannedPhase(effective_ms, listed),), now_ms)
            end_ms = (now_ms if effective_ms is None else effective_ms) + trial_ms
            phases = (PlannedPhase(effective_ms, listed, trial=True), PlannedPhase(end_ms, listed))
            return Schedule(key, phases, now_ms)

        return self.dated(make)

    def schedule(self, org: str, phases: Sequence[Mapping[str, Any]]) -> Op[None]:
        key = self.key_of(org)
        return self.dated(lambda now_ms: Schedule(key, planned_phases(phases, now_ms), now_ms))

    def cancellation(self, org: str, at: datetime | None) -> Op[None]:
        key = self.key_of(org)

        def make(now_ms: int) -> Schedule:
            effective_ms = None if at is None else effective_from(at, now_ms, "at")
            return Schedule(key, (PlannedPhase(effective_ms, ()),), now_ms, must_exist=True, keeps_pending=True)

        return self.dated(make)

    def update(self, org: str, info: OrgInfo | Mapping[str, Any]) -> Op[None]:
        key, checked = self.key_of(org), checked_info(info)
        return self.dated(lambda now_ms: UpdateOrg(key, checked, now_ms))

    def update_with(
        self, org: str, info: OrgInfo | Mapping[str, Any] | None, payment_method_id: str | None
    ) -> Op[None] | None:
        """The change of an org's info that comes with a subscription; None where there is none."""
        key = self.key_of(org)
        if info is None and payment_method_id is None:
            return None
        checked = checked_info(NO_INFO if info is None else info)
        if payment_method_id is not None:
            method = checked_text(payment_method_id, "payment_method_id")
            checked = replace(checked, default_payment_method=method)
        return self.dated(lambda now_ms: UpdateOrg(key, checked, now_ms))


def _checked_flag(value: bool, field: str) -> bool:
    if value is True or value is False:
        return value
    raise InvalidRequest(f"{field}: must be True or False, got {value!r}", path=field)  # a text such as "no" is true


def new_key() -> str:
    return uuid.UUID(bytes=os.urandom(16), version=4).hex
