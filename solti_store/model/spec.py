"""The desired state of a task, and a builder for it."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field

from solti_store.model._base import Value, is_empty, is_none, python_default
from solti_store.model._problems import invalid
from solti_store.model.kind import Embedded, TaskKind
from solti_store.model.labels import Labels
from solti_store.model.policy import AdmissionPolicy, BackoffPolicy, RestartPolicy
from solti_store.model.scalars import Slot, Timeout
from solti_store.model.selector import RunnerSelector

__all__ = ["TaskSpec", "TaskSpecBuilder"]

MaxRetries = Annotated[int, Field(strict=True, ge=1, le=2**32 - 1)]


class TaskSpec(Value):
    """What is to run, where and how often.

    In a document everything from `slot` to `admission` is required; the defaults below are Python's.

    Attributes:
        slot: The admission lane.
        kind: What runs.
        timeout: How long one attempt may take.
        restart: Whether it runs again; default never.
        backoff: The wait after a failure.
        admission: What happens when the slot has an owner; default `dropIfRunning`.
        max_retries: How many consecutive failures are retried, at least 1; None is without limit.
        runner_selector: Which workers may run it; None is all of them.
        labels: What selectors see of the task.
    """

    slot: Slot
    kind: TaskKind
    timeout: Timeout
    restart: RestartPolicy = python_default(RestartPolicy.never())
    backoff: BackoffPolicy = python_default(BackoffPolicy())
    admission: AdmissionPolicy = python_default(AdmissionPolicy.DROP_IF_RUNNING)
    max_retries: MaxRetries | None = Field(default=None, exclude_if=is_none)
    runner_selector: RunnerSelector | None = Field(default=None, exclude_if=is_none)
    labels: Labels = Field(default=Labels(), exclude_if=is_empty)

    @classmethod
    def builder(cls, slot: str, kind: TaskKind, timeout: int | timedelta) -> "TaskSpecBuilder":
        """Start a spec from what has no default.

        Args:
            slot: The admission lane.
            kind: What runs.
            timeout: How long one attempt may take: milliseconds, or a timedelta.

        Raises:
            Invalid: Slot or timeout breaks its rules.
        """
        return TaskSpecBuilder(slot, kind, timeout)

    def validate(self) -> None:  # type: ignore[override]  # hides a deprecated classmethod of BaseModel
        """Check what only matters when a task is submitted; every other rule held at construction.

        Raises:
            Invalid: The kind is embedded, which no worker can run.
        """
        if isinstance(self.kind, Embedded):
            raise invalid("TaskKind::Embedded cannot be submitted via runner; use submit_with_task", "kind")


class TaskSpecBuilder:
    """Collects a spec step by step; every method but `build` returns the builder itself."""

    def __init__(self, slot: str, kind: TaskKind, timeout: int | timedelta) -> None:
        length = Timeout.from_timedelta(timeout) if isinstance(timeout, timedelta) else Timeout(timeout)
        self._spec = TaskSpec(slot=Slot(slot), kind=kind, timeout=length)

    def restart(self, policy: RestartPolicy) -> Self:
        """Set whether it runs again."""
        return self._set(restart=policy)

    def backoff(self, policy: BackoffPolicy) -> Self:
        """Set the wait after a failure."""
        return self._set(backoff=policy)

    def admission(self, policy: AdmissionPolicy) -> Self:
        """Set what happens when the slot has an owner."""
        return self._set(admission=policy)

    def max_retries(self, retries: int | None) -> Self:
        """Set how many consecutive failures are retried.

        Raises:
            Invalid: The number is no unsigned 32-bit integer, or zero.
        """
        return self._set(max_retries=retries)

    def runner_selector(self, selector: RunnerSelector | None) -> Self:
        """Set which workers may run it."""
        return self._set(runner_selector=selector)

    def labels(self, labels: Mapping[str, str]) -> Self:
        """Set the labels, in place of earlier ones.

        Raises:
            Invalid: A key or value is no string, or holds NUL or a lone surrogate.
        """
        return self._set(labels=Labels(labels))

    def build(self) -> TaskSpec:
        """The finished spec."""
        return self._spec

    def _set(self, **change: object) -> Self:
        # Each step validates, so a mistake is reported at the line that makes it.
        self._spec = self._spec.replace(**change)
        return self
