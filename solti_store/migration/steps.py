"""Steps of migrations that hold up nobody and may be repeated after a crash: index builds and backfills.

A migration file imports them and calls them. Each commits what was done before it: a file with one of them has
nothing else that cannot be done twice.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from typing import TYPE_CHECKING

from alembic import op

from solti_store.errors import Invalid, SchemaMismatch
from solti_store.migration.statements import execute, schema_here
from solti_store.migration.waiting import Waits, patiently
from solti_store.sql import migrating as sql
from solti_store.sql.naming import in_schema, quoted, renamed, schema_of
from solti_store.sql.schemas import as_it_stands

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection

__all__ = ["BACKFILL_MARK", "backfill", "build_index", "drop_index"]

logger = logging.getLogger(__name__)

#: Stands before the one statement that an offline script has for a backfill.
BACKFILL_MARK = "solti-store: in batches when online"

# What means the same quoted or not, is not cut off, and stands for ours after `solti.`.
_PLAIN_NAME = re.compile("[a-z][a-z0-9_]{0,62}")
_MOST_PASSES = 10
_REPORT_EVERY_S = 5.0


def build_index(name: str, table: str, definition: str, *, unique: bool = False) -> None:
    """Build an index beside reads and writes.

    What an aborted build has left is dropped first: CREATE INDEX IF NOT EXISTS would take it for the index.

    Args:
        name: The index: up to 63 of a-z, 0-9 and _.
        table: One of our tables, without its schema.
        definition: What follows the table's name, for example `(slot, seq) WHERE due_at IS NULL`; as for `execute`.
        unique: Whether values may be there only once.

    Raises:
        Invalid: A name is none of this form.
        SchemaMismatch: The name is taken by another table's index, or by one that is unique where this is not or the
            other way round; or the build ended with an invalid index.
    """
    _require_plain(name=name, table=table)
    context = op.get_context()
    create = f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY {name} ON solti.{table} {definition}"
    with context.autocommit_block():
        connection = context.connection
        if context.as_sql or connection is None:
            execute(create)
            return
        with in_schema(connection, schema_here()):
            if _find_index(connection, name, table, unique=unique):
                return
            _unhurried(connection, _waits(context), f"DROP INDEX CONCURRENTLY IF EXISTS solti.{name}", create)
            if not _find_index(connection, name, table, unique=unique):
                raise SchemaMismatch(f"index '{name}' was built and is not valid; run the upgrade again")


def drop_index(name: str) -> None:
    """Drop an index, or what is left of it, beside reads and writes; named as for `build_index`."""
    _require_plain(name=name)
    context = op.get_context()
    drop = f"DROP INDEX CONCURRENTLY IF EXISTS solti.{name}"
    with context.autocommit_block():
        if context.as_sql or context.connection is None:
            execute(drop)
            return
        with in_schema(context.connection, schema_here()):
            _unhurried(context.connection, _waits(context), drop)


def backfill(table: str, values: Mapping[str, str], *, where: str, size: int = 1000) -> None:
    """Write columns of all rows of a table, in batches along its primary key, each in its own transaction.

    How far it got is kept in the database with each batch, so a killed one goes on there. Passes are repeated until
    one finds nothing to do, for rows that come in behind: new rows must come in right, by a default or a trigger.

    Args:
        table: One of our tables, without its schema.
        values: The columns, by their names without quotes, and SQL expressions for them, as for `execute`; the row is
            `t`.
        where: Which rows are still to do; must be false for a row that is done.
        size: How many rows a batch looks at, at least one.

    Raises:
        Invalid: `table` is no plain name, or `values` or `size` is nothing.
        SchemaMismatch: There is no such table, key or column, its progress was deleted meanwhile, or rows to do come in
            faster than they are done.
    """
    _require_plain(table=table)
    for field, count in (("values", len(values)), ("size", size)):
        if count < 1:
            raise Invalid(f"invalid model: {field} of a backfill must be at least one, got {count}", field=field)
    context = op.get_context()
    with context.autocommit_block():
        connection = context.connection
        if context.as_sql or connection is None:
            execute(f"-- {BACKFILL_MARK}\n{sql.backfill_all(f'solti.{table} AS t', values, where)}")
            return
        with in_schema(connection, schema_here()):
            _Backfill(connection, _waits(context), table, values, where=where, size=size).run()


class _Backfill:
    def __init__(
        self, connection: Connection, waits: Waits, table: str, values: Mapping[str, str], *, where: str, size: int
    ) -> None:
        relation = f"{quoted(schema_of(connection))}.{table}"
        key = [(name, kind) for name, kind in sql.PRIMARY_KEY.all(connection, {"relation": relation})]
        if not key:
            raise SchemaMismatch(f"a backfill goes along a primary key, and '{table}' has none or is not there")
        columns = list(values)
        for row in sql.MISSING_COLUMNS.all(connection, {"relation": relation, "columns": columns}):
            raise SchemaMismatch(f"a backfill is to write a column '{row.name}', and '{table}' has none of that name")
        self._connection, self._waits, self._size = connection, waits, size
        self._name = f"{table} ({', '.join(values)})"
        self._first = sql.backfill_batch(f"solti.{table}", values, where, key, first=True)
        self._next = sql.backfill_batch(f"solti.{table}", values, where, key, first=False)
        digest = hashlib.sha256(repr((sorted(values.items()), where, key)).encode()).hexdigest()[:16]
        remembered = sql.REMEMBER_BACKFILL.one(
            connection, {"name": self._name, "relation": relation, "columns": columns, "digest": digest}
        )
        self._position, self._seen, self._changed, self._estimate = remembered
        self._told = 0.0

    def run(self) -> None:
        if self._position is not None:
            logger.info("the backfill of %s goes on after %s rows", self._name, self._seen)
        for number in range(1, _MOST_PASSES + 1):
            # Of a pass that somebody else began it is not known what it had found.
            whole, before = self._position is None, self._changed
            self._pass(number)
            if whole and self._changed == before:
                sql.FORGET_BACKFILL.all(self._connection, {"name": self._name})
                logger.info("the backfill of %s is done: %d rows were changed", self._name, self._changed)
                return
        raise SchemaMismatch(
            f"the backfill of {self._name} found rows to do in {_MOST_PASSES} passes; whoever writes must write them"
            " right before it can end"
        )

    def _pass(self, number: int) -> None:
        begun = self._seen
        while True:
            self._position, self._seen, self._changed = patiently(self._connection, self._waits, self._batch)
            if self._position is None:
                return
            if time.monotonic() - self._told >= _REPORT_EVERY_S:
                self._told = time.monotonic()
                logger.info(
                    "the backfill of %s, pass %d: %d of about %d rows, %d changed",
                    self._name,
                    number,
                    self._seen - begun if number > 1 else self._seen,
                    self._estimate,
                    self._changed,
                )

    def _batch(self) -> tuple[list[str] | None, int, int]:
        values = {"name": self._name, "size": self._size}
        if self._position is None:
            row = self._first.one_or_none(self._connection, values)
        else:
            row = self._next.one_or_none(self._connection, values | {"position": self._position})
        if row is None:
            raise SchemaMismatch(
                f"the progress of the backfill of {self._name} was deleted while it ran; run the upgrade again"
            )
        position, seen, changed = row
        return position, seen, changed


def _require_plain(**names: str) -> None:
    for field, name in names.items():
        if _PLAIN_NAME.fullmatch(name) is None:
            raise Invalid(f"invalid model: {field} must be up to 63 of a-z, 0-9 and _, got {name!r:.80}", field=field)


def _waits(context: MigrationContext) -> Waits:
    found = context.config.attributes.get("waits") if context.config is not None else None
    return found if isinstance(found, Waits) else Waits()


def _find_index(connection: Connection, name: str, table: str, *, unique: bool) -> bool:
    """Whether there is a valid index of this name on this table."""
    found = sql.FIND_INDEX.one_or_none(connection, {"name": name, "schema": schema_of(connection)})
    if found is None:
        return False
    if found.table != table:
        raise SchemaMismatch(f"index '{name}' is one of table '{found.table}', not of '{table}'")
    if found.is_valid and found.is_unique != unique:
        raise SchemaMismatch(f"index '{name}' is there already, and is {'not ' if unique else ''}unique")
    return bool(found.is_valid)


def _unhurried(connection: Connection, waits: Waits, *statements: str) -> None:
    """Run statements that wait long, while nobody who reads or writes waits for them."""
    before = connection.scalar(sql.SHOW_LOCK_TIMEOUT)
    try:
        _set_lock_timeout(connection, f"{waits.patience.total_seconds() * 1000:.0f}")
        for statement in statements:
            connection.execute(as_it_stands(renamed(statement, schema_of(connection))))
    finally:
        if not connection.invalidated:
            _set_lock_timeout(connection, before)


def _set_lock_timeout(connection: Connection, value: str | None) -> None:
    connection.execute(sql.SET_LOCK_TIMEOUT, {"value": value})
