"""The reports: views in a schema of their own, each with its comments, and the tables of what is kept for trends.

docs/reporting.md says how they are used, and what it takes to change one.

Revision: solti_0002
Revises: solti_0001
"""

from __future__ import annotations

from typing import NamedTuple

from solti_store.migrate import execute

revision = "solti_0002"
down_revision = "solti_0001"
branch_labels = None
depends_on = None
oldest_code = "solti_0001"


class View(NamedTuple):
    """A view, and what is said of it in the database.

    Attributes:
        name: Its name.
        comment: What a row is, and what reading it costs.
        columns: What each column means, in order.
        query: The columns' expressions, in the same order.
    """

    name: str
    comment: str
    columns: dict[str, str]
    query: str


# What is kept of days whose runs retention takes, and up to where. Beside the tables, since whoever reads reports sees
# views alone.
TABLES = {
    "rollup": """
        id    boolean NOT NULL DEFAULT true CONSTRAINT pk_rollup PRIMARY KEY,
        upto  timestamptz NOT NULL DEFAULT '-infinity',
        CONSTRAINT ck_rollup_id CHECK (id)
    """,
    "outcome_days": """
        day          date NOT NULL,
        slot         text COLLATE "C" NOT NULL,
        kind         text COLLATE "C" NOT NULL,
        attempts     bigint NOT NULL,
        succeeded    bigint NOT NULL,
        failed       bigint NOT NULL,
        timeout      bigint NOT NULL,
        canceled     bigint NOT NULL,
        run_seconds  double precision NOT NULL,
        CONSTRAINT pk_outcome_days PRIMARY KEY (day, slot, kind)
    """,
    "retry_days": """
        day            date NOT NULL,
        slot           text COLLATE "C" NOT NULL,
        kind           text COLLATE "C" NOT NULL,
        attempts       bigint NOT NULL,
        unsuccessful   bigint NOT NULL,
        retries        bigint NOT NULL,
        recovered      bigint NOT NULL,
        run_seconds    double precision NOT NULL,
        lost_seconds   double precision NOT NULL,
        retry_seconds  double precision NOT NULL,
        CONSTRAINT pk_retry_days PRIMARY KEY (day, slot, kind)
    """,
    "duration_days": """
        day          date NOT NULL,
        slot         text COLLATE "C" NOT NULL,
        kind         text COLLATE "C" NOT NULL,
        measure      text COLLATE "C" NOT NULL,
        attempts     bigint NOT NULL,
        max_seconds  double precision NOT NULL,
        buckets      smallint[] NOT NULL,
        counts       bigint[] NOT NULL,
        CONSTRAINT pk_duration_days PRIMARY KEY (day, slot, kind, measure)
    """,
    "failure_days": """
        day       date NOT NULL,
        error     text COLLATE "C" NOT NULL,
        attempts  bigint NOT NULL,
        tasks     bigint NOT NULL,
        first_at  timestamptz NOT NULL,
        last_at   timestamptz NOT NULL,
        CONSTRAINT pk_failure_days PRIMARY KEY (day, error)
    """,
    "throughput_hours": """
        hour         timestamptz NOT NULL CONSTRAINT pk_throughput_hours PRIMARY KEY,
        attempts     bigint NOT NULL,
        succeeded    bigint NOT NULL,
        failed       bigint NOT NULL,
        timeout      bigint NOT NULL,
        canceled     bigint NOT NULL,
        run_seconds  double precision NOT NULL
    """,
}

# Numbers and not intervals: spreadsheets, data frames and dashboards all take them.
PERCENTILES = "percentile_cont('{{0.5,0.9,0.95,0.99,1}}'::double precision[]) WITHIN GROUP (ORDER BY {of})"

# A row a day that has runs or could have: a condition on the day picks days, and each day reads its own stretch of the
# index on the end of runs. Days grouped out of the runs themselves would read all runs, whatever the condition.
DAYS = """
    (SELECT day::date AS day, day AT TIME ZONE 'UTC' AS since, (day + interval '1 day') AT TIME ZONE 'UTC' AS until
     FROM generate_series(
         (SELECT date_trunc('day', min(finished_at) AT TIME ZONE 'UTC') FROM solti.task_runs),
         now() AT TIME ZONE 'UTC',
         interval '1 day') AS series (day)) AS d
"""

