"""What the demo's tasks do, and how each must end."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from solti_store.model import (
    AdmissionPolicy,
    BackoffPolicy,
    JitterPolicy,
    Labels,
    RestartPolicy,
    RunnerSelector,
    Slot,
    Subprocess,
    TaskId,
    TaskPhase,
    TaskSpec,
    Timeout,
)

if TYPE_CHECKING:
    from pathlib import Path

    from solti_store.model import Task

__all__ = ["MIN_TASKS", "STEADY_WORKER", "Job", "Role", "is_final", "make_plan", "new_run"]

MIN_TASKS = 24
#: Runs what must end in one way only, whoever is killed; so it is never the one.
STEADY_WORKER = 1
_SLOW_S = 2.5


class Role(StrEnum):
    """What a task of the demo is there for."""

    QUICK = "quick"
    SLOW = "slow"
    FLAKY = "flaky"
    BROKEN = "broken"
    HOPELESS = "hopeless"
    OVERTIME = "overtime"
    CANCEL_RUNNING = "cancel-running"
    CANCEL_WAITING = "cancel-waiting"
    CANCEL_PENDING = "cancel-pending"
    IN_LINE = "in-line"
    REPLACED = "replaced"
    REPLACING = "replacing"


_ENDS = {
    Role.QUICK: TaskPhase.SUCCEEDED,
    Role.SLOW: TaskPhase.SUCCEEDED,
    Role.FLAKY: TaskPhase.SUCCEEDED,
    Role.BROKEN: TaskPhase.FAILED,
    Role.HOPELESS: TaskPhase.EXHAUSTED,
    Role.OVERTIME: TaskPhase.TIMEOUT,
    Role.CANCEL_RUNNING: TaskPhase.CANCELED,
    Role.CANCEL_WAITING: TaskPhase.CANCELED,
    Role.CANCEL_PENDING: TaskPhase.CANCELED,
    Role.IN_LINE: TaskPhase.SUCCEEDED,
    Role.REPLACED: TaskPhase.CANCELED,
    Role.REPLACING: TaskPhase.SUCCEEDED,
}

# Each execution leaves a line in the task's ledger: a witness of how often it really ran that is not the store.
_SIGN = 'echo "$$" >> "$LEDGER"; '
_SCRIPTS = {
    Role.QUICK: "sleep 0.05",
    Role.SLOW: f"exec sleep {_SLOW_S}",
    Role.BROKEN: "echo 'no such recipe' >&2; exit 7",
    Role.HOPELESS: "echo 'still no luck' >&2; exit 9",
    Role.OVERTIME: "exec sleep 60",
    Role.CANCEL_RUNNING: "exec sleep 60",
    Role.CANCEL_WAITING: "echo 'try me in a minute' >&2; exit 4",
    Role.CANCEL_PENDING: "exit 0",
    Role.IN_LINE: "sleep 0.3",
    Role.REPLACED: "exec sleep 60",
    Role.REPLACING: "sleep 0.1",
}
# Everything else has a slot of its own, so that nothing else waits for another.
_SHARED_SLOTS = {Role.IN_LINE: "line", Role.REPLACED: "deploy", Role.REPLACING: "deploy"}
_ADMISSIONS = {Role.IN_LINE: AdmissionPolicy.QUEUE, Role.REPLACING: AdmissionPolicy.REPLACE}
_FLAKY = '[ "$(wc -l < "$LEDGER")" -gt {} ] || {{ echo "not yet" >&2; exit 3; }}'


@dataclass(frozen=True, slots=True)
class Job:
    """A task of the demo.

    Attributes:
        task_id: Its id.
        role: What it is there for.
        spec: What is submitted.
        ledger: The file in which its executions sign.
    """

    task_id: TaskId
    role: Role
    spec: TaskSpec
    ledger: Path

    @property
    def end(self) -> TaskPhase:
        """The phase in which it must end."""
        return _ENDS[self.role]


def new_run() -> str:
    """A short name for one run of the demo."""
    return secrets.token_hex(3)


def make_plan(run: str, tasks: int, workers: int, folder: Path) -> list[Job]:
    """The jobs, in the order of their submission, the rare ones spread among the many.

    Args:
        run: The name of this run of the demo.
        tasks: How many, at least `MIN_TASKS`.
        workers: How many workers there will be.
        folder: Where the ledgers go.
    """
    counts = {
        # Enough that every worker holds some whenever one is to be killed.
        Role.SLOW: max(2 * workers, tasks // 16),
        Role.FLAKY: max(3, tasks // 10),
        Role.BROKEN: max(2, tasks // 40),
        Role.HOPELESS: max(2, tasks // 60),
        Role.OVERTIME: 2,
        Role.CANCEL_RUNNING: 1,
        Role.CANCEL_WAITING: 1,
        Role.CANCEL_PENDING: 1,
        Role.IN_LINE: 4,
        Role.REPLACED: 1,
        Role.REPLACING: 1,
    }
    counts[Role.SLOW] = min(counts[Role.SLOW], tasks - sum(counts.values()) + counts[Role.SLOW])
    counts[Role.QUICK] = tasks - sum(counts.values())
    spread = sorted(((index + 0.5) / count, role, index) for role, count in counts.items() for index in range(count))
    jobs = []
    for number, (_, role, index) in enumerate(spread, 1):
        task_id = TaskId(f"demo-{run}-{number:03}")
        ledger = folder / task_id
        jobs.append(Job(task_id, role, _spec(run, task_id, role, index, ledger), ledger))
    return jobs


def is_final(job: Job, task: Task) -> bool:
    """Whether nothing more will happen to the task.

    A phase alone does not say that: a failed task may be waiting for its next attempt. These policies leave no
    doubt, because who retries without limit never ends failed, and who has a limit ends exhausted.
    """
    if task.phase in (TaskPhase.FAILED, TaskPhase.TIMEOUT):
        return job.spec.restart.type == "never"
    return task.phase.is_terminal


def _spec(run: str, task_id: TaskId, role: Role, index: int, ledger: Path) -> TaskSpec:
    script = _FLAKY.format(1 + index % 2) if role is Role.FLAKY else _SCRIPTS[role]
    where = {"demo": run}
    if role in (Role.OVERTIME, Role.CANCEL_RUNNING, Role.REPLACED):
        where["worker"] = str(STEADY_WORKER)
    elif role is Role.CANCEL_PENDING:
        where["worker"] = "nobody"
    first_ms = 60_000 if role is Role.CANCEL_WAITING else 100
    return TaskSpec(
        slot=Slot(f"demo-{run}-{_SHARED_SLOTS[role]}" if role in _SHARED_SLOTS else task_id),
        kind=Subprocess.command("sh", "-c", _SIGN + script, env={"LEDGER": str(ledger)}),
        timeout=Timeout(1000 if role is Role.OVERTIME else 120_000),
        restart=RestartPolicy.never() if role in (Role.BROKEN, Role.OVERTIME) else RestartPolicy.on_failure(),
        backoff=BackoffPolicy(jitter=JitterPolicy.NONE, first_ms=first_ms, max_ms=4 * first_ms, factor=2.0),
        admission=_ADMISSIONS.get(role, AdmissionPolicy.DROP_IF_RUNNING),
        max_retries=2 if role is Role.HOPELESS else None,
        runner_selector=RunnerSelector(match_labels=Labels(where)),
        labels=Labels({"demo": run, "role": role.value}),
    )
