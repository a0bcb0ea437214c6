"""What the doctor finds in a server: on servers of the test's own, for nobody else may see these troubles."""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cli_run import run_cli
from proxy import Proxy
from replica import replica
from sqlalchemy import create_engine, make_url
from support import connect, lock_waits, prune_events, queued, spec
from support_doctor import diagnose, found, mend, the

from solti_store import Severity, TaskStore
from solti_store.embedded import EmbeddedServer
from solti_store.engine import open_engine
from solti_store.migrate import upgrade
from solti_store.ops.doctor import examine

NONE = timedelta(0)
SETTINGS = {"max_prepared_transactions": "4", "wal_level": "logical", "max_connections": "30", "shared_buffers": "32MB"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server with a migrated database `template`."""
    folder = Path(tempfile.mkdtemp(prefix="solti-doctor-"))
    folder.chmod(0o711)  # a server of root runs as another user
    embedded = EmbeddedServer(folder / "data", settings=SETTINGS)
    try:
        url = embedded.ensure_running()
        execute(url, "CREATE DATABASE template")
        upgrade(named(url, "template"))
        yield url
    finally:
        embedded.destroy()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(server: str) -> Iterator[str]:
    name = f"d{uuid.uuid4().hex[:12]}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE template")
    yield named(server, name)
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def execute(url: str, *statements: str) -> None:
    with connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def wait_for(url: str, query: str) -> None:
    """Until the query's first column is true; each time in a session of its own, as settings are of sessions."""
    deadline = time.monotonic() + 60
    while True:
        with connect(url) as connection:
            row = connection.execute(query.encode()).fetchone()
        if row and row[0]:
            return
        assert time.monotonic() < deadline, query
        time.sleep(0.02)


def pid_of(connection: psycopg.Connection[Any]) -> int:
    return connection.info.backend_pid


# --- a healthy one ------------------------------------------------------------------------------


def test_a_new_store_is_well(url: str) -> None:
    diagnosis = diagnose(url)
    assert (diagnosis.findings, diagnosis.unchecked, diagnosis.is_well) == ((), (), True)
    done = run_cli("doctor", url=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "all is well\n")


# --- who holds back vacuum ----------------------------------------------------------------------


def test_a_transaction_that_does_nothing(url: str) -> None:
    with connect(url) as idle, suppress(psycopg.OperationalError), idle.transaction():
        idle.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        idle.execute("SELECT 1")
        subject = f"pid {pid_of(idle)} "
        assert not found(url, "xmin-transaction", subject)
        one = the(url, "xmin-transaction", subject, idle=NONE)
        assert re.fullmatch(
            r"in a transaction for \d+ s, idle in transaction for \d+ s; \d+ transactions behind.*", one.found
        )
        mend(url, one)
        wait_for(url, f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid_of(idle)})")
        assert not found(url, "xmin-transaction", subject, idle=NONE)


def test_a_transaction_that_writes_in_another_database_is_told_of(server: str, url: str) -> None:
    with connect(server) as other, other.transaction():
        other.execute("SELECT 1")
        assert not found(url, "xmin-transaction", f"pid {pid_of(other)} ", transaction=NONE, idle=NONE)
        other.execute("SELECT pg_current_xact_id()")
        one = the(url, "xmin-transaction", f"pid {pid_of(other)} ", transaction=NONE, idle=NONE)
        assert one.subject.endswith("in another database)")


def test_a_transaction_that_was_prepared_and_left(url: str) -> None:
    gid = f"left  'behind' {uuid.uuid4().hex}"
    with connect(url) as connection:
        connection.execute("BEGIN")
        connection.execute("UPDATE solti.feed SET pruned = 0")
        connection.execute(psycopg.sql.SQL("PREPARE TRANSACTION {}").format(psycopg.sql.Literal(gid)))
    assert not found(url, "xmin-prepared")
    one = the(url, "xmin-prepared", transaction=NONE)
    assert one.subject.startswith("left 'behind'")
    mend(url, one)
    assert not found(url, "xmin-prepared", transaction=NONE)


