"""The registry: tasks and their status, runs, events, agents, routes.

What each table is for, and why they are apart, stands in `solti_store/sql/tables.py` and docs/schema.md.

Revision: solti_0001
Revises:
"""

from __future__ import annotations

from solti_store.migrate import create_function, create_schemas, execute, execute_block

revision = "solti_0001"
down_revision = None
branch_labels = ("solti",)  # for applications that have these migrations among theirs
depends_on = None
oldest_code = "solti_0001"
unsafe = {"DO ' DECLARE role": "takes rights on tables that are new, from roles that only the database knows"}

# What CHECKs say, in functions. PostgreSQL reads the expressions of a table's CHECKs anew for each statement that
# writes to it, and these are long: to insert one task took 116 µs with them in place, 41 by functions, whose plans a
# session keeps, and 36 without any. In a batch it makes no difference.
_IDENTITY = "octet_length({0}) <= {1} AND {0} ~ '^[A-Za-z0-9._-]+$' AND {0} NOT IN ('.', '..')"
_IS_PHASE = "phase IN ('pending', 'running', 'succeeded', 'failed', 'timeout', 'canceled', 'exhausted')"
_RULE = "RETURNS boolean IMMUTABLE PARALLEL SAFE"
FUNCTIONS = {
    # `?` holds for a key of an object and for a bare string alike: both wire forms of a kind.
    "solti.kind_of(spec jsonb) RETURNS text IMMUTABLE PARALLEL SAFE": """
        DECLARE kind jsonb := spec -> 'kind';
        BEGIN
            RETURN CASE WHEN kind ? 'subprocess' THEN 'subprocess'
                        WHEN kind ? 'container' THEN 'container'
                        WHEN kind ? 'wasm' THEN 'wasm'
                        WHEN kind ? 'embedded' THEN 'embedded'
                   END;
        END
    """,
    # COALESCE, because a CHECK that comes out NULL passes: a missing key must fail.
    f"solti.is_task(id text, slot text, labels jsonb, spec jsonb) {_RULE}": f"""
        BEGIN
            RETURN COALESCE(
                {_IDENTITY.format("id", 256)}
                AND {_IDENTITY.format("slot", 64)}
                AND jsonb_typeof(labels) = 'object'
                AND jsonb_typeof(spec) = 'object'
                AND (spec -> 'timeout')::numeric > 0
                AND spec -> 'restart' ->> 'type' IN ('never', 'onFailure', 'always')
                AND (spec -> 'backoff' -> 'firstMs')::numeric > 0
                AND (spec -> 'backoff' -> 'maxMs')::numeric >= (spec -> 'backoff' -> 'firstMs')::numeric
                AND (spec -> 'backoff' -> 'factor')::numeric >= 1
                AND spec -> 'backoff' ->> 'jitter' IN ('full', 'none', 'equal', 'decorrelated')
                AND spec ->> 'admission' IN ('dropIfRunning', 'replace', 'queue')
                AND COALESCE((spec -> 'maxRetries')::numeric >= 1, true), false);
        END
    """,
    "solti.is_status(phase text, attempt bigint, due_at timestamptz, queue_key bigint, agent bigint, agent_id text,"
    f" started_at timestamptz, deadline timestamptz, cancel_requested_at timestamptz) {_RULE}": f"""
        BEGIN
            RETURN {_IS_PHASE}
                -- Not started means attempt 0; canceled is the one final phase an unstarted task can reach.
                AND ((attempt = 0) = (phase = 'pending') OR phase = 'canceled')
                AND CASE WHEN phase = 'running' THEN started_at IS NOT NULL AND deadline IS NOT NULL
                         ELSE COALESCE(started_at, deadline, cancel_requested_at) IS NULL
                              AND agent IS NULL AND agent_id IS NULL END
                AND (due_at IS NULL OR phase IN ('pending', 'succeeded', 'failed', 'timeout'))
                -- Pending means due, or queued behind the slot's owner.
                AND (queue_key IS NOT NULL) = (phase = 'pending' AND due_at IS NULL);
        END
    """,
    f"solti.is_run(attempt bigint, phase text, stdout text, stderr text) {_RULE}": """
        BEGIN
            RETURN attempt BETWEEN 1 AND 4294967295
                AND phase IN ('succeeded', 'failed', 'timeout', 'canceled')
                AND (stdout IS NULL OR octet_length(stdout) BETWEEN 1 AND 196608)
                AND (stderr IS NULL OR octet_length(stderr) BETWEEN 1 AND 196608);
        END
    """,
    f"solti.is_event(type text, phase text) {_RULE}": f"""
        BEGIN
            RETURN type IN
                ('created', 'admitted', 'specChanged', 'started', 'finished', 'cancelRequested', 'refused', 'deleted')
                AND {_IS_PHASE};
        END
    """,
}

