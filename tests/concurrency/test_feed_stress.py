"""Many writers, transactions of every length, and readers that come back: each event once, in order, none missed.

Beside the feed two others read the same table, as is often done, and wrongly: by the last number, and by the last
number among transactions older than all that go on. That they miss events shows that there was something to miss.
`SOLTI_STORE_TEST_FEED_EVENTS` sets how many events, 12,000 if not given.
"""

from __future__ import annotations

import os
import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, text
from support import connect, spec

from solti_store import TaskStore
from solti_store.rules.feed_position import FeedPosition

if TYPE_CHECKING:
    from sqlalchemy import Engine

EVENTS = int(os.environ.get("SOLTI_STORE_TEST_FEED_EVENTS", "12000"))
WRITERS = 16
READERS = 2
_BATCH = 10
_SLOW_S = 3

NAIVE = "SELECT event FROM solti.task_events WHERE event > %s ORDER BY event"
BY_XMIN = (
    "SELECT event FROM solti.task_events WHERE event > %s AND xid < pg_snapshot_xmin(pg_current_snapshot())"
    " ORDER BY event"
)


class Stress:
    def __init__(self, url: str, store: TaskStore, engine: Engine) -> None:
        self.url = url
        self.store = store
        self.engine = engine
        self.start = store.token()
        self.written = 0
        self.count = threading.Lock()
        self.over = threading.Event()

    def write(self, writer: int) -> None:
        """Transactions of one to four statements, a fifth of them rolled back."""
        chance = random.Random(writer)
        mine: list[str] = []
        for number in range(10**9):
            if self.written >= EVENTS:
                return
            with self.engine.connect() as conn:
                store, made, events = self.store.using(conn), list(mine), 0
                for step in range(chance.randint(1, 4)):
                    if made and chance.random() < 0.4:
                        one = made[chance.randrange(len(made))]
                        if chance.random() < 0.5:
                            store.cancel(one)
                            events += 1
                        else:
                            store.delete(one)
                            made.remove(one)
                            events += 1
                    else:
                        names = [f"{writer}-{number}-{step}-{n}" for n in range(_BATCH)]
                        store.create_many([(name, spec(name)) for name in names])
                        made += names
                        events += _BATCH
                    if writer == 0 and number % 20 == 0:
                        conn.execute(text("SELECT pg_sleep(:s)"), {"s": _SLOW_S / 4})
                if chance.random() < 0.2:
                    conn.rollback()
                else:
                    conn.commit()
                    mine = made[-100:]
                    with self.count:
                        self.written += events

    def read(self, reader: int) -> list[int]:
        """The feed, by a reader that crashes now and then and goes on from what it did last."""
        chance = random.Random(-1 - reader)
        token, seen = self.start, []
        while True:
            last_round = self.over.is_set()
            found = self.store.changes(token, limit=chance.choice([1, 7, 100, 1000]))
            if found.changes and chance.random() < 0.3:
                done = found.changes[: chance.randint(0, len(found.changes))]
                seen += [_event(change.token) for change in done]
                token = done[-1].token if done else token
                continue
            seen += [_event(change.token) for change in found.changes]
            token = found.token
            if last_round and found.is_all and not found.changes:
                return seen

    def read_wrongly(self, statement: str) -> list[int]:
        """By the last number that was seen."""
        seen = [0]
        with connect(self.url) as conn:
            while True:
                last_round = self.over.is_set()
                seen += [row[0] for row in conn.execute(statement.encode(), [seen[-1]])]
                if last_round:
                    return seen[1:]


def _event(token: str) -> int:
    return FeedPosition.decode(token).after


def test_no_event_is_missed_or_read_twice_or_out_of_order(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=WRITERS)
    with TaskStore.open(database_url) as store, ThreadPoolExecutor(WRITERS) as there, ThreadPoolExecutor(8) as here:
        stress = Stress(database_url, store, engine)
        readers = [here.submit(stress.read, number) for number in range(READERS)]
        wrong = {name: here.submit(stress.read_wrongly, name) for name in (NAIVE, BY_XMIN)}
        for writing in [there.submit(stress.write, number) for number in range(WRITERS)]:
            writing.result()
        stress.over.set()
        results = [reading.result() for reading in readers]
        missed = {name: reading.result() for name, reading in wrong.items()}
    engine.dispose()
    with connect(database_url) as conn:
        rows = conn.execute("SELECT event, seq FROM solti.task_events").fetchall()
    of_task: dict[int, int] = dict(rows)
    assert len(of_task) >= EVENTS
    for seen in results:
        assert len(seen) == len(set(seen)), "read twice"
        assert set(seen) == set(of_task), "missed"
        last: defaultdict[int, int] = defaultdict(int)
        for event in seen:
            assert event > last[of_task[event]], "out of order"
            last[of_task[event]] = event
    for statement, seen in missed.items():
        assert set(seen) < set(of_task), f"missed nothing: {statement}"
