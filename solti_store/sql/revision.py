"""Which revisions of the schema this code is written for, and which ones a database says it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from solti_store.sql.tables import schema_history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Delete, Insert

__all__ = ["HEAD", "OLDEST", "SELECT_APPLIED", "SELECT_HISTORY", "forget_all_but", "record"]

#: The newest migration. A constant, because asking Alembic costs 0.3 s of imports; a test compares the two.
HEAD = "solti_0002"
#: The oldest that this code works on: without the reports of solti_0002 all else does.
OLDEST = "solti_0001"

_of = schema_history.c
_older = schema_history.alias("older")

#: The newest revision, the oldest code that works on it, and the newest revision that this code works on.
SELECT_APPLIED = (
    select(
        _of.revision,
        _of.oldest_code,
        select(func.max(_older.c.revision)).where(_older.c.oldest_code <= HEAD).scalar_subquery().label("serves"),
    )
    .order_by(_of.revision.desc())
    .limit(1)
)
#: All revisions, in order.
SELECT_HISTORY = select(_of.revision, _of.oldest_code, _of.applied_at).order_by(_of.revision)


def record(applied: Mapping[str, str]) -> Insert:
    """Write down these revisions and the oldest code of each; those that are there stay as they are."""
    rows: list[dict[str, Any]] = [
        {"revision": revision, "oldest_code": oldest_code} for revision, oldest_code in applied.items()
    ]
    return insert(schema_history).values(rows).on_conflict_do_nothing()


def forget_all_but(revisions: Mapping[str, str]) -> Delete:
    """Strike out all other revisions."""
    return delete(schema_history).where(_of.revision.not_in(list(revisions)))
