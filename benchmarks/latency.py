"""`python -m benchmarks.latency`: from a create to the start of the task in an idle worker, and what the polling costs.

The worker is a process of its own, on the same machine: its clock is this process's. Linux only, for /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from benchmarks.arena import Arena, arena, server
from benchmarks.report import layout
from solti_store import AsyncTaskStore, Embedded, TaskSpec
from solti_store.worker import EmbeddedRunner, Started, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from solti_store.worker import EmbeddedCall, WorkerEvent

ROOT = Path(__file__).resolve().parents[1]
AIM_MS = 5.0
POLLS_MS = (2, 5, 10, 50, 500)
_LONGEST_MS = 30_000
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        tasks: Tasks of a poll interval, fewer where they would take too long.
        idle_s: For how long the cost of polling is watched.
        polls_ms: The intervals.
    """

    tasks: int = 200
    idle_s: float = 10.0
    polls_ms: tuple[int, ...] = POLLS_MS


ONCE = Sizes(tasks=5, idle_s=0.2, polls_ms=(5,))


async def work(url: str, poll_ms: float) -> None:
    """The worker's process: tells each start, with the time."""

    async def nothing(_: EmbeddedCall) -> None:
        return

    def tell(event: WorkerEvent) -> None:
        if isinstance(event, Started):
            print(event.task_id, time.monotonic_ns(), flush=True)

    async with await AsyncTaskStore.open(url) as store:
        worker = Worker(
            store,
            "latency",
            runners=[EmbeddedRunner({"nothing": nothing})],
            poll=timedelta(milliseconds=poll_ms),
            on_event=tell,
        )
        threading.Thread(target=_drain_at_the_end_of_input, args=[worker], daemon=True).start()
        await worker.run()


def _drain_at_the_end_of_input(worker: Worker) -> None:
    sys.stdin.read()
    worker.drain()


@contextmanager
def _worker(url: str, poll_ms: float) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.latency", "--work", str(poll_ms), "--url", url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate()


def _cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    # After the name, which may have blanks and brackets in it.
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def measure(field: Arena, url: str, poll_ms: int, sizes: Sizes) -> tuple[str, ...]:
    """One poll interval."""
    before = {pid for (pid,) in _backends(field)}
    dice = random.Random(poll_ms)  # noqa: S311 - when tasks are created
    took = []
    with _worker(url, poll_ms) as process:
        assert process.stdout is not None  # noqa: S101 - for mypy: it is a pipe
        for number in range(-5, min(sizes.tasks, _LONGEST_MS // poll_ms)):  # a few first, that are not counted
            # Not in step with the worker, which is idle again by then.
            time.sleep(0.02 + dice.uniform(1.2, 2.4) * poll_ms / 1000)
            spec = TaskSpec.builder(f"nothing-{poll_ms}-{number}", Embedded(), 60_000).labels({"function": "nothing"})
            began = time.monotonic_ns()
            field.store.create(f"task-{poll_ms}-{number}", spec.build())
            task_id, at = process.stdout.readline().split()
            if task_id != f"task-{poll_ms}-{number}":
                raise RuntimeError(f"{task_id} was started")
            if number >= 0:
                took.append((int(at) - began) / 1e6)
        backends = {pid for (pid,) in _backends(field)} - before
        spent = [_cpu_s(process.pid), sum(map(_cpu_s, backends)), _wal(field)]
        time.sleep(sizes.idle_s)
        spent = [
            (after - earlier) * 60 / sizes.idle_s
            for after, earlier in zip(
                (_cpu_s(process.pid), sum(map(_cpu_s, backends)), _wal(field)), spent, strict=True
            )
        ]
    percentiles = quantiles(took, n=100, method="inclusive")
    # Of the shortest interval: it is the one to choose for the aim.
    aim = f"{AIM_MS:g}{' missed' if median(took) > AIM_MS else ''}" if poll_ms == min(POLLS_MS) else ""
    return (
        f"{poll_ms}",
        *(f"{percentiles[part - 1]:.1f}" for part in (50, 95, 99)),
        aim,
        f"{spent[0]:.2f}",
        f"{spent[1]:.2f}",
        f"{spent[2] / 1024:,.0f}",
    )


def _backends(field: Arena) -> list[tuple[int]]:
    return field.single.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    ).fetchall()


def _wal(field: Arena) -> float:
    row = field.single.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return float(row[0]) if row else 0.0


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description="From create to start, idle.")
    parser.add_argument(
        "--url", help="a server on this machine, where databases can be created; without one a private one is started"
    )
    parser.add_argument("--once", action="store_true", help="a few tasks: does it run at all?")
    parser.add_argument("--poll", type=int, action="append", metavar="MS", help="this interval only; may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work:
        asyncio.run(work(given.url, given.work))
        return 0
    sizes = ONCE if given.once else Sizes()
    rows: list[tuple[str, ...]] = [
        ("poll, ms", "p50, ms", "p95, ms", "p99, ms", "aim", "worker, CPU s/min", "server, CPU s/min", "WAL, kB/min")
    ]
    with server(given.url) as running, arena(running) as field:
        field.fill(0)
        url = make_url(running).set(database=field.single.info.dbname).render_as_string(hide_password=False)
        for poll_ms in given.poll or sizes.polls_ms:
            print(f"measuring {poll_ms} ms ...", file=sys.stderr, flush=True)
            rows.append(measure(field, url, poll_ms, sizes))
    print(layout(rows, rule="|---:|---:|---:|---:|---|---:|---:|---:|" if given.markdown else None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
