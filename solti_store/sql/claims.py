"""Statements that start attempts: whatever is due, or one task by hand; and what an agent runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Numeric,
    Text,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from solti_store.sql.agents import HOLDER, IS_NEW, IS_OPEN
from solti_store.sql.driver import Prepared
from solti_store.sql.events import CHANGED, event
from solti_store.sql.tables import LATEST, agents, routes, task_status, tasks
from solti_store.sql.types import NOW, Instant, Tid, array_param, later

if TYPE_CHECKING:
    from sqlalchemy import CTE, FromClause, Select

__all__ = ["CLAIM", "CLAIM_BY_ROUTE", "PICK_BY_ID", "SELECT_HELD", "SELECT_HELD_KEYS", "START"]

_id = bindparam("task_id", type_=Text())
_agent = bindparam("agent_seq", type_=BigInteger())
_limit = bindparam("limit", type_=BigInteger())

# The most that anybody may ask for. Each limit is within one of these, since of a parameter's limit the planner expects
# a tenth of all there is: with 1,000,000 due it would plan to read whole tables.
_most = literal_column("1000", BigInteger)

_due = (task_status.c.due_at.is_not(None), task_status.c.due_at <= NOW)
# Each route from where its due tasks may begin (`solti_store.rules.claim_cursor`).
_route = (
    func.unnest(array_param("routes", "uuid"), array_param("since", "timestamptz"))
    .table_valued(column("id", Uuid), column("since", Instant), name="mine")
    .render_derived()
)


def _due_in(routes: FromClause, route: ColumnElement[Any]) -> Select[Any]:
    """What is due in one of `routes`, from its due time on, the longest due first."""
    return (
        select(task_status.c.seq, task_status.c.ctid, task_status.c.due_at, task_status.c.phase)
        .where(task_status.c.route == route, *_due, task_status.c.due_at >= routes.c.since)
        .order_by(task_status.c.due_at, task_status.c.seq)
        .limit(_most)
        .correlate(routes)
    )


def _free_in(routes: FromClause, route: ColumnElement[Any], most: ColumnElement[Any]) -> FromClause:
    """The same, locked, without what others have locked: no more than `most`, which is also all that is locked."""
    free = _due_in(routes, route).with_for_update(skip_locked=True).subquery("free")
    return select(free).limit(most).correlate(routes).lateral("mine_to_start")


def _starting(*which: ColumnElement[bool]) -> CTE:
    """A CTE that starts an attempt of each task whose status is `which`."""
    return (
        update(task_status)
        .where(*which, tasks.c.seq == task_status.c.seq)
        .values(
            resource_version=task_status.c.resource_version + 1,
            updated_at=LATEST,
            phase="running",
            attempt=task_status.c.attempt + 1,
            exit_code=None,
            error=None,
            due_at=None,
            queue_key=None,
            agent=_agent,
            agent_id=bindparam("agent_name", type_=Text()),
            started_at=LATEST,
            deadline=later(LATEST, cast(tasks.c.spec["timeout"].astext, Numeric)),
        )
        .returning(
            *CHANGED,
            task_status.c.failures,
            task_status.c.started_at,
            task_status.c.deadline,
            cast(tasks.c.spec, Text).label("spec"),
        )
        .cte("started")
    )


def _claim_columns(started: CTE) -> tuple[ColumnElement[Any], ...]:
    """What `solti_store.ops.rows.claim` reads."""
    return (
        started.c.seq,
        started.c.id,
        started.c.attempt,
        started.c.spec,
        started.c.started_at,
        started.c.deadline,
        started.c.resource_version,
        started.c.failures,
    )


def _look(is_due: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether there is anything to start, looked at once, before anything is locked."""
    return select(is_due.label("is_due")).cte("look").select().scalar_subquery()


def _holder_if(is_due: ColumnElement[bool]) -> CTE:
    """The agent, locked only to start something: the lock alone makes a transaction that writes, with a WAL flush."""
    holder: CTE = HOLDER.statement.where(is_due).cte("holder")
    return holder


def _is_active(holder: CTE) -> ColumnElement[bool]:
    return select(holder.c.seq).where(holder.c.state == "active").exists()


def _claim(picked: CTE, holder: CTE, *, is_due: ColumnElement[bool], seen: ColumnElement[Any]) -> Prepared:
    # What was changed between the statement's snapshot and the lock is at a new place, where the snapshot sees nothing:
    # it is left alone, for beside its new status would come the spec from before that change. The places as an array,
    # because a join makes the planner think of reading the whole table.
    places = cast(select(func.array_agg(picked.c.ctid)).scalar_subquery(), ARRAY(Tid()))
    started = _starting(task_status.c.ctid == func.any(places))
    begun = (
        select(started, picked.c.phase.label("phase_before")).join(picked, picked.c.seq == started.c.seq).cte("begun")
    )
    always = select(literal(1).label("row")).subquery("always")
    unlocked = select(agents.c.state).where(*IS_OPEN).scalar_subquery()
    return Prepared(
        select(
            case((is_due, holder.c.state), else_=unlocked).label("state"),
            NOW.label("moment"),
            select(routes.c.id).where(IS_NEW).exists().label("has_new_routes"),
            seen.label("seen"),
            picked.c.route,
            picked.c.due_at,
            *_claim_columns(started),
        )
        .select_from(
            always.outerjoin(holder, true()).outerjoin(picked, true()).outerjoin(started, started.c.seq == picked.c.seq)
        )
        .order_by(picked.c.due_at, picked.c.seq)
        .add_cte(event(begun, "started", before=begun.c.phase_before))
    )


