"""The audit trail: every statement that changes a task writes its event in the same breath."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, ColumnElement, Text, cast, func, literal, select
from sqlalchemy.dialects.postgresql import insert

from solti_store.sql.tables import LATEST, task_events, task_status, tasks

if TYPE_CHECKING:
    from sqlalchemy import CTE, FromClause

__all__ = ["CHANGED", "DELETING", "deletion", "event"]

#: What `event` needs to know of a task that was changed, for the RETURNING of the change.
CHANGED = (
    task_status.c.seq,
    tasks.c.id,
    task_status.c.resource_version,
    task_status.c.updated_at,
    task_status.c.phase,
    task_status.c.attempt,
)

#: The same of a task that is about to be deleted, as of now, with what `deletion` needs: nothing of it will be left to
#: return.
DELETING = (
    *(c for c in CHANGED if c is not task_status.c.updated_at),
    LATEST.label("updated_at"),
    tasks.c.labels,
    func.jsonb_build_object(
        literal("spec", Text),
        tasks.c.spec,
        literal("generation", Text),
        tasks.c.generation,
        literal("createdAt", Text),
        cast(func.extract("epoch", func.date_trunc("milliseconds", tasks.c.created_at)) * 1000, BigInteger),
    ).label("last_state"),
)


def deletion(source: FromClause) -> CTE:
    """A CTE that writes the event of each task of `source`, which has the columns of `DELETING`."""
    return event(source, "deleted", before=source.c.phase, labels_before=source.c.labels, detail=source.c.last_state)


def event(
    source: FromClause,
    kind: str | ColumnElement[str],
    *,
    before: str | ColumnElement[str] | None,
    labels_before: ColumnElement[Any] | None = None,
    detail: ColumnElement[Any] | None = None,
) -> CTE:
    """A CTE that writes one event for each row of `source`.

    Args:
        source: Has the columns of `CHANGED`, as they are after the change.
        kind: The event's type, one of the names that the table's CHECK lists.
        before: The phase before the change; None when there was no such task.
        labels_before: The labels before the change, NULL where it left them as they were.
        detail: A jsonb expression over `source`.
    """
    columns: dict[str, ColumnElement[Any]] = {
        "at": source.c.updated_at,
        "seq": source.c.seq,
        "id": source.c.id,
        "type": literal(kind, Text) if isinstance(kind, str) else kind,
        "resource_version": source.c.resource_version,
        "phase": source.c.phase,
        "attempt": source.c.attempt,
    }
    if before is not None:
        columns["phase_before"] = literal(before, Text) if isinstance(before, str) else before
    if labels_before is not None:
        columns["labels_before"] = labels_before
    if detail is not None:
        columns["detail"] = detail
    rows = select(*columns.values()).select_from(source)
    return insert(task_events).from_select(list(columns), rows).cte("event")
