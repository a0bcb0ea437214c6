"""Upgrades that others stand in the way of, that are killed, and that meet what killed ones have left."""

from __future__ import annotations

import logging
import random
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic import command
from extra_migrations import write
from sqlalchemy import create_engine, event, text
from support import connect, lock_waits, spec

from solti_store import Invalid, LockTimeout, SchemaMismatch, TaskStore
from solti_store.migrate import Waits, config, downgrade, holding_lock, script, stamp, upgrade
from solti_store.ops.schema import invalid_indexes, revision
from solti_store.sql.revision import HEAD
from solti_store.sql.tables import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from sqlalchemy import Connection, Engine

ADD_COLUMN = 'op.execute(f"ALTER TABLE {SCHEMA}.tasks ADD COLUMN extra text")'
OTHER_TABLE = 'op.execute(f"CREATE TABLE {SCHEMA}.other (id bigint)")'
BUILD = 'build_index("ix_tasks_extra", "tasks", "(created_at)")'
# A try is long over when the next look at it comes, and nothing ends because the machine is slow.
SHORT = Waits(lock_timeout=timedelta(milliseconds=300), patience=timedelta(minutes=10))
UPGRADE = """
import sys; from pathlib import Path; from solti_store.migrate import upgrade
upgrade(sys.argv[1], versions=[Path(p) for p in sys.argv[2:]])
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    yield made
    made.dispose()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def one(connection: psycopg.Connection[Any], query: str, *values: object) -> Any:
    row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None


def waits_for_tasks(watcher: psycopg.Connection[Any]) -> bool:
    return bool(
        one(
            watcher,
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
            " AND relation = %s::regclass"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            f"{SCHEMA}.tasks",
        )
    )


def found(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return revision(connection)


def test_an_upgrade_waits_in_steps_and_lets_readers_through_between_them(
    database_url: str, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = write(tmp_path, OTHER_TABLE, ADD_COLUMN)
    caplog.set_level(logging.WARNING, "solti_store.migration")
    with (
        ThreadPoolExecutor(1) as pool,
        connect(database_url) as blocker,
        connect(database_url) as watcher,
        connect(database_url) as reader,
    ):
        pid = blocker.info.backend_pid
        with blocker.transaction():
            blocker.execute(f"SELECT count(*) FROM {SCHEMA}.tasks".encode())
            upgrading = pool.submit(upgrade, database_url, waits=SHORT, versions=[tmp_path])
            for _ in range(3):
                until(lambda: waits_for_tasks(watcher), "the upgrade wants its lock")
                # Behind the upgrade in the queue, and through when that gives up: the blocker is still there.
                assert one(reader, f"SELECT count(*) FROM {SCHEMA}.tasks") == 0
                assert not upgrading.done()
            # What came before stays done.
            assert found(engine) == first
        upgrading.result()
    assert found(engine) == last
    tries = [record.getMessage() for record in caplog.records]
    assert len(tries) >= 3
    assert all(f"no lock on {SCHEMA}.tasks after" in message for message in tries)
    assert any(f"pid {pid}" in message for message in tries)


def test_when_its_patience_ends_the_error_names_the_table_and_the_blockers(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    write(tmp_path, ADD_COLUMN)
    waits = Waits(lock_timeout=timedelta(seconds=1), patience=timedelta(seconds=3))
    with connect(database_url) as blocker, blocker.transaction():
        blocker.execute(f"SELECT id FROM {SCHEMA}.tasks".encode())
        with pytest.raises(LockTimeout) as refusal:
            upgrade(engine, waits=waits, versions=[tmp_path])
        error = refusal.value
        assert error.relation == f"{SCHEMA}.tasks"
        assert [holder.pid for holder in error.blockers] == [blocker.info.backend_pid]
        assert (error.blockers[0].state, error.blockers[0].query) == (
            "idle in transaction",
            f"SELECT id FROM {SCHEMA}.tasks",
        )
        assert error.waited >= timedelta(seconds=1)
        assert found(engine) == HEAD
    upgrade(engine, waits=waits, versions=[tmp_path])


def test_a_relative_target_is_the_same_after_a_retry(database_url: str, engine: Engine, tmp_path: Path) -> None:
    other = OTHER_TABLE.replace("other", "third")
    names = write(tmp_path, OTHER_TABLE, ADD_COLUMN, other)
    with ThreadPoolExecutor(1) as pool, connect(database_url) as blocker, connect(database_url) as watcher:
        with blocker.transaction():
            blocker.execute(f"SELECT count(*) FROM {SCHEMA}.tasks".encode())
            upgrading = pool.submit(upgrade, database_url, "+2", waits=SHORT, versions=[tmp_path])
            for _ in range(2):
                until(lambda: waits_for_tasks(watcher), "the upgrade wants its lock")
                until(lambda: not waits_for_tasks(watcher), "the upgrade gives up")
        upgrading.result()
    assert found(engine) == names[1]


# --- killed ----------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
from pathlib import Path
import psycopg
from solti_store.migrate import upgrade
left = int(sys.argv[2])
execute = psycopg.Cursor.execute
def count(cursor, statement, *rest, **options):
    global left
    # Polling for the right to migrate is no step, and would use up the statements of whoever waits.
    if "pg_try_advisory_lock" not in str(statement):
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return execute(cursor, statement, *rest, **options)
psycopg.Cursor.execute = count
upgrade(sys.argv[1], versions=[Path(p) for p in sys.argv[3:]])
"""


