"""What ails tables and indexes: dead rows, bloat, a vacuum that does not come, and what the code misses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from solti_store.rules.doctor import Code, Finding, Severity, finding, quoted, size, span

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from solti_store.rules.doctor import DoctorLimits

__all__ = [
    "Expected",
    "Index",
    "Table",
    "Vacuum",
    "backfills",
    "drift",
    "indexes",
    "invalid",
    "tables",
    "unvalidated",
    "wraparound",
]

_PAGE: Final = 8192
_ROW_OVERHEAD: Final = 24 + 8 + 4  # header, a bitmap of NULLs, the pointer in the page
_ENTRY_OVERHEAD: Final = 8 + 4
_INDEX_FILL: Final = 0.9
_DEAD_SHARE: Final = 0.2
_EMPTY_SHARE: Final = 0.5
# How many times its own threshold autovacuum may be behind before it counts as late.
_BEHIND: Final = 2
# Above autovacuum_freeze_max_age a vacuum is forced; so far above it, that has not come or does not end.
_FREEZE: Final = 1.25
_LAST: Final = 1_500_000_000
_LEFT_BY_REINDEX: Final = ("_ccnew", "_ccold")


@dataclass(frozen=True, slots=True)
class Vacuum:
    """How the server vacuums, unless a table has parameters of its own; `busy` of its `workers` are at something."""

    threshold: float
    scale: float
    analyze_threshold: float
    analyze_scale: float
    freeze_max_age: int
    workers: int
    busy: int


@dataclass(frozen=True, slots=True)
class Table:
    """A table of ours, as the statistics have it.

    Attributes:
        schema: Its schema.
        name: Its name.
        bytes: How large it is, without indexes and without what is stored apart.
        rows: How many rows there were when it was last vacuumed or analyzed; negative if it never was.
        width: What a row of it takes by the planner's statistics; None if there are none, or not for this role.
        live: How many rows are counted.
        dead: How many dead ones.
        changed: How many have changed since it was analyzed.
        vacuumed_seconds: How long ago it was vacuumed; None is never, or not since the counters began.
        vacuum_wait: The same, from the server's start if that was later.
        analyze_wait: The same of its analysis.
        xids: How many transactions ago all its rows were frozen.
        options: Its storage parameters, `name=value` each.
    """

    schema: str
    name: str
    bytes: int
    rows: float
    width: float | None
    live: int
    dead: int
    changed: int
    vacuumed_seconds: float | None
    vacuum_wait: float
    analyze_wait: float
    xids: int
    options: Sequence[str]


def tables(found: Iterable[Table], vacuum: Vacuum, limits: DoctorLimits) -> Iterator[Finding]:
    """What their statistics say."""
    for one in found:
        name = quoted(one.schema, one.name)
        options: Mapping[str, str] = dict(option.split("=", 1) for option in one.options)
        if options.get("autovacuum_enabled", "true").lower() in ("false", "off", "0", "no"):
            yield finding(
                Code.VACUUM_OFF,
                Severity.ERROR,
                one.name,
                "autovacuum_enabled is off for the table",
                f"ALTER TABLE {name} RESET (autovacuum_enabled);",
            )
        yield from _dead(one, name, limits)
        yield from _late(one, name, options, vacuum, limits.vacuum.total_seconds())
        yield from _bloat(one, name, limits)


def _dead(one: Table, name: str, limits: DoctorLimits) -> Iterator[Finding]:
    if one.dead >= limits.dead and one.dead > _DEAD_SHARE * one.live:
        yield finding(
            Code.TABLE_DEAD,
            Severity.WARNING,
            one.name,
            f"{one.dead} dead rows beside {one.live} live ones",
            f"VACUUM (ANALYZE) {name};  -- frees nothing that an xmin-* finding holds",
        )


def _late(one: Table, name: str, options: Mapping[str, str], vacuum: Vacuum, patience: float) -> Iterator[Finding]:
    rows = max(one.rows, 0)

    def due(kind: str, threshold: float, scale: float) -> float:
        base = float(options.get(f"autovacuum_{kind}_threshold", threshold))
        return base + float(options.get(f"autovacuum_{kind}_scale_factor", scale)) * rows

    # Under load twice the threshold is reached between two of autovacuum's rounds; so it must not have come for long.
    limit = due("vacuum", vacuum.threshold, vacuum.scale)
    if one.dead > _BEHIND * limit and one.vacuum_wait >= patience:
        last = "never" if one.vacuumed_seconds is None else f"{span(one.vacuumed_seconds)} ago"
        busy = f"; all {vacuum.workers} autovacuum workers are busy" if vacuum.busy >= vacuum.workers else ""
        yield finding(
            Code.VACUUM_LAG,
            Severity.WARNING,
            one.name,
            f"{one.dead} dead rows, where autovacuum is to come at {limit:.0f}; last vacuumed {last}{busy}",
            f"VACUUM (ANALYZE) {name};"
            + ("  -- and raise autovacuum_max_workers, or autovacuum_vacuum_cost_limit" if busy else ""),
        )
    limit = due("analyze", vacuum.analyze_threshold, vacuum.analyze_scale)
    if one.changed > _BEHIND * limit and one.analyze_wait >= patience:
        yield finding(
            Code.ANALYZE_LAG,
            Severity.WARNING,
            one.name,
            f"{one.changed} rows have changed since it was analyzed, where autovacuum is to come at {limit:.0f}",
            f"ANALYZE {name};",
        )


def _bloat(one: Table, name: str, limits: DoctorLimits) -> Iterator[Finding]:
    if one.width is None or one.rows < 0:
        return
    needed = one.rows * (one.width + _ROW_OVERHEAD)
    empty = one.bytes - needed
    if empty >= limits.bloat_bytes and empty > _EMPTY_SHARE * one.bytes:
        yield finding(
            Code.TABLE_BLOAT,
            Severity.WARNING,
            one.name,
            f"{size(one.bytes)} for about {size(needed)} of rows; an estimate, the extension pgstattuple would count",
            f"VACUUM (FULL, ANALYZE) {name};  -- locks the table while it is rewritten; pg_repack does not",
        )


def wraparound(found: Iterable[Table], vacuum: Vacuum, limits: DoctorLimits) -> Iterator[Finding]:
    """Tables whose rows have not been frozen for too long; the limits' `xids` are the least that count."""
    for one in found:
        limit = max(_FREEZE * vacuum.freeze_max_age, limits.xids) if limits.xids else 0
        if one.xids > limit:
            yield finding(
                Code.WRAPAROUND,
                Severity.ERROR if one.xids > _LAST else Severity.WARNING,
                one.name,
                f"its oldest rows are {one.xids} transactions old, of 2147483647 that there can be;"
                f" a vacuum is forced at {vacuum.freeze_max_age}",
                f"VACUUM (FREEZE) {quoted(one.schema, one.name)};  -- end what holds back vacuum first",
            )


