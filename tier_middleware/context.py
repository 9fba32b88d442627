"""One request: whose it is, what is held for it, and what is counted at its end.

Framework-neutral. A face hands over its request object, which is passed on to the application's callables and otherwise
only asked for its ``method``. What it takes to be let through is in `tier_middleware.gate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from . import drive, flow
from .answers import AsyncAnswer
from .client import AsyncTier
from .core import Core
from .engines.verdicts import refused
from .errors import ConfigurationError, EngineUnavailable, Refused, TierError
from .feature_usage import FeatureUsage, Gate, Part
from .flow import Admitted, Denied, Settlement
from .gate_options import GateOptions
from .names import OrgMark
from .ops import Busy, Demand, Granted, Hold, Kept, Record, Release, Shortfall, Usage
from .refusal import Refusal, unavailable
from .requirement import (
    OnDisconnect,
    Requirement,
    resolved_org,
)

__all__ = [
    "BODILESS",
    "UNRESOLVED",
    "FeatureUsage",
    "Gate",
    "Part",
    "RefusedRequest",
    "TierContext",
    "ended_meanwhile",
]

UNRESOLVED: Final = object()
BODILESS: Final = frozenset({204, 304})
"""Statuses of responses that are over once they have begun."""

UNCOUNTED: Final = frozenset({"HEAD", "OPTIONS"})


class RefusedRequest(NamedTuple):
    """The end of a request that may not go on. ``response`` is the application's own, if it made one."""

    refusal: Refusal
    response: Any = None


