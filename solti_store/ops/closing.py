"""End attempts: as their workers report them, or because nobody will."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from solti_store.errors import Invalid, LeaseLost, ModelError
from solti_store.model import BackoffPolicy, RestartPolicy, TaskId, TaskPhase
from solti_store.ops import arguments, slots
from solti_store.rules import restart
from solti_store.rules.outcome import Outcome
from solti_store.sql import agents as agents_sql
from solti_store.sql import closing as sql
from solti_store.sql import slots as slots_sql
from solti_store.sql.driver import Row
from solti_store.sql.types import MAX_DELAY_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.ops.agents import Agent
    from solti_store.ops.claims import Unreadable
    from solti_store.ops.rows import Claim

__all__ = ["Finishing", "Reaped", "fail", "finish_free", "finish_many", "finish_untouched", "reap", "sign_off"]


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


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ends, and what becomes of its task.

    Attributes:
        seq: The task's incarnation.
        attempt: The attempt.
        version: The version that its status must be at; of a locked one, whatever.
        outcome: How the attempt ended.
        following: What follows.
    """

    seq: int
    attempt: int
    version: int | None
    outcome: Outcome
    following: restart.Next


# --- what workers report ------------------------------------------------------------------------

Answers: TypeAlias = "dict[int, LeaseLost | None]"
"""Of some results, by their place in the batch: None for one that counts, or why it was refused."""


class Finishing:
    """A batch of results on its way through `finish_untouched`, `finish_free` and `finish_many`.

    In three transactions, each with what the ones before left: almost all are done after the first, and nobody waits
    for the last with a lock on what others need.
    """

    def __init__(self, results: Iterable[tuple[Claim, Outcome]]) -> None:
        self._results = list(results)
        self._open = list(range(len(self._results)))
        self._answers: dict[int, LeaseLost | None] = {}

    @property
    def left(self) -> list[tuple[Claim, Outcome]]:
        """The results of which nothing is decided."""
        return [self._results[place] for place in self._open]

    def decided(self, answers: Answers) -> None:
        """Take note of what became of some of those that were left."""
        self._answers |= {self._open[place]: answer for place, answer in answers.items()}
        self._open = [place for place in self._open if place not in self._answers]

    @property
    def answers(self) -> list[LeaseLost | None]:
        """For each result None, or why it was refused; once all are decided."""
        return [self._answers[place] for place in range(len(self._results))]


def finish_untouched(
    conn: Connection, results: Sequence[tuple[Claim, Outcome]], *, now: datetime | None = None
) -> Answers:
    """Close those attempts whose tasks nobody has touched since their claim: almost all, in one statement.

    What follows is decided by the spec in the claim: had it been replaced, the task would be at another version.
    """
    endings: dict[int, Ending] = {}
    places: dict[int, int] = {}
    for place, (claim, outcome) in enumerate(results):
        if claim.seq not in endings:
            spec = claim.spec
            following = restart.after(
                outcome,
                restart=spec.restart,
                backoff=spec.backoff,
                max_retries=spec.max_retries,
                failures=claim.failures,
                cancel_requested=False,
                uniform=random.uniform,
            )
            endings[claim.seq] = Ending(claim.seq, claim.attempt, claim.version, outcome, following)
            places[claim.seq] = place
    closed = sql.CLOSE_UNTOUCHED.all(conn, _parameters(endings.values(), now))
    return dict.fromkeys(places[row.seq] for row in closed)


def finish_free(conn: Connection, results: Sequence[tuple[Claim, Outcome]], *, now: datetime | None = None) -> Answers:
    """Decide on those whose tasks nobody has locked, nor whom their end would let in.

    Behind one task that a long transaction has locked, a batch that waited for it would hold up all the others.
    """
    locked = sql.LOCK_FREE.all(conn, {"seqs": [claim.seq for claim, _ in results]})
    ready = {row.seq for row in _with_free_heads(conn, locked)}
    free = [place for place, (claim, _) in enumerate(results) if claim.seq in ready]
    answers = _finish(conn, locked, [results[place] for place in free], now)
    return dict(zip(free, answers, strict=True))


