"""Statements on agents, one row a worker incarnation, and on the routes they may serve."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Integer,
    Interval,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    insert,
    or_,
    select,
    true,
    update,
)

from solti_store.sql.driver import Prepared
from solti_store.sql.tables import agents, routes, task_status
from solti_store.sql.types import NOW, array_param, json_param

__all__ = [
    "CLOSE_AGENT",
    "CLOSE_EXPIRED",
    "DRAIN",
    "HEARTBEAT",
    "HOLDER",
    "IS_NEW",
    "IS_OPEN",
    "REGISTER",
    "SELECT_AGENTS",
    "SELECT_NEW_ROUTES",
    "SELECT_PRESENT",
]

_agent = bindparam("agent_seq", type_=BigInteger())
_limit = bindparam("limit", type_=BigInteger())
_lease = bindparam("agent_lease", type_=Interval())

REGISTER = Prepared(
    insert(agents)
    .values(
        id=bindparam("agent_id", type_=Text()),
        labels=json_param("agent_labels"),
        kinds=array_param("agent_kinds", "text"),
        capacity=bindparam("agent_capacity", type_=Integer()),
        state="active",
        lease=_lease,
        registered_at=NOW,
        heartbeat_at=NOW,
        expires_at=NOW + _lease,
    )
    .returning(agents.c.seq)
)

#: Of an agent whose lease holds.
IS_OPEN = (agents.c.seq == _agent, agents.c.closed_at.is_(None), agents.c.expires_at >= NOW)

#: The agent that claims, if its lease holds: one that woke up too late must not start what is taken from it at once.
#: KEY SHARE lets its own heartbeat pass, while whoever closes the agent (FOR UPDATE) has to wait: no attempt can be
#: handed to an incarnation that was just closed.
HOLDER = Prepared(
    select(agents.c.seq, agents.c.state, NOW.label("moment")).where(*IS_OPEN).with_for_update(key_share=True, read=True)
)

_beat = (
    update(agents)
    .where(agents.c.seq == _agent, agents.c.closed_at.is_(None))
    # Never back: of two heartbeats that meet, the one that waited began earlier.
    .values(
        heartbeat_at=func.greatest(agents.c.heartbeat_at, NOW),
        expires_at=func.greatest(agents.c.expires_at, NOW + agents.c.lease),
    )
    .returning(agents.c.seq)
    .cte("beat")
)

#: Prolongs the lease; a row for each attempt whose cancellation was asked for, one with a NULL `task` when there
#: is none, and no row when the agent is closed.
HEARTBEAT = Prepared(
    select(_beat.c.seq, task_status.c.seq.label("task"), task_status.c.attempt).select_from(
        _beat.outerjoin(
            task_status,
            and_(
                task_status.c.agent == _beat.c.seq,
                # Said twice for the planner: the index of running attempts is on this condition.
                task_status.c.deadline.is_not(None),
                task_status.c.cancel_requested_at.is_not(None),
            ),
        )
    )
)

#: Locks agents that were silent past their lease. Locked before they are closed, and FOR UPDATE, to wait for the
#: claims of `HOLDER`; what those claimed is seen by the statement after this one.
_expired = (
    select(agents.c.seq)
    .where(agents.c.closed_at.is_(None), agents.c.expires_at < NOW)
    .order_by(agents.c.expires_at)
    .limit(_limit)
    .with_for_update(skip_locked=True)
    .cte("expired")
)
CLOSE_EXPIRED = Prepared(
    update(agents)
    .where(agents.c.seq == _expired.c.seq)
    .values(state="lost", closed_at=NOW)
    .returning(agents.c.seq, agents.c.id)
)

_leaving = (
    select(agents.c.seq).where(agents.c.seq == _agent, agents.c.closed_at.is_(None)).with_for_update().cte("leaving")
)
CLOSE_AGENT = Prepared(
    update(agents)
    .where(agents.c.seq == _leaving.c.seq)
    .values(state="stopped", closed_at=NOW)
    .returning(agents.c.seq, agents.c.id)
)

#: Hands the agent no more tasks; no row when it is closed.
DRAIN = Prepared(
    update(agents)
    .where(agents.c.seq == _agent, agents.c.closed_at.is_(None))
    .values(state="draining")
    .returning(agents.c.seq)
)

_running = (
    select(func.count().label("running"))
    .where(task_status.c.agent == agents.c.seq, task_status.c.deadline.is_not(None))
    .lateral("now")
)

#: Agents past the incarnation `after_seq`, in their order; those that are closed only if `closed` is true.
SELECT_AGENTS = Prepared(
    select(
        agents.c.seq,
        agents.c.id,
        case((and_(agents.c.closed_at.is_(None), agents.c.expires_at < NOW), "silent"), else_=agents.c.state).label(
            "state"
        ),
        agents.c.kinds,
        agents.c.capacity,
        cast(agents.c.labels, Text).label("labels"),
        agents.c.lease,
        agents.c.registered_at,
        agents.c.heartbeat_at,
        _running.c.running,
    )
    .select_from(agents.join(_running, true()))
    .where(
        agents.c.seq > bindparam("after_seq", type_=BigInteger()),
        or_(agents.c.closed_at.is_(None), bindparam("closed", type_=Boolean())),
    )
    .order_by(agents.c.seq)
    .limit(_limit)
)

#: Which of these incarnations there are.
SELECT_PRESENT = Prepared(select(agents.c.seq).where(agents.c.seq == func.any(array_param("agent_seqs", "bigint"))))

#: Of a route the caller has not judged yet. By exclusion and not by a high-water mark: routes commit in any order.
IS_NEW = routes.c.id != func.all(array_param("known", "uuid"))

SELECT_NEW_ROUTES = Prepared(
    select(routes.c.id, routes.c.kind, cast(routes.c.selector, Text).label("selector")).where(IS_NEW)
)
