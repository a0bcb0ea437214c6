"""The selector cases, on tasks: what SQL selects is what the cases say, and what `matches` says of every other task."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from support import spec

from solti_store import Invalid, TaskStore
from solti_store.model import LabelRequirement, Labels, LabelSelector, Selector, requirements_of
from solti_store.sql.driver import Prepared
from solti_store.sql.selectors import Shape, matching, parameters, shape_of
from solti_store.sql.tables import tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

Requirements = tuple[LabelRequirement, ...]

CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "selector_cases.json").read_text(encoding="utf-8")
)
PARSED = [case for case in CASES["parse_cases"] if case["valid"]]
MATCHED = CASES["match_cases"]
# As elsewhere: null is the absence of a selector, and no value of this type.
STRUCTURED = [case for case in CASES["label_selector_cases"] if case["label_selector"] is not None]


def key(labels: dict[str, str]) -> str:
    return json.dumps(labels, sort_keys=True)


LABEL_SETS: dict[str, dict[str, str]] = {
    key(labels): labels
    for labels in [
        *(case["labels"] for case in MATCHED),
        *(match["labels"] for case in STRUCTURED if case["valid"] for match in case["matches"]),
    ]
}


class Tasks:
    """One task for each set of labels."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.ids = {text: f"task-{number}" for number, text in enumerate(LABEL_SETS)}

    def selected(self, requirements: Requirements) -> set[str]:
        """The tasks that meet the requirements, all of which are looked at both in SQL and in Python."""
        found = statement(shape_of(requirements)).all(self._connection, parameters(requirements))
        ids = {row.id for row in found}
        assert ids == {
            self.ids[text]
            for text, labels in LABEL_SETS.items()
            if all(requirement.matches(labels) for requirement in requirements)
        }
        return ids


@cache
def statement(shape: Shape) -> Prepared:
    return Prepared(select(tasks.c.id).where(matching(shape, tasks.c.labels)))


@pytest.fixture
def stored(database_url: str) -> Iterator[Tasks]:
    engine = create_engine(database_url)
    with TaskStore(engine) as store, engine.connect() as connection:
        made = Tasks(connection)
        store.create_many((made.ids[text], spec(labels=Labels(labels))) for text, labels in LABEL_SETS.items())
        yield made
    engine.dispose()


def test_the_cases_have_enough_to_tell_selectors_apart() -> None:
    assert (len(PARSED), len(MATCHED), len(STRUCTURED)) == (112, 211, 29)
    assert len(LABEL_SETS) > 50


def test_match_cases(stored: Tasks) -> None:
    wrong = [
        case["id"]
        for case in MATCHED
        if (stored.ids[key(case["labels"])] in stored.selected(Selector.parse(case["selector"]).requirements))
        is not case["match"]
    ]
    assert wrong == []


def test_structured_cases(stored: Tasks) -> None:
    wrong = []
    for case in STRUCTURED:
        if not case["valid"]:
            continue
        structured = LabelSelector.from_json(json.dumps(case["label_selector"]))
        ids = stored.selected(requirements_of(structured))
        assert ids == stored.selected(Selector.from_structured(structured).requirements)
        wrong += [
            (case["id"], match["labels"])
            for match in case["matches"]
            if (stored.ids[key(match["labels"])] in ids) is not match["match"]
        ]
    assert wrong == []


def test_structured_selectors_that_text_could_not_express(stored: Tasks) -> None:
    beyond = 0
    for case in STRUCTURED:
        try:
            structured = LabelSelector.from_json(json.dumps(case["label_selector"]))
        except Invalid:
            continue
        beyond += not case["valid"]
        stored.selected(requirements_of(structured))
    assert beyond > 3


def test_parse_cases(stored: Tasks) -> None:
    selective = 0
    for case in PARSED:
        ids = stored.selected(Selector.parse(case["selector"]).requirements)
        assert ids == stored.selected(Selector.parse(case["canonical"]).requirements)
        selective += 0 < len(ids) < len(LABEL_SETS)
    # Enough of them tell one task from another; the rest are about keys that no case has.
    assert selective > 50
