"""Statements that make the schemas, and keep a copy of a revision that a host application's Alembic has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from solti_store.sql.naming import quoted, report_schema

if TYPE_CHECKING:
    from sqlalchemy import TextClause

__all__ = ["COPY_COMMENT", "CREATE_COPY", "HAS_COPY", "as_it_stands", "create", "literal", "set_copy"]


def as_it_stands(sql: str) -> TextClause:
    """SQL without parameters, in which a colon would begin one of SQLAlchemy's."""
    return text(sql.replace(":", r"\:"))


def literal(value: str) -> str:
    """The text as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"


def create(schema: str) -> str:
    """Makes both schemas, if they are not there.

    Looked up first: CREATE SCHEMA IF NOT EXISTS asks for a right on the database even when there is nothing to create,
    and the owner of the schemas alone may not have it.
    """
    body = " ".join(
        f"IF to_regnamespace(quote_ident({literal(name)})) IS NULL THEN CREATE SCHEMA {quoted(name)}; END IF;"
        for name in (schema, report_schema(schema))
    )
    # The body as a plain literal: in a name there may be any dollar quote.
    return f"DO {literal(f'BEGIN {body} END')}"


#: By this a copy is told from Alembic's own table.
COPY_COMMENT = "A copy: the revision is moved by the Alembic of the application around."

#: What the store looks at, where the revision itself is in the version table of a host application.
_TABLE = "solti.alembic_version"
CREATE_COPY = (
    f"CREATE TABLE IF NOT EXISTS {_TABLE} (version_num varchar(32) CONSTRAINT alembic_version_pkc PRIMARY KEY)",
    f"COMMENT ON TABLE {_TABLE} IS {literal(COPY_COMMENT)}",
)

#: Whether `regclass` is such a copy.
HAS_COPY = text("SELECT obj_description(to_regclass(:regclass), 'pg_class') = :comment").bindparams(
    comment=COPY_COMMENT
)


def set_copy(revision: str | None) -> list[str]:
    """Sets the copy to a revision; None is none."""
    set_to = [] if revision is None else [f"INSERT INTO solti.alembic_version VALUES ({literal(revision)})"]  # noqa: S608
    return ["DELETE FROM solti.alembic_version", *set_to]
