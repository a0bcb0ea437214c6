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

_KEPT = "('alembic_version', 'schema_history', 'backfills')"

#: The tables that only migrations write, as far as they are there.
SELECT_KEPT = text(
    f"""
    SELECT relname FROM pg_class
    WHERE relnamespace = to_regnamespace(quote_ident(:schema)) AND relname IN {_KEPT}
    """  # noqa: S608 - names of our own
)

#: What is in our schemas, and the schemas themselves, and belongs to somebody else than `owner`: its kind, as ALTER has
#: it, and its name. The sequence of an identity column goes with its table.
SELECT_FOREIGN = text(
    """
    SELECT 'SCHEMA' AS kind, quote_ident(nspname) AS name, 1 AS place FROM pg_namespace
    WHERE nspname IN (:schema, :reports) AND pg_get_userbyid(nspowner) <> :owner
    UNION ALL
    SELECT CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
           quote_ident(n.nspname) || '.' || quote_ident(c.relname), 2
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname IN (:schema, :reports) AND c.relkind IN ('r', 'p', 'v') AND pg_get_userbyid(c.relowner) <> :owner
    UNION ALL
    SELECT 'ROUTINE', CAST(CAST(p.oid AS regprocedure) AS text), 3
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname IN (:schema, :reports) AND pg_get_userbyid(p.proowner) <> :owner
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = CAST('pg_proc' AS regclass) AND d.objid = p.oid AND d.deptype = 'e')
    -- The schemas first: who takes a table has to be able to create in its schema.
    ORDER BY place
    """
)

