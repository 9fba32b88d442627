"""Names that look alike, or run together, are kept apart."""

from __future__ import annotations

from itertools import product
from typing import Final

from ..ops import Push
from ..pricing import read_model
from .bench import ACME, Suite, metered

__all__ = ["Isolation"]


class Isolation(Suite):
    """Nobody's usage is anybody else's."""

    ORGS: Final = (
        ACME,
        "org:acm",
        "org:acme:",
        "org:acme:x",
        "org:org:acme",
        "org:ACME",
        "org: acme",
        "org:acme ",
        "org:acme\n",
        "org:acme\0x",
        "org:ac'me",
        'org:ac"me',
        "org:acme'; DROP TABLE orgs; --",
        "org:{acme}",
        "org:*",
        "org:%",
        "org:acme/x?y=z#w",
        "org:\u00e9",
        "org:e\u0301",  # looks like the one before
        "org:\U0001f600",
        "org:1",
        "org:01",
        "org:" + "x" * 1020,
    )

    def test_orgs_with_similar_and_strange_names_are_counted_apart(self) -> None:
        bench = self.bench()
        for org in self.ORGS:
            bench.subscribe(org, "plan:open@1")
        for n, org in enumerate(self.ORGS, 1):
            bench.use(n=n, org=org)
            bench.record(100, org=org)
        assert [bench.used(org=org) for org in self.ORGS] == [n + 100 for n in range(1, len(self.ORGS) + 1)]

    def test_features_and_orgs_whose_names_run_together_are_counted_apart(self) -> None:
        model = read_model(
            {"plans": {"plan:a@1": {"features": {f"feature:{name}": metered(None) for name in ("a", "a:b", "b", "A")}}}}
        )
        bench = self.bench()
        bench.do(Push(model, bench.now_ms()))
        places = list(product(("org:x", "org:x:feature:a", "org:x:a"), sorted(model.features)))
        for org in {org for org, _ in places}:
            bench.subscribe(org, "plan:a@1")
        for n, (org, feature) in enumerate(places, 1):
            bench.use(feature, n, org=org)
        assert [bench.used(feature, org=org) for org, feature in places] == list(range(1, len(places) + 1))

    def test_strange_keys_are_told_apart(self) -> None:
        bench = self.bench("plan:open@1")
        keys = [
            "k",
            "K",
            "k ",
            " k",
            "k'",
            "k\n",
            "k\0",
            "k\uf8ff0",
            "k\uf8ff",
            "\u00e9",
            "e\u0301",
            "org:acme",
            "*",
            "x" * 1024,
        ]
        assert [bench.record(1, key=key).is_new for key in keys] == [True] * len(keys)
        assert [bench.record(1, key=key).is_new for key in keys] == [False] * len(keys)
        assert bench.used() == len(keys)
