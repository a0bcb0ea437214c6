"""A host application's own Alembic: it has our migrations as a branch, or overlooks our tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from support import spec

from solti_store import Invalid, SchemaMismatch, TaskStore
from solti_store.migrate import branch, downgrade, theirs, upgrade
from solti_store.sql.revision import HEAD
from solti_store.sql.tables import metadata as ours

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

HOST = Path(__file__).parent / "host"
TASKS = "shop tasks"


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    made = create_engine(empty_database_url)
    yield made
    made.dispose()


def command(way: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "alembic", "-c", str(HOST / f"{way}.ini"), *arguments]


def run(engine: Engine, way: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    url = engine.url.render_as_string(hide_password=False)
    return subprocess.run(
        command(way, *arguments), env={**os.environ, "SHOP_URL": url}, check=False, capture_output=True, text=True
    )


def alembic(engine: Engine, way: str, *arguments: str) -> str:
    done = run(engine, way, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def revision(engine: Engine, table: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.scalars(text(f"SELECT version_num FROM {table} ORDER BY 1")))


def of_the_store(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        if not inspect(connection).has_table("schema_history", schema=TASKS):
            return []
        return list(connection.scalars(text(f'SELECT max(revision) FROM "{TASKS}".schema_history')))


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names(schema=TASKS)) - {"alembic_version"}


def works(engine: Engine) -> None:
    url = engine.url.render_as_string(hide_password=False)
    with TaskStore.open(url, schema=TASKS) as store:
        store.create("a", spec("a"))
        assert store.delete("a")


def test_a_host_has_our_migrations_as_a_branch(engine: Engine) -> None:
    alembic(engine, "owning", "upgrade", "heads")
    assert tables(engine) == {table.name for table in ours.sorted_tables}
    assert set(revision(engine, "public.alembic_version")) >= {"shop_0002"}
    assert of_the_store(engine) == [HEAD]
    works(engine)
    assert "No new upgrade operations" in alembic(engine, "owning", "check")


def test_each_branch_goes_its_own_way(engine: Engine) -> None:
    alembic(engine, "owning", "upgrade", "solti_0001")
    assert of_the_store(engine) == ["solti_0001"]
    works(engine)
    alembic(engine, "owning", "upgrade", "shop@head")
    assert of_the_store(engine) == ["solti_0001"]
    alembic(engine, "owning", "upgrade", "solti@head")
    assert of_the_store(engine) == [HEAD]
    alembic(engine, "owning", "downgrade", "solti@solti_0001")
    assert of_the_store(engine) == ["solti_0001"]
    alembic(engine, "owning", "downgrade", "shop@base")
    assert "orders" not in inspect(engine).get_table_names()
    assert of_the_store(engine) == ["solti_0001"]
    alembic(engine, "owning", "downgrade", "base")
    assert of_the_store(engine) == []
    assert tables(engine) == set()
    alembic(engine, "owning", "upgrade", "heads")
    works(engine)


def test_four_deployers_at_once(engine: Engine) -> None:
    environment = {**os.environ, "SHOP_URL": engine.url.render_as_string(hide_password=False)}
    deployers = [
        subprocess.Popen(command("owning", "upgrade", "heads"), env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for deployer in deployers:
        _, errors = deployer.communicate(timeout=120)
        assert deployer.returncode == 0, errors
    works(engine)


def test_what_a_host_migrates_is_not_moved_by_us(engine: Engine) -> None:
    alembic(engine, "owning", "upgrade", "solti_0001")
    with pytest.raises(SchemaMismatch, match="migrated by the application around it"):
        upgrade(engine, schema=TASKS)
    with pytest.raises(SchemaMismatch, match="migrated by the application around it"):
        downgrade(engine, "base", schema=TASKS)
    assert of_the_store(engine) == ["solti_0001"]
    # Another schema is our own business.
    upgrade(engine)


def test_a_host_takes_over_what_was_migrated_by_us(engine: Engine) -> None:
    upgrade(engine, schema=TASKS)
    alembic(engine, "owning", "stamp", "solti@head")
    alembic(engine, "owning", "upgrade", "heads")
    works(engine)
    with pytest.raises(SchemaMismatch, match="application"):
        upgrade(engine, schema=TASKS)
    assert not inspect(engine).has_table("alembic_version", schema=TASKS)


@pytest.mark.parametrize("by", ["option", "search_path"])
def test_a_hosts_version_table_in_our_schema_stays(engine: Engine, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    table = f'"{TASKS}".alembic_version'
    with engine.begin() as connection:
        connection.execute(text(f'CREATE SCHEMA "{TASKS}"'))
        if by == "search_path":
            connection.execute(text(f'ALTER DATABASE {engine.url.database} SET search_path = "{TASKS}", public'))
    if by == "option":
        monkeypatch.setenv("SHOP_VERSION_SCHEMA", TASKS)
    engine.dispose()
    alembic(engine, "owning", "upgrade", "shop_0001")
    assert revision(engine, table) == ["shop_0001"]
    alembic(engine, "owning", "upgrade", "solti@head")
    assert revision(engine, table) == ["shop_0001", HEAD]
    alembic(engine, "owning", "upgrade", "heads")
    works(engine)
    alembic(engine, "owning", "stamp", "heads")
    assert revision(engine, table) == ["shop_0002", HEAD]
    alembic(engine, "owning", "downgrade", "base")
    assert revision(engine, table) == []


def test_a_host_stamps_its_own_where_there_are_no_tables_of_ours(engine: Engine) -> None:
    table = "public.alembic_version"
    alembic(engine, "owning", "stamp", "shop_0001")
    assert revision(engine, table) == ["shop_0001"]
    refused = run(engine, "owning", "stamp", "solti@head")
    assert (refused.returncode, "SchemaMismatch: there is nothing to stamp" in refused.stderr) == (1, True)
    assert revision(engine, table) == ["shop_0001"]
    alembic(engine, "owning", "stamp", "base")
    assert revision(engine, table) == []
    alembic(engine, "owning", "upgrade", "heads")
    works(engine)


def test_a_hosts_stamp_of_its_own_says_nothing_of_ours(engine: Engine) -> None:
    upgrade(engine, schema=TASKS)
    for own in ("shop_0001", "shop_0002", "shop@base"):
        alembic(engine, "owning", "stamp", own)
        assert of_the_store(engine) == [HEAD]
    works(engine)


def test_the_hosts_offline_script_builds_the_same(engine: Engine) -> None:
    script = alembic(engine, "owning", "upgrade", "heads", "--sql")
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.autocommit = True
        driver.execute(script)
    assert of_the_store(engine) == [HEAD]
    works(engine)
    assert "No new upgrade operations" in alembic(engine, "owning", "check")


def test_a_host_that_overlooks_our_tables(engine: Engine) -> None:
    alembic(engine, "beside", "upgrade", "shop_0001")
    upgrade(engine, schema=TASKS)
    alembic(engine, "beside", "upgrade", "heads")
    works(engine)
    assert revision(engine, "public.alembic_version") == ["shop_0002"]
    assert of_the_store(engine) == [HEAD]
    assert "No new upgrade operations" in alembic(engine, "beside", "check")
    alembic(engine, "beside", "downgrade", "base")
    works(engine)
    downgrade(engine, "base", schema=TASKS)
    assert revision(engine, "public.alembic_version") == []


@pytest.mark.parametrize("options", [{"include_name": theirs(TASKS)}, branch(TASKS), {}])
def test_autogenerate_sees_what_is_the_hosts_and_nothing_of_ours(engine: Engine, options: dict[str, Any]) -> None:
    sys.path.insert(0, str(HOST))
    try:
        from shop import metadata  # type: ignore[import-not-found] # noqa: PLC0415
    finally:
        sys.path.remove(str(HOST))
    upgrade(engine, schema=TASKS)
    metadata.create_all(engine)
    options.pop("on_version_apply", None)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE orders ADD COLUMN extra int"))
        context = MigrationContext.configure(connection, opts={"include_schemas": True, **options})
        found = compare_metadata(context, metadata)
    if options:
        assert [(one[0], one[-1].name) for one in found] == [("remove_column", "extra")]
    else:
        # Without the helper it would drop them.
        assert {one[1].name for one in found if one[0] == "remove_table"} > {"tasks", "task_status"}


def test_a_schema_that_cannot_be_is_refused() -> None:
    for helper in (branch, theirs):
        with pytest.raises(Invalid):
            helper("public")
