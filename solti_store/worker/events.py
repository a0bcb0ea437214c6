"""What a worker tells while it works, and in the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from solti_store.ops.closing import Reaped

if TYPE_CHECKING:
    from solti_store.errors import LeaseLost
    from solti_store.model import TaskId
    from solti_store.rules.outcome import Outcome

__all__ = ["Finished", "Reaped", "Refused", "Started", "WorkerEvent", "WorkerReport"]


@dataclass(frozen=True, slots=True)
class Started:
    """The worker begins an attempt that it claimed.

    Attributes:
        task_id: The task.
        attempt: The attempt.
    """

    task_id: TaskId
    attempt: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The store accepted how an attempt ended.

    Attributes:
        task_id: The task.
        attempt: The attempt.
        outcome: How it ended.
    """

    task_id: TaskId
    attempt: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Refused:
    """The store refused a late report, which changed nothing.

    Attributes:
        task_id: The task.
        attempt: The attempt.
        outcome: What the worker reported.
        reason: Why it was refused, and who holds the task now.
    """

    task_id: TaskId
    attempt: int
    outcome: Outcome
    reason: LeaseLost


WorkerEvent: TypeAlias = Started | Finished | Refused | Reaped
"""`Reaped` is the store's own: an attempt of another agent that this worker closed."""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker did in one `run`.

    Attributes:
        succeeded: Attempts that succeeded.
        failed: Attempts that failed.
        timed_out: Attempts that this worker stopped at their timeout.
        canceled: Attempts that this worker stopped because their cancellation was asked for.
        refused: Reports that came too late, whatever they said.
        unreported: Ended attempts whose report never reached the store; it closes them itself.
        reaped: Attempts of others that this worker closed.
    """

    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    canceled: int = 0
    refused: int = 0
    unreported: int = 0
    reaped: int = 0

    @property
    def finished(self) -> int:
        """The attempts whose outcome the store accepted."""
        return self.succeeded + self.failed + self.timed_out + self.canceled
