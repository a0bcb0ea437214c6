"""Creating, working off, and starting tasks: this project and its peers, turn and turn about."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from typing import TYPE_CHECKING

from benchmarks.lab import Lab, Series, Work, say
from benchmarks.lanes import PEERS, Lane, Peer, lanes
from benchmarks.meter import Spent, cpu_s, peak_mb

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["WORKS", "in_turn"]

CLIENTS = 16
# Our worker: woken, and without that, by looking at intervals.
WOKEN = 0
POLLS_MS = (WOKEN, 2, 500)
# Those whose worker waits for tasks, and how.
WAITING = {
    "pgqueuer's manager": "LISTEN",
    "procrastinate": "LISTEN",
    "dbos": "looks every 10 ms",
    "graphile-worker": "LISTEN; no local queue",
    "pg-boss": "looks every 500 ms, its shortest",
}
_LONGEST_MS = 2_000
# Of several ways to use a queue, those that create, and how: one by one; many at once.
CREATING = {
    "solti-store": "create; create_many; specs are there",
    "pgqueuer": "enqueue; enqueue of all; asyncpg, uvloop",
    "procrastinate": "defer_async; batch_defer_async of 1000",
    "dbos": "DBOSClient.enqueue; the same from 16 threads",
    "graphile-worker": "addJob; addJobs of 1000",
    "pg-boss": "send; insert of 1000",
}


def in_turn(rounds: int, wanted: list[Lane]) -> Iterator[tuple[int, Lane]]:
    """Each lane each round; each goes first as often as last."""
    for number in range(rounds):
        for lane in reversed(wanted) if number % 2 else wanted:
            yield number, lane


def _timed(lane: Lane, line: str) -> tuple[int, Spent]:
    """Have it done: how many tasks a drain says it did, and what it took."""
    with lane.meter.block() as spent:
        said = lane.ask(line)
    return int(said) if said != "ok" else 0, spent


def creating(lab: Lab) -> Iterator[Series]:
    """One by one, by one client and by sixteen; and many at once."""
    sizes = lab.sizes
    wanted = [peer for peer in PEERS if peer.name in CREATING and (peer.is_ours or lab.wants(peer.name))]
    rates: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    with lanes(wanted, lab.server, lab.environment) as (found, missing):
        lab.note(missing)
        for lane in found:
            lane.ask("create 32 16")  # connections are made and statements prepared
            lane.ask("fill 100")
        for number, lane in in_turn(sizes.rounds, found):
            say(f"create, {lane.peer.name}, {number + 1}")
            many = lane.share(sizes.many)
            for case, line, tasks in (
                ("create one, 1 client", f"create {sizes.one} 1", sizes.one),
                (f"create one, {CLIENTS} clients", f"create {sizes.crowd} {CLIENTS}", sizes.crowd),
                ("create 20k at once", f"fill {many}", many),
            ):
                how = CREATING[lane.peer.name]
                if lane.peer.is_ours:
                    # What the peers are given is text as they send it; to us it is something to parse and check.
                    rate = tasks / _timed(lane, line)[1].wall_s
                    rates[case, f"{lane.peer.name}, from JSON", "the same, and parse and change each spec"].append(rate)
                    lane.ask(f"prepare {tasks}")
                rates[case, lane.peer.name, how].append(tasks / _timed(lane, line)[1].wall_s)
    for (case, name, how), values in rates.items():
        yield Series(case, name, "tasks/s", values, how=how)


def draining(lab: Lab) -> Iterator[Series]:
    """Many no-op tasks, with what they cost on both sides; the log is that of a whole life."""
    sizes = lab.sizes
    values: dict[tuple[str, str, Peer], list[float]] = defaultdict(list)
    wanted = [peer for peer in PEERS if peer.is_ours or lab.wants(peer.name)]
    with lanes(wanted, lab.server, lab.environment) as (found, missing):
        lab.note(missing)
        for lane in found:
            warm = max(lane.share(sizes.many) // 5, 1)
            lane.ask(f"fill {warm}")
            lane.ask(f"drain {warm}")
        for number, lane in in_turn(sizes.rounds, found):
            say(f"drain, {lane.peer.name}, {number + 1}")
            tasks = lane.share(sizes.many)
            _, filled = _timed(lane, f"fill {tasks}")
            lane.settle()
            done, spent = _timed(lane, f"drain {tasks}")
            if done != tasks:
                raise RuntimeError(f"{lane.peer.name} did {done} of {tasks}")
            values["drain 20k", "tasks/s", lane.peer].append(done / spent.wall_s)
            values["drain, CPU of the client", "µs/task", lane.peer].append(spent.client_s / done * 1e6)
            if spent.server_s is not None:
                values["drain, CPU of the server", "µs/task", lane.peer].append(spent.server_s / done * 1e6)
            values["WAL of a task's life", "bytes", lane.peer].append((filled.wal + spent.wal) / done)
        for lane in found:
            values["memory of the process, peak", "MB", lane.peer].append(peak_mb(lane.processes[0].pid))
    for (case, unit, peer), numbers in values.items():
        how = peer.keeps if unit == "bytes" else peer.how
        yield Series(case, peer.name, unit, numbers, less=unit != "tasks/s", how=how)


def starting(lab: Lab) -> Iterator[Series]:
    """From the call that creates a task to its start in an idle worker of another process; and what idleness costs."""
    sizes = lab.sizes
    ours = next(peer for peer in PEERS if peer.name == "solti-store's worker")
    theirs = [peer for peer in PEERS if peer.name in WAITING and lab.wants(peer.name)]
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    spent: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    dice = random.Random(7)  # noqa: S311 - when tasks are created
    with lanes([ours, *theirs], lab.server, lab.environment, processes=2) as (found, missing):
        lab.note(missing)
        for number, lane in in_turn(sizes.rounds, found):
            for poll in POLLS_MS if lane.peer.is_ours else (500 if lane.peer.name == "pg-boss" else 10,):
                name, how = _waiting(lane.peer, poll)
                say(f"latency, {name}, {number + 1}")
                worker = lane.processes[0]
                worker.ask(f"listen {poll}")
                took[name, how] += _waits(lane, poll or 10, sizes.waits, dice)
                for case, unit, value in _idle(lane, sizes.idle_s) if number == sizes.rounds - 1 else ():
                    spent[case, unit, name].append(value)
                worker.ask("stop")
    for (name, how), values in took.items():
        yield Series("create to start, idle", name, "ms", values, less=True, how=how)
    for (case, unit, name), values in spent.items():
        yield Series(case, name, unit, values, less=True)


def _waiting(peer: Peer, poll: int) -> tuple[str, str]:
    if not peer.is_ours:
        return peer.name, WAITING[peer.name]
    return (
        (f"{peer.name}, {poll} ms", f"looks every {poll} ms") if poll != WOKEN else (peer.name, "LISTEN while it waits")
    )


def _waits(lane: Lane, poll: int, waits: int, dice: random.Random) -> Iterator[float]:
    for number in range(-2, min(waits, max(_LONGEST_MS // poll, 1))):  # two first, that are not counted
        # Not in step with the worker, which is idle again by then.
        time.sleep(0.02 + dice.uniform(1.2, 2.4) * poll / 1000)
        began = int(lane.processes[1].ask("stamp"))
        word, at = lane.processes[0].hear().split()
        if word != "started":
            raise RuntimeError(f"{lane.peer.name} said {word} {at}")
        if number >= 0:
            yield (int(at) - began) / 1e6


def _idle(lane: Lane, seconds: float) -> Iterator[tuple[str, str, float]]:
    worker = lane.processes[0].pid
    before = cpu_s(worker)
    with lane.meter.block() as spent:
        time.sleep(seconds)
    a_minute = 60 / seconds
    yield "idle, CPU of the worker", "s/min", (cpu_s(worker) - before) * a_minute
    if spent.server_s is not None:
        yield "idle, CPU of the server", "s/min", spent.server_s * a_minute
    yield "idle, WAL", "kB/min", spent.wal / 1024 * a_minute


WORKS = (
    Work("create", "creating tasks: one by one, and 20,000 at once", creating),
    Work("drain", "working off 20,000 no-op tasks: rate, CPU, memory, WAL", draining),
    Work("latency", "from create to start in an idle worker", starting),
)
