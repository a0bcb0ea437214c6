"""`python -m benchmarks.churn`: what storage parameters of the hot tables do to size and claims under steady churn.

Some databases of one server, which live the same life block by block in turn: tasks are created, claimed, finished and
deleted again, agents send heartbeats, and autovacuum does what it is set to do.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from statistics import median, quantiles
from typing import TYPE_CHECKING

from psycopg import sql

from benchmarks.arena import Arena, arena, server, specs
from benchmarks.report import layout
from solti_store import Outcome, Retention
from solti_store.model import MAX_LIMIT, Slot

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = 100
_AGENTS = 20
_LEASE = timedelta(days=1)
_KEPT = timedelta(seconds=20)
_TABLES = ("tasks", "task_status", "task_runs", "task_events", "agents", "label_index")

VARIANTS = ("PostgreSQL's own", "as shipped")


class Lane:
    """A database with its own life."""

    def __init__(self, field: Arena, backlog: int, *, as_shipped: bool) -> None:
        self._field = field
        self._numbers = itertools.count()
        self.claims: list[float] = []
        if not as_shipped:
            self._reset()
        for _ in range(backlog // 1000):
            self._create(1000)
        self._agents = [field.store.register(f"agent-{number}", lease=_LEASE) for number in range(_AGENTS)]

    def _reset(self) -> None:
        for table in _TABLES:
            self._field.single.execute(
                sql.SQL(
                    "ALTER TABLE solti.{} RESET (autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor,"
                    " autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor)"
                ).format(sql.Identifier(table))
            )

    def _create(self, count: int) -> None:
        numbers = list(itertools.islice(self._numbers, count))
        made = zip(numbers, specs(count), strict=True)
        self._field.store.create_many(
            [(f"t-{number}", spec.replace(slot=Slot(f"s-{number}"))) for number, spec in made]
        )

    def block(self, batches: int) -> None:
        """Some rounds of a life."""
        store = self._field.store
        for agent in self._agents:
            store.heartbeat(agent)
        for _ in range(batches):
            self._create(BATCH)
            begun = time.perf_counter()
            claims = store.claim(self._agents[0], limit=BATCH)
            self.claims.append(time.perf_counter() - begun)
            store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims])
        old = Retention(tasks=_KEPT, events=_KEPT)
        while (gone := store.prune(old)).tasks == MAX_LIMIT or gone.events == MAX_LIMIT:
            pass

    def rows(self, name: str) -> Iterator[tuple[str, ...]]:
        """What has become of it."""
        last = sorted(self.claims[-max(len(self.claims) // 3, 2) :])
        slow = quantiles(last, n=100)[98]
        yield name, "claim of 100, median and p99", f"{median(last) * 1000:.1f} ms", f"{slow * 1000:.1f} ms", "", "", ""
        for table in _TABLES:
            row = self._field.single.execute(
                "SELECT pg_table_size(relid), pg_indexes_size(relid), n_live_tup, n_dead_tup,"
                " CASE WHEN n_tup_upd > 0 THEN 100 * n_tup_hot_upd / n_tup_upd END, autovacuum_count"
                " FROM pg_stat_user_tables WHERE schemaname = 'solti' AND relname = %s",
                [table],
            ).fetchone()
            heap, indexes, live, dead, hot, vacuums = row or (0, 0, 0, 0, None, 0)
            sizes = f"{heap / 1e6:.1f} MB", f"{indexes / 1e6:.1f} MB"
            yield name, table, *sizes, f"{live:,} / {dead:,}", "" if hot is None else f"{hot} %", f"{vacuums}"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn", description=__doc__)
    parser.add_argument("--url", help="a server where databases can be created; without one a private one is started")
    parser.add_argument("--seconds", type=float, default=600, help="how long, for all of them together")
    parser.add_argument("--backlog", type=int, default=20_000, help="tasks that are due all the time")
    parser.add_argument("--batches", type=int, default=20, help="batches a block")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args(arguments)
    with server(given.url) as url, ExitStack() as stack:
        fields = {name: stack.enter_context(arena(url)) for name in VARIANTS}
        lanes = {name: Lane(field, given.backlog, as_shipped=name == "as shipped") for name, field in fields.items()}
        end = time.monotonic() + given.seconds
        while time.monotonic() < end:
            for lane in lanes.values():
                lane.block(given.batches)
        rule = "|---|---|---:|---:|---:|---:|---:|" if given.markdown else None
        head = ("parameters", "table", "heap", "indexes", "rows live / dead", "HOT", "autovacuums")
        print(layout([head, *(row for name, lane in lanes.items() for row in lane.rows(name))], rule=rule))
    return 0


if __name__ == "__main__":
    sys.exit(main())
