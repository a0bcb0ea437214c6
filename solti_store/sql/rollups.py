"""Statements that count the runs of days that are over, for when retention takes them."""

from __future__ import annotations

from sqlalchemy import Date, bindparam, text

from solti_store.sql.driver import Prepared
from solti_store.sql.types import Instant

__all__ = ["ADVANCE", "BEGIN", "HAS_ROLLUPS", "KEEP", "LOCK", "SELECT_UNKEPT"]

#: Whether this schema has the tables: the one before does not.
HAS_ROLLUPS = Prepared(text("SELECT to_regclass('solti.rollup') IS NOT NULL AS is_so"))

#: When the first run ended that is not counted yet and whose day is over, and the day; if that was before `before`.
#: Over for an hour: a run bears the time of its statement, and a caller's transaction may commit it later.
SELECT_UNKEPT = Prepared(
    text("""
    SELECT ended, (ended AT TIME ZONE 'UTC')::date AS day
    FROM (SELECT min(finished_at) AS ended FROM solti.task_runs
          WHERE finished_at >= COALESCE((SELECT upto FROM solti.rollup), '-infinity')
          AND finished_at < date_trunc('day', COALESCE(:now, statement_timestamp()) - interval '1 hour', 'UTC'))
         AS unkept
    WHERE ended < COALESCE(CAST(:before AS timestamptz), 'infinity')
    """).bindparams(bindparam("now", type_=Instant), bindparam("before", type_=Instant))
)

#: Makes the row again that somebody has emptied away. Looked up first: ON CONFLICT waits for who has it and changes it.
BEGIN = Prepared(
    text("""
    INSERT INTO solti.rollup (upto) SELECT '-infinity' WHERE NOT EXISTS (SELECT FROM solti.rollup)
    ON CONFLICT DO NOTHING
    """)
)

#: The right to count what ended at `ended` and later; no row where somebody else has it, or has done so.
LOCK = Prepared(
    text("SELECT id FROM solti.rollup WHERE upto <= :ended FOR UPDATE SKIP LOCKED").bindparams(
        bindparam("ended", type_=Instant)
    )
)


def _keep(table: str, source: str, columns: str) -> Prepared:
    return Prepared(
        text(
            # What is kept stays: where `rollup` was set back by hand, a day that is there would end retention for good.
            f"INSERT INTO solti.{table} ({columns}) SELECT {columns} FROM {source} WHERE day = :day"  # noqa: S608 - constants
            " ON CONFLICT DO NOTHING"
        ).bindparams(bindparam("day", type_=Date))
    )


_COUNTS = "attempts, succeeded, failed, timeout, canceled, run_seconds"

#: Count a day, once: the transaction has the right to.
KEEP = (
    _keep("outcome_days", "solti_report.outcomes", f"day, slot, kind, {_COUNTS}"),
    _keep(
        "retry_days",
        "solti_report.retry_cost",
        "day, slot, kind, attempts, unsuccessful, retries, recovered, run_seconds, lost_seconds, retry_seconds",
    ),
    _keep(
        "duration_days",
        "solti.duration_days_of_runs",
        "day, slot, kind, measure, attempts, max_seconds, buckets, counts",
    ),
    _keep("failure_days", "solti.failure_days_of_runs", "day, error, attempts, tasks, first_at, last_at"),
    _keep("throughput_hours", "solti.throughput_hours_of_runs", f"hour, {_COUNTS}"),
)

#: The day is counted, and with it all before.
ADVANCE = Prepared(
    text("UPDATE solti.rollup SET upto = (:day + 1)::timestamp AT TIME ZONE 'UTC' RETURNING id").bindparams(
        bindparam("day", type_=Date)
    )
)
