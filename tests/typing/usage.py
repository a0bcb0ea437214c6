"""The public API as a caller writes it, checked by mypy and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Final, assert_type

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from solti_store import (
    Agent,
    AsyncTaskStore,
    CancelRequest,
    Claim,
    Diagnosis,
    DoctorLimits,
    Finding,
    LeaseLost,
    Outcome,
    Reaped,
    RestartPolicy,
    RunnerSelector,
    Selector,
    Subprocess,
    Task,
    TaskOrder,
    TaskPage,
    TaskPhase,
    TaskQuery,
    TaskRun,
    TaskSpec,
    TaskStore,
    VersionConflict,
)
from solti_store.worker import (
    ContainerRunner,
    Control,
    EmbeddedCall,
    EmbeddedFunction,
    EmbeddedRunner,
    FatalError,
    Runner,
    SubprocessRunner,
    Terms,
    Worker,
    WorkerReport,
)


def spec() -> TaskSpec:
    built = TaskSpec.builder("build", Subprocess.command("make", "-j2"), timedelta(minutes=5))
    return built.restart(RestartPolicy.on_failure()).labels({"env": "prod"}).build()


def sync_usage(connection: Connection) -> None:
    with TaskStore.open("postgresql://localhost/app") as store:
        assert_type(store, TaskStore)
        assert_type(store.create("build-1", spec()), Task)
        assert_type(store.create_many([("a", spec())]), Sequence[Task])
        task = store.get("build-1")
        assert_type(task.metadata.resource_version, int)
        assert_type(task.phase, TaskPhase)
        assert_type(store.list(), TaskPage)
        assert_type(store.list(TaskQuery(limit=5)).next_cursor, str | None)
        query = TaskQuery(selector=Selector.parse("env=prod"), order_by=TaskOrder.UPDATED, descending=True)
        assert_type(store.pages(query), Iterator[TaskPage])
        assert_type([task for page in store.pages() for task in page], list[Task])
        assert_type(query.selector, Selector | RunnerSelector | None)
        assert_type(store.replace("build-1", spec(), expected_version=1), Task)
        assert_type(store.update("build-1", lambda old: old.replace(max_retries=3)), Task)
        assert_type(store.cancel("build-1"), Task)
        assert_type(store.delete("build-1", expected_version=2), bool)
        assert_type(store.runs("build-1"), Sequence[TaskRun])
        assert_type(store.doctor(limits=DoctorLimits(dead=9)), Diagnosis)
        assert_type(store.doctor().findings, tuple[Finding, ...])
        agent = store.register("worker-1", kinds=["subprocess"], labels={"zone": "a"})
        assert_type(agent, Agent)
        assert_type(store.heartbeat(agent), Sequence[CancelRequest])
        claims = store.claim(agent, limit=10)
        assert_type(claims, Sequence[Claim])
        assert_type(store.start("build-1"), Claim)
        store.finish(claims[0], Outcome.succeeded(0))
        assert_type(store.finish_many([(claims[0], Outcome.canceled())]), Sequence[LeaseLost | None])
        assert_type(store.reap(), Sequence[Reaped])
        assert_type(store.sign_off(agent), Sequence[Reaped])
        assert_type(store.using(connection).get("build-1"), Task)


async def async_usage(connection: AsyncConnection) -> None:
    async with await AsyncTaskStore.open() as store:
        assert_type(store, AsyncTaskStore)
        assert_type(await store.create("build-1", spec()), Task)
        assert_type(await store.list(), TaskPage)
        assert_type(await store.doctor(), Diagnosis)
        assert_type(store.pages(), AsyncIterator[TaskPage])
        assert_type(await store.update("build-1", lambda old: old), Task)
        agent = await store.register("worker-1")
        assert_type(await store.claim(agent), Sequence[Claim])
        assert_type(await store.using(connection).get("build-1"), Task)


def error_usage(error: VersionConflict) -> None:
    assert_type(error.current, int)


class OwnRunner:
    kind: Final = "wasm"

    async def run(self, claim: Claim, control: Control, terms: Terms) -> Outcome:
        control.asked.add_done_callback(lambda asked: assert_type(asked.result(), Outcome))
        assert_type(terms.left_s, float)
        return Outcome.succeeded(0).with_output("out", None)


def embedded(call: EmbeddedCall) -> None:
    assert_type(call.attempt, int)


async def async_embedded(call: EmbeddedCall) -> None:
    raise FatalError(call.labels.get("a"))


async def worker_usage(store: AsyncTaskStore) -> None:
    functions: dict[str, EmbeddedFunction] = {"a": embedded, "b": async_embedded}
    runners: list[Runner] = [SubprocessRunner(), EmbeddedRunner(functions), OwnRunner()]
    worker = Worker(store, "w", runners=runners, prefetch=4, output_tail=0)
    assert_type(await worker.run(), WorkerReport)
    Worker(store, "w", runners=[SubprocessRunner(), ContainerRunner(options=["-q"])])
    Worker(store, "w", runners=[object()])  # type: ignore[list-item]


def mistakes(store: TaskStore) -> None:
    store.create("a")  # type: ignore[call-arg]
    store.create(1, spec())  # type: ignore[arg-type]
    store.replace("a", spec())  # type: ignore[call-arg]
    store.register("w", kinds=["magic"])  # type: ignore[list-item]
    store.finish("a", Outcome.succeeded())  # type: ignore[arg-type]
