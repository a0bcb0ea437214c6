"""Statements on one task, or a batch of them: create, read, replace the spec, cancel, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Text,
    Uuid,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    false,
    func,
    literal,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert

from solti_store.sql.driver import Prepared
from solti_store.sql.events import CHANGED, DELETING, deletion, event
from solti_store.sql.tables import LATEST, OWNER, routes, task_status, tasks
from solti_store.sql.types import NOW, Instant, array_param, json_param
from solti_store.sql.waking import SOMEBODY_WAITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import CTE, FromClause, Select, TableValuedAlias

__all__ = [
    "CANCEL",
    "DELETE",
    "INSERT",
    "INSERT_JUDGED",
    "INSERT_MANY",
    "LOCK_BY_ID",
    "REPLACE_SPEC",
    "SELECT",
    "SELECT_CHANGED",
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
_owner = select(task_status.c.seq).where(OWNER).limit(1)


def _insert(rows: FromClause, new_routes: Callable[[CTE], CTE], *, decided: bool) -> Select[Any]:
    """Insert tasks from `rows` (`id`, `spec`, `route`, `slot`; in a batch `ord`): task, status, event in one statement.

    An id that exists is left out rather than raised: a unique violation would break the transaction, which
    may be the caller's.

    Args:
        rows: The tasks.
        new_routes: Interns their routes, if there is any of the tasks made.
        decided: Whether `rows` also has `queued` and `queue_key`, or each task is to own its slot. Then those whose
            slot has an owner are left out too, as far as the statement's snapshot shows: who was a moment quicker
            makes it fail on the index of owners.
    """
    given = select(rows.c.id, NOW, rows.c.spec)
    if not decided:
        # A subquery for each and not an anti-join, for which the planner may read all owners there are.
        given = given.where(_owner.where(task_status.c.slot == rows.c.slot).scalar_subquery().is_(None))
    if "ord" in rows.c:
        # In the order given, so that seq, the order of every list, follows it.
        given = given.order_by(rows.c.ord)
    new_task = (
        insert(tasks)
        .from_select(["id", "created_at", "spec"], given)
        .on_conflict_do_nothing(index_elements=[tasks.c.id])
        .returning(tasks.c.seq, tasks.c.id, tasks.c.created_at, tasks.c.slot)
        .cte("new_task")
    )
    queued = rows.c.queued if decided else false()
    status = select(
        new_task.c.seq,
        new_task.c.created_at,
        literal("pending", Text),
        case((~queued, new_task.c.created_at)),
        new_task.c.slot,
        case((queued, func.coalesce(rows.c.queue_key, new_task.c.seq))) if decided else null(),
        rows.c.route,
    ).select_from(new_task.join(rows, rows.c.id == new_task.c.id))
    if "ord" in rows.c:
        # One order for everybody: two batches that bring owners into the same free slots never deadlock on the index.
        status = status.order_by(new_task.c.slot)
    new_status = (
        insert(task_status)
        .from_select(["seq", "updated_at", "phase", "due_at", "slot", "queue_key", "route"], status)
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
    found = select(new_task.c.seq, new_task.c.id, new_task.c.created_at)
    if "ord" not in rows.c:
        found = found.add_columns(SOMEBODY_WAITS.label("somebody_waits"))
    return found.add_cte(new_routes(new_task), new_status, event(created, "created", before=None))


def _new_route(written: CTE) -> CTE:
    """Interns the task's route, if it was written: of what was refused, workers would judge the route for nothing.

    No look-up is needed for its id, which is a digest of the other two columns.
    """
    route = select(
        bindparam("route_id", type_=Uuid()), bindparam("task_kind", type_=Text()), json_param("route_selector")
    )
    return _interned(route.where(select(written.c.seq).exists()))


def _interned(given: Select[Any]) -> CTE:
    return insert(routes).from_select(["id", "kind", "selector"], given).on_conflict_do_nothing().cte("new_routes")


_one = select(
    _id.label("id"),
    json_param("task_spec").label("spec"),
    bindparam("route_id", type_=Uuid()).label("route"),
    bindparam("task_slot", type_=Text()).label("slot"),
).cte("input")

#: Creates one task as its slot's owner; no row when the id is taken, or the slot. Says whether to wake somebody.
INSERT = Prepared(_insert(_one, _new_route, decided=False))

_given_arrays = (
    _ids,
    array_param("specs", "text"),
    array_param("task_routes", "uuid"),
    array_param("task_slots", "text"),
)
_given_columns = (column("id", Text), column("spec_text", Text), column("route", Uuid), column("slot", Text))
_given = func.unnest(*_given_arrays).table_valued(*_given_columns, with_ordinality="ord", name="given").render_derived()


def _batch(given: TableValuedAlias) -> CTE:
    """The rows of a batch, with the spec as JSON."""
    others = [one for one in given.c if one.name != "spec_text"]
    return select(cast(given.c.spec_text, tasks.c.spec.type).label("spec"), *others).cte("input")


_given_routes = (
    func.unnest(array_param("routes", "uuid"), array_param("kinds", "text"), array_param("selectors", "text"))
    .table_valued(column("id", Uuid), column("kind", Text), column("selector", Text), name="given_route")
    .render_derived()
)


def _new_routes(_written: CTE) -> CTE:
    """Interns the routes of a batch, which is taken back if it is not written whole."""
    return _interned(
        select(_given_routes.c.id, _given_routes.c.kind, cast(_given_routes.c.selector, routes.c.selector.type))
        # One order for everybody: two batches that bring the same new routes never deadlock.
        .order_by(_given_routes.c.id)
    )


#: Creates a batch, each task as its slot's owner, leaving out those whose id or slot is taken; a row for each task
#: created. Binary arrays in one statement run at 0.8 of COPY into the same tables (20,000 rows: 39 k/s against 45 k/s)
#: and need no staging table.
INSERT_MANY = Prepared(_insert(_batch(_given), _new_routes, decided=False))

_judged = (
    func.unnest(*_given_arrays, array_param("queued", "boolean"), array_param("queue_keys", "bigint"))
    .table_valued(
        *_given_columns,
        column("queued", Boolean),
        column("queue_key", BigInteger),
        with_ordinality="ord",
        name="judged",
    )
    .render_derived()
)

# A lock alone would leave no trace of who joined the queue: a finish in a transaction with an old snapshot (REPEATABLE
# READ) would neither see the newcomer, nor fail.
_joined = (
    update(task_status)
    .where(task_status.c.seq == func.any(array_param("joined", "bigint")))
    .values(slot=task_status.c.slot)
    .cte("joined")
)

#: Creates a batch for whose slots the transaction has the owners locked, `joined`: tasks that own their slot, and tasks
#: that wait for it, behind all others or at `queue_keys`. Leaves out those whose id is taken.
INSERT_JUDGED = Prepared(
    _insert(
        _batch(_judged),
        _new_routes,
        decided=True,
    ).add_cte(_joined)
)

#: Those of `ids` that have changed since they were created.
SELECT_CHANGED = Prepared(
    select(*TASK_COLUMNS).select_from(_task).where(tasks.c.id == func.any(_ids), task_status.c.resource_version > 1)
)

_expected = bindparam("expected", type_=BigInteger())
_created = bindparam("created", type_=Instant)
# What a caller saw of a task: its version, and of which incarnation, to the millisecond that the model shows.
_as_expected = and_(
    or_(_expected.is_(None), task_status.c.resource_version == _expected),
    or_(_created.is_(None), func.date_trunc("milliseconds", tasks.c.created_at) == _created),
)

_spec = json_param("task_spec")
_labels = func.coalesce(_spec["labels"], cast("{}", tasks.c.labels.type))
_changed = (
    update(task_status)
    .where(
        task_status.c.seq == tasks.c.seq,
        tasks.c.id == _id,
        _as_expected,
        tasks.c.spec != _spec,
        tasks.c.slot == bindparam("task_slot", type_=Text()),
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
        case((tasks.c.labels != _labels, tasks.c.labels)).label("labels_before"),
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
            (tasks.c.labels == _labels, tasks.c.labels_xid),
            else_=func.pg_current_xact_id(),
        ),
    )
    .returning(tasks.c.seq, tasks.c.generation, tasks.c.created_at)
    .cte("respecified")
)

#: Compare-and-swap of the spec by `resource_version`: the status row is the lock, and taken first. No row
#: when the task is missing, at another version, of another slot, or has this spec already; `SELECT` tells which.
REPLACE_SPEC = Prepared(
    select(
        _respecified.c.generation,
        _respecified.c.created_at,
        _changed.c.resource_version,
        _changed.c.updated_at,
        _changed.c.phase,
        _changed.c.attempt,
        _changed.c.exit_code,
        _changed.c.error,
    )
    .select_from(_changed.join(_respecified, _respecified.c.seq == _changed.c.seq))
    .add_cte(
        _new_route(_changed),
        event(_changed, "specChanged", before=_changed.c.phase, labels_before=_changed.c.labels_before),
    )
)


#: Locks one task's status, before what decides about its slot: see `solti_store.sql.slots`. The status row first, as
#: every other writer takes it; a delete's cascade from tasks alone would meet a concurrent replace the other way round.
LOCK_BY_ID = Prepared(
    select(task_status.c.seq, task_status.c.slot, OWNER.label("owns"))
    .join(tasks, tasks.c.seq == task_status.c.seq)
    .where(tasks.c.id == _id)
    .with_for_update(of=task_status)
)

_leaving = (
    func.unnest(array_param("seqs", "bigint"), array_param("errors", "text"), array_param("successors", "text"))
    .table_valued(column("seq", BigInteger), column("why", Text), column("successor", Text), name="leaving")
    .render_derived()
)
_running = task_status.c.phase == "running"
_uncanceled = task_status.alias("uncanceled")
_canceled = (
    update(task_status)
    .where(
        task_status.c.seq == _leaving.c.seq,
        _uncanceled.c.seq == _leaving.c.seq,
        task_status.c.seq == tasks.c.seq,
        # Running and not yet asked, due now or later, or queued; everything else is final already.
        or_(
            and_(_running, task_status.c.cancel_requested_at.is_(None)),
            task_status.c.due_at.is_not(None),
            task_status.c.queue_key.is_not(None),
        ),
    )
    .values(
        resource_version=task_status.c.resource_version + 1,
        updated_at=LATEST,
        phase=case((_running, task_status.c.phase), else_="canceled"),
        cancel_requested_at=case((_running, NOW)),
        due_at=None,
        queue_key=None,
        # Not what a waiting task shows of its last attempt; the run keeps that.
        error=case((~_running, _leaving.c.why)),
        exit_code=None,
    )
    .returning(*CHANGED, task_status.c.error, _leaving.c.successor, _uncanceled.c.phase.label("phase_before"))
    .cte("canceled")
)

#: Cancels at once what is not running, and asks for it what is, of tasks that the transaction has locked; a row for
#: each that was changed.
CANCEL = Prepared(
    select(_canceled.c.seq, _canceled.c.phase).add_cte(
        event(
            _canceled,
            case((_canceled.c.phase == "running", "cancelRequested"), else_="finished"),
            before=_canceled.c.phase_before,
            detail=func.nullif(
                func.jsonb_strip_nulls(
                    func.jsonb_build_object(
                        literal("error", Text), _canceled.c.error, literal("supersededBy", Text), _canceled.c.successor
                    )
                ),
                cast("{}", JSONB),
            ),
        )
    )
)

_held = select(*DELETING).select_from(_task).where(tasks.c.id == _id, _as_expected).cte("held")
_deleted = delete(tasks).where(tasks.c.seq == _held.c.seq).returning(tasks.c.seq).cte("deleted")

#: Deletes one task, which the transaction has locked, with its runs; `expected` NULL means at any version. No row when
#: nothing was deleted.
DELETE = Prepared(select(_deleted.c.seq).add_cte(deletion(_held)))
