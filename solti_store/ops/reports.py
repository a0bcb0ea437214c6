"""Read a report."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from solti_store.errors import SchemaMismatch, StoreUnavailable
from solti_store.faults import sqlstate
from solti_store.rules.reports import VERSION
from solti_store.sql import reports, selectors
from solti_store.sql.naming import translations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy import Connection

    from solti_store.model import LabelRequirement
    from solti_store.rules.reports import Report

__all__ = ["Freshness", "Rows", "freshness", "read"]

_CANCELED = "57014"


@dataclass(frozen=True, slots=True)
class Rows:
    """What a report has to say.

    Attributes:
        report: Which one.
        columns: The names of all its columns.
        types: Their types in the database.
        rows: A value for each of them; times have an offset, labels are dictionaries.
        is_cut: Whether there are more.
    """

    report: Report
    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far a server has come.

    Attributes:
        is_replica: Whether it follows another.
        as_of: Up to when changes are seen; None on a replica that has replayed nothing since it was started.
        behind_seconds: How far that is back, at most.
    """

    is_replica: bool
    as_of: datetime | None
    behind_seconds: float | None


@contextmanager
def _bounded(connection: Connection, timeout: timedelta) -> Iterator[None]:
    """A transaction of which each statement takes no longer than `timeout`, and which is over in the end."""
    milliseconds = int(timeout.total_seconds() * 1000)
    try:
        connection.execute(reports.BOUND, {"timeout_ms": f"{milliseconds}"})
        yield
    except DBAPIError as error:
        if sqlstate(error) == _CANCELED:
            raise StoreUnavailable(
                f"the report took longer than {milliseconds / 1000:g} s; ask for less, or allow more time"
            ) from None
        raise
    finally:
        connection.rollback()


def freshness(connection: Connection, timeout: timedelta) -> Freshness:
    """Where the server is, and whether its views are those that this code reads.

    Args:
        connection: As for `read`.
        timeout: Likewise.

    Raises:
        SchemaMismatch: They are not.
        StoreUnavailable: It took too long.
    """
    with _bounded(connection, timeout):
        found = reports.SELECT_VERSION.one(connection, {}).version
        row = reports.SELECT_FRESHNESS.one(connection, {})
    if found != VERSION:
        raise SchemaMismatch(
            f"the database has version {found} of the reports, this code needs {VERSION}; run `solti-store db upgrade`,"
            " or, where the database is ahead of the code, a newer solti-store"
        )
    return Freshness(row.is_replica, row.as_of, row.behind_seconds)


def read(
    connection: Connection,
    report: Report,
    *,
    since: datetime | None = None,
    requirements: Iterable[LabelRequirement] = (),
    limit: int | None = None,
    timeout: timedelta,
) -> Rows:
    """Read a report in a transaction of its own, which is over when this returns: nobody waits for what is drawn.

    Args:
        connection: Not in a transaction, and not in AUTOCOMMIT mode.
        report: Which one.
        since: Only what is not older, where the report has a time.
        requirements: Only what has labels that meet all of these; for a report that has labels.
        limit: The most rows.
        timeout: How long the database may take.

    Raises:
        StoreUnavailable: It took longer.
    """
    requirements = tuple(requirements)
    statement = reports.of(
        report, since=since is not None, labels=selectors.shape_of(requirements), limited=limit is not None
    )
    parameters = {"since": since, "limit": None if limit is None else limit + 1, **selectors.parameters(requirements)}
    given = {name: value for name, value in parameters.items() if value is not None}
    with _bounded(connection, timeout):
        result = connection.execute(statement, given, execution_options=translations(connection))
        described: Any = result.cursor
        types = tuple(column.type_display for column in described.description)
        columns, rows = tuple(result.keys()), [tuple(row) for row in result]
    return Rows(report, columns, types, rows[:limit], is_cut=limit is not None and len(rows) > limit)
