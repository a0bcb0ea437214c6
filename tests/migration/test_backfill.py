"""Backfills under writers, killed in the middle, and those that meet a stranger's progress."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from extra_migrations import write
from sqlalchemy import create_engine, text
from support import connect

from solti_store import Invalid, SchemaMismatch
from solti_store.migrate import Waits, script, upgrade
from solti_store.ops.schema import revision
from solti_store.sql.revision import HEAD
from solti_store.sql.tables import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg
    from sqlalchemy import Engine

ROWS = 500
SIZE = 50
TABLE = f"""
    CREATE TABLE {SCHEMA}.words (lang text COLLATE "C", id bigint, word text, upper text, PRIMARY KEY (lang, id));
    INSERT INTO {SCHEMA}.words SELECT 'l' || mod(n, 3), n, 'word:' || n FROM generate_series(1, {ROWS}) AS n;
"""
WHERE = "t.upper IS DISTINCT FROM upper(t.word)"
BACKFILL = f"""backfill("words", {{"upper": "upper(t.word)"}}, where="{WHERE}", size={SIZE})"""
# Stops where it is told, as if paused by the kernel, and then dies.
PARTLY = """
import os, signal, sys
from pathlib import Path
import psycopg
from solti_store.migrate import upgrade
left = int(sys.argv[2])
execute = psycopg.Cursor.execute
def count(cursor, statement, *rest, **options):
    global left
    if "WITH batch" in str(statement):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return execute(cursor, statement, *rest, **options)
