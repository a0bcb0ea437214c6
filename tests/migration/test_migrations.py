"""The schema's way up and down, by whatever door, and by several at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, inspect, make_url, text
from support import ODD_SCHEMA, spec

from solti_store import SchemaMismatch, SoltiStoreError, TaskStore
from solti_store.migrate import config, downgrade, upgrade
from solti_store.ops.schema import revision
from solti_store.rules.reports import REPORTS
from solti_store.sql.naming import REPORT_SCHEMA, SCHEMA, engine_in, quoted, report_schema
from solti_store.sql.revision import HEAD
from solti_store.sql.schemas import as_it_stands
from solti_store.sql.tables import metadata, metadata_in, schema_history

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    made = create_engine(empty_database_url)
    yield made
    made.dispose()


@pytest.fixture(params=[SCHEMA, ODD_SCHEMA], ids=["default", "odd"])
def schema(request: pytest.FixtureRequest) -> str:
    """The name of the schema, which nothing may depend on."""
    name: str = request.param
    return name


def is_at_head(engine: Engine, schema: str) -> None:
    with engine_in(engine, schema).connect() as connection:
        assert revision(connection) == HEAD
        command.check(config(connection, schema=schema))


def revisions() -> list[str]:
    """All revisions, oldest first."""
    return [script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()][::-1]


def tables(engine: Engine, schema: str = SCHEMA) -> set[str]:
    return set(inspect(engine).get_table_names(schema=schema)) - {"alembic_version"}


def test_the_head_of_the_code_is_the_head_of_the_scripts() -> None:
    assert ScriptDirectory.from_config(config()).get_current_head() == HEAD


def views(engine: Engine, schema: str = SCHEMA) -> set[str]:
    return set(inspect(engine).get_view_names(schema=report_schema(schema)))


def test_stairway_each_step_goes_up_down_and_up_again(engine: Engine, schema: str) -> None:
    for step in revisions():
        upgrade(engine, step, schema=schema)
        downgrade(engine, "-1", schema=schema)
        upgrade(engine, step, schema=schema)
    with engine_in(engine, schema).connect() as connection:
        assert revision(connection) == HEAD
    assert tables(engine, schema) == {table.name for table in metadata.tables.values()}
    assert views(engine, schema) == {report.view for report in REPORTS.values()} | {"version", "freshness"}
    downgrade(engine, "base", schema=schema)
    assert tables(engine, schema) == views(engine, schema) == set()
    there = {name for name in inspect(engine).get_schema_names() if name not in ("public", "information_schema")}
    assert there == {schema, report_schema(schema)}


def test_what_the_migrations_build_is_what_the_code_expects(engine: Engine, schema: str) -> None:
    upgrade(engine, schema=schema)
    is_at_head(engine, schema)


def test_the_drift_check_notices_a_difference(engine: Engine, schema: str) -> None:
    upgrade(engine, schema=schema)
    with engine.begin() as connection:
        connection.execute(as_it_stands(f"ALTER TABLE {quoted(schema)}.tasks ADD COLUMN extra int"))
    with engine.connect() as connection, pytest.raises(Exception, match="extra"):
        command.check(config(connection, schema=schema))


def test_constraints_bear_the_names_and_rules_the_code_has(engine: Engine, schema: str) -> None:
    """Autogenerate does not compare CHECKs, so two schemas are built and their definitions compared."""
    definitions = text(
        "SELECT conrelid::regclass::text AS owner, conname, pg_get_constraintdef(oid) AS rule FROM pg_constraint"
        " WHERE connamespace = to_regnamespace(quote_ident(:schema)) AND contype <> 'n' AND conname !~ 'alembic'"
        " ORDER BY 1, 2"
    ).bindparams(schema=schema)
    functions = text(
        "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = to_regnamespace(quote_ident(:schema))"
        " AND prorettype <> 'trigger'::regtype"
    ).bindparams(schema=schema)
    upgrade(engine, schema=schema)
    with engine.begin() as connection:
        migrated = connection.execute(definitions).all()
        made_by = connection.scalars(functions).all()
        connection.execute(as_it_stands(f"DROP SCHEMA {quoted(schema)} CASCADE"))
        connection.execute(as_it_stands(f"CREATE SCHEMA {quoted(schema)}"))
        for function in made_by:
            connection.execute(as_it_stands(function))
        metadata_in(schema).create_all(connection)
        described = connection.execute(definitions).all()
    assert migrated == described
    assert len(described) > 20


def test_two_upgraders_at_once_and_six_more(empty_database_url: str, engine: Engine) -> None:
    script = "import sys; from solti_store.migrate import upgrade; upgrade(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, empty_database_url], stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    with engine.connect() as connection:
        assert revision(connection) == HEAD
        command.check(config(connection))


def test_threads_of_one_process_migrate_several_databases_at_once(empty_database_url: str, database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(upgrade, url) for url in (empty_database_url, database_url) * 2]:
            done.result()
    with TaskStore.open(empty_database_url) as store:
        store.create("a", spec("a"))


def test_a_migration_that_fails_leaves_nothing_whatever_the_engines_mode(empty_database_url: str) -> None:
    engine = create_engine(empty_database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE SCHEMA solti"))
        connection.execute(text("CREATE TABLE solti.routes (mine int)"))
    with pytest.raises(SoltiStoreError):
        upgrade(engine)
    assert tables(engine) == {"routes"}
    with engine.connect() as connection:
        connection.execute(text("DROP TABLE solti.routes"))
    upgrade(engine)
    engine.dispose()


KILLED = """
import os, signal, sys
from sqlalchemy import event, Engine
from solti_store.migrate import upgrade
seen = 0
@event.listens_for(Engine, "before_cursor_execute")
def count(conn, cursor, statement, *rest):
    global seen
    seen += 1
    if seen == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
