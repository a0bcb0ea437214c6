"""Schemas that are ahead of the code: migrations of releases that there are not yet.

One only adds, as the next release's must: code of today works on it. The one after that takes something away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from solti_store.sql.revision import HEAD
from solti_store.sql.tables import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["AFTER", "NEXT", "write"]


def _following(revision: str, step: int) -> str:
    name, number = revision.split("_")
    return f"{name}_{int(number) + step:04}"


NEXT = _following(HEAD, 1)
AFTER = _following(HEAD, 2)

_HEADER = f"""
from alembic import op
from sqlalchemy import text

SCHEMA = {SCHEMA!r}
branch_labels = depends_on = None
"""

# Each step can be run again, as one is that waited too long for its lock; none takes the locks of two tables.
_EXPAND = """
CREATE = (
    f"ALTER TABLE {SCHEMA}.tasks ADD COLUMN IF NOT EXISTS note text",
    f"ALTER TABLE {SCHEMA}.task_status ADD COLUMN IF NOT EXISTS weight bigint",
    f"ALTER TABLE {SCHEMA}.task_status DROP CONSTRAINT IF EXISTS ck_task_status_weight",
    f"ALTER TABLE {SCHEMA}.task_status ADD CONSTRAINT ck_task_status_weight CHECK (weight >= 0) NOT VALID",
    f"CREATE TABLE IF NOT EXISTS {SCHEMA}.notes (seq bigint PRIMARY KEY, note text NOT NULL)",
    f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.ix_task_status_weight",
    f"CREATE INDEX CONCURRENTLY ix_task_status_weight ON {SCHEMA}.task_status (weight, seq)",
)
DROP = (
    f"DROP INDEX CONCURRENTLY IF EXISTS {SCHEMA}.ix_task_status_weight",
    f"DROP TABLE IF EXISTS {SCHEMA}.notes",
    f"ALTER TABLE {SCHEMA}.task_status DROP COLUMN IF EXISTS weight",
    f"ALTER TABLE {SCHEMA}.tasks DROP COLUMN IF EXISTS note",
)


def in_batches(table, change, only):
    # Those that are created from now on are the code's. A row that is being changed is waited for.
    connection = op.get_bind()
    last = connection.scalar(text(f"SELECT COALESCE(max(seq), 0) FROM {SCHEMA}.tasks"))
    after = 0
    while after < last:
        after = connection.scalar(text(
            f"WITH batch AS (SELECT seq FROM {SCHEMA}.{table} WHERE seq > {after} AND {only}"
            " ORDER BY seq LIMIT 100 FOR NO KEY UPDATE),"
            f" done AS (UPDATE {SCHEMA}.{table} t SET {change} FROM batch WHERE t.seq = batch.seq)"
            f" SELECT COALESCE(max(seq), {last}) FROM batch"
        ))


def upgrade():
    with op.get_context().autocommit_block():
        for statement in CREATE:
            op.execute(statement)
        in_batches("task_status", "weight = attempt * 10", "weight IS NULL")
        in_batches("tasks", "note = 'generation ' || generation", "note IS NULL")
        op.execute(f"ALTER TABLE {SCHEMA}.task_status VALIDATE CONSTRAINT ck_task_status_weight")


def downgrade():
    with op.get_context().autocommit_block():
        in_batches("task_status", "weight = NULL", "weight IS NOT NULL")
        for statement in DROP:
            op.execute(statement)
"""

_CONTRACT = """
def upgrade():
    op.execute(f"ALTER TABLE {SCHEMA}.task_status RENAME COLUMN due_at TO next_at")
    op.execute(f"ALTER TABLE {SCHEMA}.task_status RENAME COLUMN phase TO stage")
    op.execute(f"ALTER TABLE {SCHEMA}.agents ADD COLUMN zone text NOT NULL DEFAULT 'none'")
    op.execute(f"ALTER TABLE {SCHEMA}.agents ALTER COLUMN zone DROP DEFAULT")


def downgrade():
    op.execute(f"ALTER TABLE {SCHEMA}.agents DROP COLUMN zone")
    op.execute(f"ALTER TABLE {SCHEMA}.task_status RENAME COLUMN stage TO phase")
    op.execute(f"ALTER TABLE {SCHEMA}.task_status RENAME COLUMN next_at TO due_at")
"""


def write(folder: Path) -> Path:
    """Write the two that follow this code's into a folder; it is for `versions` of `upgrade` and `downgrade`."""
    for revision, before, body in ((NEXT, HEAD, _EXPAND), (AFTER, NEXT, _CONTRACT)):
        declared = f"revision, down_revision, oldest_code = {revision!r}, {before!r}, {before!r}"
        (folder / f"{revision}.py").write_text(f"{_HEADER}\n{declared}\n{body}")
    return folder
