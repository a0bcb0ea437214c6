"""Statements that delete what is over and old, a bounded batch each.

All skip what others hold, so any number of them run beside each other and beside everybody else. Only the runs of a
deleted task may have to be waited for, while another call deletes some of them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Interval, bindparam, column, delete, func, select

from solti_store.sql.driver import Prepared
from solti_store.sql.events import DELETING, deletion
from solti_store.sql.tables import FINAL, agents, task_runs, task_status, tasks
from solti_store.sql.types import NOW, Instant, array_param

__all__ = ["DELETE_AGENTS", "DELETE_RUNS", "DELETE_TASKS", "LOCK_OLD_RUNS", "LOCK_OLD_TASKS", "SELECT_UNTIL"]

_until = NOW - bindparam("kept", type_=Interval())
# Nor what is still to be counted; NULL when all is.
_past = func.least(_until, bindparam("unkept", type_=Instant))
_limit = bindparam("limit", type_=BigInteger())

#: From when on things are kept.
SELECT_UNTIL = Prepared(select(_until.label("until")))

#: Locks final tasks that have not changed since, the oldest first.
LOCK_OLD_TASKS = Prepared(
    select(task_status.c.seq)
    .join(tasks, tasks.c.seq == task_status.c.seq)
    .where(FINAL, task_status.c.updated_at < _past)
    .order_by(task_status.c.updated_at)
    .limit(_limit)
    # The task's own row too, which somebody else's table may refer to, or its delete would wait.
    .with_for_update(of=[task_status, tasks], skip_locked=True)
)

_chosen = func.any(array_param("seqs", "bigint"))
_old = (
    select(*DELETING)
    .select_from(tasks.join(task_status, task_status.c.seq == tasks.c.seq))
    .where(task_status.c.seq == _chosen)
    .cte("old")
)
_pruned = delete(tasks).where(tasks.c.seq == _chosen).returning(tasks.c.seq).cte("pruned")

#: Deletes tasks that the transaction has locked, with their runs. A statement of its own: of one that locks and
#: deletes, the planner cannot know how many it will be, and reads the whole table for fear of many.
DELETE_TASKS = Prepared(select(_pruned.c.seq).add_cte(deletion(_old)))

#: Locks runs that ended before, the oldest first.
LOCK_OLD_RUNS = Prepared(
    select(task_runs.c.seq, task_runs.c.attempt)
    .where(task_runs.c.finished_at < _past)
    .order_by(task_runs.c.finished_at)
    .limit(_limit)
    .with_for_update(skip_locked=True)
)

_run = (
    func.unnest(array_param("seqs", "bigint"), array_param("attempts", "bigint"))
    .table_valued(column("seq", BigInteger), column("attempt", BigInteger), name="old")
    .render_derived()
)

#: Deletes runs that the transaction has locked.
DELETE_RUNS = Prepared(
    delete(task_runs)
    .where(task_runs.c.seq == _run.c.seq, task_runs.c.attempt == _run.c.attempt)
    .returning(task_runs.c.seq)
)

_left = select(task_status.c.seq).where(task_status.c.agent == agents.c.seq, task_status.c.deadline.is_not(None))
_old_agents = (
    select(agents.c.seq)
    .where(
        agents.c.closed_at < _until,
        # What it left and nobody has reaped yet would be nobody's.
        ~_left.exists(),
    )
    .order_by(agents.c.closed_at)
    .limit(_limit)
    .with_for_update(skip_locked=True)
    .cte("old")
)

#: Deletes agents that were closed before; their runs keep their names.
DELETE_AGENTS = Prepared(delete(agents).where(agents.c.seq == _old_agents.c.seq).returning(agents.c.seq))
