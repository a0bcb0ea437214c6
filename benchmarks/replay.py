"""The other side of each comparison: bare psycopg sends what the store was seen to send.

Recorded and not written by hand, so that the two sides cannot drift apart: text, parameters and transactions are what
reached the driver. Only the parameters that name other tasks are exchanged.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, LiteralString
from unittest.mock import patch

import psycopg

from solti_store.sql.driver import Prepared, Row, is_autocommit, native
from solti_store.sql.naming import SCHEMA
from solti_store.sql.types import ADAPTERS, integers_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

__all__ = ["Script", "record"]


class _Cursor(psycopg.RawCursor[Any]):
    adapters = ADAPTERS


def _all(values: list[Any]) -> list[Any]:
    return values


def _milliseconds(values: list[datetime]) -> datetime:
    """As a Task has it: that is how the store names an incarnation that it has read."""
    (moment,) = values
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


# What a later statement takes from the rows of an earlier one: from which column, and how.
_FED: dict[str, tuple[str, Callable[[list[Any]], Any]]] = {
    "seqs": ("seq", _all),
    "attempts": ("attempt", _all),
    "created": ("created_at", _milliseconds),
}


@dataclass(frozen=True, slots=True)
class _Statement:
    """One statement, as the driver got it.

    Attributes:
        sql: Its text, with the server's placeholders.
        parameters: Its parameters by name, as the driver got them, in the order of their numbers.
        columns: The names of its columns, if there were rows.
        rows: How many rows it returned; a replay that returns another number is not the same work.
        transaction: Whether a transaction was open.
        commit: Whether the transaction ended after it.
        feeds: Later parameters that its rows fill, and the place of their column.
        fed: Parameters that earlier rows fill.
    """

    sql: LiteralString
    parameters: dict[str, Any]
    columns: tuple[str, ...]
    rows: int
    transaction: bool
    commit: bool = False
    feeds: tuple[tuple[str, int], ...] = ()
    fed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Script:
    """The statements of one operation, in order."""

    statements: tuple[_Statement, ...]

    def with_parameters(self, **exchanged: object) -> Script:
        """The same with other parameters, where a statement has them."""
        return Script(
            tuple(
                replace(one, parameters={name: exchanged.get(name, value) for name, value in one.parameters.items()})
                for one in self.statements
            )
        )

    def run(self, single: psycopg.Connection[Any], several: psycopg.Connection[Any]) -> None:
        """Send the statements and fetch their rows, but make no values of them.

        Args:
            single: For statements that commit themselves, in autocommit mode.
            several: For those in a transaction.

        Raises:
            RuntimeError: A statement returned more or fewer rows than it did for the store.
        """
        known: dict[str, list[Any]] = {}
        for one in self.statements:
            for name in one.fed:
                # In the type that the driver was given: it decides how a list is sent.
                one.parameters[name] = _as(one.parameters[name], _FED[name][1](known[name]))
            cursor = _Cursor(several if one.transaction else single)
            cursor.execute(one.sql, list(one.parameters.values()), binary=True)
            found = cursor.fetchall() if one.rows else ()
            if cursor.rowcount != one.rows:
                raise RuntimeError(f"replayed for {cursor.rowcount} rows, recorded for {one.rows}: {one.sql}")
            for name, place in one.feeds:
                known[name] = [row[place] for row in found]
            if one.commit:
                several.commit()


def _as(like: object, value: object) -> object:
    if not isinstance(value, list):
        return value
    return type(like)(value) if isinstance(like, list) else integers_text(value)


def record(*operations: Callable[[], object]) -> Script:
    """Run operations of a store, and note what they send.

    Args:
        operations: Each calls the store once: what it does in a transaction ends with the call.
    """
    noted: list[_Statement] = []
    for operation in operations:
        with _noting() as notes:
            operation()
        *others, last = notes
        noted += [*others, replace(last, commit=last.transaction)]
    return Script(tuple(_linked(noted)))


@contextmanager
def _noting() -> Iterator[list[_Statement]]:
    """What goes to the driver meanwhile."""
    notes: list[_Statement] = []
    run = Prepared.all

    def run_and_note(statement: Prepared, connection: Connection, given: Mapping[str, Any]) -> list[Row]:
        rows = run(statement, connection, given)
        text, names = native(statement.text, SCHEMA)
        values = statement.parameters(given)
        notes.append(
            _Statement(
                text,
                {name: values[name] for name in names},
                rows[0]._fields if rows else (),
                len(rows),
                not is_autocommit(connection),
            )
        )
        return rows

    with patch.object(Prepared, "all", run_and_note):
        yield notes


def _linked(noted: Sequence[_Statement]) -> list[_Statement]:
    """Find what rows fill which parameters, so that a replay does no more than it has to."""
    linked: list[_Statement] = []
    wanted: set[str] = set()
    for index in reversed(range(len(noted))):
        one = noted[index]
        earlier = {column for before in noted[:index] for column in before.columns}
        fed = tuple(
            name for name, (column, _) in _FED.items() if column in earlier and one.parameters.get(name) is not None
        )
        feeds = tuple(
            (name, one.columns.index(column))
            for name, (column, _) in _FED.items()
            if name in wanted and column in one.columns
        )
        wanted = (wanted - {name for name, _ in feeds}) | set(fed)
        linked.insert(0, replace(one, feeds=feeds, fed=fed))
    return linked
