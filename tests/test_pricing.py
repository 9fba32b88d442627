"""Pricing models: what is read, what is refused and where, and that what is written reads back the same."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tier_middleware.errors import ConfigurationError, PricingError
from tier_middleware.model import Difference, Divide, Feature, Model, Plan, PriceTier
from tier_middleware.names import MAX_UNITS
from tier_middleware.pricing import (
    as_dict,
    difference_text,
    dumps,
    json_value,
    plan_conflict,
    plan_text,
    read_model,
    read_plan,
)

VECTOR = json.loads((Path(__file__).parent / "vectors" / "02_push_pull_valid.json").read_text(), parse_float=Decimal)
PLAN = 'plans["plan:free@1"]'
FEATURE = f'{PLAN}.features["feature:x"]'


def model_with(**fields: object) -> dict[str, object]:
    return {"plans": {"plan:free@1": {"features": {"feature:x": fields}}}}


def feature_of(source: Any) -> Feature:
    return read_model(source).plans["plan:free@1"].features["feature:x"]


def plan_with(feature: dict[str, object] | None = None, **fields: object) -> Plan:
    raw = {"features": {"feature:x": feature or {}}, **fields}
    return read_model({"plans": {"plan:free@1": raw}}).plans["plan:free@1"]


def difference(stored: Plan, pushed: Plan) -> tuple[Difference, ...]:
    return Model({stored.name: stored}).diff(Model({pushed.name: pushed}))


# Against the recordings of the real server


def test_model_recorded_as_valid_is_pulled_as_recorded() -> None:
    pushed, pulled = VECTOR["steps"][0]["request"]["body_raw"], VECTOR["steps"][1]["response"]["body"]
    model = read_model(pushed)
    assert as_dict(model) == json.loads(json.dumps(pulled, default=float))
    assert json.loads(dumps(model), parse_float=Decimal) == pulled
    assert read_model(pulled) == model


def test_largest_int64_is_no_end_as_recorded() -> None:
    (step,) = (step for step in VECTOR["steps"] if (step.get("note") or "").startswith("upto of 1<<63-1"))
    assert as_dict(read_model(step["request"]["body"])) == {
        "plans": {
            "plan:big@1": {
                "title": "plan:big@1",
                "features": {"feature:up": {"tiers": [{}]}, "feature:up2": {"tiers": [{"upto": 2**53 + 1}]}},
            }
        }
    }


@pytest.mark.parametrize("note", ["Go matches JSON names", "a JSON name twice", "a second JSON value"])
def test_what_only_go_forgives_is_refused(note: str) -> None:
    (step,) = (step for step in VECTOR["steps"] if (step.get("note") or "").startswith(note))
    request = step["request"]
    with pytest.raises(PricingError):
        read_model(request["body"] if "body" in request else request["body_raw"])


# Sources


def test_every_kind_of_source_gives_the_same_model(tmp_path: Path) -> None:
    text = '{"plans": {"plan:free@1": {"features": {"feature:x": {"base": 0.1}}}}}'
    file = tmp_path / "pricing.json"
    file.write_text("\ufeff" + text, encoding="utf-8")
    model = read_model(model_with(base=0.1))
    assert feature_of(model).base == Decimal("0.1")
    assert read_model(model) == model
    assert read_model(text) == read_model(file) == read_model(str(file)) == model
    assert read_model(f"// why\n{text[:-1]},}}") == model


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.json", "No such file"),
        (".", "directory"),
        ("latin.json", "not UTF-8"),
        ("nul\0.json", "null byte"),
        ("lone\ud800.json", "surrogates not allowed"),
        ("", "directory"),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_file_that_cannot_be_read_is_named(tmp_path: Path, kind: type, name: str, says: str) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"plans": {}} // caf\xe9')
    path = kind(os.path.join(tmp_path, name))
    with pytest.raises(ConfigurationError, match=says) as caught:
        read_model(path)
    assert repr(os.fspath(path)) in caught.value.message


@pytest.mark.parametrize("source", [None, 1, b"{}", ["{}"]])
def test_other_sources_are_configuration_errors(source: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a Model, a mapping, a path or JSON text"):
        read_model(source)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"plans": {} "x"}', ":1:14: "),
        ('{\n  // a comment\n  "plans" {}\n}', ":3:11: "),
        ('{"plans": {', ":1:"),
        ('{"plans": {}} {}', ":1:15: "),
        ("[" * 100_000 + "{", ": is nested too deeply"),
        ('{"plans": ' * 100_000, ": is nested too deeply"),
        ("{" + " " * 1_000_000, ": must have at most 1000000 characters"),
    ],
)
def test_bad_json_names_the_file_and_the_place(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "pricing.json").write_text(text)
    for source, name in ((tmp_path / "pricing.json", "pricing.json"), (text, "model")):
        with pytest.raises(PricingError) as caught:
            read_model(source)
        assert caught.value.message.startswith(name + where)
        assert caught.value.path == caught.value.message.partition(": ")[0]


@pytest.mark.parametrize("text", ["", "null", "nothing"])
def test_empty_file_is_a_pricing_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "pricing.json").write_text(text)
    with pytest.raises(PricingError):
        read_model(tmp_path / "pricing.json")


# Mistakes


def refused(source: Any, path: str, message: str) -> None:
    with pytest.raises(PricingError) as caught:
        read_model(source)
    assert caught.value.message == f"{path}: {message}"
    assert caught.value.path == path
    assert (caught.value.status, caught.value.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("source", "path", "message"),
    [
        ("[{}]", "model", "must be an object, got an array"),
        ("{}", "plans", "must be given"),
        ({"plan": {}}, "plan", "unknown field, did you mean 'plans'?"),
        ({"plans": None}, "plans", "must be an object, got null"),
        ('{"plans": {}, "plans": {}}', "plans", "is given twice"),
        ('{"plans": {}, /* again */ "plans": {}}', "plans", "is given twice"),
        ('{"plans": {"plan:a@1": {}, "plan:a@1": {}}}', 'plans["plan:a@1"]', "is given twice"),
    ],
)
def test_mistake_in_the_model(source: Any, path: str, message: str) -> None:
    refused(source, path, message)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("plan:free", 'plans["plan:free"]', "must have a version, as in 'plan:free@1', got 'plan:free'"),
        ("free@1", 'plans["free@1"]', "must start with 'plan:', got 'free@1'"),
        ("x\n", 'plans["x\\n"]', "must start with 'plan:', got 'x\\n'"),
        (1, "plans[1]", "must start with 'plan:', got 1"),
        ("plan:" + "a" * 2000, f'plans["plan:{"a" * 1019}"]', "must have at most 1024 characters"),
    ],
)
def test_mistake_in_the_name_of_a_plan(name: Any, path: str, message: str) -> None:
    refused({"plans": {name: {}}}, path, message)


@pytest.mark.parametrize(
    ("plan", "path", "message"),
    [
        ("x", "", "must be an object, got 'x'"),
        ({}, ".features", "must have at least one feature"),
        ({"features": {}}, ".features", "must have at least one feature"),
        ({"features": []}, ".features", "must be an object, got an array"),
        ({"features": {"x": {}}}, ".features.x", "must start with 'feature:', got 'x'"),
        ({"features": {"feature:x": None}}, '.features["feature:x"]', "must be an object, got null"),
        ({"feature": {}}, ".feature", "unknown field, did you mean 'features'?"),
        ({"currency": "USD"}, ".currency", "must be three lower-case letters, as in 'usd', got 'USD'"),
        ({"currency": "usd\n"}, ".currency", "must be three lower-case letters, as in 'usd', got 'usd\\n'"),
        ({"currency": ""}, ".currency", "must be three lower-case letters, as in 'usd', got ''"),
        (
            {"interval": "@quarterly"},
            ".interval",
            "must be one of '@daily', '@weekly', '@monthly', '@yearly', got '@quarterly'",
        ),
        ({"interval": None}, ".interval", "must be one of '@daily', '@weekly', '@monthly', '@yearly', got null"),
        ({"title": None}, ".title", "must be a text of at most 1024 characters, got null"),
        ({"title": "\ud800"}, ".title", "must be a text of at most 1024 characters, got '\\ud800'"),
        ({"title": "\0"}, ".title", "must be a text of at most 1024 characters, got '\\x00'"),
        ({"title": "a" * 1025}, ".title", f"must be a text of at most 1024 characters, got '{'a' * 76}..."),
    ],
)
def test_mistake_in_a_plan(plan: Any, path: str, message: str) -> None:
    refused({"plans": {"plan:free@1": plan}}, PLAN + path, message)


ONLY_SINGLE = "must only be given with a single tier without base: Stripe divides nothing else"


@pytest.mark.parametrize(
    ("fields", "path", "message"),
    [
        ({"tirs": []}, ".tirs", "unknown field, did you mean 'tiers'?"),
        ({"Tiers": []}, ".Tiers", "unknown field, did you mean 'tiers'?"),
        (
            {"what ever": 1},
            '["what ever"]',
            "unknown field, known are title, base, tiers, mode, aggregate, divide",
        ),
        ({"title": 1}, ".title", "must be a text of at most 1024 characters, got 1"),
        ({"mode": "x"}, ".mode", "must be one of 'graduated', 'volume', got 'x'"),
        (
            {"aggregate": ["sum"]},
            ".aggregate",
            "must be one of 'sum', 'max', 'last', 'perpetual', got an array",
        ),
        (
            {"base": 0, "tiers": [{}]},
            ".base",
            "must not be given together with tiers: give the first tier a base",
        ),
        ({"tiers": {}}, ".tiers", "must be an array, got an object"),
        ({"tiers": None}, ".tiers", "must be an array, got null"),
        ({"tiers": "{}"}, ".tiers", "must be an array, got '{}'"),
        ({"tiers": [{"up_to": 1}]}, ".tiers[0].up_to", "unknown field, did you mean 'upto'?"),
        ({"divide": {"by": 2}}, ".divide", ONLY_SINGLE),
        ({"divide": {"by": 2}, "tiers": []}, ".divide", ONLY_SINGLE),
        ({"divide": {"by": 2}, "tiers": [{"base": 1}]}, ".divide", ONLY_SINGLE),
        ({"divide": {"by": 2}, "tiers": [{"upto": 1}, {}]}, ".divide", ONLY_SINGLE),
        ({"divide": {"rounding": "up"}, "tiers": [{}]}, ".divide.by", "must be given"),
        ({"divide": {"by": 0}, "tiers": [{}]}, ".divide.by", "must be a whole number > 0, got 0"),
    ],
)
def test_mistake_in_a_feature(fields: dict[str, object], path: str, message: str) -> None:
    refused(model_with(**fields), FEATURE + path, message)


@pytest.mark.parametrize(("rounding", "shown"), [("near", "'near'"), (None, "null"), (False, "false"), (0, "0")])
def test_rounding_is_up_or_down(rounding: object, shown: str) -> None:
    source = model_with(tiers=[{}], divide={"by": 2, "rounding": rounding})
    refused(source, f"{FEATURE}.divide.rounding", f"must be one of 'down', 'up', got {shown}")


@pytest.mark.parametrize(
    ("uptos", "index", "message"),
    [
        ([10, 10], 1, "must be larger than 10, the upto of the tier before, got 10"),
        ([10, 5, None], 1, "must be larger than 10, the upto of the tier before, got 5"),
        ([None, None], 0, "must be given: only the last tier may leave it out"),
        ([5, MAX_UNITS, None], 1, "must be given: only the last tier may leave it out"),
        ([5, 2**63], 1, f"must be at most {MAX_UNITS}, got {2**63}"),
        ([0], 0, "must be a whole number > 0, got 0"),
        ([-1], 0, "must be a whole number > 0, got -1"),
        ([1.0], 0, "must be a whole number > 0, got 1.0"),
        ([1.5], 0, "must be a whole number > 0, got 1.5"),
        ([True], 0, "must be a whole number > 0, got true"),
        (["10"], 0, "must be a whole number > 0, got '10'"),
    ],
)
def test_uptos_are_rising_whole_numbers(uptos: list[object], index: int, message: str) -> None:
    refused(model_with(tiers=[{"upto": upto} for upto in uptos]), f"{FEATURE}.tiers[{index}].upto", message)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (None, "must be a number >= 0, got null"),
        (True, "must be a number >= 0, got true"),
        ("1", "must be a number >= 0, got '1'"),
        (-1, "must be a number >= 0, got -1"),
        (-0.5, "must be a number >= 0, got -0.5"),
        (math.nan, "must be a number >= 0, got nan"),
        (math.inf, "must be a number >= 0, got inf"),
        (Decimal("sNaN"), "must be a number >= 0, got sNaN"),
        (1e-13, "must have at most 12 decimal places, got 1e-13"),
        (Decimal("1.0000000000001"), "must have at most 12 decimal places, got 1.0000000000001"),
        (Decimal("1E-999999999999999999"), "must have at most 12 decimal places, got 1E-999999999999999999"),
        (Decimal("1E+999999999"), "must be less than 1000000000000000, got 1E+999999999"),
        (10**15, "must be less than 1000000000000000, got 1000000000000000"),
        pytest.param(10**5000, "must be less than 1000000000000000, got a huge number", id="huge"),
    ],
)
def test_amounts_are_numbers_that_money_can_have(amount: object, message: str) -> None:
    refused(model_with(base=amount), f"{FEATURE}.base", message)
    refused(model_with(tiers=[{"price": amount}]), f"{FEATURE}.tiers[0].price", message)
    refused(model_with(tiers=[{"base": amount}]), f"{FEATURE}.tiers[0].base", message)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("upto", "10.0", "must be a whole number > 0, got 10.0"),
        ("upto", "1e3", "must be a whole number > 0, got 1E+3"),
        ("upto", "1" * 5000, f"must be a whole number > 0, got {'1' * 77}..."),
        ("upto", "0xfffffffffffffffff", f"must be at most {MAX_UNITS}, got {16**17 - 1}"),
        ("price", "NaN", "must be a number >= 0, got NaN"),
        ("price", "NaN /* comment */", "must be a number >= 0, got NaN"),
        ("price", "Infinity", "must be a number >= 0, got Infinity"),
        ("price", "-Infinity", "must be a number >= 0, got -Infinity"),
        ("price", "1e99999999999999999999", "must be a number >= 0, got NaN"),
        ("price", "0.1234567890123", "must have at most 12 decimal places, got 0.1234567890123"),
    ],
)
def test_mistake_in_a_number_of_json_text(field: str, text: str, message: str) -> None:
    source = dumps(read_model(model_with(tiers=[{}]))).replace("{}", f'{{"{field}": {text}}}')
    refused(source, f"{FEATURE}.tiers[0].{field}", message)


# What is accepted, and as what


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({}, Feature()),
        ({"tiers": []}, Feature()),
        ({"base": 5, "tiers": []}, Feature(base=Decimal(5))),
        ({"mode": "volume", "aggregate": "max"}, Feature()),
        ({"base": 0.1}, Feature(base=Decimal("0.1"))),
        ({"base": Decimal("-0.0")}, Feature()),
        ({"base": Decimal("0E-999999999")}, Feature()),
        ({"base": Decimal("1.00000000000000")}, Feature(base=Decimal(1))),
        ({"base": 999999999999999}, Feature(base=Decimal(999999999999999))),
        ({"base": Decimal("999999999999999.999999999999")}, Feature(base=Decimal("999999999999999.999999999999"))),
        ({"tiers": ({"upto": None},)}, Feature(tiers=(PriceTier(),))),
        ({"tiers": [{"upto": MAX_UNITS - 1}]}, Feature(tiers=(PriceTier(MAX_UNITS - 1),))),
        ({"tiers": [{}], "divide": {"by": 3}}, Feature(tiers=(PriceTier(),), divide=Divide(3))),
        ({"tiers": [{}], "divide": {"by": 3, "rounding": ""}}, Feature(tiers=(PriceTier(),), divide=Divide(3))),
        (
            {"title": "T", "tiers": [{"upto": 1, "price": 2, "base": 3}], "mode": "volume", "aggregate": "last"},
            Feature("T", Decimal(0), (PriceTier(1, Decimal(2), Decimal(3)),), "volume", "last"),
        ),
    ],
)
def test_feature_is_read(fields: dict[str, object], feature: Feature) -> None:
    assert feature_of(model_with(**fields)) == feature


def test_plan_without_a_title_is_titled_by_its_name() -> None:
    assert plan_with() == plan_with(title="") == plan_with(title="plan:free@1")
    assert plan_with().title == "plan:free@1"


def test_no_plans_is_a_model() -> None:
    assert read_model({"plans": {}}) == Model() == read_model(dumps(Model()))


def test_numbers_do_not_depend_on_the_decimal_context() -> None:
    fields = {"base": Decimal("123456789012345.123456789012")}
    with localcontext(prec=3):
        model = read_model(model_with(**fields))
        assert '"base": 123456789012345.123456789012\n' in dumps(model)
    assert feature_of(model).base == fields["base"]


# Writing


amounts = st.decimals(min_value=0, max_value=10**14, places=12) | st.integers(0, 10**15 - 1) | st.just(0)
titles = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
names = st.text("ab19:", min_size=1, max_size=4)


@st.composite
def raw_features(draw: st.DrawFn) -> dict[str, object]:
    ends: list[int | None] = [*sorted(draw(st.sets(st.integers(1, MAX_UNITS), max_size=4)))]
    if draw(st.booleans()):
        ends = [*(end for end in ends if end != MAX_UNITS), None]
    tiers = [{"upto": end, "price": draw(amounts), "base": draw(amounts)} for end in ends]
    feature: dict[str, object] = {
        "title": draw(titles),
        "mode": draw(st.sampled_from(["graduated", "volume"])),
        "aggregate": draw(st.sampled_from(["sum", "max", "last", "perpetual"])),
        "tiers": tiers,
    }
    if not tiers:
        feature["base"] = draw(amounts)
    if len(tiers) == 1 and not tiers[0]["base"] and draw(st.booleans()):
        feature["divide"] = {
            "by": draw(st.integers(1, MAX_UNITS)),
            "rounding": draw(st.sampled_from(["up", "down", ""])),
        }
    return feature


raw_plans = st.fixed_dictionaries(
    {"features": st.dictionaries(names.map("feature:{}".format), raw_features(), min_size=1, max_size=3)},
    optional={
        "title": titles,
        "currency": st.sampled_from(["usd", "eur"]),
        "interval": st.sampled_from(["@daily", "@weekly", "@monthly", "@yearly"]),
    },
)
models = st.dictionaries(names.map("plan:{}@1".format), raw_plans, max_size=3).map(
    lambda plans: read_model({"plans": plans})
)


@given(models, st.none() | st.integers(0, 4))
def test_written_model_reads_back_the_same(model: Model, indent: int | None) -> None:
    assert read_model(dumps(model, indent=indent)) == model
    assert read_model(as_dict(model)) == model


@given(models)
def test_text_of_a_plan_reads_back_as_the_plan(model: Model) -> None:
    for name, plan in model.plans.items():
        text = plan_text(plan)
        assert "\n" not in text
        assert read_plan(name, text) == plan
        assert plan_text(read_plan(name, text)) == text


@given(raw_plans, raw_plans)
def test_plans_are_equal_when_their_texts_are(one: dict[str, object], other: dict[str, object]) -> None:
    first = read_model({"plans": {"plan:a@1": one}}).plans["plan:a@1"]
    second = read_model({"plans": {"plan:a@1": other}}).plans["plan:a@1"]
    assert (first == second) == (plan_text(first) == plan_text(second)) == (difference(first, second) == ())


def test_text_of_a_plan_does_not_depend_on_how_it_was_written() -> None:
    one = '{"plans":{"plan:a@1":{"features":{"feature:y":{},"feature:x":{"tiers":[{"price":1.50,"upto":null}]}}}}}'
    other = '{"plans":{"plan:a@1":{"title":"plan:a@1","currency":"usd","features":{"feature:x":{"mode":"graduated",' \
            '"tiers":[{"price":15e-1,"base":0.0}]},"feature:y":{"base":0,"aggregate":"max"}}}}}'  # fmt: skip
    texts = {plan_text(read_model(text).plans["plan:a@1"]) for text in (one, other)}
    assert texts == {'{"title": "plan:a@1", "features": {"feature:x": {"tiers": [{"price": 1.5}]}, "feature:y": {}}}'}


def test_numbers_are_written_exactly() -> None:
    texts = ["0.000000000001", "1000000000000", "0.1", "123456789012345.000000000001"]
    model = read_model(model_with(tiers=[{"upto": i, "price": Decimal(text)} for i, text in enumerate(texts, 1)]))
    assert [line.partition('price": ')[2] for line in dumps(model).splitlines() if "price" in line] == texts
    prices = [tier["price"] for tier in as_dict(model)["plans"]["plan:free@1"]["features"]["feature:x"]["tiers"]]  # type: ignore[index]
    assert prices == [1e-12, 1000000000000, 0.1, Decimal(texts[3])]
    assert [type(price) for price in prices] == [float, int, float, Decimal]


def test_model_made_by_hand_is_written_as_one_that_was_read() -> None:
    tiers = (PriceTier(price=Decimal("1.0"), base=Decimal("1E+2")),)
    made = Model({"plan:a@1": Plan("plan:a@1", features={"feature:x": Feature("Größe", tiers=tiers, divide=Divide())})})
    text = dumps(made, indent=None)
    assert '{"title": "Größe", "tiers": [{"price": 1, "base": 100}], "divide": {"by": 1}}' in text


@pytest.mark.parametrize("indent", [None, 0, 2, 4])
def test_text_is_laid_out_as_by_json(indent: int | None) -> None:
    model = read_model(VECTOR["steps"][0]["request"]["body_raw"])
    assert dumps(model, indent=indent) == json.dumps(as_dict(model), indent=indent, ensure_ascii=False)


# Comparing


@pytest.mark.parametrize(
    ("stored", "pushed", "path", "values"),
    [
        (plan_with({"tiers": [{"upto": 10}]}), plan_with({"tiers": [{"upto": 20}]}), ".tiers[0].upto", ("10", "20")),
        (plan_with({"tiers": [{"upto": 10}]}), plan_with({"tiers": [{}]}), ".tiers[0].upto", ("10", "nothing")),
        (plan_with({"tiers": [{"upto": 1}]}), plan_with({"tiers": [{"upto": 1}, {}]}), ".tiers[1]", ("nothing", "{}")),
        (plan_with({"base": 0.5}), plan_with({"base": 1}), ".base", ("0.5", "1")),
        (
            plan_with({"tiers": [{}], "divide": {"by": 2}}),
            plan_with({"tiers": [{}], "divide": {"by": 2, "rounding": "up"}}),
            ".divide.rounding",
            ('"down"', '"up"'),
        ),
        (
            plan_with({"tiers": [{}]}),
            plan_with({"tiers": [{}], "divide": {"by": 2}}),
            ".divide",
            ("nothing", '{"by": 2}'),
        ),
    ],
)
def test_conflict_names_the_first_difference(stored: Plan, pushed: Plan, path: str, values: tuple[str, str]) -> None:
    (found,) = difference(stored, pushed)
    assert found.path == FEATURE + path
    assert difference_text(found) == f"{FEATURE}{path}: stored with {values[0]}, pushed with {values[1]}"
    conflict = plan_conflict(stored, pushed)
    assert isinstance(conflict, PricingError)
    assert conflict.path == FEATURE + path
    assert conflict.message == (
        f"{FEATURE}{path}: plan:free@1 is stored with {values[0]} and pushed with {values[1]}; "
        "plans are immutable: raise the version"
    )


@pytest.mark.parametrize(
    ("pushed", "expected"),
    [
        (plan_with(title="Free", currency="eur"), ["changed .title", "changed .currency"]),
        (plan_with(currency="eur", interval="@daily"), ["changed .currency", "changed .interval"]),
        (plan_with(features={"feature:y": {}}), ['missing .features["feature:x"]', 'new .features["feature:y"]']),
        (plan_with(features={"feature:x": {}, "feature:a": {}}), ['new .features["feature:a"]']),
        (
            plan_with({"tiers": [{"price": 1}], "mode": "volume", "divide": {"by": 2}}),
            [
                f'{kind} .features["feature:x"].{place}'
                for kind, place in (("new", "tiers[0]"), ("changed", "mode"), ("changed", "divide"))
            ],
        ),
    ],
)
def test_every_difference_of_two_plans_is_found_in_order(pushed: Plan, expected: list[str]) -> None:
    found = difference(plan_with(), pushed)
    assert [f"{one.kind} {one.path.removeprefix(PLAN)}" for one in found] == expected
    assert {one.plan for one in found} == {"plan:free@1"}
    conflict = plan_conflict(plan_with(), pushed)
    assert conflict is not None
    assert conflict.path == found[0].path


def test_a_model_differs_in_whole_plans_and_in_parts_of_those_that_both_have() -> None:
    fields = {"tiers": [{"upto": 1}, {"upto": 2}]}
    mine = read_model({"plans": {"plan:b@1": {"features": {"feature:x": {}}}, **model_with(**fields)["plans"]}})  # type: ignore[dict-item]
    other = read_model(
        {"plans": {"plan:a@1": {"features": {"feature:x": {}}}, **model_with(tiers=[{"price": 3}])["plans"]}}
    )  # type: ignore[dict-item]
    new, missing = other.plans["plan:a@1"], mine.plans["plan:b@1"]
    first, second = mine.plans["plan:free@1"].features["feature:x"].tiers
    assert mine.diff(other) == (
        Difference("plan:a@1", 'plans["plan:a@1"]', "new", None, new),
        Difference("plan:b@1", 'plans["plan:b@1"]', "missing", missing, None),
        Difference("plan:free@1", f"{FEATURE}.tiers[0].upto", "changed", 1, None),
        Difference("plan:free@1", f"{FEATURE}.tiers[0].price", "changed", Decimal(0), Decimal(3)),
        Difference("plan:free@1", f"{FEATURE}.tiers[1]", "missing", second, None),
    )
    assert json_value(first) == {"upto": 1}


OPPOSITE = {"new": "missing", "missing": "new", "changed": "changed"}


@given(models, models)
def test_a_difference_is_the_same_seen_from_the_other_side(one: Model, other: Model) -> None:
    found = one.diff(other)
    assert (found == ()) == (dumps(one) == dumps(other))
    assert len({difference.path for difference in found}) == len(found)
    assert sorted(other.diff(one), key=repr) == sorted(
        (replace(d, kind=OPPOSITE[d.kind], before=d.after, after=d.before) for d in found), key=repr
    )
    for difference in found:
        assert difference.before != difference.after
        assert "\n" not in difference_text(difference)
        json.dumps([json_value(difference.before), json_value(difference.after)], default=str)


def test_same_content_is_no_conflict() -> None:
    assert plan_conflict(plan_with({"base": Decimal("1.50")}), plan_with({"base": 1.5}, title="")) is None


def test_a_model_made_by_hand_gets_its_titles() -> None:
    made = Model({"plan:a@1": Plan("plan:a@1", features={"feature:x": Feature()})})
    assert read_model(made).plans["plan:a@1"].title == "plan:a@1"
    assert read_model(dumps(made)) == read_model(made)
