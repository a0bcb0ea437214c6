"""Statements of the change feed. What is read, and in which order, `solti_store.rules.feed_position` says.

As text, since Core would say the same with less clarity; every value is bound.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, BindParameter, Interval, Text, bindparam, text

from solti_store.sql.driver import Prepared
from solti_store.sql.types import BinaryArray, Instant

__all__ = ["BEGIN", "DELETE_EVENTS", "ENSURE", "FEED", "GO_ON", "LOCK", "RENEW"]

#: What a reader has to know before it reads. `is_valid` is false in a database that was restored from a dump, where the
#: row was written by a transaction of another cluster, and null where somebody emptied the table. A standby's snapshots
#: leave out transactions that go on.
FEED = Prepared(
    text("""
    SELECT pg_is_in_recovery() AS is_standby,
           CAST(CAST(f.xmin AS text) AS bigint) = CAST(CAST(f.written_by AS text) AS bigint) & 4294967295
               AND f.written_by < pg_snapshot_xmax(pg_current_snapshot()) AS is_valid,
           f.epoch || CASE WHEN pg_is_in_recovery() THEN ''
                           ELSE '.' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END
               -- A copy by CREATE DATABASE … TEMPLATE has the same row.
               || '.' || (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()) AS epoch,
           CAST(pg_current_snapshot() AS text) AS snapshot,
           CAST(CAST(GREATEST(f.pruned_xid, (
               SELECT e.xid FROM solti.task_events AS e
               WHERE e.xid < pg_snapshot_xmax(pg_current_snapshot()) ORDER BY e.xid DESC LIMIT 1
           )) AS text) AS bigint) AS newest
    FROM (SELECT) AS one LEFT JOIN solti.feed AS f ON true
    """)
)

#: Begins a new epoch, for a database that was restored. The transactions of its events are of another cluster, which
#: may have been far ahead: they would be new again when this one comes to their numbers, and be pruned only then.
RENEW = Prepared(
    text("""
    WITH kept AS (UPDATE solti.task_events SET xid = pg_current_xact_id())
    UPDATE solti.feed
    SET epoch = gen_random_uuid(), written_by = pg_current_xact_id(), pruned_xid = pg_current_xact_id()
    """)
)

#: Of several that see the same restored database, one begins the new epoch. First they see to it that there is a row to
#: lock: one that no transaction wrote, and so is not valid yet.
ENSURE = Prepared(text("INSERT INTO solti.feed (written_by) VALUES ('0') ON CONFLICT DO NOTHING"))
LOCK = Prepared(text("SELECT FROM solti.feed FOR UPDATE"))

#: Up to `limit` events after a number, in their order: of transactions from `since` on, and of the `ended` ones, as far
#: as they are over in the snapshot `within`. Which labels a task had right after an event: those from before the next
#: event that changed them, or its present ones. At least one row, with no event if there is none: which events may be
#: gone must be of the same snapshot as those that are there.
#:
#: At the beginning of a look by the index of transactions, and in order of the numbers then, for they may begin
#: anywhere; later pages of a long look go by the numbers, from the first of them on: what a late transaction wrote may
#: lie far before, and each page would pass all that is between.
_BEGIN = """
        SELECT event FROM (
            SELECT event FROM solti.task_events
            WHERE xid >= CAST(:since AS xid8) AND pg_visible_in_snapshot(xid, CAST(:within AS pg_snapshot))
            OFFSET 0
        ) AS of_new
        ORDER BY event LIMIT 1000"""
_GO_ON = """
        SELECT event FROM solti.task_events
        WHERE event > GREATEST(:after, :first - 1)
          AND xid >= CAST(:since AS xid8) AND pg_visible_in_snapshot(xid, CAST(:within AS pg_snapshot))
        ORDER BY event LIMIT 1000"""


def _read(fresh: str, *first: BindParameter[int]) -> Prepared:
    return Prepared(
        text(f"""
    WITH fresh AS ({fresh}
    ), late AS (
        SELECT of_one.event FROM unnest(CAST(CAST(:ended AS text[]) AS xid8[])) AS ended (xid) CROSS JOIN LATERAL (
            SELECT e.event FROM solti.task_events AS e
            -- As a range, or the planner may read the whole table.
            WHERE e.xid >= ended.xid AND e.xid <= ended.xid AND e.event > :after
            ORDER BY e.xid
        ) AS of_one
        ORDER BY event LIMIT 1000
    ), chosen AS (
        SELECT event FROM (SELECT event FROM fresh UNION ALL SELECT event FROM late) AS all_new
        ORDER BY event LIMIT :limit
    )
    SELECT (SELECT min(event) FROM fresh) AS first, f.pruned, CAST(CAST(f.pruned_xid AS text) AS bigint) AS pruned_xid,
           e.event, e.at, e.seq, e.id, e.type, e.resource_version AS event_version, e.phase AS event_phase,
           e.phase_before, e.attempt AS event_attempt,
           CAST(e.detail AS text) AS detail, CAST(e.labels_before AS text) AS labels_before,
           CAST(COALESCE(
               (SELECT n.labels_before FROM solti.task_events AS n
                WHERE n.seq = e.seq AND n.event > e.event AND n.labels_before IS NOT NULL
                ORDER BY n.event LIMIT 1),
               t.labels) AS text) AS labels,
           t.generation, t.created_at, CAST(t.spec AS text) AS spec,
           s.resource_version, s.updated_at, s.phase, s.attempt, s.exit_code, s.error
    FROM solti.feed AS f
    LEFT JOIN (chosen JOIN solti.task_events AS e USING (event)) ON true
    LEFT JOIN solti.tasks AS t ON t.seq = e.seq
    LEFT JOIN solti.task_status AS s ON s.seq = e.seq
    ORDER BY event
    """).bindparams(  # noqa: S608 - constants
            bindparam("after", type_=BigInteger),
            *first,
            bindparam("since", type_=Text),
            bindparam("ended", type_=BinaryArray()),
            bindparam("within", type_=Text),
            bindparam("limit", type_=BigInteger),
        )
    )


BEGIN = _read(_BEGIN)
GO_ON = _read(_GO_ON, bindparam("first", type_=BigInteger))

#: Deletes up to `limit` of the oldest events, if they are older, and of transactions before all that go on: to no token
#: of now is one of those, or one before them, not over.
DELETE_EVENTS = Prepared(
    text("""
    WITH oldest AS (
        SELECT event, at, xid FROM solti.task_events ORDER BY event LIMIT :limit
    ), old AS (
        SELECT event FROM oldest
        WHERE at < COALESCE(:now, statement_timestamp()) - :kept AND xid < pg_snapshot_xmin(pg_current_snapshot())
    ), gone AS (
        DELETE FROM solti.task_events WHERE event IN (SELECT event FROM old) RETURNING event, xid
    )
    UPDATE solti.feed
    SET pruned = GREATEST(pruned, (SELECT max(event) FROM gone)),
        pruned_xid = GREATEST(pruned_xid, (SELECT xid FROM gone ORDER BY xid DESC LIMIT 1)),
        written_by = pg_current_xact_id()
    WHERE EXISTS (SELECT FROM gone)
    RETURNING (SELECT count(*) FROM gone) AS events
    """).bindparams(
        bindparam("limit", type_=BigInteger),
        bindparam("now", type_=Instant),
        bindparam("kept", type_=Interval),
    )
)
