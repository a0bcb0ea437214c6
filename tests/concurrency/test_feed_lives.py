"""The feed of a database with more than one life: restored, cloned, crashed, put back from a copy of its disk."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers import FAST
from sqlalchemy import create_engine, make_url
from support import connect, prune_events, spec

from solti_store import FeedExpired, Retention, SoltiStoreError, TaskQuery, TaskStore
from solti_store.embedded import EmbeddedServer
from solti_store.migrate import upgrade
from solti_store.retry import RetryPolicy
from solti_store.rules.feed_position import FeedPosition

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD = timedelta(days=1)
LIVES, COMMITS = 10, 30


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


@pytest.fixture
def alone(server: EmbeddedServer) -> str:
    """A migrated database on a server where nobody else has transactions: those count in all of its databases."""
    url = server.ensure_running()
    upgrade(url)
    return url


def restore_from_a_cluster_that_was_ahead(url: str, ahead: int = 1000) -> None:
    """As pg_restore leaves it in a new cluster: the rows as they were, whose transactions are of the other."""
    with connect(url) as conn:
        conn.execute(
            f"""
            UPDATE solti.task_events SET xid = (xid::text::bigint + {ahead})::text::xid8;
            UPDATE solti.feed SET written_by = (written_by::text::bigint + {ahead})::text::xid8,
                pruned_xid = (CASE WHEN pruned > 0 THEN pruned_xid::text::bigint + {ahead} ELSE 0 END)::text::xid8
        """.encode()
        )


def burn(url: str, transactions: int) -> None:
    with connect(url) as conn:
        for _ in range(transactions):
            conn.execute("SELECT pg_current_xact_id()")


def ids(store: TaskStore, token: str) -> list[tuple[str, str]]:
    return [(one.task_id, one.type) for one in store.changes(token).changes]


def test_a_token_from_before_what_was_pruned_has_expired(alone: str) -> None:
    with TaskStore.open(alone) as store, connect(alone) as database:
        early = store.token()
        store.create_many([(f"t-{n}", spec()) for n in range(5)])
        late = store.token()
        in_the_middle = store.changes(early, limit=2).token
        before_the_last = store.changes(early, limit=4).token
        assert store.prune(Retention(events=timedelta(days=1))).events == 0
        database.execute("UPDATE solti.task_events SET at = at - interval '2 days' WHERE id <> 't-4'")
        prune_events(store, 3)
        for token in (early, in_the_middle):
            with pytest.raises(FeedExpired, match="pruned"):
                store.changes(token)
        assert [one.task_id for one in store.changes(before_the_last).changes] == ["t-4"]
        prune_events(store, 1)
        assert [one.task_id for one in store.changes(before_the_last).changes] == ["t-4"]
        assert store.changes(late).changes == []
        assert store.prune(Retention(events=None)).events == 0


def test_a_restored_database_that_was_pruned_can_be_watched(alone: str) -> None:
    with TaskStore.open(alone) as store:
        store.create("a", spec("a"))
        with connect(alone) as conn:
            conn.execute("UPDATE solti.task_events SET at = at - interval '2 days'")
        prune_events(store, 1)
        store.create("b", spec("b"))
        restore_from_a_cluster_that_was_ahead(alone)
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
        prune_events(store, 40, limit=10)


def test_a_feed_whose_row_is_gone_begins_anew(database_url: str) -> None:
    with TaskStore.open(database_url) as store, ThreadPoolExecutor(8) as there:
        store.create("a", spec("a"))
        old = store.token()
        with connect(database_url) as conn:
            conn.execute("TRUNCATE solti.feed")
        with pytest.raises(FeedExpired):
            store.changes(old)
        tokens = [one.result() for one in [there.submit(store.token) for _ in range(8)]]
        store.create("b", spec("b"))
        assert [ids(store, token) for token in tokens] == [[("b", "created")]] * 8
        with pytest.raises(FeedExpired):
            store.changes(old)


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


def write(url: str, number: int, over: threading.Event, committed: threading.Semaphore) -> None:
    """Add events, of which one transaction in ten is kept."""
    chance = random.Random(number)
    with suppress(Exception), connect(url) as conn:
        for n in range(10**6):
            if over.is_set():
                return
            is_kept = chance.random() >= 0.9
            with conn.transaction(force_rollback=not is_kept):
                conn.execute(
                    "INSERT INTO solti.task_events (at, seq, id, type, resource_version, phase, attempt)"
                    " VALUES (now(), %s, 'x', 'created', 1, 'pending', 0)",
                    [n],
                )
            if is_kept:
                committed.release()


def test_a_reader_misses_nothing_through_crashes_under_load(server: EmbeddedServer) -> None:
    """Writers that roll back most of what they do, a server that is killed again and again, one reader through it."""
    url = server.ensure_running()
    upgrade(url)
    with TaskStore.open(url) as store:
        token = store.token()
    seen: list[int] = []

    def read(store: TaskStore, token: str) -> str:
        found = store.changes(token, limit=50)
        seen.extend(FeedPosition.decode(one.token).after for one in found.changes)
        return found.token

    def kill(begun: threading.Event, committed: threading.Semaphore) -> None:
        """Once there was something to miss, and somebody who could miss it."""
        try:
            assert begun.wait(60)
            assert all(committed.acquire(timeout=60) for _ in range(COMMITS))
        finally:
            server.stop("immediate")

    for life in range(LIVES):
        over, begun, committed = threading.Event(), threading.Event(), threading.Semaphore(0)
        with ThreadPoolExecutor(5) as there:
            writers = [there.submit(write, url, 10 * life + number, over, committed) for number in range(4)]
            killing = there.submit(kill, begun, committed)
            # What is read is handled before the token is kept, and the server dies at any point of it.
            with suppress(SoltiStoreError), TaskStore.open(url, retry=RetryPolicy(attempts=1)) as store:
                while True:
                    token = read(store, token)
                    begun.set()
            killing.result()
            over.set()
            for one in writers:
                one.result()
        url = server.ensure_running()
    with TaskStore.open(url) as store, connect(url) as conn:
        while not (found := store.changes(token)).is_all or found.changes:
            token = read(store, token)
        assert len(seen) == len(set(seen))
        there_are = {row[0] for row in conn.execute("SELECT event FROM solti.task_events")}
        assert len(there_are) >= LIVES * COMMITS
        assert set(seen) == there_are
