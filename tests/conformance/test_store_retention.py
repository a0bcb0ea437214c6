"""What both stores promise about retention, at the public API. Runs over `TaskStore` and `AsyncTaskStore`."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from support import connect, retrying, silence, spec

from solti_store import Agent, Invalid, Outcome, Retention, TaskPhase, TaskStore
from solti_store.rules.retention import MAX_RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = timedelta(days=1)


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(database_url) as connection:
        yield connection


def age(database: psycopg.Connection[Any], days: int) -> None:
    """Let everything have happened so many days earlier, to tasks and runs."""
    for table, columns in (
        ("task_status", ("updated_at", "due_at", "deadline")),
        ("task_runs", ("started_at", "finished_at")),
    ):
        changes = ", ".join(f"{column} = {column} - interval '{days} days'" for column in columns)
        database.execute(f"UPDATE solti.{table} SET {changes}".encode())


def one(store: TaskStore, agent: Agent, outcome: Outcome | None) -> str:
    (claim,) = store.claim(agent, limit=1)
    if outcome is not None:
        store.finish(claim, outcome)
    return claim.task_id


def test_final_tasks_go_with_their_runs_and_nothing_else_does(
    store: TaskStore, database: psycopg.Connection[Any]
) -> None:
    agent = store.register("w")
    store.create_many([(name, spec()) for name in ("succeeded", "failed", "runs")])
    for outcome in (Outcome.succeeded(), Outcome.failed("no"), None):
        one(store, agent, outcome)
    store.create("waits", retrying("waits"))
    one(store, agent, Outcome.failed("again"))
    store.create("pending", spec("pending"))
    store.create("canceled", spec("canceled"))
    store.cancel("canceled")
    age(database, 31)
    store.create("young", spec("young"))
    store.cancel("young")
    assert store.prune(Retention(tasks=40 * DAY, runs=None)).tasks == 0
    assert store.prune(Retention(tasks=None, runs=None, agents=None)).tasks == 0
    pruned = store.prune(Retention(runs=None))
    assert (pruned.tasks, pruned.runs, pruned.agents, pruned.is_complete) == (3, 0, 0, True)
    assert {task.id for task in store.list()} == {"runs", "waits", "pending", "young"}
    assert store.get("waits").status.phase is TaskPhase.FAILED
    rows = database.execute("SELECT id FROM solti.task_events WHERE type = 'deleted' ORDER BY id").fetchall()
    assert [row[0] for row in rows] == ["canceled", "failed", "succeeded"]
    assert database.execute("SELECT count(*) FROM solti.task_runs").fetchall() == [(1,)]
    assert [run.phase for run in store.runs("runs")] == ["running"]


def test_old_runs_go_and_the_running_one_stays(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    agent = store.register("w")
    store.create("a", retrying("a"))
    one(store, agent, Outcome.failed("first"))
    age(database, 31)
    # A due time that moved back is behind where the first one's claims begin.
    agent = store.register("w")
    one(store, agent, Outcome.failed("second"))
    database.execute("UPDATE solti.task_status SET due_at = now()")
    one(store, agent, None)
    database.execute("UPDATE solti.task_runs SET started_at = started_at - interval '90 days' WHERE attempt = 3")
    assert store.prune().runs == 1
    assert [run.attempt for run in store.runs("a")] == [2, 3]
    assert store.prune(Retention(runs=timedelta(0))).runs == 1
    assert [run.attempt for run in store.runs("a")] == [3]
    assert store.get("a").status.attempt == 3


def test_a_task_keeps_its_latest_runs_only(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    agent = store.register("w")
    store.create("a", retrying("a"))
    one(store, agent, Outcome.failed("no"))
    store.create("b", spec("b"))
    # As after MAX_RUNS attempts.
    database.execute("UPDATE solti.task_status SET due_at = now() + interval '1 hour'")
    database.execute(f"UPDATE solti.task_status SET attempt = {MAX_RUNS}, due_at = now() WHERE attempt = 1".encode())
    database.execute(
        "INSERT INTO solti.task_runs SELECT seq, n, phase, started_at, finished_at, error, exit_code, agent, agent_id"
        f" FROM solti.task_runs, generate_series(2, {MAX_RUNS}) AS n".encode()
    )
    assert [run.attempt for run in store.runs("a")] == list(range(1, MAX_RUNS + 1))
    one(store, agent, Outcome.failed("no"))
    assert [run.attempt for run in store.runs("a")] == list(range(2, MAX_RUNS + 2))


def test_closed_agents_go_and_leave_their_names(
    store: TaskStore, database: psycopg.Connection[Any], database_url: str
) -> None:
    gone, lost, there = store.register("gone"), store.register("lost"), store.register("there")
    store.create("a", spec("a"))
    one(store, gone, Outcome.succeeded())
    store.sign_off(gone)
    silence(database_url, lost)
    store.reap()
    assert store.prune().agents == 0
    database.execute("UPDATE solti.agents SET closed_at = closed_at - interval '2 days'")
    assert store.prune(Retention(agents=None)).agents == 0
    assert store.prune().agents == 2
    assert database.execute("SELECT id FROM solti.agents").fetchall() == [("there",)]
    assert store.runs("a")[0].agent == "gone"
    store.heartbeat(there)


def test_an_agent_stays_until_what_it_left_is_reaped(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    agent = store.register("w")
    store.create_many([(f"t-{n}", spec()) for n in range(3)])
    store.claim(agent, limit=3)
    database.execute("UPDATE solti.agents SET state = 'lost', closed_at = now() - interval '9 days'")
    assert store.prune().agents == 0
    assert len(store.reap(limit=2)) == 2
    assert store.prune().agents == 0
    # Even of one whose row is gone.
    database.execute("DELETE FROM solti.agents")
    (reaped,) = store.reap()
    assert (reaped.agent, reaped.phase) == ("w", TaskPhase.FAILED)


def test_a_batch_is_bounded_and_says_so(store: TaskStore, database: psycopg.Connection[Any]) -> None:
    store.create_many([(f"t-{n}", spec()) for n in range(5)])
    for n in range(5):
        store.cancel(f"t-{n}")
    age(database, 31)
    counts = [store.prune(limit=2) for _ in range(3)]
    assert [(pruned.tasks, pruned.is_complete) for pruned in counts] == [(2, False), (2, False), (1, True)]


@pytest.mark.parametrize("kept", [timedelta(microseconds=-1), timedelta(days=10**6), 5, "30d"])
@pytest.mark.parametrize("field", ["tasks", "runs", "agents"])
def test_a_time_that_cannot_be_is_refused(field: str, kept: Any) -> None:
    with pytest.raises(Invalid, match=f"retention of {field} must be from 0 to") as caught:
        Retention(**{field: kept})
    assert caught.value.field == field
