"""What the worker's tests share: tasks, and waiting for what must happen."""

from __future__ import annotations

import asyncio
import inspect
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil

from solti_store.model import BackoffPolicy, JitterPolicy, RestartPolicy, Runtime, Subprocess, TaskSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from solti_store.store import AsyncTaskStore
    from solti_store.worker import Worker, WorkerReport

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


async def create(
    store: AsyncTaskStore,
    task_id: str,
    kind: Subprocess,
    *,
    timeout_ms: int = HOURS_MS,
    restart: RestartPolicy = RestartPolicy.never(),
) -> None:
    """A task in a slot of its own, which restarts after a millisecond if it does."""
    backoff = BackoffPolicy(jitter=JitterPolicy.NONE, first_ms=1, max_ms=1)
    spec = TaskSpec.builder(task_id, kind, timeout_ms).restart(restart).backoff(backoff).build()
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