#: What the role `name` may do beyond its job, a row each; `job` is owner, worker or reader. Whatever a role may do that
#: it is a member of, it may: if the membership does not inherit, by SET ROLE, and with ADMIN OPTION it can grant itself
#: either. Rights are compared with the few that a job needs, so none has to be thought of here to be seen.
SELECT_EXCESS = text(
    f"""
    WITH RECURSIVE reached (oid) AS (
        SELECT CAST(to_regrole(quote_ident(:name)) AS oid)
        UNION
        SELECT m.roleid FROM reached JOIN pg_auth_members AS m ON m.member = reached.oid
    ), being AS (
        SELECT r.*,
            CASE WHEN rolname = :name THEN '' ELSE 'is a member of ' || quote_ident(rolname) || ', which ' END AS who
        FROM reached JOIN pg_roles AS r ON r.oid = reached.oid
    ), ours AS (
        SELECT oid, nspname, nspowner, nspname = :reports AS is_reports FROM pg_namespace
        WHERE nspname IN (:schema, :reports)
    ), relations AS (
        SELECT c.oid, relname, relowner, is_reports, is_reports OR relkind = 'S' OR relname IN {_KEPT} AS is_only_read
        FROM pg_class AS c JOIN ours ON ours.oid = relnamespace WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
    ), held AS (
        SELECT relname, is_reports, is_only_read, privilege, option
        FROM being, relations,
            unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN'])
                AS p (privilege),
            unnest(ARRAY['', ' WITH GRANT OPTION']) AS o (option)
        -- Of a superuser or an owner there would be no end.
        WHERE NOT rolsuper AND relowner NOT IN (SELECT oid FROM reached) AND CASE
            WHEN privilege = 'MAINTAIN' AND current_setting('server_version_num')::int < 170000 THEN false
            WHEN privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                THEN has_any_column_privilege(being.oid, relations.oid, privilege || option)
            ELSE has_table_privilege(being.oid, relations.oid, privilege || option) END
        UNION ALL
        -- Of what the owner is going to make. What is given in every schema is given in that of the reports.
        SELECT 'what is to come', COALESCE(is_reports, true), COALESCE(is_reports, true), privilege_type,
            CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END
        FROM pg_default_acl AS d LEFT JOIN ours ON ours.oid = defaclnamespace, aclexplode(defaclacl)
        WHERE defaclrole = to_regrole(quote_ident(:owner)) AND defaclobjtype = 'r'
          AND (defaclnamespace = 0 OR ours.oid IS NOT NULL) AND (grantee = 0 OR grantee IN (SELECT oid FROM reached))
    )
    SELECT who || attribute FROM being, LATERAL (VALUES
        ('is a superuser', rolsuper), ('may create roles', rolcreaterole), ('may create databases', rolcreatedb),
        ('may replicate', rolreplication), ('bypasses row security', rolbypassrls)) AS of_role (attribute, has)
    WHERE has
    UNION ALL
    SELECT 'is a member of ' || quote_ident(rolname) FROM being
    WHERE rolname <> :name AND (:job = 'reader' OR rolname = :owner
        -- Of the server's own, what only looks at its state.
        OR starts_with(rolname, 'pg_')
           AND rolname NOT IN ('pg_monitor', 'pg_read_all_settings', 'pg_read_all_stats', 'pg_stat_scan_tables'))
    UNION ALL
    SELECT who || 'owns the database' FROM being JOIN pg_database AS d ON d.datdba = being.oid
    WHERE d.datname = current_database()
    UNION ALL
    SELECT who || 'owns the schema ' || nspname FROM being JOIN ours ON nspowner = being.oid WHERE :job <> 'owner'
    UNION ALL
    SELECT who || 'owns ' || string_agg(relname, ' and ' ORDER BY relname)
    FROM being JOIN relations ON relowner = being.oid WHERE :job <> 'owner' GROUP BY who
    UNION ALL
    SELECT who || 'may create in the database' FROM being
    WHERE NOT rolsuper AND has_database_privilege(oid, current_database(), 'CREATE')
    UNION ALL
    SELECT DISTINCT 'may create in the schema ' || nspname || CASE WHEN a.grantee = 0 THEN ', as everybody' ELSE '' END
    FROM being, pg_namespace AS n LEFT JOIN LATERAL aclexplode(n.nspacl) AS a
        ON a.grantee = 0 AND a.privilege_type = 'CREATE'
    WHERE NOT rolsuper AND (nspname = 'public' OR nspname IN (:schema, :reports) AND :job <> 'owner'
      AND nspowner NOT IN (SELECT oid FROM reached))
      AND has_schema_privilege(being.oid, n.oid, 'CREATE')
    UNION ALL
    SELECT 'may use the schema ' || :schema
    WHERE :job = 'reader' AND has_schema_privilege(:name, quote_ident(:schema)::regnamespace, 'USAGE')
    UNION ALL
    SELECT 'may ' || privilege || option || ' on ' || string_agg(DISTINCT relname, ' and ')
    FROM held
    WHERE :job <> 'owner' AND (option <> '' OR NOT CASE
        WHEN :job = 'reader' THEN is_reports AND privilege = 'SELECT'
        WHEN is_only_read THEN privilege = 'SELECT'
        ELSE privilege IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE') END)
    GROUP BY privilege, option
    """  # noqa: S608 - names of our own
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
    # Who writes a row runs the functions that check it; everybody may, unless somebody has taken that away.
    yield f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {tables} TO {role}"
    yield f"GRANT SELECT ON ALL TABLES IN SCHEMA {reports} TO {role}"
    yield from _by_default(owner, tables, "EXECUTE", role, on="FUNCTIONS")
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
        yield f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {quoted(one)} FROM {quoted(name)}"
        yield f"REVOKE ALL ON SCHEMA {quoted(one)} FROM {quoted(name)}"


def _by_default(owner: str, schema: str, rights: str, role: str, *, on: str = "TABLES") -> Iterator[str]:
    # So that what a later migration makes, or makes anew, is covered too.
    for change in (f"REVOKE ALL ON {on} FROM {role}", f"GRANT {rights} ON {on} TO {role}"):
        yield f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(owner)} IN SCHEMA {schema} {change}"


def connect(database: str, name: str) -> str:
    """Lets a role connect, where not everybody may."""
    return f"GRANT CONNECT ON DATABASE {quoted(database)} TO {quoted(name)}"


def join(owner: str) -> str:
    """Makes this session's role a member of the owner: only so may one that is no superuser give things to it."""
    return f"GRANT {quoted(owner)} TO CURRENT_USER"
