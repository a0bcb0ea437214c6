"""Random operations from several threads on few tasks; then the books are checked against each other.

It found what no test had thought of: attempts that started with the spec from before a committed replace.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import create_engine, text
from support import retrying

from solti_store import (
    AdmissionPolicy,
    AgentLost,
    Claim,
    LeaseLost,
    Outcome,
    RestartPolicy,
    SoltiStoreError,
    TaskSpec,
    TaskStore,
)

THREADS = 6
OPERATIONS = 300
IDS = [f"t-{n}" for n in range(6)]
REFUSALS = {"AlreadyExists", "AlreadyRunning", "NotFound", "SlotBusy", "SlotQueueFull", "VersionConflict"}
OUTCOMES = [Outcome.succeeded(0), Outcome.failed("no", exit_code=1), Outcome.timed_out(5000), Outcome.canceled()]


class Stress:
    """What the threads share, and what they saw."""

    def __init__(self, store: TaskStore, seed: int) -> None:
        self.store = store
        self.seed = seed
        self.lock = threading.Lock()
        self.claims: list[Claim] = []
        self.accepted: dict[tuple[int, int], Outcome] = {}
        self.surprises: list[Exception] = []

    def some_spec(self, rng: random.Random, task_id: str) -> TaskSpec:
        restart = rng.choice([RestartPolicy.never(), RestartPolicy.on_failure(), RestartPolicy.always(0)])
        return retrying(
            f"slot-{int(task_id[-1]) // 3}",
            labels={"n": str(rng.random())},
            restart=restart,
            max_retries=rng.choice([None, 2]),
            admission=rng.choice(list(AdmissionPolicy)),
        )

    def run(self, thread: int) -> None:  # noqa: C901, PLR0912 - one branch an operation
        rng = random.Random(self.seed * 1000 + thread)
        agent = self.store.register(f"w-{thread}")
        held: list[Claim] = []
        for _ in range(OPERATIONS):
            task_id = rng.choice(IDS)
            try:
                match rng.randrange(12):
                    case 0 | 1:
                        self.store.create(task_id, self.some_spec(rng, task_id))
                    case 2:
                        task = self.store.get(task_id)
                        self.store.replace(task_id, self.some_spec(rng, task_id), expected_version=task)
                    case 3:
                        self.store.cancel(task_id)
                    case 4 if rng.random() < 0.3:
                        self.store.delete(task_id)
                    case 5:
                        held.append(self.note(self.store.start(task_id, agent)))
                    case 6 | 7 | 8:
                        held += map(self.note, self.store.claim(agent, limit=3))
                    case 9 if rng.random() < 0.2:
                        self.store.sign_off(agent)
                        agent = self.store.register(f"w-{thread}")
                    case 10:
                        self.store.reap(grace=timedelta(days=1))
                    case _ if held:
                        claim, outcome = held.pop(rng.randrange(len(held))), rng.choice(OUTCOMES)
                        self.store.finish(claim, outcome)
                        with self.lock:
                            self.accepted[claim.seq, claim.attempt] = outcome
            except (AgentLost, LeaseLost):
                pass
            except SoltiStoreError as error:
                if type(error).__name__ not in REFUSALS:
                    self.surprises.append(error)
            except Exception as error:  # noqa: BLE001 - any other is a finding
                self.surprises.append(error)

    def note(self, claim: Claim) -> Claim:
        with self.lock:
            self.claims.append(claim)
        return claim


@pytest.mark.parametrize("seed", [1, 2])
def test_the_books_agree_after_a_random_history(database_url: str, seed: int) -> None:
    with TaskStore.open(database_url, pool_size=THREADS, max_slot_queue=2) as store:
        stress = Stress(store, seed)
        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(stress.run, thread) for thread in range(THREADS)]:
                done.result()
    assert stress.surprises == []
    assert len(stress.claims) > 50
    once = Counter((claim.seq, claim.attempt) for claim in stress.claims)
    assert max(once.values()) == 1, "an attempt was handed out twice"

    engine = create_engine(database_url)
    with engine.connect() as connection:
        tasks = connection.execute(text("SELECT * FROM solti.tasks JOIN solti.task_status USING (seq, slot)")).all()
        runs = connection.execute(text("SELECT * FROM solti.task_runs ORDER BY seq, attempt")).all()
        events = connection.execute(text("SELECT * FROM solti.task_events ORDER BY event")).all()
    engine.dispose()

    for slot in {task.slot for task in tasks}:
        active = [task for task in tasks if task.slot == slot and (task.due_at or task.deadline or task.queue_key)]
        owners = [task for task in active if not task.queue_key]
        assert len(owners) == min(len(active), 1), "a slot without an owner, or with two"
    assert {"admitted", "cancelRequested"} <= {one.type for one in events}

    for task in tasks:
        mine = [run for run in runs if run.seq == task.seq]
        ended = task.attempt - (task.phase == "running")
        assert [run.attempt for run in mine] == list(range(1, ended + 1)), "status and runs disagree"
        steps = [one.resource_version for one in events if one.seq == task.seq and one.type != "refused"]
        assert sorted(steps) == list(range(1, task.resource_version + 1)), "a step without its one event"

    outcomes = {(run.seq, run.attempt): run for run in runs}
    for token, outcome in stress.accepted.items():
        run = outcomes.get(token)  # None when the task was deleted since
        if run is not None:
            assert (run.phase, run.exit_code, run.error) == (outcome.phase, outcome.exit_code, outcome.error)

    # Attempts between the same two spec changes ran the same spec, and attempts of different ones different specs.
    ran: dict[tuple[int, int], str] = {}
    for claim in stress.claims:
        of_task = sorted((one for one in events if one.seq == claim.seq), key=lambda one: one.resource_version)
        start = next(i for i, one in enumerate(of_task) if one.type == "started" and one.attempt == claim.attempt)
        generation = [one.type for one in of_task[:start]].count("specChanged") + 1
        label = claim.spec.labels["n"]
        assert ran.setdefault((claim.seq, generation), label) == label, "a stale spec"
    assert len(set(ran.values())) == len(ran), "a spec ran in two generations"
