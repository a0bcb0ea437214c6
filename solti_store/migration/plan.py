"""What an upgrade will do to this database: statements, locks, sizes, a guess at the time. Nothing of it is run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from solti_store.migration.analysis import analyse
from solti_store.migration.locks import Lock, Names
from solti_store.sql import catalogue
from solti_store.sql.naming import report_schema, schema_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection

    from solti_store.migration.locks import Statement, Touch

__all__ = ["Planned", "Size", "Step", "plan", "read_catalogue", "steps"]

# Bytes and rows a second, on one core and a disk of the year; what counts is whether it is seconds or hours.
_READ = 200_000_000
_WRITE = 40_000_000
_UPDATED_ROWS = 20_000

_RUNNING = re.compile(r"-- Running (?:upgrade|downgrade) .*-> ([^\s,]*)")


class Step(NamedTuple):
    """A statement in its place.

    Attributes:
        revision: The revision that it is part of; empty before the first.
        transaction: A number for each transaction; None outside of one.
        statement: What it is and does.
        in_batches: Whether an online upgrade does it in batches, each in its own transaction.
    """

    revision: str
    transaction: int | None
    statement: Statement
    in_batches: bool


class Size(NamedTuple):
    """What the catalogue knows of a relation, as of its last VACUUM or ANALYZE."""

    rows: int
    bytes: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class Planned:
    """A step, or one of several relations that it is about.

    Attributes:
        step: The step.
        touch: The relation and what happens to it; None if there is none, or it is not known.
        size: How large the relation is; None if it is new.
        seconds: A guess at how long it takes, to one figure at best; None if there is nothing to go by.
    """

    step: Step
    touch: Touch | None
    size: Size | None
    seconds: float | None


def steps(pieces: Iterable[str], names: Names) -> Iterator[Step]:
    """The statements of an offline script.

    Args:
        pieces: The script as it was written, a statement or a comment each.
        names: What is there before.
    """
    from solti_store.migration.steps import BACKFILL_MARK  # noqa: PLC0415 - Alembic, which the caller has loaded

    revision, transaction, count = "", None, 0
    for piece in pieces:
        if found := _RUNNING.match(piece.strip()):
            revision = found[1]
        if not piece.strip() or all(line.startswith("--") for line in piece.strip().splitlines()):
            continue
        # One too many is a migration's own, and nobody knows what it leaves.
        if piece.strip() == "BEGIN;" and transaction is None:
            count += 1
            transaction = count
        elif piece.strip() == "COMMIT;" and transaction is not None:
            transaction = None
        else:
            for statement in analyse(piece, names):
                yield Step(revision, transaction, statement, BACKFILL_MARK in piece)


def plan(connection: Connection, pieces: Iterable[str]) -> list[Planned]:
    """What a script would do to this database.

    Args:
        connection: To read the catalogue; the script is about its schema.
        pieces: As for `steps`.
    """
    names, sizes = read_catalogue(connection)
    created: set[str] = set()
    planned = []
    for step in steps(pieces, names):
        for touch in step.statement.touches or (None,):
            size = None if touch is None or touch.relation in created else sizes.get(touch.relation)
            planned.append(Planned(step, touch, size, _seconds(step, touch, size)))
        created |= step.statement.creates
    return planned


def read_catalogue(connection: Connection) -> tuple[Names, dict[str, Size]]:
    """What there is now."""
    names, sizes = Names(), {}
    schemas = {"schemas": [schema_of(connection), report_schema(schema_of(connection))]}
    for name, owner, rows, size, index_bytes in catalogue.RELATIONS.all(connection, schemas):
        sizes[name] = Size(rows, size, index_bytes)
        if owner is not None:
            names.tables[name] = owner
    for name, other in catalogue.REFERENCES.all(connection, schemas):
        names.references.setdefault(name, set()).add(other)
    for name, column in catalogue.NOT_NULL.all(connection, schemas):
        names.not_null.add((name, column))
    return names, sizes


def _seconds(step: Step, touch: Touch | None, size: Size | None) -> float | None:
    if touch is None or size is None:
        return None
    if touch.rewrites:
        return (size.bytes + size.index_bytes) / _WRITE
    if not touch.scans:
        return 0.0
    if touch.lock is Lock.ROW_EXCLUSIVE:
        return size.rows / _UPDATED_ROWS
    # What is created out of rows that are there is an index.
    return size.bytes / (_WRITE if step.statement.creates else _READ)
