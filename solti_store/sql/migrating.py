"""What migrations ask the database beside their own statements: who blocks, what is broken, how far a backfill is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from solti_store.sql.driver import Prepared
from solti_store.sql.naming import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "BLOCKERS",
    "BUILDING",
    "CHECK_CLIENT",
    "FIND_INDEX",
    "FORGET_BACKFILL",
    "INVALID_INDEXES",
    "LOCK",
    "MISSING_COLUMNS",
    "PRIMARY_KEY",
    "REMEMBER_BACKFILL",
    "SET_LOCK_TIMEOUT",
    "SET_PATIENT",
    "SET_PLAIN_SEARCH_PATH",
    "SET_SETTINGS",
    "SHOW_LOCK_TIMEOUT",
    "SHOW_SETTINGS",
    "UNLOCK",
    "backfill_all",
    "backfill_batch",
]

# What one session waits for, and for whom. A wait for a row or a snapshot names no relation.
BLOCKERS = """
    SELECT (SELECT format('%%I.%%I', n.nspname, c.relname)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = w.relation),
           w.locktype, a.pid, a.state, left(a.query, 200),
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8
    FROM pg_locks w, unnest(pg_blocking_pids(w.pid)) AS blocker (pid)
    JOIN pg_stat_activity a ON a.pid = blocker.pid
    WHERE w.pid = %s AND NOT w.granted
"""

LOCK = text("SELECT pg_try_advisory_lock(:key)")
UNLOCK = text("SELECT pg_advisory_unlock(:key)")

#: What a migrator changes of its session, so that it can be put back: the connection may be of somebody's pool.
SHOW_SETTINGS = text("""
    SELECT name, setting FROM pg_settings WHERE name IN (
        'lock_timeout', 'statement_timeout', 'transaction_timeout', 'idle_session_timeout',
        'idle_in_transaction_session_timeout', 'default_transaction_isolation', 'client_connection_check_interval',
        'search_path')
""")
SET_SETTINGS = text("""
    SELECT count(set_config(name, value, false))
    FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) AS before (name, value)
""")

#: What a role or a database has as limits is meant for queries. A backfill beside writers has to see what they
#: committed, and in a stricter isolation would lose against them.
SET_PATIENT = text("""
    SELECT count(set_config(name, CASE WHEN vartype = 'integer' THEN '0' ELSE 'read committed' END, false))
    FROM pg_settings WHERE name IN (
        'statement_timeout', 'transaction_timeout', 'idle_session_timeout', 'idle_in_transaction_session_timeout',
        'default_transaction_isolation')
""")

SET_PLAIN_SEARCH_PATH = text("SET search_path = public")

# The server then ends what a killed migrator had begun, which it would not notice before the statement's own end.
# Refused where the server's system cannot tell.
CHECK_CLIENT = text("""
    DO $$ BEGIN
        SET client_connection_check_interval = '1s';
    EXCEPTION WHEN invalid_parameter_value THEN NULL;
    END $$
""")

FIND_INDEX = Prepared(
    text("""
    SELECT i.indisvalid AS is_valid, i.indisunique AS is_unique, CAST(t.relname AS text) AS "table"
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    WHERE c.relname = :name AND c.relnamespace = to_regnamespace(quote_ident(:schema))
""")
)

#: The tables of this database of which an index is being built. Which index, and which table, the view of builds tells
#: only to a member of the builder or of pg_read_all_stats; what the builder has locked, everybody may see.
BUILDING = """
    SELECT l.relation FROM pg_stat_progress_create_index p
    JOIN pg_locks l ON l.pid = p.pid AND l.database = p.datid AND l.locktype = 'relation' AND l.granted
    WHERE p.datname = current_database() AND l.mode IN ('ShareUpdateExclusiveLock', 'ShareLock', 'AccessExclusiveLock')
"""

# An index that is being built is not valid either. The doctor's question also takes locks, to measure.
INVALID_INDEXES = Prepared(
    text(f"""
    SELECT CAST(n.nspname AS text) AS schema, CAST(c.relname AS text) AS name, CAST(t.relname AS text) AS "table"
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT (i.indisvalid AND i.indisready) AND n.nspname = :schema
      AND i.indrelid NOT IN (SELECT relation FROM ({BUILDING}) AS building)
    ORDER BY 2
