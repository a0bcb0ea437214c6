"""The policies of a task: when it restarts, how long it waits, what happens when its slot is busy."""

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, ValidationInfo, ValidatorFunctionWrapHandler, field_validator, model_validator

from solti_store.errors import UnknownAdmissionPolicy, UnknownJitterPolicy, UnknownRestartPolicy
from solti_store.model._base import Value, is_none, python_default
from solti_store.model._problems import BrokenRule, Rank, quoted
from solti_store.model.scalars import U64, U64_MAX

__all__ = ["AdmissionPolicy", "BackoffPolicy", "JitterPolicy", "RestartPolicy", "RestartType"]


class AdmissionPolicy(StrEnum):
    """What becomes of a submission whose slot has an owner."""

    DROP_IF_RUNNING = "dropIfRunning"
    REPLACE = "replace"
    QUEUE = "queue"

    @classmethod
    def parse(cls, text: str) -> "AdmissionPolicy":
        """Read the text form; case and surrounding white space do not matter, empty is the default.

        Raises:
            UnknownAdmissionPolicy: The text names no policy.
        """
        try:
            return _ADMISSION_TEXTS[text.strip().lower()]
        except KeyError:
            raise UnknownAdmissionPolicy(f"unknown admission policy: {quoted(text)}") from None

    @property
    def text(self) -> str:
        """The text form, which `parse` reads back: `drop-if-running`, `replace` or `queue`."""
        return "drop-if-running" if self is AdmissionPolicy.DROP_IF_RUNNING else self.value


_ADMISSION_TEXTS = {
    "": AdmissionPolicy.DROP_IF_RUNNING,
    "drop-if-running": AdmissionPolicy.DROP_IF_RUNNING,
    "drop": AdmissionPolicy.DROP_IF_RUNNING,
    "replace": AdmissionPolicy.REPLACE,
    "queue": AdmissionPolicy.QUEUE,
    "add": AdmissionPolicy.QUEUE,
    "new": AdmissionPolicy.QUEUE,
}


class JitterPolicy(StrEnum):
    """How chance spreads the waits between retries."""

    FULL = "full"
    NONE = "none"
    EQUAL = "equal"
    DECORRELATED = "decorrelated"

    @classmethod
    def parse(cls, text: str) -> "JitterPolicy":
        """Read the text form; case and surrounding white space do not matter, empty is the default.

        Raises:
            UnknownJitterPolicy: The text names no policy.
        """
        word = text.strip().lower()
        try:
            return cls.FULL if word in {"", "default"} else cls(word)
        except ValueError:
            raise UnknownJitterPolicy(f"unknown jitter policy: {quoted(text)}") from None


RestartType: TypeAlias = Literal["never", "onFailure", "always"]


class RestartPolicy(Value):
    """Whether a finished task is started again; build one with `never`, `on_failure` or `always`.

    Attributes:
        type: The wire name of the policy.
        interval_ms: Only of `always`: milliseconds from a success to the next start; None means at once.
    """

    type: RestartType
    interval_ms: U64 | None = Field(default=None, exclude_if=is_none)

    @field_validator("interval_ms", mode="wrap")
    @classmethod
    def _belongs_to_always(cls, value: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> int | None:
        # To the other types of a document it is an unknown key, to be ignored whatever it holds.
        # Runs only when the key is there, so the common document does not pay for it.
        interval: int | None = check(value) if info.data.get("type") == "always" else None
        return interval

    @classmethod
    def _check_arguments(cls, values: Mapping[str, Any]) -> None:
        if values.get("interval_ms") is not None and values.get("type") != "always":
            raise TypeError("interval_ms belongs to RestartPolicy.always()")

    @classmethod
    def never(cls) -> Self:
        """One attempt, whatever its outcome."""
        return cls(type="never")

    @classmethod
    def on_failure(cls) -> Self:
        """Again after a failure or timeout, not after a success."""
        return cls(type="onFailure")

    @classmethod
    def always(cls, interval_ms: int | None = None) -> Self:
        """Again after every outcome but cancellation; after a success in `interval_ms` milliseconds.

        Raises:
            Invalid: The interval is no unsigned 64-bit integer.
        """
        return cls(type="always", interval_ms=interval_ms)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `never`, `on-failure`, `always` or `always:<ms>`, in any case; empty means never.

        Raises:
            UnknownRestartPolicy: The text names no policy, or its interval is no unsigned 64-bit integer.
        """
        word, colon, rest = text.strip().lower().partition(":")
        interval = rest.strip()
        match word, colon:
            case (("" | "never"), ""):
                return cls.never()
            case (("on-failure" | "failure"), ""):
                return cls.on_failure()
            case "always", _ if not interval:
                return cls.always()
            # The length is looked at first: int() of a very long text is slow, then refused.
            case "always", _ if interval.isascii() and interval.isdigit() and len(interval) <= _MAX_DIGITS:
                if (milliseconds := int(interval)) <= U64_MAX:
                    return cls.always(milliseconds)
        raise UnknownRestartPolicy(f"unknown restart policy: {quoted(text)}")

    def __str__(self) -> str:
        if self.type == "always" and self.interval_ms is not None:
            return f"always:{self.interval_ms}"
        return "on-failure" if self.type == "onFailure" else self.type


_MAX_DIGITS = 1000


class BackoffPolicy(Value):
    """How long a failed task waits for its next attempt.

    Attributes:
        jitter: How chance spreads the wait.
        first_ms: The wait after the first failure, milliseconds; greater than zero.
        max_ms: The longest wait, milliseconds; not below `first_ms`.
        factor: How much longer each wait is than the one before; finite, at least 1.
    """

    jitter: JitterPolicy = python_default(JitterPolicy.FULL)
    first_ms: U64 = python_default(1000)
    max_ms: U64 = python_default(30_000)
    factor: Annotated[float, Field(strict=True)] = python_default(2.0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.first_ms == 0:
            raise BrokenRule("backoff first_ms must be greater than zero", Rank.BACKOFF, "firstMs")
        if self.max_ms < self.first_ms:
            raise BrokenRule("backoff max_ms must be >= first_ms", Rank.BACKOFF, "maxMs")
        if not (math.isfinite(self.factor) and self.factor >= 1.0):
            raise BrokenRule("backoff factor must be finite and >= 1.0", Rank.BACKOFF, "factor")
        return self
