"""The registry beside its model: random operations, the same in both, and all that can be seen compared after each.

`SOLTI_STORE_TEST_EXAMPLES` is how many histories to try instead of a few: at random instead of always the same, and one
that fails is made as short as it can be, which takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import cast

import pytest
from checking.drivers import MAX_SLOT_QUEUE, OpsDriver, StoreDriver
from checking.machine import RegistryMachine, SteppingMachine, explore
from hypothesis import Phase, settings
from sqlalchemy import Connection, create_engine
from support import BlockingStore

from solti_store import TaskStore

EXAMPLES = int(os.environ.get("SOLTI_STORE_TEST_EXAMPLES", "0"))

# What a run has to have met, or it has tested little: the rare ends of the contract.
RARE = [
    "create: SlotBusy",
    "create: SlotQueueFull",
    "create_many: SlotBusy",
    "replace: Invalid",
    "replace: VersionConflict",
    "start: SlotBusy",
    "claim of 2",
    "finish: LeaseLost",
    "reap: failed",
    "reap: timeout",
    "reap: canceled",
    "prune: tasks",
    "queue of 2",
]


GIVEN = settings(derandomize=not EXAMPLES, report_multiple_bugs=False)
PHASES = [Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate]


@pytest.fixture
def conn(database_url: str) -> Iterator[Connection]:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_ops_on_a_clock_that_is_moved(conn: Connection) -> None:
    reached = explore(SteppingMachine, OpsDriver(conn), GIVEN, *PHASES, examples=EXAMPLES or 60, steps=50)
    assert [what for what in RARE if not reached[what]] == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_public_stores(conn: Connection, database_url: str, kind: str) -> None:
    store: TaskStore
    if kind == "sync":
        store = TaskStore.open(database_url, max_slot_queue=MAX_SLOT_QUEUE)
    else:
        store = cast("TaskStore", BlockingStore(database_url, max_slot_queue=MAX_SLOT_QUEUE))
    driver = StoreDriver(store, conn.execution_options(isolation_level="AUTOCOMMIT"))
    reached = explore(RegistryMachine, driver, GIVEN, *PHASES, examples=EXAMPLES // 5 or 10, steps=40)
    assert reached["queue of 1"]
    store.close()
