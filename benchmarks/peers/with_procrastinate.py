"""Procrastinate: its worker, 20 jobs at once, until nothing is left. It fetches and finishes job by job."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import procrastinate

from benchmarks.peers.consumer import serve


class Procrastinate:
    """A job that does nothing."""

    async def open(self, url: str) -> None:
        """Connect, and make the schema if it is not there."""
        logging.disable(logging.WARNING)
        self._app: Any = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, max_size=20))
        self._done = 0

        async def work(payload: str) -> None:
            self._done += len(payload) > 0

        self._work = self._app.task(name="work")(work)
        await self._app.open_async()
        found = await self._app.connector.execute_query_one_async("SELECT to_regclass('procrastinate_jobs') AS jobs")
        if found["jobs"] is None:
            await self._app.schema_manager.apply_schema_async()

    async def fill(self, payloads: list[str]) -> None:
        """Defer in batches."""
        for start in range(0, len(payloads), 1000):
            await self._work.batch_defer_async(*({"payload": text} for text in payloads[start : start + 1000]))

    async def drain(self, count: int) -> int:  # noqa: ARG002 - the worker runs until nothing is left
        """Run the worker."""
        before = self._done
        await self._app.run_worker_async(wait=False, concurrency=20, install_signal_handlers=False, listen_notify=False)
        return self._done - before


if __name__ == "__main__":
    asyncio.run(serve(Procrastinate()))
