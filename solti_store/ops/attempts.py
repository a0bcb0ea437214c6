"""Claim, start and finish attempts, and close those that nobody else will."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from solti_store.errors import AgentLost, AlreadyRunning, LeaseLost
from solti_store.model import BackoffPolicy, RestartPolicy, TaskId, TaskPhase
from solti_store.ops import arguments, rows
from solti_store.ops.agents import routes_of
from solti_store.ops.tasks import get
from solti_store.rules import restart
from solti_store.rules.outcome import Outcome
from solti_store.sql import agents as agents_sql
from solti_store.sql import attempts as sql

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Connection, Row

    from solti_store.ops.agents import Agent
    from solti_store.ops.rows import Claim

__all__ = ["Reaped", "claim", "finish_many", "held", "reap", "sign_off", "start"]


@dataclass(frozen=True, slots=True)
class Reaped:
    """An attempt that the store closed, because its worker was silent or did not keep to its timeout.

    Attributes:
        task_id: The task.
        attempt: The attempt.
        agent: The name of the agent that held it; None when it was started by hand.
        phase: What the attempt ended as: `failed`, `timeout` or `canceled`.
        will_retry: Whether the task starts again.
    """

    task_id: TaskId
    attempt: int
    agent: str | None
    phase: TaskPhase
    will_retry: bool


def claim(conn: Connection, agent: Agent, *, limit: int, now: datetime | None = None) -> list[Claim]:
    """Start up to `limit` due tasks that the agent may run, the longest due first."""
    most = arguments.limit(limit)
    found = conn.execute(
        sql.CLAIM,
        {
            "agent_seq": agent.seq,
            "routes": routes_of(conn, agent),
            "limit": most,
            "now": now,
        },
    ).all()
    if not found:
        _require_open(conn, agent)
    return [rows.claim(row) for row in found]


def start(conn: Connection, task_id: str, agent: Agent | None, *, now: datetime | None = None) -> Claim:
    """Start an attempt of one task, whatever its phase and policies, unless it runs already."""
    checked = TaskId(task_id)
    if agent is None:
        row = conn.execute(sql.START_BY_HAND, {"task_id": checked, "now": now}).one_or_none()
    else:
        row = conn.execute(sql.START, {"task_id": checked, "agent_seq": agent.seq, "now": now}).one_or_none()
    if row is not None:
        return rows.claim(row)
    if agent is not None:
        _require_open(conn, agent)
    raise AlreadyRunning(checked, attempt=get(conn, checked).status.attempt)


def held(conn: Connection, agent: Agent) -> list[Claim]:
    """The attempts that the agent runs, by the store's books."""
    return [rows.claim(row) for row in conn.execute(sql.SELECT_HELD, {"agent_seq": agent.seq})]


def _require_open(conn: Connection, agent: Agent) -> None:
    if conn.execute(agents_sql.SELECT_OPEN, {"agent_seq": agent.seq}).one_or_none() is None:
        raise AgentLost(agent.id)


# --- closing ------------------------------------------------------------------------------------


def finish_many(
    conn: Connection, results: Sequence[tuple[Claim, Outcome]], *, now: datetime | None = None
) -> list[LeaseLost | None]:
    """Close a batch of attempts; for each, in order, None or why it was refused."""
    locked = {row.seq: row for row in conn.execute(sql.LOCK, {"seqs": [claim.seq for claim, _ in results]})}
    done: dict[int, tuple[Row[Any], Outcome]] = {}
    late: list[int] = []
    for index, (claim, outcome) in enumerate(results):
        row = locked.get(claim.seq)
        mine = row is not None and row.phase == "running" and row.attempt == claim.attempt
        if row is not None and mine and claim.seq not in done:
            done[claim.seq] = (row, outcome)
        else:
            late.append(index)
    _close(conn, done.values(), now)
    answers: list[LeaseLost | None] = [None] * len(results)
    if late:
        refusals = _refuse(conn, [results[index] for index in late], now)
        for index, refusal in zip(late, refusals, strict=True):
            answers[index] = refusal
    return answers


