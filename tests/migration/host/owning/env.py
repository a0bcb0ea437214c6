"""The application's Alembic environment: the task store's migrations are a branch of its own."""

from __future__ import annotations

import os
from typing import Any

from alembic import context
from shop import TASKS, metadata  # type: ignore[import-not-found]  # on the path by the .ini
from sqlalchemy import NullPool, create_engine

from solti_store import migrate as solti

OPTIONS: dict[str, Any] = {
    "target_metadata": metadata,
    "include_schemas": True,
    "version_table_schema": os.environ.get("SHOP_VERSION_SCHEMA"),
    **solti.branch(TASKS),
}


def run_offline() -> None:
    context.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    engine = create_engine(os.environ["SHOP_URL"], poolclass=NullPool)
    with engine.connect() as connection, solti.holding_lock(connection, schema=TASKS):
        context.configure(connection=connection, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
