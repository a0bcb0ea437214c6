"""Statements on one task, or a batch of them: create, read, replace the spec, cancel, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from solti_store.sql.driver import Prepared
from solti_store.sql.events import CHANGED, DELETING, event
from solti_store.sql.tables import LATEST, routes, task_status, tasks
from solti_store.sql.types import NOW, Instant, array_param, json_param

if TYPE_CHECKING:
    from sqlalchemy import CTE, FromClause, Select

__all__ = [
    "CANCEL",
    "DELETE",
    "INSERT",
    "INSERT_MANY",
    "REPLACE_SPEC",
    "SELECT",
    "TASK_COLUMNS",
]

_id = bindparam("task_id", type_=Text())

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

_task = tasks.join(task_status, task_status.c.seq == tasks.c.seq)

SELECT = Prepared(select(*TASK_COLUMNS).select_from(_task).where(tasks.c.id == _id))

_ids = array_param("ids", "text")


def _insert(rows: FromClause, new_routes: CTE) -> Select[Any]:
    """Insert tasks from `rows` (`id`, `spec`, `route`, `ord`): task, status and event in one statement.

    An id that exists is left out rather than raised: a unique violation would break the transaction, which
    may be the caller's.
    """
    new_task = (
        insert(tasks)
        .from_select(
            ["id", "created_at", "spec"],
            # In the order given, so that seq, the order of every list, follows it.
            select(rows.c.id, NOW, rows.c.spec).order_by(rows.c.ord),
        )
        .on_conflict_do_nothing(index_elements=[tasks.c.id])
        .returning(tasks.c.seq, tasks.c.id, tasks.c.created_at)
        .cte("new_task")
    )
    new_status = (
        insert(task_status)
        .from_select(
            ["seq", "updated_at", "phase", "due_at", "route"],
            select(
                new_task.c.seq,
                new_task.c.created_at,
                literal("pending", Text),
                new_task.c.created_at,
                rows.c.route,
            ).select_from(new_task.join(rows, rows.c.id == new_task.c.id)),
        )
        .cte("new_status")
    )
    created = select(
        new_task.c.seq,
        new_task.c.id,
        new_task.c.created_at.label("updated_at"),
        literal(1).label("resource_version"),
        literal("pending", Text).label("phase"),
        literal(0).label("attempt"),
    ).cte("created")
    return select(new_task.c.seq, new_task.c.id, new_task.c.created_at).add_cte(
        new_routes, new_status, event(created, "created")
    )


#: Interns the task's route. No look-up is needed for its id, which is a digest of the other two columns.
_new_route = (
    insert(routes)
    .values(
        id=bindparam("route_id", type_=Uuid()),
        kind=bindparam("task_kind", type_=Text()),
        selector=json_param("route_selector"),
    )
    .on_conflict_do_nothing()
    .cte("new_route")
)

_one = select(
    _id.label("id"),
    json_param("task_spec").label("spec"),
    bindparam("route_id", type_=Uuid()).label("route"),
    literal(1).label("ord"),
).cte("input")

#: Creates one task; no row when the id is taken.
INSERT = Prepared(_insert(_one, _new_route))

_given = (
    func.unnest(_ids, array_param("specs", "text"), array_param("task_routes", "uuid"))
    .table_valued(
        column("id", Text),
        column("spec_text", Text),
        column("route", Uuid),
        with_ordinality="ord",
        name="given",
    )
    .render_derived()
)
_many = select(
    _given.c.id, cast(_given.c.spec_text, tasks.c.spec.type).label("spec"), _given.c.route, _given.c.ord
).cte("input")
_given_routes = (
    func.unnest(array_param("routes", "uuid"), array_param("kinds", "text"), array_param("selectors", "text"))
    .table_valued(column("id", Uuid), column("kind", Text), column("selector", Text), name="given_route")
    .render_derived()
)

#: Creates a batch, leaving out what exists; a row for each task created. Binary arrays in one statement run at
#: 0.8 of COPY into the same tables (20,000 rows: 39 k/s against 45 k/s) and need no staging table.
INSERT_MANY = Prepared(
    _insert(
        _many,
        insert(routes)
        .from_select(
            ["id", "kind", "selector"],
            select(_given_routes.c.id, _given_routes.c.kind, cast(_given_routes.c.selector, routes.c.selector.type))
            # One order for everybody: two batches that bring the same new routes never deadlock.
            .order_by(_given_routes.c.id),
        )
        .on_conflict_do_nothing()
        .cte("new_routes"),
    )
)


_expected = bindparam("expected", type_=BigInteger())
_created = bindparam("created", type_=Instant)
# What a caller saw of a task: its version, and of which incarnation, to the millisecond that the model shows.
_as_expected = and_(
    or_(_expected.is_(None), task_status.c.resource_version == _expected),
    or_(_created.is_(None), func.date_trunc("milliseconds", tasks.c.created_at) == _created),
)

_spec = json_param("task_spec")
_changed = (
    update(task_status)
    .where(
        task_status.c.seq == tasks.c.seq,
        tasks.c.id == _id,
        _as_expected,
        tasks.c.spec != _spec,
    )
    .values(
        resource_version=task_status.c.resource_version + 1,
        updated_at=LATEST,
        route=bindparam("route_id", type_=Uuid()),
    )
    .returning(
        *CHANGED,
        task_status.c.exit_code,
        task_status.c.error,
    )
    .cte("changed")
)
_respecified = (
    update(tasks)
    .where(tasks.c.seq == _changed.c.seq)
    .values(
        spec=_spec,
        generation=tasks.c.generation + 1,
        labels_xid=case(
            (tasks.c.labels == func.coalesce(_spec["labels"], cast("{}", tasks.c.labels.type)), tasks.c.labels_xid),
            else_=func.pg_current_xact_id(),
        ),
    )
    .returning(tasks.c.seq, tasks.c.generation, tasks.c.created_at, cast(tasks.c.spec, Text).label("spec"))
    .cte("respecified")
)

#: Compare-and-swap of the spec by `resource_version`: the status row is the lock, and taken first. No row
#: when the task is missing, at another version, or has this spec already; `SELECT` tells which.
REPLACE_SPEC = Prepared(
    select(
        _changed.c.seq,
        _changed.c.id,
        _respecified.c.generation,
        _respecified.c.created_at,
        _respecified.c.spec,
        _changed.c.resource_version,
        _changed.c.updated_at,
        _changed.c.phase,
        _changed.c.attempt,
        _changed.c.exit_code,
        _changed.c.error,
    )
    .select_from(_changed.join(_respecified, _respecified.c.seq == _changed.c.seq))
    .add_cte(
        _new_route,
        event(_changed, "specChanged"),
    )
)


_running = task_status.c.phase == "running"
_canceled = (
    update(task_status)
    .where(
        task_status.c.seq == tasks.c.seq,
        tasks.c.id == _id,
        # Running and not yet asked, not started, or waiting for a restart; everything else is final already.
        or_(and_(_running, task_status.c.cancel_requested_at.is_(None)), task_status.c.due_at.is_not(None)),
    )
    .values(
        resource_version=task_status.c.resource_version + 1,
        updated_at=LATEST,
        phase=case((_running, task_status.c.phase), else_="canceled"),
        cancel_requested_at=case((_running, NOW)),
        due_at=None,
        # What a waiting task shows of its last attempt; the run keeps it.
        error=None,
        exit_code=None,
    )
    .returning(*CHANGED)
    .cte("canceled")
)

#: Cancels at once what is not running, and asks for it what is; no row when there is nothing to do.
CANCEL = Prepared(
    select(_canceled.c.seq).add_cte(
        event(_canceled, case((_canceled.c.phase == "running", "cancelRequested"), else_="finished"))
    )
)

_held = (
    select(*DELETING)
    .select_from(_task)
    .where(tasks.c.id == _id, _as_expected)
    # The status row first, as every other writer takes it; the cascade from tasks alone would meet a
    # concurrent replace the other way round.
    .with_for_update(of=task_status)
    .cte("held")
)
_deleted = delete(tasks).where(tasks.c.seq == _held.c.seq).returning(tasks.c.seq).cte("deleted")

#: Deletes one task with its runs; `expected` NULL means at any version. No row when nothing was deleted.
DELETE = Prepared(select(_deleted.c.seq).add_cte(event(_held, "deleted")))
