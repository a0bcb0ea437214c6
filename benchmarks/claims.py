"""`python -m benchmarks.claims`: what a backlog, tasks in the way, and a pinned xmin cost those who claim.

Claims and finishes in batches of 100, by one client. Each question compares two databases of one server, in turn within
the same run: what drifts meets both alike.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING

from psycopg import IsolationLevel

from benchmarks.arena import Arena, arena, server, specs
from benchmarks.measure import compare
from benchmarks.report import layout
from solti_store import AdmissionPolicy, Outcome
from solti_store.model import Labels, RunnerSelector, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from solti_store import TaskSpec

BATCH = 100
FIFTHS = 5
_FILL = 10_000
_BUSY_SLOTS = 1000
_LEASE = timedelta(days=1)  # nobody sends heartbeats here
_TABLES = ("tasks", "task_status", "task_runs", "task_events", "routes", "agents")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        few: The small backlog.
        many: The large one.
        crowd: Tasks of each sort that are in the way.
        cycles: Tasks of a run with a pinned xmin.
        rounds: Comparisons of backlogs.
        blocks: Blocks of a round each way.
        batches: Batches of a block.
        warm: Batches before a run with a pinned xmin.
    """

    few: int = 20_000
    many: int = 1_000_000
    crowd: int = 100_000
    cycles: int = 100_000
    rounds: int = 11
    blocks: int = 3
    batches: int = 10
    warm: int = 20


ONCE = Sizes(few=400, many=600, crowd=150, cycles=500, rounds=1, blocks=1, batches=1, warm=2)


