"""Each order has a task."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "shop_0002"
down_revision = "shop_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("orders", sa.Column("task_id", sa.Text()))


def downgrade() -> None:
    op.drop_column("orders", "task_id")
