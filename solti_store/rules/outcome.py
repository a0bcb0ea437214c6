"""How an attempt ended, as its worker reports it."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from solti_store.model import TaskPhase, Value
from solti_store.model._problems import BrokenRule
from solti_store.model.scalars import I32, Text

__all__ = ["Outcome"]

_REPORTABLE = (TaskPhase.SUCCEEDED, TaskPhase.FAILED, TaskPhase.TIMEOUT, TaskPhase.CANCELED)


class Outcome(Value):
    """How an attempt ended; build one with `succeeded`, `failed`, `timed_out` or `canceled`.

    Attributes:
        phase: `succeeded`, `failed`, `timeout` or `canceled`.
        exit_code: The exit code, if there was one.
        error: What went wrong, for people; None on success.
        fatal: A failure that another attempt cannot mend: it is never retried.
    """

    phase: TaskPhase
    exit_code: I32 | None = None
    error: Text | None = None
    fatal: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.phase not in _REPORTABLE:
            raise BrokenRule(f"an attempt cannot end {self.phase.value}", at="phase")
        if self.fatal and self.phase is not TaskPhase.FAILED:
            raise BrokenRule("only a failure can be fatal", at="fatal")
        return self

    @classmethod
    def succeeded(cls, exit_code: int | None = None) -> Self:
        """The attempt did its work."""
        return cls(phase=TaskPhase.SUCCEEDED, exit_code=exit_code)

    @classmethod
    def failed(cls, error: str, *, exit_code: int | None = None, fatal: bool = False) -> Self:
        """The attempt went wrong.

        Args:
            error: What went wrong.
            exit_code: The exit code, if there was one.
            fatal: Never try again, whatever the restart policy says.
        """
        return cls(phase=TaskPhase.FAILED, error=error, exit_code=exit_code, fatal=fatal)

    @classmethod
    def timed_out(cls, timeout_ms: int) -> Self:
        """The attempt took longer than its timeout, in milliseconds."""
        return cls(phase=TaskPhase.TIMEOUT, error=f"timed out after {int(timeout_ms)}ms")

    @classmethod
    def canceled(cls, error: str | None = None) -> Self:
        """The attempt was stopped because its cancellation was asked for."""
        return cls(phase=TaskPhase.CANCELED, error=error)