upgrade(sys.argv[1])
"""


@pytest.mark.parametrize("statement", [2, 5, 8, 11, 14, 17, 33, 36, 40, 120, 205])
def test_an_upgrader_killed_at_any_statement_leaves_nothing_half_done(
    empty_database_url: str, engine: Engine, statement: int
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, empty_database_url, str(statement)], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    upgrade(engine)
    with engine.connect() as connection:
        assert revision(connection) == HEAD
        command.check(config(connection))


def test_the_alembic_command_works_on_the_checkout(empty_database_url: str, engine: Engine, schema: str) -> None:
    def alembic(*arguments: str) -> str:
        environment = {**os.environ, "SOLTI_STORE_URL": empty_database_url}
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-x", f"schema={schema}", *arguments],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    alembic("upgrade", "head")
    assert HEAD in alembic("current")
    assert "No new upgrade operations" in alembic("check")
    assert tables(engine, schema)
    alembic("downgrade", "base")
    assert tables(engine, schema) == set()


def test_the_offline_script_builds_the_same_schema(empty_database_url: str, engine: Engine, schema: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-x", f"schema={schema}", "upgrade", "head", "--sql"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    # What a driver would have read as the escape of one percent sign stays two here.
    assert "%%" not in done.stdout
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.autocommit = True
        driver.execute(done.stdout)
    is_at_head(engine, schema)
    TaskStore(engine, schema=schema).create("a", spec("a"))


def test_a_schema_of_another_version_is_refused_with_the_remedy(empty_database_url: str, engine: Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE solti.alembic_version SET version_num = 'solti_9999'"))
        connection.execute(insert(schema_history).values(revision="solti_9999", oldest_code="solti_9998"))
    with pytest.raises(SchemaMismatch, match="solti_9999"):
        TaskStore.open(empty_database_url)
    with pytest.raises(SchemaMismatch, match="solti_9999"):
        upgrade(engine)


def test_an_owner_of_the_schemas_needs_no_right_on_the_database(empty_database_url: str, engine: Engine) -> None:
    role = f"solti_owner_{uuid.uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 's3cret'"))
        for schema in (SCHEMA, REPORT_SCHEMA):
            connection.execute(text(f"CREATE SCHEMA {schema} AUTHORIZATION {role}"))
    try:
        owners = make_url(empty_database_url).set(username=role, password="s3cret")
        upgrade(owners)
        upgrade(owners)
        downgrade(owners, "base")
        upgrade(owners)
        with engine.connect() as connection:
            assert revision(connection) == HEAD
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role} CASCADE"))
            connection.execute(text(f"DROP ROLE {role}"))


# What no statement of the store would write, the database refuses by itself.
@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("tasks", "id = 'a b'"),
        ("tasks", "id = '..'"),
        ("tasks", "generation = 0"),
        ("tasks", "spec = '[]'"),
        ("tasks", "spec = spec - 'slot'"),
        ("tasks", "spec = jsonb_set(spec, '{slot}', '\"a/b\"')"),
        ("tasks", "spec = jsonb_set(spec, '{kind}', '{\"magic\": {}}')"),
        ("tasks", "spec = jsonb_set(spec, '{timeout}', '0')"),
        ("tasks", "spec = spec - 'timeout'"),
        ("tasks", "spec = jsonb_set(spec, '{restart,type}', '\"sometimes\"')"),
        ("tasks", "spec = jsonb_set(spec, '{backoff,maxMs}', '1')"),
        ("tasks", "spec = jsonb_set(spec, '{backoff,factor}', '0.5')"),
        ("tasks", "spec = jsonb_set(spec, '{admission}', 'null')"),
        ("tasks", "spec = jsonb_set(spec, '{labels}', '[]')"),
        ("tasks", "spec = jsonb_set(spec, '{maxRetries}', '0')"),
        ("task_status", "resource_version = 0"),
        ("task_status", "phase = 'paused'"),
        ("task_status", "phase = 'running'"),
        ("task_status", "phase = 'failed'"),
        ("task_status", "attempt = 1"),
        ("task_status", "attempt = -1"),
        ("task_status", "agent = 1"),
        ("task_status", "cancel_requested_at = now()"),
        ("task_status", "phase = 'canceled', due_at = now()"),
        ("task_status", "failures = -1"),
    ],
)
def test_the_database_refuses_what_breaks_a_rule(engine: Engine, table: str, change: str) -> None:
    upgrade(engine)
    TaskStore(engine).create("a", spec("a"))
    with engine.begin() as connection, pytest.raises(Exception, match=r"ck_|not-null") as refusal:
        connection.execute(text(f"UPDATE solti.{table} SET {change}"))
    assert getattr(refusal.value, "orig", None) is not None