# The same of events, of which no index knows the time, since every writer would pay for it: their numbers grow with it
# nearly, so the first of a day is found by halving, in some 25 looks at the key. Nearly: a number is drawn some time
# after the moment that an event bears, and two clocks may have been at work. Hence an hour more at both ends.
FIRST_EVENT = """
    (WITH RECURSIVE search (low, high) AS (
         SELECT min(event), max(event) + 1 FROM solti.task_events
         UNION ALL
         SELECT CASE WHEN is_before THEN middle + 1 ELSE low END, CASE WHEN is_before THEN high ELSE middle END
         FROM search CROSS JOIN LATERAL (SELECT (low + high) / 2 AS middle) AS half
         CROSS JOIN LATERAL (
             SELECT COALESCE((SELECT at < {moment} FROM solti.task_events WHERE event >= middle
                              ORDER BY event LIMIT 1), false) AS is_before) AS look
         WHERE low < high)
     SELECT low FROM search WHERE low = high)
"""
EVENT_DAYS = """
    (SELECT day::date AS day, day AT TIME ZONE 'UTC' AS since, (day + interval '1 day') AT TIME ZONE 'UTC' AS until
     FROM generate_series(
         (SELECT date_trunc('day', at AT TIME ZONE 'UTC') FROM solti.task_events ORDER BY event LIMIT 1),
         now() AT TIME ZONE 'UTC',
         interval '1 day') AS series (day)) AS d
"""

# What makes two errors the same: names of agents, long hexadecimal words and all numbers are left out. Compared byte by
# byte: by the rules of a language the sort takes twice as long.
ERROR_GROUP = """
    CASE WHEN starts_with(r.error, 'lease expired: agent ') THEN 'lease expired: agent * stopped reporting'
         ELSE regexp_replace(regexp_replace(
             left(COALESCE(r.error, 'exit code ' || r.exit_code, 'no error given'), 200),
             '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{12,}', '*', 'gi'),
             '[0-9]+', '#', 'g')
    END COLLATE "C"
"""

COUNTS = """
    count(*) AS attempts,
    count(*) FILTER (WHERE r.phase = 'succeeded') AS succeeded,
    count(*) FILTER (WHERE r.phase = 'failed') AS failed,
    count(*) FILTER (WHERE r.phase = 'timeout') AS timeout,
    count(*) FILTER (WHERE r.phase = 'canceled') AS canceled,
    COALESCE(sum(extract(epoch FROM r.finished_at - r.started_at)), 0)::double precision AS run_seconds
"""

COUNTED = {
    "attempts": "Attempts that ended in this time.",
    "succeeded": "Those of them that succeeded.",
    "failed": "Those that failed, lost with their worker or not.",
    "timeout": "Those that took too long.",
    "canceled": "Those that were stopped because somebody asked for it.",
    "run_seconds": "What all of them ran for, together.",
}

A_DAY = {"day": "The day on which the attempts ended, in UTC."}
A_SLOT = {"slot": "The slot of the tasks.", "kind": "Their kind: subprocess, container, wasm or embedded."}
RETRIES = (
    A_DAY
    | A_SLOT
    | {
        "attempts": "Attempts that ended on that day.",
        "unsuccessful": "Those of them that failed or took too long.",
        "retries": "Those of them that were retries.",
        "recovered": "The retries that succeeded.",
        "run_seconds": "What all attempts ran for, together.",
        "lost_seconds": "What the unsuccessful ones ran for.",
        "retry_seconds": "What the retries ran for.",
        "lost_share": "lost_seconds over run_seconds; NULL when nothing took any time.",
    }
)
OF_DAYS = (
    "Counts the runs that are kept. A condition on day reads the runs of those days by an index, and the task of each;"
    " without one, all runs."
)

OF_TREND = (
    "Days that are rolled up outlive their runs; later ones are counted from the runs. Reads the rows that are kept,"
    " and the runs of later days by an index."
)
LATER = "(SELECT (COALESCE(max(upto), '-infinity') AT TIME ZONE 'UTC')::date FROM solti.rollup)"

# Lengths of time are kept in buckets, each 2^(1/8) = 1.09 times as long as the one before: percentiles of several days
# or slots cannot be had from those of each, but counts can be added. Bucket 0 ends at a millisecond.
# Less a little, since of a power of two the logarithm may come out a little greater.
BUCKET = "CASE WHEN {of} > 0.001 THEN ceil(8 * ln({of} * 1000) / ln(2::float8) - 1e-9) ELSE 0 END::smallint"
BOUND = "0.001 * 2 ^ (bucket / 8.0)::double precision"

# How many errors a day are kept apart: an error with a word that is never the same would be a row an attempt.
ERRORS = 100

