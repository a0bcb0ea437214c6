"""A store whose every act is written down, for histories that a test makes on purpose."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from chaos.history import Act, Violation, check
from chaos.plan import plan_of
from chaos.recorder import record

from solti_store import (
    AlreadyExists,
    AlreadyRunning,
    LeaseLost,
    NotFound,
    Outcome,
    SlotBusy,
    SlotQueueFull,
    TaskStore,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from solti_store import Agent, Claim

__all__ = ["Client"]

_REFUSALS = (AlreadyExists, SlotBusy, SlotQueueFull)
# So many rounds are more than any of these histories has attempts left.
_ROUNDS = 20


@dataclass
class Client:
    """What several threads do to one registry. What is refused is written down and not raised.

    Attributes:
        store: The store.
        conn: To its database, on a server that keeps commit times; for the thread that made this.
        max_slot_queue: As the store has it.
        acts: What was done so far.
    """

    store: TaskStore
    conn: psycopg.Connection[Any]
    max_slot_queue: int
    acts: list[Act] = field(default_factory=list)

    def create(self, *ids: str) -> None:
        self.acts += [Act("create", "try", task_id) for task_id in ids]
        try:
            if len(ids) == 1:
                self.store.create(ids[0], plan_of(ids[0]).spec(timeout_ms=60_000))
            else:
                self.store.create_many([(task_id, plan_of(task_id).spec(timeout_ms=60_000)) for task_id in ids])
        except _REFUSALS as error:
            owner = getattr(error, "owner", None)
            of = {error.task_id: (type(error).__name__, owner)}
            for task_id in ids:
                name, named = of.get(task_id, ("batch", None))
                self.acts.append(Act("create", "refused", task_id, error=name, owner=named))
        else:
            self.acts += [Act("create", "ok", task_id) for task_id in ids]

    def register(self) -> Agent:
        return self.store.register("w")

    def claim(self, agent: Agent) -> Sequence[Claim]:
        claims = self.store.claim(agent, limit=10)
        self.acts += [Act("claim", "ok", one.task_id, None, one.seq, one.attempt, agent.seq) for one in claims]
        return claims

    def start(self, task_id: str) -> None:
        try:
            one = self.store.start(task_id)
        except (AlreadyRunning, SlotBusy, NotFound):
            return
        self.acts.append(Act("start", "ok", task_id, None, one.seq, one.attempt, None))

    def finish(self, results: Sequence[tuple[Claim, Outcome]]) -> None:
        acts = [
            (one.task_id, None, one.seq, one.attempt, 0, (outcome.phase.value, outcome.exit_code, outcome.error))
            for one, outcome in results
        ]
        self.acts += [Act("finish", "try", *act) for act in acts]
        answers = self.store.finish_many(results)
        for act, answer in zip(acts, answers, strict=True):
            assert answer is None or isinstance(answer, LeaseLost)
            self.acts.append(Act("finish", "ok" if answer is None else "refused", *act))

    def cancel(self, task_id: str) -> None:
        with suppress(NotFound):
            self.store.cancel(task_id)

    def delete(self, task_id: str) -> None:
        if self.store.delete(task_id):
            self.acts.append(Act("delete", "ok", task_id))

    def reap(self) -> None:
        self.store.reap(grace=timedelta(0))

    def silence(self) -> None:
        """Let the leases of all agents be over."""
        self.conn.execute("UPDATE solti.agents SET expires_at = now() - interval '1 hour'")

    def clear(self) -> None:
        """Forget everything."""
        for table in ("tasks", "task_events", "agents"):
            self.conn.execute(f"DELETE FROM solti.{table}".encode())
        self.acts.clear()

    def drain(self) -> None:
        """Work until nothing is left that could be: whoever holds an attempt now is gone."""
        self.silence()
        self.conn.execute(
            "UPDATE solti.task_status SET deadline = now() - interval '1 hour' WHERE deadline IS NOT NULL"
            " AND agent IS NULL"
        )
        agent = self.register()
        for number in range(_ROUNDS):
            self.reap()
            # Nobody waits for a wait to be over.
            self.conn.execute("UPDATE solti.task_status SET due_at = now() WHERE due_at > now()")
            claims = self.claim(agent)
            self.finish([(claim, Outcome.succeeded(1000 + number)) for claim in claims])
            if not claims:
                return

    def judge(self, *, drained: bool) -> list[Violation]:
        return check(record(self.conn, self.acts, max_slot_queue=self.max_slot_queue, drained=drained))
