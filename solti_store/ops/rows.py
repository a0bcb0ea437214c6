"""From rows to values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq
from typing import TYPE_CHECKING, overload

from solti_store.model import ObjectMeta, Task, TaskId, TaskPhase, TaskRun, TaskSpec, TaskStatus, Timestamp

if TYPE_CHECKING:
    from datetime import datetime

    from solti_store.sql.driver import Row


__all__ = ["Claim", "NewTasks", "claim", "new_task", "respecified", "run", "task"]


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one attempt of a task, until its agent falls silent or its deadline passes.

    Attributes:
        task_id: The task.
        seq: The task's incarnation; with `attempt`, the fencing token of every write for this attempt.
        attempt: The attempt's number, from 1.
        spec: What to run: as it was when the attempt began, or, from `held`, as it is now.
        started_at: When the attempt began, on the database's clock.
        deadline: When its timeout ends it, on the database's clock.
        version: The task's version as of this claim; private to the package, as `failures` is.
        failures: The task's failures in a row before this attempt.
    """

    task_id: TaskId
    seq: int
    attempt: int
    spec: TaskSpec
    started_at: datetime
    deadline: datetime
    version: int = field(default=0, repr=False, compare=False)
    failures: int = field(default=0, repr=False, compare=False)


def task(row: Row) -> Task:
    """A task from `sql.tasks.TASK_COLUMNS`, put together as JSON and parsed once, in compiled code."""
    status = f'{{"phase":"{row.phase}","attempt":{row.attempt}'
    if row.exit_code is not None:
        status += f',"exitCode":{row.exit_code}'
    if row.error is not None:
        status += f',"error":{json.dumps(row.error)}'
    return Task.from_json(
        f'{{"metadata":{{"id":"{row.id}","resourceVersion":{row.resource_version},'
        f'"createdAt":{Timestamp.from_datetime(row.created_at):d},'
        f'"updatedAt":{Timestamp.from_datetime(row.updated_at):d},'
        f'"generation":{row.generation}}},"status":{status}}},"spec":{row.spec}}}'
    )


_PENDING = TaskStatus(phase=TaskPhase.PENDING, attempt=0)


def new_task(task_id: TaskId, spec: TaskSpec, created_at: Timestamp) -> Task:
    """A task as just created. Every part was validated before it was written, so none is again."""
    return Task.model_construct(
        metadata=ObjectMeta.model_construct(
            id=task_id, resource_version=1, created_at=created_at, updated_at=created_at, generation=1
        ),
        status=_PENDING,
        spec=spec,
    )


def respecified(row: Row, task_id: TaskId, spec: TaskSpec) -> Task:
    """A task whose spec was just replaced, from a row of `sql.tasks.REPLACE_SPEC`; validated likewise."""
    return Task.model_construct(
        metadata=ObjectMeta.model_construct(
            id=task_id,
            resource_version=row.resource_version,
            created_at=Timestamp.from_datetime(row.created_at),
            updated_at=Timestamp.from_datetime(row.updated_at),
            generation=row.generation,
        ),
        status=TaskStatus.model_construct(
            phase=TaskPhase(row.phase), attempt=row.attempt, exit_code=row.exit_code, error=row.error
        ),
        spec=spec,
    )


class NewTasks(Sequence[Task]):
    """Tasks as just created, each made when it is asked for.

    To make 20,000 of them took 0.2 s of the 0.85 s that their insertion took, and few callers look.

    Args:
        items: Their ids and specs.
        created_at: When each was created.
        changed: Those that have changed since, in the same breath.
    """

    def __init__(
        self,
        items: Sequence[tuple[TaskId, TaskSpec]],
        created_at: Sequence[Timestamp],
        changed: Mapping[str, Task],
    ) -> None:
        self._items = items
        self._created_at = created_at
        self._changed = changed

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return NewTasks(self._items[index], self._created_at[index], self._changed)
        task_id, spec = self._items[index]
        return self._changed.get(task_id) or new_task(task_id, spec, self._created_at[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return f"<{len(self)} new tasks>"


def claim(row: Row) -> Claim:
    """A claim from a row that `sql.claims` returns."""
    return Claim(
        task_id=TaskId(row.id),
        seq=row.seq,
        attempt=row.attempt,
        spec=TaskSpec.from_json(row.spec),
        started_at=row.started_at,
        deadline=row.deadline,
        version=row.resource_version,
        failures=row.failures,
    )


def run(row: Row) -> TaskRun:
    """A run from a row of `sql.runs.SELECT_RUNS`."""
    return TaskRun(
        attempt=row.attempt,
        phase=TaskPhase(row.phase),
        started_at=Timestamp.from_datetime(row.started_at),
        finished_at=None if row.finished_at is None else Timestamp.from_datetime(row.finished_at),
        error=row.error,
        exit_code=row.exit_code,
        stdout=row.stdout,
        stderr=row.stderr,
        agent=row.agent_id,
    )