# What the trends count of days that are not rolled up yet, and what rolling up keeps of a day. In the schema of the
# tables: they are no reports.
OF_RUNS = {
    "duration_days_of_runs": f"""
        SELECT d.day, o.* FROM {DAYS} CROSS JOIN LATERAL (
            SELECT slot, kind, measure, sum(counted)::bigint AS attempts, max(longest) AS max_seconds,
                   array_agg(bucket ORDER BY bucket) AS buckets, array_agg(counted ORDER BY bucket) AS counts
            FROM (SELECT t.slot, t.kind, m.measure, {BUCKET.format(of="m.seconds")} AS bucket, count(*) AS counted,
                         max(m.seconds) AS longest
                  FROM solti.task_runs r JOIN solti.tasks t ON t.seq = r.seq
                  CROSS JOIN LATERAL (
                      SELECT 'run' AS measure, extract(epoch FROM r.finished_at - r.started_at)::double precision
                      UNION ALL
                      SELECT 'wait', extract(epoch FROM r.started_at - t.created_at)::double precision
                      WHERE r.attempt = 1) AS m (measure, seconds)
                  WHERE r.finished_at >= d.since AND r.finished_at < d.until
                  GROUP BY 1, 2, 3, 4) AS bucketed
            GROUP BY slot, kind, measure) AS o
    """,
    "failure_days_of_runs": f"""
        SELECT day, CASE WHEN place <= {ERRORS} THEN error ELSE '(other errors)' END AS error,
               sum(attempts)::bigint AS attempts, sum(tasks)::bigint AS tasks,
               min(first_at) AS first_at, max(last_at) AS last_at
        FROM (SELECT day, error, attempts, tasks, first_at, last_at,
                     row_number() OVER (PARTITION BY day ORDER BY attempts DESC, error) AS place
              FROM solti_report.failures) AS ranked
        GROUP BY 1, 2
    """,
    "throughput_hours_of_runs": f"""
        SELECT d.day, o.* FROM {DAYS} CROSS JOIN LATERAL (
            SELECT date_trunc('hour', r.finished_at, 'UTC') AS hour, {COUNTS}
            FROM solti.task_runs r
            WHERE r.finished_at >= d.since AND r.finished_at < d.until
            GROUP BY 1) AS o
    """,
}

DURATIONS = f"""
    (SELECT day, slot, kind, measure, attempts, max_seconds, buckets, counts FROM solti.duration_days
     UNION ALL
     SELECT day, slot, kind, measure, attempts, max_seconds, buckets, counts FROM solti.duration_days_of_runs
     WHERE day >= {LATER}) AS h
"""
A_MEASURE = {
    "measure": "run: how long attempts ran; wait: how long tasks waited for their first one, from their creation.",
}

