"""Workers that wait are woken: they would not look by themselves before these tests are over."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from support import connect, spec
from workers import eventually, working

from solti_store import listening
from solti_store.errors import Invalid
from solti_store.migrate import upgrade
from solti_store.model import AdmissionPolicy, Labels, RunnerSelector, TaskPhase
from solti_store.rules.outcome import Outcome
from solti_store.sql import waking as sql
from solti_store.store import AsyncTaskStore, TaskStore
from solti_store.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import psycopg

NEVER = timedelta(hours=1)
BRIEFLY = timedelta(milliseconds=20)
LEASE = timedelta(seconds=2)

OURS = "locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
WAITING = f"{OURS} AND mode = 'ShareLock' AND granted"


def waiting(conn: psycopg.Connection[Any]) -> int:
    """How many workers wait, in the test's database."""
    row = conn.execute(f"SELECT count(*) FROM pg_locks WHERE {WAITING}".encode()).fetchone()
    assert row is not None
    return int(row[0])


class Place:
    """A worker that never looks by itself, and what is around it."""

    def __init__(self, store: AsyncTaskStore, conn: psycopg.Connection[Any]) -> None:
        self.store, self.conn = store, conn

    async def waits(self, workers: int = 1) -> None:
        await eventually(lambda: waiting(self.conn) == workers, f"that {workers} wait")

    async def runs(self, *names: str) -> None:
        for name in names:
            await eventually(lambda name=name: self._succeeded(name), name)  # type: ignore[misc]

    async def _succeeded(self, name: str) -> bool:
        return (await self.store.get(name)).phase is TaskPhase.SUCCEEDED


@asynccontextmanager
async def place(url: str, workers: int = 1, **options: Any) -> AsyncIterator[Place]:
    settings: dict[str, Any] = {"poll": NEVER} | options
    async with await AsyncTaskStore.open(url) as store:
        with connect(url) as conn:
            here = Place(store, conn)
            async with AsyncExitStack() as stack:
                for number in range(workers):
                    await stack.enter_async_context(working(Worker(store, f"w{number}", **settings)))
                await here.waits(workers)
                yield here
            await here.waits(0)


def test_what_is_created_starts_at_once(database_url: str) -> None:
    async def scenario() -> None:
        async with place(database_url) as here:
            await here.store.create("one", spec())
            await here.runs("one")
            await here.waits()
            await here.store.create_many([("two", spec()), ("three", spec())])
            await here.runs("two", "three")
            await here.waits()
            with TaskStore.open(database_url) as store:
                await asyncio.to_thread(store.create, "four", spec())
                await here.runs("four")
                await here.waits()
                await asyncio.to_thread(store.create_many, [("five", spec())])
                await here.runs("five")

    asyncio.run(scenario())


def test_who_takes_the_place_of_another_starts_at_once(database_url: str) -> None:
    async def scenario() -> None:
        async with place(database_url) as here:
            other = await here.store.register("other", kinds=["wasm"])
            await here.store.create("first", spec("slot"))
            await here.runs("first")
            await here.store.create("held", spec("slot"))
            await here.runs("held")
            await here.store.create("running", spec("kept"))
            await here.runs("running")
            claim = await here.store.start("running", other)
            await here.store.create("next", spec("kept", admission=AdmissionPolicy.QUEUE))
            await here.waits()
            await here.store.finish(claim, Outcome.succeeded(0))
            await here.runs("next")

    asyncio.run(scenario())


@pytest.mark.parametrize("leave", ["cancel", "delete"])
def test_who_comes_after_a_task_that_was_taken_away_starts_at_once(database_url: str, leave: str) -> None:
    async def scenario() -> None:
        async with place(database_url) as here:
            nobodys = RunnerSelector(match_labels=Labels({"gpu": "yes"}))
            await here.store.create("owner", spec("slot", runner_selector=nobodys))
            await here.store.create("next", spec("slot", admission=AdmissionPolicy.QUEUE))
            await here.waits()
            await getattr(here.store, leave)("owner")
            await here.runs("next")
            with TaskStore.open(database_url) as store:
                await asyncio.to_thread(store.create, "owner2", spec("slot", runner_selector=nobodys))
                await asyncio.to_thread(store.create, "next2", spec("slot", admission=AdmissionPolicy.QUEUE))
                await here.waits()
                await asyncio.to_thread(getattr(store, leave), "owner2")
                await here.runs("next2")

    asyncio.run(scenario())


def test_a_task_of_a_callers_transaction_is_announced_after_its_commit(database_url: str) -> None:
    async def scenario() -> None:
        async with place(database_url) as here:
            engine = create_engine(database_url)
            with engine.begin() as connection:
                TaskStore(engine).using(connection).create("t", spec())
            await here.store.wake()
            await here.runs("t")
            await here.waits()
            async_engine = create_async_engine(database_url)
            async with async_engine.begin() as two:
                bound = here.store.using(two)
                await bound.create("u", spec())
                await bound.wake()
                with pytest.raises(Invalid, match=r"listen\(\)"):
                    bound.listen()
            await here.runs("u")
            engine.dispose()
            await async_engine.dispose()

    asyncio.run(scenario())


def test_an_ear_that_is_cut_off_grows_again(database_url: str) -> None:
    async def scenario() -> None:
        async with place(database_url, lease=LEASE) as here:
            for name in ("one", "two"):
                cut = here.conn.execute(
                    f"SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE {WAITING}".encode()
                ).fetchall()
                assert cut == [(True,)]
                await here.waits()
                await here.store.create(name, spec())
                await here.runs(name)
                await here.waits()

    asyncio.run(scenario())