# Instead of foreign keys that cascade. They would look for the task of every status, and the status of every run, which
# one statement writes together: 11 % of what creating costs the server, 12 % of finishing.
FORGET = """
    DECLARE gone bigint[];
    BEGIN
        -- By the schema that the table is in now: a name that stood here would be the old one after a renaming.
        IF TG_OP = 'TRUNCATE' THEN
            EXECUTE format('DELETE FROM %I.task_status', TG_TABLE_SCHEMA);
            EXECUTE format('DELETE FROM %I.task_runs', TG_TABLE_SCHEMA);
        ELSE
            gone := ARRAY(SELECT seq FROM gone_tasks);
            -- The status first: a finish that is under way holds it, and the run that it writes is seen after it.
            EXECUTE format('DELETE FROM %I.task_status WHERE seq = ANY ($1)', TG_TABLE_SCHEMA) USING gone;
            EXECUTE format('DELETE FROM %I.task_runs WHERE seq = ANY ($1)', TG_TABLE_SCHEMA) USING gone;
        END IF;
        RETURN NULL;
    END
"""
TRIGGERS = (
    """
    CREATE TRIGGER forget AFTER DELETE ON solti.tasks REFERENCING OLD TABLE AS gone_tasks
    FOR EACH STATEMENT EXECUTE FUNCTION solti.forget()
    """,
    "CREATE TRIGGER forget_all AFTER TRUNCATE ON solti.tasks FOR EACH STATEMENT EXECUTE FUNCTION solti.forget()",
)

