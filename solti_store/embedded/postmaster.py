"""What runs in a data directory: the pid file read with distrust, processes identified before any signal."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from .places import listener, socket_dir

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PidFile", "alive", "orphans", "read_pid_file", "running", "same_command", "verified", "wait_gone"]

_LINES = 8  # pid, data directory, start time, port, socket directory, host, shared memory, state
_POLL = 0.01
_START_TOLERANCE = 10.0  # seconds between the kernel's note of a start and the server's own


@dataclass(frozen=True, slots=True)
class PidFile:
    """The contents of `postmaster.pid`: claims, of which none is believed without `verified`.

    Attributes:
        pid: The server's main process.
        started: When it started, Unix seconds.
        socket_dir: The directory of its socket.
        state: `starting`, `ready`, `stopping` or `standby`.
    """

    pid: int
    started: int
    socket_dir: str
    state: str


def read_pid_file(data_directory: Path) -> PidFile | None:
    """Read the pid file; None when it is missing, unreadable, truncated or garbage."""
    try:
        lines = os.fsdecode((data_directory / "postmaster.pid").read_bytes()).split("\n")
        if len(lines) < _LINES:
            return None
        claims = PidFile(int(lines[0]), int(lines[2]), lines[4], lines[7].strip())
    except (OSError, ValueError):
        return None
    return claims if claims.pid > 0 else None


def verified(claims: PidFile, data_directory: Path) -> psutil.Process | None:
    """Return the server that a pid file names, or None when that pid is gone or is somebody else.

    The handle that is returned remembers the process's start: a signal sent through it never reaches a
    later process of the same number.
    """
    try:
        process = psutil.Process(claims.pid)
        if not same_command(process, data_directory):
            return None
        if abs(process.create_time() - claims.started) > _START_TOLERANCE:
            # A later process of this number, or the clock was set since: a virtual machine that slept
            # wakes up hours behind. The kernel knows who listens on the socket, whatever the time.
            return process if listener(Path(claims.socket_dir)) == claims.pid else None
    except psutil.Error:
        return None
    return process


def running(data_directory: Path) -> psutil.Process | None:
    """Find the server of a data directory, even one whose pid file is missing or damaged.

    Walks the process table (some ms): not for the path that only asks for a URL.
    """
    claims = read_pid_file(data_directory)
    process = verified(claims, data_directory) if claims is not None else None
    if process is not None:
        return process
    found: dict[int, tuple[psutil.Process, int]] = {}
    for candidate in psutil.process_iter():
        try:
            if same_command(candidate, data_directory):
                found[candidate.pid] = (candidate, candidate.ppid())
        except psutil.Error:
            continue
    # A sub-process shows the server's arguments too, for the moment between its fork and its title.
    return next((process for process, parent in found.values() if parent not in found), None)


def orphans(cluster_name: str) -> list[psutil.Process]:
    """Find the sub-processes of a server of this cluster name, alive or killed.

    By their title, which anyone may read. Their working directory would say it too, but root in a
    container (no CAP_SYS_PTRACE) may not read that of another user's process.
    """
    found = []
    for candidate in psutil.process_iter():
        try:
            if " ".join(candidate.cmdline()).startswith(f"postgres: {cluster_name}: "):
                found.append(candidate)
        except psutil.Error:
            continue
    return found


def alive(process: psutil.Process) -> bool:
    """Tell whether a process still runs; a zombie that nobody reaps (pid 1 of many containers) does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_gone(processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait up to `timeout` seconds for processes to end; return those that did not.

    Not `psutil.wait_procs`, which takes a zombie for alive.
    """
    deadline = time.monotonic() + timeout
    while left := [process for process in processes if alive(process)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(_POLL)
    return []


def same_command(process: psutil.Process, data_directory: Path) -> bool:
    """Tell whether a process is `postgres -D <this directory>`, as the launcher here starts it.

    Its sub-processes are not: they have their titles in place of the arguments.

    Raises:
        psutil.Error: The process is gone.
    """
    command = process.cmdline()
    if len(command) < len(("postgres", "-D", "…")) or os.path.basename(command[0]) != "postgres":  # noqa: PTH119
        return False
    if command[1:3] == ["-D", os.fspath(data_directory)]:
        return alive(process)
    # Of another name, yet perhaps this directory: it was moved while the server ran.
    try:
        return command[1] == "-D" and Path(process.cwd()).samefile(data_directory)
    except psutil.AccessDenied:
        # Root in a container may not look (no CAP_SYS_PTRACE); the socket moved along, and it may ask that.
        return command[1] == "-D" and listener(socket_dir(data_directory.parent)) == process.pid
    except OSError:
        return False
