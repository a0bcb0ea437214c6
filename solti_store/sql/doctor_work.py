"""What our own tables say of work that does not move. Each statement reads a bounded number of index entries.

As text, with the schema's name put in: recursion through an index, which Core says with less clarity.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Interval, bindparam, text

from solti_store.rules.doctor import quoted
from solti_store.sql.driver import Prepared
from solti_store.sql.naming import SCHEMA
from solti_store.sql.tables import FINAL, OWNER

__all__ = ["BACKFILLS", "FEED_HEAD", "FUTURE", "MOST", "OLDEST", "OVERDUE", "QUEUES", "ROUTES", "mend_future"]

#: How many slots with a queue, and routes with something due, are looked at.
MOST: Final = 1000
_RUNNING: Final = 10_000


def _text(statement: str, *intervals: str) -> Prepared:
    values: dict[str, Any] = {"<s>": SCHEMA, "<most>": MOST, "<running>": _RUNNING, "<owner>": OWNER, "<final>": FINAL}
    for name, value in values.items():
        statement = statement.replace(name, str(value))
    return Prepared(text(statement).bindparams(*(bindparam(name, type_=Interval) for name in intervals)))


#: Backfills of migrations that have not ended.
BACKFILLS = _text("SELECT name, seen, estimate FROM <s>.backfills ORDER BY name")

#: Slots in which tasks wait, with what their owners do; only those that may not move. From one slot to the next by the
#: index of queues: a slot with a hundred waiting costs what one with a single one does.
QUEUES = _text(
    """
    WITH RECURSIVE queue (slot, number) AS (
        (SELECT slot, 1 FROM <s>.task_status WHERE queue_key IS NOT NULL ORDER BY slot, queue_key LIMIT 1)
        UNION ALL
        SELECT (SELECT s.slot FROM <s>.task_status AS s WHERE s.queue_key IS NOT NULL AND s.slot > queue.slot
                ORDER BY s.slot, s.queue_key LIMIT 1), number + 1
        FROM queue WHERE slot IS NOT NULL AND number < <most>
    ), looked_at AS (
        SELECT q.slot, q.number, o.seq, o.agent_id AS agent,
               CAST(extract(epoch FROM statement_timestamp() - o.due_at) AS double precision) AS due_seconds,
               CAST(extract(epoch FROM statement_timestamp() - o.deadline) AS double precision) AS over_seconds,
               CASE WHEN a.closed_at IS NULL AND a.expires_at < statement_timestamp()
                    THEN CAST(extract(epoch FROM statement_timestamp() - a.expires_at) AS double precision)
               END AS silent_seconds,
               o.agent IS NOT NULL AND (a.seq IS NULL OR a.closed_at IS NOT NULL) AS is_gone
        FROM queue AS q
        LEFT JOIN LATERAL (
            SELECT seq, due_at, deadline, agent, agent_id FROM <s>.task_status
            WHERE slot = q.slot AND <owner> LIMIT 1
        ) AS o ON true
        LEFT JOIN LATERAL (SELECT seq, closed_at, expires_at FROM <s>.agents WHERE seq = o.agent OFFSET 0) AS a ON true
        WHERE q.slot IS NOT NULL
    )
    SELECT l.slot, (SELECT t.id FROM <s>.task_status AS s JOIN <s>.tasks AS t USING (seq)
                    WHERE s.slot = l.slot AND s.queue_key IS NOT NULL ORDER BY s.slot, s.queue_key LIMIT 1) AS head,
           (SELECT id FROM <s>.tasks WHERE seq = l.seq) AS owner,
           l.due_seconds, l.over_seconds, l.agent, l.silent_seconds, l.is_gone
    FROM looked_at AS l
    WHERE l.seq IS NULL OR l.is_gone OR l.silent_seconds IS NOT NULL OR l.over_seconds > 0
       OR l.due_seconds > extract(epoch FROM :late) OR -l.due_seconds > extract(epoch FROM :far)
    ORDER BY l.number LIMIT 100
    """,
    "late",
    "far",
)

#: Attempts that are past their deadline, among as many as many workers run.
OVERDUE = _text(
    """
    SELECT t.id AS task, r.attempt, r.agent_id AS agent,
           CAST(extract(epoch FROM statement_timestamp() - r.deadline) AS double precision) AS seconds
    FROM (SELECT seq, attempt, agent_id, deadline FROM <s>.task_status WHERE deadline IS NOT NULL
          ORDER BY agent, deadline LIMIT <running>) AS r
    JOIN <s>.tasks AS t USING (seq)
    WHERE r.deadline < statement_timestamp() - :overdue
    ORDER BY r.deadline LIMIT 100
    """,
    "overdue",
)

#: Routes of which something is due for longer than `late`, from one to the next by the index of claims.
ROUTES = _text(
    """
    WITH RECURSIVE due (route, number) AS (
        (SELECT route, 1 FROM <s>.task_status WHERE due_at IS NOT NULL ORDER BY route, due_at, seq LIMIT 1)
        UNION ALL
        SELECT (SELECT s.route FROM <s>.task_status AS s WHERE s.due_at IS NOT NULL AND s.route > due.route
                ORDER BY s.route, s.due_at, s.seq LIMIT 1), number + 1
        FROM due WHERE route IS NOT NULL AND number < <most>
    )
    SELECT r.kind, CAST(r.selector AS text) AS selector, t.id AS task,
           CAST(extract(epoch FROM statement_timestamp() - f.due_at) AS double precision) AS seconds,
           CAST((SELECT count(*) FROM (
               SELECT FROM <s>.task_status AS s
               WHERE s.route = due.route AND s.due_at <= statement_timestamp() LIMIT 100) AS first_ones)
           AS integer) AS waiting
    FROM due CROSS JOIN LATERAL (
        SELECT seq, due_at FROM <s>.task_status AS s WHERE s.route = due.route AND s.due_at IS NOT NULL
        ORDER BY s.due_at, s.seq LIMIT 1
    ) AS f
    JOIN <s>.tasks AS t ON t.seq = f.seq LEFT JOIN <s>.routes AS r ON r.id = due.route
    WHERE f.due_at <= statement_timestamp() - :late
    ORDER BY f.due_at LIMIT 100
    """,
    "late",
)

#: The oldest events.
FEED_HEAD = _text(
    """
    SELECT CAST(count(*) FILTER (WHERE at < statement_timestamp() - :events) AS integer) AS old,
           CAST(count(*) FILTER (WHERE at < statement_timestamp() - :events
                                   AND xid >= pg_snapshot_xmin(pg_current_snapshot())) AS integer) AS held,
           CAST(count(*) FILTER (WHERE at > statement_timestamp() + :skew) AS integer) AS ahead,
           CAST(extract(epoch FROM statement_timestamp() - min(at)) AS double precision) AS oldest_seconds,
           CAST(COALESCE(extract(epoch FROM max(at) - statement_timestamp()), 0) AS double precision) AS ahead_seconds
    FROM (SELECT at, xid FROM <s>.task_events ORDER BY event LIMIT 1000) AS head
    """,
    "events",
    "skew",
)

#: How far in the future the latest change and the latest end are; NULL where there is none. The ends of indexes.
FUTURE = _text(
    """
    SELECT CAST(extract(epoch FROM (SELECT max(updated_at) FROM <s>.task_status) - statement_timestamp())
                AS double precision) AS updated,
           CAST(extract(epoch FROM (SELECT max(finished_at) FROM <s>.task_runs) - statement_timestamp())
                AS double precision) AS finished
    """
)

#: For how long the oldest final task and the oldest run have been over; NULL where there is none.
OLDEST = _text(
    """
    SELECT CAST(extract(epoch FROM statement_timestamp() -
                    (SELECT updated_at FROM <s>.task_status WHERE <final> ORDER BY updated_at LIMIT 1))
                AS double precision) AS task,
           CAST(extract(epoch FROM statement_timestamp() - (SELECT min(finished_at) FROM <s>.task_runs))
                AS double precision) AS run
    """
)


def mend_future(schema: str, table: str, column: str) -> str:
    """The statement that dates back what is in the future."""
    return f"UPDATE {quoted(schema, table)} SET {column} = now() WHERE {column} > now();"  # noqa: S608 - for people to run
