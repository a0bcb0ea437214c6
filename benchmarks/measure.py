"""Times two ways to do the same, turn and turn about."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Case", "Result", "Spent", "compare"]


class Case(Protocol):
    """An operation of the store, and the same work without the store.

    Attributes:
        name: What is measured.
        baseline: What it is measured against.
        extra: What the store's side does besides.
        operations: Operations of one block.
        blocks: Blocks a round each way, in turn: short ones meet the same weather on both sides.
        tasks: Tasks of one operation.
    """

    name: str
    baseline: str
    extra: str
    operations: int
    blocks: int
    tasks: int

    def ours(self, operations: int) -> Callable[[], object]:
        """Prepare so many operations, untimed; what to time."""

    def bare(self, operations: int) -> Callable[[], object]:
        """The same for the other side."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What an operation took, in seconds.

    Attributes:
        wall: By the clock.
        cpu: Of this process's processor time: the server's and the waiting are not in it.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __truediv__(self, operations: int) -> Spent:
        return Spent(self.wall / operations, self.cpu / operations)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case.

    Attributes:
        case: The case.
        ours: What an operation took the store, one a round.
        bare: What it took without, one a round.
    """

    case: Case
    ours: Sequence[Spent]
    bare: Sequence[Spent]


def compare(case: Case, *, rounds: int, once: bool = False) -> Result:
    """Measure a case in rounds of blocks, one each way in turn.

    What drifts (the disk, other users of the machine) meets both sides alike, and each goes first every other time.

    Args:
        case: What to measure.
        rounds: How many rounds, at least 1.
        once: One operation each way, for a look whether it runs at all.
    """
    operations, blocks = (1, 1) if once else (case.operations, case.blocks)
    # Statements are prepared, plans settled and caches filled: what a long-lived process has behind it. psycopg
    # prepares a statement at its sixth execution, PostgreSQL settles on a plan at the sixth of those.
    for side in (case.ours, case.bare):
        _time(side(min(operations, 12)))
    ours: list[Spent] = []
    bare: list[Spent] = []
    for _ in range(rounds):
        spent = {case.ours: Spent(), case.bare: Spent()}
        for number in range(blocks):
            for side in (case.ours, case.bare) if (len(ours) + number) % 2 == 0 else (case.bare, case.ours):
                spent[side] += _time(side(operations))
        ours.append(spent[case.ours] / (operations * blocks))
        bare.append(spent[case.bare] / (operations * blocks))
    return Result(case, ours, bare)


def _time(block: Callable[[], object]) -> Spent:
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    block()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)
