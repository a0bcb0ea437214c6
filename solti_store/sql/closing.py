"""Statements that end attempts: lock them, close them, and judge who comes too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Interval,
    Text,
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
from solti_store.sql.driver import Prepared
from solti_store.sql.events import CHANGED, event
from solti_store.sql.slots import is_waited_for
from solti_store.sql.tables import LATEST, agents, task_runs, task_status, tasks
from solti_store.sql.types import NOW, array_param, later

if TYPE_CHECKING:
    from sqlalchemy import CTE, Select, Subquery

__all__ = [
    "CLOSE",
    "CLOSE_UNTOUCHED",
    "INSERT_REFUSED",
    "LOCK",
    "LOCK_ABANDONED",
    "LOCK_FREE",
    "LOCK_OF_AGENT",
    "SELECT_HOLDERS",
    "SELECT_POLICIES",
]

_limit = bindparam("limit", type_=BigInteger())

_locked = select(
    task_status.c.seq,
    task_status.c.phase,
    task_status.c.attempt,
    task_status.c.failures,
    task_status.c.deadline,
    task_status.c.started_at,
    task_status.c.agent_id,
    task_status.c.cancel_requested_at.is_not(None).label("cancel_requested"),
)
_asked_for = _locked.where(task_status.c.seq == func.any(array_param("seqs", "bigint"))).order_by(task_status.c.seq)

#: Locks the statuses of `seqs`, in order of seq as everybody who locks several, so that batches never deadlock.
LOCK = Prepared(_asked_for.with_for_update())

#: Locks those of them that nobody else has locked.
LOCK_FREE = Prepared(_asked_for.with_for_update(skip_locked=True))

#: Locks what nobody will finish: attempts of agents that are closed, and those whose deadline passed `grace` ago.
#:
#: Skips what is locked: behind a worker that froze in the middle of a finish, a sweep that waited would hold up every
#: other. Whatever is left is found by the next one.
#: Reads the whole index of running attempts, which is as small as the fleet's capacity; by deadline alone it would be
#: one more index to write at every claim.
_is_nowhere = and_(task_status.c.agent.is_not(None), agents.c.seq.is_(None))
LOCK_ABANDONED = Prepared(
    _locked.add_columns(
        case((_is_nowhere, "lost"), else_=agents.c.state).label("agent_state"),
        # Of a row that was changed after the snapshot also that of an agent who is there, and got it in between: beside
        # the new row stands the agent of the old one, and an outer join of the two has none. `SELECT_PRESENT` tells.
        case((_is_nowhere, task_status.c.agent)).label("agent_nowhere"),
    )
    .outerjoin(agents, agents.c.seq == task_status.c.agent)
    .where(
        task_status.c.deadline.is_not(None),
        task_status.c.seq > bindparam("after_seq", type_=BigInteger()),
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
    .where(
        task_status.c.agent == bindparam("agent_seq", type_=BigInteger()),
        task_status.c.deadline.is_not(None),
        agents.c.closed_at.is_not(None),
    )
    .order_by(task_status.c.seq)
    .with_for_update(of=task_status, skip_locked=True)
)

#: What decides what follows, of tasks that the transaction has locked. A statement of its own: the lock may come right
#: after another's commit, and then a statement that locks has the new status, but beside it the spec from before that.
SELECT_POLICIES = Prepared(
    select(
        tasks.c.seq,
        tasks.c.id,
        cast(tasks.c.spec["restart"], Text).label("restart"),
        cast(tasks.c.spec["backoff"], Text).label("backoff"),
        cast(tasks.c.spec["maxRetries"], Text).label("max_retries"),
    ).where(tasks.c.seq == func.any(array_param("seqs", "bigint")))
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
        array_param("versions", "bigint"),
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
        column("version", BigInteger),
        name="done",
    )
    .render_derived()
)
_running: Select[tuple[object, ...]] = (
    select(
        _done,
        task_status.c.ctid,
        task_status.c.started_at,
        task_status.c.agent,
        task_status.c.agent_id,
    )
    .join(task_status, task_status.c.seq == _done.c.seq)
    # The phase within a CASE, which no index answers: by its index the planner reads all that runs, and all that ever
    # ran while a transaction holds xmin (8 ms a batch after 40,000 tasks), instead of 100 primary keys.
    .where(
        task_status.c.attempt == _done.c.attempt,
        case((task_status.c.phase == "running", true()), else_=false()),
    )
)


def _closed(running: CTE | Subquery) -> CTE:
    return (
        update(task_status)
        # By its place: of a row that was changed since it was looked at, nothing is overwritten.
        .where(task_status.c.ctid == running.c.ctid, tasks.c.seq == running.c.seq)
        .values(
            resource_version=task_status.c.resource_version + 1,
            updated_at=LATEST,
            phase=running.c.phase,
            exit_code=running.c.exit_code,
            error=running.c.error,
            failures=running.c.failures,
            due_at=case((running.c.delay.is_not(None), later(NOW, running.c.delay))),
            agent=None,
            agent_id=None,
            started_at=None,
            deadline=None,
            cancel_requested_at=None,
        )
        .returning(
            *CHANGED,
            task_status.c.slot,
            task_status.c.due_at,
            running.c.run_phase,
            running.c.exit_code,
            running.c.error,
            running.c.stdout,
            running.c.stderr,
            running.c.started_at,
            running.c.agent,
            running.c.agent_id,
        )
        .cte("closed")
    )


def _close(running: CTE | Subquery) -> tuple[CTE, Select[tuple[object, ...]]]:
    """The tasks closed, and a statement that writes run and event of each; what it selects is the caller's."""
    closed = _closed(running)
    run = (
        insert(task_runs)
        .from_select(
            [
                "seq",
                "attempt",
                "phase",
                "started_at",
                "finished_at",
                "exit_code",
                "error",
                "agent",
                "agent_id",
                "stdout",
                "stderr",
            ],
            select(
                closed.c.seq,
                closed.c.attempt,
                closed.c.run_phase,
                closed.c.started_at,
                closed.c.updated_at,
                closed.c.exit_code,
                closed.c.error,
                closed.c.agent,
                closed.c.agent_id,
                closed.c.stdout,
                closed.c.stderr,
            ),
        )
        .cte("run")
    )
    forgotten = (
        delete(task_runs)
        .where(
            task_runs.c.seq == closed.c.seq,
            closed.c.attempt > MAX_RUNS,
            task_runs.c.attempt <= closed.c.attempt - MAX_RUNS,
        )
        .cte("forgotten")
    )
    detail = func.jsonb_strip_nulls(
        func.jsonb_build_object(
            literal("outcome", Text),
            closed.c.run_phase,
            literal("exitCode", Text),
            closed.c.exit_code,
            literal("error", Text),
            closed.c.error,
        )
    )
    return closed, select(closed.c.seq, closed.c.attempt).add_cte(
        run, forgotten, event(closed, "finished", before="running", detail=detail)
    )


