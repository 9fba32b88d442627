"""Who there is, what is sold, and the time of rehearsals, in SQL: orgs with their phases, plans, and test clocks.

Every method runs inside a transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..model import Model, Phase, Plan
from ..names import FeaturePlan, clock_of, feature_plan
from ..ops import (
    AdvanceClock,
    ClockRecord,
    DeleteOrg,
    Describe,
    EngineInfo,
    Identify,
    LookUpClock,
    LookUpPaymentMethods,
    LookUpPhases,
    MakeClock,
    OrgRecord,
    PhasesInfo,
    Pull,
    Push,
    PushResult,
    Schedule,
    UpdateOrg,
)
from ..orginfo import info_text, read_info, updated
from ..policy import PlannedPhase, checked_features, phases_after
from ..pricing import plan_conflict, plan_text, read_plan
from . import verdicts
from .changes import DROP, add_change
from .connection import Connection

__all__ = ["Catalogue", "StoredOrg", "phase_columns"]


@dataclass(slots=True)
class StoredOrg:
    """An org as it is stored."""

    id: int
    clock: str
    changed_ms: int
    phases: tuple[Phase, ...]

    def present(self, now_ms: int) -> int:
        """Now, and never before the last change of the org's phases."""
        return max(now_ms, self.changed_ms)


