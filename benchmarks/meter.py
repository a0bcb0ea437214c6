"""What a block of work took: time, processor time on both sides, write-ahead log, memory.

Linux only, for /proc. Of a server on another machine its processor time is not known.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psycopg

__all__ = ["Meter", "Spent", "cpu_s", "peak_mb"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 11, 12, 13, 14


@dataclass(slots=True)
class Spent:
    """What was spent in a block.

    Attributes:
        wall_s: By the clock.
        client_s: Processor time of the measured processes.
        server_s: Of all processes of the server, those that came and went included; None if it is elsewhere.
        wal: Bytes of write-ahead log.
    """

    wall_s: float = 0.0
    client_s: float = 0.0
    server_s: float | None = None
    wal: float = 0.0


class Meter:
    """Measures blocks on a server.

    Args:
        bare: A connection in autocommit mode.
        pids: The processes whose time is the client's.
    """

    def __init__(self, bare: psycopg.Connection[Any], pids: Sequence[int]) -> None:
        self._bare = bare
        self._pids = pids
        self._postmaster = _postmaster(bare)

    @contextmanager
    def block(self) -> Iterator[Spent]:
        """Fill in, at the end of the block, what it took."""
        spent = Spent()
        wal, client, server = self._now()
        began = time.perf_counter()
        yield spent
        spent.wall_s = time.perf_counter() - began
        wal_after, client_after, server_after = self._now()
        spent.wal, spent.client_s = wal_after - wal, client_after - client
        spent.server_s = None if server is None or server_after is None else server_after - server

    def _now(self) -> tuple[float, float, float | None]:
        row = self._bare.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
        server = None if self._postmaster is None else _family_s(self._postmaster)
        return float(row[0]) if row else 0.0, sum(map(cpu_s, self._pids)), server


def cpu_s(pid: int) -> float:
    """Processor time of a process so far, all its threads."""
    fields = _stat(pid)
    return (int(fields[_USER]) + int(fields[_SYSTEM])) * _TICK_S


def peak_mb(pid: int) -> float:
    """The most memory that a process had in use so far."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _stat(pid: int) -> list[str]:
    # After the name, which may have blanks and brackets in it.
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()


def _postmaster(bare: psycopg.Connection[Any]) -> int | None:
    backend = bare.info.backend_pid
    try:
        name = Path(f"/proc/{backend}/comm").read_text("utf-8").strip()
        return int(_stat(backend)[_PARENT]) if name.startswith("postgres") else None
    except OSError:
        return None


def _family_s(parent: int) -> float:
    """Processor time of a process, of its children, and of those that it has buried."""
    fields = _stat(parent)
    ticks = sum(int(fields[place]) for place in (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM))
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                fields = _stat(int(entry.name))
            except OSError:  # it has just ended
                continue
            if int(fields[_PARENT]) == parent:
                ticks += int(fields[_USER]) + int(fields[_SYSTEM])
    return ticks * _TICK_S
