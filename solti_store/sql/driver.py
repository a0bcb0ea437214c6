"""Statements that go to psycopg past SQLAlchemy's execution machinery.

SQLAlchemy writes them, once, at import; the hot ones are then run on a cursor of its connection's. A point read took
142 µs of CPU, of which psycopg needed 20 and SQLAlchemy's context and result objects 46. What is lost is SQLAlchemy's
cursor events (`echo`, instrumentation); what stays is its pool, its transactions and its errors.

psycopg gets them with the server's own placeholders: it would look for its own in each text of more than 4096 bytes
every time, which is 155 µs of a claim. The cursor stays with the connection: what it has found out about types is 10 µs
of a point read. Results come in binary form: a moment as text is a microsecond at either end, a bitmap twice as long.
"""

from __future__ import annotations

import re
from collections import namedtuple
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg import AsyncConnection, AsyncRawCursor, Error, RawCursor
from psycopg.pq import ExecStatus, Format
from psycopg.rows import tuple_row
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from solti_store.faults import spoils_connection
from solti_store.sql.naming import renamed, schema_of
from solti_store.sql.types import ADAPTERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, PoolProxiedConnection

__all__ = ["Prepared", "Row", "forget_cursor", "is_autocommit", "native"]

Row: TypeAlias = Any
"""A named tuple of a statement's columns; which they are, type checkers cannot see."""


def is_autocommit(connection: Connection) -> bool:
    """Whether the connection has no transactions: asked of psycopg, so it costs no round trip."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


class Prepared:
    """A statement, built by SQLAlchemy and run by psycopg, whose columns need no conversion between the two.

    Attributes:
        statement: As SQLAlchemy has it.
        text: As SQLAlchemy writes it for psycopg, in the default schema.

    Args:
        statement: A Core construct.
        explain: Whether to ask for the statement's plan instead.
    """

    def __init__(self, statement: Any, *, explain: bool = False) -> None:  # noqa: ANN401 - any Core construct
        self.statement = statement
        compiled: Any = statement.compile(dialect=psycopg.dialect())  # type: ignore[no-untyped-call]
        self.text = f"EXPLAIN (FORMAT JSON) {compiled}" if explain else str(compiled)
        self._constants = {name: bind.effective_value for name, bind in compiled.binds.items() if not bind.required}
        self._converters = dict(compiled._bind_processors)  # noqa: SLF001 - what Core itself applies to parameters
        self._row: Any = None

    def parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What psycopg gets for these parameters, by name."""
        result = {**self._constants, **given}
        for name, convert in self._converters.items():
            result[name] = convert(result[name])
        return result

    def all(self, connection: Connection, given: Mapping[str, Any]) -> list[Row]:
        """The rows, with their columns as attributes."""
        # As Core would: it keeps the books of what has been begun, so that commit and rollback mean something.
        commits_itself = is_autocommit(connection)
        if not (commits_itself or connection.in_transaction()):
            connection.begin()
        text, names = native(self.text, schema_of(connection))
        parameters = self.parameters(given)
        proxied = connection.connection
        # Not in a caller's transaction: who has it may have changed what the cursor knows, such as the encoding.
        # And taken, not borrowed: what fails or is cancelled leaves none behind.
        cursor = (commits_itself and proxied.info.pop(_CURSOR, None)) or _cursor(connection, proxied)
        try:
            rows = cursor.fetch(text, [parameters[name] for name in names])
        except Error as error:
            raise _as_sqlalchemy_would(connection, error, cursor, text) from error
        if self._row is None:
            # Once: to ask for the description each time costs 10 µs.
            self._row = _row_type(cursor)
        if commits_itself and len(rows) <= _FEW:
            proxied.info[_CURSOR] = cursor
        return list(map(self._row._make, rows))

    def one(self, connection: Connection, given: Mapping[str, Any]) -> Row:
        """The row of a statement that always has one."""
        return self.all(connection, given)[0]

    def one_or_none(self, connection: Connection, given: Mapping[str, Any]) -> Row | None:
        """The only row, if there is one."""
        rows = self.all(connection, given)
        return rows[0] if rows else None


_CURSOR = "solti_store_cursor"
# A cursor holds on to its last result, which should not stay in memory with the connection if it is a large one.
_FEW = 1


class _Cursor(RawCursor[Any]):
    adapters = ADAPTERS

    def fetch(self, text: str, values: Sequence[Any]) -> list[Any]:
        self.execute(text, values, binary=True)
        return self.fetchall() if _has_rows(self) else []


class _AsyncCursor(AsyncRawCursor[Any]):
    adapters = ADAPTERS

    def fetch(self, text: str, values: Sequence[Any]) -> list[Any]:
        return await_only(self._fetch(text, values))

    async def _fetch(self, text: str, values: Sequence[Any]) -> list[Any]:
        await self.execute(text, values, binary=True)
        return await self.fetchall() if _has_rows(self) else []


def _has_rows(cursor: _Cursor | _AsyncCursor) -> bool:
    return cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK


def _cursor(connection: Connection, proxied: PoolProxiedConnection) -> _Cursor | _AsyncCursor:
    # Not `proxied.driver_connection`, which is None once it is detached.
    driver: Any = connection.dialect.get_driver_connection(proxied.dbapi_connection)  # type: ignore[arg-type]
    # Rows as tuples, whatever the connection's owner has them made into.
    kind = _AsyncCursor if isinstance(driver, AsyncConnection) else _Cursor
    return kind(driver, row_factory=tuple_row)


def forget_cursor(connection: Connection) -> None:
    """Let go of the cursor that was kept with a connection, which is about to leave its pool."""
    connection.connection.info.pop(_CURSOR, None)


_PLACEHOLDER = re.compile(r"%(?:%|\((\w+)\)s)")


@lru_cache(maxsize=4096)
def native(sql: str, schema: str) -> tuple[str, tuple[str, ...]]:
    """A statement with the placeholders of PostgreSQL, for a schema; and the names of its parameters, in order."""
    numbers: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        name = found[1]
        return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

    return renamed(_PLACEHOLDER.sub(number, sql), schema), tuple(numbers)


def _as_sqlalchemy_would(connection: Connection, error: Exception, cursor: Any, text: str) -> Exception:  # noqa: ANN401
    dialect = connection.dialect
    raw = connection.connection.dbapi_connection
    lost = spoils_connection(error) or dialect.is_disconnect(error, raw, cursor)  # type: ignore[arg-type]
    if lost:
        connection.invalidate(error)
    return DBAPIError.instance(
        text, None, error, dialect.loaded_dbapi.Error, hide_parameters=True, connection_invalidated=lost
    )


# pg_type.oid of `void`, which has nothing to be read.
_VOID = 2278


def _row_type(cursor: _Cursor | _AsyncCursor) -> Any:  # noqa: ANN401 - made at run time
    columns = cursor.description or ()
    for column in columns:
        # psycopg would hand out its bytes.
        if column.type_code != _VOID and cursor.adapters.get_loader(column.type_code, Format.BINARY) is None:
            raise TypeError(f"column {column.name!r} has a type whose binary form psycopg does not know; cast it")
    # Renamed: EXPLAIN's column is "QUERY PLAN".
    return namedtuple("Row", [column.name for column in columns], rename=True)  # noqa: PYI024
