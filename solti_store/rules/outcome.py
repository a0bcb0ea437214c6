"""How an attempt ended, as its worker reports it."""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field, model_validator

from solti_store.model import TaskPhase, Value
from solti_store.model._base import is_none
from solti_store.model._problems import BrokenRule
from solti_store.model.scalars import I32, Text

__all__ = ["MAX_OUTPUT_BYTES", "MAX_OUTPUT_TAIL", "Outcome"]

#: The most bytes of an output stream that a worker keeps.
MAX_OUTPUT_TAIL: Final = 65_536
#: The same once it is text: a byte that is no UTF-8 becomes a replacement character, of three.
MAX_OUTPUT_BYTES: Final = 3 * MAX_OUTPUT_TAIL

_REPORTABLE = (TaskPhase.SUCCEEDED, TaskPhase.FAILED, TaskPhase.TIMEOUT, TaskPhase.CANCELED)


class Outcome(Value):
    """How an attempt ended; build one with `succeeded`, `failed`, `timed_out` or `canceled`.

    Attributes:
        phase: `succeeded`, `failed`, `timeout` or `canceled`.
        exit_code: The exit code, if there was one.
        error: What went wrong, for people; None on success.
        fatal: A failure that another attempt cannot mend: it is never retried.
        stdout: The end of what the attempt wrote to its standard output, at most `MAX_OUTPUT_BYTES` in UTF-8; kept
            with the run. None or empty when there was nothing.
        stderr: The same of its standard error.
    """

    phase: TaskPhase
    exit_code: I32 | None = None
    error: Text | None = None
    fatal: bool = False
    stdout: Text | None = Field(default=None, exclude_if=is_none)
    stderr: Text | None = Field(default=None, exclude_if=is_none)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.phase not in _REPORTABLE:
            raise BrokenRule(f"an attempt cannot end {self.phase.value}", at="phase")
        if self.fatal and self.phase is not TaskPhase.FAILED:
            raise BrokenRule("only a failure can be fatal", at="fatal")
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr)):
            if text is not None and len(text.encode()) > MAX_OUTPUT_BYTES:
                raise BrokenRule(f"{name} must have at most {MAX_OUTPUT_BYTES} bytes", at=name)
        return self

    @classmethod
    def succeeded(cls, exit_code: int | None = None) -> Outcome:
        """The attempt did its work."""
        if exit_code is None:
            return _SUCCEEDED  # Values do not change, so one does for all functions that return.
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

    def with_output(self, stdout: str | None, stderr: str | None) -> Self:
        """The same outcome, with the end of what the attempt wrote.

        Args:
            stdout: The end of its standard output; None or empty when there was nothing.
            stderr: The end of its standard error, likewise.

        Raises:
            Invalid: One is longer than `MAX_OUTPUT_BYTES`, or holds NUL or a lone surrogate.
        """
        return self.replace(stdout=stdout or None, stderr=stderr or None) if stdout or stderr else self


_SUCCEEDED = Outcome(phase=TaskPhase.SUCCEEDED)