def _close(conn: Connection, done: Iterable[tuple[Row[Any], Outcome]], now: datetime | None) -> list[restart.Next]:
    """Close running attempts whose status rows are locked; what follows each."""
    pairs = list(done)
    followed = [
        restart.after(
            outcome,
            restart=RestartPolicy.from_json(row.restart),
            backoff=BackoffPolicy.from_json(row.backoff),
            max_retries=row.max_retries,
            failures=row.failures,
            cancel_requested=row.cancel_requested,
            uniform=random.uniform,
        )
        for row, outcome in pairs
    ]
    if pairs:
        conn.execute(
            sql.CLOSE,
            {
                "seqs": [row.seq for row, _ in pairs],
                "attempts": [row.attempt for row, _ in pairs],
                "run_phases": [outcome.phase.value for _, outcome in pairs],
                "exit_codes": [outcome.exit_code for _, outcome in pairs],
                "errors": [outcome.error for _, outcome in pairs],
                "phases": [following.phase.value for following in followed],
                "streaks": [following.failures for following in followed],
                "delays": [
                    None if following.delay_ms is None else min(following.delay_ms, sql.MAX_DELAY_MS)
                    for following in followed
                ],
                "now": now,
            },
        )
    return followed


def _refuse(conn: Connection, late: Sequence[tuple[Claim, Outcome]], now: datetime | None) -> list[LeaseLost | None]:
    """Judge late writes: None for one that repeats what is on record, else the refusal, left in the events too.

    Read in a statement of its own. The row lock may have been waited for, and what a statement that waited
    joins to the locked row is from before the wait.
    """
    found = {
        (row.seq, row.attempt): row
        for row in conn.execute(
            sql.SELECT_HOLDERS,
            {"seqs": [claim.seq for claim, _ in late], "attempts": [claim.attempt for claim, _ in late]},
        )
    }
    refusals: list[LeaseLost | None] = []
    notes: list[tuple[int, str]] = []
    for claim, outcome in late:
        row = found[claim.seq, claim.attempt]
        if (row.phase, row.exit_code, row.error) == (outcome.phase, outcome.exit_code, outcome.error):
            refusals.append(None)
            continue
        refusals.append(
            LeaseLost(claim.task_id, attempt=claim.attempt, current_attempt=row.current_attempt, holder=row.holder)
        )
        if row.current_attempt is not None:
            note = {"attempt": claim.attempt, "outcome": outcome.phase, "exitCode": outcome.exit_code}
            notes.append((claim.seq, json.dumps(note | {"error": outcome.error})))
    if notes:
        conn.execute(
            sql.INSERT_REFUSED,
            {"seqs": [seq for seq, _ in notes], "details": [note for _, note in notes], "now": now},
        )
    return refusals


def reap(conn: Connection, *, limit: int, grace: timedelta, now: datetime | None = None) -> list[Reaped]:
    """Close up to `limit` silent agents with all they run, and up to `limit` attempts long past their deadline."""
    most = arguments.limit(limit)
    closed = conn.execute(agents_sql.CLOSE_EXPIRED, {"limit": most, "now": now}).all()
    return _close_agents(conn, closed, "lease expired: agent {} stopped reporting", now) + _close_overdue(
        conn, most, grace, now
    )


def sign_off(conn: Connection, agent: Agent, *, now: datetime | None = None) -> list[Reaped]:
    """Close the agent for good; what it still runs fails as if it had fallen silent."""
    closed = conn.execute(agents_sql.CLOSE_AGENT, {"agent_seq": agent.seq, "now": now}).all()
    return _close_agents(conn, closed, "agent {} signed off", now)


def _close_agents(conn: Connection, closed: Sequence[Row[Any]], error: str, now: datetime | None) -> list[Reaped]:
    if not closed:
        return []
    names = {row.seq: row.id for row in closed}
    locked = conn.execute(sql.LOCK_OF_AGENTS, {"agents": list(names)}).all()
    return _reaped(conn, [(row, names[row.agent], error.format(names[row.agent])) for row in locked], now)


def _close_overdue(conn: Connection, limit: int, grace: timedelta, now: datetime | None) -> list[Reaped]:
    locked = conn.execute(sql.LOCK_OVERDUE, {"limit": limit, "grace": grace, "now": now}).all()
    return _reaped(conn, [(row, row.agent_id, None) for row in locked], now)


def _reaped(
    conn: Connection, closing: Sequence[tuple[Row[Any], str | None, str | None]], now: datetime | None
) -> list[Reaped]:
    """Close attempts as failed with the error given, as timed out without one, as canceled where that was asked."""
    pairs = [
        (
            row,
            Outcome.canceled()
            if row.cancel_requested
            else Outcome.timed_out(int(row.timeout))
            if error is None
            else Outcome.failed(error),
        )
        for row, _, error in closing
    ]
    followed = _close(conn, pairs, now)
    return [
        Reaped(TaskId(row.id), row.attempt, agent, outcome.phase, following.delay_ms is not None)
        for (row, outcome), (_, agent, _), following in zip(pairs, closing, followed, strict=True)
    ]