VIEWS = (
    View(
        "version",
        "The version of these views, in one row. It grows when a column changes its meaning or is taken away, and stays"
        " when views and columns are added.",
        {"version": "The version."},
        "SELECT 1",
    ),
    View(
        "freshness",
        "How fresh all the other views are, in one row.",
        {
            "is_replica": "Whether this server follows another.",
            "as_of": "Up to when changes are seen here: the last transaction that was replayed; on a primary, now.",
            "behind_seconds": "How far that is back. On a replica an upper bound: a primary where nothing happens"
            " looks the same from there as one that cannot be heard.",
        },
        """
        SELECT recovering, seen, extract(epoch FROM statement_timestamp() - seen)::double precision
        FROM (SELECT pg_is_in_recovery() AS recovering,
                     CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp()
                          ELSE statement_timestamp() END AS seen) AS server
        """,
    ),
    View(
        "tasks",
        "A row a task, flat. Indexes serve conditions on id, seq, slot, kind, phase and updated_at; one on labels or"
        " anything else reads all tasks. Specs are not in it: scripts, arguments and environments may hold secrets.",
        {
            "seq": "The incarnation: an id that is deleted and created again gets a greater one.",
            "id": "The task's id.",
            "slot": "The lane in which it is the only owner, or queues.",
            "kind": "subprocess, container, wasm or embedded.",
            "program": "What it runs: the command, the script's interpreter, the image, or the module; no arguments.",
            "labels": "Its labels, an object of strings.",
            "phase": "pending, running, succeeded, failed, timeout, canceled or exhausted.",
            "state": "running; queued: behind the owner of its slot; due: may be started now; waiting: may be started"
            " later, for a retry or its interval; final: nothing more will happen by itself.",
            "attempt": "The number of the latest attempt; 0 before the first.",
            "failures": "Failures in a row, up to now.",
            "exit_code": "Of the latest attempt, once it has ended with one.",
            "error": "What went wrong with the latest attempt, or why the task was canceled.",
            "created_at": "When it was created.",
            "updated_at": "When it changed last; of a final task, when it became final.",
            "due_at": "When it may be started, or might have been; NULL when it is queued, runs, or is final.",
            "wait_seconds": "How long it could have been started by now; NULL unless it is due.",
            "started_at": "When the attempt that runs now was started; NULL when none does.",
            "deadline": "When that attempt has taken too long.",
            "agent": "Who runs it now.",
            "cancel_requested_at": "When the attempt that runs now was asked to stop.",
            "timeout_seconds": "How long an attempt may take.",
            "restart": "What its end leads to: never, onFailure or always.",
            "max_retries": "How many failures in a row are retried; NULL for any number.",
            "admission": "What its creation did to a slot with an owner: dropIfRunning, queue or replace.",
            "generation": "How often its spec has been set.",
            "resource_version": "How often it has changed.",
        },
        """
        SELECT t.seq, t.id, t.slot, t.kind,
               COALESCE(t.spec #>> '{kind,subprocess,mode,command,command}',
                        t.spec #>> '{kind,subprocess,mode,script,runtime,custom,command}',
                        t.spec #>> '{kind,subprocess,mode,script,runtime}',
                        t.spec #>> '{kind,container,image}',
                        t.spec #>> '{kind,wasm,module}'),
               t.labels, s.phase,
               CASE WHEN s.deadline IS NOT NULL THEN 'running'
                    WHEN s.queue_key IS NOT NULL THEN 'queued'
                    WHEN s.due_at <= now() THEN 'due'
                    WHEN s.due_at IS NOT NULL THEN 'waiting'
                    ELSE 'final' END,
               s.attempt, s.failures, s.exit_code, s.error, t.created_at, s.updated_at, s.due_at,
               CASE WHEN s.due_at <= now() THEN extract(epoch FROM now() - s.due_at)::double precision END,
               s.started_at, s.deadline, s.agent_id, s.cancel_requested_at,
               (t.spec -> 'timeout')::double precision / 1000,
               t.spec #>> '{restart,type}', (t.spec ->> 'maxRetries')::bigint, t.spec ->> 'admission',
               t.generation, s.resource_version
        FROM solti.tasks t JOIN solti.task_status s ON s.seq = t.seq
        """,
    ),
    View(
        "attempts",
        "A row an attempt, those that run now included, of all tasks that are not deleted. Indexes serve conditions on"
        " finished_at, which is NULL while an attempt runs, and on task and seq. Anything else reads all runs. Runs are"
        " kept for as long as retention says, and the latest 256 of a task.",
        {
            "seq": "The task's incarnation.",
            "task": "The task's id.",
            "attempt": "The attempt's number, from 1.",
            "slot": "The task's slot.",
            "kind": "The task's kind.",
            "labels": "The task's labels, as they are now.",
            "outcome": "running, succeeded, failed, timeout or canceled; what the attempt came to, not the task.",
            "started_at": "When a worker took it.",
            "finished_at": "When it ended; NULL while it runs.",
            "run_seconds": "How long it ran, or has been running.",
            "wait_seconds": "Of the first attempt, from the task's creation to its start; of any other, from the end"
            " of the one before, backoff included. NULL if that one is forgotten.",
            "is_retry": "Whether the attempt before failed or took too long; NULL if that one is forgotten.",
            "agent": "Who ran it.",
            "exit_code": "Its exit code, if there was one.",
            "error": "What went wrong.",
        },
        """
        SELECT r.seq, t.id, r.attempt, t.slot, t.kind, t.labels, r.phase, r.started_at, r.finished_at,
               extract(epoch FROM COALESCE(r.finished_at, now()) - r.started_at)::double precision,
               extract(epoch FROM r.started_at - CASE r.attempt WHEN 1 THEN t.created_at ELSE before.finished_at END)
                   ::double precision,
               CASE r.attempt WHEN 1 THEN false ELSE before.phase IN ('failed', 'timeout') END,
               r.agent_id, r.exit_code, r.error
        FROM (SELECT seq, attempt, phase, started_at, finished_at, agent_id, exit_code, error FROM solti.task_runs
              UNION ALL
              SELECT seq, attempt, phase, started_at, NULL::timestamptz, agent_id, exit_code, error
              FROM solti.task_status WHERE deadline IS NOT NULL) AS r
        JOIN solti.tasks t ON t.seq = r.seq
        LEFT JOIN solti.task_runs before ON before.seq = r.seq AND before.attempt = r.attempt - 1
        """,
    ),
    View(
        "slots",
        "A row a slot that has an owner, or tasks that wait for it. Reads the indexes of owners and queues, which hold"
        " the tasks that are not final; a condition on slot reads that slot.",
        {
            "slot": "The slot.",
            "owner": "The task that owns it.",
            "owner_state": "running, due or waiting, as in tasks.",
            "owner_attempt": "The owner's latest attempt.",
            "owner_agent": "Who runs the owner now.",
            "depth": "How many tasks wait for the slot, the owner not among them.",
            "oldest_wait_seconds": "How long the one of them has waited that was created first; NULL when none does.",
        },
        """
        SELECT slot, t.id,
               CASE WHEN o.deadline IS NOT NULL THEN 'running' WHEN o.due_at <= now() THEN 'due'
                    WHEN o.due_at IS NOT NULL THEN 'waiting' END,
               o.attempt, o.agent_id, COALESCE(q.depth, 0), extract(epoch FROM now() - q.oldest)::double precision
        FROM (SELECT slot, seq, attempt, due_at, deadline, agent_id FROM solti.task_status
              WHERE due_at IS NOT NULL OR deadline IS NOT NULL) AS o
        FULL JOIN (SELECT s.slot, count(*) AS depth, min(w.created_at) AS oldest
                   FROM solti.task_status s JOIN solti.tasks w ON w.seq = s.seq
                   WHERE s.queue_key IS NOT NULL GROUP BY s.slot) AS q USING (slot)
        LEFT JOIN (SELECT seq, id FROM solti.tasks) AS t ON t.seq = o.seq
        """,
    ),
    View(
        "agents",
        "A row an incarnation of a worker; those that have left are kept for a day. Reads all of them.",
        {
            "seq": "The incarnation: a worker that starts again gets a greater one.",
            "id": "The worker's name.",
            "state": "active; draining: takes on no more; silent: its lease is over, and nobody has taken its attempts"
            " yet; stopped: signed off; lost: its attempts were taken from it.",
            "labels": "Its labels, an object of strings.",
            "kinds": "The kinds of tasks that it runs.",
            "capacity": "How many attempts it takes on, if it says so.",
            "running": "How many it has now.",
            "registered_at": "When it started.",
            "heartbeat_at": "When it was last heard of.",
            "silent_seconds": "How long ago that was; NULL when it has left.",
            "expires_at": "When its lease is over, or was.",
            "closed_at": "When it left, or was given up.",
        },
        """
        SELECT a.seq, a.id, CASE WHEN a.closed_at IS NULL AND a.expires_at < now() THEN 'silent' ELSE a.state END,
               a.labels, a.kinds, a.capacity,
               (SELECT count(*) FROM solti.task_status s WHERE s.agent = a.seq AND s.deadline IS NOT NULL),
               a.registered_at, a.heartbeat_at,
               CASE WHEN a.closed_at IS NULL
                    THEN extract(epoch FROM now() - a.heartbeat_at)::double precision END,
               a.expires_at, a.closed_at
        FROM solti.agents a
        """,
    ),
    View(
        "outcomes",
        f"What attempts came to, by day, slot and kind. {OF_DAYS}",
        A_DAY | A_SLOT | COUNTED,
        f"""
        SELECT d.day, o.* FROM {DAYS} CROSS JOIN LATERAL (
            SELECT t.slot, t.kind, {COUNTS}
            FROM solti.task_runs r JOIN solti.tasks t ON t.seq = r.seq
            WHERE r.finished_at >= d.since AND r.finished_at < d.until
            GROUP BY t.slot, t.kind) AS o
        """,
    ),
    View(
        "outcomes_by_label",
        "What attempts came to, by day and label; an attempt counts once for each label of its task, as the labels are"
        f" now. {OF_DAYS}",
        A_DAY | {"label_key": "The label's key.", "label_value": "Its value."} | COUNTED,
        f"""
        SELECT d.day, o.* FROM {DAYS} CROSS JOIN LATERAL (
            SELECT l.key, l.value, {COUNTS}
            FROM solti.task_runs r JOIN solti.tasks t ON t.seq = r.seq CROSS JOIN LATERAL jsonb_each_text(t.labels) AS l
            WHERE r.finished_at >= d.since AND r.finished_at < d.until
            GROUP BY l.key, l.value) AS o
        """,
    ),
    View(
        "durations",
        "How long attempts ran, and how long tasks waited for their first one, by day, slot and kind, in percentiles"
        f" (interpolated). Later attempts are not among the waits: theirs are mostly backoff. {OF_DAYS}",
        A_DAY
        | A_SLOT
        | {
            "attempts": "Attempts that ended on that day.",
            "run_p50_seconds": "What half of them took at most.",
            "run_p90_seconds": "What nine in ten took at most.",
            "run_p95_seconds": "What 19 in 20 took at most.",
            "run_p99_seconds": "What 99 in 100 took at most.",
            "run_max_seconds": "What the longest took.",
            "first_attempts": "Those of the attempts that were their task's first.",
            "wait_p50_seconds": "What half of these waited at most, from the task's creation to their start.",
            "wait_p90_seconds": "What nine in ten waited at most.",
            "wait_p95_seconds": "What 19 in 20 waited at most.",
            "wait_p99_seconds": "What 99 in 100 waited at most.",
            "wait_max_seconds": "What the longest waited.",
        },
        f"""
        SELECT d.day, o.slot, o.kind, o.attempts, o.run[1], o.run[2], o.run[3], o.run[4], o.run[5],
               o.first_attempts, o.wait[1], o.wait[2], o.wait[3], o.wait[4], o.wait[5]
        FROM {DAYS} CROSS JOIN LATERAL (
            SELECT t.slot, t.kind, count(*) AS attempts, count(*) FILTER (WHERE r.attempt = 1) AS first_attempts,
                   {PERCENTILES.format(of="extract(epoch FROM r.finished_at - r.started_at)::double precision")} AS run,
                   {PERCENTILES.format(of="extract(epoch FROM r.started_at - t.created_at)::double precision")}
                       FILTER (WHERE r.attempt = 1) AS wait
            FROM solti.task_runs r JOIN solti.tasks t ON t.seq = r.seq
            WHERE r.finished_at >= d.since AND r.finished_at < d.until
            GROUP BY t.slot, t.kind) AS o
        """,
    ),
    View(
        "retry_cost",
        "What failures cost and what retries saved, by day, slot and kind. A retry is an attempt after one that failed"
        " or took too long; a restart by interval is none. Finds the attempt before each by its key."
        f" {OF_DAYS}",
        RETRIES,
        f"""
        SELECT d.day, o.*, o.lost_seconds / NULLIF(o.run_seconds, 0)
        FROM {DAYS} CROSS JOIN LATERAL (
            SELECT slot, kind, count(*) AS attempts, count(*) FILTER (WHERE is_lost) AS unsuccessful,
                   count(*) FILTER (WHERE is_retry) AS retries,
                   count(*) FILTER (WHERE is_retry AND phase = 'succeeded') AS recovered,
                   sum(took) AS run_seconds,
                   COALESCE(sum(took) FILTER (WHERE is_lost), 0) AS lost_seconds,
                   COALESCE(sum(took) FILTER (WHERE is_retry), 0) AS retry_seconds
            FROM (SELECT t.slot, t.kind, r.phase, r.phase IN ('failed', 'timeout') AS is_lost,
                         before.phase IN ('failed', 'timeout') AS is_retry,
                         extract(epoch FROM r.finished_at - r.started_at)::double precision AS took
                  FROM solti.task_runs r JOIN solti.tasks t ON t.seq = r.seq
                  LEFT JOIN solti.task_runs before ON before.seq = r.seq AND before.attempt = r.attempt - 1
                  WHERE r.finished_at >= d.since AND r.finished_at < d.until) AS run
            GROUP BY slot, kind) AS o
        """,
    ),
    View(
        "failures",
        "Attempts that failed or took too long, by day and error. Errors that differ only in numbers, long hexadecimal"
        " words or the name of a lost worker are one. A condition on day reads the runs of those days by an index;"
        " without one, all runs.",
        A_DAY
        | {
            "error": "What the errors have in common: the first 200 characters with # for numbers and * for names.",
            "attempts": "Attempts that ended so.",
            "tasks": "How many tasks they belong to.",
            "agents": "How many workers, by name, they ran on.",
            "first_at": "When the first of them ended.",
            "last_at": "When the last of them ended.",
            "sample_task": "The id of the youngest of the tasks.",
            "sample_error": "One of the errors in full.",
        },
        f"""
        SELECT d.day, o.error, o.attempts, o.tasks, o.agents, o.first_at, o.last_at,
               (SELECT id FROM solti.tasks WHERE seq = o.youngest), o.sample
        FROM {DAYS} CROSS JOIN LATERAL (
            SELECT {ERROR_GROUP} AS error, count(*) AS attempts, count(DISTINCT r.seq) AS tasks,
                   count(DISTINCT r.agent_id) AS agents, min(r.finished_at) AS first_at, max(r.finished_at) AS last_at,
                   max(r.seq) AS youngest, max(r.error) AS sample
            FROM solti.task_runs r
            WHERE r.finished_at >= d.since AND r.finished_at < d.until AND r.phase IN ('failed', 'timeout')
            GROUP BY 1) AS o
        """,
    ),
    View(
        "throughput",
        "What attempts came to in each minute of the last 24 hours, those in which nothing ended included; the last"
        " minute is not over yet. Reads the runs of these minutes by an index.",
        {"minute": "When the minute began."} | COUNTED,
        f"""
        SELECT m.minute, o.*
        FROM generate_series(date_trunc('minute', now()) - interval '1439 minutes', now(), interval '1 minute')
            AS m (minute)
        CROSS JOIN LATERAL (SELECT {COUNTS} FROM solti.task_runs r
            WHERE r.finished_at >= m.minute AND r.finished_at < m.minute + interval '1 minute') AS o
        """,
    ),
    View(
        "phase_spans",
        "A row for each stay of a task in a phase, from the events, which also know tasks that are deleted. A stay"
        " whose first event is pruned is not there. Reads all events and sorts those that change a phase; with a"
        " condition on task or seq it reads all, and sorts those.",
        {
            "seq": "The task's incarnation.",
            "task": "The task's id.",
            "phase": "The phase.",
            "entered_at": "When the task came into it.",
            "left_at": "When it went on to another, or was deleted; NULL when it is still there.",
            "seconds": "How long it stayed; NULL when it is still there.",
        },
        """
        SELECT seq, id, phase, at, until, extract(epoch FROM until - at)::double precision
        FROM (SELECT seq, id, phase, at, type, lead(at) OVER (PARTITION BY seq, id ORDER BY event) AS until
              FROM solti.task_events
              WHERE type = 'deleted' OR phase IS DISTINCT FROM phase_before AND type <> 'refused') AS step
        WHERE type <> 'deleted'
        """,
    ),
    View(
        "time_in_phase",
        "How long the tasks of each slot stayed in each phase, by day, from the events: stays that ended on that day,"
        " of tasks that are not deleted. A condition on day reads the events of those days by their number, and the"
        " task of each; without one, all events.",
        {
            "day": "The day on which the stays ended, in UTC.",
            "slot": "The slot of the tasks.",
            "phase": "The phase.",
            "stays": "How often a task of the slot has left the phase.",
            "total_seconds": "How long these stays were, together.",
            "p50_seconds": "What half of them lasted at most.",
            "p90_seconds": "What nine in ten lasted at most.",
            "p95_seconds": "What 19 in 20 lasted at most.",
            "p99_seconds": "What 99 in 100 lasted at most.",
            "max_seconds": "What the longest lasted.",
        },
        # A stay that began on an earlier day has begun with the task or with an attempt, or else with the end of one.
        f"""
        SELECT d.day, o.slot, o.phase, o.stays, o.total, o.p[1], o.p[2], o.p[3], o.p[4], o.p[5]
        FROM {EVENT_DAYS} CROSS JOIN LATERAL (
            SELECT slot, phase, count(*) AS stays, sum(seconds) AS total, {PERCENTILES.format(of="seconds")} AS p
            FROM (SELECT s.slot, e.phase_before AS phase,
                         date_part('epoch', e.at - COALESCE(e.entered, CASE e.phase_before
                             WHEN 'pending' THEN (SELECT created_at FROM solti.tasks WHERE seq = e.seq)
                             WHEN 'running' THEN (SELECT started_at FROM solti.task_runs r
                                                  WHERE r.seq = e.seq AND r.attempt = e.attempt)
                             ELSE (SELECT finished_at FROM solti.task_runs r
                                   WHERE r.seq = e.seq AND r.attempt = e.attempt - (e.type = 'started')::integer)
                             END)) AS seconds
                  FROM (SELECT seq, attempt, type, phase_before, at,
                               lag(at) OVER (PARTITION BY seq ORDER BY event) AS entered
                        FROM solti.task_events
                        WHERE event >= {FIRST_EVENT.format(moment="d.since - interval '1 hour'")}
                        AND event < {FIRST_EVENT.format(moment="d.until + interval '1 hour'")}
                        AND at >= d.since AND at < d.until
                        AND phase IS DISTINCT FROM phase_before AND type <> 'refused') AS e
                  JOIN solti.task_status s ON s.seq = e.seq
                  WHERE e.phase_before IS NOT NULL
                  -- To compute each length once, and not for every column.
                  OFFSET 0) AS stay
            WHERE seconds IS NOT NULL
            GROUP BY slot, phase) AS o
        """,
    ),
)


