"""What must never break, broken on purpose: each mutant of the package is caught, and the package itself is not.

Some show in one thread, beside the model. The others need two operations that meet, so these are interleaved statement
by statement, and the checker of histories judges what came of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from chaos.history import Act, Violation, check
from chaos.interleave import interleave
from chaos.plan import plan_of
from chaos.recorder import record
from checking.drivers import OpsDriver
from checking.machine import SteppingMachine, explore
from checking.mutants import MUTANTS, mutated
from hypothesis import Phase, settings
from servers import FAST
from sqlalchemy import create_engine
from support import connect, silence

from solti_store import Agent, Claim, Outcome, SoltiStoreError, TaskStore
from solti_store.embedded import EmbeddedServer
from solti_store.migrate import upgrade
from solti_store.sql import attempts as attempts_sql

MAX_SLOT_QUEUE = 5


@dataclass
class Client:
    """A store that writes down what it does."""

    store: TaskStore
    url: str
    acts: list[Act]

    def create(self, task_id: str) -> None:
        self.acts.append(Act("create", "try", task_id))
        try:
            self.store.create(task_id, plan_of(task_id).spec(timeout_ms=60_000))
        except SoltiStoreError as error:
            owner = getattr(error, "owner", None)
            self.acts.append(Act("create", "refused", task_id, error=type(error).__name__, owner=owner))
        else:
            self.acts.append(Act("create", "ok", task_id))

    def claim(self, agent: Agent, limit: int = 10) -> list[Claim]:
        claims = list(self.store.claim(agent, limit=limit))
        self.acts += [Act("claim", "ok", one.task_id, None, one.seq, one.attempt, agent.seq) for one in claims]
        return claims

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        record = (outcome.phase.value, outcome.exit_code, outcome.error)
        self.acts.append(Act("finish", "try", claim.task_id, None, claim.seq, claim.attempt, record=record))
        (answer,) = self.store.finish_many([(claim, outcome)])
        state = "ok" if answer is None else "refused"
        self.acts.append(Act("finish", state, claim.task_id, None, claim.seq, claim.attempt, record=record))

    def register(self) -> Agent:
        return self.store.register("w")

    def reap(self) -> None:
        self.store.reap(grace=timedelta(0))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that remembers when each transaction was committed."""
    root = Path(tempfile.mkdtemp(prefix="solti-order-"))
    root.chmod(0o711)
    embedded = EmbeddedServer(root / "data", settings=FAST | {"track_commit_timestamp": "on"})
    try:
        url = embedded.ensure_running()
        upgrade(url)
        yield url
    finally:
        embedded.destroy()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with TaskStore.open(server, max_slot_queue=MAX_SLOT_QUEUE) as store:
        yield Client(store, server, [])
    with connect(server) as conn:
        conn.execute("DELETE FROM solti.tasks; DELETE FROM solti.task_events; DELETE FROM solti.agents")


A, B, C = "s.queue.never.n.a", "s.queue.never.n.b", "s.queue.never.n.c"
OK, OTHER = Outcome.succeeded(1), Outcome.failed("no", exit_code=2)


def finish_while_reaped(client: Client) -> None:
    """A worker comes back from its silence while its attempt is being taken from it."""
    client.create(A)
    agent = client.register()
    (claim,) = client.claim(agent)
    silence(client.url, agent)
    interleave(client.url, lambda: client.finish(claim, OK), attempts_sql.LOCK, client.reap)


def claims_that_meet(client: Client) -> None:
    """Two workers look for the same task."""
    client.create(A)
    agents = [client.register() for _ in range(2)]
    first, second = (lambda agent=agent: client.claim(agent) for agent in agents)
    interleave(client.url, first, attempts_sql.PICK_REST, second)


SCENARIOS: dict[str, tuple[Callable[[Client], None], str]] = {
    "finish without a lock": (finish_while_reaped, "fence"),
    "claim without a lock": (claims_that_meet, "attempts"),
}


def judged(client: Client) -> list[Violation]:
    return check(record(client.url, client.acts, max_slot_queue=MAX_SLOT_QUEUE, drained=False))


@pytest.mark.parametrize("name", SCENARIOS)
def test_operations_that_meet_leave_a_good_history(client: Client, name: str) -> None:
    scenario, _ = SCENARIOS[name]
    scenario(client)
    assert judged(client) == []


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_checker_catches_it_in_operations_that_meet(client: Client, name: str) -> None:
    scenario, rule = SCENARIOS[name]
    with mutated(name):
        scenario(client)
    assert rule in {violation.rule for violation in judged(client)}


@pytest.mark.parametrize("name", [name for name in MUTANTS if name not in SCENARIOS])
def test_the_state_machine_catches_it(database_url: str, name: str) -> None:
    engine = create_engine(database_url)
    # Always the same examples, and the first that fails is enough.
    given = settings(derandomize=True, report_multiple_bugs=False)
    with engine.connect() as conn, mutated(name), pytest.raises(AssertionError):
        explore(SteppingMachine, OpsDriver(conn), given, Phase.generate, examples=300, steps=30)
    engine.dispose()
