"""The worker with its other runners, its output and its prefetch, on a real database."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import wasmtime
from workers import HOURS_MS, create, eventually, shell, working

from solti_store.errors import Invalid
from solti_store.model import Container, Embedded, RestartPolicy, Runtime, Subprocess, TaskPhase, Wasm
from solti_store.rules.outcome import Outcome
from solti_store.store import AsyncTaskStore
from solti_store.worker import (
    ContainerRunner,
    EmbeddedCall,
    EmbeddedRunner,
    FatalError,
    Started,
    SubprocessRunner,
    WasmRunner,
    Worker,
    WorkerEvent,
    WorkerReport,
)
from solti_store.worker.reporting import Reporter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from solti_store.model import KindName
    from solti_store.ops.rows import Claim
    from solti_store.worker import Control, Runner, Terms

BRIEFLY = timedelta(milliseconds=10)
STAND_IN = Path(__file__).parent.parent / "engine_stand_in.py"


def test_one_worker_runs_all_kinds(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's engine is the stand-in that `test_runner_container` describes."""
    engine = tmp_path / "docker"
    engine.write_text(f'#!/bin/sh\nexec {sys.executable} -S {STAND_IN} "$@"\n')
    engine.chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    module = tmp_path / "module.wasm"
    module.write_bytes(bytes(wasmtime.wat2wasm('(module (func (export "_start")))')))

    def fails(call: EmbeddedCall) -> None:
        raise ValueError(f"{call.task_id} {call.attempt}")

    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "sub", Subprocess.script(Runtime.BASH, "echo out; echo err >&2"))
            await create(store, "con", Container.image("bb", "echo $A", command=("sh", "-c")))
            await create(store, "wasm", Wasm.module(str(module)))
            await create(store, "emb", Embedded(), labels={"function": "fails"})
            runners: list[Runner] = [
                SubprocessRunner(),
                ContainerRunner(str(engine)),
                WasmRunner(),
                EmbeddedRunner({"fails": fails}),
            ]
            worker = Worker(store, "w", runners=runners, env={"A": "a"}, poll=BRIEFLY)
            assert await worker.run(until_idle=True) == WorkerReport(succeeded=3, failed=1)
            (agent,) = await store.agents(closed=True)
            assert agent.kinds == ("container", "embedded", "subprocess", "wasm")
            runs = {name: (await store.runs(name))[0] for name in ("sub", "con", "wasm", "emb")}
        assert {name: (run.exit_code, run.stdout, run.error) for name, run in runs.items()} == {
            "sub": (0, "out\n", None),
            "con": (0, "a\n", None),
            "wasm": (0, None, None),
            "emb": (None, None, "ValueError: emb 1"),
        }
        assert runs["sub"].stderr == "err\n"
        assert (runs["emb"].stderr or "").startswith("Traceback")

    asyncio.run(scenario())


def test_a_kind_without_a_runner_is_left_to_others(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "sub", Subprocess.command("true"))
            worker = Worker(store, "w", runners=[EmbeddedRunner({})], poll=BRIEFLY)
            assert await worker.run(until_idle=True) == WorkerReport()
            assert (await store.get("sub")).phase is TaskPhase.PENDING

    asyncio.run(scenario())


def test_a_fatal_error_is_not_tried_again(database_url: str) -> None:
    def fails(call: EmbeddedCall) -> None:
        if call.attempt == 2:
            raise FatalError("for good")
        raise ValueError("this time")

    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "fails", Embedded(), restart=RestartPolicy.always())
            worker = Worker(store, "w", runners=[EmbeddedRunner({"fails": fails})], poll=BRIEFLY)
            async with working(worker):
                await eventually(lambda: errors_of(store, "fails", 2))
            assert await errors_of(store, "fails", 2) == ["ValueError: this time", "FatalError: for good"]
            assert (await store.get("fails")).phase is TaskPhase.FAILED

    asyncio.run(scenario())


async def errors_of(store: AsyncTaskStore, task_id: str, count: int) -> list[str | None]:
    errors = [run.error for run in await store.runs(task_id) if not run.is_active]
    return errors if len(errors) >= count else []


@pytest.mark.parametrize("tail", [0, 3])
def test_so_much_output_is_kept_as_is_asked_for(tail: int, database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "t", Subprocess.command("echo", "12345"))
            assert (await Worker(store, "w", output_tail=tail).run(until_idle=True)).succeeded == 1
            (run,) = await store.runs("t")
            assert run.stdout == ("45\n" if tail else None)

    asyncio.run(scenario())


