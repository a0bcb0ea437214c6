"""What holds for every text selector: reading back, matching like a naive reference and like the structured form."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from strategies import label_maps, selectors

from solti_store.model import (
    InvalidSelector,
    LabelOperator,
    LabelRequirement,
    Labels,
    LabelSelector,
    Selector,
    SelectorRequirement,
    requirements_of,
)

# Few of each, so that labels and requirements meet.
KEYS = ["a", "B", "in", "notin", "a.b", "a-b", "e.com/k", "0"]
VALUES = ["", "a", "A", "in", "5", "05", "7", "1_0", "9223372036854775808", "x.y"]
LABELS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from([*VALUES, "-6", "+6"]), max_size=5)


@st.composite
def requirements(draw: st.DrawFn) -> LabelRequirement:
    operator = draw(st.sampled_from(LabelOperator))
    values: list[str] = []
    if operator in {LabelOperator.IN, LabelOperator.NOT_IN}:
        values = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=4))
    elif operator in {LabelOperator.GREATER_THAN, LabelOperator.LESS_THAN}:
        values = [draw(st.sampled_from(["0", "5", "006", "9223372036854775807"]))]
    elif operator not in {LabelOperator.EXISTS, LabelOperator.DOES_NOT_EXIST}:
        values = [draw(st.sampled_from(VALUES))]
    return LabelRequirement(draw(st.sampled_from(KEYS)), operator, tuple(values))


text_selectors = st.lists(requirements(), max_size=5).map(lambda found: Selector(tuple(found)))


def naive_holds(text: str, labels: dict[str, str]) -> bool:
    """One canonical requirement, judged by its text alone."""
    for sign in ("!=", "==", "=", ">", "<"):
        if sign in text:
            key, _, operand = text.partition(sign)
            if sign == "!=":
                return labels.get(key) != operand
            if sign in {"=", "=="}:
                return labels.get(key) == operand
            digits = labels.get(key, "").lstrip("+-")
            if not digits.isdecimal() or not -(2**63) <= (number := int(labels[key])) < 2**63:
                return False
            return number > int(operand) if sign == ">" else number < int(operand)
    if text.endswith(")"):
        key, keyword, listed = text.split(" ")
        return (labels.get(key) in listed[1:-1].split(",")) is (keyword == "in")
    return text[1:] not in labels if text.startswith("!") else text in labels


@given(text_selectors, LABELS)
def test_matching_agrees_with_a_naive_reference(selector: Selector, labels: dict[str, str]) -> None:
    expected = all(naive_holds(str(requirement), labels) for requirement in selector.requirements)
    assert selector.matches(labels) is expected


@given(text_selectors)
def test_the_canonical_text_reads_back(selector: Selector) -> None:
    assert Selector.parse(str(selector)) == selector


@given(text_selectors, st.data())
def test_white_space_and_order_of_keys_do_not_matter(selector: Selector, data: st.DataObject) -> None:
    space = st.text(" \t\r\n", max_size=3)

    def loose(requirement: LabelRequirement) -> str:
        tokens = str(requirement)
        for symbol in ("!=", "==", "=", "!", "<", ">", "(", ")", ","):
            if symbol in tokens:
                around = data.draw(space) + symbol + data.draw(space)
                return around.join(tokens.split(symbol))
        return data.draw(space) + tokens + data.draw(space)

    # Shuffled by key only: requirements of one key keep their order in the canonical form.
    keys = data.draw(st.permutations(sorted({requirement.key for requirement in selector.requirements})))
    shuffled = sorted(selector.requirements, key=lambda requirement: keys.index(requirement.key))
    assert Selector.parse(",".join(map(loose, shuffled))) == selector


def outcome_of(text: str) -> tuple[Selector, InvalidSelector | None]:
    """The selector, empty where there is an error; any other error is the test's."""
    try:
        return Selector.parse(text), None
    except InvalidSelector as error:
        return Selector(), error


ALPHABET = ["a", "B", "in", "notin", "5", "/", ".", "-", *"=!<>(), \t\n", "==", "!=", "é", "\0", "\xa0"]


@given(st.lists(st.sampled_from(ALPHABET)).map("".join) | st.text(st.characters()))
def test_any_text_is_a_selector_or_an_error_with_a_position(text: str) -> None:
    selector, error = outcome_of(text)
    if error is not None:
        assert 0 <= error.position <= len(text)
        assert f"at position {error.position}" in str(error)
        assert str(error).isprintable()
    assert Selector.parse(str(selector)) == selector
    assert str(Selector.parse(str(selector))) == str(selector)


STRUCTURED_REQUIREMENTS = st.one_of(
    st.builds(
        lambda key, values, make: make(key, *values),
        st.sampled_from(KEYS),
        st.lists(st.sampled_from(VALUES), min_size=1, max_size=3),
        st.sampled_from([SelectorRequirement.in_, SelectorRequirement.not_in]),
    ),
    st.builds(
        lambda key, make: make(key),
        st.sampled_from(KEYS),
        st.sampled_from([SelectorRequirement.exists, SelectorRequirement.does_not_exist]),
    ),
)


@given(LABELS.filter(lambda labels: not {"-6", "+6"} & set(labels.values())), st.lists(STRUCTURED_REQUIREMENTS), LABELS)
def test_text_matches_what_the_structured_form_matches(
    match_labels: dict[str, str], expressions: list[SelectorRequirement], labels: dict[str, str]
) -> None:
    structured = LabelSelector(match_labels=Labels(match_labels), match_expressions=tuple(expressions))
    selector = Selector.from_structured(structured)
    for candidate in (labels, labels | match_labels):
        assert selector.matches(candidate) is structured.matches(candidate)
        assert Selector.parse(str(selector)).matches(candidate) is structured.matches(candidate)


@given(selectors(), label_maps(min_size=0), st.data())
def test_requirements_of_any_structured_selector(
    document: dict[str, Any], labels: dict[str, str], data: st.DataObject
) -> None:
    structured = LabelSelector.from_dict(document)
    wanted = dict(structured.match_labels)
    for expression in structured.match_expressions:
        wanted[expression.key] = data.draw(st.sampled_from(expression.values or ("other",)))
    labels = labels | {key: value for key, value in wanted.items() if data.draw(st.booleans())}
    found = requirements_of(structured)
    assert len(found) == len(structured.match_labels) + len(structured.match_expressions)
    assert all(requirement.matches(labels) for requirement in found) is structured.matches(labels)
