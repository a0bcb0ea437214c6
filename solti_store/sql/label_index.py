"""Statements of the label index: what it does not know yet, its postings, and bringing it up to date.

As text, since Core would say the same with less clarity; every value is bound.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, LargeBinary, TextClause, bindparam, text

from solti_store.rules.postings import SEGMENT_BITS, SEGMENT_SIZE
from solti_store.sql.driver import Prepared
from solti_store.sql.types import BinaryArray, Instant

__all__ = [
    "ADVANCE",
    "CLEAR",
    "DROP_SEGMENT",
    "FRESH",
    "FRESH_MAX",
    "LOCK",
    "NEXT_SEGMENT",
    "POSTINGS",
    "POSTINGS_BETWEEN",
    "PREVIOUS_SEGMENT",
    "RENUMBER",
    "REPLACE_SEGMENT",
    "RESTORE",
    "SEGMENTS",
    "SEGMENTS_OF",
    "SEGMENT_LABELS",
    "SPARSE",
    "STEP_ROWS",
    "UNKNOWN",
]

#: The most tasks that a listing takes from outside of the index; past it, it walks the table.
FRESH_MAX: Final = 8192
#: The most tasks that one step brings into the index, unless a single transaction set the labels of more.
STEP_ROWS: Final = 8 * SEGMENT_SIZE

_CONSTANTS: Final = {
    "bits": SEGMENT_BITS,
    "mask": SEGMENT_SIZE - 1,
    "fresh": FRESH_MAX + 1,
    "rows": STEP_ROWS + 1,
    # A restored dump keeps the numbers of transactions that this cluster never had; the row's own xmin is of this one.
    # That is 32 bits of it, so that a young cluster might agree by chance: then the horizon gives it away.
    "valid": "CAST(CAST(i.xmin AS text) AS bigint) = CAST(CAST(i.written_by AS text) AS bigint) & 4294967295"
    " AND i.horizon <= pg_snapshot_xmax(pg_current_snapshot())",
    # Of each transaction that was open when the index passed it; as a range, since for `= ANY` the planner may read
    # the whole table (52 ms of 200,000 tasks from five transactions).
    "left_open": "unnest((SELECT open_xids FROM solti.label_index)) AS open (xid) CROSS JOIN LATERAL ("
    "SELECT seq, labels_xid FROM solti.tasks WHERE labels_xid >= open.xid AND labels_xid <= open.xid"
    " ORDER BY labels_xid",
}


def _text(statement: str, *arrays: str, **types: Any) -> TextClause:  # noqa: ANN401 - SQLAlchemy types
    # `<name>` stands for a constant of this module; no value from outside comes this way.
    for name, value in _CONSTANTS.items():
        statement = statement.replace(f"<{name}>", str(value))
    return text(statement).bindparams(
        *(bindparam(name, type_=BinaryArray()) for name in arrays),
        *(bindparam(name, type_=type_) for name, type_ in types.items()),
    )


#: Whether the index can be used, its last segment, and the tasks whose labels it does not know, in one snapshot.
#: Order and constant limit hold the planner to the index: of `>=` alone it expects a third of the table.
FRESH = Prepared(
    _text("""
    SELECT COALESCE(<valid>, false) AS valid, (SELECT max(segment) FROM solti.label_segments) AS last_segment,
           current_setting('transaction_read_only') = 'off'
               AND has_table_privilege('solti.label_index', 'UPDATE') AS writable,
           ARRAY(
               (SELECT seq FROM solti.tasks
                WHERE labels_xid >= (SELECT horizon FROM solti.label_index)
                ORDER BY labels_xid LIMIT <fresh>)
               UNION
               (SELECT found.seq FROM <left_open> LIMIT <fresh>) AS found LIMIT <fresh>)
           ) AS seqs
    FROM (VALUES (1)) AS always LEFT JOIN solti.label_index AS i ON true
    """)
)

#: For each term the postings with its number, in a range of segments: one stretch of the index a term.
POSTINGS = Prepared(
    _text(
        """
    SELECT wanted.lookup, found.segment, found.members
    FROM unnest(CAST(:terms AS uuid[]), CAST(:lows AS bigint[])) WITH ORDINALITY AS wanted (term, low, lookup)
    CROSS JOIN LATERAL (
        SELECT segment, members FROM solti.label_postings AS p
        WHERE p.term = wanted.term AND p.segment BETWEEN :first_segment AND :last_segment AND p.number = wanted.low
        OFFSET 0
    ) AS found
    """,
        "terms",
        "lows",
        first_segment=BigInteger,
        last_segment=BigInteger,
    )
)

#: For each term the postings with a number in a range, in some segments: one descent of the index a term and segment,
#: so that numbers out of range are skipped and not read.
POSTINGS_BETWEEN = Prepared(
    _text(
        """
    SELECT wanted.lookup, chosen.segment, found.members
    FROM unnest(CAST(:terms AS uuid[]), CAST(:lows AS bigint[]), CAST(:highs AS bigint[]))
             WITH ORDINALITY AS wanted (term, low, high, lookup)
    CROSS JOIN unnest(CAST(:segments AS bigint[])) AS chosen (segment)
    CROSS JOIN LATERAL (
        SELECT members FROM solti.label_postings AS p
        WHERE p.term = wanted.term AND p.segment = chosen.segment AND p.number BETWEEN wanted.low AND wanted.high
        OFFSET 0
    ) AS found
    """,
        "terms",
        "lows",
        "highs",
        "segments",
    )
)

#: All tasks of each segment in a range that has some created in a period; an end of it that is NULL is open.
SEGMENTS = Prepared(
    _text(
        """
    SELECT segment, members FROM solti.label_segments
    WHERE segment BETWEEN :first_segment AND :last_segment
      AND (CAST(:since AS timestamptz) IS NULL OR created_to >= :since)
      AND (CAST(:before AS timestamptz) IS NULL OR created_from < :before)
    """,
        first_segment=BigInteger,
        last_segment=BigInteger,
        since=Instant,
        before=Instant,
    )
)

#: The segment after, or before, one: what lies between was never used, or is deleted.
NEXT_SEGMENT = Prepared(
    _text("SELECT min(segment) AS segment FROM solti.label_segments WHERE segment > :than", than=BigInteger)
)
PREVIOUS_SEGMENT = Prepared(
    _text("SELECT max(segment) AS segment FROM solti.label_segments WHERE segment < :than", than=BigInteger)
)

#: Takes the right to change the index until the transaction ends; no row when another has it.
LOCK = Prepared(_text("SELECT <valid> AS valid FROM solti.label_index AS i FOR UPDATE SKIP LOCKED"))

#: Makes the row that LOCK looks for, if somebody has removed it: of an index that is not valid.
RESTORE = Prepared(
    _text("""
    INSERT INTO solti.label_index (horizon, open_xids, written_by)
    SELECT '0', '{}', '0' WHERE NOT EXISTS (SELECT FROM solti.label_index) ON CONFLICT DO NOTHING RETURNING id
    """)
)

#: What the index does not know, by the transactions that set the labels and in their order, and the snapshot that shows
#: it. The transactions that were open when the index came this far are all looked at, those after them up to the limit.
UNKNOWN = Prepared(
    _text("""
    SELECT CAST(CAST(labels_xid AS text) AS bigint) AS xid, seq >> <bits> AS segment, count(*) AS tasks,
           (SELECT CAST(CAST(horizon AS text) AS bigint) FROM solti.label_index) AS horizon,
           CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint) AS snapshot_xmax,
           ARRAY(
               SELECT CAST(CAST(xid AS text) AS bigint) FROM pg_snapshot_xip(pg_current_snapshot()) AS open (xid)
           ) AS snapshot_xip
    FROM (
        (SELECT found.labels_xid, found.seq FROM <left_open>) AS found)
        UNION ALL
        (SELECT labels_xid, seq FROM solti.tasks
         WHERE labels_xid >= (SELECT horizon FROM solti.label_index)
         ORDER BY labels_xid LIMIT <rows>)
    ) AS unknown
    GROUP BY labels_xid, seq >> <bits>
    ORDER BY labels_xid
    """)
)

#: The segments of all tasks of one transaction.
SEGMENTS_OF = Prepared(
    _text("SELECT DISTINCT seq >> <bits> AS segment FROM solti.tasks WHERE labels_xid = CAST(:xid AS xid8)")
)

#: The labels of a segment's tasks.
SEGMENT_LABELS = Prepared(
    _text(
        """
    SELECT CAST(seq & <mask> AS integer) AS member, created_at, CAST(labels AS text) AS labels FROM solti.tasks
    WHERE seq BETWEEN :segment << <bits> AND ((:segment + 1) << <bits>) - 1 ORDER BY seq
    """,
        segment=BigInteger,
    )
)

#: Segments of which more than a quarter is deleted, among sixteen taken at random: a delete tells the index nothing.
SPARSE = Prepared(
    _text("""
    SELECT segment FROM (
        SELECT segment, members FROM solti.label_segments
        WHERE segment >= (SELECT CAST(random() * max(segment) AS bigint) FROM solti.label_segments)
        ORDER BY segment LIMIT 16
    ) AS chosen
    WHERE 4 * (SELECT count(*) FROM solti.tasks WHERE seq BETWEEN segment << <bits> AND ((segment + 1) << <bits>) - 1)
        < 3 * CASE octet_length(members) WHEN 512 THEN bit_count(members) ELSE octet_length(members) / 2 END
    """)
)

#: Removes a segment that has no task any more.
DROP_SEGMENT = Prepared(
    _text(
        """
    WITH postings AS (DELETE FROM solti.label_postings WHERE segment = :segment)
    DELETE FROM solti.label_segments WHERE segment = :segment
    """,
        segment=BigInteger,
    )
)

#: Replaces a segment's postings.
REPLACE_SEGMENT = Prepared(
    _text(
        """
    WITH gone AS (
        DELETE FROM solti.label_postings AS p
        WHERE p.segment = :segment AND NOT EXISTS (
            SELECT FROM unnest(CAST(:terms AS uuid[]), CAST(:numbers AS bigint[])) AS kept (term, number)
            WHERE kept.term = p.term AND kept.number = p.number)
    ), everyone AS (
        INSERT INTO solti.label_segments (segment, members, created_from, created_to)
        VALUES (:segment, :everyone, :created_from, :created_to)
        ON CONFLICT (segment) DO UPDATE SET members = excluded.members, created_from = excluded.created_from,
                                            created_to = excluded.created_to
    )
    INSERT INTO solti.label_postings AS p (term, segment, number, members)
    SELECT term, :segment, number, members
    FROM unnest(CAST(:terms AS uuid[]), CAST(:numbers AS bigint[]), CAST(:members AS bytea[]))
             AS given (term, number, members)
    ON CONFLICT (term, segment, number) DO UPDATE SET members = excluded.members WHERE p.members <> excluded.members
    """,
        "terms",
        "numbers",
        "members",
        segment=BigInteger,
        everyone=LargeBinary,
        created_from=Instant,
        created_to=Instant,
    )
)

#: From now on the index knows what transactions below `horizon` set, except the open ones.
ADVANCE = Prepared(
    _text(
        """
    UPDATE solti.label_index SET horizon = CAST(CAST(:horizon AS text) AS xid8), written_by = pg_current_xact_id(),
           open_xids = CAST(CAST(:open AS text[]) AS xid8[])
    """,
        "open",
    )
)

#: Gives tasks of a restored dump a transaction that this cluster has had: a later one would never be known.
RENUMBER = Prepared(
    _text("""
    WITH foreign_tasks AS MATERIALIZED (
        SELECT seq FROM solti.tasks
        WHERE labels_xid >= pg_snapshot_xmax(pg_current_snapshot()) AND labels_xid <> pg_current_xact_id()
        ORDER BY labels_xid DESC LIMIT <rows> FOR UPDATE SKIP LOCKED
    )
    UPDATE solti.tasks AS t SET labels_xid = pg_current_xact_id() FROM foreign_tasks AS f WHERE t.seq = f.seq
    RETURNING t.seq
    """)
)

#: Empties an index that is worth nothing; the next step begins anew.
CLEAR = (
    Prepared(_text("DELETE FROM solti.label_postings")),
    Prepared(_text("DELETE FROM solti.label_segments")),
    Prepared(_text("UPDATE solti.label_index SET horizon = '0', open_xids = '{}', written_by = pg_current_xact_id()")),
)
