"""Column and parameter types that SQLAlchemy does not bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.types.array import ListBinaryDumper
from sqlalchemy import BigInteger, BindParameter, Boolean, Cast, DateTime, Integer, Text, Uuid, bindparam, cast, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from sqlalchemy import ColumnElement, Dialect
    from sqlalchemy.types import TypeEngine

__all__ = [
    "ADAPTERS",
    "MAX_DELAY_MS",
    "NOW",
    "BinaryArray",
    "Instant",
    "Tid",
    "Xid8",
    "array_param",
    "integers_text",
    "json_param",
    "later",
]

Instant = DateTime(timezone=True)


class Tid(UserDefinedType[str]):
    """Where a row is in its table."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:  # noqa: ANN401 - the signature is SQLAlchemy's
        """The type's name in DDL."""
        return "tid"


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_kw: Any) -> str:  # noqa: ANN401 - the signature is SQLAlchemy's
        """The type's name in DDL."""
        return "xid8"


class _BinaryList(list[Any]):
    """A list that psycopg sends as a binary array: 20,000 specs in half the time of a quoted text array."""


#: How the values of our statements are sent and read. Not by the connection's adapters: those are its owner's.
ADAPTERS: Final = AdaptersMap(psycopg.adapters)
ADAPTERS.register_dumper(_BinaryList, ListBinaryDumper)


class BinaryArray(UserDefinedType[Any]):
    """The type of an array parameter that goes out in binary."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], _BinaryList]:
        """Wrap the list, so that psycopg picks the binary dumper."""
        del dialect
        return _BinaryList


class _IntegerArray(UserDefinedType[Any]):
    """The type of an array of integers that goes out as text: a third of the binary form's work for psycopg."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """Write the array's text."""
        del dialect
        return integers_text


def integers_text(values: Iterable[int | None]) -> str:
    """The text of an array of integers."""
    return "{" + ",".join(["NULL" if value is None else f"{value:d}" for value in values]) + "}"


_ELEMENTS: dict[str, TypeEngine[Any] | type[TypeEngine[Any]]] = {
    "bigint": BigInteger,
    "boolean": Boolean,
    "integer": Integer,
    "text": Text,
    "timestamptz": Instant,
    "uuid": Uuid,
}


def array_param(name: str, element: str) -> Cast[Any]:
    """A bound array; one prepared statement serves every length, where `IN` would need one each."""
    parameter = _IntegerArray() if element in ("bigint", "integer") else BinaryArray()
    return cast(bindparam(name, type_=parameter), ARRAY(_ELEMENTS[element]))


def json_param(name: str) -> Cast[Any]:
    """A bound JSON document, given as text that is already JSON.

    Text, because what an engine makes of a Python value under a jsonb parameter is its owner's choice.
    """
    return cast(bindparam(name, type_=Text()), JSONB)


_now: BindParameter[datetime | None] = bindparam("now", None, type_=Instant)

#: The time a statement goes by: the database's, unless a test gives another.
#: Of the statement, not of the transaction: inside a caller's long transaction `now()` stands still.
NOW = func.coalesce(_now, func.statement_timestamp())

#: Longer timeouts and waits are cut to this (3,170 years): a u64 of milliseconds is more than a timestamptz holds.
MAX_DELAY_MS = 100_000_000_000_000


def later(moment: ColumnElement[Any], milliseconds: ColumnElement[Any]) -> ColumnElement[Any]:
    """So many milliseconds after a moment, or `MAX_DELAY_MS` if those are less."""
    return moment + func.make_interval(0, 0, 0, 0, 0, 0, func.least(milliseconds, MAX_DELAY_MS) / 1000.0)
