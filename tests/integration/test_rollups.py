"""What is kept of days whose runs retention takes: once, all of a day or nothing, and before they go."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from cli_run import run_cli
from sqlalchemy import create_engine, make_url
from support import connect
from support_reports import make_history

from solti_store import AsyncTaskStore, Retention, TaskStore
from solti_store.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

TRENDS = (
    "outcome_trend",
    "duration_trend",
    "duration_buckets",
    "retry_cost_trend",
    "failure_trend",
    "throughput_trend",
)
TABLES = ("outcome_days", "retry_days", "duration_days", "failure_days", "throughput_hours")


@pytest.fixture
def url(database_url: str) -> str:
    """A database with the history of two days, and a run that has just ended."""
    plain = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        make_history(connection)
        connection.execute(
            "INSERT INTO solti.task_runs (seq, attempt, phase, started_at, finished_at)"
            " VALUES (6, 1, 'succeeded', now() - interval '5 s', now())"
        )
    return database_url


@pytest.fixture
def database(url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(url) as connection:
        yield connection


@pytest.fixture
def store(url: str) -> Iterator[TaskStore]:
    with TaskStore.open(url) as opened:
        yield opened


def trends(database: psycopg.Connection[Any]) -> dict[str, list[Any]]:
    return {
        view: sorted(database.execute(f"SELECT * FROM solti_report.{view}".encode()).fetchall(), key=repr)
        for view in TRENDS
    }


def kept(database: psycopg.Connection[Any]) -> dict[str, int]:
    """How many rows there are of what is kept."""
    counts = {}
    for table in TABLES:
        ((counts[table],),) = database.execute(f"SELECT count(*) FROM solti.{table}".encode()).fetchall()
    return counts


def runs(database: psycopg.Connection[Any]) -> int:
    ((count,),) = database.execute("SELECT count(*) FROM solti.task_runs").fetchall()
    return int(count)


def test_trends_outlive_the_runs(url: str, database: psycopg.Connection[Any]) -> None:
    before = trends(database)
    assert run_cli("db", "roll-up", url=url).stderr == "2 more days are kept\n"
    assert trends(database) == before
    # Today is not over.
    assert kept(database) == {
        "outcome_days": 4,
        "retry_days": 4,
        "duration_days": 8,
        "failure_days": 4,
        "throughput_hours": 5,
    }
    database.execute("DELETE FROM solti.task_runs WHERE seq <> 6")
    assert run_cli("db", "roll-up", url=url).stderr == "0 more days are kept\n"
    assert trends(database) == before
    assert len(database.execute("SELECT * FROM solti_report.outcomes").fetchall()) == 1


def test_a_day_at_a_time(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    assert [f"{store.roll_up()}" for _ in range(4)] == ["2024-05-01", "2024-05-02", "None", "None"]
    # What comes late to a day that is kept is not counted; another day is.
    for day in (1, 3):
        database.execute(
            "INSERT INTO solti.task_runs (seq, attempt, phase, started_at, finished_at)"
            f" VALUES (5, {day}, 'succeeded', '2024-05-0{day} 12:00Z', '2024-05-0{day} 12:00Z')".encode()
        )
    before = trends(database)
    assert f"{store.roll_up()}" == "2024-05-03"
    assert store.roll_up() is None
    assert trends(database) == before
    sums = database.execute("SELECT day::text, sum(attempts) FROM solti.outcome_days GROUP BY day ORDER BY day")
    assert sums.fetchall() == [("2024-05-01", 3), ("2024-05-02", 4), ("2024-05-03", 1)]


def test_a_day_is_over_an_hour_after_midnight(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    database.execute(
        """
        UPDATE solti.task_runs
        SET finished_at = date_trunc('day', now() - interval '1 hour', 'UTC') + attempt * interval '1 microsecond'
        """
    )
    assert store.roll_up() is None
    database.execute("UPDATE solti.task_runs SET finished_at = finished_at - attempt * interval '1 microsecond'")
    assert store.roll_up() is None
    database.execute("UPDATE solti.task_runs SET finished_at = finished_at - interval '1 microsecond'")
    assert store.roll_up() is not None


def test_while_one_is_at_it_others_leave_it_to_them(
    store: TaskStore, url: str, database: psycopg.Connection[Any]
) -> None:
    before = trends(database)
    with create_engine(url).begin() as connection:
        first = store.using(connection)
        assert f"{first.roll_up()}" == "2024-05-01"
        assert store.roll_up() is None
        assert run_cli("db", "roll-up", url=url).stderr == "0 more days are kept\n"
        assert trends(database) == before
        assert f"{first.roll_up()}" == "2024-05-02"
    assert store.roll_up() is None
    assert trends(database) == before
    assert kept(database)["outcome_days"] == 4


@pytest.mark.parametrize("table", TABLES)
def test_all_of_a_day_is_kept_or_nothing(store: TaskStore, database: psycopg.Connection[Any], table: str) -> None:
    database.execute(f"ALTER TABLE solti.{table} ADD CONSTRAINT refuses CHECK (attempts < 0)".encode())
    with pytest.raises(Exception, match="refuses"):
        store.roll_up()
    assert set(kept(database).values()) == {0}
    before = trends(database)
    database.execute(f"ALTER TABLE solti.{table} DROP CONSTRAINT refuses".encode())
    while store.roll_up() is not None:
        pass
    assert kept(database)[table] > 0
    assert trends(database) == before


def finish_all(database: psycopg.Connection[Any]) -> None:
    """Let all tasks be final, and have been so since their last run at the latest."""
    database.execute(
        """
        UPDATE solti.task_status AS s
        SET phase = 'canceled', due_at = NULL, queue_key = NULL, deadline = NULL, started_at = NULL, agent = NULL,
            agent_id = NULL, cancel_requested_at = NULL,
            updated_at = GREATEST('2024-05-01', (SELECT max(finished_at) FROM solti.task_runs r WHERE r.seq = s.seq))
        """
    )


@pytest.mark.parametrize("retention", [Retention(tasks=None), Retention(runs=None), Retention()])
def test_runs_are_counted_before_they_go(
    store: TaskStore, database: psycopg.Connection[Any], retention: Retention
) -> None:
    finish_all(database)
    before = trends(database)
    pruned = store.prune(retention)
    assert pruned.is_complete
    assert runs(database) == 1
    assert trends(database) == before


def test_runs_stay_while_somebody_else_counts_them(
    store: TaskStore, url: str, database: psycopg.Connection[Any]
) -> None:
    finish_all(database)
    before = trends(database)
    with create_engine(url).begin() as connection:
        first = store.using(connection)
        assert f"{first.roll_up()}" == "2024-05-01"
        # Tasks without a run of that day may go, if they were final before.
        store.prune()
        assert runs(database) == 8
        assert trends(database) == before
    store.prune()
    assert runs(database) == 1
    assert trends(database) == before


def test_a_day_that_cannot_be_counted_keeps_its_runs_and_nothing_else(
    store: TaskStore, database: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    finish_all(database)
    database.execute("ALTER TABLE solti.failure_days ADD CONSTRAINT refuses CHECK (attempts < 0)")
    database.execute("UPDATE solti.task_events SET at = now() - interval '30 days'")
    events = database.execute("SELECT count(*) FROM solti.task_events").fetchall()
    before = trends(database)
    pruned = store.prune()
    assert (pruned.is_complete, [(pruned.events,)]) == (True, events)
    assert "could not be rolled up" in caplog.text
    assert set(kept(database).values()) == {0}
    assert trends(database) == before
    database.execute("ALTER TABLE solti.failure_days DROP CONSTRAINT refuses")
    store.prune()
    assert (trends(database), runs(database)) == (before, 1)


def test_a_long_time_is_counted_in_several_calls(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    database.execute(
        """
        INSERT INTO solti.task_runs (seq, attempt, phase, started_at, finished_at)
        SELECT 5, n, 'succeeded', at, at FROM generate_series(1, 30) AS n, LATERAL (
            SELECT '2024-06-01 12:00Z'::timestamptz + n * interval '2 days') AS day (at)
        """
    )
    before = trends(database)
    calls = 1
    while not store.prune(Retention(tasks=None)).is_complete:
        calls += 1
    assert calls == 5
    assert runs(database) == 1
    assert trends(database) == before


def test_an_emptied_row_loses_nothing(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    before = trends(database)
    database.execute("TRUNCATE solti.rollup")
    assert trends(database) == before
    store.prune()
    assert (trends(database), runs(database)) == (before, 1)


def test_a_day_that_is_there_already_ends_nothing(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    while store.roll_up():
        pass
    before, counts = trends(database), kept(database)
    database.execute("UPDATE solti.rollup SET upto = '-infinity'")
    assert runs(database) > 1
    store.prune()
    assert (trends(database), kept(database), runs(database)) == (before, counts, 1)


def test_what_is_kept_for_less_than_a_day_goes_uncounted(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    assert store.prune(Retention(tasks=None, runs=timedelta(0))).is_complete
    assert runs(database) == 0
    assert kept(database)["outcome_days"] == 4


def test_workers_do_it(url: str, database: psycopg.Connection[Any]) -> None:
    finish_all(database)
    database.execute("DELETE FROM solti.agents")
    before = trends(database)

    async def scenario() -> None:
        async with await AsyncTaskStore.open(url) as store, asyncio.timeout(60):
            worker = Worker(store, "w", lease=timedelta(seconds=2), retention=None)
            running = asyncio.create_task(worker.run())
            while kept(database)["throughput_hours"] < 5:
                assert not running.done()
                await asyncio.sleep(0.01)
            worker.stop()
            await running

    asyncio.run(scenario())
    assert trends(database) == before
    assert runs(database) == 8


def test_rare_errors_are_kept_together(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    database.execute("DELETE FROM solti.task_runs")
    database.execute(
        """
        INSERT INTO solti.task_runs (seq, attempt, phase, started_at, finished_at, error)
        SELECT 1 + n % 2, n, 'failed', '2024-05-01', '2024-05-01',
               CASE WHEN n % 2 = 0 THEN 'often' ELSE 'once ' || translate(n::text, '0123456789', 'ghijklmnop') END
        FROM generate_series(1, 240) AS n
        """
    )
    rows = trends(database)["failure_trend"]
    assert len(rows) == 101
    assert [row[1:4] for row in rows if row[2] != 1] == [("(other errors)", 21, 21), ("often", 120, 1)]
    assert store.roll_up() is not None
    assert trends(database)["failure_trend"] == rows


def test_percentiles_from_buckets_are_near(database: psycopg.Connection[Any]) -> None:
    database.execute("DELETE FROM solti.task_runs")
    rng = random.Random(8)
    lengths = [0.0, 0.001, 1.0, 1024.0, *(round(10 ** rng.uniform(-5, 6), 6) for _ in range(900))]
    with database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO solti.task_runs (seq, attempt, phase, started_at, finished_at)"
            " VALUES (8, %s, 'succeeded', '2024-05-01'::timestamptz - %s * interval '1 s', '2024-05-01')",
            list(enumerate(lengths, 1)),
        )
    # What a percentile says that names a value: so many took at most as long.
    exact = database.execute(
        """
        SELECT percentile_disc('{0.5,0.9,0.95,0.99,1}'::float8[]) WITHIN GROUP (ORDER BY run_seconds)
        FROM solti_report.attempts WHERE task = 'stopped'
        """
    ).fetchall()[0][0]
    found = database.execute(
        "SELECT p50_seconds, p90_seconds, p95_seconds, p99_seconds, max_seconds FROM solti_report.duration_trend"
        " WHERE slot = 'stop' AND measure = 'run'"
    ).fetchall()[0]
    for near, true in zip(found, exact, strict=True):
        assert true <= near <= true * 1.091
    assert found[4] == exact[4] == max(lengths)
    buckets = database.execute(
        "SELECT at_most_seconds, attempts FROM solti_report.duration_buckets WHERE slot = 'stop' AND measure = 'run'"
        " ORDER BY 1"
    ).fetchall()
    reached = 0
    for at_most, attempts in buckets:
        reached += attempts
        assert reached == sum(length <= at_most * (1 + 1e-9) for length in lengths)
    assert reached == len(lengths)
