"""DBOS: workflows without steps on one of its queues, which its threads look at every 10 ms.

It has no call to enqueue many, so its client does it by 16 threads. Its worker is always there, in the first process
that was started; between measurements it may run none.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
from dbos import DBOS, DBOSClient

from benchmarks.peers.consumer import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

THREADS = 16
CONCURRENT = 200
POLL_S = 0.01
RUNNING = "SELECT count(*) FROM dbos.workflow_status WHERE status = 'PENDING'"


class Dbos:
    """A workflow that does nothing."""

    async def open(self, url: str) -> None:
        """Connect, migrate, and register the queue."""
        self._done = 0
        self._do: Callable[[], None] = lambda: None
        self._queue: Any = None
        DBOS(
            config={
                "name": "bench",
                "system_database_url": url,
                "sys_db_pool_size": THREADS + 4,
                "application_version": "1",
                "log_level": "ERROR",
            }
        )

        @DBOS.workflow(name="work")  # type: ignore[untyped-decorator]
        async def work(payload: str) -> None:
            self._done += len(payload) > 0
            self._do()

        self._bare = psycopg.connect(url, autocommit=True)
        if not self._count("SELECT count(to_regclass('dbos.workflow_status'))"):
            await asyncio.to_thread(DBOS.launch)
            self._queue = await DBOS.register_queue_async("work", worker_concurrency=0, polling_interval_sec=POLL_S)
        self._client: Any = DBOSClient(system_database_url=url)

    async def create(self, payloads: Sequence[str], clients: int) -> None:
        """Enqueue each."""

        def some(share: Sequence[str]) -> None:
            for text in share:
                options = {"workflow_name": "work", "queue_name": "work", "app_version": "1"}
                self._client.enqueue(options, text)

        shares = (payloads[number::clients] for number in range(clients))
        await asyncio.gather(*(asyncio.to_thread(some, share) for share in shares))

    async def fill(self, payloads: Sequence[str]) -> None:
        """The same by many threads."""
        await self.create(payloads, THREADS)

    async def drain(self, count: int) -> int:
        """Let the worker run until that many are done, or nothing is left."""
        before = self._done
        await self._queue.set_worker_concurrency_async(CONCURRENT)
        await self._until(lambda: self._done - before >= count)
        await self._queue.set_worker_concurrency_async(0)
        await self._until(lambda: not self._count(RUNNING))  # what has run is not yet said to have
        return self._done - before

    async def listen(self, started: Callable[[], None], poll_ms: float) -> None:
        """Let the worker run."""
        del poll_ms
        self._do = started
        await self._queue.set_worker_concurrency_async(CONCURRENT)

    async def stop(self) -> None:
        """Let it run no more."""
        await self._queue.set_worker_concurrency_async(0)

    async def _until(self, ready: Callable[[], bool]) -> None:
        # Another thread's doing, which tells nobody.
        while not ready():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)

    def _count(self, asked: str) -> int:
        row = self._bare.execute(asked.encode()).fetchone()
        return int(row[0]) if row else 0


async def main() -> None:
    """Serve, and leave its threads no time."""
    await serve(Dbos())
    await asyncio.to_thread(DBOS.destroy)


if __name__ == "__main__":
    asyncio.run(main())
