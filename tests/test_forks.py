"""A fork in the middle of everything: no lock stays locked, on the engine that has nothing but locks."""

from __future__ import annotations

from forking import exit_status, forked, hammered

from tier_middleware import Tier

MODEL = {"plans": {"plan:free@1": {"features": {"feature:calls": {"tiers": [{}]}}}}}


def test_a_child_can_count_though_its_parents_threads_were_counting() -> None:
    tier = Tier("memory://", pricing=MODEL, default_plan="plan:free@1")

    def count(number: int) -> None:
        tier.report("org:acme", "feature:calls")
        tier.core.tally.count("busy")

    def child() -> bool:
        tier.report("org:child", "feature:calls")
        is_right = tier.lookup_limit("org:child", "feature:calls").used == 1 and bool(tier.counts)
        tier.close()
        tier.open()
        return is_right

    with hammered(count, 4):
        statuses = [exit_status(forked(child), 5) for _ in range(40)]
    assert statuses == [0] * 40
    before = tier.lookup_limit("org:acme", "feature:calls").used
    tier.report("org:acme", "feature:calls")
    assert tier.lookup_limit("org:acme", "feature:calls").used == before + 1
