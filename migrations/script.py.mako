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

# SQL runs by `solti_store.migrate.execute`, which puts the schema's real name in the place of `solti.`.
# One transaction a file. An index on a table that is in use is built inside
# `with op.get_context().autocommit_block():` with `postgresql_concurrently=True`.
# The environment sets lock_timeout: a statement that waits longer gives up, and the upgrade may be tried again.


def upgrade() -> None:
    """Move the schema one step forward."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Undo exactly what `upgrade` did."""
    ${downgrades if downgrades else "pass"}
