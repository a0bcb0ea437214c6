"""Whether this code works on the schema that the database has."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from solti_store.faults import is_missing_table
from solti_store.rules.doctor_tables import invalid
from solti_store.rules.window import Applied, Window
from solti_store.sql.migrating import INVALID_INDEXES
from solti_store.sql.naming import SCHEMA, schema_of
from solti_store.sql.revision import HEAD, OLDEST, SELECT_APPLIED, SELECT_HISTORY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.rules.doctor import Finding

__all__ = ["WINDOW", "applied", "check", "history", "invalid_indexes", "is_ahead", "options", "require", "revision"]

#: What this code works on.
WINDOW = Window(OLDEST, HEAD)


def applied(conn: Connection) -> Applied | None:
    """What the database's schema is; None when it has none.

    One round trip, for every opening of a store makes it. To look whether there is a table would be a second one: so
    when there is none, the transaction of `conn` is rolled back.
    """
    try:
        row = SELECT_APPLIED.one_or_none(conn, {})
    except DBAPIError as error:
        if not is_missing_table(error):
            raise
        conn.rollback()
        return None
    return None if row is None else Applied(*row)


def revision(conn: Connection) -> str | None:
    """The newest revision of the database's schema; None when it has none. As `applied`."""
    found = applied(conn)
    return found.revision if found else None


def check(conn: Connection) -> None:
    """Refuse a database whose schema this code does not work on. As `applied`.

    Raises:
        SchemaMismatch: It does not, or there is none; the message has the command to run.
    """
    require(applied(conn), schema_of(conn))


def require(found: Applied | None, schema: str) -> None:
    """Refuse what was found, as `check`.

    Args:
        found: What `applied` says.
        schema: The schema's name.
    """
    WINDOW.require(found, options(schema))


def options(schema: str) -> str:
    """What stands between `solti-store` and `db` in a command for a schema."""
    return "" if schema == SCHEMA else f" --schema {shlex.quote(schema)}"


def is_ahead(found: Applied | None, schema: str) -> bool:
    """Whether the schema is of newer code, and this code works on it all the same.

    Args:
        found: What `applied` says.
        schema: The schema's name.

    Raises:
        SchemaMismatch: It does not work on it, whether newer or not.
    """
    require(found, schema)
    return found is not None and found.revision > HEAD


def history(conn: Connection) -> Sequence[tuple[str, str, datetime]]:
    """The revisions that are applied, in order: each with the oldest code that works on it, and when it was applied.

    None that was taken back is among them.
    """
    try:
        return [(name, oldest_code, at) for name, oldest_code, at in SELECT_HISTORY.all(conn, {})]
    except DBAPIError as error:
        if not is_missing_table(error):
            raise
        conn.rollback()
        return []


def invalid_indexes(conn: Connection) -> list[Finding]:
    """Our indexes that an aborted build has left, as the doctor has them; not those that are being built."""
    return [invalid(row.schema, row.name, row.table) for row in INVALID_INDEXES.all(conn, {"schema": schema_of(conn)})]
