"""Which revisions of the schema this code is written for, and which ones a database says it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from solti_store.sql.driver import Prepared
from solti_store.sql.naming import SCHEMA
from solti_store.sql.tables import schema_history

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["HEAD", "OLDEST", "SELECT_APPLIED", "SELECT_HISTORY", "list_applied"]

#: The newest migration. A constant, because asking Alembic costs 0.3 s of imports; a test compares the two.
HEAD = "solti_0002"
#: The oldest that this code works on: without the reports of solti_0002 all else does.
OLDEST = "solti_0001"

_of = schema_history.c
_older = schema_history.alias("older")

#: The newest revision, the oldest code that works on it, and the newest revision that this code works on.
SELECT_APPLIED = Prepared(
    select(
        _of.revision,
        _of.oldest_code,
        select(func.max(_older.c.revision)).where(_older.c.oldest_code <= HEAD).scalar_subquery().label("serves"),
    )
    .order_by(_of.revision.desc())
    .limit(1)
)
#: All revisions, in order.
SELECT_HISTORY = Prepared(select(_of.revision, _of.oldest_code, _of.applied_at).order_by(_of.revision))


def list_applied(oldest_code: Mapping[str, str]) -> tuple[str, ...]:
    """Makes the list what is applied: these revisions, each with the oldest code that works on it.

    As text, for a script, in the default schema; the names are those of migrations, and no input. What is listed
    already keeps its time.
    """
    table = f"{SCHEMA}.schema_history"
    if not oldest_code:
        return (f"DELETE FROM {table}",)  # noqa: S608 - as said above, and below
    names = ", ".join(f"'{revision}'" for revision in oldest_code)
    rows = ", ".join(f"('{revision}', '{code}')" for revision, code in oldest_code.items())
    return (
        f"DELETE FROM {table} WHERE revision NOT IN ({names})",  # noqa: S608
        f"INSERT INTO {table} (revision, oldest_code) VALUES {rows} ON CONFLICT DO NOTHING",  # noqa: S608
    )