def finish_many(
    conn: Connection, results: Sequence[tuple[Claim, Outcome]], *, now: datetime | None = None
) -> list[LeaseLost | None]:
    """Close a batch of attempts; for each, in order, None or why it was refused."""
    return _finish(conn, sql.LOCK.all(conn, {"seqs": [claim.seq for claim, _ in results]}), results, now)


def _finish(
    conn: Connection, locked: Iterable[Row], results: Sequence[tuple[Claim, Outcome]], now: datetime | None
) -> list[LeaseLost | None]:
    mine = _mine(locked, results)
    _close(conn, list(mine.values()), now)
    late = [place for place in range(len(results)) if place not in mine]
    answers: list[LeaseLost | None] = [None] * len(results)
    if late:
        refusals = _refuse(conn, [results[place] for place in late], now)
        for place, refusal in zip(late, refusals, strict=True):
            answers[place] = refusal
    return answers


def fail(conn: Connection, attempts: Sequence[Unreadable], *, now: datetime | None = None) -> None:
    """Fail attempts that nobody can run, for good; those that would have to be waited for end at their deadlines."""
    reasons = {(one.seq, one.attempt): one.reason for one in attempts}
    locked = sql.LOCK_FREE.all(conn, {"seqs": [one.seq for one in attempts]})
    closing = [
        (row, _reported(Outcome.failed(reason, fatal=True)))
        for row in _with_free_heads(conn, locked)
        if row.phase == "running" and (reason := reasons.get((row.seq, row.attempt)))
    ]
    _close(conn, closing, now)


# From a locked status row, how the attempt ended.
_Verdict = Callable[[Row], Outcome]


def _reported(outcome: Outcome) -> _Verdict:
    return lambda _row: outcome


def _mine(locked: Iterable[Row], results: Sequence[tuple[Claim, Outcome]]) -> dict[int, tuple[Row, _Verdict]]:
    """By place, the results that are of attempts that still run."""
    by_seq = {row.seq: row for row in locked}
    mine: dict[int, tuple[Row, _Verdict]] = {}
    for place, (claim, outcome) in enumerate(results):
        row = by_seq.get(claim.seq)
        if row is not None and row.phase == "running" and row.attempt == claim.attempt:
            mine[place] = (row, _reported(outcome))
            # Said twice, the first one counts.
            del by_seq[claim.seq]
    return mine


def _close(conn: Connection, closing: Sequence[tuple[Row, _Verdict]], now: datetime | None) -> list[Reaped]:
    """Close running attempts whose status rows are locked."""
    if not closing:
        return []
    policies = {row.seq: row for row in sql.SELECT_POLICIES.all(conn, {"seqs": [row.seq for row, _ in closing]})}
    outcomes = [verdict(row) for row, verdict in closing]
    endings = [
        Ending(row.seq, row.attempt, None, outcome, _follow(row, policies[row.seq], outcome))
        for (row, _), outcome in zip(closing, outcomes, strict=True)
    ]
    closed = sql.CLOSE.all(conn, _parameters(endings, now))
    slots.admit(conn, [row.free_slot for row in closed if row.free_slot is not None], now=now)
    return [
        Reaped(
            TaskId(policies[ending.seq].id),
            ending.attempt,
            row.agent_id,
            ending.outcome.phase,
            ending.following.delay_ms is not None,
        )
        for (row, _), ending in zip(closing, endings, strict=True)
    ]