def test_replication_slots_that_nobody_reads(url: str) -> None:
    name = f"s_{uuid.uuid4().hex[:8]}"
    execute(url, f"SELECT pg_create_physical_replication_slot('{name}_p', true)")
    execute(url, f"SELECT pg_create_logical_replication_slot('{name}_l', 'pgoutput')")
    try:
        note = the(url, "wal-slot", f"{name}_p")
        assert (note.severity, note.found[:16]) == (Severity.NOTE, "inactive, retain")
        warning = the(url, "wal-slot", f"{name}_p", wal_bytes=0)
        assert warning.severity is Severity.WARNING
        holding = the(url, "xmin-slot", f"{name}_l", xids=0)
        assert "inactive, holds the system's tables" in holding.found
        mend(url, holding)
        mend(url, warning)
        assert not found(url, "wal-slot", name)
    finally:
        execute(
            url, f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE '{name}%'"
        )


@contextmanager
def feedback(url: str, slot: str | None = None) -> Iterator[int]:
    """A standby, as far as the primary can tell: it receives WAL, and says that its queries need all rows there are."""
    with connect(url) as connection:
        row = connection.execute("SELECT pg_current_xact_id()::text::bigint, pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, replication="true", autocommit=True) as standby:
        named_slot = f"SLOT {slot} " if slot else ""
        started = standby.pgconn.exec_(f"START_REPLICATION {named_slot}PHYSICAL {row[1]}".encode())
        assert started.status == psycopg.pq.ExecStatus.COPY_BOTH, started.error_message
        standby.pgconn.put_copy_data(b"h" + struct.pack("!qIIII", 0, row[0], 0, 0, 0))
        standby.pgconn.flush()
        yield standby.info.backend_pid
        standby.close()


def test_a_standby_whose_queries_hold_rows(url: str) -> None:
    with feedback(url) as pid:
        wait_for(url, f"SELECT backend_xmin IS NOT NULL FROM pg_stat_replication WHERE pid = {pid}")
        one = the(url, "xmin-standby", xids=0)
        assert f"walsender {pid}" in one.subject
        assert "hot_standby_feedback holds our tables" in one.found
        assert not found(url, "xmin-standby")


def test_a_slot_by_which_a_standby_holds_rows(url: str) -> None:
    name = f"s_{uuid.uuid4().hex[:8]}"
    execute(url, f"SELECT pg_create_physical_replication_slot('{name}', true)")
    try:
        with feedback(url, name):
            wait_for(url, f"SELECT xmin IS NOT NULL FROM pg_replication_slots WHERE slot_name = '{name}'")
            assert "active, holds our tables" in the(url, "xmin-slot", name, xids=0).found
        wait_for(url, f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{name}'")
        one = the(url, "xmin-slot", name, xids=0)
        assert "inactive, holds our tables" in one.found
        mend(url, one)
        assert not found(url, "xmin-slot", name, xids=0)
    finally:
        execute(url, f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'")


# --- who waits ----------------------------------------------------------------------------------


def test_a_lock_that_others_wait_for(url: str) -> None:
    with connect(url) as holder, connect(url) as waiter, suppress(psycopg.OperationalError), holder.transaction():
        holder.execute("LOCK TABLE solti.routes IN ACCESS EXCLUSIVE MODE")
        thread = threading.Thread(target=waiter.execute, args=["SELECT FROM solti.routes"])
        thread.start()
        with connect(url) as watcher:
            while not lock_waits(watcher):
                time.sleep(0.02)
        subject = f"pid {pid_of(waiter)}"
        assert not found(url, "lock-wait", subject)
        one = the(url, "lock-wait", subject, wait=NONE)
        assert f"a lock on solti.routes; before it is pid {pid_of(holder)}" in one.found
        mend(url, one)
        thread.join()


def test_commits_that_wait_for_a_standby_that_is_gone(url: str) -> None:
    execute(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    try:
        wait_for(url, "SELECT current_setting('synchronous_standby_names') = 'nobody'")
        with connect(url) as writer:
            thread = threading.Thread(target=writer.execute, args=["UPDATE solti.feed SET pruned = 0"])
            thread.start()
            wait_for(url, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            one = the(url, "commit-wait", wait=NONE)
            assert (one.severity, one.found[:40]) == (Severity.ERROR, "1 sessions wait for a standby at their c")
            mend(url, one)
            thread.join()
    finally:
        execute(url, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")


# --- settings -----------------------------------------------------------------------------------


def test_settings_of_the_server(url: str) -> None:
    names = {
        "fsync": "setting-durability",
        "full_page_writes": "setting-durability",
        "autovacuum": "setting-autovacuum",
        "track_counts": "setting-autovacuum",
    }
    for name, code in names.items():
        execute(url, f"ALTER SYSTEM SET {name} = off", "SELECT pg_reload_conf()")
        wait_for(url, f"SELECT current_setting('{name}') = 'off'")
        one = the(url, code, name)
        assert (one.severity, one.found) == (Severity.ERROR, "off")
        mend(url, one)
        wait_for(url, f"SELECT current_setting('{name}') = 'on'")
        execute(url, f"ALTER SYSTEM RESET {name}")
        assert not found(url, code)


def test_settings_of_roles_that_work(url: str) -> None:
    role = f"w{uuid.uuid4().hex[:8]}"
    execute(
        url,
        f"CREATE ROLE {role} LOGIN",
        f"ALTER ROLE {role} SET statement_timeout = '2s'",
        f"ALTER ROLE {role} SET synchronous_commit = off",
    )
    try:
        # It may not write to our tables: what it is for is not ours to judge.
        assert not found(url, "setting-timeout")
        execute(url, f"GRANT USAGE ON SCHEMA solti TO {role}", f"GRANT UPDATE ON solti.task_status TO {role}")
        one = the(url, "setting-timeout", f"statement_timeout of role {role}")
        assert one.found == "2000 ms"
        mend(url, one)
        assert not found(url, "setting-timeout")
        mend(url, the(url, "setting-commit", f"synchronous_commit of role {role}"))
        assert not found(url, "setting-commit")
    finally:
        execute(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_connections_that_run_out(url: str) -> None:
    with TaskStore.open(url) as store:
        for number in range(3):
            store.register(f"w-{number}")
        note = the(url, "setting-connections")
        assert note.severity is Severity.NOTE
        assert note.found.startswith("3 live agents with up to 15 connections each")
    held = []
    try:
        while not (full := [one for one in found(url, "setting-connections") if one.severity is Severity.WARNING]):
            held.append(connect(url))
        assert re.fullmatch(r"\d\d of 27 are taken", full[0].found)
    finally:
        for one in held:
            one.close()


def test_buffers_of_the_default_size_for_large_tables(url: str) -> None:
    one = the(url, "setting-memory", memory_bytes=0)
    assert one.found.startswith("32.0 MiB, for tables of ")
    assert not found(url, "setting-memory")


# Of a database without an encoding the driver hands out bytes, unless the client has one.
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8(server: str, encoding: str) -> None:
    name = f"e{uuid.uuid4().hex[:8]}"
    execute(server, f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    url = named(server, name) + "&client_encoding=utf8"
    try:
        bare = run_cli("doctor", "-o", "name", url=url)
        assert (bare.returncode, bare.stdout.split()) == (7, ["setting-encoding", "schema-revision"]), bare.stderr
        upgrade(url)
        one = the(url, "setting-encoding")
        assert (one.severity, one.found) == (Severity.ERROR, f"its encoding is {encoding}")
        mend(url, one)
        utf8 = named(server, f"{name}_utf8")
        upgrade(utf8)
        assert not found(utf8, "setting-encoding")
    finally:
        execute(server, f"DROP DATABASE {name}", f"DROP DATABASE IF EXISTS {name}_utf8")


class _Pooler(Proxy):
    """Announces another backend than the one that answers, as poolers do."""

    def _answers(self, client: Any, server: Any, struck: Any) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                client.sendall(
                    re.sub(rb"K\x00\x00\x00\x0c.{4}", b"K\x00\x00\x00\x0c\x00\x00\x00\x07", data, flags=re.DOTALL)
                )
        client.close()
        server.close()


def test_a_pooler_in_between(url: str) -> None:
    with _Pooler(url) as pooler:
        # An engine of the caller's prepares statements, as psycopg does by itself.
        engine = create_engine(pooler.url)
        (one,) = [each for each in TaskStore(engine).doctor().findings if each.code == "pooler"]
        engine.dispose()
        assert one.severity is Severity.WARNING
        assert one.found.endswith("where 7 was announced: a pooler is in between, and statements are prepared")
        assert the(pooler.url, "pooler").severity is Severity.NOTE


def test_clocks_that_differ(url: str) -> None:
    engine = open_engine(url)
    with engine.connect() as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        for shift, words in ((-100, "behind the database's"), (100, "ahead of the database's")):
            findings = examine(connection, clock=lambda by=shift: time.time() + by).findings  # type: ignore[misc]
            (one,) = [each for each in findings if each.code == "clock-skew"]
            assert (one.severity, one.found.endswith(words)) == (Severity.ERROR, True)
            connection.rollback()
    engine.dispose()


# --- the feed -----------------------------------------------------------------------------------


def test_events_that_are_kept_too_long_and_why(url: str) -> None:
    with TaskStore.open(url) as store, connect(url) as database:
        store.create("t", spec())
        old = "UPDATE solti.task_events SET at = now() - interval '20 days'"
        assert not found(url, "feed-lag")
        database.execute(old)
        lag = the(url, "feed-lag")
        assert lag.found == "the oldest event is 20 d old, where they are kept 8 d at most: no worker is alive to prune"
        store.register("w")
        assert the(url, "feed-lag").found.endswith("they run with --retention forever, or cannot keep up")
        with connect(url) as other, suppress(psycopg.OperationalError), other.transaction():
            other.execute("SELECT pg_current_xact_id()")
            store.create("u", spec())
            database.execute(old)
            held = the(url, "feed-lag")
            assert held.found.endswith("1 of them came after the start of a transaction that goes on")
            mend(url, held)
            wait_for(url, f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid_of(other)})")
        prune_events(store, 2)
        assert not found(url, "feed-lag")
        store.create("v", spec())
        store.create("w", spec())
        database.execute(f"{old} WHERE id = 'v'")
        database.execute("UPDATE solti.task_events SET at = now() + interval '1 hour' WHERE id = 'w'")
        assert the(url, "feed-lag").found.endswith("1 before or among them are dated in the future")


# --- who may see little, and who can only read --------------------------------------------------


def test_a_role_that_may_see_little_is_told_what_it_did_not_see(url: str) -> None:
    role = f"w{uuid.uuid4().hex[:8]}"
    execute(
        url,
        f"CREATE ROLE {role} LOGIN",
        f"GRANT USAGE ON SCHEMA solti, solti_report TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA solti, solti_report TO {role}",
    )
    try:
        with TaskStore.open(url) as store:
            store.create("owner", spec("s"))
            store.create("next", queued("s"))
            execute(url, "DELETE FROM solti.tasks WHERE id = 'owner'")
        mine = make_url(url).set(username=role).render_as_string(hide_password=False)
        with connect(url) as idle, idle.transaction():
            idle.execute("SELECT pg_current_xact_id()")
            diagnosis = diagnose(mine, idle=NONE)
            # Granted, it sees them.
            execute(url, f"GRANT pg_read_all_stats TO {role}")
            assert found(mine, "xmin-transaction", f"pid {pid_of(idle)} ", idle=NONE)
            execute(url, f"REVOKE pg_read_all_stats FROM {role}")
        assert "slot-ownerless" in {one.code for one in diagnosis.findings}
        assert "xmin-transaction" not in {one.code for one in diagnosis.findings}
        assert len(diagnosis.unchecked) == 1
        assert "GRANT pg_read_all_stats" in diagnosis.unchecked[0]
        execute(url, f"REVOKE USAGE ON SCHEMA solti, solti_report FROM {role}")
        done = run_cli("doctor", url=mine)
        assert done.returncode == 0, done.stdout
        assert "not checked: the schema's revision: this role may not" in done.stderr
    finally:
        execute(url, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_on_a_standby() -> None:
    with replica() as url:
        diagnosis = diagnose(url)
        assert diagnosis.findings == ()
        assert diagnosis.unchecked == (
            "vacuum, dead rows and the use of indexes: this is a standby, and the primary counts them",
        )
        engine = open_engine(url)
        with engine.connect() as connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            assert examine(connection, timeout=timedelta(seconds=5)).is_well
        engine.dispose()
