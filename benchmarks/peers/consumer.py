"""What each measured process does on command, one line each way.

| command | does | answers |
|---|---|---|
| `create N C` | creates N tasks one by one, C at the same time | `ok` |
| `fill N` | creates N tasks, the quickest way there is | `ok` |
| `prepare N` | makes what the next `create` or `fill` of N needs, if that is more than text | `ok` |
| `drain N` | works off N of them, or a few more that were under way | how many |
| `listen MS` | has its worker wait for tasks, looking every MS where it looks; says `started NS` for each | `ok` |
| `stop` | ends that | `ok` |
| `stamp` | creates one task | when the call began, in ns of the machine's monotonic clock |
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

BATCH = 100


class Consumer(Protocol):
    """A queue's side."""

    async def open(self, url: str) -> None:
        """Connect; the schema may have to be made."""

    async def create(self, payloads: Sequence[str], clients: int) -> None:
        """Create tasks one by one, by so many at the same time."""

    async def fill(self, payloads: Sequence[str]) -> None:
        """Create them all."""

    async def drain(self, count: int) -> int:
        """Work off so many tasks; how many were done."""

    async def listen(self, started: Callable[[], None], poll_ms: float) -> None:
        """Start a worker that is ready when this returns, and calls `started` first thing in each task."""

    async def stop(self) -> None:
        """End that worker."""


@runtime_checkable
class Preparing(Protocol):
    """One that creates from other things than text."""

    def prepare(self, payloads: Sequence[str]) -> None:
        """Make them, for the next call that creates."""


async def by_turns(payloads: Sequence[str], clients: int, create: Callable[[str], Awaitable[object]]) -> None:
    """Have coroutines create the tasks, each its share."""

    async def client(share: Sequence[str]) -> None:
        for payload in share:
            await create(payload)

    await asyncio.gather(*(client(payloads[number::clients]) for number in range(clients)))


def said_started() -> None:
    """Tell that a task begins, and when."""
    print("started", time.monotonic_ns(), flush=True)


async def serve(consumer: Consumer) -> None:
    """Do what standard input says. Arguments: the database's URL, and a file with a payload a line."""
    url, payloads = sys.argv[1:3]
    lines = await asyncio.to_thread(Path(payloads).read_text, "utf-8")
    given = itertools.cycle(lines.splitlines())

    def some(count: str) -> list[str]:
        return list(itertools.islice(given, int(count)))

    await consumer.open(url)
    # What is imported stays: a collection need not look at it, and would for a third of the time.
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, *words = line.split()
        answer: object = "ok"
        if command == "create":
            await consumer.create(some(words[0]), int(words[1]))
        elif command == "fill":
            await consumer.fill(some(words[0]))
        elif command == "prepare" and isinstance(consumer, Preparing):
            consumer.prepare(some(words[0]))
        elif command == "drain":
            answer = await consumer.drain(int(words[0]))
        elif command == "listen":
            await consumer.listen(said_started, float(words[0]))
        elif command == "stop":
            await consumer.stop()
        elif command == "stamp":
            payload, answer = some("1"), time.monotonic_ns()
            await consumer.create(payload, 1)
        else:
            raise ValueError(line)
        print(answer, flush=True)
