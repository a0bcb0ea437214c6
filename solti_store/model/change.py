"""What the change feed tells."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from solti_store.model._base import Value, is_none
from solti_store.model.phase import TaskPhase
from solti_store.model.resource import Task
from solti_store.model.scalars import U64, TaskId, Text, Timestamp

__all__ = ["Bookmark", "ChangeKind", "EventType", "TaskChange"]


class EventType(StrEnum):
    """What happened to a task."""

    CREATED = "created"
    ADMITTED = "admitted"
    SPEC_CHANGED = "specChanged"
    STARTED = "started"
    FINISHED = "finished"
    CANCEL_REQUESTED = "cancelRequested"
    REFUSED = "refused"
    DELETED = "deleted"


class ChangeKind(StrEnum):
    """What that means to somebody who watches some of the tasks."""

    ADDED = "added"
    """The task is among them now, and was not before."""

    MODIFIED = "modified"
    """It is one of them, as it was before."""

    DELETED = "deleted"
    """It is no longer one of them: it was deleted, or has other labels or another phase."""


class TaskChange(Value):
    """One event of the feed.

    Attributes:
        kind: What it means to the watcher.
        token: Where the feed goes on after it.
        type: What happened. After `refused`, a late write of a worker that lost its lease, nothing is different.
        at: When.
        task_id: The task.
        seq: Its incarnation.
        resource_version: The task's version since.
        phase: Its phase since; of a deleted task, its last.
        phase_before: Its phase before; None of a task that was just created.
        attempt: Its attempt number since.
        detail: More of it: the outcome, exit code and error of an attempt, the spec of a deleted task.
        task: The task as it was when the feed was read, which may be later; None when it is gone, or cannot be read.
    """

    kind: ChangeKind
    token: Text
    type: EventType
    at: Timestamp
    task_id: TaskId
    seq: U64
    resource_version: U64
    phase: TaskPhase
    phase_before: TaskPhase | None = Field(default=None, exclude_if=is_none)
    attempt: U64
    detail: dict[str, Any] | None = Field(default=None, exclude_if=is_none)
    task: Task | None = Field(default=None, exclude_if=is_none)


class Bookmark(Value):
    """Nothing happened, or nothing that is watched; the feed goes on from here.

    Attributes:
        token: Where the feed goes on.
    """

    token: Text
