"""Statements that read reports, and those that let a role read nothing else.

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
from solti_store.sql.types import Instant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Select, TextClause

    from solti_store.rules.reports import Report

__all__ = [
    "BOUND",
    "REPORT_SCHEMA",
    "SELECT_EXCESS",
    "SELECT_FRESHNESS",
    "SELECT_ROLE",
    "SELECT_VERSION",
    "of",
    "role",
]

REPORT_SCHEMA = "solti_report"

_here = literal_column("true", Boolean)

#: For the rest of the transaction. Without compiled plans: to compile one takes longer than most reports do. And with
#: scans of whole tables, which the store's own statements do without (`solti_store.engine`).
BOUND = select(
    func.set_config("statement_timeout", bindparam("timeout_ms", type_=Text()), _here, type_=Text()),
    func.set_config("jit", "off", _here, type_=Text()),
    func.set_config("enable_seqscan", "on", _here, type_=Text()),
)
SELECT_VERSION = select(column("version", Integer)).select_from(table("version", schema=REPORT_SCHEMA))
SELECT_FRESHNESS = select(
    column("is_replica", Boolean), column("as_of", Instant), column("behind_seconds", Double)
).select_from(table("freshness", schema=REPORT_SCHEMA))


def of(report: Report, *, since: bool, labels: selectors.Shape, limited: bool) -> Select[Any]:
    """The statement that reads a report, in its order.

    Args:
        report: Which one.
        since: Whether only what is not older than the parameter `since`; for a report that has a time.
        labels: The shape of the selector that the labels must match; see `selectors.parameters`.
        limited: Whether to stop after `limit` rows.
    """
    statement: Any = select(literal_column("*")).select_from(table(report.view, schema=REPORT_SCHEMA))
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


# --- who may read -------------------------------------------------------------------------------

#: Whether there is a role `name`, and the database's name.
SELECT_ROLE = text("SELECT to_regrole(quote_ident(:name)) IS NOT NULL AS is_there, current_database() AS database")

#: What the role `name` may do beyond reading views, a row each.
SELECT_EXCESS = text(
    """
    SELECT attribute FROM pg_roles, LATERAL (VALUES
        ('is a superuser', rolsuper), ('may create roles', rolcreaterole), ('may create databases', rolcreatedb),
        ('may replicate', rolreplication)) AS of_role (attribute, has)
    WHERE rolname = :name AND has
    UNION ALL
    SELECT 'is a member of ' || roleid::regrole FROM pg_auth_members WHERE member = to_regrole(quote_ident(:name))
    UNION ALL
    SELECT 'may use the schema solti' WHERE has_schema_privilege(:name, 'solti', 'USAGE')
    UNION ALL
    SELECT 'may create in the schema solti_report' WHERE has_schema_privilege(:name, 'solti_report', 'CREATE')
    """
)


def role(name: str, database: str, timeout_ms: int, *, is_there: bool) -> Iterator[TextClause]:
    """The statements that make a role one that reads reports, and make it if it is not there.

    Args:
        name: The role's name.
        database: The database's name.
        timeout_ms: How long a statement of the role may take, unless it asks for more.
        is_there: Whether there is such a role.
    """
    name, database = _quoted(name), _quoted(database)
    statements = [
        *([] if is_there else [f"CREATE ROLE {name} LOGIN"]),
        f"GRANT USAGE ON SCHEMA {REPORT_SCHEMA} TO {name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {REPORT_SCHEMA} TO {name}",
        # So that views that a later migration makes anew can be read as well.
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {REPORT_SCHEMA} GRANT SELECT ON TABLES TO {name}",
        # In this database alone: what else the role is for is not ours to bound.
        *(
            f"ALTER ROLE {name} IN DATABASE {database} SET {setting}"
            for setting in (
                f"statement_timeout = {timeout_ms}",
                # A session that idles in a transaction keeps vacuum from cleaning up behind the workers.
                f"idle_in_transaction_session_timeout = {timeout_ms}",
                "default_transaction_read_only = on",
                f"search_path = {REPORT_SCHEMA}",
                "jit = off",
            )
        ),
    ]
    # A colon would begin a parameter of SQLAlchemy's.
    return (text(statement.replace(":", r"\:")) for statement in statements)


def _quoted(name: str) -> str:
    # Not by the dialect, which doubles a percent sign, as the text of a statement does again.
    return '"' + name.replace('"', '""') + '"'
