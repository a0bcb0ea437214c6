"""Worker processes on a server of their own, and a nemesis that breaks what it can; then the history is checked."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from chaos.history import History, Violation, check
from chaos.recorder import acts_in, record
from servers import FAST
from support import connect

from solti_store.embedded import EmbeddedServer
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Crew", "Kind", "Report", "await_events", "observe", "run"]

LEASE_S = 1.0
MAX_SLOT_QUEUE = 6
#: Without any event for so long, what is left is stuck: the lease, a reaping, and room for a busy machine.
PATIENCE_S = 60.0


@dataclass
class Report:
    """How a run went.

    Attributes:
        history: What was recorded.
        violations: What was wrong with it.
        done: How often the nemesis did what.
        deadlocks: How often the server broke one; the package's order of locks should leave none.
        waits: The longest call of each operation, in seconds, where the workers write it down.
    """

    history: History
    violations: list[Violation]
    done: Counter[str] = field(default_factory=Counter)
    deadlocks: int = 0
    waits: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        history = self.history
        events = Counter(event.type for event in history.events)
        acts = Counter(f"{act.op} {act.error or act.state}" for act in history.acts if act.state != "try")
        lines = [
            f"{len(history.tasks)} tasks, {len(history.runs)} runs, {len(history.events)} events",
            *(f"{what}: {dict(sorted(counts.items()))}" for what, counts in _counts(events, acts, self.done)),
            f"{self.deadlocks} deadlocks, {len(self.violations)} violations",
            *map(str, self.violations[:20]),
        ]
        return "\n".join(lines)


def _counts(events: Counter[str], acts: Counter[str], done: Counter[str]) -> list[tuple[str, Counter[str]]]:
    return [("events", events), ("acts", acts), ("nemesis", done)]


@dataclass(frozen=True)
class Kind:
    """What the worker processes are.

    Attributes:
        module: What they run.
        lease_s: The lease of their agents.
        mutant: The name of what is to be broken in them.
        path: Where they import from.
    """

    module: str = "chaos.worker"
    lease_s: float = LEASE_S
    mutant: str | None = None
    path: Sequence[Path] = (Path(__file__).parents[1], Path(__file__).parents[2])


class Crew:
    """The worker processes."""

    def __init__(self, url: str, directory: Path, seed: int, size: int, kind: Kind) -> None:
        self.url = url
        self.directory = directory
        self.seed = seed
        self.kind = kind
        self.hired = 0
        self.processes: list[subprocess.Popen[bytes]] = []
        self.stopped: dict[int, float] = {}
        for _ in range(size):
            self.hire()

    def hire(self) -> None:
        name = f"w{self.hired}"
        self.hired += 1
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, self.kind.path))}
        if self.kind.mutant:
            environment["SOLTI_CHAOS_MUTANT"] = self.kind.mutant
        arguments = [self.url, str(self.directory), name, str(self.seed), str(self.kind.lease_s), str(MAX_SLOT_QUEUE)]
        with (self.directory / f"{name}.err").open("wb") as errors:
            self.processes.append(
                subprocess.Popen([sys.executable, "-m", self.kind.module, *arguments], env=environment, stderr=errors)
            )

    def replace(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        self.stopped.pop(process.pid, None)
        self.processes.remove(process)
        self.hire()

    def pause(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        process.send_signal(signal.SIGSTOP)
        self.stopped[process.pid] = time.monotonic() + seconds

    def wake(self, *, everybody: bool = False) -> None:
        for process in self.processes:
            if everybody or self.stopped.get(process.pid, float("inf")) < time.monotonic():
                process.send_signal(signal.SIGCONT)
                self.stopped.pop(process.pid, None)

    def check(self) -> None:
        for process in self.processes:
            if process.poll() is not None:
                self.fail(process)

    def fail(self, process: subprocess.Popen[bytes]) -> None:
        errors = [file.read_text() for file in self.directory.glob("*.err")]
        raise AssertionError(
            f"a worker ended by itself, with {process.returncode}:\n" + "\n".join(filter(None, errors))
        )

    def end(self) -> None:
        for process in self.processes:
            if process.wait(timeout=60):
                self.fail(process)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def run(*, seconds: float, seed: int, workers: int = 4, mutant: str | None = None) -> Report:
    """Let workers and nemesis loose, drain, and check.

    Args:
        seconds: How long the nemesis is at it; starting and draining come on top.
        seed: Of all choices. What the processes make of them is up to the machine, so no run repeats another.
        workers: How many processes work at a time.
        mutant: The name of what is to be broken in the workers.
    """

    def attack(crew: Crew, server: EmbeddedServer) -> Counter[str]:
        return _nemesis(crew, server, random.Random(seed), seconds)

    return observe(attack, seed=seed, size=workers, kind=Kind(mutant=mutant))


def observe(
    meanwhile: Callable[[Crew, EmbeddedServer], Counter[str]],
    *,
    seed: int,
    size: int,
    kind: Kind,
    revision: str = "head",
) -> Report:
    """Let workers loose on a server of their own while something happens, drain, and check.

    Args:
        meanwhile: What happens once they are at it; it returns how often it did what.
        seed: Of the workers' choices.
        size: How many of them there are at a time.
        kind: What they are.
        revision: Of the schema at the beginning.
    """
    root = Path(tempfile.mkdtemp(prefix="solti-chaos-"))
    # The server of root runs as another user, who must reach it.
    root.chmod(0o711)
    server = EmbeddedServer(
        root / "data", settings=FAST | {"track_commit_timestamp": "on", "log_min_messages": "error"}
    )
    try:
        url = server.ensure_running()
        upgrade(url, revision)
        directory = root / "logs"
        directory.mkdir()
        crew = Crew(url, directory, seed, size, kind)
        try:
            # A busy machine takes its time to start them, and what is killed before it began is no test.
            await_events(crew, 600)
            done = meanwhile(crew, server)
            crew.wake(everybody=True)
            server.ensure_running()
            (directory / "drain").touch()
            # What did not get done is a finding like others: the checker says what is stuck.
            _drain(url, crew)
            (directory / "stop").touch()
            crew.end()
        finally:
            crew.kill()
        with connect(url) as conn:
            history = record(conn, list(acts_in(directory)), max_slot_queue=MAX_SLOT_QUEUE)
        deadlocks = server.status().log_file.read_text(errors="replace").count("deadlock detected")
        waits: dict[str, float] = {}
        for file in directory.glob("*.waits"):
            for name, seconds in json.loads(file.read_text()).items():
                waits[name] = max(seconds, waits.get(name, 0.0))
        return Report(history, check(history), done, deadlocks, waits)
    finally:
        server.destroy()
        shutil.rmtree(root, ignore_errors=True)


def await_events(crew: Crew, count: int) -> None:
    """Wait until so much more has happened to tasks."""
    with connect(crew.url) as conn:
        enough = None
        while True:
            crew.check()
            (found,) = conn.execute("SELECT count(*) FROM solti.task_events").fetchone() or (0,)
            enough = found + count if enough is None else enough
            if found >= enough:
                return
            time.sleep(0.02)


def _nemesis(crew: Crew, server: EmbeddedServer, rng: random.Random, seconds: float) -> Counter[str]:
    def kill() -> None:
        crew.replace(rng.choice(crew.processes))

    def pause() -> None:
        crew.pause(rng.choice(crew.processes), LEASE_S * rng.uniform(0.8, 2.0))

    def terminate() -> None:
        with connect(crew.url) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                " AND pid != pg_backend_pid() ORDER BY random() LIMIT 3"
            )

    def restart() -> None:
        server.stop("immediate")
        server.ensure_running()

    deeds: list[Callable[[], None]] = [kill, kill, pause, pause, terminate, terminate, terminate, restart]
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(rng.uniform(0.2, 0.6))
        crew.wake()
        deed = rng.choice(deeds)
        with suppress(psycopg.OperationalError):
            deed()
        done[deed.__name__] += 1
        crew.check()
    return done


def _drain(url: str, crew: Crew) -> None:
    """Wait until every task is final, for as long as anything happens."""
    progress, since = None, time.monotonic()
    with connect(url) as conn:
        while time.monotonic() - since < PATIENCE_S:
            crew.check()
            left, event = conn.execute(
                "SELECT count(*), (SELECT max(event) FROM solti.task_events) FROM solti.task_status"
                " WHERE due_at IS NOT NULL OR phase IN ('pending', 'running')"
            ).fetchone() or (0, 0)
            if not left:
                return
            if event != progress:
                progress, since = event, time.monotonic()
            time.sleep(0.05)
