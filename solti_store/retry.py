"""When to run an operation again: pure decisions, the waiting is the runner's."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from solti_store.errors import OutcomeUnknown, SoltiStoreError
from solti_store.faults import Fault, classify, is_refusal, translate

if TYPE_CHECKING:
    from sqlalchemy.exc import DBAPIError

__all__ = ["Attempts", "Effect", "RetryPolicy"]


class Effect(Enum):
    """What an operation does, should it run a second time after it may have been committed."""

    READ = auto()
    """Nothing: it changes nothing."""

    FENCED = auto()
    """Nothing more: it names an incarnation, which never comes back."""

    ONCE = auto()
    """Perhaps something else: it names an id, and others may have deleted and created the task in between."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently a store tries again.

    Attributes:
        attempts: Tries in all, at least 1.
        first_s: The longest wait before the second try, in seconds; it doubles each time.
        max_s: The longest wait of all, in seconds.
    """

    attempts: int = 8
    first_s: float = 0.02
    max_s: float = 1.0

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after so many failures, at random between a quarter and the whole."""
        longest = min(self.max_s, self.first_s * 2.0 ** (failures - 1))
        return random.uniform(longest / 4, longest)  # noqa: S311 - jitter


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
            committing: Whether the operation may be committed all the same.

        Returns:
            Seconds to wait before the next try.

        Raises:
            SoltiStoreError: There is no next try.
        """
        fault = classify(error)
        self._failures += 1
        if committing and fault is Fault.CONNECTION and not is_refusal(error) and self._effect is not Effect.READ:
            self._unknown = True
        if fault is Fault.FINAL or self._failures >= self._policy.attempts or self._must_not_repeat():
            raise self.given_up(translate(error)) from error
        return self._policy.wait_s(self._failures)

    def given_up(self, error: SoltiStoreError) -> SoltiStoreError:
        """The error for the caller, when `error` ended the last try: an earlier one may have been committed."""
        if not self._unknown:
            return error
        return OutcomeUnknown(
            "the connection broke during COMMIT: the change may or may not be there; read before trying again"
        )

    def _must_not_repeat(self) -> bool:
        return self._unknown and self._effect is Effect.ONCE
