"""Statements that read reports.

The views are made by the migrations, which also say what each column means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Date,
    Double,
    Integer,
    MetaData,
    Table,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from solti_store.sql import selectors
from solti_store.sql.driver import Prepared
from solti_store.sql.naming import REPORT_SCHEMA
from solti_store.sql.types import Instant

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select

    from solti_store.rules.reports import Report

__all__ = [
    "BOUND",
    "REPORT_SCHEMA",
    "SELECT_FRESHNESS",
    "SELECT_VERSION",
    "of",
]

_here = literal_column("true", Boolean)

#: For the rest of the transaction. Without compiled plans: to compile one takes longer than most reports do. With scans
#: of whole tables and plans for the values that are asked for, which the store's own statements do without
#: (`solti_store.sql.session`). And with time to make values of the answer, which takes 20 s of a million rows.
BOUND = select(
    func.set_config("statement_timeout", bindparam("timeout_ms", type_=Text()), _here, type_=Text()),
    func.set_config("idle_in_transaction_session_timeout", "10min", _here, type_=Text()),
    func.set_config("jit", "off", _here, type_=Text()),
    func.set_config("enable_seqscan", "on", _here, type_=Text()),
    func.set_config("plan_cache_mode", "auto", _here, type_=Text()),
)
SELECT_VERSION = Prepared(select(column("version", Integer)).select_from(table("version", schema=REPORT_SCHEMA)))
SELECT_FRESHNESS = Prepared(
    select(column("is_replica", Boolean), column("as_of", Instant), column("behind_seconds", Double)).select_from(
        table("freshness", schema=REPORT_SCHEMA)
    )
)


def of(report: Report, *, since: bool, labels: selectors.Shape, limited: bool) -> Select[Any]:
    """The statement that reads a report, in its order.

    Args:
        report: Which one.
        since: Whether only what is not older than the parameter `since`; for a report that has a time.
        labels: The shape of the selector that the labels must match; see `selectors.parameters`.
        limited: Whether to stop after `limit` rows.
    """
    # A Table: SQLAlchemy does not translate the schema of a lighter `table`.
    view = Table(report.view, MetaData(), schema=REPORT_SCHEMA)
    statement: Any = select(literal_column("*")).select_from(view)
    if since and report.time is not None:
        statement = statement.where(_not_before(report.time))
    if labels:
        statement = statement.where(selectors.matching(labels, column("labels", JSONB)))
    statement = statement.order_by(*map(text, report.order))
    chosen: Select[Any] = statement.limit(bindparam("limit", type_=BigInteger())) if limited else statement
    return chosen


def _not_before(time: str) -> ColumnElement[bool]:
    moment = cast(bindparam("since", type_=Instant), Instant)
    if time != "day":
        return column(time) >= moment
    # The whole of the first day: half of one would look like a bad one.
    return column("day") >= cast(func.timezone("UTC", moment), Date)
