"""When to run a transaction again: pure decisions, the waiting is the store's."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from solti_store.errors import (
    AlreadyExists,
    AlreadyRunning,
    NotFound,
    OutcomeUnknown,
    SoltiStoreError,
    VersionConflict,
)
from solti_store.faults import Fault, classify, translate

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

__all__ = ["Attempts", "Effect", "RetryPolicy"]


class Effect(Enum):
    """What it would do to run an operation a second time after it may have been committed."""

    REPEATABLE = auto()
    """Nothing more: it reads, or is fenced, or says what should be."""

    GUARDED = auto()
    """It would be refused. If it is not, the first time had no effect; if it is, nobody knows whether by itself."""

    ONCE = auto()
    """It would do more: never again after an unknown outcome."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a store tries again.

    Attributes:
        attempts: Tries in all, at least 1.
        first_s: The longest wait before the second try, in seconds; it doubles each time, drawn from below.
        max_s: The longest wait of all, in seconds.
    """

    attempts: int = 8
    first_s: float = 0.02
    max_s: float = 1.0

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures, at random between a quarter and the whole."""
        longest = min(self.max_s, self.first_s * 2.0 ** (failures - 1))
        return random.uniform(longest / 4, longest)  # noqa: S311 - jitter


# A second try that meets one of these may have met its own first.
_REFUSALS = (AlreadyExists, AlreadyRunning, NotFound, VersionConflict)


class Attempts:
    """The tries of one operation."""

    def __init__(self, policy: RetryPolicy, effect: Effect) -> None:
        self._policy = policy
        self._effect = effect
        self._failures = 0
        self._unknown = False

    def failed(self, error: DBAPIError, *, committing: bool) -> float:
        """Take note of a failure.

        Args:
            error: What the database, or the way to it, said.
            committing: Whether the transaction may be committed all the same.

        Returns:
            Seconds to wait before the next try.

        Raises:
            SoltiStoreError: There is no next try.
        """
        fault = classify(error)
        self._failures += 1
        self._unknown |= committing and fault is Fault.CONNECTION
        over = fault is Fault.FINAL or self._failures >= self._policy.attempts
        if self._unknown and self._effect is not Effect.REPEATABLE and (over or self._effect is Effect.ONCE):
            raise self._outcome_unknown() from error
        if over:
            raise translate(error) from error
        return self._policy.wait_s(self._failures)

    def refused(self, error: SoltiStoreError) -> SoltiStoreError:
        """The error to raise in place of `error`, which the operation ended with."""
        if self._unknown and self._effect is Effect.GUARDED and isinstance(error, _REFUSALS):
            return self._outcome_unknown()
        return error

    def _outcome_unknown(self) -> OutcomeUnknown:
        return OutcomeUnknown(
            "the connection broke during COMMIT: the change may or may not be there; read before trying again"
        )
