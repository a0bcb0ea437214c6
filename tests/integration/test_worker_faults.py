"""The worker when its lease, its database or itself goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from support import connect
from workers import create, eventually, is_alive, shell, working, written

from solti_store.engine import open_async_engine
from solti_store.errors import OutcomeUnknown, SchemaMismatch, StoreUnavailable
from solti_store.model import RestartPolicy, Subprocess, TaskPhase
from solti_store.ops import closing
from solti_store.retry import RetryPolicy
from solti_store.store import AsyncTaskStore
from solti_store.worker import Reaped, Refused, Started, Worker, WorkerEvent, WorkerReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from solti_store.ops.agents import Agent, CancelRequest
    from solti_store.ops.rows import Claim
    from solti_store.rules.outcome import Outcome

BRIEFLY = timedelta(milliseconds=10)
LEASE = timedelta(seconds=3)

# Runs a worker by itself, and writes a line for each event. With one place, so that it does not claim while its
# task runs: stopped between a claim and its COMMIT it would keep its agent row locked, and reapers skip locked rows.
ALONE = """
import asyncio, sys
from datetime import timedelta
from solti_store.store import AsyncTaskStore
from solti_store.worker import Worker

def tell(event):
    print(type(event).__name__, event.task_id, event.attempt, flush=True)

async def main():
    async with await AsyncTaskStore.open(sys.argv[1]) as store:
        lease, poll = timedelta(seconds=3), timedelta(milliseconds=10)
        await Worker(store, "alone", concurrency=1, lease=lease, poll=poll, on_event=tell).run()

asyncio.run(main())
"""


@asynccontextmanager
async def alone(url: str, events: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own, whose events go to a file."""
    with events.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ALONE, url, stdout=file, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def succeeded(store: AsyncTaskStore, *task_ids: str) -> bool:
    return all([(await store.get(task_id)).status.phase is TaskPhase.SUCCEEDED for task_id in task_ids])


# The first attempt writes its pid and waits for ever, later ones succeed.
FIRST_HANGS = 'mkdir "$1/first" 2> /dev/null || exit 0; echo $$ > "$1/pid"; wait_for "$1/never"'


