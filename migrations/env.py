"""Alembic's environment for the solti schema: own version table, own schema, one migrator at a time."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.dialects.postgresql.base import ischema_names

from solti_store.migrate import CREATE_SCHEMA, Steps, Waits, ensure_schema, migrating
from solti_store.migration.waiting import patiently
from solti_store.sql.tables import SCHEMA, metadata
from solti_store.sql.types import Xid8
from solti_store.url import resolve_url


def ours(name: str | None, kind: str, parent_names: object) -> bool:
    """Whether autogenerate looks at this object: only our schema is our business."""
    del parent_names
    return name == SCHEMA if kind == "schema" else True


# For the drift check, which reads the tables back.
ischema_names["xid8"] = Xid8

SETTINGS: dict[str, Any] = {
    "target_metadata": metadata,
    "version_table": "alembic_version",
    "version_table_schema": SCHEMA,
    "include_schemas": True,
    "include_name": ours,
    "transaction_per_migration": True,
    "compare_type": True,
    "compare_server_default": True,
}


def migrate(connection: Connection) -> None:
    """Run the migrations on `connection`, holding the migration lock."""
    waits = context.config.attributes.get("waits", Waits())
    context.configure(connection=connection, **SETTINGS)
    steps = Steps(context.get_context().opts["fn"])

    def run() -> None:
        context.configure(connection=connection, fn=steps.left, on_version_apply=steps.note, **SETTINGS)
        with context.begin_transaction():
            context.run_migrations()

    with migrating(connection, waits):
        ensure_schema(connection)
        patiently(connection, waits, run, progress=steps.reached)


def run_offline() -> None:
    """Print the SQL instead of running it (`--sql`)."""
    context.configure(dialect_name="postgresql", literal_binds=True, **SETTINGS)
    waits = context.config.attributes.get("waits", Waits())
    with context.begin_transaction():
        context.execute(f"SET lock_timeout = {waits.lock_timeout.total_seconds() * 1000:.0f}")
        context.execute(CREATE_SCHEMA)
        context.run_migrations()


def run_online() -> None:
    """Use the caller's connection, or open one."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    engine = create_engine(resolve_url(context.get_x_argument(as_dictionary=True).get("url")), poolclass=NullPool)
    with engine.connect() as connection:
        migrate(connection)


if context.is_offline_mode():
    run_offline()
else:
    run_online()