@pytest.mark.parametrize("seed", range(5))
def test_eight_upgraders_killed_at_random_points_and_one_more_end_right(
    empty_database_url: str, tmp_path: Path, seed: int
) -> None:
    names = write(
        tmp_path,
        OTHER_TABLE,
        BUILD,
        ADD_COLUMN,
        """backfill("tasks", {"extra": "t.id"}, where="t.extra IS DISTINCT FROM t.id", size=7)""",
    )
    chance = random.Random(seed)
    points = [str(chance.randint(1, 230)) for _ in range(8)]
    processes = [
        subprocess.Popen([sys.executable, "-c", KILLED, empty_database_url, point, str(tmp_path)]) for point in points
    ]
    ends = [process.wait(300) for process in processes]
    # Who comes after the last step has too few statements left to die of.
    assert set(ends) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in ends
    upgrade(empty_database_url, versions=[tmp_path])
    engine = create_engine(empty_database_url)
    assert found(engine) == names[-1]
    with engine.begin() as connection:
        assert invalid_indexes(connection) == []
        assert connection.scalar(text(f"SELECT count(*) FROM {SCHEMA}.backfills")) == 0
        # The drift check is about the shipped schema.
        connection.execute(text(f"DROP TABLE {SCHEMA}.other"))
        connection.execute(text(f"ALTER TABLE {SCHEMA}.tasks DROP COLUMN extra"))
        connection.execute(text(f"DROP INDEX {SCHEMA}.ix_tasks_extra"))
    stamp(engine, HEAD, versions=[tmp_path])
    with engine.connect() as connection:
        command.check(config(connection))
    TaskStore(engine).create("a", spec("a"))
    engine.dispose()


def builds(watcher: psycopg.Connection[Any]) -> int:
    return int(
        one(
            watcher,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
            " AND starts_with(query, 'CREATE INDEX')",
        )
    )


