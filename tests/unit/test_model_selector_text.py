"""Label selectors as text, against the conformance cases, a naive reference and the structured form."""

import json
import pickle
import random
import time
from pathlib import Path
from typing import Any

import pytest

from solti_store.model import (
    Invalid,
    InvalidSelector,
    LabelOperator,
    LabelRequirement,
    Labels,
    LabelSelector,
    Selector,
    SelectorRequirement,
)

CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "conformance" / "selector_cases.json").read_text(encoding="utf-8")
)


def _id(case: dict[str, Any]) -> str:
    return str(case["id"])


def _name(value: object) -> str:
    text = str(value)
    return f"{ascii(text)[1:21]}({len(text)})"


def plain(selector: Selector) -> list[dict[str, Any]]:
    """The requirements as the conformance file writes them."""
    return [
        {"key": requirement.key, "operator": requirement.operator.value, "values": list(requirement.values)}
        for requirement in selector.requirements
    ]


def refusal(text: str) -> InvalidSelector:
    with pytest.raises(InvalidSelector) as caught:
        Selector.parse(text)
    error = caught.value
    assert str(error).startswith("invalid model: label selector: ")
    assert str(error).isprintable()
    assert f"at position {error.position}" in str(error)
    assert 0 <= error.position <= len(text)
    assert error.field == ""
    return error


# --- conformance --------------------------------------------------------------------------------


def test_all_the_cases_are_there() -> None:
    counts = {name: len(cases) for name, cases in CASES.items() if name != "meta"}
    assert counts == {
        "parse_cases": 237,
        "match_cases": 211,
        "label_selector_cases": 30,
        "key_cases": 39,
        "value_cases": 30,
    }


@pytest.mark.parametrize("case", CASES["parse_cases"], ids=_id)
def test_conformance_parse(case: dict[str, Any]) -> None:
    if not case["valid"]:
        refusal(case["selector"])
        return
    selector = Selector.parse(case["selector"])
    assert plain(selector) == case["requirements"]
    assert str(selector) == case["canonical"]
    assert Selector.parse(case["canonical"]) == selector
    assert selector.is_empty == (not case["requirements"])


@pytest.mark.parametrize("case", CASES["match_cases"], ids=_id)
def test_conformance_match(case: dict[str, Any]) -> None:
    selector = Selector.parse(case["selector"])
    assert selector.matches(case["labels"]) is case["match"]
    assert selector.matches(Labels(case["labels"])) is case["match"]


# Upstream lets a null selector match nothing; here null is the absence of a selector, and not a value of this type.
STRUCTURED = [case for case in CASES["label_selector_cases"] if case["label_selector"] is not None]


def test_only_null_is_no_structured_selector() -> None:
    assert [case["kind"] for case in CASES["label_selector_cases"] if case not in STRUCTURED] == ["nothing"]
    with pytest.raises(Invalid):
        LabelSelector.from_json("null")


@pytest.mark.parametrize("case", STRUCTURED, ids=_id)
def test_conformance_structured(case: dict[str, Any]) -> None:
    document = json.dumps(case["label_selector"])
    if not case["valid"]:
        # Some of these are legal in the structured form, whose labels may be any strings; none is in text.
        with pytest.raises(Invalid) as caught:
            Selector.from_structured(LabelSelector.from_json(document))
        assert caught.value.field.startswith("match")
        return
    selector = Selector.from_structured(LabelSelector.from_json(document))
    assert str(selector) == case["canonical"]
    assert selector.is_empty == (case["kind"] == "everything")
    assert case["matches"]
    for match in case["matches"]:
        assert selector.matches(match["labels"]) is match["match"], match["labels"]


@pytest.mark.parametrize("case", CASES["key_cases"], ids=lambda case: _name(case["key"]))
def test_conformance_keys(case: dict[str, Any]) -> None:
    requirement = LabelRequirement(case["key"], LabelOperator.EXISTS)  # takes any string
    if case["valid"]:
        assert str(Selector((requirement,))) == case["key"]
        return
    with pytest.raises(Invalid, match="invalid model: label selector: key "):
        Selector((requirement,))


