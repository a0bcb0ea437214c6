"""This project, by plain calls, by calls of two threads, by its worker."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from benchmarks.peers.consumer import BATCH, serve
from solti_store import AsyncTaskStore, Embedded, Outcome, TaskSpec, TaskStore
from solti_store.migrate import upgrade
from solti_store.model import Labels, Slot
from solti_store.worker import EmbeddedRunner, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from solti_store import Claim
    from solti_store.worker import EmbeddedCall

CLIENTS = 16
CONCURRENCY = 100
PREFETCH = 400
# How many batches are claimed before the first of them is finished.
AHEAD = 2
_DAY = timedelta(days=1)  # nobody sends heartbeats for the calls


class Solti:
    """Tasks that do nothing.

    Args:
        threads: 1 claims and finishes in turn; of 2 one claims and the other finishes; 0 leaves it to the worker.
    """

    def __init__(self, threads: int) -> None:
        self._numbers = itertools.count()
        self._threads = threads
        self._ready: list[tuple[str, TaskSpec]] = []

    async def open(self, url: str) -> None:
        """Migrate, connect, register."""
        upgrade(url)
        self._url = url
        self._store = TaskStore.open(url, pool_size=CLIENTS)
        if self._threads:
            self._agent = self._store.register("peer", lease=_DAY)
        self._pool = ThreadPoolExecutor(CLIENTS)

    async def create(self, payloads: Sequence[str], clients: int) -> None:
        """Create each, by one thread for each client."""
        made = self._made(payloads)

        def some(number: int) -> None:
            for name, spec in made[number::clients]:
                self._store.create(name, spec)

        if clients == 1:
            some(0)  # a thread of its own would only be in the way
        else:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(self._pool, some, number) for number in range(clients)))

    async def fill(self, payloads: Sequence[str]) -> None:
        """Create tasks in slots of their own, at once."""
        self._store.create_many(self._made(payloads))

    async def drain(self, count: int) -> int:
        """Claim and finish, at most a batch at once; or have the worker do it, with an async function."""
        if not self._threads:
            return await self._have_done(count)
        if self._threads == 1:
            for claims in self._claimed(count):
                self._finish(claims)
            return count
        reports: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as other:
            for claims in self._claimed(count):
                reports.append(other.submit(self._finish, claims))
                if len(reports) > AHEAD:
                    reports.popleft().result()
        for report in reports:
            report.result()
        return count

    async def listen(self, started: Callable[[], None], poll_ms: float) -> None:
        """Have the worker wait for tasks; or only look, every so many milliseconds."""
        self._waiting = await AsyncTaskStore.open(self._url)
        options = {"poll": timedelta(milliseconds=poll_ms), "listen": False} if poll_ms else {}
        self._worker = _worker(self._waiting, started, **options)
        self._running = asyncio.create_task(self._worker.run())
        await asyncio.sleep(1)

    async def stop(self) -> None:
        """Drain that worker."""
        self._worker.drain()
        await self._running
        await self._waiting.close()

    def prepare(self, payloads: Sequence[str]) -> None:
        """Parse and check the specs."""
        self._ready = self._made(payloads)

    def _made(self, payloads: Sequence[str]) -> list[tuple[str, TaskSpec]]:
        ready, self._ready = self._ready, []
        if len(ready) == len(payloads):
            return ready
        names = [f"{os.getpid()}-{next(self._numbers)}" for _ in payloads]
        as_wanted = _embedded if not self._threads else TaskSpec.from_json
        return [(name, as_wanted(text).replace(slot=Slot(name))) for name, text in zip(names, payloads, strict=True)]

    def _claimed(self, count: int) -> Iterator[Sequence[Claim]]:
        left = count
        while left:
            claims = self._store.claim(self._agent, limit=min(BATCH, left))
            yield claims
            left -= len(claims)

    def _finish(self, claims: Sequence[Claim]) -> None:
        if any(self._store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims])):
            raise RuntimeError("a finish was refused")

    async def _have_done(self, count: int) -> int:
        done = 0

        def do() -> None:
            nonlocal done
            done += 1
            if done == count:
                worker.drain()  # what it has claimed ahead is still done

        async with await AsyncTaskStore.open(self._url) as store:
            worker = _worker(store, do, concurrency=CONCURRENCY, prefetch=PREFETCH)
            await worker.run(until_idle=True)
        return done


def _worker(store: AsyncTaskStore, do: Callable[[], None], **options: Any) -> Worker:  # noqa: ANN401
    async def work(_: EmbeddedCall) -> None:
        do()

    return Worker(store, "peer", runners=[EmbeddedRunner({"work": work})], **options)


def _embedded(text: str) -> TaskSpec:
    """The payload as a task for the worker's function, with as many bytes as before: in labels."""
    payload = TaskSpec.from_json(text)
    labels = {"function": "work", "pad-0": "x" * 60, "pad-1": "x" * 60}
    return payload.replace(kind=Embedded(), labels=Labels({**payload.labels, **labels}))


if __name__ == "__main__":
    asyncio.run(serve(Solti(int(sys.argv[3]))))
