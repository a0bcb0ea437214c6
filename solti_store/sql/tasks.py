"""Statements on one task, or a batch of them: create, read, replace the spec, cancel, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    CTE,
    BigInteger,
    Text,
    Uuid,
    bindparam,
    cast,
    delete,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from solti_store.sql.events import event
from solti_store.sql.tables import routes, task_status, tasks
from solti_store.sql.types import NOW, array_param, json_param

if TYPE_CHECKING:
    from sqlalchemy import Select

__all__ = [
    "DELETE",
    "INSERT",
    "INSERT_MANY",
    "REPLACE_SPEC",
    "SELECT",
    "SELECT_TAKEN",
    "TASK_COLUMNS",
]

#: What `solti_store.ops.rows.task` reads. The spec as text: it goes to pydantic unparsed.
TASK_COLUMNS = (
    tasks.c.seq,
    tasks.c.id,
    tasks.c.generation,
    tasks.c.created_at,
    cast(tasks.c.spec, Text).label("spec"),
    task_status.c.resource_version,
    task_status.c.updated_at,
    task_status.c.phase,
    task_status.c.attempt,
    task_status.c.exit_code,
    task_status.c.error,
)

SELECT = (
    select(*TASK_COLUMNS)
    .join(task_status, task_status.c.seq == tasks.c.seq)
    .where(tasks.c.id == bindparam("id"))
)

_ids = array_param("ids", "text")

#: Of `ids`, the first in the order given that exists.
SELECT_TAKEN = (
    select(tasks.c.id).where(tasks.c.id == func.any(_ids)).order_by(func.array_position(_ids, tasks.c.id)).limit(1)
)


def _insert(rows: CTE, new_routes: CTE) -> Select[int, object]:
    """Insert tasks from `rows` (`id`, `spec`, `route`, `ord`): task, status and event in one statement.

    An id that exists is left out and not raised: a unique violation would break the caller's transaction.
    """
    new_tasks = (
        insert(tasks)
        .from_select(
            ["id", "created_at", "spec"],
            # In the order given, so that seq, the order of every list, follows it.
            select(rows.c.id, NOW, rows.c.spec).order_by(rows.c.ord),
        )
        .on_conflict_do_nothing(index_elements=[tasks.c.id])
        .returning(tasks.c.seq, tasks.c.id, tasks.c.created_at)
        .cte("new_tasks")
    )
    new_status = (
        insert(task_status)
        .from_select(
            ["seq", "updated_at", "phase", "due_at", "route"],
            select(
                new_tasks.c.seq,
                new_tasks.c.created_at,
                literal("pending", Text),
                new_tasks.c.created_at,
                rows.c.route,
            ).join_from(new_tasks, rows, rows.c.id == new_tasks.c.id),
        )
        .returning(
            task_status.c.seq,
            task_status.c.updated_at,
            task_status.c.resource_version,
            task_status.c.phase,
            task_status.c.attempt,
        )
        .cte("new_status")
    )
    raise NotImplementedError
