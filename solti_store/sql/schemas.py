"""Statements that make the schemas, and that tell who migrates them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from solti_store.sql.driver import Prepared
from solti_store.sql.naming import quoted, report_schema

if TYPE_CHECKING:
    from sqlalchemy import TextClause

__all__ = ["HAS_HISTORY", "HAS_VERSION", "HAS_VERSION_TABLE", "as_it_stands", "create", "drop_version", "literal"]


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


def drop_version(schema: str, theirs: str) -> str:
    """Drops our own Alembic's table of a schema that a host application's migrates from now on.

    Not if it is the application's: compared by the server, since a search path may have led there too.

    Args:
        schema: The schema.
        theirs: The application's version table, as SQL names it.
    """
    ours = f"{quoted(schema)}.alembic_version"
    differs = f"to_regclass({literal(theirs)}) IS DISTINCT FROM to_regclass({literal(ours)})"
    return f"DO {literal(f'BEGIN IF {differs} THEN DROP TABLE IF EXISTS {ours}; END IF; END')}"


#: Whether our own Alembic has a revision of it: whether there is the table, and then whether it has a row.
HAS_VERSION_TABLE = Prepared(text("SELECT to_regclass('solti.alembic_version') IS NOT NULL AS is_so"))
HAS_VERSION = Prepared(text("SELECT EXISTS (SELECT FROM solti.alembic_version) AS is_so"))
#: Whether there is our list of what is applied.
HAS_HISTORY = Prepared(text("SELECT to_regclass('solti.schema_history') IS NOT NULL AS is_so"))
