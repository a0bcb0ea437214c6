"""Orders."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "shop_0001"
down_revision = None
branch_labels = ("shop",)
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders", sa.Column("id", sa.BigInteger(), primary_key=True), sa.Column("article", sa.Text(), nullable=False)
    )


def downgrade() -> None:
    op.drop_table("orders")
