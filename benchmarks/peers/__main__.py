"""`python -m benchmarks.peers`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from benchmarks.arena import server, specs
from benchmarks.report import layout

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
AIM = 2.0
ROUNDS = 7
TASKS = 10_000
ONCE = 200
PROCESSES = (1, 2)


@dataclass(frozen=True, slots=True)
class Peer:
    """A queue and how to start its process.

    Attributes:
        name: What it is called.
        command: The process, to which the database's URL and the file of payloads are added.
        more: What comes behind those.
        how: How it claims and finishes.
        share: The part of the tasks that it is given: the slow ones would take all the time.
    """

    name: str
    command: tuple[str, ...]
    how: str
    more: tuple[str, ...] = ()
    share: float = 1.0


def peers(python: str, node_modules: str) -> list[Peer]:
    """All that can be compared, this project first."""
    return [
        Peer("solti-store", (sys.executable, "-m", "benchmarks.peers.with_solti"), "claim, finish_many of 100"),
        Peer("pgqueuer", (python, "-m", "benchmarks.peers.with_pgqueuer"), "dequeue, log_jobs of 100; asyncpg, uvloop"),
        Peer(
            "pgqueuer's manager",
            (python, "-m", "benchmarks.peers.with_pgqueuer_manager"),
            "worker, batches of 100; asyncpg, uvloop",
        ),
        Peer(
            "procrastinate",
            (python, "-m", "benchmarks.peers.with_procrastinate"),
            "worker, 20 at once, no batches",
            share=0.1,
        ),
        Peer(
            "graphile-worker",
            ("node", str(ROOT / "benchmarks/peers/with_graphile.mjs")),
            "worker, 24 at once, local queue of 100, batched completion",
            more=(node_modules,),
            share=0.5,
        ),
    ]


class Process:
    """A running consumer."""

    def __init__(self, peer: Peer, url: str, payloads: Path) -> None:
        self._process = subprocess.Popen(
            [*peer.command, url, str(payloads), *peer.more],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        """Send a command."""
        assert self._process.stdin is not None  # noqa: S101 - for mypy: it is a pipe
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def hear(self) -> str:
        """Wait for the answer.

        Raises:
            RuntimeError: The process is gone.
        """
        assert self._process.stdout is not None  # noqa: S101
        if line := self._process.stdout.readline():
            return line.strip()
        _, errors = self._process.communicate()
        raise RuntimeError(errors.strip().splitlines()[-1] if errors.strip() else "it ended without a word")

    def close(self) -> None:
        """Let it end."""
        if self._process.poll() is None:
            self._process.communicate()


class Field:
    """A peer's database and its processes."""

    def __init__(
        self, peer: Peer, admin: psycopg.Connection, url: str, payloads: Path, stack: ExitStack, *, processes: int
    ) -> None:
        self.peer = peer
        name = f"solti_peer_{uuid.uuid4().hex[:8]}"
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        stack.callback(admin.execute, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        parsed = make_url(url).set(drivername="postgresql", database=name)
        # As every driver here takes it: the socket's folder among the parameters.
        target = parsed.render_as_string(hide_password=False)
        self._bare = stack.enter_context(psycopg.connect(target, autocommit=True))
        self._processes: list[Process] = []
        for _ in range(processes):
            process = Process(peer, target, payloads)
            stack.callback(process.close)
            if (said := process.hear()) != "ready":
                raise RuntimeError(said)
            self._processes.append(process)

    def rate(self, tasks: int, processes: int) -> float:
        """Tasks a second, with so many processes."""
        count = max(int(tasks * self.peer.share), processes)
        working = self._processes[:processes]
        each = count // processes
        working[0].tell(f"fill {each * processes}")
        working[0].hear()
        self._bare.execute("VACUUM (ANALYZE)")
        began = time.perf_counter()
        for process in working:
            process.tell(f"drain {each}")
        done = [int(process.hear()) for process in working]
        took = time.perf_counter() - began
        if sum(done) != each * processes:
            raise RuntimeError(f"{self.peer.name} did {done} of {each * processes}")
        return sum(done) / took


@contextmanager
def fields(given: argparse.Namespace, url: str) -> Iterator[list[Field]]:
    """The databases and processes of all that are installed; says which are not."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(plain, autocommit=True) as admin,
        ExitStack() as stack,
    ):
        payloads = Path(folder) / "payloads"
        payloads.write_text("".join(f"{spec.to_json()}\n" for spec in specs(1000)), "utf-8")
        found = []
        for peer in peers(given.python, given.node_modules):
            if given.only and peer.name != "solti-store" and peer.name not in given.only:
                continue
            try:
                found.append(Field(peer, admin, url, payloads, stack, processes=1 if given.once else max(PROCESSES)))
            except (RuntimeError, OSError) as error:
                if peer.name == "solti-store":
                    raise
                print(f"{peer.name} is left out: {error}", file=sys.stderr)
        yield found


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="Beside other task queues.")
    parser.add_argument("--url", help="a server where databases can be created; without one a private one is started")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has the peers in Python")
    parser.add_argument("--node-modules", default="node_modules", help="where the peers in JavaScript are")
    parser.add_argument("--only", action="append", metavar="NAME", help="beside this peer only; may be repeated")
    parser.add_argument("--once", action="store_true", help="a few tasks: do they run at all?")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often each, {ROUNDS} if not given")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    given = parser.parse_args(arguments)
    rounds, tasks = (1, ONCE) if given.once else (given.rounds, TASKS)
    rows: list[tuple[str, ...]] = [("queue", "processes", "tasks/s", "ours over it", "middle half", "aim", "how")]
    with server(given.url) as url, fields(given, url) as lanes:
        for processes in PROCESSES[:1] if given.once else PROCESSES:
            rates: dict[str, list[float]] = {lane.peer.name: [] for lane in lanes}
            if not given.once:
                for lane in lanes:  # statements are prepared and caches filled
                    lane.rate(tasks // 5, processes)
            for number in range(rounds):
                for lane in lanes if number % 2 else reversed(lanes):
                    print(f"{lane.peer.name}, {processes} ...", file=sys.stderr, flush=True)
                    rates[lane.peer.name].append(lane.rate(tasks, processes))
            rows += [_row(lane.peer, processes, rates["solti-store"], rates[lane.peer.name]) for lane in lanes]
    print(layout(rows, rule="|---|---:|---:|---:|---|---|---|" if given.markdown else None))
    return 0


def _row(peer: Peer, processes: int, ours: list[float], theirs: list[float]) -> tuple[str, ...]:
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else (ratios[0],) * 3
    missed = " missed" if peer.name == "pgqueuer" and median(ratios) < AIM else ""
    return (
        peer.name,
        str(processes),
        f"{median(theirs):,.0f}",
        *(
            ("", "", "")
            if peer.name == "solti-store"
            else (
                f"{median(ratios):.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{AIM:g}{missed}" if peer.name == "pgqueuer" else "",
            )
        ),
        peer.how,
    )


if __name__ == "__main__":
    sys.exit(main())
