"""The feed of a database that has had more than one life: restored, cloned, crashed, put back from a copy of its disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import FAST
from sqlalchemy import make_url
from support import connect, spec

from solti_store import FeedExpired, Retention, TaskQuery, TaskStore
from solti_store.embedded import EmbeddedServer
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD = timedelta(days=1)


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    root = Path(tempfile.mkdtemp(prefix="solti-lives-"))
    root.chmod(0o711)
    # No writer of WAL in the background: what no commit waits for stays in memory.
    made = EmbeddedServer(root / "data", settings=FAST | {"wal_writer_delay": "10s"})
    try:
        yield made
    finally:
        made.destroy()
        shutil.rmtree(root, ignore_errors=True)


def restore_from_a_cluster_that_was_ahead(url: str, ahead: int = 1000) -> None:
    """As pg_dump and pg_restore leave it in a new cluster: the rows as they were, whose transactions are of the other."""
    with connect(url) as conn:
        conn.execute(f"""
            UPDATE solti.task_events SET xid = (xid::text::bigint + {ahead})::text::xid8;
            UPDATE solti.feed SET written_by = (written_by::text::bigint + {ahead})::text::xid8,
                pruned_xid = (CASE WHEN pruned > 0 THEN pruned_xid::text::bigint + {ahead} ELSE 0 END)::text::xid8
        """.encode())


def burn(url: str, transactions: int) -> None:
    with connect(url) as conn:
        for _ in range(transactions):
            conn.execute("SELECT pg_current_xact_id()")


def ids(store: TaskStore, token: str) -> list[tuple[str, str]]:
    return [(one.task_id, one.type) for one in store.changes(token).changes]


def test_a_restored_database_that_was_pruned_can_be_watched(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        store.create("a", spec("a"))
        with connect(database_url) as conn:
            conn.execute("UPDATE solti.task_events SET at = at - interval '2 days'")
        assert store.prune(Retention(events=OLD)).events == 1
        store.create("b", spec("b"))
        restore_from_a_cluster_that_was_ahead(database_url)
        token = store.list(TaskQuery(with_token=True)).token
        assert token is not None
        store.cancel("b")
        assert ids(store, token) == [("b", "finished")]


def test_events_of_before_a_restore_do_not_come_again(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        store.create_many([(f"t-{n}", spec()) for n in range(5)])
        restore_from_a_cluster_that_was_ahead(database_url, 100)
        token = store.token()
        assert ids(store, token) == []
        burn(database_url, 200)
        assert ids(store, token) == []


def test_events_of_before_a_restore_are_pruned(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        store.create_many([(f"t-{n}", spec()) for n in range(20)])
        restore_from_a_cluster_that_was_ahead(database_url)
        store.token()
        with connect(database_url) as conn:
            conn.execute("UPDATE solti.task_events SET at = at - interval '2 days'")
        store.create_many([(f"u-{n}", spec()) for n in range(20)])
        with connect(database_url) as conn:
            conn.execute("UPDATE solti.task_events SET at = at - interval '2 days' WHERE id LIKE 'u-%'")
        assert sum(store.prune(Retention(events=OLD), limit=10).events for _ in range(10)) == 40


def test_a_clone_of_the_database_knows_no_token_of_the_other(database_url: str) -> None:
    url = make_url(database_url)
    copy = f"{url.database}_copy"
    with TaskStore.open(database_url) as store:
        store.create("a", spec("a"))
    with connect(url.set(database="postgres").render_as_string(hide_password=False)) as conn:
        conn.execute(f'CREATE DATABASE "{copy}" TEMPLATE "{url.database}"'.encode())
        try:
            with (
                TaskStore.open(database_url) as store,
                TaskStore.open(url.set(database=copy)) as other,
            ):
                other.create("only-there", spec("b"))
                token = store.token()
                other.cancel("only-there")
                with pytest.raises(FeedExpired, match="another database"):
                    other.changes(token)
        finally:
            conn.execute(f'DROP DATABASE "{copy}" WITH (FORCE)'.encode())


def test_a_token_of_before_a_crash_misses_nothing(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    upgrade(url)
    with TaskStore.open(url) as store:
        store.create("a", spec("a"))
        with connect(url) as conn:
            for _ in range(300):  # Rolled back, as is usual: no commit waits until their numbers are on disk.
                with conn.transaction(force_rollback=True):
                    TaskStore.__name__  # noqa: B018
                    conn.execute("UPDATE solti.task_status SET updated_at = updated_at")
        token = store.token()
    server.stop("immediate")
    url = server.ensure_running()
    with TaskStore.open(url) as store:
        store.create("b", spec("b"))
        store.cancel("a")
        assert ids(store, token) == [("b", "created"), ("a", "finished")]


def test_a_token_from_after_the_disk_was_copied_has_expired(server: EmbeddedServer) -> None:
    url = server.ensure_running()
    upgrade(url)
    server.stop()
    copy = server.data_root.with_name("copy")
    subprocess.run(["cp", "-a", server.data_root, copy], check=True)
    url = server.ensure_running()
    with TaskStore.open(url) as store:
        for n in range(5):
            store.create(f"t-{n}", spec(f"t-{n}"))
        token = store.token()
    server.stop()
    shutil.rmtree(server.data_root)
    subprocess.run(["mv", copy, server.data_root], check=True)
    url = server.ensure_running()
    with TaskStore.open(url) as store:
        store.create("b", spec("b"))
        with pytest.raises(FeedExpired, match="another database"):
            store.changes(token)


def test_a_prune_within_a_savepoint_expires_nothing(database_url: str) -> None:
    from sqlalchemy import create_engine

    engine = create_engine(database_url)
    with TaskStore.open(database_url) as store:
        store.create("a", spec("a"))
        with connect(database_url) as conn:
            conn.execute("UPDATE solti.task_events SET at = at - interval '2 days'")
        token = store.token()
        with engine.begin() as conn:
            conn.exec_driver_sql("SELECT pg_current_xact_id()")
            with conn.begin_nested():
                store.using(conn).prune(Retention(events=OLD))
        store.create("b", spec("b"))
        assert ids(store, token) == [("b", "created")]
    engine.dispose()


_ = (os, signal)
