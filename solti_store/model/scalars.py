"""Names, times and the other single values that fields are made of, with the contract's constants."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, ClassVar, Final, Self, TypeAlias

from pydantic import Field, GetCoreSchemaHandler, StrictBool
from pydantic_core import CoreSchema, core_schema

from solti_store.model._problems import BrokenRule, Rank, invalid, shown

__all__ = [
    "AGENT_ID_MAX_LEN",
    "DEFAULT_LIMIT",
    "I32",
    "MAX_LIMIT",
    "MAX_SCRIPT_BODY_BYTES",
    "SLOT_MAX_LEN",
    "TASK_ID_MAX_LEN",
    "U32",
    "U64",
    "U64_MAX",
    "AgentId",
    "Flag",
    "Slot",
    "TaskId",
    "Text",
    "Timeout",
    "Timestamp",
]

DEFAULT_LIMIT: Final = 100
MAX_LIMIT: Final = 1000
SLOT_MAX_LEN: Final = 64
TASK_ID_MAX_LEN: Final = 256
AGENT_ID_MAX_LEN: Final = 128
MAX_SCRIPT_BODY_BYTES: Final = 2 * 1024 * 1024

U64_MAX: Final = 2**64 - 1

# Strict: `true`, `"5"` and `5.0` are no integers.
U64: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=U64_MAX)]
U32: TypeAlias = Annotated[int, Field(strict=True, ge=0, le=2**32 - 1)]
I32: TypeAlias = Annotated[int, Field(strict=True, ge=-(2**31), le=2**31 - 1)]

# The pattern does two jobs in compiled code: it refuses NUL, and (unlike an unconstrained string) makes
# pydantic look at the text itself, which refuses lone surrogates. PostgreSQL can store neither.
Text: TypeAlias = Annotated[str, Field(strict=True, pattern=r"^[^\x00]*$")]

Flag: TypeAlias = StrictBool
"""A boolean of the contract: true unless the document says otherwise."""

_FORBIDDEN = re.compile(rb"[^A-Za-z0-9._-]")


class _Identity(str):
    """A name that is safe in paths, URLs and logs: 1 to n bytes of `[A-Za-z0-9._-]`, not `.` or `..`."""

    __slots__ = ()

    _what: ClassVar[str]
    _max_len: ClassVar[int]
    # Every rule in one match, for the legal names that nearly all are; `_problem` words the rest.
    _is_legal: ClassVar[Callable[[str], object]]

    def __init_subclass__(cls) -> None:
        cls._is_legal = re.compile(rf"(?!\.\.?\Z)[A-Za-z0-9._-]{{1,{cls._max_len}}}").fullmatch

    def __new__(cls, value: str) -> Self:
        if type(value) is cls:
            return value
        if not isinstance(value, str):
            raise invalid(f"{cls._what} must be a string, got {shown(value)}")
        if not cls._is_legal(value):
            raise invalid(cls._problem(value))
        return str.__new__(cls, value)

    @classmethod
    def _problem(cls, value: str) -> str:
        if not value:
            return f"{cls._what} must not be empty"
        # A lone surrogate is encoded too, so that it is reported as the forbidden byte it would be.
        data = value.encode(errors="surrogatepass")
        if len(data) > cls._max_len:
            return f"{cls._what} length {len(data)} exceeds max {cls._max_len}"
        if (forbidden := _FORBIDDEN.search(data)) is None:
            return f"{cls._what} cannot be '.' or '..'"
        at = forbidden.start()
        return f"{cls._what} contains forbidden byte 0x{data[at]:02X} at position {at} (allowed: [A-Za-z0-9._-])"

    @classmethod
    def _from_document(cls, value: str) -> Self:
        if not cls._is_legal(value):
            raise BrokenRule(cls._problem(value), Rank.IDENTITY)
        return str.__new__(cls, value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls._from_document, core_schema.str_schema(strict=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str.__repr__(self)})"


class Slot(_Identity):
    """The name of an admission lane, at most 64 bytes.

    Raises:
        Invalid: The name is empty, too long, `.` or `..`, or has another byte than `[A-Za-z0-9._-]`.
    """

    __slots__ = ()
    _what = "slot"
    _max_len = SLOT_MAX_LEN


class TaskId(_Identity):
    """The id of a task, at most 256 bytes.

    Raises:
        Invalid: The id is empty, too long, `.` or `..`, or has another byte than `[A-Za-z0-9._-]`.
    """

    __slots__ = ()
    _what = "task_id"
    _max_len = TASK_ID_MAX_LEN


class AgentId(_Identity):
    """The name of a worker, at most 128 bytes.

    Raises:
        Invalid: The name is empty, too long, `.` or `..`, or has another byte than `[A-Za-z0-9._-]`.
    """

    __slots__ = ()
    _what = "agent_id"
    _max_len = AGENT_ID_MAX_LEN


def _check_u64(what: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= U64_MAX:
        raise invalid(f"{what} must be an integer from 0 to {U64_MAX}, got {shown(value)}")


class Timeout(int):
    """How long one attempt may take, in milliseconds; greater than zero.

    Raises:
        Invalid: The value is zero, or no unsigned 64-bit integer.
    """

    __slots__ = ()

    def __new__(cls, milliseconds: int) -> Self:  # noqa: D102 - the class says it
        _check_u64("timeout", milliseconds)
        if milliseconds == 0:
            raise invalid("timeout must be greater than zero")
        return int.__new__(cls, milliseconds)

    @classmethod
    def from_timedelta(cls, duration: timedelta) -> Self:
        """The timeout of that length; parts of a millisecond are dropped.

        Raises:
            Invalid: The duration is shorter than a millisecond.
        """
        return cls(duration // timedelta(milliseconds=1))

    @property
    def seconds(self) -> float:
        """The timeout in seconds."""
        return self / 1000

    @classmethod
    def _from_document(cls, milliseconds: int) -> Self:
        if milliseconds == 0:
            raise BrokenRule("timeout must be greater than zero", Rank.TIMEOUT)
        return int.__new__(cls, milliseconds)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls._from_document, _u64_schema())

    def __str__(self) -> str:
        return f"{int(self)}ms"

    def __repr__(self) -> str:
        return f"Timeout({int(self)})"


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Timestamp(int):
    """A point in time, in Unix milliseconds.

    Raises:
        Invalid: The value is no unsigned 64-bit integer.
    """

    __slots__ = ()

    def __new__(cls, milliseconds: int) -> Self:  # noqa: D102 - the class says it
        _check_u64("timestamp", milliseconds)
        return int.__new__(cls, milliseconds)

    @classmethod
    def from_datetime(cls, moment: datetime) -> Self:
        """The timestamp of an aware datetime; parts of a millisecond are dropped (rounded down).

        Raises:
            Invalid: The datetime has no time zone, or lies before 1970.
        """
        if moment.utcoffset() is None:
            raise invalid("timestamp must come from a datetime with a time zone")
        milliseconds = (moment - _EPOCH) // _MILLISECOND
        if milliseconds < 0:
            raise invalid(f"timestamp must not lie before 1970, got {moment.isoformat()}")
        return int.__new__(cls, milliseconds)

    @property
    def datetime(self) -> datetime:
        """The same moment as a datetime in UTC.

        Raises:
            Invalid: The moment lies past the year 9999, where `datetime` ends.
        """
        try:
            return _EPOCH + timedelta(milliseconds=self)
        except OverflowError:
            raise invalid(f"timestamp {int(self)} lies past the year 9999") from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        # The schema has checked all there is to check, so the instance is made without a Python frame.
        return core_schema.no_info_after_validator_function(partial(int.__new__, cls), _u64_schema())

    def __repr__(self) -> str:
        return f"Timestamp({int(self)})"


def _u64_schema() -> CoreSchema:
    return core_schema.int_schema(strict=True, ge=0, le=U64_MAX)
