"""Who migrates a schema: one at a time, by an advisory lock, and nobody for whom a host application does."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING

from sqlalchemy.exc import PendingRollbackError

from solti_store.errors import SchemaMismatch, StoreUnavailable
from solti_store.migration.waiting import DEFAULT_WAITS, Waits
from solti_store.ops import schema as fitness
from solti_store.schema_name import resolve_schema
from solti_store.sql import schemas
from solti_store.sql.migrating import (
    CHECK_CLIENT,
    LOCK,
    SET_LOCK_TIMEOUT,
    SET_PATIENT,
    SET_PLAIN_SEARCH_PATH,
    SET_SETTINGS,
    SHOW_SETTINGS,
    UNLOCK,
)
from solti_store.sql.naming import SCHEMA, in_schema
from solti_store.sql.session import IS_DIRECT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

__all__ = ["holding_lock", "lock_key", "migrating"]

logger = logging.getLogger(__name__)

_LOCK_KEY = 0x736F_6C74_6901  # "solti", then 1; any constant no other program uses


def lock_key(schema: str) -> int:
    """The advisory lock of whoever migrates a schema."""
    if schema == SCHEMA:
        return _LOCK_KEY
    return int.from_bytes(hashlib.sha256(f"solti-store {schema}".encode()).digest()[:8], "big", signed=True)


@contextmanager
def holding_lock(connection: Connection, *, schema: str | None = None, waits: Waits = DEFAULT_WAITS) -> Iterator[None]:
    """Make this session a migrator's: it holds the right to migrate, alone, and waits for no lock too long.

    A session lock, polled: a blocking one would deadlock with CREATE INDEX CONCURRENTLY, which waits for
    every older snapshot, the blocked migrator's included. It ends with its connection, so a killed migrator
    leaves nothing behind. What is set of the session meanwhile is put back at the end, as it was.

    Args:
        connection: A direct connection (not through a transaction-mode pooler), outside a transaction.
        schema: The schema that is migrated; None means SOLTI_STORE_SCHEMA, or else `solti`.
        waits: How long it waits for others, and each of its statements for a lock.

    Raises:
        Invalid: `schema` cannot be one.
        StoreUnavailable: Somebody else held the lock all that time, or the connection goes through a pooler.
    """
    key = lock_key(resolve_schema(schema))
    _refuse_pooler(connection)
    with _settings_put_back(connection):
        connection.execute(SET_PATIENT)
        # Short: whoever wants the table after us waits behind us, so we give up and try again.
        connection.execute(SET_LOCK_TIMEOUT, {"value": f"{waits.lock_timeout_ms}"})
        connection.execute(CHECK_CLIENT)
        # Committed, because a transaction left open here would swallow the migrations at its rollback.
        connection.commit()
        with _lock(connection, key, waits), _uncovered():
            yield


@contextmanager
def _lock(connection: Connection, key: int, waits: Waits) -> Iterator[None]:
    patience = waits.patience.total_seconds()
    deadline = time.monotonic() + patience
    is_held = waiting = False
    try:
        while not (is_held := bool(connection.scalar(LOCK, {"key": key}))):
            connection.rollback()
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"another process has been migrating this database for {patience:g} s")
            if not waiting:
                logger.info("waiting for another process that is migrating this database")
                waiting = True
            time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - jitter
        connection.commit()
        yield
    finally:
        connection.rollback()
        # A session that is lost has lost its lock.
        if is_held and not connection.invalidated:
            connection.execute(UNLOCK, {"key": key})
            connection.commit()


@contextmanager
def _settings_put_back(connection: Connection) -> Iterator[None]:
    """Put back what is changed of the session, to what it was; RESET would undo what its owner has set."""
    before = connection.execute(SHOW_SETTINGS).all()
    connection.commit()
    try:
        yield
    finally:
        connection.rollback()
        if not connection.invalidated:
            names, values = zip(*before, strict=True)
            connection.execute(SET_SETTINGS, {"names": list(names), "values": list(values)})
            connection.commit()


@contextmanager
def _uncovered() -> Iterator[None]:
    """Raise what went wrong, where an autocommit block covers it.

    When such a block of Alembic's has lost its connection, by an error or by Ctrl-C, it stumbles over that at its end.
    """
    try:
        yield
    except PendingRollbackError as error:
        covered: BaseException | None = error
        while isinstance(covered, PendingRollbackError):
            covered = covered.__context__
        if covered is None:
            raise
        raise covered from covered.__cause__


@contextmanager
def migrating(connection: Connection, *, schema: str, waits: Waits = DEFAULT_WAITS) -> Iterator[None]:
    """The same, for migrations of ours alone: whatever the session's search path is.

    Raises:
        SchemaMismatch: A host application migrates this schema.
        StoreUnavailable: As for `holding_lock`.
    """
    with holding_lock(connection, schema=schema, waits=waits), _plain_search_path(connection):
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
    connection.execute(SET_PLAIN_SEARCH_PATH)
    # Committed, because a transaction left open here would swallow the migrations at its rollback.
    connection.commit()
    # A dialect of this connection's own: the engine's is also that of its other connections.
    shared = connection.dialect
    connection.dialect = copy(shared)
    connection.dialect.default_schema_name = "public"
    try:
        yield
    finally:
        connection.dialect = shared


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
