"""Statements that go to psycopg past SQLAlchemy's execution machinery.

SQLAlchemy writes them, once, at import; the hot ones are then run on the cursor of its connection. A point read took
142 µs of CPU, of which psycopg needed 20 and SQLAlchemy's context and result objects 46. What is lost is SQLAlchemy's
cursor events (`echo`, instrumentation); what stays is its pool, its transactions and its errors.
"""

from __future__ import annotations

from collections import namedtuple
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.exc import DBAPIError

from solti_store.faults import spoils_connection
from solti_store.sql.naming import text_on

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

__all__ = ["Prepared", "Row", "is_autocommit"]

Row: TypeAlias = Any
"""A named tuple of a statement's columns; which they are, type checkers cannot see."""


def is_autocommit(connection: Connection) -> bool:
    """Whether the connection has no transactions: asked of psycopg, so it costs no round trip."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))


class Prepared:
    """A statement, built by SQLAlchemy and run by psycopg, whose columns need no conversion between the two.

    Attributes:
        statement: As SQLAlchemy has it.
        text: As psycopg gets it, in the default schema.

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
        """What psycopg gets for these parameters."""
        result = {**self._constants, **given}
        for name, convert in self._converters.items():
            result[name] = convert(result[name])
        return result

    def all(self, connection: Connection, given: Mapping[str, Any]) -> list[Row]:
        """The rows, with their columns as attributes."""
        # As Core would: it keeps the books of what has been begun, so that commit and rollback mean something.
        if not (connection.in_transaction() or is_autocommit(connection)):
            connection.begin()
        proxied = connection.connection
        cursor = proxied.cursor()
        text = text_on(connection, self.text)
        try:
            cursor.execute(text, self.parameters(given))
            if self._row is None:
                # Once: to ask for the description each time costs 10 µs.
                self._row = _row_type([column[0] for column in cursor.description or ()])
            return list(map(self._row._make, cursor.fetchall())) if self._row._fields else []
        except connection.dialect.loaded_dbapi.Error as error:
            raise _as_sqlalchemy_would(connection, error, cursor, text) from error
        finally:
            cursor.close()

    def one(self, connection: Connection, given: Mapping[str, Any]) -> Row:
        """The row of a statement that always has one."""
        return self.all(connection, given)[0]

    def one_or_none(self, connection: Connection, given: Mapping[str, Any]) -> Row | None:
        """The only row, if there is one."""
        rows = self.all(connection, given)
        return rows[0] if rows else None


def _as_sqlalchemy_would(connection: Connection, error: Exception, cursor: Any, text: str) -> Exception:  # noqa: ANN401
    dialect = connection.dialect
    raw = connection.connection.dbapi_connection
    lost = spoils_connection(error) or dialect.is_disconnect(error, raw, cursor)  # type: ignore[arg-type]
    if lost:
        connection.invalidate(error)
    return DBAPIError.instance(
        text, None, error, dialect.loaded_dbapi.Error, hide_parameters=True, connection_invalidated=lost
    )


def _row_type(columns: list[str]) -> Any:  # noqa: ANN401 - made at run time
    return namedtuple("Row", columns, rename=True)  # noqa: PYI024 - renamed: EXPLAIN's column is "QUERY PLAN"
