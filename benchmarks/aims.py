"""What was aimed at, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median, quantiles
from typing import TYPE_CHECKING

from benchmarks.lanes import PEERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.lab import Series
    from benchmarks.lanes import Peer
    from benchmarks.results import Results

__all__ = ["Verdict", "is_ours", "ours", "verdicts"]

LEAVES_NOTHING = "nothing"
_PEERS = {peer.name: peer for peer in PEERS}


@dataclass(frozen=True, slots=True)
class Verdict:
    """An aim, and the ratio that was reached; the larger the better.

    Attributes:
        work: What is done.
        beside: What it is measured beside.
        aim: What the ratio should be, at least.
        ratio: What it is; None where it was not measured.
    """

    work: str
    beside: str
    aim: float
    ratio: float | None

    @property
    def said(self) -> str:
        """Met, or missed by how much."""
        if self.ratio is None:
            return "not measured"
        if self.ratio >= self.aim:
            return "met"
        percent = f"{(1 - self.ratio / self.aim) * 100:.0f}"
        return f"missed by {percent if percent != '0' else 'less than 1'} %"


def is_ours(lane: str) -> bool:
    """Whether a lane is this project."""
    return lane.startswith("solti-store")


def ours(found: Sequence[Series]) -> Series | None:
    """The best of our lanes."""
    return _best([one for one in found if is_ours(one.lane)])


def _best(found: Sequence[Series]) -> Series | None:
    if not found:
        return None
    return (min if found[0].less else max)(found, key=lambda one: one.median)


def _beside(found: Sequence[Series], is_wanted: Callable[[Peer], bool] = lambda _: True) -> Series | None:
    """The best of the peers."""
    return _best([one for one in found if not is_ours(one.lane) and is_wanted(_PEERS[one.lane])])


def _named(found: Sequence[Series], lane: str) -> Series | None:
    return next((one for one in found if one.lane == lane), None)


def _ratio(work: str, what: str, aim: float, mine: Series | None, other: Series | None) -> Verdict:
    if mine is None or other is None:
        return Verdict(work, what, aim, None)
    beside = what if what.startswith(other.lane) else f"{what}: {other.lane}"
    return Verdict(work, beside, aim, median(mine.over(other)))


def _bare(results: Results, case: str, aim: float) -> Verdict:
    found = results.series("operations", case)
    bare = _named(found, "bare psycopg")
    return _ratio(
        case, f"bare psycopg, {bare.how}" if bare else "bare psycopg", aim, _named(found, "solti-store"), bare
    )


def _latency(results: Results, percent: int) -> Verdict:
    found = results.series("latency", "create to start, idle")
    work, what = f"idle latency, p{percent}", "best peer"
    mine = [one for one in found if is_ours(one.lane)]
    theirs = [one for one in found if not is_ours(one.lane)]
    if not mine or not theirs:
        return Verdict(work, what, 1, None)

    def at(one: Series) -> float:
        return quantiles(one.values, n=100, method="inclusive")[percent - 1] if len(one.values) > 1 else one.values[0]

    best = min(theirs, key=at)
    return Verdict(work, f"{what}: {best.lane}", 1, at(best) / min(map(at, mine)))


def _page(results: Results) -> Verdict:
    found = [
        one
        for case in ("page, first", "page, last", "page, first, failed", "page, last, failed")
        for one in results.series("pages", case)
    ]
    base = next((one for one in found if (one.case, one.lane) == ("page, first", "unfiltered")), None)
    if base is None:
        return Verdict("page with any selector", "unfiltered page", 0.2, None)
    worst = max(found, key=lambda one: one.median)
    work = f"page with any selector; worst: {worst.how or worst.lane}, {worst.case.removeprefix('page, ')}"
    return Verdict(work, "unfiltered page", 0.2, base.median / worst.median)


def _hard(results: Results, case: str, aim: float) -> Verdict:
    mine = ours(results.series("hard", case))
    return Verdict(f"drain, {case}", "the same, free", aim, None if mine is None else mine.median)


def verdicts(results: Results) -> Iterator[Verdict]:
    """Each aim, in the order in which they were set."""
    one = results.series("create", "create one, 1 client")
    yield _ratio("create one", "fastest peer", 1.2, ours(one), _beside(one))
    yield _bare(results, "create", 0.7)
    many = results.series("create", "create 20k at once")
    yield _ratio("create 20k", "fastest peer", 1.0, ours(many), _beside(many))
    yield _bare(results, "create_many", 0.6)
    drain = results.series("drain", "drain 20k")
    yield _ratio("drain 20k", "fastest Python peer", 2.0, ours(drain), _beside(drain, lambda peer: peer.is_python))
    yield _ratio("drain 20k", "graphile-worker", 1.0, ours(drain), _named(drain, "graphile-worker"))
    yield _latency(results, 50)
    yield _latency(results, 95)
    for case, aim in (("backlog", 0.95), ("blocked", 0.95), ("pinned xmin", 0.9)):
        yield _hard(results, case, aim)
    for case in ("get", "replace", "update"):
        yield _bare(results, case, 0.7)
    yield _page(results)
    wal = results.series("drain", "WAL of a task's life")
    leanest = _beside(wal, lambda peer: peer.keeps != LEAVES_NOTHING)
    yield _ratio("WAL of a task's life", "leanest peer that keeps history", 1.0, ours(wal), leanest)
