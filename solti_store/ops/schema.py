"""Whether this code works on the schema that the database has."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from solti_store.faults import is_missing_table
from solti_store.rules.window import Applied, Window
from solti_store.sql.naming import SCHEMA, schema_of
from solti_store.sql.revision import HEAD, OLDEST, SELECT_APPLIED, SELECT_HISTORY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import Connection

__all__ = ["WINDOW", "applied", "check", "history", "require", "revision"]

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
    WINDOW.require(found, "" if schema == SCHEMA else f" --schema {shlex.quote(schema)}")


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