def _parameters(endings: Iterable[Ending], now: datetime | None) -> dict[str, Any]:
    given = list(endings)
    outcomes = [ending.outcome for ending in given]
    followed = [ending.following for ending in given]
    return {
        "seqs": [ending.seq for ending in given],
        "attempts": [ending.attempt for ending in given],
        "versions": [ending.version for ending in given],
        "run_phases": [outcome.phase.value for outcome in outcomes],
        "exit_codes": [outcome.exit_code for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
        "stdouts": [outcome.stdout or None for outcome in outcomes],
        "stderrs": [outcome.stderr or None for outcome in outcomes],
        "phases": [following.phase.value for following in followed],
        "streaks": [following.failures for following in followed],
        "delays": [
            None if following.delay_ms is None else min(following.delay_ms, MAX_DELAY_MS) for following in followed
        ],
        "now": now,
    }


def _follow(row: Row, policy: Row, outcome: Outcome) -> restart.Next:
    try:
        restarting, backoff, max_retries = _policies(policy.restart, policy.backoff, policy.max_retries)
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


@lru_cache(maxsize=256)
def _policies(
    restarting: str, backoff: str, max_retries: str | None
) -> tuple[RestartPolicy, BackoffPolicy, int | None]:
    """From JSON. There are few that differ, and to parse them takes 6 µs."""
    return RestartPolicy.from_json(restarting), BackoffPolicy.from_json(backoff), _max_retries(max_retries)


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


# --- what nobody will report --------------------------------------------------------------------


def reap(conn: Connection, *, limit: int, grace: timedelta, now: datetime | None = None) -> list[Reaped]:
    """Close up to `limit` silent agents, and up to `limit` attempts of closed agents or long past their deadline."""
    most = arguments.limit(limit)
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise Invalid(f"invalid model: grace must be from 0 to {MAX_GRACE}, got {grace}", field="grace")
    agents_sql.CLOSE_EXPIRED.all(conn, {"limit": most, "now": now})
    reaped = _close(conn, [(row, _abandoned) for row in _lock_abandoned(conn, most, grace, now)], now)
    slots.admit_orphans(conn, limit=most, now=now)
    return reaped


def _lock_abandoned(conn: Connection, limit: int, grace: timedelta, now: datetime | None) -> list[Row]:
    """Lock attempts that nobody will finish and that can be ended now, past those that cannot."""
    after = -1
    while True:
        found = sql.LOCK_ABANDONED.all(conn, {"after_seq": after, "limit": limit, "grace": grace, "now": now})
        ready = found
        if nowhere := [row.agent_nowhere for row in found if row.agent_nowhere is not None]:
            # In a statement of its own, newer than the locks.
            present = {row.seq for row in agents_sql.SELECT_PRESENT.all(conn, {"agent_seqs": nowhere})}
            ready = [row for row in found if row.agent_nowhere not in present]
        ready = _with_free_heads(conn, ready)
        if ready or len(found) < limit:
            return ready
        after = found[-1].seq


def sign_off(conn: Connection, agent: Agent, *, now: datetime | None = None) -> list[Reaped]:
    """Close the agent for good; what it still runs fails as if it had fallen silent."""
    agents_sql.CLOSE_AGENT.all(conn, {"agent_seq": agent.seq, "now": now})
    left = sql.LOCK_OF_AGENT.all(conn, {"agent_seq": agent.seq})
    return _close(conn, [(row, _abandoned) for row in _with_free_heads(conn, left)], now)


def _with_free_heads(conn: Connection, owners: Sequence[Row]) -> list[Row]:
    """Those of locked owners of whom nobody has to be waited for when they end.

    Who comes next must be locked to be admitted, and never passed over. Where somebody holds that one, the owner is
    left as it is, for a later call.
    """
    blocked = (
        {row.seq for row in slots_sql.SELECT_BLOCKED.all(conn, {"seqs": [row.seq for row in owners]})} if owners else ()
    )
    return [row for row in owners if row.seq not in blocked]


def _abandoned(row: Row) -> Outcome:
    if row.cancel_requested:
        return Outcome.canceled()
    if row.agent_state == "lost":
        return Outcome.failed(f"lease expired: agent {row.agent_id} stopped reporting")
    if row.agent_state == "stopped":
        return Outcome.failed(f"agent {row.agent_id} signed off")
    # The attempt's own timeout; the spec may have another by now.
    return Outcome.timed_out((row.deadline - row.started_at) // timedelta(milliseconds=1))
