"""Examines a store: asks one bounded question after another, and says which could not be answered."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError

from solti_store.errors import ModelError, NotFound, SchemaMismatch
from solti_store.faults import sqlstate
from solti_store.model import MAX_LIMIT, AgentState
from solti_store.ops import agents, schema
from solti_store.ops.why import why
from solti_store.rules import doctor_server, doctor_settings, doctor_tables, doctor_work
from solti_store.rules.doctor import Code, DoctorLimits, Severity, diagnosis, finding, quoted
from solti_store.rules.reports import VERSION
from solti_store.schema_name import SCHEMA_VARIABLE
from solti_store.sql import doctor as sql
from solti_store.sql import doctor_work as work_sql
from solti_store.sql.label_index import FRESH, FRESH_MAX
from solti_store.sql.naming import SCHEMA, report_schema, schema_of
from solti_store.sql.reports import SELECT_VERSION
from solti_store.sql.revision import HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy import Connection

    from solti_store.model import AgentStatus
    from solti_store.rules.doctor import Diagnosis, Finding
    from solti_store.sql.driver import Row

__all__ = ["TIMEOUT", "examine"]

TIMEOUT: Final = timedelta(seconds=3)

T = TypeVar("T")

# What a question may end with that says nothing of the next: no right, too long, a lock, a schema of another version.
_UNANSWERED: Final = {
    "42501": "this role may not",
    "57014": "it took too long",
    "55P03": "a lock was in the way, as of a migration",
    "42P01": "the schema is of another version",
    "42703": "the schema is of another version",
    "42883": "the schema is of another version",
    "3F000": "there is no schema",
}


@dataclass(slots=True)
class _Visit:
    """What is known so far.

    Attributes:
        conn: The connection.
        limits: The limits.
        clock: This machine's time, in seconds.
        server: What kind of server it is.
        schema: The name of our schema.
        values: Its settings.
        revision: The schema's; None when there is none.
        tables: Our tables, if their statistics are kept here.
        unchecked: What was not looked at.
    """

    conn: Connection
    limits: DoctorLimits
    clock: Callable[[], float]
    server: Row
    schema: str
    values: dict[str, str]
    revision: str | None = None
    tables: list[doctor_tables.Table] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    _workers: list[AgentStatus] | None = None

    @property
    def schemas(self) -> list[str]:
        """Our schemas: of the tables, and of the reports."""
        return [self.schema, report_schema(self.schema)]

    @property
    def dead(self) -> int | None:
        """How many dead rows our tables have; None if that is not known here."""
        return sum(one.dead for one in self.tables) if self.tables else None

    def workers(self) -> list[AgentStatus]:
        """The agents that are not closed, up to a thousand."""
        if self._workers is None:
            self._workers = list(agents.list_agents(self.conn, closed=False, after=0, limit=MAX_LIMIT))
        return self._workers

    def why(self, task_id: str) -> str:
        """What keeps a task from running."""
        try:
            return why(self.conn, task_id).message
        except (NotFound, ModelError):
            return "it is gone, or cannot be read"


def examine(
    conn: Connection,
    *,
    limits: DoctorLimits = DoctorLimits(),
    timeout: timedelta = TIMEOUT,
    clock: Callable[[], float] = time.time,
) -> Diagnosis:
    """Look at everything that is known to go wrong; only reads, and leaves what it may not see.

    Args:
        conn: In a READ COMMITTED transaction of its own, which can write nothing afterwards.
        limits: Past what something is a finding.
        timeout: How long one statement may take; there are some thirty.
        clock: This machine's time, in seconds since 1970.
    """
    # Before some of them are changed, for this transaction. What they are reset to is not what the store has set.
    values = {row.name: row.value for row in sql.SETTINGS.all(conn, {"names": list(doctor_settings.SETTINGS)})}
    sql.BOUND.all(conn, {"timeout_ms": f"{max(int(timeout.total_seconds() * 1000), 1)}"})
    schema_name = schema_of(conn)
    visit = _Visit(conn, limits, clock, sql.SERVER.one(conn, {"schema": schema_name}), schema_name, values)
    if not visit.server.sees_all:
        visit.unchecked.append(
            "sessions of other roles: who is in a transaction and who waits for a standby, how busy autovacuum is;"
            " GRANT pg_read_all_stats lets this role see them"
        )
    findings: list[Finding] = []
    for name, check in _SERVER.items():
        findings += _ask(visit, name, check)
    if visit.revision is not None:
        for name, check in _WORK.items():
            findings += _ask(visit, name, check)
    return diagnosis([_in_schema(one, schema_name) for one in findings], visit.unchecked)


def _in_schema(found: Finding, schema: str) -> Finding:
    """With a remedy for the schema: the rules name commands without it, and statements with it."""
    remedy, name = found.remedy, shlex.quote(schema)
    if schema == SCHEMA or remedy[0].isupper():
        return found
    if remedy.startswith("solti-store "):
        return found.replace(remedy=remedy.replace("solti-store ", f"solti-store --schema {name} "))
    if remedy.startswith(("python ", "alembic ")):
        return found.replace(remedy=f"env {SCHEMA_VARIABLE}={name} {remedy}")
    return found


def _ask(visit: _Visit, name: str, check: Callable[[_Visit], Iterable[Finding]]) -> list[Finding]:
    """The findings of one check; none, and a word on why, where it could not be made."""
    try:
        # A statement that fails takes back to here, and not the transaction with it.
        with visit.conn.begin_nested():
            return list(check(visit))
    except DBAPIError as error:
        reason = _UNANSWERED.get(sqlstate(error) or "")
        if reason is None:
            raise
        visit.unchecked.append(f"{name}: {reason}")
        return []


def _of(kind: type[T], rows: Iterable[Row]) -> list[T]:
    """Rows as the values that the rules take: columns bear the names of their fields."""
    return [kind(**row._asdict()) for row in rows]


# --- the server ---------------------------------------------------------------------------------


def _settings(visit: _Visit) -> Iterator[Finding]:
    here = visit.server
    server = doctor_settings.Server(here.version, here.is_standby, here.encoding, here.database, here.tables_bytes)
    yield from doctor_settings.server(server, visit.values, visit.limits)
    yield from doctor_settings.settings(visit.values, visit.limits, is_standby=here.is_standby)
    roles = sql.ROLE_SETTINGS.all(visit.conn, {"table": quoted(visit.schema, "task_status")})
    yield from doctor_settings.role_settings([(row.role, row.given) for row in roles], visit.limits)


def _connection(visit: _Visit) -> Iterator[Finding]:
    driver: Any = visit.conn.connection.driver_connection
    yield from doctor_settings.pooler(
        told=driver.info.backend_pid, real=visit.server.pid, prepares=driver.prepare_threshold is not None
    )
    before = visit.clock()
    moment = sql.CLOCK.one(visit.conn, {}).moment.timestamp()
    after = visit.clock()
    yield from doctor_settings.clock(
        ahead=moment - (before + after) / 2, uncertain=abs(after - before) / 2, limits=visit.limits
    )


def _schema(visit: _Visit) -> Iterator[Finding]:
    # Looked up first: within a transaction, what fails takes the whole of it along.
    applied = schema.applied(visit.conn) if sql.HAS_HISTORY.one(visit.conn, {}).is_there else None
    visit.revision = None if applied is None else applied.revision
    try:
        schema.require(applied, visit.schema)
    except SchemaMismatch as error:
        yield finding(
            Code.SCHEMA_REVISION, Severity.ERROR, f"schema {visit.schema}", f"{error}", "solti-store db upgrade"
        )


def _tables(visit: _Visit) -> Iterator[Finding]:
    found = _of(doctor_tables.Table, sql.TABLES.all(visit.conn, {"schemas": visit.schemas}))
    vacuum = doctor_tables.Vacuum(**sql.VACUUM.one(visit.conn, {})._asdict())
    if visit.server.is_standby:
        visit.unchecked.append(
            "vacuum, dead rows and the use of indexes: this is a standby, and the primary counts them"
        )
    else:
        visit.tables = found
        yield from doctor_tables.tables(found, vacuum, visit.limits)
    yield from doctor_tables.wraparound(found, vacuum, visit.limits)


def _indexes(visit: _Visit) -> Iterator[Finding]:
    rows = [row._asdict() for row in sql.INDEXES.all(visit.conn, {"schemas": visit.schemas})]
    counted = max((row.pop("counted_seconds") for row in rows), default=0.0)
    if visit.server.is_standby:
        counted = 0.0
    names = {one.name for one in sql.expected(visit.schema) if one.kind == "index"}
    found = [doctor_tables.Index(**row) for row in rows]
    yield from doctor_tables.indexes(found, visit.limits, counted_seconds=counted, expected=names)


def _transactions(visit: _Visit) -> Iterator[Finding]:
    conn, limits = visit.conn, visit.limits
    found = _of(doctor_server.Transaction, sql.TRANSACTIONS.all(conn, {}))
    yield from doctor_server.transactions(found, limits, visit.dead)
    yield from doctor_server.prepared(_of(doctor_server.Prepared, sql.PREPARED.all(conn, {})), limits, visit.dead)


def _replication(visit: _Visit) -> Iterator[Finding]:
    conn, limits = visit.conn, visit.limits
    yield from doctor_server.replication_slots(_of(doctor_server.ReplicationSlot, sql.SLOTS.all(conn, {})), limits)
    yield from doctor_server.standbys(_of(doctor_server.Standby, sql.STANDBYS.all(conn, {})), limits)
    waits = sql.COMMIT_WAITS.one(conn, {"wait": limits.wait})
    yield from doctor_server.commit_waits(waits.sessions, waits.seconds)


def _locks(visit: _Visit) -> Iterator[Finding]:
    return doctor_server.locks(_of(doctor_server.Lock, sql.LOCKS.all(visit.conn, {"wait": visit.limits.wait})))


# --- the store ----------------------------------------------------------------------------------


def _drift(visit: _Visit) -> Iterator[Finding]:
    if visit.revision != HEAD:
        return
    rows = sql.NAMES.all(visit.conn, {"schemas": visit.schemas})
    yield from doctor_tables.drift(sql.expected(visit.schema), {(row.kind, row.name) for row in rows})
    found = sql.UNVALIDATED.all(visit.conn, {"schemas": visit.schemas})
    yield from doctor_tables.unvalidated((row.schema, row.table, row.name) for row in found)


def _backfills(visit: _Visit) -> Iterator[Finding]:
    rows = work_sql.BACKFILLS.all(visit.conn, {})
    return doctor_tables.backfills((row.name, row.seen, row.estimate) for row in rows)


def _reports(visit: _Visit) -> Iterator[Finding]:
    if visit.revision == HEAD and (found := SELECT_VERSION.one(visit.conn, {}).version) != VERSION:
        yield finding(
            Code.SCHEMA_REVISION,
            Severity.ERROR,
            "reports",
            f"the views are of version {found}, this code needs {VERSION}",
            "solti-store db upgrade",
        )


def _connections(visit: _Visit) -> Iterator[Finding]:
    row = sql.CONNECTIONS.one(visit.conn, {})
    live = sum(one.state is not AgentState.SILENT for one in visit.workers())
    return doctor_settings.connections(doctor_settings.Connections(row.used, row.allowed, live, _most(visit.conn)))


def _most(conn: Connection) -> int | None:
    """How many connections the pool of this process may open; None when it has no bound."""
    pool: Any = conn.engine.pool
    size, more = getattr(pool, "size", None), getattr(pool, "_max_overflow", -1)
    return None if size is None or more < 0 else size() + more


def _agents(visit: _Visit) -> Iterator[Finding]:
    now_ms = sql.CLOCK.one(visit.conn, {}).moment.timestamp() * 1000
    return doctor_work.agents(visit.workers(), visit.limits, now_ms=now_ms)


def _queues(visit: _Visit) -> Iterator[Finding]:
    limits = visit.limits
    rows = work_sql.QUEUES.all(visit.conn, {"late": limits.late, "far": limits.far})
    return doctor_work.queues(_of(doctor_work.Queue, rows), limits, visit.why)


def _overdue(visit: _Visit) -> Iterator[Finding]:
    rows = work_sql.OVERDUE.all(visit.conn, {"overdue": visit.limits.overdue})
    return doctor_work.overdue(_of(doctor_work.Overdue, rows), visit.limits)


def _routes(visit: _Visit) -> Iterator[Finding]:
    found = _of(doctor_work.Backlog, work_sql.ROUTES.all(visit.conn, {"late": visit.limits.late}))
    return doctor_work.routes(found, visit.workers(), visit.limits, visit.why)


def _feed(visit: _Visit) -> Iterator[Finding]:
    limits = visit.limits
    row = work_sql.FEED_HEAD.one(visit.conn, {"events": limits.events, "skew": limits.skew})
    live = sum(one.state is AgentState.ACTIVE for one in visit.workers())
    yield from doctor_work.feed(doctor_work.FeedHead(row.old, row.held, row.ahead, row.oldest_seconds, live), limits)
    late = work_sql.FUTURE.one(visit.conn, {})
    ahead = [
        ("task_status", "the latest change of a task", late.updated, "updated_at"),
        ("task_runs", "the latest end of a run", late.finished, "finished_at"),
        ("task_events", "one of the oldest events", row.ahead_seconds, "at"),
    ]
    dated = (
        (table, what, seconds or 0.0, work_sql.mend_future(visit.schema, table, column))
        for table, what, seconds, column in ahead
    )
    yield from doctor_work.future(dated, limits)


def _history(visit: _Visit) -> Iterator[Finding]:
    row = work_sql.OLDEST.one(visit.conn, {})
    found = [(what, seconds) for what, seconds in (("final tasks", row.task), ("runs", row.run)) if seconds is not None]
    return doctor_work.retention(found, visit.limits)


def _label_index(visit: _Visit) -> Iterator[Finding]:
    row = FRESH.one(visit.conn, {})
    return doctor_work.label_index(is_valid=row.valid, unknown=len(row.seqs), most=FRESH_MAX)


_SERVER: Final[dict[str, Callable[[_Visit], Iterable[Finding]]]] = {
    "settings": _settings,
    "the connection and the clocks": _connection,
    "the schema's revision": _schema,
    "tables and vacuum": _tables,
    "indexes": _indexes,
    "transactions": _transactions,
    "replication": _replication,
    "locks": _locks,
}

_WORK: Final[dict[str, Callable[[_Visit], Iterable[Finding]]]] = {
    "what the schema has": _drift,
    "backfills": _backfills,
    "the version of the reports": _reports,
    "connections": _connections,
    "agents": _agents,
    "slots and their queues": _queues,
    "running attempts": _overdue,
    "what is due": _routes,
    "the feed and dates": _feed,
    "retention": _history,
    "the label index": _label_index,
}
