"""Random operations, to which every engine must answer as the reference does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from ..engines.memory import MemoryEngine
from ..names import clock_of, feature_plan, org_key
from ..ops import (
    Adjust,
    AdvanceClock,
    Check,
    Commit,
    DeleteOrg,
    Demand,
    Describe,
    Granted,
    Hold,
    Kept,
    LookUp,
    LookUpClock,
    LookUpPhases,
    MakeClock,
    Op,
    Pull,
    Push,
    ReadHistory,
    Record,
    Recorded,
    Release,
    Reserve,
    Schedule,
    UpdateOrg,
)
from ..orginfo import OrgInfo
from ..policy import KEY_LIFETIME_MS, PlannedPhase
from .bench import (
    CALLS,
    DISK,
    EXPORT,
    MAILS,
    MODEL,
    PEAK,
    SEATS,
    START,
    Bench,
    Suite,
    attempted,
    likeness,
)

__all__ = ["Likeness"]


class Likeness(Suite):
    """The same answers as the reference, ``memory://``, to whatever anybody thinks of asking."""

    SEEDS: Final = 12
    STEPS: Final = 120

    def test_it_answers_random_operations_as_the_reference_does(self) -> None:
        bench = self.bench()
        for seed in range(self.SEEDS):
            bench.clock.set(START + timedelta(days=400 * seed))
            reference = Bench(MemoryEngine(bench.now_ms), bench.clock)
            reference.do(Push(MODEL, bench.now_ms()))
            chance = _Chance(
                random.Random(seed), (f"org:{seed}", f"org:{seed}:x", org_key(f"org:{seed}", f"clock_{seed}"))
            )
            done: list[Op[Any]] = []
            for _ in range(self.STEPS):
                bench.pass_(milliseconds=chance.milliseconds())
                mine, its = chance.operations(bench.now_ms() - chance.skew())
                done.append(mine)
                answer, expected = attempted(bench, mine), attempted(reference, its)
                assert likeness(answer) == likeness(expected), (f"seed {seed}", done[-10:])
                chance.remember(bench.now_ms(), mine, answer, expected)


