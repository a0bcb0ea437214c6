"""What each operation costs in counts: statements, round trips, shared buffers, write-ahead log.

Counted on the real server and not timed, so a machine's moods do not matter: messages in libpq's own trace of the
store's connection, buffers in the statistics of the test's own tables, and the log in those of the store's backend,
which PostgreSQL has from version 18 on. The least of several repetitions counts, with statements prepared.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import pq
from support import connect, spec

from solti_store import Outcome, TaskQuery, TaskStore
from solti_store.engine import open_engine
from solti_store.model import Labels, Selector

if TYPE_CHECKING:
    import psycopg

    from solti_store import TaskSpec

OK = Outcome.succeeded(0)
BATCH = 100
# psycopg prepares a statement at its sixth execution, PostgreSQL settles on a plan at the sixth of those.
WARM = 12
REPEATED = 8
PAGE_BYTES = 8192

# How much more than was measured is let pass: an index more on a hot table is not. Messages are the same each time; how
# full pages are is not quite.
BUFFERS_HEADROOM, PAGES_HEADROOM = 1.03, 1
# A row's new version is now and then in another page than the old one: 24 bytes more each time.
WAL_HEADROOM, ROW_HEADROOM = 1.02, 24


@dataclass
class Cost:
    """What an operation takes: as it was measured when this was written, or now.

    Attributes:
        statements: Without those that begin and end transactions.
        round_trips: How often the client waits for the server.
        buffers: Pages of tables and indexes that were looked at, each time they were.
        wal: Bytes of write-ahead log; None where the server cannot tell.
        buffers_before_17: The same on older servers, which descend an index once for each value of a list.
    """

    statements: int = 0
    round_trips: int = 0
    buffers: int = 0
    wal: int | None = 0
    buffers_before_17: int | None = None


# The most of some fifty runs, on a busy machine: the batches find their pages in an order that is not quite the same.
MEASURED = {
    "create": Cost(1, 1, 20, 1_754),
    "create_many 1000": Cost(6, 8, 32_300, 1_765_000),
    "claim 100": Cost(1, 1, 2_500, 98_000),
    "finish_many 100": Cost(1, 1, 3_450, 117_500),
    "empty claim": Cost(1, 1, 6, 0),
    "heartbeat": Cost(1, 1, 20, 314),
    "get": Cost(1, 1, 6, 0),
    "update": Cost(2, 2, 40, 1_280),
    "cancel": Cost(4, 6, 47, 855),
    "page of 100 with a selector": Cost(3, 3, 318, 0, buffers_before_17=518),
    "changes, 100 events": Cost(2, 2, 807, 0),
}


@dataclass
class Place:
    """A database, and the store's only connection to it, watched from another one."""

    store: TaskStore
    driver: psycopg.Connection[Any]
    watching: psycopg.Connection[Any]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def fill(self, count: int) -> list[str]:
        """Create so many tasks, each in a slot of its own."""
        made = self.made(count)
        self.store.create_many(made)
        return [name for name, _ in made]

    def made(self, count: int) -> list[tuple[str, TaskSpec]]:
        names = [f"t-{next(self.numbers):06}" for _ in range(count)]
        return [(name, spec(f"s-{name}", labels=Labels({"parity": f"{ord(name[-1]) % 2}"}))) for name in names]

    def thinned(self, names: list[str]) -> list[str]:
        """Delete nine tasks of ten, and give their space back; those that are left."""
        left = names[::10]
        self.watching.execute("DELETE FROM solti.tasks WHERE id <> ALL (%s)", [left])
        dead = 1
        while dead:  # as long as a snapshot of somebody's is in the way, such as autovacuum's of the catalogs
            self.watching.execute("SELECT pg_stat_force_next_flush()")
            self.watching.execute("VACUUM solti.tasks, solti.task_status")
            dead = self._number("SELECT sum(n_dead_tup) FROM pg_stat_user_tables")
        return left

    def cost(self, operation: Callable[[], object]) -> Cost:
        """Run it, and count."""
        before = self._touched()
        with tempfile.TemporaryFile() as trace:
            self.driver.pgconn.trace(trace.fileno())
            self.driver.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
            try:
                operation()
            finally:
                self.driver.pgconn.untrace()
            trace.seek(0)
            said = [line.split("\t") for line in trace.read().decode(errors="replace").splitlines()]
        after = self._touched()
        # A Query is a statement and its round trip; others end with a Sync.
        asked = [words for words in said if words[0] == "F" and words[2] in ("Query", "Execute")]
        simple = [words[3].strip().strip('"') for words in asked if words[2] == "Query"]
        transactions = sum(text.startswith(("BEGIN", "COMMIT", "ROLLBACK")) for text in simple)
        trips = sum(words[0] == "B" and words[2] == "ReadyForQuery" for words in said)
        wal = None if after[1] is None or before[1] is None else after[1] - before[1]
        return Cost(len(asked) - transactions, trips, after[0] - before[0], wal)

    def _touched(self) -> tuple[int, int | None]:
        # Without this a backend tells its counts once a second.
        self.driver.execute("SELECT pg_stat_force_next_flush()")
        buffers = self._number(
            """
            SELECT sum(heap_blks_read + heap_blks_hit + COALESCE(idx_blks_read + idx_blks_hit, 0)
                       + COALESCE(toast_blks_read + toast_blks_hit + tidx_blks_read + tidx_blks_hit, 0))
            FROM pg_statio_user_tables
            """
        )
        if self.watching.info.server_version < 180000:
            return buffers, None
        # Whole pages are logged after a checkpoint, whoever asked for it: they are not the operation's.
        pid = self.driver.info.backend_pid
        wal = self._number(
            f"SELECT wal_bytes - {PAGE_BYTES} * wal_fpi FROM pg_stat_get_backend_wal({pid})"  # of two numbers
        )
        return buffers, wal

    def _number(self, asked: str) -> int:
        row = self.watching.execute(asked.encode()).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def place(database_url: str) -> Iterator[Place]:
    with connect(database_url) as watching, _engine(database_url) as engine:
        tables = watching.execute("SELECT format('%I.%I', schemaname, relname) FROM pg_stat_user_tables").fetchall()
        for (table,) in tables:
            watching.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
        yield Place(TaskStore(engine), driver, watching)