def test_many_creators_and_many_who_wait(database_url: str) -> None:
    async def scenario() -> None:
        # A task may be committed long after its creator saw that nobody waits: those are found by looking.
        async with place(database_url, workers=4, poll=timedelta(seconds=2), concurrency=8) as here:
            with TaskStore.open(database_url, pool_size=16) as store:
                names = [f"t{number}" for number in range(160)]
                creating = [
                    asyncio.to_thread(lambda own=own: [store.create(name, spec()) for name in own])  # type: ignore[misc]
                    for own in (names[first::16] for first in range(16))
                ]
                await asyncio.gather(*creating)
            await here.runs(*names)
            assert {len(await here.store.runs(name)) for name in names} == {1}

    asyncio.run(scenario())


@pytest.mark.parametrize("listen", [False, True], ids=["it does not want to", "pooler"])
def test_who_does_not_listen_looks(database_url: str, listen: bool) -> None:
    async def scenario() -> None:
        # Through a pooler in transaction mode another one answers than the connection began with.
        pooled = patch.object(listening, "IS_DIRECT", "SELECT %(seen)s = 0") if listen else nullcontext()
        async with await AsyncTaskStore.open(database_url) as store:
            with connect(database_url) as conn, pooled:
                async with working(Worker(store, "w", poll=BRIEFLY, listen=listen)):
                    here = Place(store, conn)
                    for name in ("one", "two"):
                        await store.create(name, spec())
                        await here.runs(name)
                        assert waiting(conn) == 0

    asyncio.run(scenario())


def test_nothing_is_sent_while_nobody_waits(database_url: str) -> None:
    with TaskStore.open(database_url) as store, connect(database_url) as listener, connect(database_url) as waiter:
        (channel,) = listener.execute(sql.CHANNEL.text).fetchone() or ("",)
        listener.execute(f'LISTEN "{channel}"'.encode())

        def heard(make: Callable[[], object]) -> int:
            make()
            # Notices come in the order of their commits, and later than those.
            waiter.execute("SELECT pg_notify(%s, 'end')", [channel])
            for number, notice in enumerate(listener.notifies(timeout=60)):
                if notice.payload == "end":
                    return number
            raise AssertionError("the notice of the test's own did not come")

        assert heard(lambda: store.create("a", spec())) == 0
        assert heard(lambda: store.create_many([("b", spec())])) == 0
        assert heard(store.wake) == 0
        waiter.execute(sql.WAIT.text.encode())
        assert heard(lambda: store.create("c", spec())) == 1
        assert heard(store.wake) == 1
        assert heard(store.reap) == 0
        with pytest.raises(Exception, match="'c'"):
            store.create("c", spec())
        assert heard(lambda: None) == 0


@pytest.mark.parametrize("failing", ["SELECT 1 / 0", "SELECT pg_terminate_backend(pg_backend_pid())"])
def test_what_is_created_is_created_though_nobody_can_be_woken(database_url: str, failing: str) -> None:
    with TaskStore.open(database_url) as store, connect(database_url) as waiter:
        waiter.execute(sql.WAIT.text.encode())
        with patch.object(sql.WAKE, "text", failing):
            assert store.create("a", spec()).id == "a"
            assert [task.id for task in store.create_many([("b", spec()), ("c", spec())])] == ["b", "c"]
        assert [task.id for task in store.list()] == ["a", "b", "c"]
        # No lock of ours is left on a connection that others use.
        waiter.execute("SELECT pg_advisory_unlock_all()")
        assert waiter.execute(f"SELECT count(*) FROM pg_locks WHERE {OURS}".encode()).fetchone() == (0,)


def test_a_worker_is_not_woken_in_a_busy_loop(database_url: str) -> None:
    """One look when it begins to wait, three that follow, and then silence."""

    async def scenario() -> None:
        looks = 0
        claim = AsyncTaskStore.claim

        async def counted(*args: Any, **options: Any) -> Any:
            nonlocal looks
            looks += 1
            return await claim(*args, **options)

        with patch.object(AsyncTaskStore, "claim", counted):
            async with place(database_url) as here:
                await eventually(lambda: looks >= 5, "the looks that follow")
                await here.store.create("t", spec())
                await here.runs("t")
                await here.waits()
                assert looks <= 5 + 1 + 5

    asyncio.run(scenario())


def test_an_ear_is_closed_and_not_left_to_the_collector(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            with connect(database_url) as conn:
                here = Place(store, conn)
                for number in range(3):
                    async with working(Worker(store, f"w{number}", poll=NEVER)):
                        await here.waits()
                    await here.waits(0)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


def test_a_caller_may_change_the_encoding(database_url: str) -> None:
    engine = create_engine(database_url)
    store = TaskStore(engine)
    with TaskStore.open(database_url) as ours:
        ours.create("t", spec(labels=Labels({"size": "größe"})))
    with engine.connect() as connection:
        bound = store.using(connection)
        before = bound.get("t")
        connection.exec_driver_sql("SET client_encoding TO 'LATIN1'")
        assert bound.get("t") == before
        assert before.spec.labels["size"] == "größe"
    engine.dispose()
    latin = create_engine(database_url, client_encoding="latin1")
    upgrade(database_url, schema="größe")
    assert TaskStore(latin, schema="größe").create("u", spec()).id == "u"
    latin.dispose()


def test_connection_of_others_stays_as_it_was(database_url: str) -> None:
    engine = create_engine(database_url)
    store = TaskStore(engine)
    with engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        connection.detach()
        with connection.begin():
            store.using(connection).create("t", spec())
            assert store.using(connection).get("t").id == "t"
            assert connection.execute(text("SELECT 1")).scalar() == 1
        assert connection.connection.dbapi_connection is raw
    engine.dispose()