_oldest = select(_due_in(_route, _route.c.id).subquery("due")).limit(_limit).lateral("oldest")
# The oldest of each route, merged: how many of the batch come from where. Looked at before anything is locked, for a
# lock on `limit` rows of every route would keep from other workers what this one then leaves behind.
_merged = (
    select(_route.c.id.label("route"), _route.c.since)
    .join(_oldest, true())
    .order_by(_oldest.c.due_at)
    .limit(_limit)
    .subquery()
)
_share = (
    select(_merged.c.route, _merged.c.since, func.count().label("share"))
    .group_by(_merged.c.route, _merged.c.since)
    .cte("share")
)
_shared = _free_in(_share, _share.c.route, _share.c.share)
_any_share = _look(select(_share.c.route).exists())
_holder = _holder_if(_any_share)

#: Starts up to `limit` due tasks of `routes` for an agent, the longest due first, unless it drains. Only reads if there
#: is none.
#:
#: At least one row: the agent's `state`, NULL when it is closed; whether there are routes that are not `known`; how
#: many were `seen`, up to `limit`. A row for each task that was picked, with no `seq` when it was changed just then and
#: so not started. May pick fewer than there are, though it saw enough: a route's share counts rows that others have
#: locked. `CLAIM_BY_ROUTE` finds those.
CLAIM = _claim(
    select(_shared.c.seq, _shared.c.ctid, _shared.c.due_at, _shared.c.phase, _share.c.route)
    .select_from(_share.join(_shared, true()))
    .where(_is_active(_holder))
    .cte("picked"),
    _holder,
    is_due=_any_share,
    seen=cast(select(func.sum(_share.c.share)).scalar_subquery(), BigInteger),
)

_first = _due_in(_route, _route.c.id).limit(literal_column("1", BigInteger)).lateral("first")
_any_first = _look(select(_first.c.seq).select_from(_route.join(_first, true())).exists())
_holder_in_turn = _holder_if(_any_first)
_in_turn = _free_in(_route, _route.c.id, _limit)

#: The same, route after route instead of merged: misses nothing that is not locked. Does not tell what it saw.
CLAIM_BY_ROUTE = _claim(
    select(_in_turn.c.seq, _in_turn.c.ctid, _in_turn.c.due_at, _in_turn.c.phase, _route.c.id.label("route"))
    .select_from(_route.join(_in_turn, true()))
    .where(_is_active(_holder_in_turn))
    .limit(_limit)
    .cte("picked"),
    _holder_in_turn,
    is_due=_any_first,
    seen=null(),
)

# --- by hand ------------------------------------------------------------------------------------

#: Locks the task `id` unless it is running.
PICK_BY_ID = Prepared(
    select(task_status.c.seq, task_status.c.phase)
    .join(tasks, tasks.c.seq == task_status.c.seq)
    .where(tasks.c.id == _id, task_status.c.phase != "running")
    .with_for_update(of=task_status)
)

_by_hand = _starting(task_status.c.seq == bindparam("picked_seq", type_=BigInteger()))

#: Starts an attempt of the task that the transaction has locked.
#:
#: A statement of its own, after the lock. The lock may come right after another's commit, and then a statement that
#: locks has the new status, but beside it the spec, and so the timeout, from before that commit.
START = Prepared(
    select(*_claim_columns(_by_hand)).add_cte(
        event(_by_hand, "started", before=bindparam("phase_before", type_=Text()))
    )
)

# --- reading ------------------------------------------------------------------------------------

_is_held = (task_status.c.agent == _agent, task_status.c.deadline.is_not(None))

#: What `agent` runs now, as a claim would have handed it out: for a worker that did not hear the answer.
SELECT_HELD = Prepared(
    select(
        task_status.c.seq,
        tasks.c.id,
        task_status.c.attempt,
        cast(tasks.c.spec, Text).label("spec"),
        task_status.c.started_at,
        task_status.c.deadline,
        # No version when a cancellation was asked for: to a finish by it the task must not look untouched.
        case((task_status.c.cancel_requested_at.is_(None), task_status.c.resource_version), else_=0).label(
            "resource_version"
        ),
        task_status.c.failures,
    )
    .join_from(task_status, tasks, tasks.c.seq == task_status.c.seq)
    .where(*_is_held)
    .order_by(task_status.c.seq)
)

#: The same attempts, and no more of them than which they are.
SELECT_HELD_KEYS = Prepared(select(task_status.c.seq, task_status.c.attempt).where(*_is_held))
