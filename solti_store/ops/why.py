"""Why a task does not run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from solti_store.errors import NotFound
from solti_store.model import RunnerSelector, TaskId, TaskPhase
from solti_store.rules.why import Facts, Queue, Worker
from solti_store.rules.why import why as reason
from solti_store.sql.why import SELECT_FACTS

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.rules.why import Why
    from solti_store.sql.driver import Row

__all__ = ["why"]


def why(conn: Connection, task_id: str, *, now: datetime | None = None) -> Why:
    """Why one task does not run, or that it does."""
    checked = TaskId(task_id)
    row = SELECT_FACTS.one_or_none(conn, {"task_id": str(checked), "now": now})
    if row is None:
        raise NotFound(checked)
    return reason(
        Facts(
            id=row.id,
            phase=TaskPhase(row.phase),
            attempt=row.attempt,
            error=row.error,
            updated_at=row.updated_at,
            due_at=row.due_at,
            started_at=row.started_at,
            agent=row.agent_id,
            cancel_requested_at=row.cancel_requested_at,
            now=row.moment,
            kind=row.kind,
            selector=RunnerSelector() if row.selector is None else RunnerSelector.from_json(row.selector),
            ahead=row.ahead,
            queue=_queue(row),
            workers=[Worker(*worker) for worker in json.loads(row.workers)],
        )
    )


def _queue(row: Row) -> Queue | None:
    if row.queue_key is None:
        return None
    return Queue(
        slot=row.slot,
        ahead=row.in_line,
        owner=row.owner_id,
        owner_due_at=row.owner_due_at,
        owner_started_at=row.owner_started_at,
        owner_agent=row.owner_agent,
    )
