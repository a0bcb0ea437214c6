"""Making the data directory: all of it or nothing, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from solti_store.errors import EmbeddedError

from .postmaster import wait_gone
from .programs import run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .places import Account

__all__ = ["DATABASE", "INIT_PREFIX", "create", "major_of", "sweep"]

DATABASE = "solti"
INIT_PREFIX = "init-"

# Written at the end of postgresql.conf once, so that a later `ALTER SYSTEM` or an edit wins over it.
_DEFAULTS = """
# --- solti-store ---
shared_buffers = 128MB
max_connections = 100
# Not POSIX shared memory: systemd-logind removes that of an ordinary user at logout (RemoveIPC), and a
# container has 64 MB of it.
dynamic_shared_memory_type = mmap
# Starts, stops, crashes and refused connections. A store provokes constraint errors as part of its work,
# and a log of them, with their statements, would grow without end.
log_min_messages = log
log_checkpoints = off
timezone = 'UTC'
log_timezone = 'UTC'
"""


def major_of(data_directory: Path) -> int | None:
    """Return the PostgreSQL major version that wrote a data directory, None when there is none.

    Raises:
        EmbeddedError: Something is there that is no data directory.
    """
    if not data_directory.exists():
        return None
    try:
        return int((data_directory / "PG_VERSION").read_bytes())
    except (FileNotFoundError, ValueError):
        raise EmbeddedError(f"{data_directory} is not a PostgreSQL data directory: move it away") from None


def create(data_directory: Path, bindir: Path, account: Account, settings: Mapping[str, str]) -> None:
    """Create a cluster with the superuser and the database `solti`; the caller holds the lock.

    Both are made under a temporary name and one rename publishes them: after a kill -9 there is either a
    complete cluster or none. Access is `trust`: who can reach the socket, in a directory of mode 0700,
    can read the files as well.

    Raises:
        EmbeddedError: initdb failed.
        OSError: The directory cannot be made or renamed.
    """
    durable = settings.get("fsync", "on").lower() not in {"off", "false", "no", "0"}
    building = Path(tempfile.mkdtemp(prefix=INIT_PREFIX, dir=data_directory.parent))
    try:
        if account.switch:
            os.chown(building, account.uid, account.gid)
        # No locale: the same order and the same messages on every machine.
        init = [str(bindir / "initdb"), "-D", str(building), "--username", DATABASE, "--encoding", "UTF8"]
        init += ["--no-locale", "--auth-local", "trust", "--auth-host", "reject", "--data-checksums"]
        run(init + ([] if durable else ["--no-sync"]), account, what="initdb")
        with (building / "postgresql.conf").open("a", encoding="utf-8") as file:
            file.write(_DEFAULTS)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        # In single-user mode (60 ms), not after the first start: then every start would have to check.
        single = [str(bindir / "postgres"), "--single", "-D", str(building), "-c", "exit_on_error=true"]
        single += ["-c", f"fsync={'on' if durable else 'off'}", "postgres"]
        run(single, account, what="create database", text=f'CREATE DATABASE "{DATABASE}"\n')
        building.rename(data_directory)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    if durable:
        handle = os.open(data_directory.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(root: Path) -> None:
    """Remove the unfinished clusters of killed starters; the caller holds the lock.

    A killed starter's initdb runs on for a moment. It is ended first, recognized by the temporary
    directory in its arguments, lest it fill a directory that is being removed.
    """
    leftovers = [entry for entry in root.iterdir() if entry.name.startswith(INIT_PREFIX)]
    if not leftovers:
        return
    names = {os.fspath(entry) for entry in leftovers}
    ended = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command and os.path.basename(command[0]) in {"initdb", "postgres"} and names & set(command):  # noqa: PTH119
                process.kill()
                ended.append(process)
    wait_gone(ended, timeout=5)
    for entry in leftovers:
        # What a grandchild still adds stays for the next sweep.
        shutil.rmtree(entry, ignore_errors=True)
