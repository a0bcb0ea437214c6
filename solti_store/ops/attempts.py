"""Claim, start and finish attempts, and close those that nobody else will."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from solti_store.errors import AgentLost, AlreadyRunning, Invalid, LeaseLost, ModelError, SlotBusy
from solti_store.faults import is_owner_conflict
from solti_store.model import BackoffPolicy, RestartPolicy, TaskId, TaskPhase
from solti_store.ops import arguments, rows, slots
from solti_store.ops.agents import require_open, routes_of
from solti_store.ops.tasks import act, read
from solti_store.rules import restart
from solti_store.rules.outcome import Outcome
from solti_store.sql import agents as agents_sql
from solti_store.sql import attempts as sql
from solti_store.sql.driver import Row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

    from solti_store.ops.agents import Agent
    from solti_store.ops.rows import Claim

__all__ = ["Reaped", "claim", "finds_nothing", "finish_many", "held", "held_keys", "reap", "sign_off", "start"]


MAX_GRACE = timedelta(days=365)


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
    routes = routes_of(conn, agent)
    # Again, if none of those could be read: nothing claimed would mean nothing due. They are final now.
    while picked := _pick(conn, agent, routes, most, now):
        if claims := _readable(conn, _start(conn, picked, agent, now), now):
            return claims
    moment = require_open(conn, agent, now=now)
    if now is None:
        agent.cursor.found_nothing(routes, moment)
    return []


def finds_nothing(conn: Connection, agent: Agent, *, limit: int) -> bool:
    """Whether a claim would find nothing: one statement that only reads, where `claim` locks and commits.

    For an agent whose last claim took all there was. What others have locked counts as something.
    """
    arguments.limit(limit)
    cursor, known = agent.cursor, dict(agent.judged)
    mine = [route for route, is_mine in known.items() if is_mine]
    whole = cursor.wants_all() or cursor.all_is_cheap
    asked = {"agent_seq": agent.seq, "routes": mine, "since": cursor.since(mine, whole=whole), "known": list(known)}
    began = time.perf_counter()
    found = sql.LOOK.one(conn, asked | {"now": None})
    took_s = time.perf_counter() - began
    if not found.is_open:
        raise AgentLost(agent.id)
    if found.is_due or found.has_new_routes:
        # The cursor is not told that all was looked at, or the claim would not do so and miss what was seen here.
        return False
    if whole:
        cursor.looked_at_all(took_s)
    cursor.found_nothing(mine, found.moment)
    return True


def _pick(conn: Connection, agent: Agent, routes: list[UUID], limit: int, now: datetime | None) -> list[int]:
    """Lock due tasks: from where the agent's cursor says, or all there are."""
    cursor = agent.cursor
    # A test's own time is not what the cursor goes by.
    whole = now is not None or cursor.wants_all()
    picked = _look(conn, agent, routes, limit, whole=whole, now=now)
    if not picked and not whole and cursor.all_is_cheap:
        picked = _look(conn, agent, routes, limit, whole=True, now=now)
    return picked


def _look(
    conn: Connection, agent: Agent, routes: list[UUID], limit: int, *, whole: bool, now: datetime | None
) -> list[int]:
    cursor = agent.cursor
    asked = {"agent_seq": agent.seq, "routes": routes, "since": cursor.since(routes, whole=whole), "now": now}
    began = time.perf_counter()
    # Of a single route, the rest is all there is, and in order.
    picked = sql.PICK.all(conn, asked | {"limit": limit}) if len(routes) > 1 else []
    if len(picked) < limit:
        seqs = [row.seq for row in picked]
        picked += sql.PICK_REST.all(conn, asked | {"limit": limit - len(picked), "picked": seqs})
    if whole:
        cursor.looked_at_all(time.perf_counter() - began)
    if picked and now is None:
        found = [(row.route, row.due_at) for row in picked]
        cursor.found(found, routes, picked[-1].moment, all_there_is=len(picked) < limit)
    return [row.seq for row in picked]