TRENDS = (
    View(
        "outcome_trend",
        f"What attempts came to, by day, slot and kind. {OF_TREND}",
        A_DAY | A_SLOT | COUNTED,
        f"""
        SELECT day, slot, kind, attempts, succeeded, failed, timeout, canceled, run_seconds FROM solti.outcome_days
        UNION ALL
        SELECT day, slot, kind, attempts, succeeded, failed, timeout, canceled, run_seconds FROM solti_report.outcomes
        WHERE day >= {LATER}
        """,
    ),
    View(
        "duration_trend",
        "How long attempts ran and tasks waited for their first one, by day, slot, kind and measure, in percentiles,"
        f" each too great by less than a tenth and never beyond the longest. {OF_TREND}",
        A_DAY
        | A_SLOT
        | A_MEASURE
        | {
            "attempts": "How many were measured.",
            "p50_seconds": "What half of them took at most.",
            "p90_seconds": "What nine in ten took at most.",
            "p95_seconds": "What 19 in 20 took at most.",
            "p99_seconds": "What 99 in 100 took at most.",
            "max_seconds": "What the longest took.",
        },
        f"""
        SELECT h.day, h.slot, h.kind, h.measure, h.attempts, p.p50, p.p90, p.p95, p.p99, h.max_seconds
        FROM {DURATIONS} CROSS JOIN LATERAL (
            SELECT LEAST(h.max_seconds, min(bound) FILTER (WHERE upto >= 0.5 * h.attempts)) AS p50,
                   LEAST(h.max_seconds, min(bound) FILTER (WHERE upto >= 0.9 * h.attempts)) AS p90,
                   LEAST(h.max_seconds, min(bound) FILTER (WHERE upto >= 0.95 * h.attempts)) AS p95,
                   LEAST(h.max_seconds, min(bound) FILTER (WHERE upto >= 0.99 * h.attempts)) AS p99
            FROM (SELECT {BOUND} AS bound, sum(counted) OVER (ORDER BY bucket) AS upto
                  FROM unnest(h.buckets, h.counts) AS b (bucket, counted)) AS summed) AS p
        """,
    ),
    View(
        "duration_buckets",
        "How many attempts ran, and tasks waited for their first one, about how long, by day, slot, kind and measure:"
        " counts that may be added over days, slots and kinds, for percentiles of all of them and for heat maps."
        f" {OF_TREND}",
        A_DAY
        | A_SLOT
        | A_MEASURE
        | {
            "at_most_seconds": "The upper end of the bucket, 2^(1/8) times its lower end, which is not in it; the first"
            " ends at a millisecond and begins at 0.",
            "attempts": "How many are in it; buckets without any have no row.",
        },
        f"""
        SELECT h.day, h.slot, h.kind, h.measure, {BOUND}, b.counted
        FROM {DURATIONS} CROSS JOIN LATERAL unnest(h.buckets, h.counts) AS b (bucket, counted)
        """,
    ),
    View(
        "retry_cost_trend",
        f"What failures cost and what retries saved, by day, slot and kind, as in retry_cost. {OF_TREND}",
        RETRIES,
        f"""
        SELECT day, slot, kind, attempts, unsuccessful, retries, recovered, run_seconds, lost_seconds, retry_seconds,
               lost_seconds / NULLIF(run_seconds, 0)
        FROM solti.retry_days
        UNION ALL
        SELECT day, slot, kind, attempts, unsuccessful, retries, recovered, run_seconds, lost_seconds, retry_seconds,
               lost_share
        FROM solti_report.retry_cost WHERE day >= {LATER}
        """,
    ),
    View(
        "failure_trend",
        f"Attempts that failed or took too long, by day and error as in failures: the {ERRORS} most frequent of each"
        f" day, the others together. {OF_TREND}",
        A_DAY
        | {
            "error": "What the errors have in common: the first 200 characters with # for numbers and * for names; or"
            " (other errors).",
            "attempts": "Attempts that ended so.",
            "tasks": "How many tasks they belong to; of the others, one counts once for each error.",
            "first_at": "When the first of them ended.",
            "last_at": "When the last of them ended.",
        },
        f"""
        SELECT day, error, attempts, tasks, first_at, last_at FROM solti.failure_days
        UNION ALL
        SELECT day, error, attempts, tasks, first_at, last_at FROM solti.failure_days_of_runs WHERE day >= {LATER}
        """,
    ),
    View(
        "throughput_trend",
        f"What attempts came to in each hour in which some ended. {OF_TREND}",
        {"hour": "When the hour began."} | COUNTED,
        f"""
        SELECT hour, attempts, succeeded, failed, timeout, canceled, run_seconds FROM solti.throughput_hours
        UNION ALL
        SELECT hour, attempts, succeeded, failed, timeout, canceled, run_seconds FROM solti.throughput_hours_of_runs
        WHERE day >= {LATER}
        """,
    ),
)


