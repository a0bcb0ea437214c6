"""Which revision of the schema this code is written for."""

from __future__ import annotations

from sqlalchemy import text

from solti_store.sql.tables import SCHEMA

__all__ = ["HAS_REVISION", "HEAD", "SELECT_REVISION"]

#: The newest migration. A constant, because asking Alembic costs 0.3 s of imports; a test compares the two.
HEAD = "solti_0002"

HAS_REVISION = text("SELECT to_regclass(:table) IS NOT NULL").bindparams(table=f"{SCHEMA}.alembic_version")
SELECT_REVISION = text(f"SELECT version_num FROM {SCHEMA}.alembic_version")  # noqa: S608 - a constant
