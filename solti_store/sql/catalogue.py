"""What the catalogue knows of our relations; reading it locks none of them."""

from __future__ import annotations

from sqlalchemy import text

from solti_store.sql.driver import Prepared

__all__ = ["NOT_NULL", "REFERENCES", "RELATIONS"]

# Pages and rows as of the last VACUUM or ANALYZE: to ask for the size itself takes a lock. Of the statistics, the count
# of live rows is there even before the first ANALYZE.
RELATIONS = Prepared(
    text("""
    SELECT n.nspname || '.' || c.relname AS name, n.nspname || '.' || t.relname AS owner,
           CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint ELSE pg_stat_get_live_tuples(c.oid) END AS rows,
           block.size * (c.relpages + COALESCE(o.relpages, 0)) AS bytes,
           block.size * COALESCE((SELECT sum(x.relpages) FROM pg_index j JOIN pg_class x ON x.oid = j.indexrelid
                                  WHERE j.indrelid = c.oid), 0)::bigint AS index_bytes
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    CROSS JOIN (SELECT current_setting('block_size')::bigint) AS block (size)
    LEFT JOIN pg_class o ON o.oid = c.reltoastrelid
    LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = i.indrelid
    WHERE n.nspname = ANY (CAST(:schemas AS text[]))
""")
)

REFERENCES = Prepared(
    text("""
    SELECT n.nspname || '.' || c.relname AS name, m.nspname || '.' || r.relname AS other
    FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class r ON r.oid = f.confrelid JOIN pg_namespace m ON m.oid = r.relnamespace
    WHERE f.contype = 'f' AND n.nspname = ANY (CAST(:schemas AS text[]))
""")
)

# Declared so, or by a valid CHECK of that column alone; read from its tree, because to write it out takes a lock.
NOT_NULL = Prepared(
    text("""
    SELECT n.nspname || '.' || c.relname AS name, a.attname AS column_name
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (CAST(:schemas AS text[])) AND a.attnum > 0 AND NOT a.attisdropped
      AND (a.attnotnull OR EXISTS (
        SELECT FROM pg_constraint k
        WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.convalidated AND k.conkey = ARRAY[a.attnum]
          AND k.conbin::text ~ '^[{]NULLTEST .arg [{]VAR [^{}]*[}] .nulltesttype 1 [^{}]*[}]$'))
""")
)
