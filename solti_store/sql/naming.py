"""The schema's name, and how another takes its place in a statement.

All SQL text of the package, the migrations' too, bears the default name, before a dot or after the word SCHEMA:
`solti.tasks`, `solti_report.outcomes`. So it is what one would type, and costs nothing where the name is the default.
For another schema a text is made from that one and kept. Values are always bound, so such a name is always ours.

Which schema it is, a connection says in an execution option. It is for the package alone, where SQLAlchemy's
`schema_translate_map` would also change what the connection's owner runs.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = [
    "REPORT_SCHEMA",
    "SCHEMA",
    "engine_in",
    "in_schema",
    "quoted",
    "renamed",
    "report_schema",
    "schema_of",
    "translations",
]

SCHEMA = "solti"
REPORT_SCHEMA = "solti_report"

_OPTION = "solti_store_schema"
_REPORT = "_report"
# Within a string literal (of a regclass) right after the quote, and then escaped for it.
_NAME = re.compile(r"(?P<literal>'?)\b(?:(?<=SCHEMA )|(?=\w+\.[a-z]))solti(?P<report>_report)?\b")

_AnyEngine = TypeVar("_AnyEngine", "Engine", "AsyncEngine")


def report_schema(schema: str) -> str:
    """The schema of a schema's reports."""
    return schema + _REPORT


def quoted(name: str) -> str:
    """A name as an identifier of SQL, quoted if it has to be."""
    # Not by the dialect, which doubles a percent sign, as the text of a statement does again.
    return name if name in (SCHEMA, REPORT_SCHEMA) else '"' + name.replace('"', '""') + '"'


def renamed(sql: str, schema: str) -> str:
    """SQL of ours, for another schema."""
    if schema == SCHEMA:
        return sql

    def name(found: re.Match[str]) -> str:
        identifier = quoted(report_schema(schema) if found["report"] else schema)
        return "'" + identifier.replace("'", "''") if found["literal"] else identifier

    return _NAME.sub(name, sql)


def schema_of(connection: Connection) -> str:
    """The schema that the package's statements are about on this connection."""
    schema: str | None = connection.get_execution_options().get(_OPTION)
    return SCHEMA if schema is None else schema


def translations(connection: Connection) -> dict[str, Any]:
    """What `Connection.execute` takes as execution options of a Core construct, for the connection's schema."""
    schema = schema_of(connection)
    if schema == SCHEMA:
        return {}
    return {"schema_translate_map": {SCHEMA: schema, REPORT_SCHEMA: report_schema(schema)}}


def engine_in(engine: _AnyEngine, schema: str) -> _AnyEngine:
    """The engine, with the same pool, for a schema: to set it on each connection would cost some µs."""
    return engine if schema == SCHEMA else engine.execution_options(**{_OPTION: schema})


@contextmanager
def in_schema(connection: Connection, schema: str) -> Iterator[None]:
    """For a while, the package's statements on somebody's connection are about a schema."""
    before = schema_of(connection)
    if before == schema:
        yield
        return
    connection.execution_options(**{_OPTION: _option(schema)})
    try:
        yield
    finally:
        connection.execution_options(**{_OPTION: _option(before)})


def _option(schema: str) -> str | None:
    # No option and this one is all that the hot path has to tell apart.
    return None if schema == SCHEMA else schema
