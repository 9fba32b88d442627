"""What a route may declare, and what becomes of the values that applications hand over."""

from __future__ import annotations

import functools
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware import NO_ORG, UNMETERED, ConfigurationError, InvalidRequest
from tier_middleware.names import MAX_UNITS
from tier_middleware.requirement import ONE, Requirement, amount_arguments, checked_amount, resolved_org

ID = UUID("12345678-1234-5678-1234-567812345678")


class Callable1:
    def __call__(self, request: Any) -> int:
        return 1


class Callable2:
    def __call__(self, request: Any, kwargs: Any) -> int:
        return 1

    def method(self, request: Any, kwargs: Any) -> int:
        return 1


async def asynchronous(request: Any) -> int:
    return 1


async def asynchronous2(request: Any, kwargs: Any) -> int:
    return 1


@pytest.mark.parametrize(
    ("amount", "takes_kwargs"),
    [
        (lambda request: 1, False),
        (lambda request, kwargs: 1, True),
        (lambda request, extra=None: 1, False),
        (lambda request, kwargs, extra=None: 1, True),
        (lambda *arguments: 1, False),
        (Callable1(), False),
        (Callable2(), True),
        (Callable2().method, True),
        (asynchronous, False),
        (asynchronous2, True),
        (functools.partial(lambda n, request: n, 5), False),
        (functools.partial(lambda n, request, kwargs: n, 5), True),
        (len, False),
        (max, False),
    ],
)
def test_what_an_amount_is_called_with(amount: Any, takes_kwargs: bool) -> None:
    requirement = Requirement("feature:x", amount)
    assert requirement.takes_kwargs == takes_kwargs
    assert amount_arguments(requirement, "request", {"a": 1}) == (
        ("request", {"a": 1}) if takes_kwargs else ("request",)
    )


@pytest.mark.parametrize("amount", [0, 1, 5, MAX_UNITS])
def test_fixed_amounts(amount: int) -> None:
    requirement = Requirement("feature:x", amount)
    assert requirement.amount == amount
    assert requirement.is_amount_given


def test_no_amount_is_1_and_not_given() -> None:
    requirement = Requirement("feature:x")
    assert requirement.amount == 1
    assert not requirement.is_amount_given
    assert type(ONE) is not int
    assert Requirement("feature:x", 1).is_amount_given


@pytest.mark.parametrize(
    "amount", [-1, 1.0, 1.5, True, False, "1", None, MAX_UNITS + 1, [1], {}, lambda: 1, lambda a, b, c: 1, b"1"]
)
def test_bad_amounts_are_named(amount: Any) -> None:
    with pytest.raises((ConfigurationError, InvalidRequest), match="amount: must be"):
        Requirement("feature:x", amount)


@pytest.mark.parametrize(
    "feature", ["", "x", "feature:", "feature:a b", "feature:ü", "Feature:x", None, 5, "feature:x\n"]
)
def test_bad_features_are_named(feature: Any) -> None:
    with pytest.raises(InvalidRequest, match="feature: must") as raised:
        Requirement(feature)
    assert repr(feature) in str(raised.value)


def test_requirements_are_themselves() -> None:
    """Two alike are two: their amounts add."""
    assert Requirement("feature:x") != Requirement("feature:x")
    requirement = Requirement("feature:x")
    assert requirement in [requirement]
    assert hash(requirement)
    with pytest.raises(AttributeError):
        requirement.feature = "feature:y"  # type: ignore[misc]


@pytest.mark.parametrize(("status", "is_counted"), [(200, True), (204, True), (399, True), (400, False), (503, False)])
def test_a_success_is_below_400(status: int, is_counted: bool) -> None:
    assert Requirement("feature:x").is_counted(None, status) is is_counted
    assert Requirement("feature:x", report_if=lambda request, status: status >= 400).is_counted(None, status) is (
        not is_counted
    )


async def not_asked(request: Any, status: int) -> bool:
    return False


class NotAsked:
    async def __call__(self, request: Any, status: int) -> bool:
        return False


@pytest.mark.parametrize("name", ["report_if", "on_error"])
@pytest.mark.parametrize("function", [not_asked, functools.partial(not_asked), NotAsked()])
def test_an_async_callable_where_nobody_awaits_is_refused(name: str, function: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Requirement("feature:x", **{name: function})
    assert raised.value.path == name


def test_a_coroutine_is_no_yes() -> None:
    """Of a lambda nobody sees that it answers one."""
    requirement = Requirement("feature:x", report_if=lambda request, status: not_asked(request, status))
    with pytest.raises(ConfigurationError, match="report_if: must be sync, and answered <coroutine"):
        requirement.is_counted(None, 200)


@pytest.mark.parametrize(
    ("value", "org"),
    [("acme", "org:acme"), ("org:acme", "org:acme"), (5, "org:5"), (-5, "org:-5"), (ID, f"org:{ID}"), (None, None),
     (NO_ORG, NO_ORG), (UNMETERED, UNMETERED)],
)  # fmt: skip
def test_orgs(value: Any, org: Any) -> None:
    assert resolved_org(value) == org


@pytest.mark.parametrize("value", ["", "org:", True, False, 1.5, b"acme", object(), ["a"], "\ud800", "x" * 1100])
def test_what_is_no_org(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="org"):
        resolved_org(value)


@given(st.one_of(st.text(), st.integers(), st.uuids()))
def test_every_id_is_an_org_or_an_error(value: Any) -> None:
    try:
        org = resolved_org(value)
    except InvalidRequest:
        return
    assert isinstance(org, str)
    assert org.startswith("org:")
    assert len(org) > len("org:")


@pytest.mark.parametrize("value", [-1, -(10**40), 1.5, 1e40, True, None, "3"])
def test_an_amount_that_a_callable_returned_is_checked(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"amount: .*\(of 'feature:x'\)"):
        checked_amount(value, "feature:x")


@pytest.mark.parametrize("value", [MAX_UNITS + 1, 10**40])
def test_more_than_can_be_counted_is_kept_for_a_refusal(value: int) -> None:
    assert checked_amount(value, "feature:x") == MAX_UNITS + 1


def test_a_whole_one_is_taken() -> None:
    class Whole(int):
        pass

    assert checked_amount(Whole(3), "feature:x") == 3
    assert type(checked_amount(Whole(3), "feature:x")) is int
