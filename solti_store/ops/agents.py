"""Register agents, keep them alive, and sign them off."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from solti_store.errors import AgentLost, Invalid, ModelError
from solti_store.model import TASK_KINDS, AgentId, AgentState, AgentStatus, KindName, Labels, Timestamp
from solti_store.ops import arguments
from solti_store.rules.claim_cursor import ClaimCursor
from solti_store.rules.routing import serves
from solti_store.sql import agents as sql

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

    from solti_store.sql.driver import Row

__all__ = [
    "Agent",
    "CancelRequest",
    "drain",
    "heartbeat",
    "judge_new_routes",
    "list_agents",
    "register",
    "require_open",
    "routes_of",
]

MAX_LEASE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Agent:
    """One incarnation of a worker.

    Attributes:
        id: The worker's name, which other incarnations may bear too.
        seq: This incarnation; what the store goes by.
        kinds: The kinds of task it runs.
        labels: What runner selectors see of it.
        lease: How long it may be silent before its attempts are taken away.
        judged: Routes seen so far, and whether they are this agent's: a cache, private to the package.
        cursor: Where its claims begin; private likewise.
    """

    id: AgentId
    seq: int
    kinds: frozenset[KindName]
    labels: Labels
    lease: timedelta
    judged: dict[UUID, bool] = field(default_factory=dict, repr=False, compare=False)
    cursor: ClaimCursor = field(default_factory=ClaimCursor, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Somebody asked for this attempt to be stopped.

    Attributes:
        seq: The task's incarnation, as in the claim.
        attempt: The attempt.
    """

    seq: int
    attempt: int


def register(
    conn: Connection,
    agent_id: str,
    *,
    kinds: Collection[KindName],
    labels: Mapping[str, str],
    lease: timedelta,
    capacity: int | None = None,
    now: datetime | None = None,
) -> Agent:
    """Open a new incarnation of an agent."""
    checked, checked_labels = AgentId(agent_id), Labels(labels)
    if unknown := set(kinds).difference(TASK_KINDS):
        raise Invalid(f"invalid model: unknown kind {min(unknown)!r}", field="kinds")
    if not timedelta(0) < lease <= MAX_LEASE:
        raise Invalid(f"invalid model: lease must be positive and at most {MAX_LEASE}, got {lease}", field="lease")
    seq = sql.REGISTER.one(
        conn,
        {
            "agent_id": str(checked),
            "agent_labels": json.dumps(dict(checked_labels)),
            "agent_kinds": sorted(kinds),
            "agent_capacity": None if capacity is None else arguments.capacity(capacity),
            "agent_lease": lease,
            "now": now,
        },
    ).seq
    return Agent(checked, seq, frozenset(kinds), checked_labels, lease)


def heartbeat(conn: Connection, agent: Agent, *, now: datetime | None = None) -> list[CancelRequest]:
    """Prolong the agent's lease; what it should stop."""
    found = sql.HEARTBEAT.all(conn, {"agent_seq": agent.seq, "now": now})
    if not found:
        raise AgentLost(agent.id)
    return [CancelRequest(row.task, row.attempt) for row in found if row.task is not None]


def drain(conn: Connection, agent: Agent | AgentStatus) -> None:
    """Hand the agent no more tasks."""
    if sql.DRAIN.one_or_none(conn, {"agent_seq": agent.seq}) is None:
        raise AgentLost(agent.id)


def list_agents(
    conn: Connection, *, closed: bool, after: int, limit: int, now: datetime | None = None
) -> tuple[AgentStatus, ...]:
    """Agents in the order in which they registered."""
    asked = {
        "closed": bool(closed),
        "after_seq": arguments.position(after),
        "limit": arguments.limit(limit),
        "now": now,
    }
    return tuple(map(_status, sql.SELECT_AGENTS.all(conn, asked)))


def _status(row: Row) -> AgentStatus:
    return AgentStatus(
        id=AgentId(row.id),
        seq=row.seq,
        state=AgentState(row.state),
        kinds=tuple(sorted(row.kinds)),
        capacity=row.capacity,
        labels=Labels(json.loads(row.labels)),
        lease=row.lease // timedelta(milliseconds=1),
        registered_at=Timestamp.from_datetime(row.registered_at),
        heartbeat_at=Timestamp.from_datetime(row.heartbeat_at),
        running=row.running,
    )


def require_open(conn: Connection, agent: Agent, *, now: datetime | None = None) -> datetime:
    """Lock the agent against being closed, until the transaction ends; `AgentLost` when its lease is over.

    Returns:
        The database's time.
    """
    row = sql.HOLDER.one_or_none(conn, {"agent_seq": agent.seq, "now": now})
    if row is None:
        raise AgentLost(agent.id)
    moment: datetime = row.moment
    return moment


def routes_of(agent: Agent) -> list[UUID]:
    """The routes, of those judged so far, whose tasks the agent may run."""
    # Copied first: threads may share the agent, and another may be judging.
    return [route for route, mine in list(agent.judged.items()) if mine]


def judge_new_routes(conn: Connection, agent: Agent) -> bool:
    """Look at the routes that were not judged before; whether the agent may run the tasks of any."""
    before = len(routes_of(agent))
    for row in sql.SELECT_NEW_ROUTES.all(conn, {"known": list(agent.judged)}):
        try:
            agent.judged[row.id] = serves(agent.kinds, agent.labels, kind=row.kind, selector=row.selector)
        except ModelError:
            # Of a newer version, perhaps: for its workers.
            agent.judged[row.id] = False
    return len(routes_of(agent)) > before
