"""An application that has tables of its own, and a task store in the same database."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, MetaData, Table, Text

__all__ = ["TASKS", "metadata"]

#: The schema of the task store.
TASKS = "shop tasks"

metadata = MetaData()
orders = Table(
    "orders",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("article", Text, nullable=False),
    Column("task_id", Text),
)
