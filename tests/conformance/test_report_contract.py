"""What the reporting views mean: names, types, comments, and the rows of a history made by hand.

`report_contract.json` has it all. Whoever has to change a line there that was in a release raises the version of the
views, in a migration of its own and in `solti_store.rules.reports`; what is added needs no new version.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from support import connect, retrying
from support_reports import described, make_history, rows_of

from solti_store import Outcome, TaskStore
from solti_store.rules.reports import PAGE, REPORTS, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTRACT = json.loads(Path(__file__).with_name("report_contract.json").read_text(encoding="utf-8"))
DOCS = Path(__file__).parents[2] / "docs" / "reporting.md"


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_url) as opened:
        opened.autocommit = False
        yield opened
        opened.rollback()


def test_views_columns_types_and_comments_are_those_of_the_contract(connection: psycopg.Connection[Any]) -> None:
    found = described(connection)
    assert found.keys() == CONTRACT["views"].keys()
    for view, description in found.items():
        assert description["columns"] == CONTRACT["views"][view]["columns"], view
        assert description["comment"] == CONTRACT["views"][view]["comment"], view
        assert all(meaning for _, _, meaning in description["columns"]), view


def test_the_rows_of_a_known_history_are_those_of_the_contract(connection: psycopg.Connection[Any]) -> None:
    make_history(connection)
    expected = {view: said["rows"] for view, said in CONTRACT["views"].items() if "rows" in said}
    assert expected.keys() == CONTRACT["views"].keys() - {"freshness", "throughput"}
    for view, rows in expected.items():
        assert rows_of(connection, view) == rows, view


def test_throughput_has_the_minutes_of_a_day_those_without_an_end_included(
    connection: psycopg.Connection[Any],
) -> None:
    make_history(connection)
    connection.execute(
        """
        UPDATE solti.task_runs SET finished_at = minute - interval '61 s' * (attempt - 1),
                                   started_at = minute - interval '61 s' * (attempt - 1) - interval '5 s'
        FROM (SELECT date_trunc('minute', now()) AS minute) AS this WHERE seq = 1
        """
    )
    rows = connection.execute(
        "SELECT date_trunc('minute', now()) - minute, attempts, succeeded, failed, timeout, canceled, run_seconds"
        " FROM solti_report.throughput ORDER BY 1"
    ).fetchall()
    assert [row[0] for row in rows] == [timedelta(minutes=back) for back in range(24 * 60)]
    assert [row[1:] for row in rows[:5]] == [
        (1, 0, 1, 0, 0, 5.0),
        (0, 0, 0, 0, 0, 0.0),
        (1, 0, 0, 1, 0, 5.0),
        (1, 1, 0, 0, 0, 5.0),
        (0, 0, 0, 0, 0, 0.0),
    ]
    assert sum(row[1] for row in rows) == 3


def test_a_primary_is_as_of_now(connection: psycopg.Connection[Any]) -> None:
    found = connection.execute(
        "SELECT is_replica, as_of = statement_timestamp(), behind_seconds FROM solti_report.freshness"
    )
    assert found.fetchall() == [(False, True, 0.0)]


def test_the_code_knows_the_version_and_every_view(connection: psycopg.Connection[Any]) -> None:
    assert connection.execute("SELECT version FROM solti_report.version").fetchall() == [(VERSION,)]
    assert CONTRACT["version"] == VERSION
    assert {report.view for report in REPORTS.values()} == CONTRACT["views"].keys() - {"version", "freshness"}
    assert set(PAGE) <= REPORTS.keys()
    for report in REPORTS.values():
        columns = {name for name, _, _ in CONTRACT["views"][report.view]["columns"]}
        named = {*report.shown, *report.chart.of, *(order.split()[0] for order in report.order)}
        named |= {name for name in (report.time, report.chart.value) if name is not None}
        assert named <= columns, report.name
        assert report.has_labels == ("labels" in columns), report.name


@pytest.mark.parametrize(
    "view", [report.view for report in REPORTS.values() if report.since is not None] + ["attempts"]
)
def test_a_condition_on_time_is_answered_by_the_index(connection: psycopg.Connection[Any], view: str) -> None:
    # On a table of a few rows any plan is as good as another, unless reading all of it is made dear.
    connection.execute("SET LOCAL enable_seqscan = off")
    time = {"attempts": "finished_at", "throughput": "minute", "throughput_trend": "hour"}.get(view, "day")
    plan = connection.execute(
        f"EXPLAIN SELECT * FROM solti_report.{view} WHERE {time} >= current_date - 1".encode()
    ).fetchall()
    text = "\n".join(line for (line,) in plan)
    if view == "time_in_phase":
        assert "Index Cond: ((event >= (InitPlan" in text
    else:
        assert "ix_task_runs_finished_at" in text
    assert "Seq Scan on task_" not in text


def test_a_stay_is_as_long_when_the_event_that_it_began_with_is_of_another_day(
    store: TaskStore, connection: psycopg.Connection[Any]
) -> None:
    store.create("a", retrying("a"))
    for outcome in (Outcome.failed("no"), Outcome.timed_out(5000), Outcome.failed("no")):
        connection.execute("UPDATE solti.task_status SET due_at = now() WHERE due_at IS NOT NULL")
        connection.commit()
        (claim,) = store.claim(store.register("w"), limit=1)
        store.finish(claim, outcome)
    store.cancel("a")
    changes = connection.execute("SELECT event, at, phase_before FROM solti.task_events ORDER BY event").fetchall()
    phases = [None, "pending", "running", "failed", "running", "timeout", "running", "failed"]
    assert [before for _, _, before in changes] == phases
    connection.commit()
    for event, at, before in changes[1:]:
        spans = "SELECT extract(epoch FROM left_at - entered_at) FROM solti_report.phase_spans WHERE left_at = %s"
        ((length,),) = connection.execute(spans, [at]).fetchall()
        # As if its day began and ended with this event.
        connection.execute("DELETE FROM solti.task_events WHERE event <> %s", [event])
        found = connection.execute("SELECT phase, stays, total_seconds FROM solti_report.time_in_phase").fetchall()
        assert found == [(before, 1, pytest.approx(float(length)))]
        connection.rollback()


def test_the_documentation_has_every_column(connection: psycopg.Connection[Any]) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for view, said in CONTRACT["views"].items():
        heading = f"### {view}\n"
        assert heading in text
        part = text.partition(heading)[2].partition("\n#")[0]
        assert said["comment"] in " ".join(part.split()), view
        for name, kind, meaning in said["columns"]:
            assert f"| `{name}` | {kind} | {meaning} |" in part, (view, name)
