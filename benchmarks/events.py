"""`python -m benchmarks.events`: what the events cost who writes them, and how fast they are read.

Beside the store as it is, one whose statements write no events, in another database of the same server, block by block
in turn. It exists only here: the events are cut out of the statements' text while a block runs.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import TYPE_CHECKING
from unittest.mock import patch

from benchmarks.arena import arena, server, specs
from benchmarks.claims import Beside, Lane, Sizes
from benchmarks.measure import compare
from benchmarks.report import layout
from solti_store.model import Slot
from solti_store.sql import claims, closing, tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.arena import Arena
    from benchmarks.measure import Case

AIM = 0.85
ROUNDS = 15
_SINGLE = 50

_WRITING = (
    tasks.INSERT,
    tasks.INSERT_MANY,
    tasks.INSERT_JUDGED,
    claims.CLAIM,
    claims.CLAIM_BY_ROUTE,
    closing.CLOSE_UNTOUCHED,
)
_EVENT = re.compile(r",\s*\nevent AS \n\(INSERT INTO solti\.task_events .*?\)(?=\n SELECT)", re.DOTALL)


@contextmanager
def no_events() -> Iterator[None]:
    """The statements without their events."""
    with ExitStack() as stack:
        for statement in _WRITING:
            text, found = _EVENT.subn("", statement.text)
            if found != 1:
                raise RuntimeError(f"{found} events in {statement.text}")
            stack.enter_context(patch.object(statement, "text", text))
        yield


class Claims(Beside):
    """Claim + finish, with events and without."""

    aim: float | None = AIM

    def bare(self, operations: int) -> Callable[[], object]:
        """Without."""
        timed = super().bare(operations)

        def run() -> None:
            with no_events():
                timed()

        return run


class Creates:
    """Create, one at a time, with events and without."""

    name = "create"
    baseline = "no events"
    extra = ""
    aim: float | None = AIM
    operations = _SINGLE
    blocks = 3
    tasks = 1

    def __init__(self, ours: Arena, bare: Arena) -> None:
        self._arenas = ours, bare
        self._numbers = itertools.count()

    def ours(self, operations: int) -> Callable[[], object]:
        """With."""
        return self._creations(self._arenas[0], operations)

    def bare(self, operations: int) -> Callable[[], object]:
        """Without."""
        timed = self._creations(self._arenas[1], operations)

        def run() -> None:
            with no_events():
                timed()

        return run

    def _creations(self, field: Arena, operations: int) -> Callable[[], object]:
        made = [(f"one-{next(self._numbers)}", spec) for spec in specs(operations)]

        def run() -> None:
            for name, spec in made:
                field.store.create(name, spec.replace(slot=Slot(name)))

        return run


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description="What events cost.")
    parser.add_argument("--url", help="a server where databases can be created; without one a private one is started")
    parser.add_argument("--once", action="store_true", help="a few tasks of each: do they run at all?")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args(arguments)
    sizes = Sizes(rounds=1, blocks=1, batches=1) if given.once else Sizes(rounds=ROUNDS)
    rows: list[tuple[str, ...]] = [("operation", "with events", "without", "ratio", "middle half", "aim")]
    with server(given.url) as url, arena(url) as first, arena(url) as second:
        lanes = Lane(first), Lane(second)
        for lane in lanes:
            lane.warm(sizes.batches)
        token = first.store.token()
        cases: list[Case] = [Claims("claim + finish, 100 at once", *lanes, sizes), Creates(first, second)]
        for case in cases:
            print(f"measuring {case.name} ...", file=sys.stderr, flush=True)
            result = compare(case, rounds=sizes.rounds, once=given.once)
            low, high = result.spread
            walls = (f"{median(one.wall for one in side) * 1e6:,.0f} µs" for side in (result.ours, result.bare))
            missed = " missed" if result.ratio < AIM else ""
            rows.append((case.name, *walls, f"{result.ratio:.2f}", f"{low:.2f} to {high:.2f}", f"{AIM:g}{missed}"))
        read, took = _read(first, token)
    print(layout(rows, rule="|---|---:|---:|---:|---|---|" if given.markdown else None))
    print(f"\n{read:,} events were read in pieces of 1000 at {read / took:,.0f} a second.")
    return 0


def _read(field: Arena, token: str) -> tuple[int, float]:
    """How many events a reader found from the beginning on, and in how many seconds."""
    began, count = time.perf_counter(), 0
    while True:
        found = field.store.changes(token)
        count += len(found.changes)
        token = found.token
        if found.is_all:
            return count, time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
