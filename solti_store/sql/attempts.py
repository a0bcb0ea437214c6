"""Statements on attempts: claim and start them, lock and close them, read them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Interval,
    Numeric,
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
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from solti_store.rules.retention import MAX_RUNS
from solti_store.sql.agents import HOLDER, IS_NEW, IS_OPEN
from solti_store.sql.driver import Prepared
from solti_store.sql.events import CHANGED, event
from solti_store.sql.slots import is_waited_for
from solti_store.sql.tables import LATEST, agents, routes, task_events, task_runs, task_status, tasks
from solti_store.sql.types import NOW, Instant, array_param

if TYPE_CHECKING:
    from sqlalchemy import Select

__all__ = [
    "CLOSE",
    "INSERT_REFUSED",
    "LOCK",
    "LOCK_ABANDONED",
    "LOCK_OF_AGENT",
    "LOOK",
    "MAX_DELAY_MS",
    "PICK",
    "PICK_BY_ID",
    "PICK_REST",
    "SELECT_HELD",
    "SELECT_HELD_KEYS",
    "SELECT_HOLDERS",
    "SELECT_POLICIES",
    "SELECT_RUNS",
    "START",
]

#: Longer timeouts and waits are cut to this (3,170 years): a u64 of milliseconds is more than a timestamptz holds.
MAX_DELAY_MS = 100_000_000_000_000

_id = bindparam("task_id", type_=Text())
_agent = bindparam("agent_seq", type_=BigInteger())
_limit = bindparam("limit", type_=BigInteger())


def _later(moment: ColumnElement[Any], milliseconds: ColumnElement[Any]) -> ColumnElement[Any]:
    return moment + func.make_interval(0, 0, 0, 0, 0, 0, func.least(milliseconds, MAX_DELAY_MS) / 1000.0)


_holder = HOLDER.statement.cte("holder")
_due = (task_status.c.due_at.is_not(None), task_status.c.due_at <= NOW)
# Each route from where its due tasks may begin (`solti_store.rules.claim_cursor`).
_route = (
    func.unnest(array_param("routes", "uuid"), array_param("since", "timestamptz"))
    .table_valued(column("id", Uuid), column("since", Instant), name="mine")
    .render_derived()
)


def _due_in(route: ColumnElement[Any], since: ColumnElement[Any]) -> Select[Any]:
    """What is due in a route, from some due time on, the longest due first."""
    return (
        select(task_status.c.seq, task_status.c.due_at)
        .where(task_status.c.route == route, *_due, task_status.c.due_at >= since)
        .order_by(task_status.c.due_at, task_status.c.seq)
    )


_oldest = _due_in(_route.c.id, _route.c.since).limit(_limit).lateral("oldest")
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
_free = _due_in(_share.c.route, _share.c.since).limit(_share.c.share).with_for_update(skip_locked=True).lateral("free")

_agent_is_open = select(_holder.c.seq).where(_holder.c.state == "active").exists()

#: Locks up to `limit` due tasks of `routes` for an agent that is open and does not drain, and says which, the longest
#: due first. May find fewer than there are: a route's share counts rows that others have locked. `PICK_REST` finds
#: those.
PICK = Prepared(
    select(_free.c.seq, _free.c.due_at, _share.c.route, NOW.label("moment"))
    .select_from(_share.join(_free, true()))
    .where(_agent_is_open)
    .order_by(_free.c.due_at, _free.c.seq)
)

_unlocked = (
    _due_in(_route.c.id, _route.c.since)
    .where(task_status.c.seq != func.all(array_param("picked", "bigint")))
    .limit(_limit)
    .with_for_update(skip_locked=True)
    .lateral("unlocked")
)

#: The same, route after route instead of merged, past those `picked` already: misses nothing that is not locked, and
#: locks no more than it returns.
PICK_REST = Prepared(
    select(_unlocked.c.seq, _unlocked.c.due_at, _route.c.id.label("route"), NOW.label("moment"))
    .select_from(_route.join(_unlocked, true()))
    .where(_agent_is_open)
    .limit(_limit)
)

_first = _due_in(_route.c.id, _route.c.since).limit(1).lateral("first")

#: Whether a claim could find anything, without its lock on the agent: that lock makes of every empty claim a
#: transaction that writes, with a WAL flush of its own.
LOOK = Prepared(
    select(
        select(agents.c.seq).where(*IS_OPEN).exists().label("is_open"),
        select(_first.c.seq).select_from(_route.join(_first, true())).exists().label("is_due"),
        select(routes.c.id).where(IS_NEW).exists().label("has_new_routes"),
        NOW.label("moment"),
    )
)

#: Locks the task `id` unless it is running.
PICK_BY_ID = Prepared(
    select(task_status.c.seq)
    .join(tasks, tasks.c.seq == task_status.c.seq)
    .where(tasks.c.id == _id, task_status.c.phase != "running")
    .with_for_update(of=task_status)
)

_picked = (
    func.unnest(array_param("seqs", "bigint"))
    .table_valued(column("seq", BigInteger), with_ordinality="ord", name="picked")
    .render_derived()
)
_started = (
    update(task_status)
    .where(task_status.c.seq == _picked.c.seq, tasks.c.seq == _picked.c.seq)
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
        deadline=_later(LATEST, cast(tasks.c.spec["timeout"].astext, Numeric)),
    )
    .returning(
        *CHANGED,
        task_status.c.agent,
        task_status.c.deadline,
        cast(tasks.c.spec, Text).label("spec"),
        _picked.c.ord,
    )
    .cte("started")
)
_run = (
    insert(task_runs)
    .from_select(
        ["seq", "attempt", "phase", "started_at", "agent", "agent_id"],
        select(
            _started.c.seq,
            _started.c.attempt,
            _started.c.phase,
            _started.c.updated_at,
            _started.c.agent,
            bindparam("agent_name", type_=Text()),
        ),
    )
    .cte("run")
)

_forgotten = (
    delete(task_runs)
    .where(
        task_runs.c.seq == _started.c.seq,
        _started.c.attempt > MAX_RUNS,
        task_runs.c.attempt <= _started.c.attempt - MAX_RUNS,
    )
    .cte("forgotten")
)

#: Starts an attempt of each of `seqs`, which the transaction has locked: status, run and event.
#:
#: A statement of its own, after the lock. The lock may come right after another's commit, and then a statement that
#: locks has the new status, but beside it the spec, and so the timeout, from before that commit.
START = Prepared(
    select(
        _started.c.seq,
        _started.c.id,
        _started.c.attempt,
        _started.c.spec,
        _started.c.updated_at.label("started_at"),
        _started.c.deadline,
    )
    .order_by(_started.c.ord)
    .add_cte(_run, _forgotten, event(_started, "started"))
)

# --- closing ------------------------------------------------------------------------------------

_locked = select(
    task_status.c.seq,
    task_status.c.phase,
    task_status.c.attempt,
    task_status.c.failures,
    task_status.c.deadline,
    task_status.c.cancel_requested_at.is_not(None).label("cancel_requested"),
)

#: Locks the statuses of `seqs`, in order of seq as everybody who locks several, so that batches never deadlock.
LOCK = Prepared(
    _locked.where(task_status.c.seq == func.any(array_param("seqs", "bigint")))
    .order_by(task_status.c.seq)
    .with_for_update()
)

#: Locks what nobody will finish: attempts of agents that are closed, and those whose deadline passed `grace` ago.
#:
#: Skips what is locked: behind a worker that froze in the middle of a finish, a sweep that waited would hold up every
#: other. Whatever is left is found by the next one.
#: Reads the whole index of running attempts, which is as small as the fleet's capacity; by deadline alone it would be
#: one more index to write at every claim.
_is_nowhere = and_(task_status.c.agent.is_not(None), agents.c.seq.is_(None))
LOCK_ABANDONED = Prepared(
    _locked.add_columns(case((_is_nowhere, "lost"), else_=agents.c.state).label("agent_state"))
    .outerjoin(agents, agents.c.seq == task_status.c.agent)
    .where(
        task_status.c.deadline.is_not(None),
        or_(
            agents.c.closed_at.is_not(None),
            _is_nowhere,
            task_status.c.deadline < NOW - bindparam("grace", type_=Interval()),
        ),
    )
    .order_by(task_status.c.seq)
    .limit(_limit)
    .with_for_update(of=task_status, skip_locked=True)
)

#: The attempts of one closed agent, likewise.
LOCK_OF_AGENT = Prepared(
    _locked.add_columns(agents.c.state.label("agent_state"))
    .join(agents, agents.c.seq == task_status.c.agent)
    .where(task_status.c.agent == _agent, task_status.c.deadline.is_not(None), agents.c.closed_at.is_not(None))
    .order_by(task_status.c.seq)
    .with_for_update(of=task_status, skip_locked=True)
)

#: What decides what follows, of tasks that the transaction has locked: a statement of its own for the reason that
#: `START` gives.
SELECT_POLICIES = Prepared(
    select(
        tasks.c.seq,
        tasks.c.id,
        cast(tasks.c.spec["restart"], Text).label("restart"),
        cast(tasks.c.spec["backoff"], Text).label("backoff"),
        cast(tasks.c.spec["maxRetries"], Text).label("max_retries"),
        task_runs.c.agent_id,
        task_runs.c.started_at,
    )
    .join_from(task_status, tasks, tasks.c.seq == task_status.c.seq)
    .join(task_runs, (task_runs.c.seq == task_status.c.seq) & (task_runs.c.attempt == task_status.c.attempt))
    .where(task_status.c.seq == func.any(array_param("seqs", "bigint")))
)

_done = (
    func.unnest(
        array_param("seqs", "bigint"),
        array_param("attempts", "bigint"),
        array_param("run_phases", "text"),
        array_param("phases", "text"),
        array_param("exit_codes", "integer"),
        array_param("errors", "text"),
        array_param("streaks", "bigint"),
        array_param("delays", "bigint"),
        array_param("stdouts", "text"),
        array_param("stderrs", "text"),
    )
    .table_valued(
        column("seq", BigInteger),
        column("attempt", BigInteger),
        column("run_phase", Text),
        column("phase", Text),
        column("exit_code", task_status.c.exit_code.type),
        column("error", Text),
        column("failures", BigInteger),
        column("delay", BigInteger),
        column("stdout", Text),
        column("stderr", Text),
        name="done",
    )
    .render_derived()
)
_closed = (
    update(task_status)
    # The fence once more, though the row is locked: this statement alone must never overwrite another attempt.
    # The phase within a CASE, which no index answers: by its index the planner reads all that runs, and all that ever
    # ran while a transaction holds xmin (8 ms a batch after 40,000 tasks), instead of 100 primary keys.
    .where(
        task_status.c.seq == _done.c.seq,
        task_status.c.attempt == _done.c.attempt,
        case((task_status.c.phase == "running", true()), else_=false()),
        tasks.c.seq == _done.c.seq,
    )
    .values(
        resource_version=task_status.c.resource_version + 1,
        updated_at=LATEST,
        phase=_done.c.phase,
        exit_code=_done.c.exit_code,
        error=_done.c.error,
        failures=_done.c.failures,
        due_at=case((_done.c.delay.is_not(None), _later(NOW, _done.c.delay))),
        agent=None,
        deadline=None,
        cancel_requested_at=None,
    )
    .returning(
        *CHANGED,
        task_status.c.slot,
        task_status.c.due_at,
        _done.c.run_phase,
        _done.c.exit_code,
        _done.c.error,
        _done.c.stdout,
        _done.c.stderr,
    )
    .cte("closed")
)
_run_closed = (
    update(task_runs)
    .where(task_runs.c.seq == _closed.c.seq, task_runs.c.attempt == _closed.c.attempt)
    .values(
        phase=_closed.c.run_phase,
        finished_at=func.greatest(task_runs.c.started_at, _closed.c.updated_at),
        exit_code=_closed.c.exit_code,
        error=_closed.c.error,
        stdout=_closed.c.stdout,
        stderr=_closed.c.stderr,
    )
    .cte("run_closed")
)

#: Closes a batch of running attempts: run, status and event of each. A row for each that was closed, with its slot if
#: that is free now and somebody waits for it.
CLOSE = Prepared(
    select(
        _closed.c.seq,
        _closed.c.attempt,
        case((_closed.c.due_at.is_(None) & is_waited_for(_closed.c.slot), _closed.c.slot)).label("free_slot"),
    ).add_cte(
        _run_closed,
        event(
            _closed,
            "finished",
            detail=func.jsonb_strip_nulls(
                func.jsonb_build_object(
                    literal("outcome", Text),
                    _closed.c.run_phase,
                    literal("exitCode", Text),
                    _closed.c.exit_code,
                    literal("error", Text),
                    _closed.c.error,
                )
            ),
        ),
    )
)

# --- reading ------------------------------------------------------------------------------------

_asked = (
    func.unnest(array_param("seqs", "bigint"), array_param("attempts", "bigint"))
    .table_valued(column("seq", BigInteger), column("attempt", BigInteger), name="asked")
    .render_derived()
)

#: For late writes: what became of the attempts asked for, and who holds their tasks now.
SELECT_HOLDERS = Prepared(
    select(
        _asked.c.seq,
        _asked.c.attempt,
        task_status.c.attempt.label("current_attempt"),
        agents.c.id.label("holder"),
        task_runs.c.phase,
        task_runs.c.exit_code,
        task_runs.c.error,
    ).select_from(
        _asked.outerjoin(task_status, task_status.c.seq == _asked.c.seq)
        .outerjoin(agents, agents.c.seq == task_status.c.agent)
        .outerjoin(task_runs, (task_runs.c.seq == _asked.c.seq) & (task_runs.c.attempt == _asked.c.attempt))
    )
)

_refused = (
    func.unnest(array_param("seqs", "bigint"), array_param("details", "text"))
    .table_valued(column("seq", BigInteger), column("detail", Text), name="refused")
    .render_derived()
)

#: Leaves a trace of late writes, which change nothing else.
INSERT_REFUSED = Prepared(
    insert(task_events).from_select(
        ["at", "seq", "id", "type", "resource_version", "phase", "attempt", "detail"],
        select(
            NOW,
            task_status.c.seq,
            tasks.c.id,
            literal("refused", Text),
            task_status.c.resource_version,
            task_status.c.phase,
            task_status.c.attempt,
            cast(_refused.c.detail, JSONB),
        ).select_from(
            _refused.join(task_status, task_status.c.seq == _refused.c.seq).join(tasks, tasks.c.seq == _refused.c.seq)
        ),
    )
)

#: What `agent` runs now, as `START` would have handed it out: for a worker that did not hear the answer.
SELECT_HELD = Prepared(
    select(
        task_status.c.seq,
        tasks.c.id,
        task_status.c.attempt,
        cast(tasks.c.spec, Text).label("spec"),
        task_runs.c.started_at,
        task_status.c.deadline,
    )
    .join_from(task_status, tasks, tasks.c.seq == task_status.c.seq)
    .join(task_runs, (task_runs.c.seq == task_status.c.seq) & (task_runs.c.attempt == task_status.c.attempt))
    .where(task_status.c.agent == _agent, task_status.c.deadline.is_not(None))
    .order_by(task_status.c.seq)
)

#: The same attempts, and no more of them than which they are.
SELECT_HELD_KEYS = Prepared(
    select(task_status.c.seq, task_status.c.attempt).where(
        task_status.c.agent == _agent, task_status.c.deadline.is_not(None)
    )
)

_latest_runs = (
    select(
        task_runs.c.attempt,
        task_runs.c.phase,
        task_runs.c.started_at,
        task_runs.c.finished_at,
        task_runs.c.error,
        task_runs.c.exit_code,
        task_runs.c.stdout,
        task_runs.c.stderr,
        task_runs.c.agent_id,
    )
    .where(task_runs.c.seq == tasks.c.seq)
    .order_by(task_runs.c.attempt.desc())
    .limit(_limit)
    .lateral("latest_runs")
)

#: The latest runs of the task `id`, oldest of them first; one row with a NULL attempt when it never ran, none when
#: there is no such task.
SELECT_RUNS = Prepared(
    select(_latest_runs)
    .select_from(tasks.outerjoin(_latest_runs, true()))
    .where(tasks.c.id == _id)
    .order_by(_latest_runs.c.attempt)
)
