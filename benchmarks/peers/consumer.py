"""What each measured process does: fill and drain on command, one line each way.

`fill N` creates N tasks and answers `ok`; `drain N` works off N and answers how many it did. A peer whose worker stops
only when there is nothing left does not heed the N.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path
from typing import Protocol

BATCH = 100


class Consumer(Protocol):
    """A queue's side."""

    async def open(self, url: str) -> None:
        """Connect; the schema may have to be made."""

    async def fill(self, payloads: list[str]) -> None:
        """Create a task for each of these payloads."""

    async def drain(self, count: int) -> int:
        """Work off so many tasks; how many were done."""


async def serve(consumer: Consumer) -> None:
    """Do what standard input says. Arguments: the database's URL, and a file with a payload a line."""
    url, payloads = sys.argv[1:3]
    lines = await asyncio.to_thread(Path(payloads).read_text, "utf-8")
    given = itertools.cycle(lines.splitlines())
    await consumer.open(url)
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command, number = line.split()
        if command == "fill":
            await consumer.fill(list(itertools.islice(given, int(number))))
            print("ok", flush=True)
        else:
            print(await consumer.drain(int(number)), flush=True)
