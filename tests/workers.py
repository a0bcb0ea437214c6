"""What the worker's tests share: tasks, and waiting for what must happen."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil

from solti_store.model import (
    BackoffPolicy,
    JitterPolicy,
    RestartPolicy,
    RunnerEnv,
    Runtime,
    Subprocess,
    TaskId,
    TaskKind,
    TaskSpec,
)
from solti_store.ops.rows import Claim
from solti_store.worker import Control, Terms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from solti_store.rules.outcome import Outcome
    from solti_store.store import AsyncTaskStore
    from solti_store.worker import Runner, Worker, WorkerReport

PATIENCE_S = 30.0
HOURS_MS = 3_600_000

# Waits for a file, a hundred times a second.
WAIT = 'wait_for() { while [ ! -e "$1" ]; do sleep 0.01; done; }\n'


async def eventually(happens: Callable[[], Any], what: str = "it") -> Any:
    """Poll until `happens()` (or what it awaits) is true, and return that."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        result = happens()
        if inspect.isawaitable(result):
            result = await result
        if result:
            return result
        await asyncio.sleep(0.01)
    raise AssertionError(f"{what} did not happen within {PATIENCE_S} s")


def written(file: Path) -> str:
    """A file's text without white space around it, empty while it has none."""
    return file.read_text().strip() if file.exists() else ""


def is_alive(pid: int) -> bool:
    """Whether this process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def shell(text: str, *args: object) -> Subprocess:
    """A bash script with `wait_for FILE`."""
    return Subprocess.script(Runtime.BASH, WAIT + text, *map(str, args))


def claim_of(
    kind: TaskKind, timeout_ms: int = HOURS_MS, *, slot: str = "slot", labels: Mapping[str, str] = {}
) -> Claim:
    """A claim as the store hands it out, on attempt 2 of the task `t`; no store knows of it."""
    spec = TaskSpec.builder(slot, kind, timeout_ms).labels(labels).build()
    now = datetime.now(UTC)
    return Claim(task_id=TaskId("t"), seq=7, attempt=2, spec=spec, started_at=now, deadline=now)


def terms(
    left_ms: int = HOURS_MS,
    *,
    grace_s: float = PATIENCE_S,
    env: RunnerEnv = RunnerEnv(),
    output_tail: int = 4096,
) -> Terms:
    """The terms of an attempt that has all its time."""
    return Terms(left_s=left_ms / 1000, grace_s=grace_s, env=env, output_tail=output_tail)


def run_attempt(
    runner: Runner,
    claim: Claim,
    meanwhile: Callable[[Control], Awaitable[None]] | None = None,
    under: Terms | None = None,
) -> Outcome:
    """Run one attempt in a loop of its own, and something beside it."""

    async def both() -> Outcome:
        control = Control()
        async with asyncio.timeout(2 * PATIENCE_S), asyncio.TaskGroup() as group:
            task = group.create_task(runner.run(claim, control, under or terms(claim.spec.timeout)))
            if meanwhile is not None:
                await meanwhile(control)
        return task.result()

    return asyncio.run(both())


async def create(
    store: AsyncTaskStore,
    task_id: str,
    kind: TaskKind,
    *,
    timeout_ms: int = HOURS_MS,
    restart: RestartPolicy = RestartPolicy.never(),
    labels: Mapping[str, str] = {},
) -> None:
    """A task in a slot of its own, which restarts after a millisecond if it does."""
    backoff = BackoffPolicy(jitter=JitterPolicy.NONE, first_ms=1, max_ms=1)
    spec = TaskSpec.builder(task_id, kind, timeout_ms).restart(restart).backoff(backoff).labels(labels).build()
    await store.create(task_id, spec)


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[asyncio.Task[WorkerReport]]:
    """The worker at work; stopped at the end if the test did not see to it."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        await task
