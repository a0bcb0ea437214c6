"""The label index as values: what goes in comes out, and its algebra is that of the selectors."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solti_store.model import LabelOperator, LabelRequirement
from solti_store.rules.postings import SEGMENT_SIZE, Lookup, conditions, decode, encode, meeting, offsets, postings

if TYPE_CHECKING:
    from collections.abc import Sequence

MEMBERS = st.sets(st.integers(0, SEGMENT_SIZE - 1), max_size=400)
KEYS = st.sampled_from(["a", "b", "", "é'"])
VALUES = st.sampled_from(["", "x", "5", "+05", "-3", str(2**63 - 1), str(-(2**63)), str(2**63), "9" * 200])
LABELS = st.lists(st.tuples(st.integers(0, SEGMENT_SIZE - 1), st.dictionaries(KEYS, VALUES)), unique_by=lambda x: x[0])


@st.composite
def requirements(draw: st.DrawFn) -> LabelRequirement:
    operator = draw(st.sampled_from(list(LabelOperator)))
    match operator:
        case LabelOperator.EXISTS | LabelOperator.DOES_NOT_EXIST:
            values: tuple[str, ...] = ()
        case LabelOperator.IN | LabelOperator.NOT_IN:
            values = tuple(draw(st.lists(VALUES, min_size=1, max_size=3)))
        case LabelOperator.GREATER_THAN | LabelOperator.LESS_THAN:
            values = (draw(st.sampled_from(["5", "-3", "0", str(2**63 - 1), str(-(2**63))])),)
        case _:
            values = (draw(VALUES),)
    return LabelRequirement(draw(KEYS), operator, values)


@given(MEMBERS)
def test_a_set_comes_out_as_it_went_in_and_in_order(members: set[int]) -> None:
    tasks = decode(encode(list(members)))
    assert list(offsets(tasks)) == sorted(members)
    assert list(offsets(tasks, first=8192, descending=True)) == [8192 + n for n in sorted(members, reverse=True)]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 255, 256, SEGMENT_SIZE])
def test_a_set_is_a_short_list_or_a_bitmap(size: int) -> None:
    encoded = encode(list(range(size)))
    assert len(encoded) == (2 * size if size < 64 else SEGMENT_SIZE // 8)
    assert decode(encoded) == (1 << size) - 1


@given(LABELS, st.lists(requirements(), max_size=4))
def test_the_tasks_that_meet_a_selector_are_those_its_requirements_match(
    labelled: Sequence[tuple[int, dict[str, str]]], selector: list[LabelRequirement]
) -> None:
    index: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for posting in postings(labelled):
        index[posting.term][posting.number] = decode(posting.members)
    asked = conditions(selector)
    found: dict[Lookup, int] = {}
    for lookup in {lookup for one in asked for lookup in one.lookups}:
        in_range = (tasks for number, tasks in index[lookup.term].items() if lookup.low <= number <= lookup.high)
        for tasks in in_range:
            found[lookup] = found.get(lookup, 0) | tasks
    everyone = decode(encode([offset for offset, _ in labelled]))
    expected = sorted(offset for offset, labels in labelled if all(one.matches(labels) for one in selector))
    assert list(offsets(meeting(asked, found, everyone))) == expected


def test_bounds_of_one_key_are_one_range() -> None:
    def lookups(*bounds: tuple[LabelOperator, str]) -> list[tuple[int, int]]:
        asked = conditions([LabelRequirement("a", operator, (bound,)) for operator, bound in bounds])
        return [(lookup.low, lookup.high) for one in asked for lookup in one.lookups]

    above, below = LabelOperator.GREATER_THAN, LabelOperator.LESS_THAN
    assert lookups((above, "3"), (below, "9"), (above, "5")) == [(6, 8)]
    assert lookups((above, "5"), (below, "6")) == []
    assert lookups((above, str(2**63 - 1))) == []
    assert lookups((below, str(-(2**63)))) == []
    assert lookups((below, "0")) == [(-(2**63), -1)]


def test_keys_and_values_are_not_mixed_up() -> None:
    terms = [p.term for p in postings([(0, {"ab": "c"}), (1, {"a": "bc"}), (2, {"": "abc"}), (3, {"1": "1"})])]
    assert len(set(terms)) == len(terms) == 9
