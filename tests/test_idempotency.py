"""The client's key: how it may be written, and what it is a key of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.idempotency import MAX_KEY, client_key, metering_key


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("  abc\t", "abc"),
        ('"a b, c; d"', "a b, c; d"),
        (r'"a\"b\\c"', r"a\"b\\c".replace("\\\\", "\\").replace('\\"', '"')),
        ("AZaz09!#$%&'()*+-./:<=>?@[]^_`{|}~", "AZaz09!#$%&'()*+-./:<=>?@[]^_`{|}~"),
        ("x" * MAX_KEY, "x" * MAX_KEY),
        ('"' + "\\\\" * MAX_KEY + '"', "\\" * MAX_KEY),
    ],
)
def test_quoted_or_bare(value: str, key: str) -> None:
    assert client_key([value]) == key


def test_none() -> None:
    assert client_key([]) is None


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ["   "],
        ['""'],
        ['"open'],
        ['open"'],
        ['"a"b"'],
        [r'"a\b"'],
        ['"a\\"'],
        ["a b"],
        ["a,b"],
        ['"a", "b"'],
        ['"a";p=1'],
        ["a;b"],
        ["a\\b"],
        ["é"],
        ['"é"'],
        ["a\x00b"],
        ['"a\nb"'],
        ["a\x7f"],
        ["x" * (MAX_KEY + 1)],
        ['"' + "x" * (MAX_KEY + 1) + '"'],
        ["x" * 1_000_000],
        ['"' + "\\" * 1_000_000],
        ["a", "a"],
    ],
)
def test_what_is_none(values: list[str]) -> None:
    with pytest.raises(ValueError, match=r"more than once|more than 255|must be a string"):
        client_key(values)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=MAX_KEY))
def test_every_printable_key_can_be_quoted(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert client_key([quoted]) == key


@given(st.lists(st.text(max_size=8), min_size=5, max_size=5), st.lists(st.text(max_size=8), min_size=5, max_size=5))
def test_each_part_makes_another_key(one: list[str], other: list[str]) -> None:
    assert (metering_key(*one) == metering_key(*other)) == (one == other)


def test_it_is_a_key_for_engines() -> None:
    key = metering_key("org:" + "x" * 10_000, "feature:x", "POST", "/", "k" * MAX_KEY)
    assert len(f"{key}:12") < 100
