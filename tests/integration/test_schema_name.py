"""The schema may have any name, and several of them are side by side."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from alembic import command
from cli_run import data_of, run_cli
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from support import ODD_SCHEMA, connect, queued, spec

from solti_store import (
    AlreadyExists,
    AsyncTaskStore,
    FeedExpired,
    Invalid,
    NotFound,
    Outcome,
    SchemaMismatch,
    TaskStore,
    TransactionAborted,
)
from solti_store import sql as room
from solti_store.migrate import config, downgrade, upgrade
from solti_store.migration.locking import lock_key
from solti_store.ops import reports, rollups
from solti_store.rules.reports import REPORTS
from solti_store.schema_name import resolve_schema
from solti_store.sql.driver import Prepared
from solti_store.sql.naming import SCHEMA, engine_in, quoted, renamed, report_schema
from solti_store.sql.schemas import as_it_stands

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Of a database that has the schema `solti` and the odd one."""
    made = create_engine(database_url)
    upgrade(made, schema=ODD_SCHEMA)
    yield made
    made.dispose()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "n" * 57,
        "ä" * 29,
        "a\0b",
        "a\nb",
        "a\ud800",
        "pg_solti",
        "pg_catalog",
        "information_schema",
        "public",
        "solti_report",
        7,
        b"solti",
    ],
)
def test_a_name_that_cannot_be_is_refused_before_anything_is_reached(name: str) -> None:
    engine = create_engine(NOWHERE)
    for refused in (
        lambda: TaskStore.open(NOWHERE, schema=name),
        lambda: TaskStore(engine, schema=name),
        lambda: upgrade(NOWHERE, schema=name),
        lambda: downgrade(engine, "base", schema=name),
    ):
        with pytest.raises(Invalid, match="invalid model: schema must") as refusal:
            refused()
        assert refusal.value.field == "schema"


async def _open_async(name: str) -> None:
    await AsyncTaskStore.open(NOWHERE, schema=name)


def test_the_async_store_refuses_it_too() -> None:
    with pytest.raises(Invalid, match="schema must"):
        asyncio.run(_open_async("pg_x"))


@pytest.mark.parametrize("name", ["a", "n" * 56, "ä" * 28, "Select", "1", " ", "a.b", ODD_SCHEMA])
def test_any_other_name_is_taken(name: str) -> None:
    assert resolve_schema(name) == name


