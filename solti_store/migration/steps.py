"""Steps of migrations that hold up nobody and may be repeated after a crash: index builds and backfills.

A migration file imports them and calls them. Each commits what was done before it: a file with one of them has
nothing else that cannot be done twice.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import TYPE_CHECKING

from alembic import op
from sqlalchemy import text

from solti_store.errors import SchemaMismatch
from solti_store.migration.waiting import Waits, patiently
from solti_store.sql import migrating as sql
from solti_store.sql.tables import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection

__all__ = ["BACKFILL_MARK", "backfill", "build_index", "drop_index"]

logger = logging.getLogger(__name__)

#: Stands before the one statement that an offline script has for a backfill.
BACKFILL_MARK = "solti-store: in batches when online"

_MOST_PASSES = 10
_REPORT_EVERY_S = 5.0


def build_index(name: str, table: str, definition: str, *, unique: bool = False) -> None:
    """Build an index beside reads and writes.

    What an aborted build has left is dropped first: CREATE INDEX IF NOT EXISTS would take it for the index.

    Args:
        name: The index.
        table: One of our tables, without its schema.
        definition: What follows the table's name, for example `(slot, seq) WHERE due_at IS NULL`.
        unique: Whether values may be there only once.

    Raises:
        SchemaMismatch: The name is taken by another table's index, or the build ended with an invalid index.
    """
    context = op.get_context()
    create = f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY {name} ON {SCHEMA}.{table} {definition}"
    with context.autocommit_block():
        connection = context.connection
        if context.as_sql or connection is None:
            op.execute(create)
            return
        if _find_index(connection, name, table):
            return
        _unhurried(connection, _waits(context), f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}", create)
        if not _find_index(connection, name, table):
            raise SchemaMismatch(f"index '{name}' was built and is not valid; run the upgrade again")


def drop_index(name: str) -> None:
    """Drop an index, or what is left of it, beside reads and writes."""
    context = op.get_context()
    drop = f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.{name}"
    with context.autocommit_block():
        if context.as_sql or context.connection is None:
            op.execute(drop)
            return
        _unhurried(context.connection, _waits(context), drop)


def backfill(table: str, values: Mapping[str, str], *, where: str, size: int = 1000) -> None:
    """Write columns of all rows of a table, in batches along its primary key, each in its own transaction.

    How far it got is kept in the database with each batch, so a killed one goes on there. Passes are repeated until
    one finds nothing to do, for rows that come in behind: new rows must come in right, by a default or a trigger.

    Args:
        table: One of our tables, without its schema.
        values: The columns, and SQL expressions for them; the row is `t`.
        where: Which rows are still to do; must be false for a row that is done.
        size: How many rows a batch looks at.

    Raises:
        SchemaMismatch: There is no such table or key, or rows to do come in faster than they are done.
    """
    context = op.get_context()
    relation = f"{SCHEMA}.{table}"
    with context.autocommit_block():
        connection = context.connection
        if context.as_sql or connection is None:
            op.execute(f"-- {BACKFILL_MARK}\n{sql.backfill_all(f'{relation} AS t', values, where)}")
            return
        _Backfill(connection, _waits(context), relation, values, where=where, size=size).run()


class _Backfill:
    def __init__(
        self, connection: Connection, waits: Waits, relation: str, values: Mapping[str, str], *, where: str, size: int
    ) -> None:
        key = [(name, kind) for name, kind in connection.execute(sql.PRIMARY_KEY, {"relation": relation})]
        if not key:
            raise SchemaMismatch(f"a backfill goes along a primary key, and '{relation}' has none or is not there")
        self._connection, self._waits, self._size = connection, waits, size
        self._relation = relation
        self._name = f"{relation} ({', '.join(values)})"
        self._first = sql.backfill_batch(relation, values, where, key, first=True)
        self._next = sql.backfill_batch(relation, values, where, key, first=False)
        digest = hashlib.sha256(repr((sorted(values.items()), where, key)).encode()).hexdigest()[:16]
        remembered = connection.execute(
            sql.REMEMBER_BACKFILL,
            {"name": self._name, "relation": relation, "columns": list(values), "digest": digest},
        ).one()
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
                self._connection.execute(sql.FORGET_BACKFILL, {"name": self._name})
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
            row = self._connection.execute(self._first, values).one()
        else:
            row = self._connection.execute(self._next, values | {"position": self._position}).one()
        position, seen, changed = row
        return position, seen, changed


def _waits(context: MigrationContext) -> Waits:
    found = context.config.attributes.get("waits") if context.config is not None else None
    return found if isinstance(found, Waits) else Waits()


def _find_index(connection: Connection, name: str, table: str) -> bool:
    """Whether there is a valid index of this name on this table."""
    found = connection.execute(sql.FIND_INDEX, {"name": name, "schema": SCHEMA}).one_or_none()
    if found is None:
        return False
    is_valid, owner = found
    if owner != table:
        raise SchemaMismatch(f"index '{name}' is one of table '{owner}', not of '{table}'")
    return bool(is_valid)


def _unhurried(connection: Connection, waits: Waits, *statements: str) -> None:
    """Run statements that wait long, while nobody who reads or writes waits for them."""
    before = connection.scalar(text("SHOW lock_timeout"))
    try:
        _set_lock_timeout(connection, f"{waits.patience.total_seconds() * 1000:.0f}")
        for statement in statements:
            connection.execute(sql.verbatim(statement))
    finally:
        if not connection.invalidated:
            _set_lock_timeout(connection, before)


def _set_lock_timeout(connection: Connection, value: str | None) -> None:
    connection.execute(text("SELECT set_config('lock_timeout', :value, false)"), {"value": value})
