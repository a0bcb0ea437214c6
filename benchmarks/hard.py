"""Working off in a hard place, beside an easy one: two databases of a queue, block by block in turn."""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
from psycopg import IsolationLevel
from sqlalchemy import make_url

from benchmarks.arena import specs
from benchmarks.lab import Lab, Series, Work, say
from benchmarks.lanes import PEERS, Lane, Peer, lanes
from solti_store import AdmissionPolicy, TaskStore
from solti_store.model import Labels, RunnerSelector, Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from solti_store import TaskSpec

__all__ = ["WORKS"]

_PIECE = 10_000
_BUSY_SLOTS = 1_000


def _backlog(lane: Lane, lab: Lab) -> None:
    """Many due tasks. What a block adds goes behind them."""
    if not lane.peer.grows:
        for start in range(0, lab.sizes.million, _PIECE):
            lane.ask(f"fill {min(_PIECE, lab.sizes.million - start)}")
        return
    lane.ask("fill 1")
    for copies in lane.peer.grows:
        copies.make(lane.bare, lab.sizes.million)


def _retained(lane: Lane, lab: Lab) -> None:
    """Many tasks that are over, with all that the queue keeps of one."""
    for copies in lane.peer.ends:
        copies.make(lane.bare, lab.sizes.million)


def _blocked(lane: Lane, lab: Lab) -> None:
    """In front of all others, tasks that wait for busy slots, and as many that nobody's labels match."""
    count, slots = lab.sizes.blocked, min(_BUSY_SLOTS, lab.sizes.blocked)
    url = make_url(lane.url).set(drivername="postgresql+psycopg")
    numbers = itertools.count()

    (spec,) = specs(1)
    waiting = spec.replace(admission=AdmissionPolicy.QUEUE)
    elsewhere = spec.replace(runner_selector=RunnerSelector(match_labels=Labels({"gpu": "yes"})))

    def add(store: TaskStore, many: int, one: TaskSpec, slot: Callable[[int], str]) -> None:
        for start in range(0, many, _PIECE):
            piece = itertools.islice(numbers, min(_PIECE, many - start))
            store.create_many([(f"blocked-{number}", one.replace(slot=Slot(slot(number)))) for number in piece])

    def busy(number: int) -> str:
        return f"busy-{number % slots}"

    with TaskStore.open(url, max_slot_queue=10**9) as store:
        add(store, slots, waiting, busy)
        owners = store.claim(store.register("busy", lease=timedelta(days=1)), limit=slots)
        if len(owners) != slots:
            raise RuntimeError(f"{len(owners)} of {slots} slots are busy")
        add(store, count, waiting, busy)
        add(store, count, elsewhere, "elsewhere-{}".format)


def _nothing(_lane: Lane, _lab: Lab) -> None:
    """Nothing beforehand."""


@contextmanager
def _pinned(lane: Lane) -> Iterator[None]:
    """Hold xmin as a long report does: one snapshot, taken and kept."""
    with psycopg.connect(lane.url) as report:
        report.isolation_level = IsolationLevel.REPEATABLE_READ
        report.execute("SELECT count(*) FROM pg_class")
        yield
        report.rollback()


@contextmanager
def _free(_lane: Lane) -> Iterator[None]:
    yield


def _compare(case: str, peer: Peer, lab: Lab, prepare: Callable[[Lane, Lab], None]) -> Iterator[Series]:
    holding = _pinned if case == PINNED else _free
    block = max(int(lab.sizes.block * peer.share), 1)
    # What a pinned xmin costs grows with the work that is done under it: the first half is for that.
    turns = lab.sizes.turns * (2 if case == PINNED else 1)
    rates: tuple[list[float], list[float]] = [], []
    with lanes([peer, peer], lab.server, lab.environment) as (found, missing):
        lab.note(missing)
        if len(found) != len(rates):
            return
        say(f"{case}, {peer.name}: making ready")
        for lane in found:
            lane.ask(f"fill {block}")
            lane.ask(f"drain {block}")
        prepare(found[0], lab)
        for lane in found:
            lane.ask(f"fill {2 * block}")
            lane.settle()
            lane.ask(f"drain {block}")  # with statistics of now
            lane.bare.execute("CHECKPOINT")
        say(f"{case}, {peer.name}")
        with holding(found[0]):
            for number in range(turns):
                for at in (1, 0) if number % 2 else (0, 1):
                    found[at].ask(f"fill {block}")
                    began = time.perf_counter()
                    done = int(found[at].ask(f"drain {block}"))
                    rates[at].append(done / (time.perf_counter() - began))
    hard, free = (side[-lab.sizes.turns :] for side in rates)
    yield Series(case, peer.name, "of free", [a / b for a, b in zip(hard, free, strict=True)], how=peer.how)
    yield Series(f"{case}, rate", peer.name, "tasks/s", hard, how=peer.how)


PINNED = "pinned xmin"
PLACES: dict[str, tuple[Callable[[Lane, Lab], None], Callable[[Peer], bool]]] = {
    PINNED: (_nothing, lambda peer: bool(peer.grows or peer.ends)),
    "blocked": (_blocked, lambda peer: peer.is_ours),
    "retained": (_retained, lambda peer: bool(peer.ends)),
    "backlog": (_backlog, lambda peer: bool(peer.grows or peer.is_ours)),
}
# Of several ways to use a queue, the one that can be told when to stop.
_MEASURED = {"solti-store", "pgqueuer", "procrastinate", "graphile-worker", "pg-boss"}


def hard(lab: Lab) -> Iterator[Series]:
    """Each place, each queue that has it."""
    for case, (prepare, has) in PLACES.items():
        for peer in PEERS:
            if peer.name in _MEASURED and has(peer) and (peer.is_ours or lab.wants(peer.name)):
                yield from _compare(case, peer, lab, prepare)


WORKS = (Work("hard", "working off under a backlog, history, a pinned xmin, and tasks in the way", hard),)