def start(conn: Connection, task_id: str, agent: Agent | None, *, now: datetime | None = None) -> Claim:
    """Start an attempt of one task, whatever its phase and policies, unless it runs already."""
    checked = TaskId(task_id)
    if agent is not None:
        require_open(conn, agent, now=now)
    while True:
        # Looked for before anything is locked: who waits first, locked while it waits for the owner's end, would be
        # waited for by whoever ends the owner, to admit it.
        if (busy := slots.owner_of(conn, checked)) is not None and busy.owner != checked:
            raise SlotBusy(checked, slot=busy.slot, owner=busy.owner)
        try:
            # In a savepoint: what is refused, or of a spec that cannot be read, leaves no lock and no running attempt
            # in a caller's transaction.
            with conn.begin_nested():
                picked = act(conn, sql.PICK_BY_ID, {"task_id": str(checked)})
                if picked is None:
                    raise AlreadyRunning(checked, attempt=read(conn, checked).attempt)
                (started,) = _start(conn, [picked.seq], agent, now)
                return rows.claim(started)
        except DBAPIError as error:
            if not is_owner_conflict(error):
                raise
        # The slot was free, or the task's own, and has another owner by now.
        slots.look_again(conn)


def _start(conn: Connection, picked: Sequence[int], agent: Agent | None, now: datetime | None) -> list[Row]:
    """Start tasks whose status rows are locked."""
    return sql.START.all(
        conn,
        {
            "seqs": picked,
            "agent_seq": None if agent is None else agent.seq,
            "agent_name": None if agent is None else str(agent.id),
            "now": now,
        },
    )


def _readable(conn: Connection, started: Sequence[Row], now: datetime | None) -> list[Claim]:
    """The claims on tasks just started; those whose spec cannot be read fail at once.

    A spec that was written by hand, or by a newer version, would fail every claim that meets it, and so keep all the
    others from starting.
    """
    claims, unreadable = [], {}
    for row in started:
        try:
            claims.append(rows.claim(row))
        except ModelError as error:
            unreadable[row.seq] = _reported(Outcome.failed(f"spec cannot be read: {error}", fatal=True))
    if unreadable:
        locked = sql.LOCK.all(conn, {"seqs": list(unreadable)})
        _close(conn, [(row, unreadable[row.seq]) for row in locked], now)
    return claims


def held(conn: Connection, agent: Agent) -> list[Claim]:
    """The attempts that the agent runs, by the store's books."""
    return [rows.claim(row) for row in sql.SELECT_HELD.all(conn, {"agent_seq": agent.seq})]


def held_keys(conn: Connection, agent: Agent) -> frozenset[tuple[int, int]]:
    """The seqs and attempts that the agent runs, by the store's books."""
    return frozenset((row.seq, row.attempt) for row in sql.SELECT_HELD_KEYS.all(conn, {"agent_seq": agent.seq}))


# --- closing ------------------------------------------------------------------------------------


def finish_many(
    conn: Connection, results: Sequence[tuple[Claim, Outcome]], *, now: datetime | None = None
) -> list[LeaseLost | None]:
    """Close a batch of attempts; for each, in order, None or why it was refused."""
    locked = {row.seq: row for row in sql.LOCK.all(conn, {"seqs": [claim.seq for claim, _ in results]})}
    done: dict[int, tuple[Row, _Verdict]] = {}
    late: list[int] = []
    for index, (claim, outcome) in enumerate(results):
        row = locked.get(claim.seq)
        mine = row is not None and row.phase == "running" and row.attempt == claim.attempt
        if row is not None and mine and claim.seq not in done:
            done[claim.seq] = (row, _reported(outcome))
        else:
            late.append(index)
    _close(conn, list(done.values()), now)
    answers: list[LeaseLost | None] = [None] * len(results)
    if late:
        refusals = _refuse(conn, [results[index] for index in late], now)
        for index, refusal in zip(late, refusals, strict=True):
            answers[index] = refusal
    return answers


# From a locked status row and the policies beside it, how the attempt ended.
_Verdict = Callable[[Row, Row], Outcome]


def _reported(outcome: Outcome) -> _Verdict:
    return lambda _row, _policy: outcome


