"""The phases of a task's life."""

from enum import StrEnum
from typing import Final, Self

from solti_store.errors import UnknownTaskPhase
from solti_store.model._problems import quoted

__all__ = ["ACTIVE_PHASES", "TERMINAL_PHASES", "TaskPhase"]


class TaskPhase(StrEnum):
    """Where a task, or one of its runs, stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELED = "canceled"
    EXHAUSTED = "exhausted"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a phase from text; case and surrounding white space do not matter.

        Raises:
            UnknownTaskPhase: There is no such phase.
        """
        try:
            return cls(text.strip().lower())
        except ValueError:
            raise UnknownTaskPhase(f"unknown task phase: {quoted(text)}") from None

    @property
    def is_active(self) -> bool:
        """Whether work is waiting or under way: pending or running."""
        return self in ACTIVE_PHASES

    @property
    def is_terminal(self) -> bool:
        """Whether the attempt is over; only a new start leaves such a phase."""
        return self in TERMINAL_PHASES


ACTIVE_PHASES: Final = frozenset({TaskPhase.PENDING, TaskPhase.RUNNING})
TERMINAL_PHASES: Final = frozenset(TaskPhase) - ACTIVE_PHASES
