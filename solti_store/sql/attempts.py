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
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from solti_store.sql.agents import HOLDER
from solti_store.sql.events import event
from solti_store.sql.tables import LATEST, agents, task_events, task_runs, task_status, tasks
from solti_store.sql.types import NOW, array_param

if TYPE_CHECKING:
    from sqlalchemy import CTE, Select

__all__ = [
    "CLAIM",
    "CLOSE",
    "INSERT_REFUSED",
    "LOCK",
    "LOCK_OF_AGENTS",
    "LOCK_OVERDUE",
    "MAX_DELAY_MS",
    "SELECT_HELD",
    "SELECT_HOLDERS",
    "SELECT_RUNS",
    "START",
    "START_BY_HAND",
]

#: Longer timeouts and waits are cut to this (3,170 years): a u64 of milliseconds is more than a timestamptz holds.
MAX_DELAY_MS = 100_000_000_000_000

_id = bindparam("task_id", type_=Text())
_limit = bindparam("limit", type_=BigInteger())

#: What `solti_store.ops.rows.claim` reads.
_CLAIM_COLUMNS = ("seq", "id", "attempt", "spec", "started_at", "deadline")


def _later(milliseconds: ColumnElement[Any]) -> ColumnElement[Any]:
    """`NOW` and so many milliseconds."""
    return NOW + func.make_interval(0, 0, 0, 0, 0, 0, func.least(milliseconds, MAX_DELAY_MS) / 1000.0)


def _start(picked: CTE, holder: CTE | None) -> Select[Any]:
    """Start an attempt of each task in `picked` (`seq`, `ord`): status, run and event in one statement."""
    started = (
        update(task_status)
        .where(task_status.c.seq == picked.c.seq, tasks.c.seq == picked.c.seq)
        .values(
            resource_version=task_status.c.resource_version + 1,
            updated_at=LATEST,
            phase="running",
            attempt=task_status.c.attempt + 1,
            exit_code=None,
            error=None,
            due_at=None,
            agent=None if holder is None else select(holder.c.seq).scalar_subquery(),
            deadline=_later(cast(tasks.c.spec["timeout"].astext, Numeric)),
        )
        .returning(
            task_status.c.seq,
            tasks.c.id,
            task_status.c.resource_version,
            task_status.c.updated_at,
            task_status.c.phase,
            task_status.c.attempt,
            task_status.c.agent,
            task_status.c.deadline,
            cast(tasks.c.spec, Text).label("spec"),
            picked.c.ord,
        )
        .cte("started")
    )
    run = (
        insert(task_runs)
        .from_select(
            ["seq", "attempt", "phase", "started_at", "agent", "agent_id"],
            select(
                started.c.seq,
                started.c.attempt,
                started.c.phase,
                started.c.updated_at,
                started.c.agent,
                null() if holder is None else select(holder.c.id).scalar_subquery(),
            ),
        )
        .cte("run")
    )
    return (
        select(
            started.c.seq,
            started.c.id,
            started.c.attempt,
            started.c.spec,
            started.c.updated_at.label("started_at"),
            started.c.deadline,
        )
        .order_by(started.c.ord, started.c.seq)
        .add_cte(run, event(started, "started"))
    )


_holder = HOLDER.cte("holder")

_route = func.unnest(array_param("routes", "uuid")).table_valued(column("id", Uuid), name="mine").render_derived()
_due = (task_status.c.due_at.is_not(None), task_status.c.due_at <= NOW)
_oldest = (
    select(task_status.c.due_at)
    .where(task_status.c.route == _route.c.id, *_due)
    .order_by(task_status.c.due_at, task_status.c.seq)
    .limit(_limit)
    .lateral("oldest")
)
# The oldest of each route, merged: how many of the batch come from where. Looked at before anything is locked, for
# a lock on `limit` rows of every route would keep from other workers what this one then leaves behind.
_merged = select(_route.c.id.label("route")).join(_oldest, true()).order_by(_oldest.c.due_at).limit(_limit).subquery()
_share = select(_merged.c.route, func.count().label("share")).group_by(_merged.c.route).cte("share")
_free = (
    select(task_status.c.seq, task_status.c.due_at)
    .where(task_status.c.route == _share.c.route, *_due)
    .order_by(task_status.c.due_at, task_status.c.seq)
    .limit(_share.c.share)
    .with_for_update(skip_locked=True)
    .lateral("free")
)
_picked = (
    select(_free.c.seq, _free.c.due_at.label("ord"))
    .select_from(_share.join(_free, true()))
    .where(select(_holder.c.seq).exists())
    .cte("picked")
)

#: Hands `agent` up to `limit` due tasks of `routes`, oldest first.
CLAIM = _start(_picked, _holder)

_stopped = (
    select(task_status.c.seq, literal(0).label("ord"))
    .join(tasks, tasks.c.seq == task_status.c.seq)
    .where(tasks.c.id == _id, task_status.c.phase != "running")
    .with_for_update(of=task_status)
)

#: Starts the task `id` for `agent`, whatever phase it is in but running.
START = _start(_stopped.where(select(_holder.c.seq).exists()).cte("picked"), _holder)

