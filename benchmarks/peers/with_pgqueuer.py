"""PgQueuer: the two calls its queue manager makes, `dequeue` and `log_jobs`, in batches, on its quickest driver."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import EntrypointExecutionParameter, Queries

from benchmarks.peers.consumer import BATCH, serve


class PgQueuer:
    """Without the manager: no job is run, no heartbeat sent."""

    async def open(self, url: str) -> None:
        """Connect, and make the schema (all tables logged) if it is not there."""
        self._queries: Any = Queries(AsyncpgDriver(await asyncpg.connect(url)))
        self._id: Any = uuid.uuid4()
        if not await self._queries.has_table(self._queries.qbe.settings.queue_table):
            await self._queries.install()

    async def fill(self, payloads: list[str]) -> None:
        """Enqueue."""
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


if __name__ == "__main__":
    uvloop.run(serve(PgQueuer()))
