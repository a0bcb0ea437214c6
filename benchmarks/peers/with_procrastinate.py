"""Procrastinate: its worker, 20 jobs at once. It fetches and finishes job by job, and knows no batches."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import procrastinate

from benchmarks.peers.consumer import by_turns, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONCURRENT = 20


class Procrastinate:
    """A job that does nothing."""

    async def open(self, url: str) -> None:
        """Connect, and make the schema if it is not there."""
        logging.disable(logging.WARNING)
        self._app: Any = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, max_size=CONCURRENT))
        self._done = 0
        self._do: Callable[[], None] = lambda: None

        async def work(payload: str) -> None:
            self._done += len(payload) > 0
            self._do()

        self._work = self._app.task(name="work")(work)
        await self._app.open_async()
        found = await self._app.connector.execute_query_one_async("SELECT to_regclass('procrastinate_jobs') AS jobs")
        if found["jobs"] is None:
            await self._app.schema_manager.apply_schema_async()

    async def create(self, payloads: Sequence[str], clients: int) -> None:
        """Defer each."""
        await by_turns(payloads, clients, lambda text: self._work.defer_async(payload=text))

    async def fill(self, payloads: Sequence[str]) -> None:
        """Defer in batches."""
        for start in range(0, len(payloads), 1000):
            await self._work.batch_defer_async(*({"payload": text} for text in payloads[start : start + 1000]))

    async def drain(self, count: int) -> int:
        """Run the worker until that many are done, or nothing is left."""
        before = self._done
        enough = asyncio.Event()

        def do() -> None:
            if self._done - before >= count:
                enough.set()

        self._do = do
        worker = asyncio.create_task(self._worker(wait=False, listen_notify=False))
        waiting = asyncio.create_task(enough.wait())
        await asyncio.wait({worker, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        # With nothing left it ends by itself; else what runs comes to its end.
        await asyncio.wait({worker}, timeout=0.05)
        await self._end(worker)
        return self._done - before

    async def listen(self, started: Callable[[], None], poll_ms: float) -> None:
        """Have the worker wait for notifications."""
        del poll_ms
        self._do = started
        self._listening = asyncio.create_task(self._worker(wait=True, listen_notify=True))
        await asyncio.sleep(1)  # it does not tell when it is ready

    async def stop(self) -> None:
        """End that worker."""
        await self._end(self._listening)

    async def _worker(self, *, wait: bool, listen_notify: bool) -> None:
        await self._app.run_worker_async(
            wait=wait, concurrency=CONCURRENT, install_signal_handlers=False, listen_notify=listen_notify
        )

    async def _end(self, worker: asyncio.Task[None]) -> None:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(serve(Procrastinate()))
