"""What ails a store: findings as values, and the limits past which something is one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from solti_store.errors import Invalid
from solti_store.model import Value
from solti_store.model.scalars import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "CONSEQUENCES",
    "OPEN_STORE",
    "Code",
    "Diagnosis",
    "DoctorLimits",
    "Finding",
    "Severity",
    "amount",
    "diagnosis",
    "finding",
    "quoted",
    "size",
    "span",
]

#: The beginning of a remedy that the command line has no command for.
OPEN_STORE: Final = 'python -c "from solti_store import TaskStore; TaskStore.open()'

# So many findings of one code say it all.
_SHOWN: Final = 10
_WORSE: Final = 12


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Something stands still or may be lost."""

    WARNING = "warning"
    """It will be, or it slows everybody."""

    NOTE = "note"
    """Worth knowing."""


class Code(StrEnum):
    """What can be found; docs/doctor.md explains each."""

    XMIN_TRANSACTION = "xmin-transaction"
    XMIN_PREPARED = "xmin-prepared"
    XMIN_SLOT = "xmin-slot"
    XMIN_STANDBY = "xmin-standby"
    WAL_SLOT = "wal-slot"
    LOCK_WAIT = "lock-wait"
    COMMIT_WAIT = "commit-wait"
    TABLE_DEAD = "table-dead"
    TABLE_BLOAT = "table-bloat"
    INDEX_BLOAT = "index-bloat"
    INDEX_INVALID = "index-invalid"
    INDEX_UNUSED = "index-unused"
    VACUUM_OFF = "vacuum-off"
    VACUUM_LAG = "vacuum-lag"
    ANALYZE_LAG = "analyze-lag"
    WRAPAROUND = "wraparound"
    SCHEMA_REVISION = "schema-revision"
    SCHEMA_DRIFT = "schema-drift"
    SCHEMA_UNVALIDATED = "schema-unvalidated"
    BACKFILL_PENDING = "backfill-pending"
    SLOT_OWNERLESS = "slot-ownerless"
    SLOT_STALLED = "slot-stalled"
    ATTEMPT_OVERDUE = "attempt-overdue"
    ROUTE_UNSERVED = "route-unserved"
    WORK_LATE = "work-late"
    AGENT_SILENT = "agent-silent"
    AGENT_DRAINED = "agent-drained"
    AGENT_OVERFULL = "agent-overfull"
    CLOCK_SKEW = "clock-skew"
    CLOCK_FUTURE = "clock-future"
    FEED_LAG = "feed-lag"
    RETENTION_LAG = "retention-lag"
    LABEL_INDEX_LAG = "label-index-lag"
    SETTING_DURABILITY = "setting-durability"
    SETTING_COMMIT = "setting-commit"
    SETTING_AUTOVACUUM = "setting-autovacuum"
    SETTING_CONNECTIONS = "setting-connections"
    SETTING_IDLE = "setting-idle"
    SETTING_TIMEOUT = "setting-timeout"
    SETTING_JIT = "setting-jit"
    SETTING_MEMORY = "setting-memory"
    SETTING_ISOLATION = "setting-isolation"
    SETTING_READ_ONLY = "setting-read-only"
    SETTING_ENCODING = "setting-encoding"
    SERVER_VERSION = "server-version"
    POOLER = "pooler"