def literal(text: str) -> str:
    """The text as SQL."""
    return "'" + text.replace("'", "''") + "'"


def report(view: View) -> None:
    """Create a view, with its comments."""
    name = f"solti_report.{view.name}"
    execute(f"CREATE VIEW {name} ({', '.join(view.columns)}) AS {view.query}")
    execute(f"COMMENT ON VIEW {name} IS {literal(view.comment)}")
    for column, comment in view.columns.items():
        execute(f"COMMENT ON COLUMN {name}.{column} IS {literal(comment)}")


def upgrade() -> None:
    """Create every view, and the tables of what is kept."""
    for table, columns in TABLES.items():
        execute(f"CREATE TABLE solti.{table} ({columns})")
    execute("INSERT INTO solti.rollup DEFAULT VALUES")
    execute(f"COMMENT ON SCHEMA solti_report IS {literal('Reports on the task registry: views to read, and keep.')}")
    for view in VIEWS:
        report(view)
    for name, query in OF_RUNS.items():
        execute(f"CREATE VIEW solti.{name} AS {query}")
    for view in TRENDS:
        report(view)


def downgrade() -> None:
    """Drop every view, and what is kept.

    What was granted on the schema stays, and what was granted by default comes back with the views.
    """
    for view in reversed(TRENDS):
        execute(f"DROP VIEW solti_report.{view.name}")
    for name in reversed(OF_RUNS):
        execute(f"DROP VIEW solti.{name}")
    for view in reversed(VIEWS):
        execute(f"DROP VIEW solti_report.{view.name}")
    for table in reversed(TABLES):
        execute(f"DROP TABLE solti.{table}")
