"""Each order has a task, so that this comes after the store's tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "shop_0002"
down_revision = "shop_0001"
branch_labels = None
depends_on = "solti_0001"


def upgrade() -> None:
    op.add_column("orders", sa.Column("task_id", sa.Text()))
    op.execute("INSERT INTO orders SELECT 1, 'apple', (SELECT max(id) FROM \"shop tasks\".tasks)")


def downgrade() -> None:
    op.execute("DELETE FROM orders")
    op.drop_column("orders", "task_id")
