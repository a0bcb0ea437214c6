"""Whether the database has the schema that this code needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solti_store.errors import SchemaMismatch
from solti_store.sql.migrating import INVALID_INDEXES
from solti_store.sql.revision import HAS_REVISION, HEAD, SELECT_REVISION

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["check", "invalid_indexes", "revision"]


def revision(conn: Connection) -> str | None:
    """The revision of the database's schema; None when it has none."""
    if not conn.scalar(HAS_REVISION):
        return None
    found: str | None = conn.scalar(SELECT_REVISION)
    return found


def invalid_indexes(conn: Connection) -> list[tuple[str, str]]:
    """Our indexes that an aborted build has left, each with its table; not those that are being built."""
    return [(name, owner) for name, owner in conn.execute(INVALID_INDEXES)]


def check(conn: Connection) -> None:
    """Refuse a database of another revision.

    Raises:
        SchemaMismatch: It is another, or none.
    """
    found = revision(conn)
    if found != HEAD:
        state = "has no solti schema" if found is None else f"is at schema revision {found}"
        raise SchemaMismatch(
            f"the database {state}, this code needs {HEAD}; run `solti-store db upgrade`, or, where the database is"
            " ahead of the code, a newer solti-store"
        )
