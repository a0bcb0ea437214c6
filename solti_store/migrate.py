"""Moves the schema, one migrator at a time, and says whether a database fits this code.

`alembic` on the command line and the functions here go through the same environment (`migrations/env.py`).
"""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command, op
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from solti_store.errors import SchemaMismatch, StoreUnavailable
from solti_store.faults import translate
from solti_store.ops import schema as fitness
from solti_store.schema_history import record_applied
from solti_store.schema_name import resolve_schema
from solti_store.sql import schemas
from solti_store.sql.naming import SCHEMA, in_schema, renamed, report_schema
from solti_store.sql.revision import HEAD
from solti_store.sql.session import IS_DIRECT
from solti_store.url import resolve_url

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from alembic.runtime.migration import MigrationContext, MigrationInfo
    from sqlalchemy import URL, Connection

__all__ = [
    "branch",
    "create_schemas",
    "downgrade",
    "execute",
    "execute_block",
    "holding_lock",
    "migrating",
    "script_location",
    "theirs",
    "upgrade",
]

logger = logging.getLogger(__name__)

_LOCK_KEY = 0x736F_6C74_6901  # "solti", then 1; any constant no other program uses
LOCK_WAIT_S = 300.0
LOCK_TIMEOUT = "10s"
_OUR_REVISIONS = "solti_"

# Alembic keeps the migration under way in module globals: two threads would run theirs in each other's database.
_one_thread = threading.Lock()


def script_location() -> Path:
    """The folder of the migrations: the checkout's if this is one, else the one inside the wheel.

    The checkout comes first, because an editable install leaves a copy in the package that goes stale.
    """
    package = Path(__file__).resolve().parent
    checkout = package.parent / "migrations"
    if (package.parent / "alembic.ini").is_file() and (checkout / "env.py").is_file():
        return checkout
    return package / "migrations"


def config(connection: Connection | None = None, *, schema: str | None = None) -> Config:
    """Alembic's configuration, as `alembic.ini` has it."""
    result = Config()
    result.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    result.set_main_option("path_separator", "os")
    if connection is not None:
        result.attributes["connection"] = connection
    result.attributes["schema"] = schema
    return result


def lock_key(schema: str) -> int:
    """The advisory lock of whoever migrates a schema."""
    if schema == SCHEMA:
        return _LOCK_KEY
    return int.from_bytes(hashlib.sha256(f"solti-store {schema}".encode()).digest()[:8], "big", signed=True)


@contextmanager
def holding_lock(connection: Connection, *, schema: str | None = None, wait: float = LOCK_WAIT_S) -> Iterator[None]:
    """Make this session a migrator's: it holds the right to migrate, alone, and waits for no lock too long.

    A session lock, polled: a blocking one would deadlock with CREATE INDEX CONCURRENTLY, which waits for
    every older snapshot, the blocked migrator's included. It ends with its connection, so a killed migrator
    leaves nothing behind.

    Args:
        connection: A direct connection (not through a transaction-mode pooler), outside a transaction.
        schema: The schema that is migrated; None means SOLTI_STORE_SCHEMA, or else `solti`.
        wait: Seconds to keep trying.

    Raises:
        StoreUnavailable: Somebody else held the lock all that time, or the connection goes through a pooler.
    """
    _refuse_pooler(connection)
    key = {"key": lock_key(resolve_schema(schema))}
    deadline = time.monotonic() + wait
    waiting = False
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), key):
        connection.rollback()
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"another process has been migrating this database for {wait:g} s")
        if not waiting:
            logger.info("waiting for another process that is migrating this database")
            waiting = True
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - jitter
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    # Committed, because a transaction left open here would swallow the migrations at its rollback.
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        connection.execute(text("RESET lock_timeout"))
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)
        connection.commit()


@contextmanager
def migrating(connection: Connection, *, schema: str, wait: float = LOCK_WAIT_S) -> Iterator[None]:
    """The same, for migrations of ours alone: whatever the session's search path is.

    Raises:
        SchemaMismatch: A host application migrates this schema.
        StoreUnavailable: As for `holding_lock`.
    """
    with holding_lock(connection, schema=schema, wait=wait), _plain_search_path(connection):
        if _is_a_hosts(connection, schema):
            raise SchemaMismatch(
                f"the schema '{schema}' is migrated by the application around it: run its `alembic upgrade heads`"
            )
        connection.commit()
        yield


def _is_a_hosts(connection: Connection, schema: str) -> bool:
    with in_schema(connection, schema):
        if fitness.applied(connection) is None:
            return False
        return not all(has.one(connection, {}).is_so for has in (schemas.HAS_VERSION_TABLE, schemas.HAS_VERSION))


@contextmanager
def _plain_search_path(connection: Connection) -> Iterator[None]:
    # Without our schema: for a role that bears its name it is the default one, and Alembic, which leaves the name of
    # the default schema out, would then take our tables for somebody else's.
    connection.execute(text("SET search_path = public"))
    dialect = connection.dialect
    default_schema, dialect.default_schema_name = dialect.default_schema_name, "public"
    # Committed, because a transaction left open here would swallow the migrations at its rollback.
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        dialect.default_schema_name = default_schema
        connection.execute(text("RESET search_path"))
        connection.commit()


