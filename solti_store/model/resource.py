"""A task as stored: identity, desired state, observed state, and the record of its attempts."""

from pydantic import Field

from solti_store.model._base import Value, is_none
from solti_store.model.phase import TaskPhase
from solti_store.model.scalars import I32, U32, U64, AgentId, TaskId, Text, Timestamp
from solti_store.model.spec import TaskSpec

__all__ = ["ObjectMeta", "Task", "TaskRun", "TaskStatus"]


class ObjectMeta(Value):
    """What the store keeps about a task as an object.

    Attributes:
        id: The task's id.
        resource_version: Counts the task's changes; starts at 1.
        created_at: When this incarnation of the id was created.
        updated_at: When it last changed.
        generation: Counts the changes of the spec; starts at 1 and is written only past that.
    """

    id: TaskId
    resource_version: U64
    created_at: Timestamp
    updated_at: Timestamp
    generation: U64 = Field(default=1, exclude_if=(1).__eq__)


class TaskStatus(Value):
    """The observed state of a task.

    Attributes:
        phase: Where the task stands.
        attempt: The number of the latest attempt; 0 before the first.
        exit_code: The exit code of the latest finished attempt, if it had one.
        error: Why the task is in its phase, if something went wrong.
    """

    phase: TaskPhase
    attempt: U32
    exit_code: I32 | None = Field(default=None, exclude_if=is_none)
    error: Text | None = Field(default=None, exclude_if=is_none)


class TaskRun(Value):
    """The record of one attempt.

    Attributes:
        attempt: Its number, from 1.
        phase: How it stands, or ended.
        started_at: When it began.
        finished_at: When it ended; None while it runs.
        error: Why it failed, if it did.
        exit_code: Its exit code, if it had one.
        stdout: The end of its standard output, if it wrote any and its worker kept it.
        stderr: The end of its standard error, likewise.
        agent: The worker that ran it; None when it was started by hand.
    """

    attempt: U32
    phase: TaskPhase
    started_at: Timestamp
    finished_at: Timestamp | None = Field(default=None, exclude_if=is_none)
    error: Text | None = Field(default=None, exclude_if=is_none)
    exit_code: I32 | None = Field(default=None, exclude_if=is_none)
    stdout: Text | None = Field(default=None, exclude_if=is_none)
    stderr: Text | None = Field(default=None, exclude_if=is_none)
    agent: AgentId | None = Field(default=None, exclude_if=is_none)

    @property
    def is_active(self) -> bool:
        """Whether the attempt is still running."""
        return self.finished_at is None


class Task(Value):
    """A task as stored.

    Attributes:
        metadata: What the store keeps about it.
        status: What was observed.
        spec: What is wanted.
    """

    metadata: ObjectMeta
    status: TaskStatus
    spec: TaskSpec

    @property
    def id(self) -> TaskId:
        """The task's id."""
        return self.metadata.id

    @property
    def phase(self) -> TaskPhase:
        """Where the task stands."""
        return self.status.phase
