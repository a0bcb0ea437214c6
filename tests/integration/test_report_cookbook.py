"""The queries of the cookbook that nobody else tries: those for Grafana, with its macros as it documents them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import make_url
from support_reports import make_history

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = (Path(__file__).parents[2] / "docs" / "reporting.md").read_text(encoding="utf-8")
QUERIES = [
    query.strip()
    for block in re.findall(r"```sql\n(.*?)```", TEXT, re.DOTALL)
    for query in block.split(";")
    if "$__" in query or "added" in query
]
FROM, TO = "2024-04-30T00:00:00Z", "2024-05-02T23:59:59.999Z"
UNITS = {"m": 60, "h": 3600, "d": 86_400}


def expanded(query: str) -> str:
    """The query as Grafana sends it, for two days of which there is a history."""

    def group(found: re.Match[str]) -> str:
        seconds = int(found[2]) * UNITS[found[3]]
        return f"floor(extract(epoch from {found[1]})/{seconds})*{seconds}" + (
            ' AS "time"' if found[0].startswith("$__timeGroupAlias") else ""
        )

    query = re.sub(r"\$__timeGroup(?:Alias)?\((\w+), '(\d+)(\w)'\)", group, query)
    query = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{FROM}' AND '{TO}'", query)
    query = re.sub(r"\$__time\((\w+)\)", r'\1 AS "time"', query)
    return query.replace("$__timeFrom()", f"'{FROM}'").replace("$__timeTo()", f"'{TO}'")


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as opened:
        make_history(opened)
        yield opened
        opened.rollback()


def test_there_are_such_queries() -> None:
    assert len(QUERIES) == 6


@pytest.mark.parametrize("query", QUERIES)
def test_it_answers(connection: psycopg.Connection[Any], query: str) -> None:
    if "added" in query:
        query = query.replace("current_date - 30", "'2024-05-01'")
    sent = expanded(query)
    assert "$" not in sent
    cursor = connection.execute(sent.encode())
    columns = [column.name for column in cursor.description or ()]
    rows = cursor.fetchall()
    assert all(len(row) == len(columns) for row in rows)
    # Minutes are those of the last day, in which the history has nothing.
    assert bool(rows) == ("throughput WHERE" not in query)
    if "$__time(" in query or "$__timeGroupAlias" in query:
        assert columns[0] == "time"
        assert rows == sorted(rows, key=lambda row: row[0])


def test_percentiles_of_days_added_up(connection: psycopg.Connection[Any]) -> None:
    (query,) = (query for query in QUERIES if "added" in query)
    found = connection.execute(query.replace("current_date - 30", "'2024-05-01'").encode()).fetchall()
    # Of 4, 5, 10, 10 and 60 seconds; of 10; of 1.
    assert [slot for slot, _ in found] == ["build", "later", "stop"]
    assert [p95 for _, p95 in found] == pytest.approx([60, 10, 1], rel=0.091)
