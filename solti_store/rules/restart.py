"""What becomes of a task when an attempt ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from solti_store.model import BackoffPolicy, RestartPolicy, TaskPhase
from solti_store.rules.backoff import delay_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from solti_store.rules.outcome import Outcome

__all__ = ["Next", "after"]


@dataclass(frozen=True, slots=True)
class Next:
    """The task's state after an attempt.

    Attributes:
        phase: The phase it takes.
        failures: Its failures in a row.
        delay_ms: Milliseconds until it may start again, None when the phase is final.
    """

    phase: TaskPhase
    failures: int
    delay_ms: int | None = None


def after(  # noqa: PLR0911 - one return for each row of the contract's table
    outcome: Outcome,
    *,
    restart: RestartPolicy,
    backoff: BackoffPolicy,
    max_retries: int | None,
    failures: int,
    cancel_requested: bool,
    uniform: Callable[[float, float], float],
) -> Next:
    """Decide what follows (`domain.md`, Life of a task).

    Args:
        outcome: How the attempt ended.
        restart: The task's restart policy.
        backoff: Its backoff policy.
        max_retries: How many failures in a row are retried; None is without limit.
        failures: Failures in a row before this attempt.
        cancel_requested: Whether somebody asked for cancellation: then nothing starts again.
        uniform: The source of chance, like `random.uniform`.
    """
    if outcome.phase is TaskPhase.CANCELED:
        return Next(TaskPhase.CANCELED, failures)

    if outcome.phase is TaskPhase.SUCCEEDED:
        if restart.type != "always":
            return Next(TaskPhase.SUCCEEDED, 0)
        if cancel_requested:
            return Next(TaskPhase.CANCELED, 0)
        return Next(TaskPhase.SUCCEEDED, 0, restart.interval_ms or 0)

    streak = failures + 1
    if outcome.fatal or restart.type == "never":
        return Next(outcome.phase, streak)
    if cancel_requested:
        return Next(TaskPhase.CANCELED, streak)
    if max_retries is not None and streak > max_retries:
        return Next(TaskPhase.EXHAUSTED, streak)
    return Next(outcome.phase, streak, delay_ms(backoff, failures, uniform))
