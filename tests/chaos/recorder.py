"""Reads what there is to check: from the tables, and from what the workers wrote down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from chaos.history import Act, Event, History, RunRow, TaskRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import psycopg

__all__ = ["acts_in", "record"]

_EVENTS = """
    SELECT event, (extract(epoch FROM pg_xact_commit_timestamp(xid::xid)) * 1000000)::bigint, xid::text::bigint,
           seq, id, type, resource_version, phase, attempt,
           detail ->> 'outcome', (detail ->> 'exitCode')::integer, detail ->> 'error'
    FROM solti.task_events
"""
_TASKS = """
    SELECT seq, id, resource_version, phase, attempt, error, due_at IS NOT NULL OR deadline IS NOT NULL, queue_key
    FROM solti.tasks JOIN solti.task_status USING (seq)
"""
# What goes on is in the status; what has ended is a run.
_RUNS = """
    SELECT r.seq, r.attempt, r.phase, r.exit_code, r.error, r.agent,
           r.error LIKE 'lease expired:%' AND a.seq IS NOT NULL
               AND (a.closed_at IS NULL OR r.finished_at < a.closed_at) IS TRUE
    FROM solti.task_runs r LEFT JOIN solti.agents a ON a.seq = r.agent
    UNION ALL
    SELECT seq, attempt, phase, NULL, NULL, agent, false FROM solti.task_status WHERE deadline IS NOT NULL
"""


def record(conn: psycopg.Connection[Any], acts: Sequence[Act], *, max_slot_queue: int, drained: bool = True) -> History:
    """The history, once nobody writes any more.

    Args:
        conn: To the database, on a server with `track_commit_timestamp`.
        acts: What the clients wrote down.
        max_slot_queue: As the workers had it.
        drained: Whether the workers went on until there was nothing to do.
    """
    return History(
        events=[Event(*row) for row in conn.execute(_EVENTS)],
        tasks=[TaskRow(*row) for row in conn.execute(_TASKS)],
        runs=[RunRow(*row) for row in conn.execute(_RUNS)],
        acts=acts,
        max_slot_queue=max_slot_queue,
        drained=drained,
    )


def acts_in(directory: Path) -> Iterator[Act]:
    """The acts of all processes whose logs are there."""
    for log in sorted(directory.glob("*.log")):
        for line in log.read_text().splitlines():
            facts: dict[str, Any] = json.loads(line)
            if "record" in facts:
                facts["record"] = tuple(facts["record"])
            yield Act(**facts)