def test_what_a_build_that_was_killed_has_left_is_dropped_and_built_again(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    (name,) = write(tmp_path, BUILD, downs=("drop_index('ix_tasks_extra')",))
    with connect(database_url) as holder, connect(database_url) as watcher:
        holder.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ")
        # A snapshot and a lock: the build waits for the transaction to end.
        holder.execute(f"SELECT count(*) FROM {SCHEMA}.tasks".encode())
        process = subprocess.Popen([sys.executable, "-c", UPGRADE, database_url, str(tmp_path)])
        until(
            lambda: one(
                watcher,
                "SELECT count(*) FROM pg_stat_progress_create_index WHERE starts_with(phase, 'waiting')"
                " AND datname = current_database()",
            ),
            "the build waits for the snapshot",
        )
        with engine.connect() as connection:
            # While it is being built it is nobody's leftover.
            assert invalid_indexes(connection) == []
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        # The server notices that its client is gone, though the snapshot is still held.
        until(lambda: builds(watcher) == 0, "the server ends the build")
        with engine.connect() as connection:
            assert [one.subject for one in invalid_indexes(connection)] == ["ix_tasks_extra"]
        assert found(engine) == HEAD
        holder.execute(b"ROLLBACK")
    upgrade(engine, versions=[tmp_path])
    assert found(engine) == name
    with engine.connect() as connection:
        assert invalid_indexes(connection) == []
        assert connection.scalar(text(f"SELECT to_regclass('{SCHEMA}.ix_tasks_extra') IS NOT NULL"))
    downgrade(engine, HEAD, versions=[tmp_path])
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT to_regclass('{SCHEMA}.ix_tasks_extra') IS NULL"))


def test_a_build_does_not_hold_up_readers_and_writers(database_url: str, engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, BUILD)
    store = TaskStore(engine)
    with ThreadPoolExecutor(1) as pool, connect(database_url) as holder, connect(database_url) as watcher:
        holder.execute(b"BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute(f"SELECT count(*) FROM {SCHEMA}.tasks".encode())
        # Longer than its lock_timeout: a build has the whole patience.
        upgrading = pool.submit(upgrade, database_url, waits=SHORT, versions=[tmp_path])
        until(lambda: builds(watcher), "the build goes on")
        for number in range(20):
            store.create(f"t{number}", spec())
        assert not upgrading.done()
        holder.execute(b"ROLLBACK")
        upgrading.result()
    assert len(store.list().items) == 20


def test_an_upgrade_tells_of_invalid_indexes_that_are_not_its_own(
    database_url: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    TaskStore(engine).create_many([("a", spec("s")), ("b", spec("t"))])
    with connect(database_url) as connection, pytest.raises(Exception, match="could not create unique index"):
        connection.execute(
            f"CREATE UNIQUE INDEX CONCURRENTLY by_hand ON {SCHEMA}.tasks ((spec ->> 'timeout'))".encode()
        )
    with caplog.at_level(logging.WARNING, "solti_store.migrate"):
        upgrade(engine)
    (record,) = caplog.records
    assert record.getMessage() == (
        "index by_hand on tasks, its build that did not end, so nothing is read by it; run REINDEX INDEX CONCURRENTLY"
        f' "{SCHEMA}"."by_hand";'
    )


def test_an_index_of_the_name_on_another_table_is_not_taken_for_it(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, BUILD)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE INDEX ix_tasks_extra ON {SCHEMA}.agents (id)"))
    with pytest.raises(SchemaMismatch, match=r"ix_tasks_extra.*agents"):
        upgrade(engine, versions=[tmp_path])
    assert found(engine) == HEAD


@pytest.mark.parametrize("there", [True, False])
def test_an_index_of_the_name_that_allows_what_it_should_not_is_not_taken_for_it(
    engine: Engine, tmp_path: Path, there: bool
) -> None:
    write(tmp_path, f'build_index("ix_tasks_extra", "tasks", "(created_at)", unique={not there})')
    with engine.begin() as connection:
        kind = "UNIQUE INDEX" if there else "INDEX"
        connection.execute(text(f"CREATE {kind} ix_tasks_extra ON {SCHEMA}.tasks (created_at)"))
    with pytest.raises(SchemaMismatch, match=f"is {'' if there else 'not '}unique"):
        upgrade(engine, versions=[tmp_path])
    assert found(engine) == HEAD


def test_whoever_comes_second_waits_no_longer_than_told(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, ADD_COLUMN)
    holding, go = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.connect() as connection, holding_lock(connection):
            holding.set()
            go.wait(120)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert holding.wait(60)
        with pytest.raises(Exception, match="another process has been migrating"):
            upgrade(engine, waits=Waits(patience=timedelta(seconds=0.5)), versions=[tmp_path])
        go.set()
        held.result()


# --- limits of the role, and what is left of the session -------------------------------------------


@pytest.mark.parametrize("setting", ["statement_timeout", "idle_session_timeout", "transaction_timeout"])
def test_a_limit_that_the_role_has_does_not_end_a_wait(
    database_url: str, engine: Engine, tmp_path: Path, setting: str
) -> None:
    names = write(tmp_path, BUILD, ADD_COLUMN)
    # A try, and the pause after it, are longer than the limit, which leaves time to a busy machine.
    waits = Waits(lock_timeout=timedelta(seconds=2), patience=timedelta(minutes=10))
    snapshot = f"BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM {SCHEMA}.tasks".encode()
    with ThreadPoolExecutor(1) as pool, connect(database_url) as holder, connect(database_url) as watcher:
        if one(watcher, "SELECT current_setting(%s, true)", setting) is None:
            # Before PostgreSQL 17 there is no limit for transactions.
            setting = "statement_timeout"
        watcher.execute(f"ALTER DATABASE {watcher.info.dbname} SET {setting} = '1s'".encode())
        holder.execute(snapshot)
        upgrading = pool.submit(upgrade, database_url, waits=waits, versions=[tmp_path])
        # The last that it does. What begins after that it does not wait for.
        phase = "SELECT phase FROM pg_stat_progress_create_index WHERE datname = current_database()"
        until(
            lambda: one(watcher, phase) == "waiting for old snapshots" or upgrading.done(),
            "the build waits for the transaction",
        )
        begun = one(watcher, "SELECT clock_timestamp()")
        until(lambda: one(watcher, "SELECT clock_timestamp() > %s + interval '2 s'", begun), "the limit has gone by")
        assert not upgrading.done()
        holder.execute(b"ROLLBACK; " + snapshot)
        for condition in (True, False, True):
            until(lambda: waits_for_tasks(watcher) is condition or upgrading.done(), "it wants its lock, and gives up")  # noqa: B023
        holder.execute(b"ROLLBACK")
        upgrading.result()
        watcher.execute(f"ALTER DATABASE {watcher.info.dbname} RESET {setting}".encode())
    assert found(engine) == names[-1]


def settings(connection: Connection) -> dict[str, str]:
    rows = connection.execute(text("SELECT name, setting FROM pg_settings WHERE context IN ('user', 'superuser')"))
    # Not those of a library that was loaded meanwhile; and of the isolation, the driver's is SQLAlchemy's to set back.
    return {name: setting for name, setting in rows if "." not in name and name != "transaction_isolation"}


@pytest.fixture
def pooled(database_url: str) -> Iterator[Engine]:
    """An engine of one connection, whose owner has set it up."""
    made = create_engine(database_url, pool_size=1, max_overflow=0)

    @event.listens_for(made, "connect")
    def set_up(driver: Any, _record: Any) -> None:
        driver.execute("SET search_path = app, public")
        driver.execute("SET lock_timeout = '7s'")
        driver.execute("SET statement_timeout = '7min'")
        driver.execute("SET client_connection_check_interval = '9s'")
        driver.execute("SET default_transaction_isolation = 'serializable'")
        driver.commit()

    yield made
    made.dispose()


def test_the_settings_of_a_pools_session_are_as_before(pooled: Engine, tmp_path: Path) -> None:
    write(tmp_path, ADD_COLUMN, BUILD)
    with pooled.connect() as connection:
        before, default = settings(connection), connection.dialect.default_schema_name
    seen: list[str | None] = []
    event.listen(pooled, "commit", lambda _connection: seen.append(pooled.dialect.default_schema_name))
    upgrade(pooled, versions=[tmp_path])
    with pooled.connect() as connection:
        assert settings(connection) == before
    # Nor do other connections of the engine see another default schema meanwhile.
    assert set(seen) == {default}


class _StoppedError(Exception):
    """Raised in the place of a statement."""


def test_whatever_fails_before_a_migration_the_lock_is_free_and_the_session_as_before(
    database_url: str, pooled: Engine
) -> None:
    left, where = 0, ""

    @event.listens_for(pooled, "before_cursor_execute")
    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal left, where
        left -= 1
        if left == 0:
            where = statement
            raise _StoppedError

    @event.listens_for(pooled, "commit")
    def stop_commit(_connection: Any) -> None:
        stop(_connection, None, "COMMIT")

    with pooled.connect() as connection:
        before = settings(connection)
    entered, statements = False, []
    with connect(database_url) as watcher:
        for number in range(1, 100):
            left = number
            try:
                with pooled.connect() as connection, holding_lock(connection):
                    entered, left = True, 0
            except _StoppedError:
                statements.append(where)
            assert one(watcher, LOCKS) == 0, where
            with pooled.connect() as connection:
                left = 0
                assert settings(connection) == before, where
            if entered:
                break
    assert sum("pg_try_advisory_lock" in statement for statement in statements) == 1
    # And the one after it.
    assert statements[-1] == "COMMIT"
    assert "pg_try_advisory_lock" in statements[-2]


LOCKS = (
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


@pytest.mark.parametrize("name", ["lock_timeout", "patience"])
@pytest.mark.parametrize("value", [timedelta(0), timedelta(microseconds=400), timedelta(days=60)])
def test_what_is_no_timeout_of_postgresqls_is_refused(name: str, value: timedelta) -> None:
    with pytest.raises(Invalid, match=f"{name} must be from 1 ms to 24 days.*got {value}") as refusal:
        Waits(**{name: value})
    assert refusal.value.field == name


# --- interrupted -----------------------------------------------------------------------------------


REPORTING = """
import signal, sys; from pathlib import Path
from solti_store.cli.exits import report
from solti_store.migrate import upgrade
# Whoever started this may have ignored it.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    upgrade(sys.argv[1], versions=[Path(sys.argv[2])])
except BaseException as error:
    sys.exit(report(error))
"""


@pytest.mark.parametrize(
    "step",
    [
        BUILD,
        'execute("LOCK TABLE solti.tasks")',
        """backfill("tasks", {"id": "'b'"}, where="t.id = 'a'")""",
        'with op.get_context().autocommit_block(): op.execute("UPDATE solti.tasks SET id = id")',
    ],
    ids=["build", "transaction", "backfill", "autocommit"],
)
@pytest.mark.parametrize("by", ["ctrl-c", "terminate"])
def test_an_interrupted_upgrade_and_one_that_lost_its_connection_say_so(
    database_url: str, engine: Engine, tmp_path: Path, step: str, by: str
) -> None:
    code, told = (130, "") if by == "ctrl-c" else (5, "error: the database cannot be reached")
    TaskStore(engine).create("a", spec())
    write(tmp_path, step)
    with connect(database_url) as holder, connect(database_url) as watcher:
        with holder.transaction():
            holder.execute(f"UPDATE {SCHEMA}.tasks SET id = id".encode())
            process = subprocess.Popen(
                [sys.executable, "-c", REPORTING, database_url, str(tmp_path)], stderr=subprocess.PIPE, text=True
            )
            until(lambda: lock_waits(watcher), "the step waits for a lock")
            if by == "ctrl-c":
                process.send_signal(signal.SIGINT)
            else:
                watcher.execute(
                    b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    b" WHERE datname = current_database() AND wait_event_type = 'Lock'"
                )
            _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors[: len(told)], errors.count("\n")) == (code, told, bool(told))
        until(lambda: one(watcher, LOCKS) == 0, "its session ends, and the lock with it")
    upgrade(engine, versions=[tmp_path])


# --- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Zz", '"zz"', "a b", "x" * 64, "", "_x"])
@pytest.mark.parametrize(
    "call", ["build_index({!r}, 'tasks', '(id)')", "build_index('a', {!r}, '(id)')", "drop_index({!r})"]
)
def test_a_name_that_would_mean_another_is_refused(engine: Engine, tmp_path: Path, name: str, call: str) -> None:
    write(tmp_path, call.format(name))
    with pytest.raises(Invalid, match=re.escape(f"up to 63 of a-z, 0-9 and _, got {name!r}")):
        upgrade(engine, versions=[tmp_path])
    with pytest.raises(Invalid, match="up to 63"):
        script("head", versions=[tmp_path])