TABLES = (
    """
    CREATE TABLE solti.schema_history (
        revision     text COLLATE "C" CONSTRAINT pk_schema_history PRIMARY KEY,
        oldest_code  text COLLATE "C" NOT NULL,
        applied_at   timestamptz NOT NULL DEFAULT statement_timestamp()
    )
    """,
    """
    CREATE TABLE solti.tasks (
        seq         bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_tasks PRIMARY KEY,
        id          text COLLATE "C" NOT NULL CONSTRAINT uq_tasks_id UNIQUE,
        generation  bigint NOT NULL DEFAULT 1,
        created_at  timestamptz NOT NULL DEFAULT statement_timestamp(),
        spec        jsonb NOT NULL,
        slot        text COLLATE "C" GENERATED ALWAYS AS (spec ->> 'slot') STORED NOT NULL,
        kind        text COLLATE "C" GENERATED ALWAYS AS (solti.kind_of(spec)) STORED NOT NULL,
        labels      jsonb GENERATED ALWAYS AS (COALESCE(spec -> 'labels', '{}')) STORED NOT NULL,
        labels_xid  xid8 NOT NULL DEFAULT pg_current_xact_id(),
        CONSTRAINT ck_tasks_generation CHECK (generation >= 1),
        CONSTRAINT ck_tasks_valid CHECK (solti.is_task(id, slot, labels, spec))
    )
    """,
    """
    CREATE TABLE solti.task_status (
        seq                  bigint CONSTRAINT pk_task_status PRIMARY KEY,
        resource_version     bigint NOT NULL DEFAULT 1,
        updated_at           timestamptz NOT NULL,
        phase                text COLLATE "C" NOT NULL,
        attempt              bigint NOT NULL DEFAULT 0,
        failures             bigint NOT NULL DEFAULT 0,
        exit_code            integer,
        error                text,
        due_at               timestamptz,
        slot                 text COLLATE "C" NOT NULL,
        queue_key            bigint,
        route                uuid NOT NULL,
        agent                bigint,
        agent_id             text COLLATE "C",
        started_at           timestamptz,
        deadline             timestamptz,
        cancel_requested_at  timestamptz,
        CONSTRAINT ck_task_status_resource_version CHECK (resource_version >= 1),
        CONSTRAINT ck_task_status_attempt CHECK (attempt BETWEEN 0 AND 4294967295),
        CONSTRAINT ck_task_status_failures CHECK (failures >= 0),
        CONSTRAINT ck_task_status_valid CHECK (solti.is_status(
            phase, attempt, due_at, queue_key, agent, agent_id, started_at, deadline, cancel_requested_at))
    )
    """,
    """
    CREATE TABLE solti.task_runs (
        seq          bigint NOT NULL,
        attempt      bigint NOT NULL,
        phase        text COLLATE "C" NOT NULL,
        started_at   timestamptz NOT NULL,
        finished_at  timestamptz NOT NULL,
        error        text,
        exit_code    integer,
        agent        bigint,
        agent_id     text COLLATE "C",
        stdout       text,
        stderr       text,
        CONSTRAINT pk_task_runs PRIMARY KEY (seq, attempt),
        CONSTRAINT ck_task_runs_valid CHECK (solti.is_run(attempt, phase, stdout, stderr))
    )
    """,
    """
    CREATE TABLE solti.task_events (
        xid               xid8 NOT NULL DEFAULT pg_current_xact_id(),
        event             bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_task_events PRIMARY KEY,
        at                timestamptz NOT NULL,
        seq               bigint NOT NULL,
        id                text COLLATE "C" NOT NULL,
        type              text COLLATE "C" NOT NULL,
        resource_version  bigint NOT NULL,
        phase             text COLLATE "C" NOT NULL,
        phase_before      text COLLATE "C",
        attempt           bigint NOT NULL,
        labels_before     jsonb,
        detail            jsonb,
        CONSTRAINT ck_task_events_valid CHECK (solti.is_event(type, phase))
    )
    """,
    """
    CREATE TABLE solti.feed (
        id          boolean NOT NULL DEFAULT true CONSTRAINT pk_feed PRIMARY KEY,
        epoch       uuid NOT NULL DEFAULT gen_random_uuid(),
        written_by  xid8 NOT NULL,
        pruned      bigint NOT NULL DEFAULT 0,
        pruned_xid  xid8 NOT NULL DEFAULT '0',
        CONSTRAINT ck_feed_id CHECK (id)
    )
    """,
    "INSERT INTO solti.feed (written_by) VALUES (pg_current_xact_id())",
    """
    CREATE TABLE solti.agents (
        seq            bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_agents PRIMARY KEY,
        id             text COLLATE "C" NOT NULL,
        labels         jsonb NOT NULL,
        kinds          text[] COLLATE "C" NOT NULL,
        capacity       integer,
        state          text COLLATE "C" NOT NULL,
        lease          interval NOT NULL,
        registered_at  timestamptz NOT NULL,
        heartbeat_at   timestamptz NOT NULL,
        expires_at     timestamptz NOT NULL,
        closed_at      timestamptz,
        CONSTRAINT ck_agents_id
            CHECK (octet_length(id) <= 128 AND id ~ '^[A-Za-z0-9._-]+$' AND id NOT IN ('.', '..')),
        CONSTRAINT ck_agents_labels CHECK (jsonb_typeof(labels) = 'object'),
        CONSTRAINT ck_agents_lease CHECK (lease > interval '0'),
        CONSTRAINT ck_agents_state CHECK (state IN ('active', 'draining', 'stopped', 'lost')),
        CONSTRAINT ck_agents_capacity CHECK (capacity >= 1),
        CONSTRAINT ck_agents_closed_at CHECK ((state IN ('active', 'draining')) = (closed_at IS NULL))
    )
    """,
    """
    CREATE TABLE solti.routes (
        id        uuid CONSTRAINT pk_routes PRIMARY KEY,
        kind      text COLLATE "C" NOT NULL,
        selector  jsonb NOT NULL,
        CONSTRAINT ck_routes_kind CHECK (kind IN ('subprocess', 'wasm', 'container', 'embedded')),
        CONSTRAINT ck_routes_selector CHECK (jsonb_typeof(selector) = 'object')
    )
    """,
    """
    CREATE TABLE solti.label_postings (
        term     uuid NOT NULL,
        segment  bigint NOT NULL,
        number   bigint NOT NULL,
        members  bytea NOT NULL,
        CONSTRAINT pk_label_postings PRIMARY KEY (term, segment, number),
        CONSTRAINT ck_label_postings_members CHECK (octet_length(members) BETWEEN 2 AND 512)
    )
    """,
    """
    CREATE TABLE solti.label_segments (
        segment       bigint CONSTRAINT pk_label_segments PRIMARY KEY,
        members       bytea NOT NULL,
        created_from  timestamptz,
        created_to    timestamptz
    )
    """,
    """
    CREATE TABLE solti.label_index (
        id          boolean NOT NULL DEFAULT true CONSTRAINT pk_label_index PRIMARY KEY,
        horizon     xid8 NOT NULL,
        open_xids   xid8[] NOT NULL,
        written_by  xid8 NOT NULL,
        CONSTRAINT ck_label_index_id CHECK (id)
    )
    """,
    "INSERT INTO solti.label_index (horizon, open_xids, written_by) VALUES ('0', '{}', pg_current_xact_id())",
    """
    CREATE TABLE solti.backfills (
        name      text CONSTRAINT pk_backfills PRIMARY KEY,
        identity  text NOT NULL,
        position  text[],
        seen      bigint NOT NULL DEFAULT 0,
        changed   bigint NOT NULL DEFAULT 0,
        estimate  bigint NOT NULL
    )
    """,
)

