"""Steps, plans and stamps in a schema whose name has to be quoted everywhere; the default one beside it stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from extra_migrations import write
from sqlalchemy import create_engine
from support import ODD_SCHEMA, spec

from solti_store import SchemaMismatch, TaskStore
from solti_store.migrate import downgrade, script, stamp, upgrade
from solti_store.migration.locks import Lock
from solti_store.migration.plan import plan
from solti_store.ops import schema as fitness
from solti_store.sql.naming import SCHEMA, engine_in, quoted, renamed
from solti_store.sql.revision import HEAD
from solti_store.sql.schemas import as_it_stands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

# A colon, a percent sign, and our schema's name in a text of the migration's own.
STEPS = (
    'execute("ALTER TABLE solti.tasks ADD COLUMN x text")',
    """build_index("ix_tasks_x", "tasks", "(x) WHERE x <> ':x 5%'")""",
    """backfill("tasks", {"x": "t.id || ':x 5%' || 'solti.tasks'::regclass::oid"}, where="t.x IS NULL", size=7)""",
)
DOWNS = ('execute("ALTER TABLE solti.tasks DROP COLUMN x")', 'drop_index("ix_tasks_x")')


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    upgrade(made, schema=ODD_SCHEMA)
    for schema in (SCHEMA, ODD_SCHEMA):
        TaskStore(made, schema=schema).create_many([(f"t{number}", spec()) for number in range(30)])
    yield made
    made.dispose()


def ask(engine: Engine, question: str, schema: str = ODD_SCHEMA) -> object:
    with engine.connect() as connection:
        return connection.scalar(as_it_stands(renamed(question, schema)))


def revision(engine: Engine, schema: str) -> str | None:
    with engine_in(engine, schema).connect() as connection:
        return fitness.revision(connection)


def test_steps_are_done_in_the_schema_that_is_migrated(engine: Engine, tmp_path: Path) -> None:
    names = write(tmp_path, *STEPS, downs=DOWNS)
    with engine.begin() as connection:
        # Of the same name in the other schema: neither taken for it nor dropped.
        connection.execute(as_it_stands("CREATE INDEX ix_tasks_x ON solti.agents (id)"))
    upgrade(engine, schema=ODD_SCHEMA, versions=[tmp_path])
    assert (revision(engine, ODD_SCHEMA), revision(engine, SCHEMA)) == (names[-1], HEAD)
    right = "SELECT count(*) FROM solti.tasks WHERE x = id || ':x 5%' || 'solti.tasks'::regclass::oid"
    assert ask(engine, right) == 30
    assert ask(engine, "SELECT count(*) FROM solti.backfills") == 0
    assert ask(engine, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'solti.ix_tasks_x'::regclass") is True
    downgrade(engine, HEAD, schema=ODD_SCHEMA, versions=[tmp_path])
    assert ask(engine, "SELECT to_regclass('solti.ix_tasks_x') IS NULL") is True
    assert ask(engine, "SELECT to_regclass('solti.ix_tasks_x') IS NOT NULL", SCHEMA) is True


def test_an_index_that_is_not_valid_is_told_and_built_again(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'solti.ix_tasks_x'::regclass"
    (_, index, _) = write(tmp_path, *STEPS)
    upgrade(engine, index, schema=ODD_SCHEMA, versions=[tmp_path])
    before = ask(engine, "SELECT 'solti.ix_tasks_x'::regclass::oid")
    with engine.begin() as connection:
        connection.execute(as_it_stands(renamed(spoil, ODD_SCHEMA)))
    upgrade(engine, index, schema=ODD_SCHEMA, versions=[tmp_path])
    assert f"REINDEX INDEX CONCURRENTLY {quoted(ODD_SCHEMA)}.{quoted('ix_tasks_x')};" in caplog.text
    stamp(engine, f"{HEAD}_0001", schema=ODD_SCHEMA, versions=[tmp_path])
    upgrade(engine, index, schema=ODD_SCHEMA, versions=[tmp_path])
    assert ask(engine, "SELECT 'solti.ix_tasks_x'::regclass::oid") != before
    with engine_in(engine, ODD_SCHEMA).connect() as connection:
        assert fitness.invalid_indexes(connection) == []


def test_a_plan_and_a_script_name_it(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, *STEPS)
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(as_it_stands(renamed("ANALYZE solti.tasks", ODD_SCHEMA)))
    pieces = script(f"{HEAD}:head", schema=ODD_SCHEMA, versions=[tmp_path])
    with engine_in(engine, ODD_SCHEMA).connect() as connection:
        found = plan(connection, pieces)
    tasks = [each for each in found if each.touch and each.touch.relation == f"{ODD_SCHEMA}.tasks"]
    assert [(each.touch and each.touch.lock, each.size and each.size.rows, each.step.in_batches) for each in tasks] == [
        (Lock.ACCESS_EXCLUSIVE, 30, False),
        (Lock.SHARE_UPDATE_EXCLUSIVE, 30, False),
        (Lock.ROW_EXCLUSIVE, 30, True),
    ]
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.autocommit = True
        for piece in pieces:
            driver.execute(piece)
    assert ask(engine, "SELECT count(*) FROM solti.tasks WHERE x IS NULL") == 0
    assert revision(engine, ODD_SCHEMA) == f"{HEAD}_0003"


def test_a_stamp_is_of_that_schema(engine: Engine) -> None:
    stamp(engine, "solti_0001", schema=ODD_SCHEMA)
    assert (revision(engine, ODD_SCHEMA), revision(engine, SCHEMA)) == ("solti_0001", HEAD)
    with pytest.raises(SchemaMismatch):
        stamp(engine, "nonsense", schema=ODD_SCHEMA)
    stamp(engine, "head", schema=ODD_SCHEMA)
    assert revision(engine, ODD_SCHEMA) == HEAD
