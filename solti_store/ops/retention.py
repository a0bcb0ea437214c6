"""Deletes what is over and old."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from solti_store.faults import Fault, classify, translate
from solti_store.ops import arguments, feed
from solti_store.ops.rollups import roll_up, unkept
from solti_store.sql import retention as sql
from solti_store.sql.feed import DELETE_EVENTS
from solti_store.sql.rollups import HAS_ROLLUPS

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from sqlalchemy import Connection

    from solti_store.rules.retention import Retention

__all__ = ["Pruned", "prune"]

logger = logging.getLogger(__name__)

# Of one call: a day of 100,000 runs takes 2 s.
_DAYS_MAX = 7


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
    """Delete up to `limit` of each kind of row that is kept no longer; count the runs among them first."""
    most = arguments.limit(limit)
    first_unkept, is_rolled_up = _rolled_up(conn, retention, now)
    tasks = _tasks(conn, retention.tasks, most, first_unkept, now) if retention.tasks is not None else 0
    runs = _runs(conn, retention.runs, most, first_unkept, now) if retention.runs is not None else 0
    agents = 0
    if retention.agents is not None:
        agents = len(sql.DELETE_AGENTS.all(conn, {"kept": retention.agents, "limit": most, "now": now}))
    events = _events(conn, retention.events, most, now) if retention.events is not None else 0
    is_complete = is_rolled_up and max(tasks, runs, agents, events) < most
    return Pruned(tasks, runs, agents, events, is_complete)


def _rolled_up(conn: Connection, retention: Retention, now: datetime | None) -> tuple[datetime | None, bool]:
    """Keep what the runs came to that are about to go, if their days are over.

    What holds for runs holds for final tasks by their last change, which was no earlier than the end of their runs.

    Returns:
        When the first run ended of which that is still to be done, and whether to go on could do no more.
    """
    kept = min((one for one in (retention.tasks, retention.runs) if one is not None), default=None)
    # On the schema before there are no trends: retention takes what it took there.
    if kept is None or not HAS_ROLLUPS.one(conn, {}).is_so:
        return None, True
    before = sql.SELECT_UNTIL.one(conn, {"kept": kept, "now": now}).until
    days = 0
    try:
        # What fails here takes back to here: of the runs of such a day none goes, and all else does.
        with conn.begin_nested():
            while days < _DAYS_MAX and roll_up(conn, before=before, now=now) is not None:
                days += 1
    except DBAPIError as error:
        if classify(error) is not Fault.FINAL:
            raise
        logger.warning("runs that are over stay, for their day could not be rolled up: %s", translate(error))
        days = 0
    return unkept(conn, now=now), days < _DAYS_MAX


def _tasks(conn: Connection, kept: timedelta, limit: int, first_unkept: datetime | None, now: datetime | None) -> int:
    old = sql.LOCK_OLD_TASKS.all(conn, {"kept": kept, "limit": limit, "unkept": first_unkept, "now": now})
    return len(sql.DELETE_TASKS.all(conn, {"seqs": [row.seq for row in old], "now": now})) if old else 0


def _runs(conn: Connection, kept: timedelta, limit: int, first_unkept: datetime | None, now: datetime | None) -> int:
    old = sql.LOCK_OLD_RUNS.all(conn, {"kept": kept, "limit": limit, "unkept": first_unkept, "now": now})
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
