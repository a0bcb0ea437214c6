"""What the system's catalogue and statistics say of a server and of our tables; nothing here reads a table of ours.

All of it may be asked on a standby, and by a role that may see little: what is hidden comes back as NULL.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from sqlalchemy import Interval, Text, bindparam, text
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.schema import AddConstraint, CreateIndex

from solti_store.rules.doctor_tables import Expected
from solti_store.rules.reports import REPORTS
from solti_store.sql.driver import Prepared
from solti_store.sql.migrating import BUILDING
from solti_store.sql.naming import SCHEMA
from solti_store.sql.tables import metadata
from solti_store.sql.types import BinaryArray

__all__ = [
    "BOUND",
    "CLOCK",
    "COMMIT_WAITS",
    "CONNECTIONS",
    "HAS_HISTORY",
    "INDEXES",
    "LOCKS",
    "NAMES",
    "PREPARED",
    "ROLE_SETTINGS",
    "SERVER",
    "SETTINGS",
    "SLOTS",
    "STANDBYS",
    "TABLES",
    "TRANSACTIONS",
    "UNVALIDATED",
    "VACUUM",
    "expected",
]


def _text(statement: str, *arrays: str, **types: Any) -> Prepared:  # noqa: ANN401 - SQLAlchemy types
    return Prepared(
        text(statement).bindparams(
            *(bindparam(name, type_=BinaryArray()) for name in arrays),
            *(bindparam(name, type_=type_) for name, type_ in types.items()),
        )
    )


#: For the rest of the transaction: nothing is written, and nothing takes or waits long.
BOUND = _text(
    """
    SELECT set_config('transaction_read_only', 'on', true), set_config('statement_timeout', :timeout_ms, true),
           set_config('lock_timeout', '500', true), set_config('jit', 'off', true)
    """,
    timeout_ms=Text,
)

#: The server; and whether it shows this role what others do.
SERVER = _text(
    """
    SELECT CAST(current_setting('server_version_num') AS integer) AS version, pg_is_in_recovery() AS is_standby,
           current_setting('server_encoding') AS encoding, CAST(current_database() AS text) AS database,
           pg_backend_pid() AS pid, pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all,
           CAST(COALESCE((SELECT sum(relpages) * 8192.0 FROM pg_class
                     WHERE relnamespace = to_regnamespace(quote_ident(:schema))), 0) AS bigint) AS tables_bytes
    """,
    schema=Text,
)

CLOCK = _text("SELECT clock_timestamp() AS moment")
HAS_HISTORY = _text("SELECT to_regclass('solti.schema_history') IS NOT NULL AS is_there")

# --- sessions -----------------------------------------------------------------------------------

#: Sessions in a transaction that bears on our tables, or on the feed: what writes anywhere on the server holds that.
#: A vacuum's own snapshot holds nothing back.
TRANSACTIONS = _text(
    """
    SELECT pid, CAST(COALESCE(usename, '') AS text) AS role, COALESCE(application_name, '') AS application,
           COALESCE(state, '') AS state,
           CAST(extract(epoch FROM clock_timestamp() - xact_start) AS double precision) AS seconds,
           CAST(COALESCE(extract(epoch FROM clock_timestamp() - state_change), 0) AS double precision) AS state_seconds,
           GREATEST(age(backend_xmin), age(backend_xid)) AS xids, backend_xid IS NOT NULL AS writes,
           datname = current_database() AS is_here
    FROM pg_stat_activity AS a
    WHERE pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type NOT IN ('autovacuum worker', 'walsender')
      AND (datname = current_database() OR backend_xid IS NOT NULL)
      AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum AS v WHERE v.pid = a.pid)
    ORDER BY xact_start LIMIT 100
    """
)

PREPARED = _text(
    """
    SELECT gid, CAST(owner AS text) AS owner, CAST(database AS text) AS database,
           CAST(extract(epoch FROM clock_timestamp() - prepared) AS double precision) AS seconds,
           age(transaction) AS xids
    FROM pg_prepared_xacts ORDER BY prepared LIMIT 100
    """
)

SLOTS = _text(
    """
    SELECT CAST(slot_name AS text) AS name, active, age(xmin) AS xids, age(catalog_xmin) AS catalog_xids,
           CAST(pg_wal_lsn_diff(
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn
           ) AS bigint) AS retained_bytes, wal_status
    FROM pg_replication_slots WHERE NOT temporary ORDER BY slot_name LIMIT 100
    """
)

STANDBYS = _text(
    """
    SELECT COALESCE(application_name, '') AS name, pid, age(backend_xmin) AS xids
    FROM pg_stat_replication WHERE backend_xmin IS NOT NULL ORDER BY pid LIMIT 100
    """
)

#: Who waits in this database for longer than `wait`. From the locks, which every role may see.
LOCKS = _text(
    """
    SELECT l.pid, COALESCE((SELECT n.nspname || '.' || c.relname
                            FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                            WHERE c.oid = l.relation), 'a ' || l.locktype) AS "on",
           CAST(extract(epoch FROM clock_timestamp() - l.waitstart) AS double precision) AS seconds,
           pg_blocking_pids(l.pid) AS blockers
    FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
    WHERE NOT l.granted AND l.waitstart < clock_timestamp() - :wait AND a.datname = current_database()
    ORDER BY l.waitstart LIMIT 20
    """,
    wait=Interval,
)

COMMIT_WAITS = _text(
    """
    SELECT CAST(count(*) AS integer) AS sessions,
           CAST(COALESCE(max(extract(epoch FROM clock_timestamp() - query_start)), 0) AS double precision) AS seconds
    FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query_start < clock_timestamp() - :wait
    """,
    wait=Interval,
)

CONNECTIONS = _text(
    """
    SELECT CAST((SELECT sum(numbackends) FROM pg_stat_database) AS integer) AS used,
           (SELECT sum(CAST(setting AS integer) * CASE name WHEN 'max_connections' THEN 1 ELSE -1 END)
            FROM pg_settings
            WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')) AS allowed
    """
)

# --- settings -----------------------------------------------------------------------------------

#: To be asked before the transaction sets some of them for itself.
SETTINGS = _text("SELECT name, setting AS value FROM pg_settings WHERE name = ANY (CAST(:names AS text[]))", "names")

#: Of other roles that may write our tables, in this database.
ROLE_SETTINGS = _text(
    """
    SELECT CAST(r.rolname AS text) AS role, s.setconfig AS given
    FROM pg_db_role_setting AS s JOIN pg_roles AS r ON r.oid = s.setrole
    WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
      AND r.rolname <> session_user AND has_table_privilege(s.setrole, to_regclass(:table), 'UPDATE')
    ORDER BY r.rolname LIMIT 100
    """,
    table=Text,
)

VACUUM = _text(
    """
    SELECT CAST(current_setting('autovacuum_vacuum_threshold') AS double precision) AS threshold,
           CAST(current_setting('autovacuum_vacuum_scale_factor') AS double precision) AS scale,
           CAST(current_setting('autovacuum_analyze_threshold') AS double precision) AS analyze_threshold,
           CAST(current_setting('autovacuum_analyze_scale_factor') AS double precision) AS analyze_scale,
           CAST(current_setting('autovacuum_freeze_max_age') AS integer) AS freeze_max_age,
           CAST(current_setting('autovacuum_max_workers') AS integer) AS workers,
           CAST((SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'autovacuum worker') AS integer) AS busy
    """
)

# --- our tables, by their statistics ------------------------------------------------------------

TABLES = _text(
    """
    SELECT CAST(n.nspname AS text) AS schema, CAST(c.relname AS text) AS name, pg_relation_size(c.oid) AS bytes,
           CAST(c.reltuples AS double precision) AS rows,
           (SELECT CAST(sum((1 - null_frac) * avg_width) AS double precision) FROM pg_stats AS p
            WHERE p.schemaname = n.nspname AND p.tablename = c.relname) AS width,
           COALESCE(s.n_live_tup, 0) AS live, COALESCE(s.n_dead_tup, 0) AS dead,
           COALESCE(s.n_mod_since_analyze, 0) AS changed,
           CAST(extract(epoch FROM clock_timestamp() - GREATEST(s.last_vacuum, s.last_autovacuum)) AS double precision)
               AS vacuumed_seconds,
           CAST(extract(epoch FROM clock_timestamp() - GREATEST(
               s.last_vacuum, s.last_autovacuum, pg_postmaster_start_time())) AS double precision) AS vacuum_wait,
           CAST(extract(epoch FROM clock_timestamp() - GREATEST(
               s.last_analyze, s.last_autoanalyze, pg_postmaster_start_time())) AS double precision) AS analyze_wait,
           age(c.relfrozenxid) AS xids, COALESCE(c.reloptions, '{}') AS options
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_user_tables AS s ON s.relid = c.oid
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND c.relkind = 'r' ORDER BY c.relname
    """,
    "schemas",
)

#: One that is being built right now is not invalid, and may be locked against the question for its size. Which of the
#: table's it is not everybody may see, so none of them is told of meanwhile. Since when their use is counted: never
#: from before the server's start, for the counters do not say when they began.
INDEXES = _text(
    f"""
    SELECT CAST(n.nspname AS text) AS schema, CAST(c.relname AS text) AS name, CAST(t.relname AS text) AS "table",
           i.indisvalid AND i.indisready AS is_valid,
           i.indisunique OR EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid) AS is_rule,
           pg_relation_size(c.oid) AS bytes, CAST(c.reltuples AS double precision) AS rows,
           (SELECT CAST(sum(p.avg_width) AS double precision)
            FROM unnest(CAST(i.indkey AS smallint[])) AS key (attnum)
            JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = key.attnum
            JOIN pg_stats AS p ON p.schemaname = n.nspname AND p.tablename = t.relname AND p.attname = a.attname)
               AS width,
           COALESCE(s.idx_scan, 0) AS scans,
           CAST(extract(epoch FROM clock_timestamp() - GREATEST(pg_postmaster_start_time(),
               (SELECT stats_reset FROM pg_stat_database WHERE datname = current_database()))) AS double precision)
               AS counted_seconds
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_class AS t ON t.oid = i.indrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_user_indexes AS s ON s.indexrelid = c.oid
    WHERE n.nspname = ANY (CAST(:schemas AS text[]))
      AND i.indrelid NOT IN (SELECT relation FROM ({BUILDING}) AS building)
    ORDER BY c.relname
    """,  # noqa: S608 - SQL of our own
    "schemas",
)

#: What there is in our schemas, by kind and name; of columns and constraints `table.name`.
NAMES = _text(
    """
    SELECT CASE c.relkind WHEN 'i' THEN 'index' WHEN 'v' THEN 'view' ELSE 'table' END AS kind,
           CAST(c.relname AS text) AS name
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND c.relkind IN ('r', 'p', 'v', 'i')
    UNION ALL
    SELECT 'column', c.relname || '.' || a.attname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND c.relkind IN ('r', 'p') AND a.attnum > 0
      AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint', c.relname || '.' || k.conname
    FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[]))
    """,
    "schemas",
)

UNVALIDATED = _text(
    """
    SELECT CAST(n.nspname AS text) AS schema, CAST(c.relname AS text) AS "table", CAST(k.conname AS text) AS name
    FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND NOT k.convalidated ORDER BY 2, 3
    """,
    "schemas",
)

_FROM_SCRIPT: Final = (
    "alembic upgrade head --sql  # has the statement that makes it; what was in it is in the last backup"
)


@cache
def expected(schema: str) -> tuple[Expected, ...]:
    """All that `tables.py` and the reports name, with what makes it anew in this schema."""
    found = [Expected("view", one.view, one.view, _FROM_SCRIPT) for one in REPORTS.values()]
    found += [Expected("view", name, name, _FROM_SCRIPT) for name in ("freshness", "version")]
    for table in metadata.sorted_tables:
        found.append(Expected("table", table.name, table.name, _FROM_SCRIPT))
        found += [
            Expected("column", f"{table.name}.{column.name}", table.name, _FROM_SCRIPT)
            for column in table.columns
            if not column.system
        ]
        # Isolated, as is the default, a constraint would be left out wherever its table is made in this process.
        for constraint in table.constraints:
            found.append(
                Expected(
                    "constraint",
                    f"{table.name}.{constraint.name}",
                    table.name,
                    _statement(AddConstraint(constraint, isolate_from_table=False), schema),
                )
            )
        for index in table.indexes:
            made = _statement(CreateIndex(index), schema).replace("INDEX", "INDEX CONCURRENTLY", 1)
            found.append(Expected("index", str(index.name), table.name, made))
    return tuple(found)


def _statement(element: Any, schema: str) -> str:  # noqa: ANN401 - any DDL
    text = element.compile(
        dialect=psycopg.dialect(),  # type: ignore[no-untyped-call]
        schema_translate_map={SCHEMA: schema},
        render_schema_translate=True,
    )
    return f"{text};".replace("%%", "%")