def test_the_work_of_a_killed_worker_is_rescued(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        events: list[WorkerEvent] = []
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", shell(FIRST_HANGS, tmp_path), restart=RestartPolicy.on_failure())
            async with alone(database_url, tmp_path / "events") as process:
                pid = int(await eventually(lambda: written(tmp_path / "pid")))
                process.kill()
                await process.wait()
            rescuer = Worker(store, "rescuer", lease=LEASE, poll=BRIEFLY, on_event=events.append)
            async with working(rescuer) as work:
                await eventually(lambda: succeeded(store, "t"), "the rescue")
            assert await work == WorkerReport(succeeded=1, reaped=1)
            first, second = await store.runs("t")
            assert (first.agent, first.error) == ("alone", "lease expired: agent alone stopped reporting")
            assert (second.agent, second.phase) == ("rescuer", TaskPhase.SUCCEEDED)
        (reaped,) = (event for event in events if isinstance(event, Reaped))
        assert (reaped.task_id, reaped.attempt, reaped.agent, reaped.will_retry) == ("t", 1, "alone", True)
        # What a killed worker started runs on: that is the documented limit, and this test's to clean up.
        if is_alive(pid):
            os.killpg(pid, signal.SIGKILL)

    asyncio.run(scenario())


def test_a_worker_stopped_past_its_lease_changes_nothing_and_cleans_up(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", shell(FIRST_HANGS, tmp_path), restart=RestartPolicy.on_failure())
            async with alone(database_url, tmp_path / "events") as process:
                pid = int(await eventually(lambda: written(tmp_path / "pid")))
                process.send_signal(signal.SIGSTOP)
                rescuer = Worker(store, "rescuer", lease=LEASE, poll=BRIEFLY)
                async with working(rescuer):
                    await eventually(lambda: succeeded(store, "t"), "the rescue")
                before = await store.get("t")
                assert is_alive(pid)
                process.send_signal(signal.SIGCONT)
                await eventually(lambda: not is_alive(pid), "the end of the orphan")
                await eventually(lambda: "Refused t 1" in written(tmp_path / "events"), "the refusal")
                assert await store.get("t") == before
                # It goes on, as another incarnation.
                await create(store, "next", Subprocess.command("true"))
                await eventually(lambda: succeeded(store, "next"))
            assert "Finished t 1" not in written(tmp_path / "events")

    asyncio.run(scenario())


def reap_all(url: str) -> Sequence[Reaped]:
    """Reap as if the leases had ended: a day from now."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            later = datetime.now(UTC) + timedelta(days=1)
            return closing.reap(connection, limit=100, grace=timedelta(days=1), now=later)
    finally:
        engine.dispose()


def test_a_lost_agent_kills_what_it_ran_and_goes_on_as_another(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        events: list[WorkerEvent] = []
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", shell('echo $$ > "$1/pid"; wait_for "$1/never"', tmp_path))
            worker = Worker(store, "w", lease=LEASE, concurrency=1, poll=BRIEFLY, on_event=events.append)
            async with working(worker) as work:
                pid = int(await eventually(lambda: written(tmp_path / "pid")))
                assert [reaped.attempt for reaped in await asyncio.to_thread(reap_all, database_url)] == [1]
                taken = await store.start("t", await store.register("other"))
                # Full to its limit, the worker does not claim: it is its heartbeat that finds out.
                await eventually(lambda: not is_alive(pid), "the end of the process")
                await create(store, "next", Subprocess.command("true"))
                await eventually(lambda: succeeded(store, "next"), "the next task")
                await eventually(lambda: any(isinstance(event, Refused) for event in events))
            assert await work == WorkerReport(succeeded=1, refused=1)
            status = (await store.get("t")).status
            assert (status.phase, status.attempt) == (TaskPhase.RUNNING, taken.attempt)
        (refused,) = (event for event in events if isinstance(event, Refused))
        assert (refused.task_id, refused.attempt) == ("t", 1)
        assert (refused.reason.current_attempt, refused.reason.holder) == (2, "other")

    asyncio.run(scenario())


def test_an_idle_worker_finds_at_its_claim_that_it_is_lost(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            # A heartbeat comes only every twenty minutes.
            async with working(Worker(store, "w", lease=timedelta(hours=1), poll=BRIEFLY)) as work:
                await create(store, "one", Subprocess.command("true"))
                await eventually(lambda: succeeded(store, "one"))
                await asyncio.to_thread(reap_all, database_url)
                await create(store, "two", Subprocess.command("true"))
                await eventually(lambda: succeeded(store, "two"))
            assert await work == WorkerReport(succeeded=2)

    asyncio.run(scenario())


def cut_connections(url: str) -> int:
    """End every other connection to this database; how many there were."""
    with connect(url) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        return len(ended.fetchall())


def test_cut_connections_cost_no_task(database_url: str) -> None:
    async def scenario() -> None:
        names = [f"t{number}" for number in range(40)]
        async with await AsyncTaskStore.open(database_url) as store, await AsyncTaskStore.open(database_url) as looking:
            for name in names:
                await create(store, name, Subprocess.command("sleep", "0.05"))
            async with working(Worker(store, "w", lease=LEASE, concurrency=4, poll=BRIEFLY)) as work:
                cuts = 0
                phases = {TaskPhase.PENDING}
                while phases != {TaskPhase.SUCCEEDED}:
                    cuts += await asyncio.to_thread(cut_connections, database_url)
                    await asyncio.sleep(0.03)
                    phases = {task.status.phase for task in (await looking.list()).items}
                    assert phases <= {TaskPhase.PENDING, TaskPhase.RUNNING, TaskPhase.SUCCEEDED}
            assert cuts >= 5
            report = await work
            # An accepted report whose answer was lost is sent again, and accepted again: none is counted twice.
            assert (report.succeeded, report.failed, report.refused) == (40, 0, 0)
            assert {len(await looking.runs(name)) for name in names} == {1}

    asyncio.run(scenario())


class Faulty(AsyncTaskStore):
    """The real store behind a way to it that fails when told."""

    down = False
    forgets = False
    migrated = False

    def _fail(self) -> None:
        if self.down:
            raise StoreUnavailable("cut off")

    async def heartbeat(self, agent: Agent) -> Sequence[CancelRequest]:
        self._fail()
        if self.migrated:
            raise SchemaMismatch("of another version")
        return await super().heartbeat(agent)

    async def claim(self, agent: Agent, *, limit: int = 1) -> Sequence[Claim]:
        self._fail()
        claims = await super().claim(agent, limit=limit)
        if claims and self.forgets:
            self.forgets = False
            raise OutcomeUnknown("the answer was lost")
        return claims

    async def finish_many(self, results: Sequence[tuple[Claim, Outcome]]) -> Any:
        self._fail()
        return await super().finish_many(results)


def test_a_claim_whose_answer_was_lost_is_run_all_the_same(database_url: str) -> None:
    async def scenario() -> None:
        async with await Faulty.open(database_url) as store:
            for name in ("a", "b", "c"):
                await create(store, name, Subprocess.command("true"))
            store.forgets = True
            report = await Worker(store, "w", concurrency=2, poll=BRIEFLY).run(until_idle=True)
            assert report == WorkerReport(succeeded=3)
            assert {(await store.get(name)).status.attempt for name in ("a", "b", "c")} == {1}

    asyncio.run(scenario())


def test_outcomes_wait_for_a_store_that_is_away(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Faulty.open(database_url) as store:
            await create(store, "t", shell('echo $$ > "$1/pid"; wait_for "$1/go"', tmp_path))
            async with working(Worker(store, "w", poll=BRIEFLY)) as work:
                pid = int(await eventually(lambda: written(tmp_path / "pid")))
                store.down = True
                (tmp_path / "go").touch()
                await eventually(lambda: not is_alive(pid))
                assert (await store.get("t")).status.phase is TaskPhase.RUNNING
                store.down = False
                await eventually(lambda: succeeded(store, "t"), "the report")
            assert await work == WorkerReport(succeeded=1)

    asyncio.run(scenario())


def test_a_worker_out_of_touch_kills_before_its_lease_ends(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Faulty.open(database_url) as store, await AsyncTaskStore.open(database_url) as other:
            kind = shell('trap "" TERM; echo $$ > "$1/pid"; wait_for "$1/never"', tmp_path)
            await create(store, "t", kind)
            async with working(Worker(store, "w", lease=LEASE, poll=BRIEFLY)) as work:
                pid = int(await eventually(lambda: written(tmp_path / "pid")))
                store.down = True
                reaped: list[Reaped] = []
                while is_alive(pid):
                    reaped.extend(await other.reap())
                    assert not (reaped and is_alive(pid)), "another took the attempt while its process ran"
                    await asyncio.sleep(0.01)
                # Nobody else reaps any more, so the same incarnation goes on, and says what it did.
                store.down = False
                await eventually(lambda: has_ended(store, "t"))
            report = await work
            # Nor did it come so late to its next heartbeat that it took away its own.
            if not reaped and not report.reaped:
                assert report == WorkerReport(failed=1)
                assert (await store.get("t")).status.error == "the worker could not renew its lease in time"

    asyncio.run(scenario())


async def has_ended(store: AsyncTaskStore, task_id: str) -> bool:
    return (await store.get(task_id)).status.phase is TaskPhase.FAILED


def test_a_drained_worker_out_of_touch_gives_up_with_its_lease(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Faulty.open(database_url) as store:
            await create(store, "t", shell('touch "$1/ready"; wait_for "$1/go"', tmp_path))
            worker = Worker(store, "w", lease=LEASE, poll=BRIEFLY)
            async with working(worker) as work:
                await eventually((tmp_path / "ready").exists)
                store.down = True
                worker.drain()
                (tmp_path / "go").touch()
                assert await work == WorkerReport(unreported=1)

    asyncio.run(scenario())


def test_what_no_patience_mends_ends_the_run_and_all_it_ran(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Faulty.open(database_url) as store:
            await create(store, "t", shell('echo $$ > "$1/pid"; wait_for "$1/never"', tmp_path))
            work = asyncio.create_task(Worker(store, "w", lease=LEASE).run())
            pid = int(await eventually(lambda: written(tmp_path / "pid")))
            store.migrated = True
            with pytest.raises(SchemaMismatch):
                await work
            assert not is_alive(pid)
            assert (await store.get("t")).status.error == "agent w signed off"

    asyncio.run(scenario())


def test_a_worker_that_cannot_register_says_so() -> None:
    async def scenario() -> None:
        engine = open_async_engine("postgresql://nobody@127.0.0.1:1/nothing")
        store = AsyncTaskStore(engine, retry=RetryPolicy(attempts=2))
        with pytest.raises(StoreUnavailable):
            await Worker(store, "w").run()
        await engine.dispose()

    asyncio.run(scenario())


def test_two_workers_share_the_work(database_url: str) -> None:
    async def scenario() -> None:
        events: dict[str, list[WorkerEvent]] = {"a": [], "b": []}
        async with await AsyncTaskStore.open(database_url) as store:
            names = [f"t{number}" for number in range(20)]
            for name in names:
                await create(store, name, Subprocess.command("true"))
            reports = await asyncio.gather(
                *(
                    Worker(store, name, concurrency=2, poll=BRIEFLY, on_event=told.append).run(until_idle=True)
                    for name, told in events.items()
                )
            )
            assert sum(report.succeeded for report in reports) == 20
            started = [e.task_id for told in events.values() for e in told if isinstance(e, Started)]
            assert sorted(started) == sorted(names)

    asyncio.run(scenario())