""")  # noqa: S608 - SQL of our own
)

PRIMARY_KEY = Prepared(
    text("""
    SELECT quote_ident(a.attname) AS name, format_type(a.atttypid, a.atttypmod) AS type
    FROM pg_index i
    CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, position)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
    WHERE i.indrelid = to_regclass(:relation) AND i.indisprimary
    ORDER BY k.position
""")
)

MISSING_COLUMNS = Prepared(
    text("""
    SELECT name FROM unnest(CAST(:columns AS text[])) AS name WHERE NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass(:relation) AND attname = name AND attnum > 0 AND NOT attisdropped)
""")
)

# The identity tells apart what bears the same name: a column that was dropped and made again has another number.
REMEMBER_BACKFILL = Prepared(
    text("""
    WITH target AS (
        SELECT c.oid, greatest(c.reltuples, 0)::bigint AS estimate,
               c.oid || ':' || (SELECT string_agg(attnum::text, ',' ORDER BY attnum) FROM pg_attribute
                                WHERE attrelid = c.oid AND attname = ANY (:columns)) || ':' || :digest AS identity
        FROM pg_class c WHERE c.oid = to_regclass(:relation)
    )
    INSERT INTO solti.backfills AS b (name, identity, estimate) SELECT :name, identity, estimate FROM target
    ON CONFLICT (name) DO UPDATE SET
        identity = EXCLUDED.identity,
        estimate = EXCLUDED.estimate,
        position = CASE WHEN b.identity = EXCLUDED.identity THEN b.position END,
        seen = CASE WHEN b.identity = EXCLUDED.identity THEN b.seen ELSE 0 END,
        changed = CASE WHEN b.identity = EXCLUDED.identity THEN b.changed ELSE 0 END
    RETURNING position, seen, changed, estimate
""")
)

FORGET_BACKFILL = Prepared(text("DELETE FROM solti.backfills WHERE name = :name"))

SHOW_LOCK_TIMEOUT = text("SHOW lock_timeout")
SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :value, false)")


def backfill_all(relation: str, values: Mapping[str, str], where: str) -> str:
    """The backfill as one statement."""
    return f"UPDATE {relation} SET {_assignments(values)} WHERE {where}"  # noqa: S608 - a migration's own SQL


def backfill_batch(
    relation: str, values: Mapping[str, str], where: str, key: Sequence[tuple[str, str]], *, first: bool
) -> Prepared:
    """One batch of a backfill and its place in the table, in one statement, so in one transaction.

    Takes `:name`, `:size` and, unless it is the first of a pass, `:position`: the last key of the batch before.
    """
    names = [_escaped(name) for name, _ in key]
    keys = ", ".join(names)
    qualified = ", ".join(f"t.{name}" for name in names)
    after = ", ".join(f"((CAST(:position AS text[]))[{n}])::{_escaped(kind)}" for n, (_, kind) in enumerate(key, 1))
    last = ", ".join(f"{name}::text" for name in names)
    descending = ", ".join(f"{name} DESC" for name in names)
    return Prepared(
        text(f"""
        WITH batch AS MATERIALIZED (
            SELECT {keys} FROM {relation} {"" if first else f"WHERE ({keys}) > ({after})"}
            ORDER BY {keys} LIMIT :size
        ), changed AS (
            UPDATE {relation} AS t SET {_escaped(_assignments(values))} FROM batch
            WHERE ({qualified}) = ({", ".join(f"batch.{name}" for name in names)}) AND ({_escaped(where)})
            RETURNING 1
        )
        UPDATE solti.backfills SET
            position = (SELECT ARRAY[{last}] FROM batch ORDER BY {descending} LIMIT 1),
            seen = seen + (SELECT count(*) FROM batch),
            changed = changed + (SELECT count(*) FROM changed)
        WHERE name = :name
        RETURNING position, seen, changed
    """)  # noqa: S608 - names from the catalogue, and a migration's own SQL
    )


def _assignments(values: Mapping[str, str]) -> str:
    return ", ".join(f"{quoted(column)} = {expression}" for column, expression in values.items())


def _escaped(expression: str) -> str:
    """For SQLAlchemy, to which a colon begins a parameter."""
    return expression.replace(":", r"\:")
