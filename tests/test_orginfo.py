"""What is known of an org: how it is read, checked, changed and stored."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.errors import InvalidRequest
from tier_middleware.names import MAX_NAME
from tier_middleware.orginfo import MAX_METADATA, NO_INFO, OrgInfo, checked_info, info_text, read_info, updated


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, NO_INFO),
        (OrgInfo(name="A"), OrgInfo(name="A")),
        (
            {"email": "a@example.com", "name": "A", "description": "D", "phone": "555"},
            OrgInfo("a@example.com", "A", "D", "555"),
        ),
        ({"metadata": {"k": "v", "gone": ""}}, OrgInfo(metadata={"k": "v", "gone": ""})),
        ({"metadata": {"Tier.x": "the prefix is reserved in small letters only"}}, None),
        # Tier's wire form
        ({"created": "2020-01-01T00:00:00Z"}, NO_INFO),
        ({"payment_method": "pm_1"}, OrgInfo(payment_method="pm_1")),
        ({"invoice_settings": {"default_payment_method": "pm_1"}}, OrgInfo(default_payment_method="pm_1")),
        ({"invoice_settings": {}}, NO_INFO),
        ({"invoice_settings": None}, NO_INFO),
        # as far as it goes
        ({"name": "x" * MAX_NAME}, OrgInfo(name="x" * MAX_NAME)),
        ({"email": "jürgen+tag@exämple"}, OrgInfo(email="jürgen+tag@exämple")),
    ],
)
def test_info_that_is_read(given: Any, expected: OrgInfo | None) -> None:
    assert checked_info(given) == (OrgInfo(**given) if expected is None else expected)


@pytest.mark.parametrize(
    ("given", "code", "path", "said"),
    [
        (None, "invalid_request", "info", "must be an OrgInfo or a mapping, got None"),
        ("a@example.com", "invalid_request", "info", "got 'a@example.com'"),
        ({"nope": 1}, "invalid_request", "info.nope", "unknown field, got 1"),
        ({"emial": "a@b"}, "invalid_request", "info.emial", "did you mean 'email'?, got 'a@b'"),
        ({7: "x"}, "invalid_request", "info.7", "unknown field, got 'x'"),
        ({"name": 7}, "invalid_request", "info.name", "must be a text of at most 1024 characters, got 7"),
        ({"name": None}, "invalid_request", "info.name", "got None"),
        (OrgInfo(phone=555), "invalid_request", "info.phone", "got 555"),  # type: ignore[arg-type]
        ({"description": "x" * (MAX_NAME + 1)}, "invalid_request", "info.description", "got 'xxx"),
        ({"name": "a\x00b"}, "invalid_request", "info.name", "got 'a\\x00b'"),
        ({"name": "\ud800"}, "invalid_request", "info.name", "got '\\ud800'"),
        ({"payment_method": []}, "invalid_request", "info.payment_method", "got []"),
        ({"invoice_settings": 7}, "invalid_request", "info.invoice_settings", "got 7"),
        ({"invoice_settings": {"footer": "x"}}, "invalid_request", "info.invoice_settings", "got {'footer': 'x'}"),
        ({"email": "nope"}, "invalid_email", "info.email", "must be an e-mail address, got 'nope'"),
        ({"email": "a@"}, "invalid_email", "info.email", "got 'a@'"),
        ({"email": "a b@example.com"}, "invalid_email", "info.email", "got 'a b@example.com'"),
        ({"email": "a@b@c"}, "invalid_email", "info.email", "got 'a@b@c'"),
        ({"email": "a@b\n"}, "invalid_email", "info.email", "got 'a@b\\n'"),
        ({"email": 7}, "invalid_request", "info.email", "got 7"),
        ({"metadata": None}, "invalid_metadata", "info.metadata", "got None"),
        ({"metadata": ["k"]}, "invalid_metadata", "info.metadata", "must be texts by text, got ['k']"),
        ({"metadata": {"a": 1}}, "invalid_metadata", "info.metadata['a']", "got 1"),
        ({"metadata": {1: "a"}}, "invalid_metadata", "info.metadata", "got 1"),
        ({"metadata": {"a": "x" * (MAX_NAME + 1)}}, "invalid_metadata", "info.metadata['a']", "got 'xxx"),
        ({"metadata": {"\udfff": "x"}}, "invalid_metadata", "info.metadata", "got '\\udfff'"),
        ({"metadata": {"tier.org": "x"}}, "invalid_metadata", "info.metadata", "prefix 'tier.', got 'tier.org'"),
        ({"metadata": {"tier.": ""}}, "invalid_metadata", "info.metadata", "got 'tier.'"),
    ],
)
def test_mistakes_name_the_field_and_the_value_with_tiers_codes(given: Any, code: str, path: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked_info(given)
    error = caught.value
    assert (error.status, error.code, error.path) == (400, code, path)
    assert error.message.startswith(f"{path}: ")
    assert said in error.message
    assert len(error.message) < 250


OLD = OrgInfo("a@example.com", "A", "D", "555", {"k": "v", "n": "1"}, "pm_1", "pm_2")


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (NO_INFO, OLD),
        (OrgInfo(name="B"), OrgInfo("a@example.com", "B", "D", "555", {"k": "v", "n": "1"}, "pm_1", "pm_2")),
        (
            OrgInfo(metadata={"k": "", "n": "2", "m": "3", "never": ""}),
            OrgInfo("a@example.com", "A", "D", "555", {"n": "2", "m": "3"}, "pm_1", "pm_2"),
        ),
        (OrgInfo("b@c", "B", "E", "6", {"k": "", "n": ""}, "x", "y"), OrgInfo("b@c", "B", "E", "6", {}, "x", "y")),
    ],
)
def test_an_update(new: OrgInfo, expected: OrgInfo) -> None:
    assert updated(OLD, new) == expected
    assert updated(updated(OLD, new), new) == expected


def test_an_update_leaves_what_it_was_given() -> None:
    given = {"k": "v"}
    after = updated(NO_INFO, OrgInfo(metadata=given))
    given["k"] = "changed"
    assert after.metadata == {"k": "v"}
    with pytest.raises(TypeError):
        after.metadata["k"] = "changed"  # type: ignore[index]


def test_metadata_is_bounded_in_all() -> None:
    full = updated(NO_INFO, OrgInfo(metadata={str(n): "x" for n in range(MAX_METADATA)}))
    swapped = updated(full, OrgInfo(metadata={"0": "", "more": "x"}))
    assert len(swapped.metadata) == MAX_METADATA
    with pytest.raises(InvalidRequest, match=r"^info\.metadata: must have at most 50 keys in all, got 51") as caught:
        updated(full, OrgInfo(metadata={"more": "x"}))
    assert caught.value.code == "invalid_metadata"


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
infos = st.builds(
    OrgInfo,
    email=st.sampled_from(["", "a@b"]),
    name=texts,
    description=texts,
    phone=texts,
    metadata=st.dictionaries(texts.filter(lambda key: not key.startswith("tier.")), texts, max_size=4),
    payment_method=texts,
    default_payment_method=texts,
)


@given(infos, infos)
def test_what_is_stored_reads_back_the_same(old: OrgInfo, new: OrgInfo) -> None:
    info = updated(updated(NO_INFO, checked_info(old)), checked_info(new))
    assert read_info(info_text(info)) == info
    assert "" not in info.metadata.values()


def test_an_org_that_has_no_info_is_stored_as_no_text() -> None:
    assert read_info("") == NO_INFO
