"""${message}

Revision: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
# The oldest code that works on this schema, by the name of its newest migration. Code of the release before is still
# running when this is applied: first add, and take away in the next release. docs/migrations.md
oldest_code = ${repr(down_revision)}

# Why a statement may break a rule of docs/migrations.md: {"how it begins": "the reason"}.
unsafe: dict[str, str] = {}

# SQL runs by `solti_store.migrate.execute`, which puts the schema's real name in the place of `solti.`.
# One transaction a file, and in it one statement that locks a table in use. Indexes and long updates are steps that can
# be repeated, alone in their file: build_index, drop_index and backfill of solti_store.migration.steps.
# The environment sets lock_timeout: a statement that waits longer gives up, and its file is tried again.


def upgrade() -> None:
    """Move the schema one step forward."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Undo exactly what `upgrade` did."""
    ${downgrades if downgrades else "pass"}
