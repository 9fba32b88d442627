"""Names and amounts: what is accepted, and that what is not is named in the message."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.errors import InvalidRequest
from tier_middleware.names import (
    MAX_UNITS,
    NO_ORG,
    UNMETERED,
    FeaturePlan,
    checked_feature,
    checked_key,
    checked_org,
    checked_plan,
    checked_units,
    clock_of,
    feature_plan,
    nearest,
    org_for,
    org_key,
    org_name,
)


def refused(check: Callable[..., object], *values: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check(*values)
    assert isinstance(caught.value, ValueError)
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")
    assert len(caught.value.message) < 300
    assert "\n" not in caught.value.message  # a name from outside forges no line of a log
    return caught.value


@pytest.mark.parametrize(
    "name", ["feature:a", "feature:A:b:9", "feature:feature-id", "feature:under_score", "feature:1"]
)
def test_feature_names_that_are_accepted(name: str) -> None:
    assert checked_feature(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "feature:",
        "feature",
        "a",
        "Feature:a",
        "plan:a@1",
        "feature:a b",
        "feature:a\n",
        "feature:a@plan:b@1",
        "feature:\u00e9",
        "feature:a/b",
        "feature:" + "a" * 1017,
        " feature:a",
        None,
        7,
        b"feature:a",
    ],
)
def test_feature_names_that_are_refused(name: object) -> None:
    assert refused(checked_feature, name).path == "feature"


@pytest.mark.parametrize("name", ["plan:free@1", "plan:a:b@v2", "plan:1@0"])
def test_plan_names_that_are_accepted(name: str) -> None:
    assert checked_plan(name) == name
    assert feature_plan(name) == FeaturePlan(None, name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "plan:",
        "free@1",
        "plan:@1",
        "plan:a@",
        "plan:a",
        "plan:a-b@1",
        "plan:a@1.0",
        "plan:a@1@2",
        "plan:a@1\n",
        None,
        1,
    ],
)
def test_plan_names_that_are_refused(name: object) -> None:
    assert refused(checked_plan, name).path == "plan"
    assert refused(feature_plan, name).path == "features"


def test_a_plan_without_a_version_is_told_how_one_looks() -> None:
    assert "'plan:free@1'" in refused(checked_plan, "plan:free").message


def test_a_feature_of_a_plan_is_read_and_written_alike() -> None:
    read = feature_plan("feature:calls@plan:free@1")
    assert read == FeaturePlan("feature:calls", "plan:free@1")
    assert str(read) == "feature:calls@plan:free@1"
    assert str(feature_plan("plan:free@1")) == "plan:free@1"


@pytest.mark.parametrize(
    "text", ["feature:calls", "feature:@plan:a@1", "feature:a@plan:a", "feature:a@feature:b@plan:a@1"]
)
def test_features_of_plans_that_are_refused(text: str) -> None:
    assert refused(feature_plan, text).path == "features"


@pytest.mark.parametrize(
    "org", ["org:a", "org:org:a", "org: ", "org:\n'\"", "org:\U0001f600", "org:\0", "org:" + "x" * 1020, "org:@"]
)
def test_orgs_that_are_accepted(org: str) -> None:
    assert checked_org(org) == org
    assert org_for(org) == org


@pytest.mark.parametrize(
    "org", ["", "acme", "org", "org:", "Org:a", "org:\ud800", "org:" + "x" * 1021, None, 7, b"org:a"]
)
def test_orgs_that_are_refused(org: object) -> None:
    assert refused(checked_org, org).path == "org"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1000))
def test_a_raw_id_gets_the_prefix_exactly_once(id: str) -> None:
    if id == "org:":
        return
    org = org_for(id)
    assert org == (id if id.startswith("org:") else "org:" + id)
    assert org_for(org) == checked_org(org) == org


def test_ids_that_are_numbers_get_the_prefix() -> None:
    assert org_for(7) == "org:7"
    assert org_for(UUID(int=7)) == "org:00000000-0000-0000-0000-000000000007"


@pytest.mark.parametrize(
    "value", ["", "org:", True, False, 1.0, None, b"a", UNMETERED, NO_ORG, ["a"], "x" * 2000, "\ud800"]
)
def test_ids_that_are_none_are_refused(value: object) -> None:
    assert refused(org_for, value).path == "org"


class Size(IntEnum):
    LARGE = 5


@pytest.mark.parametrize("n", [0, 1, MAX_UNITS, Size.LARGE])
def test_amounts_that_are_accepted(n: int) -> None:
    assert checked_units(n) == n
    assert type(checked_units(n)) is int


@pytest.mark.parametrize("n", [-1, True, False, 1.0, 0.5, "1", None, MAX_UNITS + 1, 10**30, float("nan"), 1j])
def test_amounts_that_are_refused(n: object) -> None:
    error = refused(checked_units, n, "amount")
    assert error.path == "amount"
    assert error.message.startswith("amount: must be")
    assert repr(n) in error.message


@pytest.mark.parametrize("key", ["k", " ", "\0", "\u00e9" * 1024])
def test_keys_that_are_accepted(key: str) -> None:
    assert checked_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * 1025, "\ud800", None, 7, b"k"])
def test_keys_that_are_refused(key: object) -> None:
    assert refused(checked_key, key).path == "key"


def test_the_nearest_name_is_found_or_none() -> None:
    assert nearest("feature:cals", ["feature:mails", "feature:calls"]) == "feature:calls"
    assert nearest("feature:cals", iter(["feature:calls"])) == "feature:calls"
    assert nearest("feature:cals", ["x"]) is None
    assert nearest("feature:cals", []) is None


@given(st.from_regex(r"org:.+", fullmatch=True), st.from_regex(r"clock_[0-9a-f]+", fullmatch=True))
def test_an_org_under_a_clock_has_a_key_that_no_org_has_for_a_name(org: str, clock: str) -> None:
    key = org_key(org, clock)
    assert (org_name(key), clock_of(key)) == (org, clock)
    assert (org_name(org), clock_of(org)) == (org, "")
    with pytest.raises(InvalidRequest):
        checked_org(key)