#: The same for no agent: nothing but the deadline guards such an attempt.
START_BY_HAND = _start(_stopped.cte("picked"), None)

# --- closing ------------------------------------------------------------------------------------

_LOCKED_COLUMNS = (
    task_status.c.seq,
    tasks.c.id,
    task_status.c.phase,
    task_status.c.attempt,
    task_status.c.failures,
    task_status.c.agent,
    task_status.c.cancel_requested_at.is_not(None).label("cancel_requested"),
    cast(tasks.c.spec["restart"], Text).label("restart"),
    cast(tasks.c.spec["backoff"], Text).label("backoff"),
    cast(tasks.c.spec["maxRetries"].astext, BigInteger).label("max_retries"),
    tasks.c.spec["timeout"].astext.label("timeout"),
)
_locked = select(*_LOCKED_COLUMNS).join_from(task_status, tasks, tasks.c.seq == task_status.c.seq)

#: Locks the statuses of `seqs`, in order of seq as everybody who locks several, so that batches never deadlock.
LOCK = (
    _locked.where(task_status.c.seq == func.any(array_param("seqs", "bigint")))
    .order_by(task_status.c.seq)
    .with_for_update(of=task_status)
)

#: Locks what the closed `agents` still run.
LOCK_OF_AGENTS = (
    _locked.where(task_status.c.agent == func.any(array_param("agents", "bigint")), task_status.c.deadline.is_not(None))
    .order_by(task_status.c.seq)
    .with_for_update(of=task_status)
)

#: Locks attempts whose deadline passed `grace` ago. Reads the whole index of running attempts, which is as small as
#: the fleet's capacity; by deadline alone it would be one more index to write at every claim.
LOCK_OVERDUE = (
    _locked.add_columns(agents.c.id.label("agent_id"))
    .outerjoin(agents, agents.c.seq == task_status.c.agent)
    .where(task_status.c.deadline < NOW - bindparam("grace", type_=Interval()))
    .order_by(task_status.c.seq)
    .limit(_limit)
    .with_for_update(of=task_status, skip_locked=True)
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
        name="done",
    )
    .render_derived()
)
_closed = (
    update(task_status)
    # The fence once more, though the row is locked: this statement alone must never overwrite another attempt.
    .where(
        task_status.c.seq == _done.c.seq,
        task_status.c.attempt == _done.c.attempt,
        task_status.c.phase == "running",
        tasks.c.seq == _done.c.seq,
    )
    .values(
        resource_version=task_status.c.resource_version + 1,
        updated_at=LATEST,
        phase=_done.c.phase,
        exit_code=_done.c.exit_code,
        error=_done.c.error,
        failures=_done.c.failures,
        due_at=case((_done.c.delay.is_not(None), _later(_done.c.delay))),
        agent=None,
        deadline=None,
        cancel_requested_at=None,
    )
    .returning(
        task_status.c.seq,
        tasks.c.id,
        task_status.c.resource_version,
        task_status.c.updated_at,
        task_status.c.phase,
        task_status.c.attempt,
        _done.c.run_phase,
        _done.c.exit_code,
        _done.c.error,
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
    )
    .cte("run_closed")
)

#: Closes a batch of running attempts: run, status and event of each. A row for each that was closed.
CLOSE = select(_closed.c.seq, _closed.c.attempt).add_cte(
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

# --- reading ------------------------------------------------------------------------------------

_asked = (
    func.unnest(array_param("seqs", "bigint"), array_param("attempts", "bigint"))
    .table_valued(column("seq", BigInteger), column("attempt", BigInteger), name="asked")
    .render_derived()
)

#: For late writes: what became of the attempts asked for, and who holds their tasks now.
SELECT_HOLDERS = select(
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

_refused = (
    func.unnest(array_param("seqs", "bigint"), array_param("details", "text"))
    .table_valued(column("seq", BigInteger), column("detail", Text), name="refused")
    .render_derived()
)

#: Leaves a trace of late writes, which change nothing else.
INSERT_REFUSED = insert(task_events).from_select(
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

#: What `agent` runs now, as `CLAIM` would have handed it out: for a worker that did not hear the answer.
SELECT_HELD = (
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
    .where(task_status.c.agent == bindparam("agent_seq", type_=BigInteger()), task_status.c.deadline.is_not(None))
    .order_by(task_status.c.seq)
)

_latest_runs = (
    select(
        task_runs.c.attempt,
        task_runs.c.phase,
        task_runs.c.started_at,
        task_runs.c.finished_at,
        task_runs.c.error,
        task_runs.c.exit_code,
        task_runs.c.agent_id,
    )
    .where(task_runs.c.seq == tasks.c.seq)
    .order_by(task_runs.c.attempt.desc())
    .limit(_limit)
    .lateral("latest_runs")
)

#: The latest runs of the task `id`, oldest of them first; one row with a NULL attempt when it never ran, none when
#: there is no such task.
SELECT_RUNS = (
    select(_latest_runs)
    .select_from(tasks.outerjoin(_latest_runs, true()))
    .where(tasks.c.id == _id)
    .order_by(_latest_runs.c.attempt)
)