@contextmanager
def _engine(url: str) -> Iterator[Any]:
    engine = open_engine(url, pool_size=1, max_overflow=0)
    yield engine
    engine.dispose()


# Each prepares what it needs, and then one operation after the other: what is returned is counted.
Operations = Callable[[Place], Iterator[Callable[[], object]]]


def creating(place: Place) -> Iterator[Callable[[], object]]:
    while True:
        ((name, one),) = place.made(1)
        yield lambda name=name, one=one: place.store.create(name, one)  # type: ignore[misc]


def creating_many(place: Place) -> Iterator[Callable[[], object]]:
    while True:
        made = place.made(1000)
        yield lambda made=made: place.store.create_many(made)  # type: ignore[misc]


def claiming(place: Place) -> Iterator[Callable[[], object]]:
    agent = place.store.register("w")
    place.fill((WARM + REPEATED + 1) * BATCH)
    claimed: list[Any] = []
    while True:
        yield lambda: claimed.extend(place.store.claim(agent, limit=BATCH))
        assert len(claimed) == BATCH
        assert place.store.finish_many([(claim, OK) for claim in claimed]) == [None] * BATCH
        claimed.clear()


def finishing(place: Place) -> Iterator[Callable[[], object]]:
    agent = place.store.register("w")
    place.fill((WARM + REPEATED + 1) * BATCH)
    while True:
        results = [(claim, OK) for claim in place.store.claim(agent, limit=BATCH)]
        assert len(results) == BATCH
        yield lambda results=results: place.store.finish_many(results)  # type: ignore[misc]