CONSEQUENCES: Final = {
    Code.XMIN_TRANSACTION: "vacuum keeps every row that died since, the tables and their indexes grow, and claims read"
    " past the dead; events are not pruned while it writes",
    Code.XMIN_PREPARED: "it holds its locks and every row that died since, across restarts, until somebody ends it",
    Code.XMIN_SLOT: "vacuum keeps what a consumer may still need, and tables grow without end if none comes",
    Code.XMIN_STANDBY: "vacuum on the primary keeps what a query on the standby may still read",
    Code.WAL_SLOT: "the primary keeps WAL for it until the disk is full, and then stops",
    Code.LOCK_WAIT: "what waits does nothing, and whoever comes after it for the same lock waits too",
    Code.COMMIT_WAIT: "no commit returns: creates, claims and heartbeats hang, and leases run out",
    Code.TABLE_DEAD: "claims and listings read past the dead rows, and the space is not used again",
    Code.TABLE_BLOAT: "reads and backups carry the empty space, and it does not fit into memory",
    Code.INDEX_BLOAT: "each look-up reads more pages, and fewer of them fit into memory",
    Code.INDEX_INVALID: "no query uses it, every write pays for it, and what it was to guarantee is not guaranteed",
    Code.INDEX_UNUSED: "every write pays for it, and nobody reads it here",
    Code.VACUUM_OFF: "dead rows stay for ever, and the planner does not learn of changes",
    Code.VACUUM_LAG: "dead rows pile up faster than they are removed, and claims slow down",
    Code.ANALYZE_LAG: "the planner goes by old figures and may read whole tables",
    Code.WRAPAROUND: "a forced vacuum runs at a time that nobody chose, and in the end the server refuses all writes",
    Code.SCHEMA_REVISION: "a store refuses to open",
    Code.SCHEMA_DRIFT: "statements fail or read whole tables, or what must never happen is not prevented any more",
    Code.SCHEMA_UNVALIDATED: "rows from before it was added may break it",
    Code.BACKFILL_PENDING: "the migration that it is part of is not applied yet, and none after it",
    Code.SLOT_OWNERLESS: "nobody lets the next one in: these tasks wait until some process reaps",
    Code.SLOT_STALLED: "all that wait in the slot wait with its owner",
    Code.ATTEMPT_OVERDUE: "the task neither ends nor is tried again, and its slot stays taken",
    Code.ROUTE_UNSERVED: "these tasks never start, and their slots stay taken",
    Code.WORK_LATE: "tasks start later than they should, and the backlog may be growing",
    Code.AGENT_SILENT: "what it ran is not given to others until some process reaps",
    Code.AGENT_DRAINED: "the process takes nothing on any more and holds a connection for nothing",
    Code.AGENT_OVERFULL: "attempts wait inside the worker while their timeouts run",
    Code.CLOCK_SKEW: "ages and times like '--since 2h' are off by as much; leases go by the database's clock",
    Code.CLOCK_FUTURE: "what is dated in the future comes first in listings and is kept by retention until that date;"
    " a thousand such events at the feed's beginning stop its pruning",
    Code.FEED_LAG: "the events' table grows, and with it backups and the feed's indexes",
    Code.RETENTION_LAG: "tables grow with what is over",
    Code.LABEL_INDEX_LAG: "listings by selector walk the table instead of the index",
    Code.SETTING_DURABILITY: "a crash of the machine may leave a database that cannot be read",
    Code.SETTING_COMMIT: "a crash loses what was acknowledged: a finished attempt runs again, a created task is gone",
    Code.SETTING_AUTOVACUUM: "dead rows stay, claims slow down day by day, and transaction numbers run out",
    Code.SETTING_CONNECTIONS: "the next to connect is refused, and a heartbeat may be the next",
    Code.SETTING_IDLE: "a process that freezes inside a transaction keeps its locks, and dead rows, for ever",
    Code.SETTING_TIMEOUT: "large batches, pruning and migrations are cut off, and begin anew each time",
    Code.SETTING_JIT: "statements that the planner thinks dear are compiled first, 60 ms and more each time",
    Code.SETTING_MEMORY: "most pages are read through the kernel or from disk",
    Code.SETTING_ISOLATION: "single statements lose against each other and are repeated, again and again under load",
    Code.SETTING_READ_ONLY: "every write is refused",
    Code.SETTING_ENCODING: "labels, errors and output beyond ASCII are refused, or stored as bytes that nobody checks",
    Code.SERVER_VERSION: "this version is not tested there",
    Code.POOLER: "in transaction mode migrations go wrong through it, prepared statements may be another client's, and"
    " the settings of the store's sessions may be refused or leak",
}


class Finding(Value):
    """Something that ails the store.

    Attributes:
        code: What it is.
        severity: How bad it is.
        subject: What it is about: a table, a role, a task.
        found: What was found, with the figure.
        consequence: What comes of it.
        remedy: What mends it: SQL if it begins with a capital letter, else a command for a shell.
    """

    code: Code
    severity: Severity
    subject: Text
    found: Text
    consequence: Text
    remedy: Text


