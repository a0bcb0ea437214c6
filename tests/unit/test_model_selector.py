"""Structured selectors, against the conformance cases and by their rules."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import compact, label_maps, selectors

from solti_store.model import (
    Embedded,
    Invalid,
    Labels,
    LabelSelector,
    RunnerSelector,
    SelectorOperator,
    SelectorRequirement,
    TaskSpec,
)

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "conformance" / "selector_cases.json").read_text(encoding="utf-8")
)["label_selector_cases"]

# Upstream refuses these for the *syntax* of a label key or value. This contract lets labels hold any
# string, and does not validate matchLabels at all, so here they are selectors like others; upstream's
# verdict belongs to the text grammar.
LOOSER = {
    "s022": "a key that begins with a dash",
    "s023": "a value with a space",
    "s024": "a value of 64 characters",
    "s025": "an empty key in matchLabels",
    "s026": "a value that ends in a space",
    "s027": "a value that ends in a line feed",
    "s028": "a key that ends in a line feed",
}

VALID = [case for case in CASES if case["valid"] and case["label_selector"] is not None]
INVALID = [case for case in CASES if not case["valid"] and case["id"] not in LOOSER]


def _id(case: dict[str, Any]) -> str:
    return str(case["id"])


def test_every_case_is_accounted_for() -> None:
    # Upstream lets a null selector match nothing. Here null is the absence of a selector, which is the
    # query's (or the spec's) business and selects everything: see the test after this one.
    null = [case for case in CASES if case["label_selector"] is None]
    assert len(CASES) == 30
    assert [case["kind"] for case in null] == ["nothing"]
    assert {case["id"] for case in CASES} >= LOOSER.keys()
    assert len(VALID) + len(INVALID) + len(LOOSER) + len(null) == len(CASES)


def test_null_is_no_selector() -> None:
    spec = TaskSpec.builder("a", Embedded(), 1).build()
    assert TaskSpec.from_dict(spec.to_dict() | {"runnerSelector": None}).runner_selector is None
    with pytest.raises(Invalid):
        RunnerSelector.from_json("null")


@pytest.mark.parametrize("case", VALID, ids=_id)
def test_conformance_matches(case: dict[str, Any]) -> None:
    selector = LabelSelector.from_json(json.dumps(case["label_selector"]))
    assert case["matches"]
    for match in case["matches"]:
        assert selector.matches(match["labels"]) is match["match"], match["labels"]
        assert selector.matches(Labels(match["labels"])) is match["match"]
    assert selector.is_empty == (case["kind"] == "everything")
    assert LabelSelector.from_json(selector.to_json()) == selector


@pytest.mark.parametrize("case", INVALID, ids=_id)
def test_conformance_refusals(case: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        LabelSelector.from_json(json.dumps(case["label_selector"]))
    assert caught.value.field.startswith("matchExpressions.0.")


@pytest.mark.parametrize("case", [case for case in CASES if case["id"] in LOOSER], ids=_id)
def test_label_syntax_is_not_this_contracts_business(case: dict[str, Any]) -> None:
    assert not case["valid"]
    selector = LabelSelector.from_json(json.dumps(case["label_selector"]))
    labels = dict(selector.match_labels)
    for requirement in selector.match_expressions:
        assert requirement.operator is SelectorOperator.IN
        labels[requirement.key] = requirement.values[-1]
    assert labels
    assert selector.matches(labels)
    assert not selector.matches({})


RULES: list[tuple[str, str, list[str], str | None]] = [
    ("", "In", ["a"], "selector requirement key must not be empty"),
    ("", "Exists", ["a"], "selector requirement key must not be empty"),
    ("k", "In", [], "selector requirement with operator In must have non-empty values"),
    ("k", "NotIn", [], "selector requirement with operator NotIn must have non-empty values"),
    ("k", "Exists", ["a"], "selector requirement with operator Exists must have empty values"),
    ("k", "DoesNotExist", ["a"], "selector requirement with operator DoesNotExist must have empty values"),
    ("k", "In", [""], None),
    ("k", "NotIn", ["a", "a"], None),
    ("k", "Exists", [], None),
    ("k", "DoesNotExist", [], None),
    (" ", "Exists", [], None),
]


@pytest.mark.parametrize(("key", "operator", "values", "message"), RULES)
def test_requirement_rules(key: str, operator: str, values: list[str], message: str | None) -> None:
    document = {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}
    if message is None:
        assert RunnerSelector.from_dict(document).match_expressions[0].key == key
        return
    with pytest.raises(Invalid) as caught:
        RunnerSelector.from_json(json.dumps(document))
    assert str(caught.value) == f"invalid model: {message}"
    assert caught.value.field in {"matchExpressions.0.key", "matchExpressions.0.values"}


def test_the_first_broken_expression_is_reported() -> None:
    expressions = [
        {"key": "a", "operator": "Exists"},
        {"key": "b", "operator": "In"},
        {"key": "", "operator": "In"},
    ]
    with pytest.raises(Invalid) as caught:
        RunnerSelector.from_dict({"matchExpressions": expressions})
    assert caught.value.field == "matchExpressions.1.values"


def test_constructors() -> None:
    selector = RunnerSelector(
        match_labels=Labels(zone="eu"),
        match_expressions=(
            SelectorRequirement.in_("gpu", "a100", "h100"),
            SelectorRequirement.not_in("tier", "dev"),
            SelectorRequirement.exists("rack"),
            SelectorRequirement.does_not_exist("tainted"),
        ),
    )
    assert selector.to_json() == (
        '{"matchLabels":{"zone":"eu"},"matchExpressions":[{"key":"gpu","operator":"In","values":["a100","h100"]},'
        '{"key":"tier","operator":"NotIn","values":["dev"]},{"key":"rack","operator":"Exists"},'
        '{"key":"tainted","operator":"DoesNotExist"}]}'
    )
    good = {"zone": "eu", "gpu": "h100", "rack": ""}
    assert selector.matches(good)
    assert selector.matches(good | {"tier": "prod"})
    for bad in ({"zone": "us"}, {"gpu": "t4"}, {"tier": "dev"}, {"tainted": ""}):
        assert not selector.matches(good | bad)
    for missing in good:
        assert not selector.matches({key: value for key, value in good.items() if key != missing})


def test_the_empty_selector_matches_everything_and_is_written_empty() -> None:
    for text in ("{}", '{"matchLabels":{},"matchExpressions":[]}'):
        selector = RunnerSelector.from_json(text)
        assert selector == RunnerSelector()
        assert selector.is_empty
        assert selector.to_json() == "{}"
        assert selector.matches({})
        assert selector.matches({"a": "b"})


@given(selectors(), label_maps(min_size=0), st.data())
def test_a_selector_is_the_conjunction_of_its_conditions(
    document: dict[str, Any], labels: dict[str, str], data: st.DataObject
) -> None:
    # Random keys hardly ever meet, so some of the selector's own are mixed into the labels.
    wanted = {**document.get("matchLabels", {})}
    for expression in document.get("matchExpressions", []):
        wanted[expression["key"]] = data.draw(st.sampled_from(expression.get("values", ["other"])))
    labels = labels | {key: value for key, value in wanted.items() if data.draw(st.booleans())}

    def holds(expression: dict[str, Any]) -> bool:
        value = labels.get(expression["key"])
        return {
            "In": value is not None and value in expression.get("values", []),
            "NotIn": value is None or value not in expression.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[str(expression["operator"])]

    expected = all(labels.get(key) == value for key, value in document.get("matchLabels", {}).items()) and all(
        holds(expression) for expression in document.get("matchExpressions", [])
    )
    assert RunnerSelector.from_json(compact(document)).matches(labels) is expected
