"""The tables, as SQLAlchemy sees them; `migrations/` creates them, and a test compares the two.

`tasks` is what somebody wants, `task_status` what came of it. They are apart because a status row changes
several times in a task's life: kept with the spec and its indexes, a claim and a finish would write about
five times the WAL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Computed,
    Date,
    Double,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from solti_store.sql.naming import SCHEMA, renamed
from solti_store.sql.types import NOW, Instant, Tid, Xid8

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FINAL",
    "LATEST",
    "OWNER",
    "SCHEMA",
    "agents",
    "backfills",
    "feed",
    "label_index",
    "label_postings",
    "label_segments",
    "metadata",
    "metadata_in",
    "outcome_days",
    "routes",
    "schema_history",
    "task_events",
    "task_runs",
    "task_status",
    "tasks",
]

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    },
)


_FINAL = "due_at IS NULL AND phase IN ('succeeded', 'failed', 'timeout', 'canceled', 'exhausted')"
_OWNER = "due_at IS NOT NULL OR deadline IS NOT NULL"
U32_MAX = 4294967295


tasks = Table(
    "tasks",
    metadata,
    # The incarnation: a re-created id gets a new seq, and nothing that names the old one can write to it.
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("id", Text(collation="C"), nullable=False),
    Column("generation", BigInteger, nullable=False, server_default=text("1")),
    Column("created_at", Instant, nullable=False, server_default=func.statement_timestamp()),
    Column("spec", JSONB, nullable=False),
    # Generated, so the spec stays the single source of truth.
    Column(
        "slot",
        Text(collation="C"),
        Computed("(spec ->> 'slot')", persisted=True),
        nullable=False,
    ),
    Column(
        "kind",
        Text(collation="C"),
        Computed("solti.kind_of(spec)", persisted=True),
        nullable=False,
    ),
    Column("labels", JSONB, Computed("COALESCE(spec -> 'labels', '{}')", persisted=True), nullable=False),
    # The transaction that set the labels last: what the label index does not know yet is found by it.
    Column("labels_xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    UniqueConstraint("id"),
    CheckConstraint("generation >= 1", name="generation"),
    CheckConstraint("solti.is_task(id, slot, labels, spec)", name="valid"),
    Index(None, "slot", "seq"),
    Index(None, "kind", "seq"),
    Index(None, "labels_xid"),
)

task_status = Table(
    "task_status",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("resource_version", BigInteger, nullable=False, server_default=text("1")),
    Column("updated_at", Instant, nullable=False),
    Column("phase", Text(collation="C"), nullable=False),
    Column("attempt", BigInteger, nullable=False, server_default=text("0")),
    # Failures in a row; a success sets it back, and backoff and maxRetries count by it.
    Column("failures", BigInteger, nullable=False, server_default=text("0")),
    Column("exit_code", Integer),
    Column("error", Text),
    # Set when, and only when, the task may be started: this column *is* the queue.
    Column("due_at", Instant),
    # tasks.slot, which never changes: a constraint on who owns it must have it in this table.
    Column("slot", Text(collation="C"), nullable=False),
    # The task's place among those that wait for the slot; NULL when it does not wait.
    Column("queue_key", BigInteger),
    # routes.id; no foreign key, for its check would lock one routes row from every creator at once.
    Column("route", Uuid, nullable=False),
    # Of the running attempt, which has no row in task_runs before it ends: agents.seq (no foreign key, for the same
    # reason), and the agent's name, which stays readable when its row is gone.
    Column("agent", BigInteger),
    Column("agent_id", Text(collation="C")),
    Column("started_at", Instant),
    Column("deadline", Instant),
    Column("cancel_requested_at", Instant),
    # Where the row is. What has another place in a statement's snapshot than its lock has was changed in between.
    Column("ctid", Tid, system=True),
    CheckConstraint("resource_version >= 1", name="resource_version"),
    CheckConstraint(f"attempt BETWEEN 0 AND {U32_MAX}", name="attempt"),
    CheckConstraint("failures >= 0", name="failures"),
    CheckConstraint(
        "solti.is_status("
        "phase, attempt, due_at, queue_key, agent, agent_id, started_at, deadline, cancel_requested_at)",
        name="valid",
    ),
    # One owner a slot: from its admission to its end a task is due, waits for a restart, or runs.
    Index("uq_task_status_owner", "slot", unique=True, postgresql_where=text(_OWNER)),
    Index("uq_task_status_queue", "slot", "queue_key", unique=True, postgresql_where=text("queue_key IS NOT NULL")),
    Index("ix_task_status_claim", "route", "due_at", "seq", postgresql_where=text("due_at IS NOT NULL")),
    Index("ix_task_status_running", "agent", "deadline", postgresql_where=text("deadline IS NOT NULL")),
    Index(None, "phase", "seq"),
    Index(None, "updated_at", "seq"),
    # What retention looks for: tasks that wait, for however long, are not in its way.
    Index("ix_task_status_final", "updated_at", postgresql_where=text(_FINAL)),
)

task_runs = Table(
    "task_runs",
    metadata,
    # A row for each attempt that has ended: written once, and never changed.
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", BigInteger, primary_key=True, autoincrement=False),
    Column("phase", Text(collation="C"), nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant, nullable=False),
    Column("error", Text),
    Column("exit_code", Integer),
    # Incarnation and name: the name stays readable when the agent's row is gone.
    Column("agent", BigInteger),
    Column("agent_id", Text(collation="C")),
    # The end of each, as far as the worker kept it: up to 64 KiB, of which no UTF-8 becomes thrice as long.
    Column("stdout", Text),
    Column("stderr", Text),
    CheckConstraint("solti.is_run(attempt, phase, stdout, stderr)", name="valid"),
    Index(None, "finished_at"),
)

task_events = Table(
    "task_events",
    metadata,
    # With a snapshot, tells which events a reader has seen: event numbers are not in commit order.
    Column("xid", Xid8, nullable=False, server_default=text("pg_current_xact_id()")),
    Column("event", BigInteger, Identity(always=True), primary_key=True),
    Column("at", Instant, nullable=False),
    # No foreign key: an event outlives its task.
    Column("seq", BigInteger, nullable=False),
    Column("id", Text(collation="C"), nullable=False),
    Column("type", Text(collation="C"), nullable=False),
    Column("resource_version", BigInteger, nullable=False),
    Column("phase", Text(collation="C"), nullable=False),
    # NULL of a task that was not there before.
    Column("phase_before", Text(collation="C")),
    Column("attempt", BigInteger, nullable=False),
    # The labels before a change of labels, or before the task was deleted; NULL where they stayed as they were.
    Column("labels_before", JSONB),
    Column("detail", JSONB),
    CheckConstraint("solti.is_event(type, phase)", name="valid"),
    # What has come since a snapshot.
    Index(None, "xid"),
    # For the labels that a task had at some event: those before the next change.
    Index("ix_task_events_labels", "seq", "event", postgresql_where=text("labels_before IS NOT NULL")),
)

# One row: which life of which database this is, and up to where events may be gone.
feed = Table(
    "feed",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("epoch", Uuid, nullable=False, server_default=text("gen_random_uuid()")),
    # Equal to the row's own xmin, unless a dump was restored: then the transaction numbers mean nothing any more.
    Column("written_by", Xid8, nullable=False),
    Column("pruned", BigInteger, nullable=False, server_default=text("0")),
    Column("pruned_xid", Xid8, nullable=False, server_default=text("'0'::xid8")),
    CheckConstraint("id", name="id"),
)

agents = Table(
    "agents",
    metadata,
    # One row an incarnation; the name may be used again, the seq never.
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("id", Text(collation="C"), nullable=False),
    Column("labels", JSONB, nullable=False),
    Column("kinds", ARRAY(Text(collation="C")), nullable=False),
    # What the worker says of itself. Claims do not count by it: what one worker runs, it alone adds to.
    Column("capacity", Integer),
    Column("state", Text(collation="C"), nullable=False),
    Column("lease", Interval, nullable=False),
    Column("registered_at", Instant, nullable=False),
    Column("heartbeat_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("closed_at", Instant),
    CheckConstraint("octet_length(id) <= 128 AND id ~ '^[A-Za-z0-9._-]+$' AND id NOT IN ('.', '..')", name="id"),
    CheckConstraint("jsonb_typeof(labels) = 'object'", name="labels"),
    CheckConstraint("lease > interval '0'", name="lease"),
    CheckConstraint("state IN ('active', 'draining', 'stopped', 'lost')", name="state"),
    CheckConstraint("capacity >= 1", name="capacity"),
    CheckConstraint("(state IN ('active', 'draining')) = (closed_at IS NULL)", name="closed_at"),
    Index(None, "id"),
    Index("ix_agents_expires_at", "expires_at", postgresql_where=text("closed_at IS NULL")),
    Index("ix_agents_closed_at", "closed_at", postgresql_where=text("closed_at IS NOT NULL")),
)

routes = Table(
    "routes",
    metadata,
    # A digest of the other two columns (`solti_store.rules.routing`), so a creator needs no look-up.
    Column("id", Uuid, primary_key=True),
    Column("kind", Text(collation="C"), nullable=False),
    Column("selector", JSONB, nullable=False),
    CheckConstraint("kind IN ('subprocess', 'wasm', 'container', 'embedded')", name="kind"),
    CheckConstraint("jsonb_typeof(selector) = 'object'", name="selector"),
)

# The label index: `solti_store.rules.postings` says what is in it, `solti_store.ops.label_index` keeps it.
label_postings = Table(
    "label_postings",
    metadata,
    Column("term", Uuid, primary_key=True),
    Column("segment", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("members", LargeBinary, nullable=False),
    CheckConstraint("octet_length(members) BETWEEN 2 AND 512", name="members"),
    Index(None, "segment"),
)

label_segments = Table(
    "label_segments",
    metadata,
    Column("segment", BigInteger, primary_key=True, autoincrement=False),
    Column("members", LargeBinary, nullable=False),
    Column("created_from", Instant),
    Column("created_to", Instant),
)

# One row: how far the index has come. It knows the labels that were set by a transaction below `horizon` that is not
# among the `open_xids`.
label_index = Table(
    "label_index",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("horizon", Xid8, nullable=False),
    Column("open_xids", ARRAY(Xid8), nullable=False),
    # Equal to the row's own xmin, unless a dump was restored: then the transaction numbers mean nothing any more.
    Column("written_by", Xid8, nullable=False),
    CheckConstraint("id", name="id"),
)

# The revisions that are applied, for code that does not know them: `solti_store.rules.window`.
schema_history = Table(
    "schema_history",
    metadata,
    Column("revision", Text(collation="C"), primary_key=True),
    Column("oldest_code", Text(collation="C"), nullable=False),
    Column("applied_at", Instant, nullable=False, server_default=NOW),
)

# One row: runs that ended before `upto` are counted in the tables below, which outlive them.
rollup = Table(
    "rollup",
    metadata,
    Column("id", Boolean, primary_key=True, server_default=text("true")),
    Column("upto", Instant, nullable=False, server_default=text("'-infinity'")),
    CheckConstraint("id", name="id"),
)


def _counts(*names: str) -> Iterator[Column[Any]]:
    return (Column(name, BigInteger, nullable=False) for name in names)


def _seconds(*names: str) -> Iterator[Column[Any]]:
    return (Column(name, Double, nullable=False) for name in names)


def _of_slots() -> Iterator[Column[Any]]:
    yield Column("day", Date, primary_key=True)
    yield Column("slot", Text(collation="C"), primary_key=True)
    yield Column("kind", Text(collation="C"), primary_key=True)


_OUTCOMES = ("attempts", "succeeded", "failed", "timeout", "canceled")

# What is kept of each day, in UTC; what the columns mean is said by the reporting views of the trends.
outcome_days = Table("outcome_days", metadata, *_of_slots(), *_counts(*_OUTCOMES), *_seconds("run_seconds"))
retry_days = Table(
    "retry_days",
    metadata,
    *_of_slots(),
    *_counts("attempts", "unsuccessful", "retries", "recovered"),
    *_seconds("run_seconds", "lost_seconds", "retry_seconds"),
)
duration_days = Table(
    "duration_days",
    metadata,
    *_of_slots(),
    Column("measure", Text(collation="C"), primary_key=True),
    *_counts("attempts"),
    *_seconds("max_seconds"),
    # As arrays: as rows they would take 15 times the room.
    Column("buckets", ARRAY(SmallInteger), nullable=False),
    Column("counts", ARRAY(BigInteger), nullable=False),
)
failure_days = Table(
    "failure_days",
    metadata,
    Column("day", Date, primary_key=True),
    Column("error", Text(collation="C"), primary_key=True),
    *_counts("attempts", "tasks"),
    Column("first_at", Instant, nullable=False),
    Column("last_at", Instant, nullable=False),
)
throughput_hours = Table(
    "throughput_hours",
    metadata,
    Column("hour", Instant, primary_key=True),
    *_counts(*_OUTCOMES),
    *_seconds("run_seconds"),
)


# How far backfills of migrations got, while they go on.
backfills = Table(
    "backfills",
    metadata,
    Column("name", Text, primary_key=True),
    # Of the table, the columns and the statement: a row of another one means nothing.
    Column("identity", Text, nullable=False),
    # The last key of the last batch; NULL where a pass begins.
    Column("position", ARRAY(Text)),
    Column("seen", BigInteger, nullable=False, server_default=text("0")),
    Column("changed", BigInteger, nullable=False, server_default=text("0")),
    Column("estimate", BigInteger, nullable=False),
)


def metadata_in(schema: str) -> MetaData:
    """The tables as they are in another schema: for comparing, and not for statements, which all bear the default."""
    if schema == SCHEMA:
        return metadata
    copy = MetaData(schema=schema, naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        copied = table.to_metadata(copy, schema=schema)
        # Our functions stand in texts, which SQLAlchemy leaves as they are.
        for rule in copied.constraints:
            if isinstance(rule, CheckConstraint):
                rule.sqltext = literal_column(renamed(str(rule.sqltext), schema))
        for column in copied.columns:
            if isinstance(column.computed, Computed):
                column.computed.sqltext = literal_column(renamed(str(column.computed.sqltext), schema))
    return copy


#: A change's `updated_at`. Never before the change before it: a writer that had to wait for the row began
#: earlier than the one it waited for.
LATEST = func.greatest(task_status.c.updated_at, NOW)

#: Whether a task is over for good, as the partial index has it.
FINAL: ColumnElement[bool] = literal_column(_FINAL)

#: Whether a task owns its slot, as the unique index has it.
OWNER: ColumnElement[bool] = literal_column(f"({_OWNER})")