class Diagnosis(Value):
    """What was found.

    Attributes:
        findings: The worst first.
        unchecked: What could not be looked at, and why; what was left out.
    """

    findings: tuple[Finding, ...] = ()
    unchecked: tuple[Text, ...] = ()

    @property
    def is_well(self) -> bool:
        """Whether there is nothing worse than a note."""
        return all(one.severity is Severity.NOTE for one in self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorLimits:
    """Past what something is a finding. Twelve times a time or a number here is an error and no mere warning.

    Attributes:
        transaction: How long a transaction may take.
        idle: How long one may do nothing.
        wait: How long one may wait for a lock, or for the standby at its commit.
        xids: How many transactions what holds back vacuum may be behind.
        wal_bytes: How much WAL a replication slot may retain.
        dead: How many dead rows a table may have, if that is more than a fifth of it.
        bloat_bytes: How much empty space a table or index may have, if that is more than half of it.
        vacuum: How long autovacuum may leave a table alone that it should have come to.
        unused: For how long statistics must have been kept before an index counts as unused.
        overdue: How long past its lease an agent, or past its deadline an attempt, may be left alone.
        late: How long a task may be due.
        far: How far in the future the restart of a slot's owner may be.
        skew: How far two clocks may be apart.
        events: How long an event is kept, and the day that pruning may take.
        history: The same of final tasks and runs.
        statement: The shortest timeout that a worker's statements can do with.
        memory_bytes: From which size on the tables want more than PostgreSQL's default buffers.

    Raises:
        Invalid: One is negative.
    """

    transaction: timedelta = timedelta(minutes=5)
    idle: timedelta = timedelta(minutes=1)
    wait: timedelta = timedelta(seconds=10)
    xids: int = 1_000_000
    wal_bytes: int = 1 << 30
    dead: int = 100_000
    bloat_bytes: int = 64 << 20
    vacuum: timedelta = timedelta(minutes=10)
    unused: timedelta = timedelta(days=7)
    overdue: timedelta = timedelta(minutes=1)
    late: timedelta = timedelta(minutes=15)
    far: timedelta = timedelta(days=1)
    skew: timedelta = timedelta(seconds=5)
    events: timedelta = timedelta(days=8)
    history: timedelta = timedelta(days=31)
    statement: timedelta = timedelta(seconds=5)
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < type(value)():
                raise Invalid(f"invalid model: the limit {field.name} is negative: {value}", field=field.name)


def finding(code: Code, severity: Severity, subject: str, found: str, remedy: str) -> Finding:
    """A finding with the consequence that its code has."""
    return Finding(
        code=code,
        severity=severity,
        # Names of applications and slots are anybody's text.
        subject=_plain(subject),
        found=_plain(found),
        consequence=CONSEQUENCES[code],
        remedy=remedy,
    )


def diagnosis(findings: Iterable[Finding], unchecked: Iterable[str] = ()) -> Diagnosis:
    """All of it in order, the worst first, and no more than ten of a kind."""
    rank = {severity: number for number, severity in enumerate(Severity)}
    shown, left = [], Counter[Code]()
    seen = Counter[Code]()
    for one in sorted(findings, key=lambda each: rank[each.severity]):
        seen[one.code] += 1
        if seen[one.code] > _SHOWN:
            left[one.code] += 1
        else:
            shown.append(one)
    more = [f"{code}: {count} more like these were found" for code, count in left.items()]
    return Diagnosis(findings=tuple(shown), unchecked=(*map(_plain, unchecked), *more))


def amount(value: float, limit: float) -> Severity:
    """How bad it is to be past a limit by so much."""
    return Severity.ERROR if value >= _WORSE * limit > 0 else Severity.WARNING


def _plain(text: str) -> str:
    return " ".join(text.replace("\x00", "").split())


def quoted(*names: str) -> str:
    """An SQL identifier, of its parts."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def span(seconds: float) -> str:
    """A length of time, for people."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """A number of bytes, for people."""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count / 1024:.0f} KiB"
