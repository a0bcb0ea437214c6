"""The worker on a real database, with real processes, when nothing goes wrong but the tasks."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from workers import create, eventually, is_alive, shell, working, written

from solti_store.errors import Invalid
from solti_store.model import MAX_SCRIPT_BODY_BYTES, RestartPolicy, Runtime, Subprocess, TaskPhase, TaskSpec, Wasm
from solti_store.store import AsyncTaskStore
from solti_store.worker import Finished, Refused, Started, Worker, WorkerEvent, WorkerReport

if TYPE_CHECKING:
    from pathlib import Path

    from solti_store.ops.agents import Agent

BRIEFLY = timedelta(milliseconds=10)


async def phase_of(store: AsyncTaskStore, task_id: str) -> TaskPhase:
    return (await store.get(task_id)).status.phase


def test_until_idle_does_what_is_due_and_tells(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        events: list[WorkerEvent] = []
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "good", Subprocess.script(Runtime.BASH, 'printf "$A $B" > "$1"', str(tmp_path / "out")))
            await create(store, "bad", Subprocess.script(Runtime.PYTHON, "raise SystemExit('why not')"))
            await create(store, "tolerant", Subprocess.script(Runtime.BASH, "exit 7", fail_on_non_zero=False))
            await create(store, "slow", shell('wait_for "$1"', tmp_path / "never"), timeout_ms=50)
            worker = Worker(store, "w", env={"A": "x"}, on_event=events.append, concurrency=2, poll=BRIEFLY)
            report = await worker.run(until_idle=True)
            statuses = {name: (await store.get(name)).status for name in ("good", "bad", "tolerant", "slow")}
            (run,) = await store.runs("good")
        assert report == WorkerReport(succeeded=2, failed=1, timed_out=1)
        assert report.finished == 4
        assert {name: (s.phase, s.exit_code, s.error) for name, s in statuses.items()} == {
            "good": (TaskPhase.SUCCEEDED, 0, None),
            "bad": (TaskPhase.FAILED, 1, "exit code 1: why not"),
            "tolerant": (TaskPhase.SUCCEEDED, 7, None),
            "slow": (TaskPhase.TIMEOUT, None, "timed out after 50ms"),
        }
        assert (run.agent, run.phase) == ("w", TaskPhase.SUCCEEDED)
        assert written(tmp_path / "out") == "x"
        assert {e.task_id for e in events if isinstance(e, Started)} == set(statuses)
        assert {e.task_id: e.outcome.phase for e in events if isinstance(e, Finished)} == {
            name: status.phase for name, status in statuses.items()
        }

    asyncio.run(scenario())


def test_until_idle_leaves_what_is_not_for_it(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            worker = Worker(store, "w", poll=BRIEFLY)
            assert await worker.run(until_idle=True) == WorkerReport()
            await create(store, "hourly", Subprocess.command("true"), restart=RestartPolicy.always(3_600_000))
            assert await worker.run(until_idle=True) == WorkerReport(succeeded=1)
            await create(store, "elsewhere", Subprocess.command("true"))
            await store.start("elsewhere", await store.register("other"))
            assert await worker.run(until_idle=True) == WorkerReport()

    asyncio.run(scenario())


def test_a_failed_attempt_is_run_again(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            text = 'mkdir "$1/1" 2> /dev/null && exit 1; mkdir "$1/2" 2> /dev/null && exit 2; exit 0'
            await create(store, "t", shell(text, tmp_path), restart=RestartPolicy.on_failure())
            async with working(Worker(store, "w", poll=BRIEFLY)):
                await eventually(lambda: succeeded(store, "t"))
            assert [run.exit_code for run in await store.runs("t")] == [1, 2, 0]

    asyncio.run(scenario())


async def succeeded(store: AsyncTaskStore, task_id: str) -> bool:
    return await phase_of(store, task_id) is TaskPhase.SUCCEEDED


def test_the_largest_script_runs(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        text = f"touch {tmp_path / 'done'}\n#"
        text += "x" * (MAX_SCRIPT_BODY_BYTES - len(text))
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", Subprocess.script(Runtime.BASH, text))
            assert await Worker(store, "w").run(until_idle=True) == WorkerReport(succeeded=1)

    asyncio.run(scenario())
    assert (tmp_path / "done").exists()


def test_never_more_at_once_than_allowed(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            # Each counts who is there, itself among them, and leaves before it ends.
            text = 'mkdir "$1/in/$$"; ls "$1/in" | wc -l >> "$1/counts"; wait_for "$1/go"; rmdir "$1/in/$$"'
            (tmp_path / "in").mkdir()
            for number in range(12):
                await create(store, f"t{number}", shell(text, tmp_path))
            async with working(Worker(store, "w", concurrency=3, poll=BRIEFLY)) as work:
                await eventually(lambda: len(written(tmp_path / "counts").split()) == 3, "the start of three")
                (tmp_path / "go").touch()
                await eventually(lambda: len(written(tmp_path / "counts").split()) == 12, "the start of all")
            assert (await work).succeeded >= 9
        counts = [int(word) for word in written(tmp_path / "counts").split()]
        assert max(counts) == 3

    asyncio.run(scenario())


def test_a_running_task_is_canceled(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            kind = shell('sleep 1000 & echo $! > "$1"; wait', tmp_path / "child")
            await create(store, "t", kind, restart=RestartPolicy.always())
            async with working(Worker(store, "w", lease=timedelta(seconds=3))) as work:
                child = int(await eventually(lambda: written(tmp_path / "child")))
                await store.cancel("t")
                await eventually(lambda: canceled(store, "t"), "the cancellation")
                await eventually(lambda: not is_alive(child), "the end of the child")
            assert (await work).canceled == 1

    asyncio.run(scenario())


async def canceled(store: AsyncTaskStore, task_id: str) -> bool:
    return await phase_of(store, task_id) is TaskPhase.CANCELED


def test_a_drained_worker_ends_what_it_began_and_begins_nothing(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "first", shell('touch "$1/ready"; wait_for "$1/go"', tmp_path))
            worker = Worker(store, "w", concurrency=1, poll=BRIEFLY)
            async with working(worker) as work:
                await eventually((tmp_path / "ready").exists)
                await create(store, "second", Subprocess.command("true"))
                # From another thread, as a signal handler of the embedding program might.
                await asyncio.to_thread(worker.drain)
                (tmp_path / "go").touch()
                assert await work == WorkerReport(succeeded=1)
            assert await phase_of(store, "first") is TaskPhase.SUCCEEDED
            assert await phase_of(store, "second") is TaskPhase.PENDING
            assert await worker.run() == WorkerReport()

    asyncio.run(scenario())


def test_a_stopped_worker_ends_its_processes_and_says_so(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            kind = shell('echo $$ > "$1/pid"; wait_for "$1/never"', tmp_path)
            await create(store, "t", kind, restart=RestartPolicy.on_failure())
            # It looks no second time: a claim on its way when it is stopped would get the next attempt.
            worker = Worker(store, "w", poll=timedelta(hours=1), listen=False)
            async with working(worker) as work:
                pid = int(await eventually(lambda: written(tmp_path / "pid")))
                worker.stop()
                assert await work == WorkerReport(failed=1)
            assert not is_alive(pid)
            (run,) = await store.runs("t")
            assert (run.phase, run.error) == (TaskPhase.FAILED, "worker stopped")
            # The restart policy decided: another worker takes it up.
            (claim,) = await eventually(lambda: reclaimed(store))
            assert (claim.task_id, claim.attempt) == ("t", 2)

    asyncio.run(scenario())


async def reclaimed(store: AsyncTaskStore) -> Any:
    return await store.claim(await store.register("other"))


def test_a_cancelled_run_kills_and_signs_off(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", shell('trap "" TERM; echo $$ > "$1/pid"; wait_for "$1/never"', tmp_path))
            work = asyncio.create_task(Worker(store, "w").run())
            pid = int(await eventually(lambda: written(tmp_path / "pid")))
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
            assert not is_alive(pid)
            status = (await store.get("t")).status
            assert (status.phase, status.error) == (TaskPhase.FAILED, "agent w signed off")

    asyncio.run(scenario())


def test_a_deleted_task_does_not_run_on(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        events: list[WorkerEvent] = []
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", shell('echo $$ > "$1/pid"; wait_for "$1/never"', tmp_path))
            worker = Worker(store, "w", lease=timedelta(seconds=3), on_event=events.append)
            async with working(worker) as work:
                pid = int(await eventually(lambda: written(tmp_path / "pid")))
                await store.delete("t")
                await eventually(lambda: not is_alive(pid), "the end of the process")
                await eventually(lambda: any(isinstance(e, Refused) for e in events), "the refusal")
            assert await work == WorkerReport(refused=1)
        (refused,) = (e for e in events if isinstance(e, Refused))
        assert (refused.task_id, refused.attempt, refused.reason.current_attempt) == ("t", 1, None)

    asyncio.run(scenario())


def test_an_observer_that_breaks_does_not_break_the_worker(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    def breaks(_event: WorkerEvent) -> None:
        raise RuntimeError("observer")

    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", Subprocess.command("true"))
            assert await Worker(store, "w", on_event=breaks).run(until_idle=True) == WorkerReport(succeeded=1)

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "on_event failed" in caplog.text


def test_one_run_at_a_time(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            worker = Worker(store, "w", poll=BRIEFLY)
            async with working(worker):
                await asyncio.sleep(0)
                with pytest.raises(RuntimeError, match="runs already"):
                    await worker.run()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1001}, "concurrency"),
        ({"poll": timedelta(0)}, "poll"),
        ({"lease": timedelta(0)}, "lease"),
        ({"kill_grace": timedelta(-1)}, "kill_grace"),
    ],
)
def test_senseless_arguments_are_refused(options: dict[str, Any], field: str, database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            with pytest.raises(Invalid) as refused:
                Worker(store, "w", **options)
            assert refused.value.field == field

    asyncio.run(scenario())


def test_the_index_of_labels_follows_the_tasks(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            # Not for this worker, and just so many that the index is worth bringing up to date.
            kind, names = Wasm.module("m.wasm"), [f"t-{n}" for n in range(1024)]
            await store.create_many(
                [(name, TaskSpec.builder(name, kind, 5000).labels({"env": "prod"}).build()) for name in names]
            )

            async def is_known() -> bool:
                async with store._owned.connect() as connection:  # type: ignore[union-attr]
                    count: int = await connection.scalar(text("SELECT count(*) FROM solti.label_segments"))
                    return count == 1

            assert not await is_known()
            async with working(Worker(store, "w", poll=BRIEFLY)):
                await eventually(is_known)

    asyncio.run(scenario())


def test_what_is_over_and_old_goes_beside_the_work(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            for name in ("old", "young"):
                await create(store, name, shell("true"))
                await store.cancel(name)
            async with store._owned.begin() as connection:  # type: ignore[union-attr]
                past = text(
                    "UPDATE solti.task_status AS s SET updated_at = s.updated_at - interval '31 days'"
                    " FROM solti.tasks AS t WHERE t.seq = s.seq AND t.id = 'old'"
                )
                await connection.execute(past)

            async def is_gone() -> bool:
                return [task.id for task in await store.list()] == ["young"]

            async with working(Worker(store, "prunes", poll=BRIEFLY, lease=timedelta(seconds=2))):
                await eventually(is_gone)

    asyncio.run(scenario())


class Looked(AsyncTaskStore):
    """A store that counts how often a worker looked at the books."""

    looks = 0

    async def held_keys(self, agent: Agent) -> frozenset[tuple[int, int]]:
        found = await super().held_keys(agent)
        self.looks += 1
        return found


def test_a_spec_that_is_overwritten_under_it_stops_nothing(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with await Looked.open(database_url) as store:
            for name in ("one", "two"):
                await create(store, name, shell('touch "$2"; wait_for "$1"', tmp_path / "go", tmp_path / name))
            async with working(Worker(store, "w", poll=BRIEFLY, lease=timedelta(seconds=3))):
                await eventually((tmp_path / "one").exists)
                await eventually((tmp_path / "two").exists)
                async with store._owned.begin() as connection:  # type: ignore[union-attr]
                    nonsense = "UPDATE solti.tasks SET spec = spec || '{\"labels\": {\"a\"\\: 5}}' WHERE id = 'one'"
                    await connection.execute(text(nonsense))
                # The first may have been under way.
                before = store.looks
                await eventually(lambda: store.looks >= before + 2, "two looks at the books")
                (tmp_path / "go").touch()

                async def both() -> bool:
                    return [run.phase for name in ("one", "two") for run in await store.runs(name)] == [
                        TaskPhase.SUCCEEDED,
                        TaskPhase.SUCCEEDED,
                    ]

                await eventually(both)

    asyncio.run(scenario())
