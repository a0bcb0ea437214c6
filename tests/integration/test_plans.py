"""Plans that were made when the tables were empty, as of a worker that was there first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from support import connect, queued, spec

from solti_store import Outcome, TaskPhase, TaskQuery, TaskStore

if TYPE_CHECKING:
    import psycopg

OK = Outcome.succeeded(0)
TASKS = 3000


def read_in_scans(database: psycopg.Connection[Any], *, open_ones: int) -> int:
    """How many rows of the tables of tasks were read in scans of whole tables, once only so many sessions are open."""
    # A session ends, and tells what it read, after its client has closed it.
    sessions = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    while database.execute(sessions).fetchone() != (open_ones,):
        pass
    row = database.execute(
        "SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN ('tasks', 'task_status', 'task_runs')"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_after_a_load_nobody_reads_whole_tables(database_url: str) -> None:
    with connect(database_url) as database, TaskStore.open(database_url, pool_size=1) as store:
        for table in ("tasks", "task_status", "task_runs", "agents", "routes"):
            database.execute(f"ALTER TABLE solti.{table} SET (autovacuum_enabled = off)".encode())
        agent = store.register("w")
        # More often than psycopg needs to prepare a statement, and PostgreSQL to settle on a plan for all parameters.
        for number in range(12):
            store.create(f"owner-{number}", spec("s"))
            store.create(f"next-{number}", queued("s"))
            for _ in range(2):
                store.finish_many([(claim, OK) for claim in store.claim(agent, limit=10)])
            store.cancel(f"owner-{number}")
            store.delete(f"owner-{number}")
            store.reap()
        with TaskStore.open(database_url) as other:
            other.create_many([(f"t-{number}", spec(f"t-{number}")) for number in range(TASKS)])
        before = read_in_scans(database, open_ones=1)
        for number in range(5):
            claims = store.claim(agent, limit=10)
            assert len(claims) == 10
            for claim in claims[:3]:
                store.create(f"behind-{claim.task_id}", queued(claim.spec.slot))
            assert store.finish_many([(claim, OK) for claim in claims]) == [None] * 10
            store.cancel(f"t-{TASKS - number - 1}")
            store.delete(f"t-{TASKS - number - 1}")
            store.reap()
            store.heartbeat(agent)
        store.close()
        assert read_in_scans(database, open_ones=0) == before


def test_after_a_load_a_page_by_phase_does_not_read_the_whole_phase(database_url: str) -> None:
    query = TaskQuery(phases=frozenset({TaskPhase.PENDING}), limit=50)
    with connect(database_url) as database, TaskStore.open(database_url, pool_size=1) as store:
        for table in ("tasks", "task_status"):
            database.execute(f"ALTER TABLE solti.{table} SET (autovacuum_enabled = off)".encode())
        store.create_many([(f"early-{number}", spec(f"early-{number}")) for number in range(3)])
        for _ in range(12):
            store.list(query)
        with TaskStore.open(database_url) as other:
            other.create_many([(f"t-{number}", spec(f"t-{number}")) for number in range(TASKS)])

        def entries_read() -> int:
            with store._run._engine.connect() as connection:  # type: ignore[attr-defined]
                connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
            found = database.execute(
                "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'task_status'"
            ).fetchone()
            assert found is not None
            return int(found[0])

        before = entries_read()
        assert len(store.list(query).items) == query.limit
        assert entries_read() - before < TASKS