def _close(conn: Connection, closing: Sequence[tuple[Row, _Verdict]], now: datetime | None) -> list[Reaped]:
    """Close running attempts whose status rows are locked."""
    if not closing:
        return []
    seqs = [row.seq for row, _ in closing]
    policies = {row.seq: row for row in sql.SELECT_POLICIES.all(conn, {"seqs": seqs})}
    outcomes = [verdict(row, policies[row.seq]) for row, verdict in closing]
    followed = [_follow(row, policies[row.seq], outcome) for (row, _), outcome in zip(closing, outcomes, strict=True)]
    closed = sql.CLOSE.all(
        conn,
        {
            "seqs": seqs,
            "attempts": [row.attempt for row, _ in closing],
            "run_phases": [outcome.phase.value for outcome in outcomes],
            "exit_codes": [outcome.exit_code for outcome in outcomes],
            "errors": [outcome.error for outcome in outcomes],
            "stdouts": [outcome.stdout or None for outcome in outcomes],
            "stderrs": [outcome.stderr or None for outcome in outcomes],
            "phases": [following.phase.value for following in followed],
            "streaks": [following.failures for following in followed],
            "delays": [
                None if following.delay_ms is None else min(following.delay_ms, sql.MAX_DELAY_MS)
                for following in followed
            ],
            "now": now,
        },
    )
    slots.admit(conn, [row.free_slot for row in closed if row.free_slot is not None], now=now)
    return [
        Reaped(
            TaskId(policies[row.seq].id),
            row.attempt,
            policies[row.seq].agent_id,
            outcome.phase,
            following.delay_ms is not None,
        )
        for (row, _), outcome, following in zip(closing, outcomes, followed, strict=True)
    ]


def _follow(row: Row, policy: Row, outcome: Outcome) -> restart.Next:
    try:
        restarting, backoff = RestartPolicy.from_json(policy.restart), BackoffPolicy.from_json(policy.backoff)
        max_retries = _max_retries(policy.max_retries)
    except ModelError:
        # Nobody knows when to try again, so nobody does.
        restarting, backoff, max_retries = RestartPolicy.never(), BackoffPolicy(), None
    return restart.after(
        outcome,
        restart=restarting,
        backoff=backoff,
        max_retries=max_retries,
        failures=row.failures,
        cancel_requested=row.cancel_requested,
        uniform=random.uniform,
    )


def _max_retries(document: str | None) -> int | None:
    retries = None if document is None else json.loads(document)
    if retries is None or (isinstance(retries, int) and not isinstance(retries, bool)):
        return retries
    raise Invalid(f"invalid model: maxRetries must be an integer, got {document}", field="maxRetries")


def _refuse(conn: Connection, late: Sequence[tuple[Claim, Outcome]], now: datetime | None) -> list[LeaseLost | None]:
    """Judge late writes: None for one that repeats what is on record, else the refusal, left in the events too.

    Read in a statement of its own. The row lock may have been waited for, and what a statement that waited
    joins to the locked row is from before the wait.
    """
    asked = {"seqs": [claim.seq for claim, _ in late], "attempts": [claim.attempt for claim, _ in late]}
    found = {(row.seq, row.attempt): row for row in sql.SELECT_HOLDERS.all(conn, asked)}
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
        sql.INSERT_REFUSED.all(
            conn, {"seqs": [seq for seq, _ in notes], "details": [note for _, note in notes], "now": now}
        )
    return refusals


def reap(conn: Connection, *, limit: int, grace: timedelta, now: datetime | None = None) -> list[Reaped]:
    """Close up to `limit` silent agents, and up to `limit` attempts of closed agents or long past their deadline."""
    most = arguments.limit(limit)
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise Invalid(f"invalid model: grace must be from 0 to {MAX_GRACE}, got {grace}", field="grace")
    agents_sql.CLOSE_EXPIRED.all(conn, {"limit": most, "now": now})
    abandoned = sql.LOCK_ABANDONED.all(conn, {"limit": most, "grace": grace, "now": now})
    reaped = _close(conn, [(row, _abandoned) for row in abandoned], now)
    slots.admit_orphans(conn, limit=most, now=now)
    return reaped


def sign_off(conn: Connection, agent: Agent, *, now: datetime | None = None) -> list[Reaped]:
    """Close the agent for good; what it still runs fails as if it had fallen silent."""
    agents_sql.CLOSE_AGENT.all(conn, {"agent_seq": agent.seq, "now": now})
    left = sql.LOCK_OF_AGENT.all(conn, {"agent_seq": agent.seq})
    return _close(conn, [(row, _abandoned) for row in left], now)


def _abandoned(row: Row, policy: Row) -> Outcome:
    if row.cancel_requested:
        return Outcome.canceled()
    if row.agent_state == "lost":
        return Outcome.failed(f"lease expired: agent {policy.agent_id} stopped reporting")
    if row.agent_state == "stopped":
        return Outcome.failed(f"agent {policy.agent_id} signed off")
    # The attempt's own timeout; the spec may have another by now.
    return Outcome.timed_out((row.deadline - policy.started_at) // timedelta(milliseconds=1))