class TierContext:
    """What a handler finds at ``request.state.tier``: the org, the answers, and the usage of each feature.

    ``org`` is the org's name, None before any gate (or for nobody), `UNMETERED` or `NO_ORG`.
    """

    __slots__ = (
        "_gates",
        "_plain",
        "_provisional",
        "_usages",
        "_values",
        "admitted",
        "core",
        "has_begun",
        "has_org",
        "has_raised",
        "has_refused",
        "is_entered",
        "is_idle",
        "is_over",
        "is_socket",
        "keys",
        "message_parts",
        "needs_flow",
        "options",
        "org",
        "refused",
        "request",
    )  # fmt: skip

    def __init__(self, core: Core, options: GateOptions, request: Any = None, *, is_socket: bool = False) -> None:
        self.core = core
        self.options = options
        self.request = request  # None until something asks for it
        self.is_socket = is_socket
        self.needs_flow = is_socket or options.idempotency == "header"
        self.keys: dict[str, str] | None = None  # of features that count once for a key of the client's
        self.message_parts: dict[str, tuple[Part, ...]] | None = None  # what each message of a connection needs
        self.org: str | OrgMark | None = None
        self.refused: RefusedRequest | None = None
        self.has_refused = False  # some gate, whether or not the handler went on without it
        self.has_raised = False  # a refusal was raised before the handler: the response is made of it
        self.admitted: list[Requirement] = []
        self.is_idle = True  # nothing is held or refused: there is nothing to settle
        self.is_over = False
        self.has_begun = False  # a success, as far as anybody can see: what is added may be counted before its end
        self.has_org = False
        self.is_entered = False  # a gate around the handler settles when it returns
        self._provisional: tuple[Hold, ...] | None = None  # settled in a transaction that may yet be rolled back
        self._plain: Kept | None = None  # what a success counts, while nobody has said otherwise
        self._gates: list[Gate] = []
        self._usages: dict[str, FeatureUsage | None] = {}  # made when a handler asks for one
        self._values: dict[int, Any] = {}  # what org callables returned, by their identity

    def __getitem__(self, feature: str) -> FeatureUsage:
        usage = self._usages.get(feature)
        if usage is None:
            if feature not in self._usages:
                hint = f"; this one has {sorted(self._usages)}" if self._usages else ""
                raise KeyError(f"{feature!r} is not required by this route{hint}")
            usage = self._usages[feature] = FeatureUsage(self, feature)
            self._plain = None  # the handler may say what to count
        return usage

    def __contains__(self, feature: object) -> bool:
        return feature in self._usages

    @property
    def method(self) -> str:
        """The request's; of a WebSocket connection that of its handshake."""
        return "GET" if self.is_socket else str(self.request.method)

    @property
    def answers(self) -> dict[str, AsyncAnswer]:
        """The answer for each feature that this request was let through for, with the numbers of now."""
        return {feature: self._answer(feature) for feature in sorted(self._usages)}

    def _answer(self, feature: str) -> AsyncAnswer:
        now = self.glance(feature)
        report = AsyncTier.on(self.core).report
        org = self.org if isinstance(self.org, str) else ""
        return AsyncAnswer(True, None, org, feature, now.used, now.limit, now.remaining, None, report)

    # ---- whose request it is ----------------------------------------------------------------------------------------

    def answer_of(self, of: Any) -> Any:
        """What an org callable has returned (perhaps an awaitable): it is asked once per request."""
        return self._values.get(id(of), UNRESOLVED)

    def agree_on(self, of: Any, value: Any) -> None:
        """Take a value for the request's org; two requirements that disagree are a mistake in the application."""
        self._values[id(of)] = value
        org = resolved_org(value)
        if self.has_org and org != self.org:
            raise ConfigurationError(
                f"org: the requirements of one request must agree on its org, got {self.org!r} and {org!r}", path="org"
            )
        self.org = org
        self.has_org = True

    # ---- what is held -----------------------------------------------------------------------------------------------

    def admit_at_once(self, requirement: Requirement) -> bool:
        """The straight path of `tier_middleware.gate.admission`: one feature, a fixed amount, an org, and room for it.

        False where anything is otherwise, with nothing held: then the flow decides.
        """
        core, request, demand, of = self.core, self.request, requirement.demand, requirement.org or self.options.org
        if self.has_org or demand is None or of is None or not core.is_straight:
            return False
        if self.needs_flow or request.method in UNCOUNTED:
            return False
        value = of(request)
        if not isinstance(value, str):
            self._values[id(of)] = value
            return False
        self.agree_on(of, value)
        try:
            op = core.operations.reserve(self.org, (demand,))  # type: ignore[arg-type]  # a str is an org
            reply = core.attempt_at_once(op)
        except (Busy, TierError):
            return False
        if type(reply) is not Granted:
            return False
        (hold,) = reply.holds
        self.admitted.append(requirement)
        self._let_through(Gate(demand.feature, ((requirement, demand.n),), hold, hold is None))
        if self.is_over:  # a sync handler's thread goes on when its request is cancelled
            with suppress(Busy, TierError):  # else it expires
                core.attempt_at_once(Release(tuple(filter(None, reply.holds)), core.now_ms()))
            raise ended_meanwhile((requirement,))
        if hold is not None and requirement.report_if is None:
            self._plain = Kept(hold, demand.n, requirement.overage == "cap")
        return True

    def pass_through(self, requirements: Iterable[Requirement]) -> None:
        """Let a request go on uncounted; handlers find the usages that they expect."""
        for requirement in requirements:
            self.admitted.append(requirement)
            self._usages.setdefault(requirement.feature)

    def key_of(self, feature: str) -> str:
        """What the next gate of a feature counts once for; empty where it counts whenever it is passed."""
        key = None if self.keys is None else self.keys.get(feature)
        return f"{key}:{len(self.gates_of(feature))}" if key else ""

    def admit_paid(self, feature: str, wanted: tuple[Part, ...], *, is_taken: bool = False) -> None:
        """Let the request through for what it has paid when it was sent before."""
        self._let_through(Gate(feature, wanted, None, True, is_taken=is_taken, key=self.key_of(feature)))

    def admit(self, parts: dict[str, tuple[Part, ...]], admitted: Admitted, *, is_taken: bool = False) -> None:
        holds = admitted.holds or (None,) * len(parts)
        for (feature, wanted), hold in zip(parts.items(), holds, strict=True):
            is_known = admitted.error is None or self.core.model.is_on_off(feature)
            is_free, key = hold is None and is_known, self.key_of(feature)
            self._let_through(Gate(feature, wanted, hold, is_free, is_taken=is_taken, key=key))
            if wanted[0][0].per == "message" and not is_taken:
                self.message_parts = {**(self.message_parts or {}), feature: wanted}

    def _let_through(self, gate: Gate) -> None:
        self.is_idle = False
        self.refused = None  # by a gate before: the handler went on without it
        self._plain = None
        self._gates.append(gate)
        self._usages.setdefault(gate.feature)
        core = self.core
        core.live.add(self)  # `Core.enter`, in line
        if not core.keeper.is_running:
            core.keeper.start(core)

    def withdraw(self, requirement: Requirement) -> tuple[Hold, ...]:
        """Undo that the request was let through for a requirement, alone; answers what is to be released."""
        gone = [gate for gate in self._gates if gate.parts[0][0] is requirement]
        self._gates = [gate for gate in self._gates if gate not in gone]
        self._plain = None
        self.admitted.remove(requirement)
        if not any(other.feature == requirement.feature for other in self.admitted):
            del self._usages[requirement.feature]
        return tuple([gate.hold for gate in gone if gate.hold is not None])

    def refuse(self, refusal: Refusal, response: Any) -> RefusedRequest:
        self.is_idle = False
        self.has_refused = True
        self._plain = None
        self.refused = RefusedRequest(refusal, response)
        return self.refused

    def refused_for_loss(self, error: TierError) -> RefusedRequest:
        """What a request is answered whose usage is lost, where that is to be a failure."""
        feature = self.admitted[0].feature if self.admitted else ""
        return RefusedRequest(unavailable(feature, 0, None, error))

    def part_of(self, feature: str) -> TierContext:
        """A context of its own with what is held for a feature, which this one is rid of."""
        part = TierContext(self.core, self.options)
        part.org, part.has_org, part.is_idle, part.keys = self.org, True, False, self.keys
        part._usages[feature] = self[feature].shared_with_a_task()
        part._gates = [gate.without_response() for gate in self.gates_of(feature)]
        self._gates = [gate for gate in self._gates if gate.feature != feature]
        self._plain = None
        self.core.enter(part)
        return part

    def gates_of(self, feature: str) -> list[Gate]:
        return [gate for gate in self._gates if gate.feature == feature]

    async def reserve_more(self, feature: str, n: int) -> None:
        # a stream takes thousands of times: not all its gates are looked at for each
        gate = next((gate for gate in self._gates if gate.feature == feature), None)
        if not isinstance(self.org, str) or gate is None:
            return  # unmetered
        first, _ = gate.parts[0]  # what ends this request ends its additions
        policy = first.on_error or self.options.on_error or self.core.settings.on_error
        op = self.core.operations.reserve(self.org, (Demand(feature, n),))

        def reserving() -> flow.Flow[None]:
            if (yield from self.has_paid(feature)):
                self.admit_paid(feature, ((first, n),), is_taken=True)
                return
            reply = yield from flow.admit(op, self.core.tally.fails_open(policy, self.request))
            if isinstance(reply, Shortfall):
                raise refused(reply)
            if isinstance(reply, Denied):
                raise reply.error
            if self.is_over:  # the request ended while this waited
                held = tuple(filter(None, reply.holds or ()))
                yield from flow.insisted(Release(held, self.core.now_ms()))
                self.ensure_open(feature)
            self.admit({feature: ((first, n),)}, reply, is_taken=True)  # here: a task may be cancelled meanwhile

        await drive.arun(reserving(), self.core.engine, self.core.timeout)

    def has_paid(self, feature: str) -> flow.Flow[bool]:
        """Whether what the next gate of a feature is to count was counted when the request was sent before."""
        key = self.key_of(feature)
        if not key:
            return False
        try:
            (is_known,) = yield from flow.do(self.core.operations.look_up_keys(str(self.org), (key,)))
        except TierError:  # to reserve it will say the same, and the policy decides
            return False
        return is_known

    def ensure_open(self, feature: str) -> None:
        if self.is_over:
            raise RuntimeError(f"{feature!r}: this request is settled already; report later usage with tier.report()")

    def glance(self, feature: str) -> Usage:
        if not isinstance(self.org, str):
            return Usage(feature, used=0, limit=None)
        try:
            return self.core.glance(self.org, feature)
        except Refused:  # the org was deleted meanwhile
            return Usage(feature, used=0, limit=0)
        except EngineUnavailable:  # the gate is open for now, and a handler that asks must not fail for it
            return Usage(feature, used=0, limit=None)

    # ---- settlement -------------------------------------------------------------------------------------------------

    def is_settled_at_once(self, status: int | None) -> bool:
        """The straight path of `settlement` for a success: one gate, of which nobody said anything since.

        False where anything is otherwise, with nothing settled.
        """
        if self._plain is None or status is None or status >= 400:
            return False
        if not self.core.is_committed_at_once(self._plain):
            return False
        self.is_over = True
        self.core.live.discard(self)
        return True

    def is_failure(self, status: int) -> bool:
        """Whether a response with this status counts nothing, whatever the rest of it is."""
        counts = (requirement.is_counted(self.request, status) for requirement in self.admitted)
        return self._ends_refused(status) or not any(counts)

    def _ends_refused(self, status: int) -> bool:
        """Whether a refusal stands: of a handler that goes on without what an inner gate refused, a success counts."""
        return self.refused is not None and (status >= 400 or self.has_raised)

    def settle(self) -> None:
        """Count what this request used now, as for a success, and once; nothing can be added afterwards.

        For sync handlers. On the engine ``django://`` it is part of the transaction around it: count and work are both
        there, or neither. Raises `UsageLost` under ``on_loss="fail"``.
        """
        if self.is_over:
            raise RuntimeError("this request is settled already")
        if not self.is_idle:
            self.settle_as(200)

    def settle_as(self, status: int, *, is_counted: bool = True) -> None:
        """Settle now, as for a response with this status."""
        settlement = self.settlement(status, is_counted=is_counted and self.method != "HEAD")
        self._plain = None
        self._provisional = (*(kept.hold for kept in settlement.kept), *settlement.released)
        drive.run(self.core.settling(settlement), self.core.engine, self.core.timeout)
        self.core.when_certain(self._end)

    def _end(self) -> None:
        self.is_idle = True

    def count_so_far(self, status: int) -> None:
        """Count now what a success will count, with which the request may yet not end: then that is taken back.

        Levels, and what counts once for a client's key, are left to the end. Raises `EngineUnavailable`.
        """
        counted = []
        for gate, n in self._counts(status, is_finished=True, is_said_only=False):
            if gate.hold is not None and n and not gate.key:
                gate.counted = n
                counted.append(Kept(gate.hold, n, gate.is_capped))
        self.core.renew(tuple(counted))

    def so_far(self) -> tuple[Kept, ...]:
        """What is held, and what a response that has begun has used of it; for the keeper, whose thread calls it."""
        with self.core.sharing:
            if self.is_over:
                return ()
            if self.has_begun:
                for usage in list(self._usages.values()):
                    if usage is not None and usage.so_far:
                        for gate, n in usage.shared([(gate, gate.n) for gate in self.gates_of(usage.feature)]):
                            if not gate.key:  # if the process were killed, the next try could not tell
                                gate.counted = max(gate.counted, n or 0)
            return tuple([Kept(gate.hold, gate.counted, gate.is_capped) for gate in self._gates if gate.hold])

    @property
    def holds_message(self) -> bool:
        """Whether what the next message needs is held already."""
        return any(gate.is_per_message for gate in self._gates)

    def message_settlement(self, status: int, *, is_counted: bool) -> Settlement:
        """How a message ends; the next one has to be let through anew."""
        gates = [gate for gate in self._gates if gate.is_per_message]
        self._gates = [gate for gate in self._gates if not gate.is_per_message]
        counts: Sequence[tuple[Gate, int | None]]
        try:
            counts = [(gate, gate.counted_for(self.request, status) if is_counted else None) for gate in gates]
        except Exception as failure:  # of `report_if`
            return self._given_back(gates, failure)
        counts = self._as_said(counts, {})
        for name in self.message_parts or ():
            usage = self._usages[name]
            if usage is not None:
                usage.begin_anew(self)
        return self._settlement_of(counts)

    def settlement(
        self, status: int | None, *, is_counted: bool = True, is_finished: bool = True, is_said_only: bool = False
    ) -> Settlement:
        """How the request ends: with this status, None for a failure without one. Nothing can be added afterwards.

        With ``is_finished`` False it is a response that has begun and will not be completed: what that counts,
        ``on_disconnect`` says. With ``is_said_only`` only what the handler has said was used.
        """
        self.is_over = True
        self.core.live.discard(self)
        if self._provisional is not None:  # no more than that what was rolled back is given back
            return Settlement(released=self._provisional)
        is_counted = is_counted and status is not None and not self._ends_refused(status)
        if not is_counted:
            return self._given_back(self._gates)
        try:
            counts = self._counts(status or 0, is_finished=is_finished, is_said_only=is_said_only)
        except Exception as failure:  # of `report_if`
            return self._given_back(self._gates, failure)
        return self._settlement_of(counts)

    def _given_back(self, gates: Iterable[Gate], failure: Exception | None = None) -> Settlement:
        return Settlement(released=tuple([gate.hold for gate in gates if gate.hold is not None]), failure=failure)

    def _settlement_of(self, counts: Iterable[tuple[Gate, int | None]]) -> Settlement:
        kept: list[Kept] = []
        released: list[Hold] = []
        records: list[Record] = []
        for gate, n in counts:
            if gate.hold is None:
                if n and not gate.is_free:
                    records.append(self.core.operations.record(str(self.org), gate.feature, n, key=gate.key or None))
            elif n is not None:
                kept.append(Kept(gate.hold, n, gate.is_capped, gate.key))
            else:
                released.append(gate.hold)
        return Settlement(tuple(kept), tuple(released), tuple(records))

    def _counts(self, status: int, *, is_finished: bool, is_said_only: bool) -> Sequence[tuple[Gate, int | None]]:
        """What each gate counts for a response with this status, None to give it back."""
        counts = [(gate, gate.counted_for(self.request, status)) for gate in self._gates if not gate.is_free]
        least: Counter[str] = Counter()
        for index, (gate, n) in enumerate(counts):
            policy = "report" if is_finished else self._on_disconnect(gate)
            usage = self._usages[gate.feature]
            is_unsaid = is_said_only and (usage is None or usage.so_far is None)
            if policy == "release" or gate.is_per_message or is_unsaid:  # a message that counted did so by itself
                counts[index] = (gate, None)
            elif policy == "estimate" and n and not gate.is_taken:
                least[gate.feature] += n
        return self._as_said(counts, least)

    def _as_said(
        self, counts: Sequence[tuple[Gate, int | None]], least: Mapping[str, int]
    ) -> Sequence[tuple[Gate, int | None]]:
        """The same, once the handler has had its say; at least so much of a feature."""
        with self.core.sharing:
            for usage in [usage for usage in self._usages.values() if usage is not None]:
                mine = [(gate, n) for gate, n in counts if gate.feature == usage.feature]
                others = [(gate, n) for gate, n in counts if gate.feature != usage.feature]
                counts = [*others, *usage.shared(mine, least.get(usage.feature, 0))]
        return counts

    def _on_disconnect(self, gate: Gate) -> OnDisconnect:
        requirement, _ = gate.parts[0]
        return requirement.on_disconnect or self.options.on_disconnect or "report"


def ended_meanwhile(requirements: Iterable[Requirement]) -> RuntimeError:
    features = [requirement.feature for requirement in requirements]
    return RuntimeError(f"the request ended while {features} was checked")
