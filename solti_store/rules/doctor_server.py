"""What ails a server's sessions: those that hold back vacuum, and those that wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from solti_store.rules.doctor import Code, Finding, Severity, amount, finding, size, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from solti_store.rules.doctor import DoctorLimits

__all__ = [
    "Lock",
    "Prepared",
    "ReplicationSlot",
    "Standby",
    "Transaction",
    "commit_waits",
    "locks",
    "prepared",
    "replication_slots",
    "standbys",
    "transactions",
]

# --- who holds back vacuum ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transaction:
    """A session in a transaction; `xids` is None when it has neither a snapshot nor a number."""

    pid: int
    role: str
    application: str
    state: str
    seconds: float
    state_seconds: float
    xids: int | None
    writes: bool
    is_here: bool


def transactions(found: Iterable[Transaction], limits: DoctorLimits, dead: int | None) -> Iterator[Finding]:
    """Those that are old, or do nothing; `dead` is how many dead rows our tables have."""
    for one in found:
        idles = one.state.startswith("idle")
        if idles and one.state_seconds >= limits.idle.total_seconds():
            severity = amount(one.state_seconds, limits.idle.total_seconds())
        elif one.seconds >= limits.transaction.total_seconds():
            severity = amount(one.seconds, limits.transaction.total_seconds())
        else:
            continue
        what = f"in a transaction for {span(one.seconds)}, {one.state or 'state unknown'} for {span(one.state_seconds)}"
        if one.xids is None:
            held = "holds no snapshot now, only its locks"
        else:
            held = f"{one.xids} transactions behind{_of_dead(dead if one.is_here else None)}"
        where = "" if one.is_here else ", in another database"
        yield finding(
            Code.XMIN_TRANSACTION,
            severity,
            f"pid {one.pid} ({one.role}{f', {one.application}' if one.application else ''}{where})",
            f"{what}; {held}",
            f"SELECT pg_terminate_backend({one.pid});",
        )


def _of_dead(dead: int | None) -> str:
    return f"; our tables have {dead} dead rows" if dead else ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A transaction that was prepared and not ended."""

    gid: str
    owner: str
    database: str
    seconds: float
    xids: int


def prepared(found: Iterable[Prepared], limits: DoctorLimits, dead: int | None) -> Iterator[Finding]:
    """Those that nobody has ended for long."""
    limit = limits.transaction.total_seconds()
    for one in found:
        if one.seconds >= limit:
            yield finding(
                Code.XMIN_PREPARED,
                amount(one.seconds, limit),
                f"{one.gid} of {one.owner} in {one.database}",
                f"prepared {span(one.seconds)} ago, {one.xids} transactions behind{_of_dead(dead)}",
                f"ROLLBACK PREPARED '{one.gid.replace(chr(39), chr(39) * 2)}';",
            )


@dataclass(frozen=True, slots=True)
class ReplicationSlot:
    """A replication slot; `xids` is how far it holds back our tables, `catalog_xids` the system's."""

    name: str
    active: bool
    xids: int | None
    catalog_xids: int | None
    retained_bytes: int | None
    wal_status: str | None


def replication_slots(found: Iterable[ReplicationSlot], limits: DoctorLimits) -> Iterator[Finding]:
    """Those that hold back vacuum, or WAL."""
    for one in found:
        state = "active" if one.active else "inactive"
        # An inactive one has nobody behind it: to drop it is what mends it. An active one has a slow consumer.
        literal = one.name.replace("'", "''")
        drop = f"SELECT pg_drop_replication_slot('{literal}');"
        remedy = (
            drop
            if not one.active
            else "SELECT * FROM pg_stat_replication;  -- its consumer is slow: mend that, or end it"
        )
        xids = max(one.xids or 0, one.catalog_xids or 0)
        if (one.xids is not None or one.catalog_xids is not None) and xids >= limits.xids:
            what = "our tables" if one.xids is not None and one.xids >= limits.xids else "the system's tables"
            yield finding(
                Code.XMIN_SLOT,
                amount(xids, limits.xids),
                one.name,
                f"{state}, holds {what} {xids} transactions back",
                remedy,
            )
        if one.wal_status in ("lost", "unreserved"):
            yield finding(
                Code.WAL_SLOT,
                Severity.ERROR,
                one.name,
                f"{state}, its WAL is {one.wal_status}: the consumer starts anew",
                drop,
            )
        elif (retained := one.retained_bytes) is not None and retained >= limits.wal_bytes:
            yield finding(
                Code.WAL_SLOT,
                amount(retained, limits.wal_bytes),
                one.name,
                f"{state}, retains {size(retained)} of WAL",
                remedy,
            )
        elif not one.active and retained is not None:
            yield finding(
                Code.WAL_SLOT, Severity.NOTE, one.name, f"inactive, retains {size(retained)} of WAL so far", remedy
            )


@dataclass(frozen=True, slots=True)
class Standby:
    """A standby that says which rows its queries may read."""

    name: str
    pid: int
    xids: int


def standbys(found: Iterable[Standby], limits: DoctorLimits) -> Iterator[Finding]:
    """Those with old queries and hot_standby_feedback."""
    for one in found:
        if one.xids >= limits.xids:
            yield finding(
                Code.XMIN_STANDBY,
                amount(one.xids, limits.xids),
                f"{one.name} (walsender {one.pid})",
                f"hot_standby_feedback holds our tables {one.xids} transactions back",
                "SELECT pid, xact_start, query FROM pg_stat_activity ORDER BY xact_start;"
                "  -- on the standby, and end the oldest there",
            )


# --- who waits ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lock:
    """A session that waits for a lock; `on` is a table's name, or the kind of lock."""

    pid: int
    on: str
    seconds: float
    blockers: Sequence[int]


def locks(found: Iterable[Lock]) -> Iterator[Finding]:
    """Whoever waits, and whom for."""
    for one in found:
        # An autovacuum that waits, or a lock that was given up meanwhile, has nobody to end.
        pids = sorted({pid for pid in one.blockers if pid}) or [one.pid]
        yield finding(
            Code.LOCK_WAIT,
            Severity.WARNING,
            f"pid {one.pid}",
            f"waits {span(one.seconds)} for a lock on {one.on}; before it is pid {', '.join(map(str, pids))}",
            " ".join(f"SELECT pg_terminate_backend({pid});" for pid in pids),
        )


def commit_waits(sessions: int, seconds: float) -> Iterator[Finding]:
    """Commits that a synchronous standby does not confirm."""
    if sessions:
        yield finding(
            Code.COMMIT_WAIT,
            Severity.ERROR,
            "synchronous replication",
            f"{sessions} sessions wait for a standby at their commit, the longest for {span(seconds)}",
            "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf();"
            "  -- or bring the standby back: without one, a lost primary loses commits",
        )
