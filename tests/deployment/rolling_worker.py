"""One process of an application that goes on while others migrate its database; everything is written down.

    python -m deployment.rolling_worker URL DIRECTORY NAME SEED LEASE_S MAX_SLOT_QUEUE

As `chaos.worker`, with two differences. Those of even number work, the others create and change. And nothing may fail:
nobody kills them or their connections, so an operation takes the time it takes and then succeeds, or is refused for a
reason that stands in the contract.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, cast

from chaos.worker import Worker

from solti_store import SoltiStoreError, TaskStore

# Few enough operations for a machine of two cores to keep up, and for a checker to read them all.
PACE_S = 0.01


class Timed:
    """A store, and how long its operations took."""

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self.waits: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            try:
                return method(*args, **kwargs)
            finally:
                self.waits[name] = max(self.waits.get(name, 0.0), time.monotonic() - began)

        return call


class RollingWorker(Worker):
    """Works or creates, and puts up with no failure."""

    def __init__(self, url: str, directory: Path, name: str, **options: Any) -> None:
        super().__init__(url, directory, name, **options)
        self.store.close()
        self.timed = Timed(TaskStore.open(url, max_slot_queue=options["max_slot_queue"], pool_size=2))
        self.store = cast("TaskStore", self.timed)
        self.works = int(name.removeprefix("w")) % 2 == 0

    def run(self) -> None:
        if self.works:
            self.agent = self.store.register(self.name, lease=self.lease)
            self.beat = time.monotonic()
        try:
            while not self.says("stop"):
                if self.works:
                    self.work()
                elif not self.says("drain"):
                    self.make()
                time.sleep(PACE_S)
        finally:
            (self.directory / f"{self.name}.waits").write_text(json.dumps(self.timed.waits))

    def work(self) -> None:
        if self.says("drain"):
            self.drain()
            return
        self.heartbeat()
        dice = self.rng.random()
        if dice < 0.45:
            self.claim(self.rng.choice([1, 5, 20]))
        elif dice < 0.90:
            self.finish_some()
        elif dice < 0.95:
            self.again()
        else:
            self.store.reap()

    def make(self) -> None:
        dice = self.rng.random()
        if dice < 0.55 or not self.known:
            self.create()
        elif dice < 0.65:
            self.create_many()
        elif dice < 0.85:
            self.store.list()
        else:
            self.change(self.rng.choice(self.known))

    def refused(self, task_id: str, error: SoltiStoreError) -> None:
        if type(error).__name__ not in {"SlotBusy", "SlotQueueFull"}:
            raise error
        super().refused(task_id, error)


def main() -> None:
    url, directory, name, seed, lease_s, max_slot_queue = sys.argv[1:]
    RollingWorker(
        url, Path(directory), name, seed=int(seed), lease_s=float(lease_s), max_slot_queue=int(max_slot_queue)
    ).run()


if __name__ == "__main__":
    main()
