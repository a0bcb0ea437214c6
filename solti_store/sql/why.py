"""The statement that asks why a task does not run."""

from __future__ import annotations

from sqlalchemy import BigInteger, Text, bindparam, cast, func, literal_column, select, tuple_

from solti_store.sql.driver import Prepared
from solti_store.sql.tables import OWNER, agents, routes, task_status, tasks
from solti_store.sql.types import NOW

__all__ = ["SELECT_FACTS"]

_most_ahead = literal_column("1000", BigInteger)
_most_workers = literal_column("100", BigInteger)

_other = task_status.alias("other")
_before = (
    select(_other.c.seq)
    .where(
        _other.c.route == task_status.c.route,
        _other.c.due_at.is_not(None),
        tuple_(_other.c.due_at, _other.c.seq) < tuple_(task_status.c.due_at, task_status.c.seq),
    )
    .order_by(_other.c.due_at, _other.c.seq)
    .limit(_most_ahead)
    .correlate(task_status)
    .subquery("before")
)
_ahead = select(func.count()).select_from(_before).scalar_subquery()
_in_line = (
    select(_other.c.seq)
    .where(_other.c.slot == task_status.c.slot, _other.c.queue_key < task_status.c.queue_key)
    .limit(_most_ahead)
    .correlate(task_status)
    .subquery("in_line")
)
_owner, _owner_task = task_status.alias("owner"), tasks.alias("owner_task")
_owners = (
    select(
        _owner_task.c.id,
        _owner.c.due_at,
        _owner.c.started_at,
        _owner.c.agent_id,
    )
    .select_from(_owner.join(_owner_task, _owner_task.c.seq == _owner.c.seq))
    .where(_owner.c.slot == task_status.c.slot, OWNER)
    .correlate(task_status)
    .lateral("slot_owner")
)
_live = (
    select(agents.c.id, agents.c.kinds, agents.c.labels, agents.c.state)
    .where(agents.c.closed_at.is_(None), agents.c.expires_at >= NOW)
    .order_by(agents.c.seq)
    .limit(_most_workers)
    .subquery("live")
)
_each = func.json_build_array(_live.c.id, _live.c.kinds, _live.c.labels, _live.c.state == "draining")
_workers = select(func.coalesce(func.json_agg(_each), literal_column("'[]'"))).scalar_subquery()

#: All that bears on whether a task runs, in one snapshot.
SELECT_FACTS = Prepared(
    select(
        tasks.c.id,
        tasks.c.kind,
        task_status.c.phase,
        task_status.c.attempt,
        task_status.c.error,
        task_status.c.updated_at,
        task_status.c.due_at,
        task_status.c.cancel_requested_at,
        task_status.c.started_at,
        task_status.c.agent_id,
        NOW.label("moment"),
        cast(routes.c.selector, Text).label("selector"),
        _ahead.label("ahead"),
        task_status.c.slot,
        task_status.c.queue_key,
        select(func.count()).select_from(_in_line).scalar_subquery().label("in_line"),
        _owners.c.id.label("owner_id"),
        _owners.c.due_at.label("owner_due_at"),
        _owners.c.started_at.label("owner_started_at"),
        _owners.c.agent_id.label("owner_agent"),
        cast(_workers, Text).label("workers"),
    )
    .select_from(
        tasks.join(task_status, task_status.c.seq == tasks.c.seq)
        .outerjoin(routes, routes.c.id == task_status.c.route)
        .outerjoin(_owners, task_status.c.queue_key.is_not(None))
    )
    .where(tasks.c.id == bindparam("task_id", type_=Text()))
)
