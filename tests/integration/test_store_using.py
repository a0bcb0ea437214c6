"""The registry inside a transaction that the caller holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from support import retrying, spec

from solti_store import (
    AlreadyExists,
    AlreadyRunning,
    AsyncTaskStore,
    Invalid,
    LeaseLost,
    NotFound,
    Outcome,
    SoltiStoreError,
    TaskPhase,
    TaskStore,
    TransactionAborted,
    VersionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = create_engine(database_url)
    with made.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id int PRIMARY KEY)"))
    yield made
    made.dispose()


def orders(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM orders")) or 0)


@pytest.mark.parametrize("commit", [True, False])
def test_a_task_exists_iff_its_order_does(engine: Engine, commit: bool) -> None:
    store = TaskStore(engine)
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        mine = store.using(connection)
        mine.create("a", spec("a"))
        mine.create_many([("b", spec()), ("c", spec())])
        mine.replace("a", spec("a", max_retries=1), expected_version=1)
        mine.finish(mine.start("a"), Outcome.succeeded(0))
        mine.cancel("b")
        mine.delete("c")
        assert [task.phase for task in mine.list()] == [TaskPhase.SUCCEEDED, TaskPhase.CANCELED]
        assert len(store.list()) == 0
        connection.commit() if commit else connection.rollback()
    assert (orders(engine), len(store.list())) == ((1, 2) if commit else (0, 0))


def test_what_is_refused_leaves_the_transaction_usable(engine: Engine) -> None:
    store = TaskStore(engine)
    store.create("taken", retrying("taken"))
    late = store.start("taken")
    store.finish(late, Outcome.failed("no"))
    store.start("taken")
    with engine.begin() as connection:
        mine = store.using(connection)
        refusals: list[tuple[type[SoltiStoreError], Callable[[], object]]] = [
            (AlreadyExists, lambda: mine.create("taken", spec("taken"))),
            (AlreadyExists, lambda: mine.create_many([("new", spec()), ("taken", spec())])),
            (VersionConflict, lambda: mine.replace("taken", spec("taken"), expected_version=99)),
            (VersionConflict, lambda: mine.delete("taken", expected_version=99)),
            (NotFound, lambda: mine.get("none")),
            (NotFound, lambda: mine.cancel("none")),
            (AlreadyRunning, lambda: mine.start("taken")),
            (LeaseLost, lambda: mine.finish(late, Outcome.succeeded())),
        ]
        for error, call in refusals:
            with pytest.raises(error):
                call()
        connection.execute(text("INSERT INTO orders VALUES (1)"))
    assert orders(engine) == 1
    assert [task.id for task in store.list()] == ["taken"]


def test_it_works_inside_an_orm_session(engine: Engine) -> None:
    store = TaskStore(engine)
    with Session(engine) as session:
        store.using(session.connection()).create("a", spec("a"))
        session.rollback()
        store.using(session.connection()).create("b", spec("b"))
        session.commit()
    assert [task.id for task in store.list()] == ["b"]


def test_the_async_store_does_the_same(database_url: str) -> None:
    async def check() -> None:
        engine = create_async_engine(database_url)
        store = AsyncTaskStore(engine)
        async with engine.connect() as connection:
            await store.using(connection).create("a", spec("a"))
            await connection.rollback()
        async with engine.begin() as connection:
            mine = store.using(connection)
            await mine.create_many([("b", spec())])
            with pytest.raises(AlreadyExists):
                await mine.create_many([("c", spec()), ("b", spec())])
            await mine.update("b", lambda old: old.replace(max_retries=1))
        assert [task.id for task in await store.list()] == ["b"]
        await engine.dispose()

    asyncio.run(check())


def test_a_refused_late_write_leaves_a_trace(engine: Engine) -> None:
    store = TaskStore(engine)
    store.create("a", retrying("a"))
    late = store.start("a")
    store.finish(late, Outcome.failed("no"))
    with pytest.raises(LeaseLost):
        store.finish(late, Outcome.succeeded(0))
    with engine.connect() as connection:
        events = connection.execute(text("SELECT type, resource_version, detail FROM solti.task_events ORDER BY event"))
        seen = [(row.type, row.resource_version) for row in events]
        detail = connection.scalar(text("SELECT detail FROM solti.task_events WHERE type = 'refused'"))
    assert seen == [("created", 1), ("started", 2), ("finished", 3), ("refused", 3)]
    assert detail == {"attempt": 1, "outcome": "succeeded", "exitCode": 0, "error": None}


def test_a_failed_transaction_is_named(engine: Engine) -> None:
    store = TaskStore(engine)
    with engine.connect() as connection:
        with pytest.raises(Exception, match="division by zero"):
            connection.execute(text("SELECT 1/0"))
        with pytest.raises(TransactionAborted):
            store.using(connection).list()
        connection.rollback()
        assert len(store.using(connection).list()) == 0
        connection.invalidate()
        with pytest.raises(TransactionAborted):
            store.using(connection).list()


def test_a_connection_without_a_transaction_is_refused(engine: Engine) -> None:
    store = TaskStore(engine)
    with (
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        pytest.raises(Invalid, match="AUTOCOMMIT"),
    ):
        store.using(connection).create("a", spec("a"))
    assert len(store.list()) == 0


def test_a_start_that_fails_leaves_nothing_running(engine: Engine) -> None:
    store = TaskStore(engine)
    store.create("a", spec("a"))
    with engine.begin() as connection:
        connection.execute(text('UPDATE solti.tasks SET spec = spec || \'{"labels": {"a"\\: 5}}\''))
        with pytest.raises(Invalid):
            store.using(connection).start("a")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT phase FROM solti.task_status")) == "pending"
        assert connection.scalar(text("SELECT count(*) FROM solti.task_runs")) == 0
