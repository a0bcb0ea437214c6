"""Start attempts: claim what is due, or start one task by hand; and what an agent runs."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from solti_store.errors import AgentLost, AlreadyRunning, ModelError, OutcomeUnknown, SlotBusy
from solti_store.faults import is_owner_conflict
from solti_store.model import TaskId
from solti_store.ops import arguments, rows, slots
from solti_store.ops.agents import judge_new_routes, require_open, routes_of
from solti_store.ops.tasks import act, read
from solti_store.sql import claims as sql
from solti_store.sql.driver import is_autocommit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

    from solti_store.ops.agents import Agent
    from solti_store.ops.rows import Claim
    from solti_store.sql.driver import Row

__all__ = ["Claimed", "Unreadable", "claim", "held", "held_keys", "start"]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An attempt that was started of a task whose spec cannot be read, and that nobody can run.

    Attributes:
        seq: The task's incarnation.
        attempt: The attempt.
        reason: What is wrong with the spec.
    """

    seq: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim started.

    Attributes:
        claims: What can be run.
        unreadable: What cannot, and has to be failed: a spec that was written by hand, or by a newer version, would
            else come up in every claim, and keep all the others from starting.
    """

    claims: list[Claim]
    unreadable: list[Unreadable]


def claim(conn: Connection, agent: Agent, *, limit: int, now: datetime | None = None) -> Claimed:
    """Start up to `limit` due tasks that the agent may run, the longest due first.

    One statement, nearly always: it may be a transaction of its own.
    """
    most, cursor = arguments.limit(limit), agent.cursor
    # A test's own time is not what the cursor goes by. And a claim that will hardly find a thing had to make sure.
    whole = now is not None or cursor.wants_all() or (cursor.is_dry and cursor.all_is_cheap)
    in_turn = False
    picked: list[Row] = []
    if not agent.judged:
        judge_new_routes(conn, agent)
    while True:
        routes = routes_of(agent)
        left = most - len(picked)
        # Of a single route, the one finds the same as the other, and misses nothing.
        merged = not in_turn and len(routes) > 1
        with _nothing_forgotten(conn, picked):
            found = _start_due(conn, agent, routes, left, whole=whole, merged=merged, now=now)
        about = found[0]
        if about.state is None:
            raise AgentLost(agent.id)
        news = [row for row in found if row.route is not None]
        picked += news
        started = [row for row in picked if row.seq is not None]
        with _nothing_forgotten(conn, started):
            has_more_routes = about.has_new_routes and judge_new_routes(conn, agent)
        if merged and len(news) < left <= (about.seen or 0):
            # Others have locked some of what was to be shared between the routes.
            in_turn = True
        elif started:
            if now is None:
                due = [(row.route, row.due_at) for row in picked]
                cursor.found(due, routes, about.moment, all_there_is=len(picked) < most and not has_more_routes)
            return _read(started)
        elif not whole and not picked and not has_more_routes and cursor.all_is_cheap:
            whole, in_turn = True, False
        elif not picked and not has_more_routes:
            if now is None:
                cursor.found_nothing(routes, about.moment)
            return Claimed([], [])
        # What was picked was changed at that moment, or is in a route that was new.
        picked = started


@contextmanager
def _nothing_forgotten(conn: Connection, picked: Sequence[Row]) -> Iterator[None]:
    """After a first statement has started attempts for good, no failure of a second one says that there are none."""
    try:
        yield
    except DBAPIError as error:
        if not (picked and is_autocommit(conn)):
            raise
        raise OutcomeUnknown(f"{len(picked)} attempts were started before the claim failed: {error.orig}") from error


def _start_due(
    conn: Connection,
    agent: Agent,
    routes: list[UUID],
    limit: int,
    *,
    whole: bool,
    merged: bool,
    now: datetime | None,
) -> list[Row]:
    began = time.perf_counter()
    statement = sql.CLAIM if merged else sql.CLAIM_BY_ROUTE
    found = statement.all(
        conn,
        {
            "agent_seq": agent.seq,
            "agent_name": str(agent.id),
            "routes": routes,
            "since": agent.cursor.since(routes, whole=whole),
            "known": list(agent.judged),
            "limit": limit,
            "now": now,
        },
    )
    if whole:
        agent.cursor.looked_at_all(time.perf_counter() - began)
    return found


def _read(started: Sequence[Row]) -> Claimed:
    claimed = Claimed([], [])
    for row in started:
        try:
            claimed.claims.append(rows.claim(row))
        except ModelError as error:
            claimed.unreadable.append(Unreadable(row.seq, row.attempt, f"spec cannot be read: {error}"))
    return claimed


def start(conn: Connection, task_id: str, agent: Agent | None, *, now: datetime | None = None) -> Claim:
    """Start an attempt of one task, whatever its phase and policies, unless it runs already."""
    checked = TaskId(task_id)
    if agent is not None:
        require_open(conn, agent, now=now)
    starting = {
        "agent_seq": None if agent is None else agent.seq,
        "agent_name": None if agent is None else str(agent.id),
        "now": now,
    }
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
                given = starting | {"picked_seq": picked.seq, "phase_before": picked.phase}
                return rows.claim(sql.START.one(conn, given))
        except DBAPIError as error:
            if not is_owner_conflict(error):
                raise
        # The slot was free, or the task's own, and has another owner by now.
        slots.look_again(conn)


def held(conn: Connection, agent: Agent) -> list[Claim]:
    """The attempts that the agent runs, by the store's books, without those whose spec cannot be read."""
    return _read(sql.SELECT_HELD.all(conn, {"agent_seq": agent.seq})).claims


def held_keys(conn: Connection, agent: Agent) -> frozenset[tuple[int, int]]:
    """The seqs and attempts that the agent runs, by the store's books."""
    return frozenset((row.seq, row.attempt) for row in sql.SELECT_HELD_KEYS.all(conn, {"agent_seq": agent.seq}))
