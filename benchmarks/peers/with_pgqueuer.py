"""PgQueuer on its quickest driver: by the two calls that its queue manager makes for a batch, or by the manager."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import uvloop
from pgqueuer import QueueManager
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import EntrypointExecutionParameter, Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.peers.consumer import BATCH, by_turns, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONCURRENT = 1000
CLIENTS = 16


class PgQueuer:
    """By `dequeue` and `log_jobs`: no job is run, no heartbeat sent."""

    async def open(self, url: str) -> None:
        """Connect, and make the schema (all tables logged) if it is not there."""
        self._pool: Any = await asyncpg.create_pool(url, min_size=2, max_size=CLIENTS)
        self._queries: Any = Queries(AsyncpgPoolDriver(self._pool))
        self._id: Any = uuid.uuid4()
        if not await self._queries.has_table(self._queries.qbe.settings.queue_table):
            await self._queries.install()

    async def create(self, payloads: Sequence[str], clients: int) -> None:
        """Enqueue each."""
        await by_turns(payloads, clients, lambda text: self._queries.enqueue("work", text.encode()))

    async def fill(self, payloads: Sequence[str]) -> None:
        """Enqueue them all at once."""
        await self._queries.enqueue(["work"] * len(payloads), [text.encode() for text in payloads], [0] * len(payloads))

    async def drain(self, count: int) -> int:
        """Dequeue and acknowledge, at most a batch at once."""
        left = count
        while left:
            jobs = await self._queries.dequeue(
                batch_size=min(BATCH, left),
                entrypoints={"work": EntrypointExecutionParameter(concurrency_limit=0)},
                queue_manager_id=self._id,
                global_concurrency_limit=None,
                heartbeat_timeout=timedelta(seconds=30),
            )
            if jobs:
                await self._queries.log_jobs([(job, "successful", None) for job in jobs])
            left -= len(jobs)
        return count

    async def listen(self, started: Callable[[], None], poll_ms: float) -> None:
        """Have the manager wait for notifications."""
        del poll_ms
        self._manager, self._work = self._managed(started, QueueExecutionMode.continuous)
        await asyncio.sleep(1)  # it does not tell when it is ready

    async def stop(self) -> None:
        """Shut the manager down."""
        self._manager.shutdown.set()
        await self._work

    def _managed(self, do: Callable[[], None], mode: Any) -> tuple[Any, asyncio.Task[None]]:  # noqa: ANN401 - theirs
        # With a driver of its own: a manager that ends closes it.
        queries: Any = Queries(AsyncpgPoolDriver(self._pool))
        manager: Any = QueueManager(queries)

        @manager.entrypoint("work")  # type: ignore[untyped-decorator]
        async def work(_job: Any) -> None:  # noqa: ANN401 - of another package
            do()

        running = manager.run(
            batch_size=BATCH,
            mode=mode,
            dequeue_timeout=timedelta(seconds=5),
            max_concurrent_tasks=CONCURRENT,
        )
        return manager, asyncio.create_task(running)


class PgQueuerManager(PgQueuer):
    """By the manager, which runs jobs that do nothing; as its documentation has it, with a pool and with batches."""

    async def drain(self, count: int) -> int:
        """Work until that many are done, or nothing is left."""
        done = 0

        def do() -> None:
            nonlocal done
            done += 1
            if done == count:
                # It still takes what it has fetched to its end.
                manager.shutdown.set()

        manager, work = self._managed(do, QueueExecutionMode.drain)
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return done


if __name__ == "__main__":
    uvloop.run(serve(PgQueuerManager() if "manager" in sys.argv[3:] else PgQueuer()))
