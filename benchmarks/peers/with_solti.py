"""This project: `TaskStore.claim` and `TaskStore.finish_many`, in batches."""

from __future__ import annotations

import asyncio
import itertools
import os
from datetime import timedelta

from benchmarks.peers.consumer import BATCH, serve
from solti_store import Outcome, TaskSpec, TaskStore
from solti_store.migrate import upgrade
from solti_store.model import Slot


class Solti:
    """Plain calls: nothing here happens at the same time."""

    async def open(self, url: str) -> None:
        """Migrate, connect, register."""
        upgrade(url)
        self._store = TaskStore.open(url)
        self._agent = self._store.register("peer", lease=timedelta(days=1))
        self._numbers = itertools.count()

    async def fill(self, payloads: list[str]) -> None:
        """Create tasks in slots of their own."""
        names = [f"{os.getpid()}-{next(self._numbers)}" for _ in payloads]
        self._store.create_many(
            [
                (name, TaskSpec.from_json(text).replace(slot=Slot(name)))
                for name, text in zip(names, payloads, strict=True)
            ]
        )

    async def drain(self, count: int) -> int:
        """Claim and finish, at most a batch at once."""
        left = count
        while left:
            claims = self._store.claim(self._agent, limit=min(BATCH, left))
            if any(self._store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims])):
                raise RuntimeError("a finish was refused")
            left -= len(claims)
        return count


if __name__ == "__main__":
    asyncio.run(serve(Solti()))
