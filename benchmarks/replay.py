"""The other side of each comparison: bare psycopg sends what the store was seen to send.

Recorded and not written by hand, so that the two sides cannot drift apart: text, parameters and transactions are what
reached the driver. Only the parameters that name other tasks are exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, LiteralString, Self

import psycopg

from solti_store.engine import open_engine
from solti_store.sql.tables import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import Engine

__all__ = ["Script", "noting_engine", "record"]


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
        sql: Its text, with psycopg's placeholders.
        parameters: Its parameters, as the driver got them.
        columns: The names of its columns.
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
            cursor = (several if one.transaction else single).execute(one.sql, one.parameters)
            found = cursor.fetchall() if one.columns else ()
            if len(found) != one.rows:
                raise RuntimeError(f"replayed for {len(found)} rows, recorded for {one.rows}: {one.sql}")
            for name, place in one.feeds:
                known[name] = [row[place] for row in found]
            if one.commit:
                several.commit()


def _as(like: object, value: object) -> object:
    return type(like)(value) if isinstance(like, list) and isinstance(value, list) else value


class _Noting(psycopg.Cursor[Any]):
    """A cursor that notes what it is given, while somebody listens."""

    notes: ClassVar[list[_Statement] | None] = None

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:  # noqa: ANN401 - psycopg's signature
        super().execute(query, params, **options)
        # Not the pool's question whether a connection that was idle still lives.
        if self.notes is not None and SCHEMA in query:
            columns = tuple(column.name for column in self.description or ())
            rows = self.rowcount if columns else 0
            self.notes.append(_Statement(query, dict(params or {}), columns, rows, not self.connection.autocommit))
        return self


def noting_engine(url: str) -> Engine:
    """An engine for `record`; too slow to be measured."""
    return open_engine(url, connect_args={"cursor_factory": _Noting})


def record(*operations: Callable[[], object]) -> Script:
    """Run operations of a store on a `noting_engine`, and note what they send.

    Args:
        operations: Each calls the store once: what it does in a transaction ends with the call.
    """
    noted: list[_Statement] = []
    for operation in operations:
        _Noting.notes = []
        try:
            operation()
            *others, last = _Noting.notes
        finally:
            _Noting.notes = None
        noted += [*others, replace(last, commit=last.transaction)]
    return Script(tuple(_linked(noted)))


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
