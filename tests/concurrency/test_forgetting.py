"""What belongs to a task goes with it, by whatever means it is deleted, and whoever is at work on it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from support import bare_engine, connect, lock_waits, spec

from solti_store import Outcome, TaskStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy import Engine


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = bare_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection]:
    with connect(database_url) as connection:
        yield connection


def left(database: psycopg.Connection) -> list[str]:
    """Of which tasks there is a status or a run."""
    rows = database.execute(
        "SELECT slot FROM solti.task_status UNION ALL SELECT 'run of ' || seq FROM solti.task_runs ORDER BY 1"
    ).fetchall()
    return [row[0] for row in rows]


def test_by_hand_nothing_of_the_deleted_is_left_and_all_of_the_others(
    engine: Engine, database: psycopg.Connection
) -> None:
    store = TaskStore(engine)
    agent = store.register("w")
    store.create_many([(name, spec(name)) for name in "abcd"])
    for claim in store.claim(agent, limit=4):
        store.finish(claim, Outcome.succeeded())
    database.execute("DELETE FROM solti.tasks WHERE id IN ('a', 'c')")
    kept = {row[0]: row[1] for row in database.execute("SELECT id, 'run of ' || seq FROM solti.tasks").fetchall()}
    assert left(database) == ["b", "d", *sorted(kept.values())]
    database.execute("DELETE FROM solti.tasks WHERE id = 'nobody'")
    assert len(left(database)) == 4
    database.execute("TRUNCATE solti.tasks, solti.task_runs")
    assert left(database) == []
    store.create("e", spec("e"))
    database.execute("TRUNCATE solti.tasks")
    assert left(database) == []


def test_a_run_that_is_being_written_goes_too(engine: Engine, database: psycopg.Connection, database_url: str) -> None:
    store = TaskStore(engine)
    agent = store.register("w")
    store.create("a", spec("a"))
    (claim,) = store.claim(agent)
    with connect(database_url) as other, ThreadPoolExecutor(1) as pool:
        with engine.begin() as finishing:
            store.using(finishing).finish(claim, Outcome.succeeded())
            deleting = pool.submit(other.execute, "DELETE FROM solti.tasks WHERE id = 'a'")
            while not lock_waits(database):
                assert not deleting.done(), "it did not wait for the finish"
        deleting.result()
    assert left(database) == []
