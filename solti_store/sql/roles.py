"""Statements that make roles: one that owns the schemas, ones that work in them, and ones that read reports.

Each sets right what is there, so any of them may be run again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from solti_store.sql.naming import quoted, report_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "LOCK",
    "SELECT_DATABASE",
    "SELECT_EXCESS",
    "SELECT_FOREIGN",
    "SELECT_KEPT",
    "SELECT_MISSING",
    "SELECT_OWNER",
    "SELECT_ROLE",
    "connect",
    "create",
    "create_schema",
    "join",
    "own",
    "read",
    "take",
    "work",
]

#: One at a time in a database, whatever the schema: two that set up the same reader at once end in "tuple concurrently
#: updated". The number is "solti", then 2.
LOCK = text("SELECT pg_advisory_xact_lock(CAST(x'736F6C746902' AS bigint))")

SELECT_DATABASE = text(
    "SELECT current_database() AS name, rolsuper AS is_superuser FROM pg_roles WHERE rolname = current_user"
)

#: Whether there is a role `name`, and whether it may connect.
SELECT_ROLE = text(
    """
    SELECT to_regrole(quote_ident(:name)) IS NOT NULL AS is_there,
           COALESCE((SELECT has_database_privilege(oid, current_database(), 'CONNECT') FROM pg_roles
                     WHERE rolname = :name), false) AS connects
    """
)

#: Who owns the schema of the tables; no row when there is none.
SELECT_OWNER = text("SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = :schema")

#: Those of both schemas that are not there.
SELECT_MISSING = text(
    """
    SELECT name FROM unnest(ARRAY[:schema, :reports]) AS wanted (name)
    WHERE to_regnamespace(quote_ident(name)) IS NULL
    """
)

#: The tables that only migrations write, as far as they are there.
SELECT_KEPT = text(
    """
    SELECT relname FROM pg_class
    WHERE relnamespace = to_regnamespace(quote_ident(:schema))
      AND relname IN ('alembic_version', 'schema_history', 'backfills')
    """
)

#: What is in our schemas, and the schemas themselves, and belongs to somebody else than `owner`: its kind, as ALTER has
#: it, and its name. The sequence of an identity column goes with its table.
SELECT_FOREIGN = text(
    """
    SELECT 'SCHEMA' AS kind, quote_ident(nspname) AS name FROM pg_namespace
    WHERE nspname IN (:schema, :reports) AND pg_get_userbyid(nspowner) <> :owner
    UNION ALL
    SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN (:schema, :reports) AND c.relkind IN ('r', 'p', 'v') AND pg_get_userbyid(c.relowner) <> :owner
    -- The schemas first: who takes a table has to be able to create in its schema.
    ORDER BY kind
    """
)

#: What the role `name` may do beyond its job, a row each; `job` is owner, worker or reader.
SELECT_EXCESS = text(
    """
    SELECT attribute FROM pg_roles, LATERAL (VALUES
        ('is a superuser', rolsuper), ('may create roles', rolcreaterole), ('may create databases', rolcreatedb),
        ('may replicate', rolreplication), ('bypasses row security', rolbypassrls)) AS of_role (attribute, has)
    WHERE rolname = :name AND has
    UNION ALL
    SELECT 'is a member of ' || roleid::regrole FROM pg_auth_members AS m
    WHERE member = to_regrole(quote_ident(:name)) AND (
        :job = 'reader' OR :job = 'worker' AND roleid = to_regrole(quote_ident(:owner)))
    UNION ALL
    SELECT 'may use the schema ' || :schema
    WHERE :job = 'reader' AND has_schema_privilege(:name, quote_ident(:schema)::regnamespace, 'USAGE')
    UNION ALL
    SELECT 'may create in the schema ' || nspname FROM pg_namespace
    WHERE nspname IN (:schema, :reports) AND :job <> 'owner' AND has_schema_privilege(:name, oid, 'CREATE')
    UNION ALL
    SELECT 'may TRUNCATE ' || relname FROM pg_class
    WHERE relnamespace = quote_ident(:schema)::regnamespace AND relkind = 'r' AND :job <> 'owner'
      AND has_table_privilege(:name, oid, 'TRUNCATE')
    UNION ALL
    -- As a member of pg_write_all_data may.
    SELECT 'may write ' || relname FROM pg_class
    WHERE relnamespace = quote_ident(:schema)::regnamespace AND relname IN ('alembic_version', 'schema_history')
      AND :job = 'worker' AND has_table_privilege(:name, oid, 'INSERT, UPDATE, DELETE')
    """
)


def create(name: str) -> str:
    """Makes a role that may log in, and has no password yet."""
    return f"CREATE ROLE {quoted(name)} LOGIN"


def create_schema(schema: str, owner: str) -> str:
    """Makes a schema for its owner."""
    return f"CREATE SCHEMA {quoted(schema)} AUTHORIZATION {quoted(owner)}"


def own(schema: str) -> Iterator[str]:
    """Takes from everybody what they may do by being anybody, and makes the table of the revision.

    That table before the first migration: what that makes comes under the default rights, and workers would write it.
    """
    for name in (schema, report_schema(schema)):
        # Of databases that were made with more open rights.
        yield f"REVOKE ALL ON SCHEMA {quoted(name)} FROM PUBLIC"
        yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {quoted(name)} FROM PUBLIC"
    yield (
        f"CREATE TABLE IF NOT EXISTS {quoted(schema)}.alembic_version"
        " (version_num varchar(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY)"
    )


def take(kind: str, quoted_name: str, owner: str) -> str:
    """Gives something to the owner."""
    return f"ALTER {kind} {quoted_name} OWNER TO {quoted(owner)}"


def work(schema: str, owner: str, name: str, kept: Iterable[str]) -> Iterator[str]:
    """Lets a role read and write rows, and read reports, which a roll-up does; and nothing else in our schemas.

    Args:
        schema: The schema of the tables.
        owner: Who migrates.
        name: The role.
        kept: Tables that it only reads: those of `SELECT_KEPT`.
    """
    tables, reports, role = quoted(schema), quoted(report_schema(schema)), quoted(name)
    yield from _nothing(schema, name)
    yield f"GRANT USAGE ON SCHEMA {tables}, {reports} TO {role}"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {tables} TO {role}"
    for table in kept:
        yield f"REVOKE INSERT, UPDATE, DELETE ON {tables}.{table} FROM {role}"
    yield f"GRANT SELECT ON ALL TABLES IN SCHEMA {reports} TO {role}"
    yield from _by_default(owner, tables, "SELECT, INSERT, UPDATE, DELETE", role)
    yield from _by_default(owner, reports, "SELECT", role)


def read(schema: str, owner: str, name: str, database: str, timeout_ms: int) -> Iterator[str]:
    """Lets a role read reports, and nothing else in our schemas.

    Args:
        schema: The schema of the tables.
        owner: Who migrates.
        name: The role.
        database: The database's name.
        timeout_ms: How long a statement of the role may take, unless it asks for more.
    """
    reports, role = quoted(report_schema(schema)), quoted(name)
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {reports} FROM {role}"
    yield f"GRANT USAGE ON SCHEMA {reports} TO {role}"
    yield f"GRANT SELECT ON ALL TABLES IN SCHEMA {reports} TO {role}"
    yield from _by_default(owner, reports, "SELECT", role)
    # In this database alone: what else the role is for is not ours to bound.
    for setting in (
        f"statement_timeout = {timeout_ms}",
        # A session that idles in a transaction keeps vacuum from cleaning up behind the workers.
        f"idle_in_transaction_session_timeout = {timeout_ms}",
        "default_transaction_read_only = on",
        f"search_path = {reports}",
        "jit = off",
    ):
        yield f"ALTER ROLE {role} IN DATABASE {quoted(database)} SET {setting}"


def _nothing(schema: str, name: str) -> Iterator[str]:
    for one in (schema, report_schema(schema)):
        yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {quoted(one)} FROM {quoted(name)}"
        yield f"REVOKE ALL ON SCHEMA {quoted(one)} FROM {quoted(name)}"


def _by_default(owner: str, schema: str, rights: str, role: str) -> Iterator[str]:
    # So that what a later migration makes, or makes anew, is covered too.
    for change in (f"REVOKE ALL ON TABLES FROM {role}", f"GRANT {rights} ON TABLES TO {role}"):
        yield f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(owner)} IN SCHEMA {schema} {change}"


def connect(database: str, name: str) -> str:
    """Lets a role connect, where not everybody may."""
    return f"GRANT CONNECT ON DATABASE {quoted(database)} TO {quoted(name)}"


def join(owner: str) -> str:
    """Makes this session's role a member of the owner: only so may one that is no superuser give things to it."""
    return f"GRANT {quoted(owner)} TO CURRENT_USER"
