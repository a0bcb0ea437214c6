"""Alembic's environment for the solti schema: own version table, own schema, one migrator at a time."""

from __future__ import annotations

from typing import Any

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.dialects.postgresql.base import ischema_names

from solti_store.migration.locking import migrating
from solti_store.migration.waiting import DEFAULT_WAITS, Steps, patiently
from solti_store.schema_history import record_applied
from solti_store.schema_name import resolve_schema
from solti_store.sql import schemas
from solti_store.sql.tables import metadata_in
from solti_store.sql.types import Xid8
from solti_store.url import resolve_url

given = context.get_x_argument(as_dictionary=True)
schema = resolve_schema(context.config.attributes.get("schema") or given.get("schema"))
waits = context.config.attributes.get("waits", DEFAULT_WAITS)


def ours(name: str | None, kind: str, parent_names: object) -> bool:
    """Whether autogenerate looks at this object: only our schema is our business."""
    del parent_names
    return name == schema if kind == "schema" else True


# For the drift check, which reads the tables back.
ischema_names["xid8"] = Xid8

SETTINGS: dict[str, Any] = {
    "solti_schema": schema,
    "target_metadata": metadata_in(schema),
    "version_table": "alembic_version",
    "version_table_schema": schema,
    "include_schemas": True,
    "include_name": ours,
    "transaction_per_migration": True,
    "on_version_apply": record_applied,
    "compare_type": True,
    "compare_server_default": True,
}


def migrate(connection: Connection) -> None:
    """Run the migrations on `connection`, holding the migration lock."""
    context.configure(connection=connection, **SETTINGS)
    steps = Steps(context.get_context().opts["fn"])

    def run() -> None:
        tried = {"fn": steps.left, "on_version_apply": [steps.note, record_applied]}
        context.configure(connection=connection, **SETTINGS | tried)
        with context.begin_transaction():
            context.run_migrations()

    with migrating(connection, schema=schema, waits=waits):
        # Before the version table, which comes before the first migration.
        connection.execute(schemas.as_it_stands(schemas.create(schema)))
        connection.commit()
        patiently(connection, waits, run, progress=steps.reached)


def run_offline() -> None:
    """Print the SQL instead of running it (`--sql`)."""
    # No driver reads it: a percent sign stays one.
    context.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, literal_binds=True, **SETTINGS)
    with context.begin_transaction():
        context.execute(f"SET lock_timeout = {waits.lock_timeout_ms}")
        context.execute(schemas.as_it_stands(schemas.create(schema)))
        context.run_migrations()


def run_online() -> None:
    """Use the caller's connection, or open one."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
        return
    engine = create_engine(resolve_url(given.get("url")), poolclass=NullPool)
    with engine.connect() as connection:
        migrate(connection)


if context.is_offline_mode():
    run_offline()
else:
    run_online()