# --- indexes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Index:
    """An index on a table of ours.

    Attributes:
        schema: Its schema.
        name: Its name.
        table: Its table's name.
        is_valid: Whether queries may use it.
        is_rule: Whether it is unique, or belongs to a constraint.
        bytes: How large it is.
        rows: How many entries there were at the last vacuum or analysis; negative if unknown.
        width: What an entry takes by the planner's statistics; None if there are none.
        scans: How often it was used since the counters began.
    """

    schema: str
    name: str
    table: str
    is_valid: bool
    is_rule: bool
    bytes: int
    rows: float
    width: float | None
    scans: int


def indexes(
    found: Iterable[Index], limits: DoctorLimits, *, counted_seconds: float, expected: Collection[str]
) -> Iterator[Finding]:
    """What is wrong with them.

    Args:
        found: The indexes.
        limits: The limits.
        counted_seconds: For how long their use has been counted.
        expected: The names of those that the code brings: that one is not used for a while says nothing of it.
    """
    for one in found:
        name = quoted(one.schema, one.name)
        if not one.is_valid:
            yield invalid(one.schema, one.name, one.table)
            continue
        is_ours = one.name in expected
        if not (one.scans or one.is_rule or is_ours) and counted_seconds >= limits.unused.total_seconds():
            yield finding(
                Code.INDEX_UNUSED,
                Severity.NOTE,
                one.name,
                f"on {one.table}, {size(one.bytes)}, not used in the {span(counted_seconds)} that were counted,"
                " unless it is newer; standbys count for themselves",
                f"DROP INDEX CONCURRENTLY {name};",
            )
        if one.width is not None and one.rows >= 0:
            needed = one.rows * (one.width + _ENTRY_OVERHEAD) / _INDEX_FILL
            if (empty := one.bytes - needed - _PAGE) >= limits.bloat_bytes and empty > _EMPTY_SHARE * one.bytes:
                yield finding(
                    Code.INDEX_BLOAT,
                    Severity.WARNING,
                    one.name,
                    f"on {one.table}, {size(one.bytes)} for about {size(needed)} of entries; an estimate, the extension"
                    " pgstattuple would count",
                    f"REINDEX INDEX CONCURRENTLY {name};",
                )


def invalid(schema: str, name: str, table: str) -> Finding:
    """That an index is not valid, and nobody is building it."""
    is_left = name.rstrip("0123456789").endswith(_LEFT_BY_REINDEX)
    return finding(
        Code.INDEX_INVALID,
        Severity.WARNING if is_left else Severity.ERROR,
        name,
        f"on {table}, {'left by a REINDEX' if is_left else 'its build'} that did not end",
        f"{'DROP' if is_left else 'REINDEX'} INDEX CONCURRENTLY {quoted(schema, name)};",
    )


# --- what the code expects ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expected:
    """What the code expects in the database.

    Attributes:
        kind: `table`, `column`, `constraint`, `index` or `view`.
        name: Its name; of a column or constraint `table.name`.
        table: The table that it belongs to.
        remedy: What makes it.
    """

    kind: str
    name: str
    table: str
    remedy: str


def drift(expected: Iterable[Expected], found: Collection[tuple[str, str]]) -> Iterator[Finding]:
    """What is missing among what was found, by kind and name."""
    missing = [one for one in expected if (one.kind, one.name) not in found]
    gone = {one.name for one in missing if one.kind == "table"}
    for one in missing:
        # Of a table that is not there, nothing else is.
        if one.kind == "table" or one.table not in gone:
            yield finding(
                Code.SCHEMA_DRIFT,
                Severity.ERROR,
                f"{one.kind} {one.name}",
                "is missing, though the schema is at this version's revision",
                one.remedy,
            )


def unvalidated(found: Iterable[tuple[str, str, str]]) -> Iterator[Finding]:
    """Constraints that were added without a look at what is there: schema, table and name."""
    for schema, table, name in found:
        yield finding(
            Code.SCHEMA_UNVALIDATED,
            Severity.WARNING,
            f"constraint {table}.{name}",
            "is NOT VALID",
            f"ALTER TABLE {quoted(schema, table)} VALIDATE CONSTRAINT {quoted(name)};",
        )


def backfills(found: Iterable[tuple[str, int, int]]) -> Iterator[Finding]:
    """Backfills that have not ended: name, rows looked at, and about how many there are."""
    for name, seen, estimate in found:
        yield finding(
            Code.BACKFILL_PENDING,
            Severity.NOTE,
            f"backfill of {name}",
            f"has looked at {seen} of about {estimate} rows; it goes on, or was cut off and will",
            "solti-store db upgrade",
        )
