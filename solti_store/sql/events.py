"""The audit trail: every statement that changes a task writes its event in the same breath."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Text, literal, null, select
from sqlalchemy.dialects.postgresql import insert

from solti_store.sql.tables import LATEST, task_events, task_status, tasks

if TYPE_CHECKING:
    from sqlalchemy import CTE

__all__ = ["CHANGED", "DELETING", "event"]

#: What `event` needs to know of a task that was changed, for the RETURNING of the change.
CHANGED = (
    task_status.c.seq,
    tasks.c.id,
    task_status.c.resource_version,
    task_status.c.updated_at,
    task_status.c.phase,
    task_status.c.attempt,
)

#: The same of a task that is about to be deleted, as of now: nothing of it will be left to return.
DELETING = (*(c for c in CHANGED if c is not task_status.c.updated_at), LATEST.label("updated_at"))


def event(source: CTE, kind: str | ColumnElement[str], *, detail: ColumnElement[Any] | None = None) -> CTE:
    """A CTE that writes one event for each row of `source`.

    Args:
        source: Has the columns of `CHANGED`, as they are after the change.
        kind: The event's type, one of the names that the table's CHECK lists.
        detail: A jsonb expression over `source`.
    """
    return (
        insert(task_events)
        .from_select(
            ["at", "seq", "id", "type", "resource_version", "phase", "attempt", "detail"],
            select(
                source.c.updated_at,
                source.c.seq,
                source.c.id,
                literal(kind, Text) if isinstance(kind, str) else kind,
                source.c.resource_version,
                source.c.phase,
                source.c.attempt,
                null() if detail is None else detail,
            ),
        )
        .cte("event")
    )