_closed_locked, _closing_locked = _close(_running.subquery("running"))

#: Closes a batch of running attempts, whose statuses the transaction has locked: status, run and event of each. A row
#: for each that was closed, with its slot if that is free now and somebody waits for it.
CLOSE = Prepared(
    _closing_locked.add_columns(
        case((_closed_locked.c.due_at.is_(None) & is_waited_for(_closed_locked.c.slot), _closed_locked.c.slot)).label(
            "free_slot"
        )
    )
)

_untouched = (
    _running.where(
        task_status.c.resource_version == _done.c.version,
        ~is_waited_for(task_status.c.slot),
    )
    .with_for_update(of=task_status, skip_locked=True)
    .cte("untouched")
)

#: The same without a lock before, of those that nobody has locked, that nothing was written to since their claim, and
#: whose slot nobody waits for. A row for each that was closed.
#:
#: Whoever joins the queue of a slot writes its owner's status. So those who joined before this statement's snapshot are
#: seen in it, and after one who joined later the owner is at another place than it was: it is left alone.
CLOSE_UNTOUCHED = Prepared(_close(_untouched)[1])

# --- those who come too late --------------------------------------------------------------------

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
        task_status.c.agent_id.label("holder"),
        task_runs.c.phase,
        task_runs.c.exit_code,
        task_runs.c.error,
    ).select_from(
        _asked.outerjoin(task_status, task_status.c.seq == _asked.c.seq).outerjoin(
            task_runs, (task_runs.c.seq == _asked.c.seq) & (task_runs.c.attempt == _asked.c.attempt)
        )
    )
)

_refused = (
    func.unnest(array_param("seqs", "bigint"), array_param("details", "text"))
    .table_valued(column("seq", BigInteger), column("detail", Text), name="refused")
    .render_derived()
)

_late = (
    select(
        *(c for c in CHANGED if c is not task_status.c.updated_at),
        NOW.label("updated_at"),
        cast(_refused.c.detail, JSONB).label("detail"),
    )
    .select_from(
        _refused.join(task_status, task_status.c.seq == _refused.c.seq).join(tasks, tasks.c.seq == _refused.c.seq)
    )
    .cte("late")
)

#: Leaves a trace of late writes, which change nothing else.
INSERT_REFUSED = Prepared(
    select(_late.c.seq).add_cte(event(_late, "refused", before=_late.c.phase, detail=_late.c.detail))
)