@pytest.mark.parametrize("case", CASES["value_cases"], ids=lambda case: _name(case["value"]))
def test_conformance_values(case: dict[str, Any]) -> None:
    requirement = LabelRequirement("x", LabelOperator.IN, (case["value"],))
    if case["valid"]:
        assert str(Selector((requirement,))) == f"x in ({case['value']})"
        return
    with pytest.raises(Invalid, match="invalid model: label selector: value "):
        Selector((requirement,))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("x=a,,y", 4, "expected a key or '!' at position 4, found ','"),
        ("x=a, ", 5, "expected a key or '!' at position 5, found the end"),
        ("!", 1, "expected a key at position 1, found the end"),
        ("!!x", 1, "expected a key at position 1, found '!'"),
        ("!x=a", 2, "expected ',' or the end at position 2, found '='"),
        ("x = = a", 4, "expected a value at position 4, found '='"),
        ("x=a b", 4, "expected ',' or the end at position 4, found 'b'"),
        ("x IN (a)", 2, "expected an operator, ',' or the end at position 2, found 'IN'"),
        ("x!", 1, "expected an operator, ',' or the end at position 1, found '!'"),
        ("x in a", 5, "expected '(' at position 5, found 'a'"),
        ("x in", 4, "expected '(' at position 4, found the end"),
        ("x in (a b)", 8, "expected ',' or ')' at position 8, found 'b'"),
        ("x in (a", 7, "expected ',' or ')' at position 7, found the end"),
        ("x in (a,", 8, "expected a value, ',' or ')' at position 8, found the end"),
        ("x>", 2, "expected an integer at position 2, found the end"),
        ("x>,y", 2, "expected an integer at position 2, found ','"),
        ("x>1_000", 2, "value \"1_000\" at position 2: what '>' and '<' compare with must be a 64-bit integer"),
        ("é😀,x", 0, "key \"é😀\" at position 0: the key must be letters, digits, '-', '_' and '.'"),
        ("x \x0b=a", 2, "expected an operator, ',' or the end at position 2, found '\\x0b'"),
        ("x=\x00", 2, 'value "\\x00" at position 2: '),
        ("x=\ud800", 2, 'value "\\ud800" at position 2: '),
        (f"a,{'k' * 64}", 2, f'key "{"k" * 40}…" at position 2: the key has 64 characters, at most 63 are allowed'),
        (f"{'p' * 254}/k", 0, "the prefix has 254 characters, at most 253 are allowed"),
        ("A/b", 0, "the prefix must be a DNS name"),
        ("/b", 0, "the prefix before '/' must not be empty"),
        ("a/", 0, "the name after '/' must not be empty"),
        ("a/b/c", 0, "the key must not have more than one '/'"),
        ("x in (a,-)", 8, 'value "-" at position 8: the value must be letters, digits, '),
        ("x in (" + "v" * 64 + ")", 6, "the value has 64 characters, at most 63 are allowed"),
    ],
)
def test_errors_point_at_the_position(text: str, position: int, message: str) -> None:
    error = refusal(text)
    assert error.position == position
    assert message in str(error)


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(refusal("x=a,,y")))
    assert (str(error), error.position) == (str(refusal("x=a,,y")), 4)


@pytest.mark.parametrize("thing", [None, 5, b"x=a", ["x"]])
def test_only_strings_are_parsed(thing: Any) -> None:
    with pytest.raises(Invalid, match="invalid model: label selector: must be a string, got "):
        Selector.parse(thing)