class Lane:
    """A database of its own, with one agent that claims from it."""

    def __init__(self, field: Arena) -> None:
        self._field = field
        self._numbers = itertools.count()
        field.fill(0)
        self._agent = field.store.register("benchmark", lease=_LEASE)

    def add(self, count: int, change: Callable[[int, TaskSpec], TaskSpec] = lambda _, spec: spec) -> None:
        """Create so many tasks, each in a slot of its own if `change` makes nothing else of it."""
        for start in range(0, count, _FILL):
            numbers = list(itertools.islice(self._numbers, min(_FILL, count - start)))
            made = zip(numbers, specs(len(numbers)), strict=True)
            self._field.store.create_many(
                [(f"t-{number}", change(number, spec.replace(slot=Slot(f"s-{number}")))) for number, spec in made]
            )

    def crowd(self, count: int) -> None:
        """Create so many tasks that wait for busy slots, and so many that nobody's labels match."""
        slots = min(_BUSY_SLOTS, count)

        def waiting(number: int, spec: TaskSpec) -> TaskSpec:
            return spec.replace(slot=Slot(f"busy-{number % slots}"), admission=AdmissionPolicy.QUEUE)

        elsewhere = RunnerSelector(match_labels=Labels({"gpu": "yes"}))
        self.add(slots, waiting)
        owners = self._field.store.claim(self._field.store.register("busy", lease=_LEASE), limit=slots)
        if len(owners) != slots:
            raise RuntimeError(f"{len(owners)} of {slots} slots are busy")
        self.add(count, waiting)
        self.add(count, lambda _, spec: spec.replace(runner_selector=elsewhere))

    def warm(self, batches: int) -> None:
        """Let statements be prepared, and do what autovacuum does in quiet hours, with something in every table."""
        self.add(batches * BATCH)
        for _ in range(batches):
            self.cycle()
        for table in _TABLES:
            self._field.single.execute(f"VACUUM (ANALYZE) solti.{table}")
        self._field.single.execute("CHECKPOINT")

    def cycle(self) -> None:
        """Claim a batch and finish it."""
        claims = self._field.store.claim(self._agent, limit=BATCH)
        refused = self._field.store.finish_many([(claim, Outcome.succeeded(0)) for claim in claims])
        if refused != [None] * BATCH:
            raise RuntimeError(f"{len(claims)} of {BATCH} tasks claimed, refused: {refused}")

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Hold xmin as a long report does: one snapshot, taken and kept."""
        report = self._field.several
        report.isolation_level = IsolationLevel.REPEATABLE_READ
        try:
            report.execute("SELECT count(*) FROM solti.routes")
            yield
        finally:
            report.rollback()
            report.isolation_level = None


class Beside:
    """Claim + finish in one database, beside the same in another."""

    baseline = "another database"
    extra = ""
    aim: float | None = 0.9
    tasks = BATCH

    def __init__(self, name: str, ours: Lane, bare: Lane, sizes: Sizes) -> None:
        self.name = name
        self.operations = sizes.batches
        self.blocks = sizes.blocks
        self._ours = ours
        self._bare = bare

    def ours(self, operations: int) -> Callable[[], object]:
        """In the one that has more to do."""
        return self._batches(self._ours, operations)

    def bare(self, operations: int) -> Callable[[], object]:
        """In the other."""
        return self._batches(self._bare, operations)

    def _batches(self, lane: Lane, operations: int) -> Callable[[], object]:
        lane.add(operations * BATCH)  # the backlog stays as long as it was

        def run() -> None:
            for _ in range(operations):
                lane.cycle()

        return run


def backlog(first: Arena, second: Arena, sizes: Sizes) -> Iterator[tuple[str, ...]]:
    """A large backlog beside a small one."""
    lanes = Lane(first), Lane(second)
    for lane, count in zip(lanes, (sizes.many, sizes.few), strict=True):
        lane.add(count)
        lane.warm(sizes.batches)
    yield _compared(Beside(f"backlog of {sizes.many:,}, beside {sizes.few:,}", *lanes, sizes), sizes)


def crowd(first: Arena, second: Arena, sizes: Sizes) -> Iterator[tuple[str, ...]]:
    """Older tasks that cannot run in front, beside none."""
    lanes = Lane(first), Lane(second)
    lanes[0].crowd(sizes.crowd)
    for lane in lanes:
        lane.add(sizes.few)
        lane.warm(sizes.batches)
    name = f"{sizes.crowd:,} behind busy slots and {sizes.crowd:,} for nobody in front, beside none"
    yield _compared(Beside(name, *lanes, sizes), sizes)


def _compared(case: Beside, sizes: Sizes) -> tuple[str, ...]:
    result = compare(case, rounds=sizes.rounds)
    low, high = result.spread
    rate, other = (BATCH / median(one.wall for one in side) for side in (result.ours, result.bare))
    return _row(case.name, rate, other, ratio=result.ratio, spread=f"{low:.2f} to {high:.2f}", aim=0.9)


def steady(first: Arena, second: Arena, sizes: Sizes) -> Iterator[tuple[str, ...]]:
    """Create, claim, finish, in steady state, under a pinned xmin."""

    def prepare(lane: Lane) -> None:
        lane.add(2 * BATCH)

    def cycle(lane: Lane) -> None:
        lane.add(BATCH)
        lane.cycle()

    yield from _pinned(
        Lane(first), Lane(second), sizes=sizes, name="create, claim, finish", prepare=prepare, cycle=cycle
    )


def drain(first: Arena, second: Arena, sizes: Sizes) -> Iterator[tuple[str, ...]]:
    """Drain a backlog under a pinned xmin."""

    def prepare(lane: Lane) -> None:
        lane.add(sizes.cycles)

    yield from _pinned(
        Lane(first), Lane(second), sizes=sizes, name="drain a backlog", prepare=prepare, cycle=Lane.cycle
    )


def _pinned(
    held: Lane,
    free: Lane,
    *,
    sizes: Sizes,
    name: str,
    prepare: Callable[[Lane], object],
    cycle: Callable[[Lane], object],
) -> Iterator[tuple[str, ...]]:
    """The last fifth beside the first, with a snapshot held and, in turn with it, in a database without."""
    lanes = held, free
    for lane in lanes:
        prepare(lane)
        lane.warm(sizes.warm)
    took: dict[Lane, list[float]] = {lane: [] for lane in lanes}
    gc.collect()
    gc.freeze()
    with held.pinned():
        for number in range(sizes.cycles // BATCH):
            for lane in lanes if number % 2 else reversed(lanes):
                began = time.perf_counter()
                cycle(lane)
                took[lane].append(time.perf_counter() - began)
    for lane, what, aim in ((held, "a snapshot held", 0.85), (free, "none held", None)):
        fifths = _fifths(took[lane])
        rates = ", ".join(f"{rate:,.0f}" for rate in fifths)
        title = f"{name}, {what}: the last fifth beside the first"
        yield _row(title, fifths[-1], fifths[0], ratio=fifths[-1] / fifths[0], spread=rates, aim=aim)


def _fifths(took: Sequence[float]) -> list[float]:
    """Tasks a second in each fifth. Of sums, not medians: a slow claim now and then is what is looked for."""
    size = len(took) // FIFTHS
    return [BATCH * size / sum(took[number * size : (number + 1) * size]) for number in range(FIFTHS)]


def _row(name: str, rate: float, other: float, *, ratio: float, spread: str, aim: float | None) -> tuple[str, ...]:
    missed = aim is not None and ratio < aim
    said = "" if aim is None else f"{aim:g}{' missed' if missed else ''}"
    return (name, f"{rate:,.0f}/s", f"{other:,.0f}/s", f"{ratio:.2f}", spread, said)


QUESTIONS: dict[str, Callable[[Arena, Arena, Sizes], Iterator[tuple[str, ...]]]] = {
    "drain": drain,
    "steady": steady,
    "crowd": crowd,
    "backlog": backlog,  # last: what it leaves behind in caches and files is the most
}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description="Claims in a hard place.")
    parser.add_argument("--url", help="a server where databases can be created; without one a private one is started")
    parser.add_argument("--once", action="store_true", help="a few tasks of each: do they run at all?")
    parser.add_argument("--only", choices=QUESTIONS, action="append", help="one of the questions; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args(arguments)
    sizes = ONCE if given.once else Sizes()
    rows: list[tuple[str, ...]] = [("claim + finish, 100 at once", "rate", "beside", "ratio", "spread", "aim")]
    with server(given.url) as url, arena(url) as first, arena(url) as second:
        for name in given.only or QUESTIONS:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            rows += QUESTIONS[name](first, second, sizes)
    print(layout(rows, rule="|---|---:|---:|---:|---|---|" if given.markdown else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