class _Chance:
    """Makes up operations, each for two engines: holds are known to each engine under a place of its own."""

    FEATURES: Final = (CALLS, CALLS, CALLS, CALLS, MAILS, EXPORT, SEATS, PEAK, DISK, "feature:unheard-of")
    PLANS: Final = (*MODEL.plans, f"{CALLS}@plan:free@1", f"{SEATS}@plan:company@1")
    HOUR_MS: Final = 3_600_000
    DAY_MS: Final = 24 * HOUR_MS

    def __init__(self, random: random.Random, orgs: Sequence[str]) -> None:
        self._random = random
        self._orgs = orgs
        self._holds: list[tuple[int, Hold, Hold]] = []
        self._sent: list[Record | Adjust] = []

    def milliseconds(self) -> int:
        longest = self._random.choice((0, 0, 1, 2 * self.HOUR_MS, self.DAY_MS, 12 * self.DAY_MS))
        return self._random.randint(0, longest)

    def skew(self) -> int:
        """How far behind the clock of this operation's machine is."""
        return self._random.choice((0, 0, 0, 0, 1, 60_000))

    def remember(self, now_ms: int, op: Op[Any], answer: object, expected: object) -> None:
        if isinstance(answer, Granted) and isinstance(expected, Granted):
            pairs = zip(answer.holds, expected.holds, strict=True)
            self._holds += [(now_ms, mine, its) for mine, its in pairs if mine is not None and its is not None]
        if isinstance(op, Record | Adjust) and isinstance(answer, Recorded):
            self._sent.append(op)

    def operations(self, now_ms: int) -> tuple[Op[Any], Op[Any]]:
        make = self._random.choice((self._settlement, self._settlement, *[self._same] * 5))
        return make(now_ms)

    def _settlement(self, now_ms: int) -> tuple[Op[Any], Op[Any]]:
        self._holds = [held for held in self._holds if held[0] > now_ms - KEY_LIFETIME_MS + self.DAY_MS]
        chosen = self._random.choices(self._holds, k=self._random.randint(1, 3)) if self._holds else []
        if self._random.random() < 0.3:
            return (
                Release(tuple(mine for _, mine, _ in chosen), now_ms),
                Release(tuple(its for _, _, its in chosen), now_ms),
            )
        amounts = [(self._random.choice((0, 1, 1, 2, 3, 7)), self._random.random() < 0.3) for _ in chosen]
        return (
            Commit(tuple(Kept(mine, *how) for (_, mine, _), how in zip(chosen, amounts, strict=True)), now_ms),
            Commit(tuple(Kept(its, *how) for (_, _, its), how in zip(chosen, amounts, strict=True)), now_ms),
        )

    def _same(self, now_ms: int) -> tuple[Op[Any], Op[Any]]:
        often = (self._reserve, self._reserve, self._reserve, self._record, self._adjust, self._check, self._schedule)
        seldom = (self._update, self._question, self._question, self._again, self._clock)
        op = self._random.choice((*often, *seldom))(now_ms)
        return op, op

    def _reserve(self, now_ms: int) -> Op[Any]:
        features = set(self._random.choices(self.FEATURES, k=self._random.choice((1, 1, 1, 2, 3))))
        demands = tuple(self._demand(feature) for feature in sorted(features))
        ids = tuple(next(Bench._ids) for _ in demands)
        expires_ms = now_ms + self._random.choice((1, 60_000, self.HOUR_MS, 2 * self.DAY_MS))
        return Reserve(self._org(), demands, ids, now_ms, expires_ms, self._default_plan())

    def _record(self, now_ms: int) -> Op[Any]:
        at_ms = now_ms - self._random.randint(-self.HOUR_MS // 10, 40 * self.DAY_MS)
        return Record(
            self._org(),
            self._feature(),
            self._random.randint(0, 4),
            f"key:{next(Bench._ids)}",
            now_ms,
            self._random.choice((None, at_ms)),
            self._random.random() < 0.3,
            self._default_plan(),
        )

    def _adjust(self, now_ms: int) -> Op[Any]:
        return Adjust(self._org(), self._feature(), self._random.randint(-4, 4), f"key:{next(Bench._ids)}", now_ms)

    def _check(self, now_ms: int) -> Op[Any]:
        return Check(self._org(), self._demand(self._feature()), now_ms, self._default_plan())

    def _schedule(self, now_ms: int) -> Op[Any]:
        phases = [
            PlannedPhase(
                self._random.choice((None, None, None, now_ms, now_ms + self.DAY_MS, now_ms + 9 * self.DAY_MS)),
                tuple(
                    feature_plan(name) for name in self._random.sample(self.PLANS, self._random.choice((0, 1, 1, 2)))
                ),
                trial=self._random.random() < 0.2,
            )
            for _ in range(self._random.choice((0, 1, 1, 1, 2)))
        ]
        must_exist, keeps_pending = self._random.random() < 0.2, self._random.random() < 0.3
        return Schedule(self._org(), tuple(phases), now_ms, must_exist, keeps_pending)

    def _update(self, now_ms: int) -> Op[Any]:
        text = self._random.choice(("", "", "a", "b@c"))
        metadata = dict.fromkeys(self._random.sample(("k", "l", "m"), self._random.randint(0, 3)), text)
        return UpdateOrg(
            self._org(), OrgInfo(email=text, name=self._random.choice(("", "n")), metadata=metadata), now_ms
        )

    def _question(self, now_ms: int) -> Op[Any]:
        org = self._org()
        often: list[Op[Any]] = [*[LookUp(org, now_ms)] * 6, *[ReadHistory(org, self._feature(), now_ms)] * 3]
        return self._random.choice([*often, LookUpPhases(org, now_ms), Describe(org), DeleteOrg(org), Pull()])

    def _clock(self, now_ms: int) -> Op[Any]:
        id, at_ms = (
            clock_of(self._orgs[-1]) + self._random.choice("ab"),
            now_ms + self._random.randint(-1, 1) * self.DAY_MS,
        )
        return self._random.choice([MakeClock(id, "any", at_ms), AdvanceClock(id, at_ms), LookUpClock(id)])

    def _again(self, now_ms: int) -> Op[Any]:
        sent = [op for op in self._sent if op.now_ms > now_ms - KEY_LIFETIME_MS + self.DAY_MS]
        return self._random.choice(sent) if sent else LookUp(self._org(), now_ms)

    def _demand(self, feature: str) -> Demand:
        return Demand(feature, self._random.choice((0, 1, 1, 1, 2, 3, 8)), is_given=self._random.random() < 0.9)

    def _org(self) -> str:
        return self._random.choice(self._orgs)

    def _feature(self) -> str:
        return self._random.choice(self.FEATURES)

    def _default_plan(self) -> str | None:
        return self._random.choice((None, None, None, "plan:free@1", "plan:team@1"))
