"""What a measurement is given, and what comes of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.install import Environment

__all__ = ["FULL", "ONCE", "QUICK", "Lab", "Series", "Sizes", "Work", "quartiles", "say"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        rounds: Turns of each lane.
        one: Tasks that one client creates in a turn.
        crowd: Tasks that sixteen clients create in a turn.
        many: Tasks that are created, and worked off, in a turn.
        waits: Tasks that an idle worker is given in a turn; fewer if it looks seldom.
        idle_s: For how long the cost of being idle is watched.
        million: Tasks in the way.
        blocked: Tasks of each sort that cannot run.
        block: Tasks of a turn in a hard place.
        turns: Turns there.
        pages: How often each page is read.
    """

    rounds: int = 7
    one: int = 500
    crowd: int = 2_000
    many: int = 20_000
    waits: int = 30
    idle_s: float = 5.0
    million: int = 1_000_000
    blocked: int = 100_000
    block: int = 2_000
    turns: int = 21
    pages: int = 21


FULL = Sizes()
QUICK = Sizes(
    rounds=3, one=200, crowd=800, many=5_000, waits=15, idle_s=2.0, million=50_000, blocked=5_000, turns=6, pages=5
)
ONCE = Sizes(
    rounds=1, one=2, crowd=16, many=20, waits=2, idle_s=0.2, million=300, blocked=150, block=100, turns=1, pages=1
)


@dataclass(frozen=True, slots=True)
class Series:
    """What one lane was measured at, once a round.

    Attributes:
        case: What was done.
        lane: By whom.
        unit: Of the values.
        values: In the order of the rounds: those of the same case and place are of the same moment.
        less: Whether a smaller value is the better one.
        how: The lane's configuration, or what it is compared with.
    """

    case: str
    lane: str
    unit: str
    values: Sequence[float]
    less: bool = False
    how: str = ""

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self.values)

    def over(self, other: Series) -> list[float]:
        """Round by round, how many times as good as the other: above 1 is better."""
        pairs = zip(self.values, other.values, strict=False)
        return [b / a if self.less else a / b for a, b in pairs if a and b]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return first, third


@dataclass(frozen=True, slots=True)
class Lab:
    """What a work has to work with.

    Attributes:
        server: The server, where databases can be created.
        environment: The peers; None measures this project alone.
        sizes: How much of everything.
        peers: Only peers with one of these words in their name; ours are always there.
        keep: A database to use if it is there, and not to remove: of a work that builds one.
        explain: Whether to print the plans, of works that have them.
        notes: What is to be said in the end: who was left out, and why.
    """

    server: str
    environment: Environment | None
    sizes: Sizes
    peers: Sequence[str] = ()
    keep: str | None = None
    explain: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, said: Iterable[str]) -> None:
        """Say what was not said yet."""
        self.notes.extend(one for one in dict.fromkeys(said) if one not in self.notes)

    def wants(self, name: str) -> bool:
        """Whether a peer of this name is measured."""
        return not self.peers or any(word in name for word in self.peers)


@dataclass(frozen=True, slots=True)
class Work:
    """A measurement.

    Attributes:
        name: For `--only`.
        about: What it measures, in a line.
        run: Measures it.
        by_default: Whether a run without `--only` has it.
    """

    name: str
    about: str
    run: Callable[[Lab], Iterator[Series]]
    by_default: bool = True


def say(what: str) -> None:
    """Tell who waits."""
    print(f"  {what} ...", file=sys.stderr, flush=True)
