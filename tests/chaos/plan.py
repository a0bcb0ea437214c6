"""What is planned for a task stands in its id, so that a checker knows it of a task that is long gone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from solti_store.model import (
    AdmissionPolicy,
    BackoffPolicy,
    JitterPolicy,
    Labels,
    RestartPolicy,
    Slot,
    Subprocess,
    TaskSpec,
    Timeout,
)

__all__ = ["Plan", "plan_of"]

_RESTARTS = {
    "never": RestartPolicy.never(),
    "onFailure": RestartPolicy.on_failure(),
    "always": RestartPolicy.always(2),
}


@dataclass(frozen=True)
class Plan:
    """Slot and policies of a task.

    Attributes:
        slot: Its slot.
        admission: As on the wire.
        restart: The type of its restart policy.
        retries: How many failures in a row are retried; None is without limit.
    """

    slot: str
    admission: str
    restart: str
    retries: int | None

    def id(self, name: str) -> str:
        """An id for such a task; `name` must be unique and without a dot."""
        retries = "n" if self.retries is None else self.retries
        return f"{self.slot}.{self.admission}.{self.restart}.{retries}.{name}"

    def spec(self, *, timeout_ms: int, label: str = "") -> TaskSpec:
        """The task's spec. Waits are of milliseconds."""
        return TaskSpec(
            slot=Slot(self.slot),
            kind=Subprocess.command("true"),
            timeout=Timeout(timeout_ms),
            restart=_RESTARTS[self.restart],
            backoff=BackoffPolicy(jitter=JitterPolicy.FULL, first_ms=1, max_ms=20, factor=2.0),
            admission=AdmissionPolicy(self.admission),
            max_retries=self.retries,
            labels=Labels({"n": label} if label else {}),
        )


@cache
def plan_of(task_id: str) -> Plan:
    """The plan of a task, from its id."""
    slot, admission, restart, retries, _ = task_id.split(".")
    return Plan(slot, admission, restart, None if retries == "n" else int(retries))
