"""The demo's plan, and that its checks find what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from solti_store.cli.demo.account import Account, Entry
from solti_store.cli.demo.crew import Member
from solti_store.cli.demo.plan import MIN_TASKS, Job, Role, is_final, make_plan
from solti_store.model import AgentId, ObjectMeta, Task, TaskPhase, TaskRun, TaskStatus, Timestamp


@pytest.mark.parametrize(("tasks", "workers"), [(MIN_TASKS, 2), (MIN_TASKS, 16), (40, 3), (200, 3), (999, 16)])
def test_a_plan_has_every_role_and_exactly_so_many_tasks(tasks: int, workers: int, tmp_path: Path) -> None:
    jobs = make_plan("abc", tasks, workers, tmp_path)
    roles = Counter(job.role for job in jobs)
    assert len(jobs) == len({job.task_id for job in jobs}) == tasks
    slots = Counter(job.spec.slot for job in jobs)
    assert sorted(slots.values())[-2:] == [2, roles[Role.IN_LINE]]
    assert len(slots) == tasks - 1 - (roles[Role.IN_LINE] - 1)
    assert all(roles[role] for role in Role if role is not Role.QUICK)
    for job in jobs:
        job.spec.validate()
        selector = job.spec.runner_selector
        assert selector is not None
        assert not selector.matches({"worker": "1"}), "another demo's worker"
        assert selector.matches({"demo": "abc", "worker": "1"}) == (job.role is not Role.CANCEL_PENDING)


def test_rare_roles_are_spread_among_the_many(tmp_path: Path) -> None:
    jobs = make_plan("abc", 200, 3, tmp_path)
    slow = [index for index, job in enumerate(jobs) if job.role is Role.SLOW]
    assert max(after - before for before, after in pairwise(slow)) < 25


def task_of(job: Job, phase: TaskPhase, attempt: int) -> Task:
    return Task(
        metadata=ObjectMeta(id=job.task_id, resource_version=1, created_at=Timestamp(0), updated_at=Timestamp(0)),
        status=TaskStatus(phase=phase, attempt=attempt),
        spec=job.spec,
    )


@pytest.mark.parametrize(
    ("role", "phase", "expected"),
    [
        (Role.QUICK, TaskPhase.PENDING, False),
        (Role.QUICK, TaskPhase.RUNNING, False),
        (Role.QUICK, TaskPhase.SUCCEEDED, True),
        (Role.FLAKY, TaskPhase.FAILED, False),
        (Role.HOPELESS, TaskPhase.FAILED, False),
        (Role.HOPELESS, TaskPhase.EXHAUSTED, True),
        (Role.BROKEN, TaskPhase.FAILED, True),
        (Role.OVERTIME, TaskPhase.TIMEOUT, True),
        (Role.CANCEL_WAITING, TaskPhase.FAILED, False),
        (Role.CANCEL_WAITING, TaskPhase.CANCELED, True),
    ],
)
def test_a_phase_is_final_by_the_policy(role: Role, phase: TaskPhase, expected: bool, tmp_path: Path) -> None:
    job = next(job for job in make_plan("abc", 40, 3, tmp_path) if job.role is role)
    assert is_final(job, task_of(job, phase, 1)) is expected


# --- checks: one good account, and one wrong in each way -------------------------------------------


def run(attempt: int, agent: str, phase: TaskPhase, error: str | None = None) -> TaskRun:
    return TaskRun(
        attempt=attempt,
        phase=phase,
        started_at=Timestamp(attempt),
        finished_at=Timestamp(attempt + 1),
        agent=AgentId(agent),
        error=error,
    )


LOST = run(1, "w2", TaskPhase.FAILED, "lease expired: agent w2 stopped reporting")


@pytest.fixture
def members() -> list[Member]:
    ended = [subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2)]
    for process in ended:
        process.wait()
    return [Member("w1", ended[0], Path("/dev/null")), Member("w2", ended[1], Path("/dev/null"), killed_after_s=1.0)]


def unmet(entries: list[Entry], members: list[Member]) -> list[str]:
    return [check.what.split()[0] for check in Account("abc", entries, members, 1.0).checks() if not check.is_met]


def test_checks_find_what_is_wrong(members: list[Member], tmp_path: Path) -> None:
    jobs = {job.role: job for job in make_plan("abc", 40, 3, tmp_path)}
    slow, quick = jobs[Role.SLOW], jobs[Role.QUICK]
    good = run(1, "w1", TaskPhase.SUCCEEDED)
    again = run(2, "w1", TaskPhase.SUCCEEDED)
    rescued = Entry(slow, task_of(slow, TaskPhase.SUCCEEDED, 2), [LOST, again], 2)

    def with_quick(phase: TaskPhase, attempt: int, runs: list[TaskRun], executions: int) -> list[str]:
        return unmet([rescued, Entry(quick, task_of(quick, phase, attempt), runs, executions)], members)

    assert with_quick(TaskPhase.SUCCEEDED, 1, [good], 1) == []
    # A claim whose worker was killed before it began is no execution.
    assert with_quick(TaskPhase.SUCCEEDED, 1, [good], 0) == []
    assert with_quick(TaskPhase.SUCCEEDED, 1, [good], 2) == ["no"]
    assert with_quick(TaskPhase.SUCCEEDED, 2, [good], 1) == ["attempts"]
    assert with_quick(TaskPhase.SUCCEEDED, 1, [good, good], 1) == ["attempts"]
    assert with_quick(TaskPhase.SUCCEEDED, 1, [good.replace(finished_at=None)], 1) == ["attempts"]
    assert with_quick(TaskPhase.RUNNING, 1, [good], 1) == ["every", "every"]
    assert with_quick(TaskPhase.CANCELED, 1, [good], 1) == ["every"]
    assert unmet([Entry(quick, task_of(quick, TaskPhase.SUCCEEDED, 1), [good], 1)], members) == ["a"]
    abandoned = Entry(slow, task_of(slow, TaskPhase.SUCCEEDED, 1), [LOST], 1)
    assert unmet([abandoned], members) == ["other"]
    in_line = [job for job in make_plan("abc", 40, 3, tmp_path) if job.role is Role.IN_LINE][:2]
    first, second = (Entry(job, task_of(job, TaskPhase.SUCCEEDED, 1), [good], 1) for job in in_line)
    assert unmet([rescued, first, second], members) == ["tasks"]
    replaced, replacing = jobs[Role.REPLACED], jobs[Role.REPLACING]
    late = Entry(replaced, task_of(replaced, TaskPhase.CANCELED, 1), [run(1, "w1", TaskPhase.CANCELED)], 1)
    early = Entry(replacing, task_of(replacing, TaskPhase.SUCCEEDED, 1), [good], 1)
    assert unmet([rescued, late, early], members) == ["the"]
    members[0].process.returncode = 70
    assert unmet([rescued], members) == ["the"]
