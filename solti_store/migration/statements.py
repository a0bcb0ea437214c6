"""How the scripts run SQL: in the schema that is migrated, whatever its name."""

from __future__ import annotations

from alembic import op

from solti_store.schema_name import resolve_schema
from solti_store.sql import schemas
from solti_store.sql.naming import renamed

__all__ = ["create_function", "create_schemas", "execute", "execute_block", "schema_here"]


def execute(statement: str) -> None:
    """Run a statement of a migration, in the schema that is migrated.

    Args:
        statement: SQL as for psql, no parameters. `solti.` and `solti_report.` in it, and the same names after the word
            SCHEMA, stand for the schemas, whatever these are named.
    """
    op.execute(schemas.as_it_stands(renamed(statement, schema_here())))


def execute_block(body: str) -> None:
    """Run a block of PL/pgSQL, otherwise as `execute`. As a literal, for in a name there may be any dollar quote."""
    op.execute(schemas.as_it_stands(f"DO {schemas.literal(renamed(body, schema_here()))}"))


def create_function(signature: str, body: str) -> None:
    """Create a function in PL/pgSQL, otherwise as `execute`.

    Args:
        signature: From its name up to what it returns and how it behaves: `solti.f(a bigint) RETURNS int IMMUTABLE`.
        body: Its block.
    """
    schema = schema_here()
    text = f"CREATE FUNCTION {renamed(signature, schema)} LANGUAGE plpgsql AS {schemas.literal(renamed(body, schema))}"
    op.execute(schemas.as_it_stands(text))


def create_schemas() -> None:
    """Create the schemas that are migrated, if they are not there."""
    op.execute(schemas.as_it_stands(schemas.create(schema_here())))


def schema_here() -> str:
    """The schema that is migrated: of our own environment or of a host's `branch`; without either as everywhere."""
    return resolve_schema(op.get_context().opts.get("solti_schema"))
