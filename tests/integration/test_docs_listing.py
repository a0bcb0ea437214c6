"""What docs/listing.md says in SQL is what the store's selectors do."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from support import connect, spec

from solti_store import Selector, TaskStore
from solti_store.model import Labels

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).parents[2] / "docs" / "listing.md").read_text()
IN_SQL = re.findall(r"^\| `([^`]+)` \| `((?:labels|NOT|\(labels|CASE)[^`]*)` \|$", PAGE, re.MULTILINE)
STATEMENTS = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
LABELS = [
    dict(zip(("env", "tier", "prio"), values, strict=True))
    for values in itertools.product(("prod", "dev", "qa", ""), ("gold", ""), ("3", "4", "-5", "+07", "4x", "9" * 18))
]


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with TaskStore.open(database_url) as store:
        labelled = [*LABELS, *({k: v for k, v in one.items() if k != "env"} for one in LABELS[:8]), {}, {"prio": "12"}]
        store.create_many([(f"t-{n}", spec(labels=Labels(one))) for n, one in enumerate(labelled)])
    with connect(database_url) as opened:
        yield opened


def test_every_kind_of_requirement_is_there() -> None:
    assert len(IN_SQL) == 7
    assert len(STATEMENTS) == 1


@pytest.mark.parametrize(("selector", "condition"), IN_SQL)
def test_a_requirement_in_sql_finds_what_the_selector_finds(
    connection: psycopg.Connection, selector: str, condition: str
) -> None:
    matches = Selector.parse(selector).matches
    rows = connection.execute(f"SELECT labels, ({condition}) IS TRUE FROM solti.tasks".encode()).fetchall()
    assert {found for _, found in rows} == {True, False}
    assert [found for _, found in rows] == [matches(labels) for labels, _ in rows]


def test_the_statements_run(connection: psycopg.Connection) -> None:
    for block in STATEMENTS:
        for statement in filter(str.strip, block.split(";")):
            connection.execute(statement.encode())