def _refuse_pooler(connection: Connection) -> None:
    """The lock belongs to a session, and a pooler would leave it with whoever comes next."""
    driver = connection.connection.driver_connection
    is_direct = connection.exec_driver_sql(IS_DIRECT, {"seen": driver.info.backend_pid}).scalar_one()  # type: ignore[union-attr]
    connection.rollback()
    if not is_direct:
        raise StoreUnavailable(
            "this URL leads to a pooler, and migrations need a session of their own: give `db upgrade` the URL of the"
            " server itself"
        )


# --- for the scripts ----------------------------------------------------------------------------


def execute(statement: str) -> None:
    """Run a statement of a migration, in the schema that is migrated.

    Args:
        statement: SQL as for psql, no parameters. `solti.` and `solti_report.` in it, and the same names after the word
            SCHEMA, stand for the schemas, whatever these are named.
    """
    op.execute(schemas.as_it_stands(renamed(statement, _schema_here())))


def execute_block(body: str) -> None:
    """Run a block of PL/pgSQL, otherwise as `execute`. As a literal, for in a name there may be any dollar quote."""
    op.execute(schemas.as_it_stands(f"DO {schemas.literal(renamed(body, _schema_here()))}"))


def create_schemas() -> None:
    """Create the schemas that are migrated, if they are not there."""
    op.execute(schemas.as_it_stands(schemas.create(_schema_here())))


def _schema_here() -> str:
    # Of our own environment or of a host's `branch`; without either it is found as everywhere.
    return resolve_schema(op.get_context().opts.get("solti_schema"))


# --- for a host application's own Alembic -------------------------------------------------------


def branch(schema: str | None = None) -> dict[str, Any]:
    """Options for `context.configure` in a host application's `env.py`, so that our migrations can be a branch there.

    What is applied to our schema then stands in the application's own version table, and not in one of ours.

    Args:
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.

    Raises:
        Invalid: It cannot be one.
    """
    name = resolve_schema(schema)
    return {
        "solti_schema": name,
        "include_name": theirs(name),
        "on_version_apply": _take_over,
        "transaction_per_migration": True,
    }


def theirs(schema: str | None = None) -> Callable[[str | None, str, Any], bool]:
    """What a host application gives `context.configure` as `include_name`: autogenerate then overlooks our schemas.

    Args:
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.

    Raises:
        Invalid: It cannot be one.
    """
    name = resolve_schema(schema)
    ours = {name, report_schema(name)}

    def include_name(found: str | None, kind: str, _parents: Any) -> bool:  # noqa: ANN401 - Alembic's signature
        return not (kind == "schema" and found in ours)

    return include_name


def _take_over(*, ctx: MigrationContext, step: MigrationInfo, heads: Collection[str], **more: Any) -> None:  # noqa: ANN401 - Alembic's
    record_applied(ctx=ctx, step=step, heads=heads, **more)
    if any(revision.startswith(_OUR_REVISIONS) for revision in step.up_revision_ids):
        ctx.execute(schemas.as_it_stands(renamed(schemas.DROP_VERSION, ctx.opts["solti_schema"])))


# --- by whatever door ---------------------------------------------------------------------------


def upgrade(database: Engine | URL | str, revision: str = "head", *, schema: str | None = None) -> None:
    """Bring the schema to `revision`; any number of processes may call this at once.

    Args:
        database: An engine, or the URL of a direct connection.
        revision: A revision id, `head`, or a step like `+1`.
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.

    Raises:
        Invalid: `schema` cannot be one.
        SchemaMismatch: The revision, or the one that the schema is at, is not among ours; or a host application
            migrates the schema.
        StoreUnavailable: The database cannot be reached, or a lock cannot be had.
    """
    name = resolve_schema(schema)
    with _one_thread, _clear_errors(), _connect(database) as connection:
        try:
            command.upgrade(config(connection, schema=name), revision)
        except CommandError:
            # As when old code starts anew while a newer release is being deployed, which has migrated.
            if revision != "head" or not _is_ahead(connection, name):
                raise
            logger.info("the schema is ahead of this code, which works on it")


def downgrade(database: Engine | URL | str, revision: str, *, schema: str | None = None) -> None:
    """Take the schema back to `revision` (`base` removes every table); otherwise as `upgrade`."""
    name = resolve_schema(schema)
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.downgrade(config(connection, schema=name), revision)


def _is_ahead(connection: Connection, schema: str) -> bool:
    """Whether the schema is of newer code, and this code works on it all the same.

    Raises:
        SchemaMismatch: It does not.
    """
    with in_schema(connection, schema):
        applied = fitness.applied(connection)
    connection.rollback()
    fitness.require(applied, schema)
    return applied is not None and applied.revision > HEAD


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise SchemaMismatch(f"{error}") from error
    except DBAPIError as error:
        raise translate(error) from error


@contextmanager
def _connect(database: Engine | URL | str) -> Iterator[Connection]:
    if isinstance(database, Engine):
        with database.connect() as connection:
            # Whatever the engine's default is: in AUTOCOMMIT a migration that fails would stay half done.
            yield connection.execution_options(isolation_level="READ COMMITTED")
        return
    engine = create_engine(resolve_url(database), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