def test_a_backlog_of_long_output_is_reported_in_pieces(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            agent = await store.register("w")
            for number in range(50):
                await create(store, f"t{number}", Subprocess.command("true"))
            claims = await store.claim(agent, limit=50)
            told: list[int] = []
            reporter = Reporter(
                store,
                patience_s=60,
                tell=lambda _: None,
                on_change=lambda: told.append(reporter.report(reaped=0).finished),
            )
            for claim in claims:
                reporter.add(claim, Outcome.succeeded().with_output("x" * 100_000, "x" * 100_000))
            while reporter.waiting:
                await reporter.send()
            assert told == [20, 40, 50]

    asyncio.run(scenario())


# --- what cannot be ended -----------------------------------------------------------------------


def test_an_abandoned_thread_takes_up_a_place_until_it_ends(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    go = threading.Event()
    pair = threading.Barrier(2)

    def deaf(_call: EmbeddedCall) -> None:
        go.wait()

    def alone(_call: EmbeddedCall) -> None:
        # Another one beside it would make a pair.
        with pytest.raises(threading.BrokenBarrierError):
            pair.wait(0.2)
        pair.reset()

    def together(_call: EmbeddedCall) -> None:
        pair.wait(30)

    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            runner = EmbeddedRunner({"deaf": deaf, "alone": alone, "together": together})
            worker = Worker(store, "w", runners=[runner], concurrency=2, kill_grace=BRIEFLY, poll=BRIEFLY, prefetch=1)
            await create(store, "deaf", Embedded(), timeout_ms=20, labels={"function": "deaf"})
            # The thread outlives the run, and is counted in the next.
            assert await worker.run(until_idle=True) == WorkerReport(timed_out=1)
            for number in range(3):
                await create(store, f"alone-{number}", Embedded(), labels={"function": "alone"})
            assert await worker.run(until_idle=True) == WorkerReport(succeeded=3)
            async with working(worker) as work:
                await eventually(lambda: worker._running)
                go.set()
                for number in range(2):
                    await create(store, f"together-{number}", Embedded(), labels={"function": "together"})

                async def both() -> bool:
                    tasks = [await store.get(f"together-{number}") for number in range(2)]
                    return all(task.phase is TaskPhase.SUCCEEDED for task in tasks)

                await eventually(both)
            assert await work == WorkerReport(succeeded=2)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "attempt 1 of 'deaf' could not be ended, and takes up one of 2 places until it is over" in caplog.text


def test_a_worker_whose_places_are_all_taken_up_waits(database_url: str) -> None:
    go = threading.Event()

    def deaf(_call: EmbeddedCall) -> None:
        go.wait()

    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            runner = EmbeddedRunner({"deaf": deaf, "quick": lambda _call: None})
            worker = Worker(store, "w", runners=[runner], concurrency=1, prefetch=5, kill_grace=BRIEFLY, poll=BRIEFLY)
            await create(store, "deaf", Embedded(), timeout_ms=20)
            async with working(worker):
                await eventually(lambda: phase_is(store, "deaf", TaskPhase.TIMEOUT))
                await create(store, "quick", Embedded())
                # It claims nothing that it could not begin. The first of two beats may have been under way.
                for number in range(2):
                    await beat(store, number)
                assert (await store.get("quick")).phase is TaskPhase.PENDING
                go.set()
                await eventually(lambda: phase_is(store, "quick", TaskPhase.SUCCEEDED))

    asyncio.run(scenario())


async def beat(store: AsyncTaskStore, number: int) -> None:
    """Wait until another agent, which looks as often as this worker does, has found something to run."""
    await create(store, f"beat-{number}", Subprocess.command("true"))
    assert (await Worker(store, "other", poll=BRIEFLY).run(until_idle=True)).succeeded == 1


async def phase_is(store: AsyncTaskStore, task_id: str, phase: TaskPhase) -> bool:
    return (await store.get(task_id)).phase is phase


# --- prefetch -----------------------------------------------------------------------------------


class Watched:
    """A worker of one place that claims three more, and the tasks that it has begun."""

    def __init__(self, store: AsyncTaskStore, **options: Any) -> None:
        self.store = store
        self.begun: list[str] = []
        self.worker = Worker(store, "w", concurrency=1, prefetch=3, poll=BRIEFLY, on_event=self._heard, **options)

    def _heard(self, event: WorkerEvent) -> None:
        if isinstance(event, Started):
            self.begun.append(event.task_id)

    async def has_claimed(self, count: int) -> bool:
        tasks = (await self.store.list()).items
        return sum(task.phase is TaskPhase.RUNNING for task in tasks) == count


@asynccontextmanager
async def four_claimed(url: str, go: Path, *, tasks: int) -> AsyncIterator[tuple[Watched, asyncio.Task[WorkerReport]]]:
    """A worker that has claimed four of so many tasks, one to run and three that wait for it, until `go` is there."""
    async with await AsyncTaskStore.open(url) as store:
        for number in range(tasks):
            await create(store, f"t{number}", shell('wait_for "$1"', go))
        watched = Watched(store)
        async with working(watched.worker) as work:
            await eventually(lambda: watched.has_claimed(4))
            # The store knows of a claim before the worker has heard of it.
            await eventually(lambda: watched.begun)
            yield watched, work


def test_what_waits_is_claimed_and_begins_in_its_turn(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with four_claimed(database_url, tmp_path / "go", tasks=6) as (watched, work):
            assert watched.begun == ["t0"]
            (tmp_path / "go").touch()
            await eventually(lambda: len(watched.begun) == 6)
            # Drain is to end what was claimed, whether it has begun or not.
            watched.worker.drain()
            assert await work == WorkerReport(succeeded=6)
            assert watched.begun == [f"t{number}" for number in range(6)]

    asyncio.run(scenario())


def test_a_drained_worker_runs_what_waits_and_claims_no_more(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with four_claimed(database_url, tmp_path / "go", tasks=6) as (watched, work):
            watched.worker.drain()
            (tmp_path / "go").touch()
            assert await work == WorkerReport(succeeded=4)
            assert watched.begun == ["t0", "t1", "t2", "t3"]

    asyncio.run(scenario())


def test_a_stopped_worker_does_not_begin_what_waits(database_url: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with four_claimed(database_url, tmp_path / "never", tasks=4) as (watched, work):
            watched.worker.stop()
            assert await work == WorkerReport(failed=4)
            assert watched.begun == ["t0"]
            assert [run.error for run in await watched.store.runs("t3")] == ["worker stopped"]

    asyncio.run(scenario())


@pytest.mark.parametrize(("timeout_ms", "report"), [(1, "timed_out"), (HOURS_MS, "canceled")])
def test_an_attempt_that_waits_can_be_canceled_and_runs_out_of_time(
    timeout_ms: int, report: str, database_url: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            await create(store, "first", shell('wait_for "$1"', tmp_path / "go"))
            await create(store, "second", shell("true"), timeout_ms=timeout_ms)
            watched = Watched(store, lease=timedelta(seconds=3))
            async with working(watched.worker) as work:
                if report == "canceled":
                    await eventually(lambda: watched.has_claimed(2))
                    await store.cancel("second")
                # While the first still runs.
                phase = TaskPhase.CANCELED if report == "canceled" else TaskPhase.TIMEOUT
                await eventually(lambda: phase_is(store, "second", phase))
                assert watched.begun == ["first"]
                watched.worker.drain()
                (tmp_path / "go").touch()
                counts: dict[str, int] = {"succeeded": 1, report: 1}
                assert await work == WorkerReport(**counts)
            if report == "timed_out":
                assert (await store.get("second")).status.error == "timed out after 1ms"

    asyncio.run(scenario())


class Notes:
    """A runner that takes an attempt's terms down, and waits until it may go on."""

    kind: Final[KindName] = "embedded"

    def __init__(self) -> None:
        self.left_s: list[float] = []
        self.go = asyncio.Event()

    async def run(self, _claim: Claim, _control: Control, terms: Terms) -> Outcome:
        self.left_s.append(terms.left_s)
        await self.go.wait()
        return Outcome.succeeded()


def test_the_time_that_was_waited_is_gone(database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            for name in ("first", "second"):
                await create(store, name, Embedded())
            notes, clock = Notes(), asyncio.get_running_loop().time
            async with working(Watched(store, runners=[notes]).worker):
                # Both were claimed at once, and wait from here on at the latest.
                await eventually(lambda: notes.left_s)
                since = clock()
                await asyncio.sleep(0.01)
                waited = clock() - since
                notes.go.set()
                await eventually(lambda: phase_is(store, "second", TaskPhase.SUCCEEDED))
            first, second = notes.left_s
            assert first <= HOURS_MS / 1000
            assert second <= HOURS_MS / 1000 - waited

    asyncio.run(scenario())


# --- arguments ----------------------------------------------------------------------------------


class Odd:
    kind = "magic"


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"runners": []}, "runners", "must be at least one"),
        ({"runners": [SubprocessRunner(), SubprocessRunner()]}, "runners", "two of the kind subprocess"),
        ({"runners": [Odd()]}, "runners", "got magic"),
        ({"prefetch": -1}, "prefetch", "must be from 0 to 1000 less the concurrency"),
        ({"prefetch": 997}, "prefetch", "must be from 0 to 1000 less the concurrency"),
        ({"output_tail": -1}, "output_tail", "must be from 0 to 65536"),
        ({"output_tail": 65537}, "output_tail", "must be from 0 to 65536"),
    ],
)
def test_senseless_arguments_are_refused(options: dict[str, Any], field: str, says: str, database_url: str) -> None:
    async def scenario() -> None:
        async with await AsyncTaskStore.open(database_url) as store:
            with pytest.raises(Invalid, match=says) as refused:
                Worker(store, "w", **options)
            assert refused.value.field == field

    asyncio.run(scenario())
