"""Whether the database has the schema that this code needs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from solti_store.errors import SchemaMismatch
from solti_store.sql.naming import SCHEMA, schema_of
from solti_store.sql.revision import HAS_REVISION, HEAD, SELECT_REVISION

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["check", "revision"]


def revision(conn: Connection) -> str | None:
    """The revision of the database's schema; None when it has none."""
    if not HAS_REVISION.one(conn, {}).is_there:
        return None
    row = SELECT_REVISION.one_or_none(conn, {})
    return None if row is None else row.version_num


def check(conn: Connection) -> None:
    """Refuse a database of another revision.

    Raises:
        SchemaMismatch: It is another, or none.
    """
    found = revision(conn)
    if found != HEAD:
        schema = schema_of(conn)
        option = "" if schema == SCHEMA else f" --schema {shlex.quote(schema)}"
        state = f"has no {schema} schema" if found is None else f"is at schema revision {found}"
        raise SchemaMismatch(
            f"the database {state}, this code needs {HEAD}; run `solti-store{option} db upgrade`, or, where the"
            " database is ahead of the code, a newer solti-store"
        )
