"""The server and the databases: made for the run, on a server of its own or on one that is given."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from solti_store import Subprocess, TaskSpec, TaskStore
from solti_store.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Arena", "arena", "server", "settings", "specs"]

# Durable as by default. A checkpoint in the middle of a block would be charged to one side.
SETTINGS = {"max_connections": "300", "shared_buffers": "256MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min"}

SHOWN = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
)


@dataclass(frozen=True, slots=True)
class Arena:
    """A migrated database, the store on it, and bare connections to it.

    Attributes:
        store: As `TaskStore.open` makes it.
        single: A bare connection in autocommit mode.
        several: A bare connection that begins a transaction at its first statement.
    """

    store: TaskStore
    single: psycopg.Connection[Any]
    several: psycopg.Connection[Any]

    def fill(self, tasks: int) -> list[str]:
        """Empty the tables, create so many due tasks, and give the planner its statistics.

        Returns:
            The tasks' ids.
        """
        self.single.execute(
            "TRUNCATE solti.tasks, solti.task_status, solti.task_runs, solti.task_events,"
            " solti.label_postings, solti.label_segments"
        )
        ids = [f"task-{number}" for number in range(tasks)]
        self.store.create_many(list(zip(ids, specs(tasks), strict=True)))
        for table in ("tasks", "task_status", "task_runs", "task_events", "routes", "agents"):
            self.single.execute(sql.SQL("VACUUM (ANALYZE) solti.{}").format(sql.Identifier(table)))
        return ids


def specs(count: int) -> list[TaskSpec]:
    """Specs of a usual size (500 bytes of JSON), no two alike, each with a slot of its own."""
    return [
        TaskSpec.builder(
            f"slot-{number}",
            Subprocess.command("make", "-j2", f"target-{number}", env={"STAGE": "build", "NUMBER": f"{number}"}),
            300_000,
        )
        .labels({"team": f"team-{number % 7}", "tier": "backend", "region": "eu-west"})
        .build()
        for number in range(count)
    ]


@contextmanager
def arena(url: str | None, *, keep: str | None = None) -> Iterator[Arena]:
    """Make the database, and remove it in the end.

    Args:
        url: Of a server where databases can be created; None starts a private one with durable commits.
        keep: The name of a database to use if it is there, and not to remove.
    """
    with server(url) as running:
        name = keep or f"solti_benchmark_{uuid.uuid4().hex[:8]}"
        parsed = make_url(running)
        plain = parsed.set(drivername="postgresql").render_as_string(hide_password=False)
        target = parsed.set(database=name).render_as_string(hide_password=False)
        bare = parsed.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as admin:
            if not admin.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchall():
                admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            try:
                upgrade(target)
                with (
                    TaskStore.open(target, max_slot_queue=10**9) as store,
                    psycopg.connect(bare, autocommit=True) as single,
                    psycopg.connect(bare) as several,
                ):
                    yield Arena(store, single, several)
            finally:
                if not keep:
                    admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def settings(url: str) -> dict[str, str]:
    """What a server says of itself."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as bare:
        return {
            name: row[0] if (row := bare.execute("SELECT current_setting(%s)", [name]).fetchone()) else "?"
            for name in SHOWN
        }


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """The given server, or else a private one that is gone in the end; several arenas may be in it."""
    if url:
        yield url
        return
    # Imported here, because with a URL the extra `embedded` is not needed.
    from solti_store.embedded import EmbeddedServer  # noqa: PLC0415

    root = Path(tempfile.mkdtemp(prefix="solti-benchmarks-"))
    root.chmod(0o711)  # a server of root runs as another user, who has to reach its data
    private = EmbeddedServer(root / "data", settings=SETTINGS)
    try:
        yield private.ensure_running()
    finally:
        private.destroy()
        shutil.rmtree(root, ignore_errors=True)
