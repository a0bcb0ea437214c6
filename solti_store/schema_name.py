"""Which schema: the one given, the one in SOLTI_STORE_SCHEMA, or `solti`."""

from __future__ import annotations

import os

from solti_store.errors import Invalid
from solti_store.sql.naming import SCHEMA, report_schema

__all__ = ["SCHEMA_VARIABLE", "resolve_schema"]

SCHEMA_VARIABLE = "SOLTI_STORE_SCHEMA"

_MAX_BYTES = 63  # PostgreSQL would cut a longer one off


def resolve_schema(schema: str | None = None) -> str:
    """The schema of the tables; that of the reports has the same name with `_report` after it.

    Args:
        schema: Any printable name that PostgreSQL takes, of up to 56 bytes; None means SOLTI_STORE_SCHEMA, and without
            that `solti`. Not one that ends in `_report`, and not `public`, which is everybody's.

    Raises:
        Invalid: It cannot be the name of our schema.
    """
    if schema is None:
        schema = os.environ.get(SCHEMA_VARIABLE) or SCHEMA
    if problem := _problem(schema):
        raise Invalid(f"invalid model: schema {problem}, got {schema!r:.70}", field="schema")
    return schema


def _problem(schema: object) -> str | None:
    if not isinstance(schema, str):
        return "must be a string"
    size = len(report_schema(schema).encode(errors="replace"))
    if not schema or size > _MAX_BYTES:
        return f"must have 1 to {_MAX_BYTES - len(report_schema(''))} bytes"
    if not schema.isprintable():
        return "must be of printable characters"
    if schema.startswith("pg_") or schema in ("public", "information_schema"):
        return "must not be one of PostgreSQL's own or public"
    if schema.endswith(report_schema("")):
        return "must not end in _report, as those of reports do"
    return None
