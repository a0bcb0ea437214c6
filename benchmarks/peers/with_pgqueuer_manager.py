"""PgQueuer by its own worker: the queue manager runs jobs that do nothing, until there are none left."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer import QueueManager
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.peers.consumer import BATCH, serve

CONCURRENT = 1000


class PgQueuerManager:
    """As its documentation has it, with a pool and with batches."""

    async def open(self, url: str) -> None:
        """Connect, and make the schema (all tables logged) if it is not there."""
        self._pool: Any = await asyncpg.create_pool(url, min_size=2, max_size=4)
        self._queries: Any = Queries(AsyncpgPoolDriver(self._pool))
        if not await self._queries.has_table(self._queries.qbe.settings.queue_table):
            await self._queries.install()

    async def fill(self, payloads: list[str]) -> None:
        """Enqueue."""
        await self._queries.enqueue(["work"] * len(payloads), [text.encode() for text in payloads], [0] * len(payloads))

    async def drain(self, count: int) -> int:
        """Work until nothing is left, whoever is given it."""
        del count
        done = 0
        manager: Any = QueueManager(self._queries)

        @manager.entrypoint("work")  # type: ignore[untyped-decorator]
        async def work(_job: Any) -> None:  # noqa: ANN401 - of another package
            nonlocal done
            done += 1

        await manager.run(
            batch_size=BATCH,
            mode=QueueExecutionMode.drain,
            dequeue_timeout=timedelta(seconds=5),
            max_concurrent_tasks=CONCURRENT,
        )
        return done


if __name__ == "__main__":
    uvloop.run(serve(PgQueuerManager()))
