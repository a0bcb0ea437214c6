"""Times two ways to do the same, turn and turn about."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Case", "Result", "compare"]


class Case(Protocol):
    """An operation of the store, and the same work without the store.

    Attributes:
        name: What is measured.
        baseline: What it is measured against.
        extra: What the store's side does besides.
        aim: The ratio it should reach, None when there is none.
        operations: Operations of one block.
        tasks: Tasks of one operation.
    """

    name: str
    baseline: str
    extra: str
    aim: float | None
    operations: int
    tasks: int

    def ours(self, operations: int) -> Callable[[], object]:
        """Prepare so many operations, untimed; what to time."""

    def bare(self, operations: int) -> Callable[[], object]:
        """The same for the other side."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case.

    Attributes:
        case: The case.
        ours: Seconds an operation took the store, a number a round.
        bare: Seconds it took without, a number a round.
    """

    case: Case
    ours: Sequence[float]
    bare: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        """Each round's throughput, as a part of the other side's in the same round."""
        return [bare / ours for ours, bare in zip(self.ours, self.bare, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of `ratios`."""
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of `ratios`, from the first quartile to the third."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        first, _, third = quantiles(self.ratios, n=4, method="inclusive")
        return first, third


def compare(case: Case, *, rounds: int, operations: int | None = None) -> Result:
    """Measure a case in rounds of one block each way.

    What drifts (the disk, other users of the machine) meets both sides alike, and each goes first in every other round.

    Args:
        case: What to measure.
        rounds: How many rounds, at least 1.
        operations: Operations of one block, in place of the case's own number.
    """
    count = operations or case.operations
    # Statements are prepared, plans settled and caches filled: what a long-lived process has behind it. psycopg
    # prepares a statement at its sixth execution, PostgreSQL settles on a plan at the sixth of those.
    for side in (case.ours, case.bare):
        _time(side(min(count, 12) if case.tasks < 1000 else 1))
    ours: list[float] = []
    bare: list[float] = []
    for number in range(rounds):
        sides = [(case.ours, ours), (case.bare, bare)]
        for side, times in sides if number % 2 == 0 else reversed(sides):
            times.append(_time(side(count)) / count)
    return Result(case, ours, bare)


def _time(block: Callable[[], object]) -> float:
    gc.collect()
    begun = time.perf_counter()
    block()
    return time.perf_counter() - begun