@pytest.mark.parametrize(
    ("key", "operator", "values", "field"),
    [
        ("x", "nosuch", (), "operator"),
        ("x", "=", ("a",), "operator"),  # a plain string that happens to equal the enum's
        ("x", LabelOperator.EXISTS, ("a",), "values"),
        ("x", LabelOperator.DOES_NOT_EXIST, ("a",), "values"),
        ("x", LabelOperator.IN, (), "values"),
        ("x", LabelOperator.NOT_IN, (), "values"),
        ("x", LabelOperator.EQUALS, (), "values"),
        ("x", LabelOperator.NOT_EQUALS, ("a", "b"), "values"),
        ("x", LabelOperator.GREATER_THAN, ("1_0",), "values"),
        ("x", LabelOperator.LESS_THAN, (str(2**63),), "values"),
        ("x", LabelOperator.IN, "abc", "values"),
        ("x", LabelOperator.IN, ("a", 1), "values"),
        (1, LabelOperator.EXISTS, (), "key"),
        ("x\0", LabelOperator.EXISTS, (), "key"),
        ("x", LabelOperator.IN, ("\ud800",), "values"),
    ],
)
def test_requirement_rules(key: Any, operator: Any, values: Any, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        LabelRequirement(key, operator, values)
    assert str(caught.value).startswith("invalid model: label requirement ")
    assert caught.value.field == field


# --- values -------------------------------------------------------------------------------------


def test_selectors_are_values() -> None:
    selector = Selector.parse("tier in (silver,gold), env != prod")
    assert selector == Selector.parse("env!=prod,tier in (gold,silver,gold)")
    assert len({selector, Selector.parse(str(selector))}) == 1
    assert pickle.loads(pickle.dumps(selector)) == selector
    assert repr(selector) == "Selector.parse('env!=prod,tier in (gold,silver)')"
    assert selector != Selector.parse("env!=prod")
    assert Selector.parse("x=a") != Selector.parse("x==a")
    with pytest.raises(AttributeError):
        selector.requirements = ()  # type: ignore[misc]


def test_construction_is_canonical_too() -> None:
    built = Selector(
        (
            LabelRequirement("b", LabelOperator.IN, ("y", "x", "y")),
            LabelRequirement("a", LabelOperator.EXISTS),
        )
    )
    assert built == Selector.parse("a,b in (x,y)")


def test_requirements_of_one_key_keep_their_order_however_many() -> None:
    # Upstream's sort is not stable past twelve; this one is.
    text = ",".join(f"x!={number}" for number in range(99, 0, -1))
    assert str(Selector.parse(text)) == text


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("+5", 5),
        ("-5", -5),
        ("-0", 0),
        ("0", 0),
        ("000", 0),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63)), -(2**63)),
        ("0" * 100_000 + "7", 7),
        (str(2**63), None),
        (str(-(2**63) - 1), None),
        ("9" * 100_000, None),
        ("0" * 100_000 + "x", None),
        ("", None),
        ("+", None),
        ("--5", None),
        (" 5", None),
        ("5\n", None),
        ("1_000", None),
        ("5.0", None),
        ("٣", None),
        ("²", None),
    ],
    ids=_name,
)
def test_labels_as_integers(label: str, number: int | None) -> None:
    # Labels may be any strings here, so more can stand in one than the grammar's values allow.
    for bound in (0, 1, 7, 2**63 - 1):
        labels = {"x": label}
        assert Selector.parse(f"x>{bound}").matches(labels) is (number is not None and number > bound)
        assert Selector.parse(f"x<{bound}").matches(labels) is (number is not None and number < bound)


def test_bounds() -> None:
    assert [requirement.bound for requirement in Selector.parse("x>007,y<3").requirements] == [7, 3]
    with pytest.raises(TypeError):
        _ = Selector.parse("x=7").requirements[0].bound


def test_structured_errors_name_the_field() -> None:
    for selector, field in (
        (LabelSelector(match_labels=Labels({"a b": ""})), "matchLabels"),
        (LabelSelector(match_labels=Labels({"a": "b c"})), "matchLabels"),
        (LabelSelector(match_expressions=(SelectorRequirement.exists("é"),)), "matchExpressions.0.key"),
        (
            LabelSelector(match_expressions=(SelectorRequirement.exists("a"), SelectorRequirement.in_("b", "c", "-"))),
            "matchExpressions.1.values",
        ),
    ):
        with pytest.raises(Invalid) as caught:
            Selector.from_structured(selector)
        assert caught.value.field == field


# --- size ---------------------------------------------------------------------------------------


def seconds(text: str) -> float:
    began = time.process_time()
    Selector.parse(text)
    return time.process_time() - began


def test_a_hundred_thousand_requirements() -> None:
    numbers = list(range(100_000))
    random.Random(5).shuffle(numbers)
    text = ",".join(f"k{number} in (b,a)" for number in numbers)
    selector = Selector.parse(text)
    assert len(selector.requirements) == 100_000
    assert Selector.parse(str(selector)) == selector
    assert selector.matches({f"k{number}": "a" for number in numbers})
    assert not selector.matches({f"k{number}": "a" for number in numbers[1:]})
    # About 0.5 s here. Slicing the rest of the text off at each token would take minutes.
    assert seconds(text) < 10


@pytest.mark.parametrize("unit", ["k=v,", "!k,", "k in (a,,b)\n,"])
def test_time_grows_with_the_text_and_not_its_square(unit: str) -> None:
    small, large = unit * 4_000 + "k", unit * 64_000 + "k"
    # 16 times the text: 16 times the time, and 256 if it were quadratic.
    assert seconds(large) < 80 * max(min(seconds(small) for _ in range(3)), 0.001)


@pytest.mark.parametrize(
    "text",
    ["k" * 10_000_000, "x=" + "/" * 10_000_000, "x " + "=" * 10_000_000, "(" * 10_000_000, "a." * 5_000_000 + "/b"],
    ids=["key", "value", "operators", "parentheses", "prefix"],
)
def test_huge_nonsense_is_refused_at_once_and_briefly(text: str) -> None:
    began = time.process_time()
    error = refusal(text)
    assert time.process_time() - began < 5
    assert len(str(error)) < 300


def test_huge_white_space_is_the_empty_selector() -> None:
    assert Selector.parse(" \t\r\n" * 2_500_000).is_empty
