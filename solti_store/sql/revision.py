"""Which revision of the schema this code is written for."""

from __future__ import annotations

from sqlalchemy import text

from solti_store.sql.driver import Prepared

__all__ = ["HAS_REVISION", "HEAD", "SELECT_REVISION"]

#: The newest migration. A constant, because asking Alembic costs 0.3 s of imports; a test compares the two.
HEAD = "solti_0002"

HAS_REVISION = Prepared(text("SELECT to_regclass('solti.alembic_version') IS NOT NULL AS is_there"))
SELECT_REVISION = Prepared(text("SELECT version_num FROM solti.alembic_version"))
