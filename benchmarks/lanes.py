"""Lanes: a queue, a database of its own, and its processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from benchmarks.arena import specs
from benchmarks.meter import Meter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.install import Environment

__all__ = ["PEERS", "Copies", "Lane", "Peer", "Process", "lanes"]

ROOT = Path(__file__).resolve().parents[1]
_PAYLOADS = 1000


@dataclass(frozen=True, slots=True)
class Copies:
    """Many rows of a table, made of one: to have a million in seconds.

    Attributes:
        table: The table.
        where: Which rows; the first one, if nothing is said.
        setting: What columns are not copied, but computed from the row and `n`, the number of the copy.
    """

    table: str
    where: str = "true LIMIT 1"
    setting: Mapping[str, str] = field(default_factory=dict, hash=False)

    def make(self, bare: psycopg.Connection[Any], count: int) -> None:
        """Make so many. Numbers, random ids and ids of transactions are new ones."""
        columns = bare.execute(_COLUMNS, [self.table]).fetchall()
        names = [name for name, is_new in columns if name in self.setting or not is_new]
        values = [self.setting.get(name, f'"{name}"') for name in names]
        quoted = ", ".join(f'"{name}"' for name in names)
        statement = (
            f"INSERT INTO {self.table} ({quoted}) OVERRIDING SYSTEM VALUE"  # noqa: S608
            f" SELECT {', '.join(values)} FROM (SELECT * FROM {self.table} WHERE {self.where}) AS one,"
            f" generate_series(1, {count}) AS n"
        )
        bare.execute("SET session_replication_role = replica")  # the checks of foreign keys would take most of the time
        bare.execute(statement.encode())
        bare.execute("RESET session_replication_role")


# What a copy gets anew by itself: identities, and what defaults make up.
_COLUMNS = """
    SELECT attname, attidentity <> '' OR COALESCE(
               pg_get_expr(adbin, adrelid) ~ '(nextval|gen_random_uuid|pg_current_xact_id|uuid_generate)', false)
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
    ORDER BY attnum
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A way to use a queue.

    Attributes:
        name: What it is called.
        module: Its process: a module of `benchmarks.peers` in Python, or a file there for Node.
        how: Its configuration, for people.
        argument: What the process is told besides.
        keeps: What the queue leaves of a task that is done.
        share: The part of the tasks that it is given where there are many: the slow ones would take all the time.
        grows: How many due tasks are made of one; by its own calls, if it does not say.
        ends: How many ended tasks are made of one that ended.
    """

    name: str
    module: str
    how: str
    argument: str = ""
    keeps: str = ""
    share: float = 1.0
    grows: tuple[Copies, ...] = ()
    ends: tuple[Copies, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is this project."""
        return self.module == "with_solti"

    @property
    def is_python(self) -> bool:
        """Whether its client is in Python."""
        return not self.module.endswith(".mjs")

    def command(self, environment: Environment | None, url: str, payloads: Path) -> list[str]:
        """Its process."""
        if self.is_ours:
            return [sys.executable, "-m", f"benchmarks.peers.{self.module}", url, str(payloads), self.argument]
        if environment is None:
            raise RuntimeError("the peers are not installed")
        if self.is_python:
            python = str(environment.python)
            return [python, "-m", f"benchmarks.peers.{self.module}", url, str(payloads), self.argument]
        return ["node", str(ROOT / "benchmarks/peers" / self.module), url, str(payloads), str(environment.node_modules)]


# Beyond all that the sequence will give.
_SEQ = {"seq": "seq + n + 1000000000", "id": "id || '-' || n"}
_KEEPS_ALL = "task, runs, events"
_LOG = "a log row for each change of state"