class Catalogue:
    """The orgs and plans of one database. Plans are remembered, in ``plans``: they never change."""

    def __init__(self, url: str, plans: MutableMapping[str, Plan], kind: str = "sqlite") -> None:
        self._url = url
        self._kind = kind
        self._plans = plans

    def find(self, db: Connection, name: str) -> StoredOrg | None:
        row = db.execute("SELECT id, changed_ms FROM orgs WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        return StoredOrg(row[0], clock_of(name), row[1], self.phases(db, row[0]))

    def phases(self, db: Connection, org_id: int) -> tuple[Phase, ...]:
        phases = db.execute(
            "SELECT effective_ms, anchor_ms, trial, features FROM phases WHERE org_id = ? ORDER BY effective_ms",
            (org_id,),
        )
        return tuple([_phase(*columns) for columns in phases])

    def known(self, db: Connection, name: str) -> StoredOrg:
        org = self.find(db, name)
        if org is None:
            raise verdicts.unknown_org(name)
        return org

    def with_default_plan(self, db: Connection, name: str, plan: str | None, now_ms: int) -> StoredOrg | None:
        org = self.find(db, name)
        if plan is None or (org is not None and org.phases):
            return org
        if self._stored_plan(db, plan) is None:
            raise verdicts.unknown_default_plan(plan)
        self.schedule(db, Schedule(name, (PlannedPhase(None, (FeaturePlan(None, plan),)),), now_ms))
        return self.find(db, name)

    def schedule(self, db: Connection, op: Schedule) -> None:
        for planned in op.phases:
            names = {entry.plan for entry in planned.features}
            stored = {name: plan for name in names if (plan := self._stored_plan(db, name)) is not None}
            checked_features(planned.features, stored if len(stored) == len(names) else self.pull(db, Pull()).plans)
        org = self.known(db, op.org) if op.must_exist else self._made(db, op.org, op.now_ms)
        present_ms = org.present(op.now_ms)
        db.execute("UPDATE orgs SET changed_ms = ? WHERE id = ?", (present_ms, org.id))
        db.execute("DELETE FROM phases WHERE org_id = ?", (org.id,))
        db.executemany(
            "INSERT INTO phases VALUES (?, ?, ?, ?, ?)",
            [
                (org.id, *phase_columns(phase))
                for phase in phases_after(org.phases, op.phases, present_ms, keeps_pending=op.keeps_pending)
            ],
        )
        db.execute(
            "UPDATE units SET until_ms = 0 "
            "WHERE id = 0 AND until_ms > 0 AND usage_id IN (SELECT id FROM usage WHERE org_id = ?)",
            (org.id,),
        )
        add_change(db, op.org)

    def delete_org(self, db: Connection, op: DeleteOrg) -> None:
        org = (self.known(db, op.org).id,)
        watched = "SELECT ?, at_ms, usage_id FROM usage JOIN units ON usage_id = usage.id AND units.id = 0"
        db.execute(
            f"DELETE FROM ledger_due WHERE (clock, due_ms, usage_id) IN ({watched} WHERE org_id = ?)",
            (clock_of(op.org), *org),
        )
        for table in ("units", "ledger_days"):
            db.execute(f"DELETE FROM {table} WHERE usage_id IN (SELECT id FROM usage WHERE org_id = ?)", org)
        db.execute("DELETE FROM usage WHERE org_id = ?", org)
        db.execute("DELETE FROM phases WHERE org_id = ?", org)
        db.execute("DELETE FROM orgs WHERE id = ?", org)
        db.execute(DROP, (op.org,))
        add_change(db)

    def push(self, db: Connection, op: Push) -> tuple[PushResult, ...]:
        stored = {name: plan for name in op.model.plans if (plan := self._stored_plan(db, name)) is not None}
        for name, plan in stored.items():
            conflict = plan_conflict(plan, op.model.plans[name])
            if conflict is not None:
                raise conflict
        db.executemany(
            "INSERT INTO plans VALUES (?, ?, ?)",
            [(name, plan_text(plan), op.now_ms) for name, plan in op.model.plans.items() if name not in stored],
        )
        return verdicts.push_results(op.model, stored)

    def has_all(self, db: Connection, model: Model) -> bool:
        return all(self._stored_plan(db, name) is not None for name in model.plans)

    def pull(self, db: Connection, op: Pull) -> Model:
        names = [name for (name,) in db.execute("SELECT name FROM plans ORDER BY name")]
        plan_of = self.plan_of(db)
        return Model({name: plan_of(name) for name in names})

    def plan_of(self, db: Connection) -> Callable[[str], Plan]:
        return partial(self._required_plan, db)

    def _required_plan(self, db: Connection, name: str) -> Plan:
        plan = self._stored_plan(db, name)
        assert plan is not None, name  # plans are never deleted, and phases name only stored ones
        return plan

    def _stored_plan(self, db: Connection, name: str) -> Plan | None:
        plan = self._plans.get(name)
        if plan is None:
            row = db.execute("SELECT body FROM plans WHERE name = ?", (name,)).fetchone()
            if row is None:
                return None
            plan = self._plans[name] = read_plan(name, row[0])
        return plan

    def look_up_phases(self, db: Connection, op: LookUpPhases) -> PhasesInfo:
        org = self.known(db, op.org)
        present_ms = org.present(op.now_ms)
        return verdicts.phases_info(org.phases, self.plan_of(db), present_ms)

    def describe(self, db: Connection, op: Describe) -> OrgRecord:
        row = db.execute("SELECT created_ms, info FROM orgs WHERE name = ?", (op.org,)).fetchone()
        if row is None:
            raise verdicts.unknown_org(op.org)
        return OrgRecord(row[0], read_info(row[1]))

    def payment_methods(self, db: Connection, op: LookUpPaymentMethods) -> tuple[Mapping[str, Any], ...]:
        self.known(db, op.org)
        return ()

    def update_org(self, db: Connection, op: UpdateOrg) -> None:
        org = self._made(db, op.org, op.now_ms)
        (old,) = db.execute("SELECT info FROM orgs WHERE id = ?", (org.id,)).fetchone()
        info = info_text(updated(read_info(old), op.info))
        db.execute("UPDATE orgs SET info = ? WHERE id = ?", (info, org.id))

    def _made(self, db: Connection, name: str, now_ms: int) -> StoredOrg:
        """The org, made where it was not known."""
        org = self.find(db, name)
        if org is not None:
            return org
        columns = (name, now_ms, now_ms)
        added = db.execute("INSERT INTO orgs (name, created_ms, changed_ms) VALUES (?, ?, ?)", columns)
        return StoredOrg(added.lastrowid or 0, clock_of(name), now_ms, ())

    def make_clock(self, db: Connection, op: MakeClock) -> ClockRecord:
        db.execute("INSERT INTO clocks VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (op.id, op.name, op.present_ms))
        return self.look_up_clock(db, op)

    def advance_clock(self, db: Connection, op: AdvanceClock) -> ClockRecord:
        clock = verdicts.advanced(self.look_up_clock(db, op), op.present_ms)
        db.execute("UPDATE clocks SET present_ms = ? WHERE id = ?", (clock.present_ms, clock.id))
        return clock

    def look_up_clock(self, db: Connection, op: LookUpClock | MakeClock | AdvanceClock) -> ClockRecord:
        row = db.execute("SELECT id, name, present_ms FROM clocks WHERE id = ?", (op.id,)).fetchone()
        if row is None:
            raise verdicts.unknown_clock(op.id)
        return ClockRecord(*row)

    def identify(self, db: Connection, op: Identify) -> EngineInfo:
        (created_ms,) = db.execute("SELECT created_ms FROM about").fetchone()
        return EngineInfo(self._kind, self._url, created_ms)


def phase_columns(phase: Phase) -> tuple[object, ...]:
    features = json.dumps([str(entry) for entry in phase.features])
    return phase.effective_ms, phase.anchor_ms, phase.trial, features


def _phase(effective_ms: int, anchor_ms: int, trial: int, features: str) -> Phase:
    entries = tuple(feature_plan(entry) for entry in json.loads(features))
    return Phase(effective_ms, anchor_ms, entries, bool(trial))