psycopg.Cursor.execute = count
upgrade(sys.argv[1], versions=[Path(sys.argv[3])])
"""


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    with made.begin() as connection:
        connection.exec_driver_sql(TABLE)
    yield made
    made.dispose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, BACKFILL)
    return tmp_path


def partly(url: str, folder: Path, batches: int) -> None:
    """Run so many batches, and be killed."""
    done = subprocess.run([sys.executable, "-c", PARTLY, url, str(batches), str(folder)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


def left(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {SCHEMA}.words t WHERE {WHERE}")) or 0)


def progress(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text(f"SELECT position, seen, changed FROM {SCHEMA}.backfills")))


def test_a_killed_backfill_goes_on_where_it_was(
    engine: Engine, database_url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    partly(database_url, folder, 4)
    assert left(engine) == ROWS - 4 * SIZE
    # By language first, and number then, as the key has it.
    assert progress(engine) == [(["l1", "100"], 4 * SIZE, 4 * SIZE)]
    partly(database_url, folder, 3)
    assert progress(engine)[0][1:] == (7 * SIZE, 7 * SIZE)
    with caplog.at_level(logging.INFO, "solti_store.migration"):
        upgrade(engine, versions=[folder])
    assert (left(engine), progress(engine)) == (0, [])
    told = [record.getMessage() for record in caplog.records]
    name = "the backfill of words (upper)"
    assert told[0] == f"{name} goes on after {7 * SIZE} rows"
    assert told[1].startswith(f"{name}, pass 1: {8 * SIZE} of about ")
    assert told[-1] == f"{name} is done: {ROWS} rows were changed"


def test_rows_that_writers_put_before_and_behind_the_place_are_done(
    engine: Engine, database_url: str, folder: Path
) -> None:
    partly(database_url, folder, 5)
    with engine.begin() as connection:
        # Behind: new ones, old ones changed, old ones gone. Before: the same.
        for lang in ("l0", "l2"):
            connection.exec_driver_sql(
                f"INSERT INTO {SCHEMA}.words SELECT '{lang}', n, 'new' FROM generate_series(1001, 1100) AS n"
            )
            connection.exec_driver_sql(
                f"UPDATE {SCHEMA}.words SET word = 'other' WHERE lang = '{lang}' AND mod(id, 5) = 0"
            )
            connection.exec_driver_sql(f"DELETE FROM {SCHEMA}.words WHERE lang = '{lang}' AND mod(id, 7) = 0")
        count = connection.scalar(text(f"SELECT count(*) FROM {SCHEMA}.words"))
    upgrade(engine, versions=[folder])
    assert left(engine) == 0
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT count(*) FROM {SCHEMA}.words")) == count
        # What a writer wrote is what is there.
        assert connection.scalar(text(f"SELECT count(*) FROM {SCHEMA}.words WHERE word = 'other' AND upper = 'OTHER'"))


def test_a_writer_of_a_row_is_waited_for_and_not_overwritten(engine: Engine, database_url: str, folder: Path) -> None:
    waits = Waits(lock_timeout=timedelta(milliseconds=300), patience=timedelta(minutes=10))
    with ThreadPoolExecutor(1) as pool, connect(database_url) as writer, connect(database_url) as watcher:
        with writer.transaction():
            writer.execute(f"UPDATE {SCHEMA}.words SET word = 'theirs' WHERE id = 120".encode())
            upgrading = pool.submit(upgrade, engine, waits=waits, versions=[folder])
            while not locked_out(watcher):
                assert not upgrading.done()
            # Nobody else is held up: no lock but that of rows.
            assert watcher.execute(modes().encode()).fetchall() == [("RowExclusiveLock",)]
            watcher.execute(f"INSERT INTO {SCHEMA}.words VALUES ('l0', 0, 'early')".encode())
        upgrading.result()
    assert left(engine) == 0
    with engine.connect() as connection:
        assert connection.scalar(text(f"SELECT upper FROM {SCHEMA}.words WHERE id = 120")) == "THEIRS"


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_stricter_default_does_not_let_it_lose_against_writers(
    engine: Engine, database_url: str, folder: Path, isolation: str
) -> None:
    waits = Waits(lock_timeout=timedelta(minutes=10), patience=timedelta(minutes=10))
    with ThreadPoolExecutor(1) as pool, connect(database_url) as writer, connect(database_url) as watcher:
        strict = f"ALTER DATABASE {watcher.info.dbname} SET default_transaction_isolation = '{isolation}'"
        watcher.execute(strict.encode())
        with writer.transaction():
            writer.execute(f"UPDATE {SCHEMA}.words SET word = 'theirs' WHERE id = 120".encode())
            upgrading = pool.submit(upgrade, database_url, waits=waits, versions=[folder])
            while not locked_out(watcher):
                assert not upgrading.done()
        upgrading.result()
    assert left(engine) == 0


def locked_out(watcher: psycopg.Connection[Any]) -> bool:
    row = watcher.execute(
        b"SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return row is not None


def modes() -> str:
    return f"""
        SELECT DISTINCT mode FROM pg_locks WHERE locktype = 'relation' AND relation = '{SCHEMA}.words'::regclass
        AND mode NOT IN ('AccessShareLock', 'RowShareLock') ORDER BY 1
    """


def test_progress_of_another_column_of_that_name_means_nothing(engine: Engine, database_url: str, folder: Path) -> None:
    partly(database_url, folder, 6)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {SCHEMA}.words DROP COLUMN upper")
        connection.exec_driver_sql(f"ALTER TABLE {SCHEMA}.words ADD COLUMN upper text")
    partly(database_url, folder, 1)
    assert progress(engine) == [(["l0", "150"], SIZE, SIZE)]
    upgrade(engine, versions=[folder])
    assert left(engine) == 0


def test_rows_that_never_get_right_end_it_with_an_error(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, """backfill("words", {"upper": "'x'"}, where="t.word IS NOT NULL")""")
    with pytest.raises(SchemaMismatch, match=r"words \(upper\).*10 passes"):
        upgrade(engine, versions=[tmp_path])


def test_a_table_without_a_key_is_refused(engine: Engine, tmp_path: Path) -> None:
    write(tmp_path, """backfill("nothing", {"upper": "'x'"}, where="t.word IS NULL")""")
    with pytest.raises(SchemaMismatch, match="nothing"):
        upgrade(engine, versions=[tmp_path])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ("""{"upper": "'x'"}, where="true", size=0""", "size"),
        ("""{"upper": "'x'"}, where="true", size=-1""", "size"),
        ("""{}, where="true" """, "values"),
    ],
)
def test_one_that_would_do_nothing_is_refused(engine: Engine, tmp_path: Path, arguments: str, field: str) -> None:
    write(tmp_path, f'backfill("words", {arguments})')
    for migrate in (lambda: upgrade(engine, versions=[tmp_path]), lambda: script("head", versions=[tmp_path])):
        with pytest.raises(Invalid, match=f"{field} of a backfill must be at least one") as refusal:
            migrate()
        assert refusal.value.field == field
    with engine.connect() as connection:
        assert revision(connection) == HEAD


def test_columns_go_by_their_names_as_they_are(engine: Engine, tmp_path: Path) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f'ALTER TABLE {SCHEMA}.words ADD COLUMN "Odd \'%%:x" text, ADD COLUMN gone text')
        connection.exec_driver_sql(f"ALTER TABLE {SCHEMA}.words DROP COLUMN gone")
    odd = "Odd '%:x"
    for missing in ("Upper", '"upper"', "gone", "ctid"):
        write(tmp_path, f"""backfill("words", {{"upper": "'x'", {missing!r}: "'x'"}}, where="t.upper IS NULL")""")
        with pytest.raises(SchemaMismatch, match=f"column '{missing}', and 'words' has none of that name"):
            upgrade(engine, versions=[tmp_path])
    where = "t.upper IS NULL"
    write(tmp_path, f"""backfill("words", {{"upper": "t.word", {odd!r}: "t.word"}}, where={where!r}, size=77)""")
    upgrade(engine, versions=[tmp_path])
    with engine.connect() as connection:
        done = f'SELECT count(*) FROM {SCHEMA}.words WHERE "Odd \'%%:x" = word AND upper = word'
        assert connection.exec_driver_sql(done).scalar() == ROWS


def test_one_whose_progress_is_deleted_while_it_runs_says_so(engine: Engine, database_url: str, folder: Path) -> None:
    waits = Waits(lock_timeout=timedelta(milliseconds=300), patience=timedelta(minutes=10))
    with ThreadPoolExecutor(1) as pool, connect(database_url) as writer, connect(database_url) as watcher:
        with writer.transaction():
            writer.execute(f"UPDATE {SCHEMA}.words SET word = 'theirs' WHERE id = 120".encode())
            upgrading = pool.submit(upgrade, engine, waits=waits, versions=[folder])
            while not locked_out(watcher):
                assert not upgrading.done()
            watcher.execute(f"DELETE FROM {SCHEMA}.backfills".encode())
        with pytest.raises(SchemaMismatch, match=r"progress of the backfill of words \(upper\) was deleted"):
            upgrading.result()
    upgrade(engine, versions=[folder])
    assert (left(engine), progress(engine)) == (0, [])