def test_the_name_is_the_one_given_else_the_environments_else_solti(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_schema() == "solti"
    monkeypatch.setenv("SOLTI_STORE_SCHEMA", "")
    assert resolve_schema() == "solti"
    monkeypatch.setenv("SOLTI_STORE_SCHEMA", "jobs")
    assert (resolve_schema(), resolve_schema("mine")) == ("jobs", "mine")
    monkeypatch.setenv("SOLTI_STORE_SCHEMA", "public")
    with pytest.raises(Invalid):
        TaskStore(create_engine(NOWHERE))


def statements() -> Iterator[tuple[str, Prepared]]:
    for module in pkgutil.iter_modules(room.__path__):
        for name, value in vars(importlib.import_module(f"{room.__name__}.{module.name}")).items():
            for one in value if isinstance(value, tuple) else [value]:
                if isinstance(one, Prepared):
                    yield f"{module.name}.{name}", one


def test_no_statement_keeps_the_default_name_in_another_schema() -> None:
    found = dict(statements())
    assert len(found) > 50
    kept = {name for name, statement in found.items() if "solti" in renamed(statement.text, "other")}
    assert kept == set()
    # Nor is anything else taken for it.
    assert (
        renamed("solti_store.x 'solti-store solti' x_solti.y", "other") == "solti_store.x 'solti-store solti' x_solti.y"
    )


def test_a_database_has_as_many_stores_as_it_has_schemas(engine: Engine) -> None:
    ours, odd = TaskStore(engine), TaskStore(engine, schema=ODD_SCHEMA)
    ours.create("a", spec("slot"))
    with pytest.raises(NotFound):
        odd.get("a")
    odd.create("a", spec("slot"))
    odd.create("b", queued("slot"))
    agents = [store.register("w") for store in (ours, odd)]
    (claim,) = odd.claim(agents[1], limit=10)
    assert [one.task_id for one in ours.claim(agents[0], limit=10)] == ["a"]
    odd.finish(claim, Outcome.succeeded(0))
    assert odd.get("b").phase == "pending"
    assert odd.get("a").phase == "succeeded"
    assert ours.get("a").phase == "running"
    assert [len(store.list().items) for store in (ours, odd)] == [1, 2]
    with pytest.raises(FeedExpired):
        odd.changes(ours.token())


def test_threads_on_one_engine_each_see_their_own_schema(engine: Engine) -> None:
    stores = [TaskStore(engine), TaskStore(engine, schema=ODD_SCHEMA)]

    def work(number: int) -> None:
        store = stores[number % 2]
        store.create(f"t{number}", spec())
        with pytest.raises(NotFound):
            stores[(number + 1) % 2].get(f"t{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(40)))
    assert [len(store.list().items) for store in stores] == [20, 20]


def test_both_in_one_transaction_and_nothing_rides_on_its_connection_afterwards(engine: Engine) -> None:
    ours, odd = TaskStore(engine), TaskStore(engine, schema=ODD_SCHEMA)
    theirs = text("SELECT count(*) FROM solti.tasks")
    with engine.connect() as connection, connection.begin() as transaction:
        odd.using(connection).create("a", spec())
        # The caller's own statements name what they name, and so does another store.
        assert not any(connection.get_execution_options().values())
        assert connection.scalar(theirs) == 0
        ours.using(connection).create("b", spec())
        with pytest.raises(AlreadyExists):
            odd.using(connection).create("a", spec())
        assert connection.scalar(theirs) == 1
        assert [task.id for task in odd.using(connection).list().items] == ["a"]
        assert [task.id for task in ours.using(connection).list().items] == ["b"]
        transaction.rollback()
    assert not odd.list().items
    assert not ours.list().items


def test_of_async_stores_too(database_url: str, engine: Engine) -> None:
    del engine
    asyncio.run(_both_async(database_url))


async def _both_async(database_url: str) -> None:
    made = create_async_engine(database_url)
    ours, odd = AsyncTaskStore(made), AsyncTaskStore(made, schema=ODD_SCHEMA)
    async with made.begin() as connection:
        await odd.using(connection).create("a", spec())
        await ours.using(connection).create("b", spec())
        assert (await connection.scalar(text("SELECT id FROM solti.tasks"))) == "b"
    assert [task.id for task in (await odd.list()).items] == ["a"]
    assert [task.id for task in (await ours.list()).items] == ["b"]
    await made.dispose()


def test_what_a_failed_transaction_leaves_behind_is_no_schema(engine: Engine) -> None:
    odd = TaskStore(engine, schema=ODD_SCHEMA)
    with engine.connect() as connection:
        with pytest.raises(DBAPIError):
            connection.execute(text("SELECT 1/0"))
        with pytest.raises(TransactionAborted):
            odd.using(connection).get("a")
        assert not any(connection.get_execution_options().values())


def test_reports_are_beside_their_schema(engine: Engine) -> None:
    TaskStore(engine, schema=ODD_SCHEMA).create("a", spec())
    for schema, count in ((SCHEMA, 0), (ODD_SCHEMA, 1)):
        with engine_in(engine, schema).connect() as connection:
            minute = timedelta(minutes=1)
            assert reports.freshness(connection, minute).is_replica is False
            for report in REPORTS.values():
                rows = reports.read(connection, report, timeout=minute).rows
                if report.view == "tasks":
                    assert len(rows) == count
            assert rollups.roll_up(connection) is None


def test_a_schema_that_is_not_migrated_is_told_from_one_that_is(database_url: str) -> None:
    with pytest.raises(SchemaMismatch, match="--schema"):
        TaskStore.open(database_url, schema="elsewhere")
    TaskStore.open(database_url).close()


def test_dropping_one_leaves_the_other(engine: Engine) -> None:
    odd = TaskStore(engine, schema=ODD_SCHEMA)
    odd.create("a", spec())
    downgrade(engine, "base")
    assert odd.get("a").id == "a"
    assert inspect(engine).get_table_names(schema=SCHEMA) == ["alembic_version"]


def test_a_schema_is_renamed_by_postgresqls_own_means(engine: Engine) -> None:
    TaskStore(engine, schema=ODD_SCHEMA).create_many([("a", spec("a")), ("b", spec("b"))])
    with engine.begin() as connection:
        for before, after in ((ODD_SCHEMA, "jobs"), (report_schema(ODD_SCHEMA), "jobs_report")):
            connection.execute(as_it_stands(f"ALTER SCHEMA {quoted(before)} RENAME TO {quoted(after)}"))
    upgrade(engine, schema=ODD_SCHEMA)
    another = TaskStore(engine, schema=ODD_SCHEMA)
    another.create_many([("c", spec("c")), ("d", spec("d"))])
    renamed = TaskStore(engine, schema="jobs")
    assert renamed.delete("b")
    assert [task.id for task in renamed.list()] == ["a"]
    assert [task.id for task in another.list()] == ["c", "d"]
    downgrade(engine, "-1", schema="jobs")
    upgrade(engine, schema="jobs")
    with engine_in(engine, "jobs").connect() as connection:
        assert len(reports.read(connection, REPORTS["tasks"], timeout=timedelta(minutes=1)).rows) == 1
        connection.rollback()
        command.check(config(connection, schema="jobs"))


def test_schemas_have_migration_locks_of_their_own(empty_database_url: str) -> None:
    keys = {lock_key(name) for name in (SCHEMA, ODD_SCHEMA, "other")}
    assert len(keys) == 3
    with connect(empty_database_url) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [lock_key(SCHEMA)])
        # Does not wait for whoever migrates another schema.
        upgrade(empty_database_url, schema=ODD_SCHEMA)


def test_the_command_line_takes_the_schema(empty_database_url: str) -> None:
    at = ("--schema", ODD_SCHEMA)
    refused = run_cli(*at, "list", url=empty_database_url)
    assert refused.returncode == 5
    data_of(*at, "db", "upgrade", url=empty_database_url)
    data_of(*at, "submit", "one", "--", "true", url=empty_database_url)
    run_cli(*at, "work", "--until-idle", url=empty_database_url)
    assert "succeeded" in data_of("list", url=empty_database_url, env={"SOLTI_STORE_SCHEMA": ODD_SCHEMA})
    assert "one" in data_of(*at, "report", "tasks", url=empty_database_url)
    with connect(empty_database_url) as connection:
        rows = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname ~* 'solti|odd'").fetchall()
    assert {row[0] for row in rows} == {ODD_SCHEMA, report_schema(ODD_SCHEMA)}
    assert "schema must" in run_cli("--schema", "pg_x", "list", url=NOWHERE).stderr
    assert run_cli("--schema", "", "list", url=NOWHERE).returncode == 2
    assert data_of(*at, "db", "downgrade", "base", "--yes", url=empty_database_url) == "none\n"
