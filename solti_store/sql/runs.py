"""The statement that reads a task's attempts."""

from __future__ import annotations

from sqlalchemy import BigInteger, Text, bindparam, func, null, select, true, union_all

from solti_store.rules.retention import MAX_RUNS
from solti_store.sql.driver import Prepared
from solti_store.sql.tables import task_runs, task_status, tasks

__all__ = ["SELECT_RUNS"]

_limit = bindparam("limit", type_=BigInteger())
_ended = (
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
    .correlate(tasks)
    .order_by(task_runs.c.attempt.desc())
    .limit(_limit)
)
_running = (
    select(
        task_status.c.attempt,
        task_status.c.phase,
        task_status.c.started_at,
        null().label("finished_at"),
        null().label("error"),
        null().label("exit_code"),
        null().label("stdout"),
        null().label("stderr"),
        task_status.c.agent_id,
    )
    .where(task_status.c.seq == tasks.c.seq, task_status.c.deadline.is_not(None))
    .correlate(tasks)
)
_both = union_all(_running, _ended.subquery("ended").select()).subquery("both_kinds")
# While one runs, the oldest of those that are kept is one too many.
_latest = select(_both).order_by(_both.c.attempt.desc()).limit(func.least(_limit, MAX_RUNS)).lateral("latest")

#: The latest attempts of the task `id`, oldest of them first; one row with a NULL attempt when it never ran, none when
#: there is no such task.
SELECT_RUNS = Prepared(
    select(_latest)
    .select_from(tasks.outerjoin(_latest, true()))
    .where(tasks.c.id == bindparam("task_id", type_=Text()))
    .order_by(_latest.c.attempt)
)
