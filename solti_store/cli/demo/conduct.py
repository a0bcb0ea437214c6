"""Runs the demo: submits, watches, cancels, kills, and waits until nothing more will happen."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from solti_store.cli.demo.crew import CONCURRENCY, LEASE_S, CrewError, Member
from solti_store.cli.demo.plan import STEADY_WORKER, Job, Role, is_final
from solti_store.model import TaskPhase
from solti_store.rules.why import WhyReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solti_store.cli.demo.crew import Crew
    from solti_store.cli.demo.stage import Stage
    from solti_store.model import Task
    from solti_store.store import TaskStore

__all__ = ["Conductor"]

_TICK_S = 0.2
_PATIENCE_S = 120.0
# The kill comes when this share of the tasks is final: in the middle of the work, not before or after it.
_KILL_AT = 0.25
# An attempt of a slow task that was first seen no longer ago than this is far from its end.
_FRESH_S = 1.5
_CANCELS = {
    Role.CANCEL_RUNNING: TaskPhase.RUNNING,
    Role.CANCEL_WAITING: TaskPhase.FAILED,
    Role.CANCEL_PENDING: TaskPhase.PENDING,
}
# What keeps them, for a while at least.
_KEPT = {Role.CANCEL_PENDING: WhyReason.NO_WORKER, Role.IN_LINE: WhyReason.QUEUED}


class Conductor:
    """One run of the demo.

    Args:
        store: The store.
        jobs: What to submit.
        crew: Who works.
        stage: Where to tell of it.
    """

    def __init__(self, store: TaskStore, jobs: Sequence[Job], crew: Crew, stage: Stage) -> None:
        self._store = store
        self._jobs = jobs
        self._crew = crew
        self._stage = stage
        # The one that replaces another comes when that one runs.
        self._later = [job for job in jobs if job.role is Role.REPLACING]
        self._open = [job for job in jobs if job.role is not Role.REPLACING]
        self._asked_why: set[Role] = set()
        self._seen: dict[str, Task] = {}
        self._canceled: set[str] = set()
        self._victim: Member | None = None
        # The attempts that the victim held: by task, the attempt.
        self._orphans: dict[str, int] = {}
        # When an attempt was first seen to run, by our own clock: the database's may differ.
        self._first_seen: dict[tuple[str, int], float] = {}
        self._start = 0.0

    def run(self) -> float:
        """Conduct it.

        Returns:
            Seconds from the submission until every task was final.

        Raises:
            CrewError: A worker ended by itself, or it takes far too long.
        """
        self._crew.wait_ready()
        size = len(self._crew.members)
        self._stage.say(f"{size} workers are ready, each for {CONCURRENCY} attempts at a time, lease {LEASE_S}s")
        self._start = time.monotonic()
        created = self._store.create_many([(job.task_id, job.spec) for job in self._open])
        self._seen = {task.id: task for task in created}
        self._stage.say(f"submitted {len(created)} tasks, {created[0].id} and so on")
        while True:
            self._look()
            if not self._open and not self._later:
                return time.monotonic() - self._start
            self._act()
            self._crew.check()
            if time.monotonic() - self._start > _PATIENCE_S:
                raise CrewError(f"{len(self._open)} tasks are not final after {_PATIENCE_S:.0f}s")
            time.sleep(_TICK_S)

    def _look(self) -> None:
        still_open = []
        for job in self._open:
            task = self._seen[job.task_id] = self._store.get(job.task_id)
            if not is_final(job, task):
                still_open.append(job)
        self._open = still_open
        final = self._final()
        self._stage.progress(final, len(self._jobs), [task.phase.value for task in self._seen.values()])

    def _final(self) -> int:
        return len(self._jobs) - len(self._open) - len(self._later)

    def _act(self) -> None:
        for job in list(self._open):
            task = self._seen[job.task_id]
            self._ask_why(job)
            if job.role is Role.REPLACED and task.phase is TaskPhase.RUNNING:
                self._replace(job)
            if task.phase is _CANCELS.get(job.role) and job.task_id not in self._canceled:
                self._canceled.add(job.task_id)
                state = "waiting to retry" if task.phase is TaskPhase.FAILED else task.phase.value
                self._store.cancel(job.task_id)
                self._stage.say(f"canceled {job.task_id}, which was {state}", "yellow")
        if self._victim is None:
            held = self._held()
            if self._final() >= _KILL_AT * len(self._jobs):
                self._kill(held)
        else:
            self._greet_rescued()

    def _ask_why(self, job: Job) -> None:
        """Show what keeps a task from running, once of each kind that is kept."""
        reason = _KEPT.get(job.role)
        if reason is None or job.role in self._asked_why:
            return
        why = self._store.why(job.task_id)
        if why.reason is reason:
            self._asked_why.add(job.role)
            self._stage.say(f"why {job.task_id}? {why.message}", "cyan")

    def _replace(self, job: Job) -> None:
        while self._later:
            other = self._later.pop()
            self._seen[other.task_id] = self._store.create(other.task_id, other.spec)
            self._open.append(other)
            self._stage.say(
                f"submitted {other.task_id}, which replaces {job.task_id} in slot {job.spec.slot}", "yellow"
            )

    def _kill(self, held: dict[str, list[tuple[Job, int]]]) -> None:
        """Kill the worker that holds the most of what is provably far from its end, if there is one."""
        steady = self._crew.members[STEADY_WORKER - 1]
        now = time.monotonic()
        fresh = {
            member.name: sum(
                job.role is Role.SLOW and now - self._first_seen[job.task_id, attempt] < _FRESH_S
                for job, attempt in held[member.name]
            )
            for member in self._crew.members
            if member is not steady and member.name in held
        }
        name = max(fresh, key=lambda one: fresh[one], default=None)
        if name is None or not fresh[name]:
            return
        victim = next(member for member in self._crew.members if member.name == name)
        os.kill(victim.process.pid, signal.SIGKILL)
        victim.killed_after_s = time.monotonic() - self._start
        self._victim = victim
        self._orphans = {job.task_id: attempt for job, attempt in held[name]}
        self._stage.say(
            f"SIGKILL for {name} (pid {victim.process.pid}), which runs {len(held[name])} attempts", "bold red"
        )

    def _held(self) -> dict[str, list[tuple[Job, int]]]:
        """What each worker runs by the store's books: jobs, and the attempts."""
        held: dict[str, list[tuple[Job, int]]] = {}
        for job in self._open:
            if self._seen[job.task_id].phase is TaskPhase.RUNNING:
                (run,) = self._store.runs(job.task_id, limit=1)
                if run.is_active and run.agent is not None:
                    held.setdefault(run.agent, []).append((job, run.attempt))
                    self._first_seen.setdefault((job.task_id, run.attempt), time.monotonic())
        return held

    def _greet_rescued(self) -> None:
        for task_id, lost in list(self._orphans.items()):
            task = self._seen[task_id]
            if task.status.attempt > lost:
                (run,) = self._store.runs(task_id, limit=1)
                self._stage.say(f"rescued {task_id}: attempt {run.attempt} on {run.agent}", "green")
                del self._orphans[task_id]