def claiming_nothing(place: Place) -> Iterator[Callable[[], object]]:
    agent = place.store.register("w")
    place.fill(1)
    place.store.finish_many([(claim, OK) for claim in place.store.claim(agent, limit=BATCH)])
    while True:
        yield lambda: place.store.claim(agent, limit=BATCH)


def beating(place: Place) -> Iterator[Callable[[], object]]:
    agent = place.store.register("w")
    while True:
        # Else old versions stay for as long as anybody on the server has an open transaction, as other tests have. It
        # makes that 20 pages instead of 12, and always as many.
        place.watching.execute("VACUUM solti.agents")
        place.watching.execute("SELECT pg_stat_force_next_flush()")
        yield lambda: place.store.heartbeat(agent)


def getting(place: Place) -> Iterator[Callable[[], object]]:
    for name in itertools.cycle(place.fill(1000)):
        yield lambda name=name: place.store.get(name)  # type: ignore[misc]


def updating(place: Place) -> Iterator[Callable[[], object]]:
    # With room in each page: whether old versions are cleared away in time depends on what others do.
    for name in place.thinned(place.fill(2000)):
        yield lambda name=name: place.store.update(name, lambda one: one.replace(timeout=one.timeout + 1))  # type: ignore[misc]


def canceling(place: Place) -> Iterator[Callable[[], object]]:
    for name in place.fill(1000):
        yield lambda name=name: place.store.cancel(name)  # type: ignore[misc]


def listing(place: Place) -> Iterator[Callable[[], object]]:
    place.fill(3000)
    place.store.index_labels()
    query = TaskQuery(selector=Selector.parse("parity=1"), limit=BATCH)
    assert len(place.store.list(query)) == BATCH
    while True:
        yield lambda: place.store.list(query)


def following(place: Place) -> Iterator[Callable[[], object]]:
    token = place.store.token()
    place.fill(BATCH)
    assert len(place.store.changes(token).changes) == BATCH
    while True:
        yield lambda: place.store.changes(token)


OPERATIONS: dict[str, Operations] = {
    "create": creating,
    "create_many 1000": creating_many,
    "claim 100": claiming,
    "finish_many 100": finishing,
    "empty claim": claiming_nothing,
    "heartbeat": beating,
    "get": getting,
    "update": updating,
    "cancel": canceling,
    "page of 100 with a selector": listing,
    "changes, 100 events": following,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_costs_more_than_it_did(place: Place, name: str) -> None:
    operations = OPERATIONS[name](place)
    for operation in itertools.islice(operations, WARM):
        operation()
    costs = [place.cost(operation) for operation in itertools.islice(operations, REPEATED)]
    was = MEASURED[name]
    if was.buffers_before_17 is not None and place.watching.info.server_version < 170000:
        was = replace(was, buffers=was.buffers_before_17)
    now = {
        "statements": min(cost.statements for cost in costs),
        "round trips": min(cost.round_trips for cost in costs),
        "buffers": min(cost.buffers for cost in costs),
        "WAL bytes": min((cost.wal for cost in costs if cost.wal is not None), default=None),
    }
    bounds = {
        "statements": (was.statements, was.statements),
        "round trips": (was.round_trips, was.round_trips),
        "buffers": (was.buffers, int(was.buffers * BUFFERS_HEADROOM) + PAGES_HEADROOM),
        "WAL bytes": (was.wal or 0, int(was.wal * WAL_HEADROOM) + ROW_HEADROOM if was.wal else 0),
    }
    over = [
        f"{what}: {now[what]:,}, at most {most:,}; {old:,} when the bound was written"
        for what, (old, most) in bounds.items()
        if now[what] is not None and now[what] > most  # type: ignore[operator]
    ]
    assert not over, f"{name} costs more than it did: {'; '.join(over)} ({costs})"
