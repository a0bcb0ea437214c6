"""Plans against a live catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from extra_migrations import write
from sqlalchemy import create_engine
from support import connect, spec

from solti_store import TaskStore, migrate
from solti_store.migration.locks import Lock
from solti_store.migration.plan import plan
from solti_store.sql.revision import HEAD
from solti_store.sql.tables import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from solti_store.migration.plan import Planned

TASKS = f"{SCHEMA}.tasks"


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    TaskStore(made).create_many([(f"t{number}", spec()) for number in range(300)])
    with connect(database_url) as connection:
        connection.execute(f"ANALYZE {TASKS}".encode())
    yield made
    made.dispose()


def planned(engine: Engine, folder: Path) -> list[Planned]:
    """Without what Alembic writes down for itself."""
    pieces = migrate.script(f"{HEAD}:head", versions=[folder])
    with engine.connect() as connection:
        found = plan(connection, pieces)
    return [
        each
        for each in found
        if each.step.revision
        and not (each.touch and each.touch.relation.endswith(("alembic_version", "schema_history")))
    ]


def test_each_statement_has_its_lock_its_size_and_its_transaction(engine: Engine, tmp_path: Path) -> None:
    names = write(
        tmp_path,
        'op.execute(f"ALTER TABLE {SCHEMA}.tasks ADD COLUMN x bigint")',
        'build_index("ix_x", "tasks", "(x)")',
        'backfill("tasks", {"x": "t.seq"}, where="t.x IS NULL")',
        'op.execute(f"ALTER TABLE {SCHEMA}.tasks ADD COLUMN y uuid DEFAULT gen_random_uuid()")',
        'op.execute(f"DROP INDEX {SCHEMA}.ix_x")',
        'op.execute("CALL something()")',
        'op.execute(f"CREATE TABLE {SCHEMA}.fresh (id bigint)")\n    op.execute(f"TRUNCATE {SCHEMA}.fresh")',
    )
    found = {name: [each for each in planned(engine, tmp_path) if each.step.revision == name] for name in names}
    (add,), (build,), (fill,), (rewrite,), (drop, index), (unknown,), (create, truncate) = found.values()
    assert add.touch == (TASKS, Lock.ACCESS_EXCLUSIVE, False, False)
    assert (add.seconds, add.step.transaction is None) == (0, False)
    assert add.size is not None
    assert (add.size.rows, add.size.bytes > 300 * 100, add.size.index_bytes > 0) == (300, True, True)
    assert build.touch == (TASKS, Lock.SHARE_UPDATE_EXCLUSIVE, False, True)
    assert (build.step.transaction, build.step.in_batches) == (None, False)
    assert build.seconds is not None
    assert build.seconds > 0
    assert fill.touch == (TASKS, Lock.ROW_EXCLUSIVE, False, True)
    assert (fill.step.transaction, fill.step.in_batches) == (None, True)
    assert rewrite.touch == (TASKS, Lock.ACCESS_EXCLUSIVE, True, True)
    assert (rewrite.seconds or 0) > build.seconds
    # The index is one of the plan's own; its table is known all the same.
    assert {drop.touch and drop.touch.relation, index.touch and index.touch.relation} == {TASKS, f"{SCHEMA}.ix_x"}
    assert (unknown.touch, unknown.step.statement.is_known) == (None, False)
    assert (create.touch, truncate.size) == (None, None)


def test_a_check_in_the_catalogue_makes_not_null_cheap(engine: Engine, tmp_path: Path, database_url: str) -> None:
    write(tmp_path, 'op.execute(f"ALTER TABLE {SCHEMA}.agents ALTER COLUMN capacity SET NOT NULL")')
    with connect(database_url) as connection:
        for rule, scans in (("capacity > 0", True), ("capacity IS NULL", True), ("capacity IS NOT NULL", False)):
            connection.execute(f"ALTER TABLE {SCHEMA}.agents DROP CONSTRAINT IF EXISTS k".encode())
            connection.execute(f"ALTER TABLE {SCHEMA}.agents ADD CONSTRAINT k CHECK ({rule})".encode())
            (found,) = planned(engine, tmp_path)
            assert found.touch == (f"{SCHEMA}.agents", Lock.ACCESS_EXCLUSIVE, False, scans)


def test_a_plan_does_not_wait_for_a_table_that_is_locked(engine: Engine, tmp_path: Path, database_url: str) -> None:
    write(tmp_path, 'op.execute(f"ALTER TABLE {SCHEMA}.tasks ADD COLUMN x int")')
    with connect(database_url) as holder, holder.transaction():
        holder.execute(f"LOCK TABLE {TASKS} IN ACCESS EXCLUSIVE MODE".encode())
        (found,) = planned(engine, tmp_path)
    assert found.size is not None
    assert found.size.rows == 300
