"""Connections that break, at each moment that matters."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING

import pytest
from proxy import Proxy, When
from sqlalchemy import create_engine, make_url, text
from support import connect, retrying, selecting, spec

from solti_store import (
    AsyncTaskStore,
    Invalid,
    Outcome,
    OutcomeUnknown,
    RetryPolicy,
    SchemaMismatch,
    StoreUnavailable,
    TaskPhase,
    TaskStore,
    TransactionAborted,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CLOSING = "WITH untouched"
IN_TURN = "(id, since) JOIN LATERAL (SELECT free"
COMMIT = "COMMIT\0"  # the statement, not the isolation level in BEGIN
QUICK = RetryPolicy(attempts=3, first_s=0.001, max_s=0.01)


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    with Proxy(database_url) as running:
        yield running


def open_store(proxy: Proxy) -> TaskStore:
    return TaskStore.open(proxy.url, retry=QUICK)


# Where the connection breaks, and whether the change is there afterwards. The caller cannot tell the two apart.
BREAKS = pytest.mark.parametrize(("when", "done"), [("before", False), ("after", True)])


@BREAKS
def test_a_create_whose_answer_is_lost_is_of_unknown_outcome_and_not_repeated(
    proxy: Proxy, when: When, done: bool
) -> None:
    with open_store(proxy) as store:
        proxy.cut("INSERT INTO solti.tasks", when)
        with pytest.raises(OutcomeUnknown):
            store.create("a", spec("a"))
        assert (proxy.cuts, len(store.list())) == (1, int(done))


@BREAKS
def test_a_batch_whose_commit_is_lost_likewise(proxy: Proxy, when: When, done: bool) -> None:
    with open_store(proxy) as store:
        proxy.cut(COMMIT, when)
        with pytest.raises(OutcomeUnknown):
            store.create_many([("a", spec()), ("b", spec())])
        assert (proxy.cuts, len(store.list())) == (1, 2 * done)


def test_a_batch_that_breaks_before_its_commit_is_run_again(proxy: Proxy) -> None:
    with open_store(proxy) as store:
        proxy.cut("INSERT INTO solti.tasks", "after")
        store.create_many([("a", spec()), ("b", spec())])
        assert (proxy.cuts, len(store.list())) == (1, 2)


@BREAKS
def test_a_replace_likewise(proxy: Proxy, when: When, done: bool) -> None:
    with open_store(proxy) as store:
        store.create("a", spec("a"))
        proxy.cut("UPDATE solti.tasks SET", when)
        with pytest.raises(OutcomeUnknown):
            store.replace("a", spec("a", max_retries=2), expected_version=1)
        assert store.get("a").metadata.generation == 1 + done


@BREAKS
def test_cancel_and_delete_likewise(proxy: Proxy, when: When, done: bool) -> None:
    with open_store(proxy) as store:
        store.create("a", spec("a"))
        proxy.cut(COMMIT, when)
        with pytest.raises(OutcomeUnknown):
            store.cancel("a")
        assert store.get("a").metadata.resource_version == 1 + done
        proxy.cut(COMMIT, when)
        with pytest.raises(OutcomeUnknown):
            store.delete("a")
        assert len(store.list()) == 1 - done


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_finish_is_safe_to_repeat(proxy: Proxy, when: When) -> None:
    with open_store(proxy) as store:
        store.create("a", retrying("a"))
        claim = store.start("a")
        proxy.cut(CLOSING, when)
        store.finish(claim, Outcome.failed("no"))
        assert proxy.cuts == 1
        task = store.get("a")
        assert (task.phase, task.metadata.resource_version, len(store.runs("a"))) == (TaskPhase.FAILED, 3, 1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_finish_of_what_was_touched_is_safe_to_repeat(proxy: Proxy, when: When) -> None:
    with open_store(proxy) as store:
        store.create("a", retrying("a"))
        claim = store.start("a")
        store.update("a", lambda old: old.replace(timeout=1))
        proxy.cut(COMMIT, when)
        store.finish(claim, Outcome.failed("no"))
        assert proxy.cuts == 1
        task = store.get("a")
        assert (task.phase, task.metadata.resource_version, len(store.runs("a"))) == (TaskPhase.FAILED, 4, 1)


def test_when_every_repetition_fails_the_outcome_is_unknown_not_nothing(proxy: Proxy) -> None:
    with open_store(proxy) as store:
        store.create("a", retrying("a"))
        claim = store.start("a")
        proxy.cut(CLOSING, "after", times=QUICK.attempts)
        with pytest.raises(OutcomeUnknown):
            store.finish(claim, Outcome.failed("no"))
        assert store.get("a").phase is TaskPhase.FAILED


def test_a_claim_whose_commit_was_lost_is_not_repeated_and_can_be_recovered(proxy: Proxy) -> None:
    with open_store(proxy) as store:
        agent = store.register("w")
        store.create_many([("a", spec()), ("b", spec())])
        proxy.cut("WITH look", "after")
        with pytest.raises(OutcomeUnknown):
            store.claim(agent)
        (claim,) = store.held(agent)
        assert claim.task_id == "a"
        assert store.get("b").phase is TaskPhase.PENDING
        store.finish(claim, Outcome.succeeded())


@pytest.mark.parametrize(("when", "most"), [("before", 2), ("after", 3)])
def test_a_claim_that_fails_half_done_is_of_unknown_outcome(
    proxy: Proxy, database_url: str, when: When, most: int
) -> None:
    with open_store(proxy) as store, connect(database_url) as other:
        agent = store.register("w", labels={"zone": "a"})
        for n in range(5):
            store.create(f"t-{n}", spec(runner_selector=selecting(zone="a") if n % 2 else None))
        (known,) = store.claim(agent)
        with other.transaction():
            # One of those that its route gives: the claim is one short, and looks for more in a second statement.
            other.execute("SELECT FROM solti.task_status WHERE due_at IS NOT NULL ORDER BY seq LIMIT 1 FOR UPDATE")
            proxy.cut(IN_TURN, when)
            with pytest.raises(OutcomeUnknown):
                store.claim(agent, limit=3)
            assert proxy.cuts == 1
            started = {claim.task_id for claim in store.held(agent)} - {known.task_id}
            assert len(started) == most
            assert "t-1" not in started


def test_a_server_that_stays_away_is_unavailable(proxy: Proxy) -> None:
    with open_store(proxy) as store:
        proxy.cut("SELECT", "before", times=1000)
        with pytest.raises(StoreUnavailable):
            store.get("a")
        proxy.cut("none", "before")
        store.create("a", spec("a"))


async def _async_fault(proxy: Proxy) -> None:
    async with await AsyncTaskStore.open(proxy.url, retry=QUICK) as store:
        proxy.cut("INSERT INTO solti.tasks", "before")
        with pytest.raises(OutcomeUnknown):
            await store.create("b", spec("b"))
        proxy.cut("INSERT INTO solti.tasks", "after")
        with pytest.raises(OutcomeUnknown):
            await store.create("b", spec("b"))
        claim = await store.start("b")
        proxy.cut(COMMIT, "after")
        await store.finish(claim, Outcome.succeeded())
        assert (await store.get("b")).metadata.resource_version == 3


def test_the_async_store_follows_the_same_rules(proxy: Proxy) -> None:
    asyncio.run(_async_fault(proxy))


def test_connections_that_died_while_idle_cost_no_operation(database_url: str) -> None:
    with TaskStore.open(database_url, retry=QUICK) as store:
        for number in range(20):
            store.create(f"t-{number}", spec())
            _terminate_others(database_url)
        assert len(store.list()) == 20


def _terminate_others(url: str) -> None:
    with connect(url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


# --- refusals that come from the server ---------------------------------------------------------


def test_a_database_without_the_schema_is_named_with_the_remedy(empty_database_url: str) -> None:
    with pytest.raises(SchemaMismatch, match="solti-store db upgrade"):
        TaskStore.open(empty_database_url)


def test_a_schema_that_vanished_is_a_mismatch_not_a_driver_error(database_url: str) -> None:
    engine = create_engine(database_url)
    store = TaskStore(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA solti CASCADE"))
    with pytest.raises(SchemaMismatch):
        store.get("a")
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody@127.0.0.1:1/none",
        "postgresql:///none?host=/nonexistent",
        "mysql://localhost/x",
        "not a url",
        "postgresql://localhost:notaport/x",
    ],
)
def test_an_unreachable_or_foreign_database_is_unavailable(url: str) -> None:
    with pytest.raises(StoreUnavailable):
        TaskStore.open(url, retry=QUICK)


def test_a_conflict_in_the_callers_transaction_is_named(database_url: str) -> None:
    engine = create_engine(database_url, isolation_level="REPEATABLE READ")
    store = TaskStore(engine)
    store.create("a", spec("a"))
    with engine.connect() as mine:
        store.using(mine).get("a")
        store.replace("a", spec("a", max_retries=3), expected_version=1)
        with pytest.raises(TransactionAborted):
            store.using(mine).cancel("a")
    engine.dispose()


def test_a_value_that_only_the_database_refuses_is_invalid(database_url: str) -> None:
    engine = create_engine(database_url)
    store = TaskStore(engine)
    store.create("a", spec("a"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE solti.task_status SET phase = 'failed', due_at = NULL, attempt = 4294967295"))
    with pytest.raises(Invalid, match="ck_task_status_attempt"):
        store.start("a")
    engine.dispose()


def test_a_statement_made_stale_by_a_migration_is_prepared_anew(database_url: str) -> None:
    with TaskStore.open(database_url, retry=QUICK) as store:
        store.create("a", spec("a"))
        for _ in range(10):  # past the point where psycopg prepares
            store.get("a")
        engine = create_engine(database_url)
        with engine.begin() as connection:
            # As a migration has to, before the type of what they read can change.
            connection.execute(text("DROP SCHEMA solti_report CASCADE"))
            connection.execute(text("ALTER TABLE solti.task_status ALTER COLUMN exit_code TYPE bigint"))
        engine.dispose()
        assert store.get("a").id == "a"


def test_cancelled_calls_leave_no_connection_behind(database_url: str) -> None:
    async def check() -> None:
        async with await AsyncTaskStore.open(database_url, pool_size=2, max_overflow=0, pool_timeout=5) as store:
            await store.create("a", spec("a"))
            for delay in range(200):
                calls = [asyncio.ensure_future(store.get("a")), asyncio.ensure_future(store.reap())]
                for _ in range(delay % 20):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            assert (await store.get("a")).id == "a"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(check())


def test_settings_in_the_url_stand_beside_the_stores_own(database_url: str) -> None:
    settings = "-c application_name=mine -c lock_timeout=7s"
    assert settings_at(database_url, f"{settings} -c jit=on") == ("7s", "on", "off", "10s")
    assert settings_at(database_url, f"{settings} -c jit_above_cost=1") == ("7s", "off", "off", "10s")
    assert settings_at(database_url, f"{settings} --enable-seqscan=on") == ("7s", "off", "on", "10s")


def settings_at(database_url: str, options: str) -> tuple[str, ...]:
    """What some settings are in a session of the store, in whichever isolation."""
    url = make_url(database_url).update_query_dict({"options": options})
    names = ("lock_timeout", "jit", "enable_seqscan", "idle_in_transaction_session_timeout")
    shown = text("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
    found = set()
    for isolation in ("AUTOCOMMIT", "READ COMMITTED"):
        with TaskStore.open(url, isolation_level=isolation) as store:
            engine = store._owned
            assert engine is not None
            with engine.connect() as connection:
                found.add(tuple(connection.execute(shown).one()))
    (of_all,) = found
    return of_all
