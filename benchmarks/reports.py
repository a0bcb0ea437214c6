"""What reports cost on a registry with a month behind it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from psycopg import sql
from sqlalchemy import StaticPool, create_engine

from benchmarks.arena import Arena, arena
from benchmarks.lab import Lab, Series, Work, say
from solti_store.cli.parsing import moment
from solti_store.model import Selector
from solti_store.ops import reports
from solti_store.rules.reports import REPORTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from solti_store.rules.reports import Report

LIMIT = 1000
SLOTS = 1000
PATIENCE = timedelta(minutes=10)

# Three attempts for each task that is final, over 30 days; for each slot an owner, and two that wait.
_FILL = (
    # The checks of foreign keys row by row would take most of the time.
    "SET session_replication_role = replica",
    """
    INSERT INTO solti.tasks (id, created_at, spec)
    SELECT 'task-' || n, now() - interval '30 days' * (1 - n / %(tasks)s::float8), jsonb_build_object(
        'slot', 'slot-' || n %% %(slots)s, 'timeout', 300000, 'restart', '{"type": "onFailure"}'::jsonb,
        'kind', '{"subprocess": {"mode": {"command": {"command": "make", "args": ["-j2", "target"]}},
                  "env": [{"key": "STAGE", "value": "build"}], "failOnNonZero": true}}'::jsonb,
        'backoff', '{"jitter": "full", "firstMs": 1000, "maxMs": 30000, "factor": 2.0}'::jsonb,
        'admission', 'queue', 'labels', jsonb_build_object(
            'env', (ARRAY['prod', 'prod', 'staging', 'dev'])[1 + n %% 4], 'customer', 'c' || n %% 997,
            'tier', (ARRAY['gold', 'silver', 'bronze'])[1 + n %% 3], 'shard', (n %% 100)::text))
    FROM generate_series(1, %(tasks)s) AS n ORDER BY n
    """,
    """
    INSERT INTO solti.task_status (seq, resource_version, updated_at, phase, attempt, due_at, slot, queue_key, route,
                                   agent, agent_id, started_at, deadline)
    SELECT seq, 7, CASE WHEN back >= 3 * %(slots)s THEN created_at + interval '400 s' ELSE created_at END,
           CASE WHEN back < %(slots)s AND back %% 2 = 0 THEN 'running' WHEN back < 3 * %(slots)s THEN 'pending'
                WHEN back %% 10 = 0 THEN 'exhausted' ELSE 'succeeded' END,
           CASE WHEN back < %(slots)s THEN (back + 1) %% 2 WHEN back < 3 * %(slots)s THEN 0 ELSE 3 END,
           CASE WHEN back < %(slots)s AND back %% 2 = 1 THEN created_at END, slot,
           CASE WHEN back >= %(slots)s AND back < 3 * %(slots)s THEN seq END, gen_random_uuid(),
           CASE WHEN back < %(slots)s AND back %% 2 = 0 THEN 1 + back %% 20 END,
           CASE WHEN back < %(slots)s AND back %% 2 = 0 THEN 'worker-' || 1 + back %% 20 END,
           CASE WHEN back < %(slots)s AND back %% 2 = 0 THEN created_at END,
           CASE WHEN back < %(slots)s AND back %% 2 = 0 THEN now() + interval '5 min' END
    FROM (SELECT *, max(seq) OVER () - seq AS back FROM solti.tasks) AS numbered
    """,
    """
    INSERT INTO solti.task_runs (seq, attempt, phase, started_at, finished_at, error, exit_code, agent, agent_id)
    SELECT seq, number, phase, started_at, started_at + interval '1 s' * (5 + seq %% 100),
           CASE phase WHEN 'failed' THEN 'exit code 1: no block ' || seq || ' on device sd' || chr(97 + seq::int %% 26)
                      WHEN 'timeout' THEN 'timed out after 300000ms' END,
           CASE phase WHEN 'failed' THEN 1 WHEN 'succeeded' THEN 0 END, 1 + seq %% 20, 'worker-' || 1 + seq %% 20
    FROM (SELECT seq, number, t.created_at + interval '1 s' * (130 * (number - 1) + seq %% 7) AS started_at,
                 CASE WHEN number = 3 AND s.phase = 'succeeded' THEN 'succeeded'
                      WHEN (seq + number) %% 5 = 0 THEN 'timeout' ELSE 'failed' END AS phase
          FROM solti.tasks t JOIN solti.task_status s USING (seq) CROSS JOIN generate_series(1, 3) AS number
          WHERE s.attempt = 3) AS made
    ORDER BY 5
    """,
    """
    INSERT INTO solti.task_events (at, seq, id, type, resource_version, phase, phase_before, attempt)
    SELECT at, seq, id, type, version, phase, before, attempt FROM (
        SELECT t.created_at AS at, seq, id, 'created' AS type, 1 AS version, 'pending' AS phase, NULL AS before,
               0 AS attempt
        FROM solti.tasks t
        UNION ALL
        SELECT r.started_at, seq, id, 'started', 2 * attempt, 'running', COALESCE(b.phase, 'pending'), attempt
        FROM solti.task_runs r JOIN solti.tasks USING (seq)
        LEFT JOIN (SELECT seq, attempt + 1 AS attempt, phase FROM solti.task_runs) AS b USING (seq, attempt)
        UNION ALL
        SELECT finished_at, seq, id, 'finished', 2 * attempt + 1, phase, 'running', attempt
        FROM solti.task_runs JOIN solti.tasks USING (seq)) AS told
    ORDER BY at, seq, version
    """,
    """
    INSERT INTO solti.agents (id, labels, kinds, capacity, state, lease, registered_at, heartbeat_at, expires_at)
    SELECT 'worker-' || n, '{"zone": "a"}', '{subprocess}', 100, 'active', '30 s', now() - interval '1 day', now(),
           now() + interval '1 day' FROM generate_series(1, 20) AS n
    """,
    "RESET session_replication_role",
)


def build(field: Arena, tasks: int) -> None:
    """Fill the tables, give the planner its statistics, and roll up."""
    sizes = {"tasks": tasks, "slots": min(SLOTS, tasks // 10)}
    for statement in _FILL:
        field.single.execute(statement.encode(), sizes)
    for table in ("tasks", "task_status", "task_runs", "task_events", "agents"):
        field.single.execute(sql.SQL("VACUUM (ANALYZE) solti.{}").format(sql.Identifier(table)))
    while field.store.roll_up() is not None:
        pass


@dataclass(frozen=True, slots=True)
class Question:
    """Something to ask.

    Attributes:
        report: Of which report.
        asked: How, for people.
        since: As on the command line.
        selector: Likewise.
        limit: The most rows.
    """

    report: Report
    asked: str
    since: str | None = None
    selector: str = ""
    limit: int | None = LIMIT

    def ask(self, connection: Connection) -> int:
        """Ask it as the command does; how many rows there were."""
        since = None if self.since is None else moment(self.since, "")
        requirements = Selector.parse(self.selector).requirements
        found = reports.read(
            connection, self.report, since=since, requirements=requirements, limit=self.limit, timeout=PATIENCE
        )
        return len(found.rows)


def questions() -> Iterator[Question]:
    """Each report as it is when nothing more is said, and some that ask for less or more."""
    for report in REPORTS.values():
        yield Question(report, "" if report.since is None else f"--since {report.since}", since=report.since)
        if report.time == "day":
            yield Question(report, "--since 1h", since="1h")
            yield Question(report, "of all days", since="3650d")
    yield Question(REPORTS["throughput"], "--since 24h", since="24h")
    yield Question(REPORTS["attempts"], "--since 1h", since="1h")
    yield Question(REPORTS["tasks"], "-l customer=c7", selector="customer=c7")


def explain(connection: Connection, question: Question) -> str:
    """The plan, as it was run."""
    report = question.report
    where = f" WHERE {report.time} >= now() - interval '{question.since}'" if question.since and report.time else ""
    if report.time == "day" and question.since:
        where = f" WHERE day >= (now() AT TIME ZONE 'UTC' - interval '{question.since}')::date"
    tail = f"ORDER BY {', '.join(report.order)} LIMIT {LIMIT}"
    statement = f"SELECT * FROM solti_report.{report.view}{where} {tail}"  # noqa: S608 - of names and constants
    connection.exec_driver_sql("SET LOCAL jit = off")
    lines = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, BUFFERS OFF) {statement}").scalars()
    text = "\n".join(lines)
    connection.rollback()
    return f"--- {report.name} {question.asked}\n{statement}\n{text}\n"


def asking(lab: Lab) -> Iterator[Series]:
    """Build the registry, unless it was kept, and ask."""
    with arena(lab.server, keep=lab.keep) as field:
        if field.single.execute("SELECT count(*) FROM solti.tasks").fetchone() == (0,):
            say(f"reports: {lab.sizes.million:,} tasks")
            build(field, lab.sizes.million)
        engine = create_engine("postgresql+psycopg://", creator=lambda: field.several, poolclass=StaticPool)
        with engine.connect() as connection:
            for question in questions():
                say(f"report, {question.report.name} {question.asked}")
                took = []
                for _ in range(lab.sizes.rounds):
                    began = time.perf_counter()
                    count = question.ask(connection)
                    took.append(time.perf_counter() - began)
                how = f"{question.asked}; {count:,} rows" if question.asked else f"{count:,} rows"
                yield Series("report", question.report.name, "s", took, less=True, how=how)
                if lab.explain:
                    print(explain(connection, question))


WORKS = (Work("reports", "reports at 1,000,000 tasks, 3,000,000 runs", asking, by_default=False),)
