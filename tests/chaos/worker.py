"""One worker process: random operations through the public store, all of it written down as it goes.

    python -m chaos.worker URL DIRECTORY NAME SEED LEASE_S MAX_SLOT_QUEUE

A line is written before a call and after it. The file is opened for appending and each line is one write, so whoever
kills the process tears no line. What the directory holds tells the worker what to do: `drain`, finish what there is;
`stop`, end.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import deque
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from chaos.plan import Plan, plan_of
from checking import mutants

from solti_store import (
    AgentLost,
    AlreadyRunning,
    Claim,
    LeaseLost,
    NotFound,
    Outcome,
    OutcomeUnknown,
    RetryPolicy,
    SoltiStoreError,
    StoreUnavailable,
    TaskPhase,
    TaskStore,
    VersionConflict,
)

SHARED_SLOTS = 9
_UNKNOWN = (StoreUnavailable, OutcomeUnknown)


def _open(url: str, max_slot_queue: int) -> TaskStore:
    while True:
        try:
            # Impatient: a server that restarts is back soon, and what is unknown is part of the test.
            return TaskStore.open(url, max_slot_queue=max_slot_queue, retry=RetryPolicy(attempts=3), pool_size=2)
        except StoreUnavailable:
            continue


class Worker:
    """A client that does a bit of everything."""

    def __init__(self, url: str, directory: Path, name: str, *, seed: int, lease_s: float, max_slot_queue: int) -> None:
        self.name = name
        self.rng = random.Random(f"{seed}-{name}")
        self.directory = directory
        self.lease = timedelta(seconds=lease_s)
        self.log = os.open(directory / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.store = _open(url, max_slot_queue)
        self.made = 0
        self.beat = 0.0
        self.held: list[Claim] = []
        self.done: deque[tuple[Claim, Outcome]] = deque(maxlen=20)
        self.known: deque[str] = deque(maxlen=60)

    def write(self, op: str, state: str, **facts: Any) -> None:
        os.write(self.log, (json.dumps({"op": op, "state": state, **facts}) + "\n").encode())

    def says(self, what: str) -> bool:
        return (self.directory / what).exists()

    def run(self) -> None:
        self.register()
        while not self.says("stop"):
            try:
                if self.says("drain"):
                    self.drain()
                else:
                    self.step()
            except AgentLost:
                self.lost()
            except _UNKNOWN:
                # What was in the making is unknown, and what is held is asked for again.
                self.recover()

    def register(self) -> None:
        while not self.says("stop"):
            try:
                self.agent = self.store.register(self.name, lease=self.lease)
            except _UNKNOWN:
                continue
            self.beat = time.monotonic()
            return

    def lost(self) -> None:
        """Open a new incarnation; before that, mostly, report what the old one had: too late, or so it should be."""
        if self.rng.random() < 0.8:
            with suppress(*_UNKNOWN):
                self.finish([(claim, self.outcome()) for claim in self.held])
        self.held.clear()
        self.register()

    def recover(self) -> None:
        try:
            self.held = list(self.store.held(self.agent))
        except _UNKNOWN:
            time.sleep(0.02)

    def heartbeat(self) -> None:
        if time.monotonic() - self.beat > self.lease.total_seconds() / 4:
            self.beat = time.monotonic()
            asked = {(one.seq, one.attempt) for one in self.store.heartbeat(self.agent)}
            stopped = [claim for claim in self.held if (claim.seq, claim.attempt) in asked]
            self.finish([(claim, self.outcome(TaskPhase.CANCELED)) for claim in stopped])

    def step(self) -> None:
        self.heartbeat()
        dice = self.rng.random()
        if dice < 0.30:
            self.create()
        elif dice < 0.36:
            self.create_many()
        elif dice < 0.55:
            self.claim(self.rng.choice([1, 5, 20]))
        elif dice < 0.85:
            self.finish_some()
        elif dice < 0.89:
            self.again()
        elif dice < 0.92:
            self.store.reap(grace=timedelta(0))
        elif dice < 0.925:
            self.store.sign_off(self.agent)
            raise AgentLost(self.name)
        elif self.known:
            self.change(self.rng.choice(self.known))

    def drain(self) -> None:
        """Finish everything: tasks that would always start again are canceled first."""
        self.heartbeat()
        self.store.reap(grace=timedelta(0))
        self.claim(50)
        for claim in self.held:
            if plan_of(claim.task_id).restart == "always":
                try:
                    self.store.cancel(claim.task_id)
                except NotFound:
                    continue
        self.finish([(claim, self.outcome()) for claim in self.held])

    # --- creations ----------------------------------------------------------------------------------

    def plan(self, likely: float) -> Plan:
        """What a new task is to be: in one of the few slots, as likely as that, or in one of its own."""
        shared = self.rng.random() < likely
        slot = f"s{self.rng.randrange(SHARED_SLOTS)}" if shared else f"own-{self.name}-{self.made}"
        return Plan(
            slot,
            self.rng.choice(["queue", "queue", "queue", "replace", "dropIfRunning"]),
            self.rng.choice(["never", "never", "onFailure", "onFailure", "always"]),
            self.rng.choice([None, 1, 3]),
        )

    def new(self, likely: float) -> tuple[str, Any]:
        plan = self.plan(likely)
        self.made += 1
        return plan.id(f"{self.name}-{self.made}"), plan.spec(timeout_ms=self.rng.choice([300, 5000]))

    def create(self) -> None:
        task_id, spec = self.new(0.8)
        self.write("create", "try", id=task_id)
        try:
            self.store.create(task_id, spec)
        except _UNKNOWN:
            raise
        except SoltiStoreError as error:
            self.refused(task_id, error)
        else:
            self.write("create", "ok", id=task_id)
            self.known.append(task_id)

    def create_many(self) -> None:
        # Of a slot at most one: how the tasks of one transaction affect each other is for another test.
        items = list({str(spec.slot): (task_id, spec) for task_id, spec in (self.new(0.3) for _ in range(8))}.values())
        for task_id, _ in items:
            self.write("create", "try", id=task_id)
        try:
            self.store.create_many(items)
        except _UNKNOWN:
            raise
        except SoltiStoreError as error:
            for task_id, _ in items:
                self.refused(task_id, error)
        else:
            for task_id, _ in items:
                self.write("create", "ok", id=task_id)
            self.known.extend(task_id for task_id, _ in items)

    def refused(self, task_id: str, error: SoltiStoreError) -> None:
        named = getattr(error, "task_id", "") == task_id
        self.write(
            "create",
            "refused",
            id=task_id,
            error=type(error).__name__ if named else "batch",
            owner=getattr(error, "owner", None) if named else None,
        )

    # --- attempts -----------------------------------------------------------------------------------

    def claim(self, limit: int) -> None:
        for claim in self.store.claim(self.agent, limit=limit):
            self.write("claim", "ok", id=claim.task_id, seq=claim.seq, attempt=claim.attempt, agent=self.agent.seq)
            self.held.append(claim)

    def outcome(self, phase: TaskPhase | None = None) -> Outcome:
        """An outcome that is reported once in the whole history."""
        chosen = phase or self.rng.choice([TaskPhase.SUCCEEDED] * 5 + [TaskPhase.FAILED] * 4 + [TaskPhase.TIMEOUT])
        fatal = chosen is TaskPhase.FAILED and self.rng.random() < 0.1
        text = f"{'fatal' if fatal else 'no'} {self.rng.getrandbits(48):x}"
        return Outcome(phase=chosen, exit_code=self.rng.getrandbits(31), error=text, fatal=fatal)

    def finish_some(self) -> None:
        self.rng.shuffle(self.held)
        some = self.held[: self.rng.choice([1, 3, 30])]
        self.finish([(claim, self.outcome()) for claim in some])

    def again(self) -> None:
        """Report once more what was reported: the same, or something else."""
        if self.done:
            claim, outcome = self.rng.choice(self.done)
            self.finish([(claim, outcome if self.rng.random() < 0.5 else self.outcome())])

    def finish(self, results: list[tuple[Claim, Outcome]]) -> None:
        if not results:
            return
        for claim, outcome in results:
            self.report("try", claim, outcome)
        answers = self.store.finish_many(results)
        for (claim, outcome), answer in zip(results, answers, strict=True):
            self.report("ok" if answer is None else "refused", claim, outcome)
            assert answer is None or isinstance(answer, LeaseLost)
        self.done.extend(results)
        over = {(claim.seq, claim.attempt) for claim, _ in results}
        self.held = [claim for claim in self.held if (claim.seq, claim.attempt) not in over]

    def report(self, state: str, claim: Claim, outcome: Outcome) -> None:
        record = [outcome.phase.value, outcome.exit_code, outcome.error]
        self.write("finish", state, id=claim.task_id, seq=claim.seq, attempt=claim.attempt, record=record)

    # --- changes ------------------------------------------------------------------------------------

    def change(self, task_id: str) -> None:
        try:
            match self.rng.randrange(4):
                case 0 | 1:
                    self.store.cancel(task_id)
                case 2:
                    task = self.store.get(task_id)
                    spec = task.spec.replace(labels={"n": f"{self.rng.random()}"})
                    self.store.replace(task_id, spec, expected_version=task)
                case _:
                    if self.store.delete(task_id):
                        self.write("delete", "ok", id=task_id)
        except (NotFound, VersionConflict, AlreadyRunning):
            pass


def main() -> None:
    url, directory, name, seed, lease_s, max_slot_queue = sys.argv[1:]
    mutants.apply_from_environment(url)
    worker = Worker(
        url, Path(directory), name, seed=int(seed), lease_s=float(lease_s), max_slot_queue=int(max_slot_queue)
    )
    worker.run()


if __name__ == "__main__":
    main()