# The tables are new and empty, so their indexes are built in the same transaction.
INDEXES = (
    "CREATE INDEX ix_tasks_slot_seq ON solti.tasks (slot, seq)",
    "CREATE INDEX ix_tasks_kind_seq ON solti.tasks (kind, seq)",
    "CREATE INDEX ix_tasks_labels_xid ON solti.tasks (labels_xid)",
    "CREATE INDEX ix_task_status_claim ON solti.task_status (route, due_at, seq) WHERE due_at IS NOT NULL",
    """
    CREATE UNIQUE INDEX uq_task_status_owner ON solti.task_status (slot)
    WHERE due_at IS NOT NULL OR deadline IS NOT NULL
    """,
    """
    CREATE UNIQUE INDEX uq_task_status_queue ON solti.task_status (slot, queue_key)
    WHERE queue_key IS NOT NULL
    """,
    "CREATE INDEX ix_task_status_running ON solti.task_status (agent, deadline) WHERE deadline IS NOT NULL",
    "CREATE INDEX ix_task_status_phase_seq ON solti.task_status (phase, seq)",
    "CREATE INDEX ix_task_status_updated_at_seq ON solti.task_status (updated_at, seq)",
    """
    CREATE INDEX ix_task_status_final ON solti.task_status (updated_at)
    WHERE due_at IS NULL AND phase IN ('succeeded', 'failed', 'timeout', 'canceled', 'exhausted')
    """,
    "CREATE INDEX ix_task_runs_finished_at ON solti.task_runs (finished_at)",
    "CREATE INDEX ix_task_events_xid ON solti.task_events (xid)",
    "CREATE INDEX ix_task_events_labels ON solti.task_events (seq, event) WHERE labels_before IS NOT NULL",
    "CREATE INDEX ix_label_postings_segment ON solti.label_postings (segment)",
    "CREATE INDEX ix_agents_id ON solti.agents (id)",
    "CREATE INDEX ix_agents_expires_at ON solti.agents (expires_at) WHERE closed_at IS NULL",
    "CREATE INDEX ix_agents_closed_at ON solti.agents (closed_at) WHERE closed_at IS NOT NULL",
)

# Where roles were made before the tables, workers have by default the right to write all of them.
KEEP_FROM_WORKERS = """
    DECLARE role text; kept text;
    BEGIN
        FOR role, kept IN
            SELECT DISTINCT a.grantee::regrole, c.oid::regclass FROM pg_class AS c, aclexplode(c.relacl) AS a
            WHERE c.oid IN ('solti.schema_history'::regclass, 'solti.backfills'::regclass)
                AND a.grantee NOT IN (0, c.relowner)
        LOOP
            EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %s FROM %s', kept, role);
        END LOOP;
    END
"""

# Autovacuum waits by default until a fifth of a table is dead. Of a million tasks that is 200,000 entries in each index
# of task_status that claims and pages walk over. Nothing for HOT: each status update changes indexed columns, so room
# left in the pages (fillfactor) gains nothing. What `python -m benchmarks.churn` measured is in docs/production.md.
STORAGE = {
    "tasks": "autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05",
    "task_status": "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,"
    " autovacuum_analyze_scale_factor = 0.05",
    "task_runs": "autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05,"
    " autovacuum_analyze_scale_factor = 0.05",
    "task_events": "autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05,"
    " autovacuum_analyze_scale_factor = 0.05",
}


def upgrade() -> None:
    """Create every table, and the schemas if they are not there."""
    create_schemas()
    for signature, body in FUNCTIONS.items():
        create_function(signature, body)
    for statement in (*TABLES, *INDEXES):
        execute(statement)
    create_function("solti.forget() RETURNS trigger", FORGET)
    for trigger in TRIGGERS:
        execute(trigger)
    execute_block(KEEP_FROM_WORKERS)
    for table, parameters in STORAGE.items():
        execute(f"ALTER TABLE solti.{table} SET ({parameters})")


def downgrade() -> None:
    """Drop every table, with all that is in them.

    The schemas stay: who may make them again is not always who migrates.
    """
    for table in (
        "backfills",
        "label_index",
        "label_segments",
        "label_postings",
        "routes",
        "agents",
        "feed",
        "task_events",
        "task_runs",
        "task_status",
        "tasks",
        "schema_history",
    ):
        execute(f"DROP TABLE solti.{table}")
    for function in ("forget", "is_event", "is_run", "is_status", "is_task", "kind_of"):
        execute(f"DROP FUNCTION solti.{function}")
