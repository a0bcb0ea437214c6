"""Moves the schema, one migrator at a time, and says whether a database fits this code.

`alembic` on the command line and the functions here go through the same environment (`migrations/env.py`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from solti_store.errors import SchemaMismatch, StoreUnavailable
from solti_store.faults import translate
from solti_store.sql.session import IS_DIRECT
from solti_store.sql.tables import SCHEMA
from solti_store.url import resolve_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection

__all__ = ["CREATE_SCHEMA", "downgrade", "ensure_schema", "migrating", "script_location", "upgrade"]

logger = logging.getLogger(__name__)

CREATE_SCHEMA = f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"
LOCK_KEY = 0x736F_6C74_6901  # "solti", then 1; any constant no other program uses
LOCK_WAIT_S = 300.0
LOCK_TIMEOUT = "10s"

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


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, as `alembic.ini` has it."""
    result = Config()
    result.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    result.set_main_option("path_separator", "os")
    if connection is not None:
        result.attributes["connection"] = connection
    return result


@contextmanager
def migrating(connection: Connection, *, wait: float = LOCK_WAIT_S) -> Iterator[None]:
    """Make this session a migrator's: it holds the right to migrate, alone, and waits for no lock too long.

    A session lock, polled: a blocking one would deadlock with CREATE INDEX CONCURRENTLY, which waits for
    every older snapshot, the blocked migrator's included. It ends with its connection, so a killed migrator
    leaves nothing behind.

    Args:
        connection: A direct connection (not through a transaction-mode pooler), outside a transaction.
        wait: Seconds to keep trying.

    Raises:
        StoreUnavailable: Somebody else held the lock all that time, or the connection goes through a pooler.
    """
    _refuse_pooler(connection)
    deadline = time.monotonic() + wait
    waiting = False
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
        connection.rollback()
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"another process has been migrating this database for {wait:g} s")
        if not waiting:
            logger.info("waiting for another process that is migrating this database")
            waiting = True
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - jitter
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
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
        connection.execute(text("RESET lock_timeout"))
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
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


def ensure_schema(connection: Connection) -> None:
    """Create our schema if it is not there, and commit.

    Looked up first: CREATE SCHEMA IF NOT EXISTS asks for a right on the database even when there is
    nothing to create, and the owner of the schema alone may not have it.
    """
    if connection.scalar(text("SELECT to_regnamespace(:name) IS NULL"), {"name": SCHEMA}):
        connection.execute(text(CREATE_SCHEMA))
    connection.commit()


def upgrade(database: Engine | URL | str, revision: str = "head") -> None:
    """Bring the schema to `revision`; any number of processes may call this at once.

    Args:
        database: An engine, or the URL of a direct connection.
        revision: A revision id, `head`, or a step like `+1`.
    """
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.upgrade(config(connection), revision)


def downgrade(database: Engine | URL | str, revision: str) -> None:
    """Take the schema back to `revision` (`base` removes every table)."""
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.downgrade(config(connection), revision)


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
