"""Deletes what is over and old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from solti_store.ops import arguments, feed
from solti_store.sql import retention as sql
from solti_store.sql.feed import DELETE_EVENTS

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from sqlalchemy import Connection

    from solti_store.rules.retention import Retention

__all__ = ["Pruned", "prune"]


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows went.

    Attributes:
        tasks: Final tasks; their runs went with them and are not counted.
        runs: Runs of tasks that live on.
        agents: Agents that are no more.
        events: Events of the feed.
        is_complete: Whether that was all there was, apart from what others held.
    """

    tasks: int
    runs: int
    agents: int
    events: int
    is_complete: bool


def prune(conn: Connection, retention: Retention, *, limit: int, now: datetime | None = None) -> Pruned:
    """Delete up to `limit` of each kind of row that is kept no longer."""
    most = arguments.limit(limit)
    tasks = _tasks(conn, retention.tasks, most, now) if retention.tasks is not None else 0
    runs = _runs(conn, retention.runs, most, now) if retention.runs is not None else 0
    agents = 0
    if retention.agents is not None:
        agents = len(sql.DELETE_AGENTS.all(conn, {"kept": retention.agents, "limit": most, "now": now}))
    events = _events(conn, retention.events, most, now) if retention.events is not None else 0
    return Pruned(tasks, runs, agents, events, is_complete=max(tasks, runs, agents, events) < most)


def _tasks(conn: Connection, kept: timedelta, limit: int, now: datetime | None) -> int:
    old = sql.LOCK_OLD_TASKS.all(conn, {"kept": kept, "limit": limit, "now": now})
    return len(sql.DELETE_TASKS.all(conn, {"seqs": [row.seq for row in old], "now": now})) if old else 0


def _runs(conn: Connection, kept: timedelta, limit: int, now: datetime | None) -> int:
    old = sql.LOCK_OLD_RUNS.all(conn, {"kept": kept, "limit": limit, "now": now})
    keys = {"seqs": [row.seq for row in old], "attempts": [row.attempt for row in old]}
    return len(sql.DELETE_RUNS.all(conn, keys)) if old else 0


def _events(conn: Connection, kept: timedelta, limit: int, now: datetime | None) -> int:
    if conn.in_nested_transaction():
        # What a savepoint writes has another number than its transaction: the feed would seem restored.
        return 0
    # Of a restored database whose feed nobody has asked for yet, nothing could be pruned.
    feed.renew(conn)
    gone = DELETE_EVENTS.one_or_none(conn, {"kept": kept, "limit": limit, "now": now})
    return 0 if gone is None else int(gone.events)