PEERS = (
    Peer(
        "solti-store",
        "with_solti",
        "claim, finish_many of 100, one thread",
        "1",
        keeps=_KEEPS_ALL,
        ends=tuple(
            Copies(f"solti.{table}", "seq = (SELECT min(seq) FROM solti.task_runs)", _SEQ)
            for table in ("tasks", "task_status", "task_runs", "task_events")
        ),
    ),
    Peer("solti-store, two threads", "with_solti", "one thread claims, another finishes", "2", keeps=_KEEPS_ALL),
    Peer(
        "solti-store's worker",
        "with_solti",
        "embedded async function, concurrency 100, prefetch 400",
        "0",
        keeps=_KEEPS_ALL,
    ),
    Peer(
        "pgqueuer",
        "with_pgqueuer",
        "dequeue, log_jobs of 100; asyncpg, uvloop",
        keeps=_LOG,
        grows=(Copies("pgqueuer"),),
        # As its manager leaves them after half a minute.
        ends=(Copies("pgqueuer_log", "status = 'successful' LIMIT 1", setting={"aggregated": "true"}),),
    ),
    Peer(
        "pgqueuer's manager",
        "with_pgqueuer",
        "QueueManager, batches of 100, 1000 at once; asyncpg, uvloop",
        "manager",
        keeps=_LOG,
    ),
    Peer(
        "procrastinate",
        "with_procrastinate",
        "worker, 20 at once; no batches",
        keeps="job, events",
        share=0.1,
        grows=(Copies("procrastinate_jobs", "status = 'todo' LIMIT 1"),),
        ends=(Copies("procrastinate_jobs", "status = 'succeeded' LIMIT 1"),),
    ),
    Peer("dbos", "with_dbos", "async workflow, 200 at once, queue looked at every 10 ms", keeps="workflow", share=0.1),
    Peer(
        "graphile-worker",
        "with_graphile.mjs",
        "24 at once, local queue of 100, batched completion",
        keeps="nothing",
        grows=(Copies("graphile_worker._private_jobs"),),
    ),
    Peer(
        "pg-boss",
        "with_pgboss.mjs",
        "fetch, complete of 100",
        keeps="job, until archived",
        grows=(Copies("pgboss.job", "name = 'work' AND state = 'created' LIMIT 1"),),
        ends=(Copies("pgboss.job", "name = 'work' AND state = 'completed' LIMIT 1"),),
    ),
)


class Process:
    """A running consumer."""

    def __init__(self, command: list[str], log: Path) -> None:
        # To a file: a pipe that nobody reads would stop it one day.
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """Send a command."""
        assert self._process.stdin is not None  # noqa: S101 - for mypy: it is a pipe
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def hear(self) -> str:
        """Wait for a line.

        Raises:
            RuntimeError: The process is gone.
        """
        assert self._process.stdout is not None  # noqa: S101
        if line := self._process.stdout.readline():
            return line.strip()
        raise self._gone()

    def ask(self, line: str) -> str:
        """Send a command and wait for its answer."""
        self.tell(line)
        return self.hear()

    def _gone(self) -> RuntimeError:
        self._process.wait()
        said = self._log.read_text("utf-8", "replace").strip().splitlines()
        return RuntimeError(said[-1] if said else "it ended without a word")

    def close(self) -> None:
        """Let it end; it is given ten seconds."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Lane:
    """A peer's database and its processes.

    Attributes:
        peer: The peer.
        url: The database, as every driver here takes it.
        bare: A connection of our own, in autocommit mode.
        processes: Those that were started.
        meter: Of the server and of those processes.
    """

    def __init__(
        self, peer: Peer, server: str, environment: Environment | None, stack: ExitStack, *, processes: int = 1
    ) -> None:
        self.peer = peer
        parsed = make_url(server).set(drivername="postgresql")
        admin = stack.enter_context(psycopg.connect(parsed.render_as_string(hide_password=False), autocommit=True))
        name = f"solti_peer_{uuid.uuid4().hex[:8]}"
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        stack.callback(admin.execute, sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        self.url = parsed.set(database=name).render_as_string(hide_password=False)
        self.bare: psycopg.Connection[Any] = stack.enter_context(psycopg.connect(self.url, autocommit=True))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        payloads = folder / "payloads"
        payloads.write_text("".join(f"{spec.to_json()}\n" for spec in specs(_PAYLOADS)), "utf-8")
        self.processes: list[Process] = []
        for number in range(processes):
            process = Process(peer.command(environment, self.url, payloads), folder / f"log-{number}")
            stack.callback(process.close)
            if (said := process.hear()) != "ready":
                raise RuntimeError(said)
            self.processes.append(process)
        self.meter = Meter(self.bare, [process.pid for process in self.processes])

    def ask(self, line: str) -> str:
        """Have the first process do something."""
        return self.processes[0].ask(line)

    def share(self, tasks: int) -> int:
        """How many of so many tasks it is given."""
        return max(int(tasks * self.peer.share), 1)

    def settle(self) -> None:
        """Do what autovacuum does in quiet hours, so that it does not during the measurement."""
        self.bare.execute("VACUUM (ANALYZE)")


@contextmanager
def lanes(
    wanted: list[Peer], server: str, environment: Environment | None, *, processes: int = 1
) -> Iterator[tuple[list[Lane], list[str]]]:
    """The lanes of those that start, and what is to be said of those that do not."""
    with ExitStack() as stack:
        found: list[Lane] = []
        missing: list[str] = []
        for peer in wanted:
            try:
                with ExitStack() as own:
                    lane = Lane(peer, server, environment, own, processes=processes)
                    stack.push(own.pop_all())
                found.append(lane)
            except (RuntimeError, OSError) as error:
                if peer.is_ours:
                    raise
                missing.append(f"{peer.name} is left out: {error}")
                print(missing[-1], file=sys.stderr, flush=True)
        yield found, missing
