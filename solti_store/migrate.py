"""Moves the schema, one migrator at a time, and says whether a database fits this code.

`alembic` on the command line and the functions here go through the same environment (`migrations/env.py`).
"""

from __future__ import annotations

import io
import logging
import os
import random
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from solti_store.errors import SchemaMismatch, StoreUnavailable
from solti_store.faults import translate
from solti_store.migration.waiting import Waits
from solti_store.ops import schema
from solti_store.sql.migrating import CHECK_CLIENT
from solti_store.sql.tables import SCHEMA
from solti_store.url import resolve_url

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from sqlalchemy import URL, Connection

__all__ = [
    "CREATE_SCHEMA",
    "Steps",
    "Waits",
    "downgrade",
    "ensure_schema",
    "migrating",
    "script",
    "script_location",
    "stamp",
    "upgrade",
]

logger = logging.getLogger(__name__)

CREATE_SCHEMA = f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"
LOCK_KEY = 0x736F_6C74_6901  # "solti", then 1; any constant no other program uses
DEFAULT_WAITS = Waits()

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


def config(
    connection: Connection | None = None, *, waits: Waits = DEFAULT_WAITS, versions: Sequence[Path] = ()
) -> Config:
    """Alembic's configuration, as `alembic.ini` has it.

    Args:
        connection: What to migrate; without one, the environment connects.
        waits: How long to wait for locks.
        versions: Folders of migrations beside our own.
    """
    result = Config()
    location = script_location()
    folders = os.pathsep.join(map(str, (location / "versions", *versions)))
    result.set_main_option("script_location", str(location).replace("%", "%%"))
    result.set_main_option("version_locations", folders.replace("%", "%%"))
    result.set_main_option("path_separator", "os")
    result.attributes["waits"] = waits
    if connection is not None:
        result.attributes["connection"] = connection
    return result


@contextmanager
def migrating(connection: Connection, waits: Waits = DEFAULT_WAITS) -> Iterator[None]:
    """Make this session a migrator's: it holds the right to migrate, alone, and waits for no lock too long.

    A session lock, polled: a blocking one would deadlock with CREATE INDEX CONCURRENTLY, which waits for
    every older snapshot, the blocked migrator's included. It ends with its connection, so a killed migrator
    leaves nothing behind.

    Args:
        connection: A direct connection (not through a transaction-mode pooler), outside a transaction.
        waits: How long it waits for others.

    Raises:
        StoreUnavailable: Somebody else held the lock all that time.
    """
    patience = waits.patience.total_seconds()
    deadline = time.monotonic() + patience
    waiting = False
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK_KEY}):
        connection.rollback()
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"another process has been migrating this database for {patience:g} s")
        if not waiting:
            logger.info("waiting for another process that is migrating this database")
            waiting = True
        time.sleep(random.uniform(0.05, 0.25))  # noqa: S311 - jitter
    # Short: whoever wants the table after us waits behind us, so we give up and try again.
    connection.execute(text(f"SET lock_timeout = {waits.lock_timeout.total_seconds() * 1000:.0f}"))
    connection.execute(CHECK_CLIENT)
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
        connection.execute(text("RESET client_connection_check_interval"))
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
        connection.commit()


def ensure_schema(connection: Connection) -> None:
    """Create our schema if it is not there, and commit.

    Looked up first: CREATE SCHEMA IF NOT EXISTS asks for a right on the database even when there is
    nothing to create, and the owner of the schema alone may not have it.
    """
    if connection.scalar(text("SELECT to_regnamespace(:name) IS NULL"), {"name": SCHEMA}):
        connection.execute(text(CREATE_SCHEMA))
    connection.commit()


class Steps:
    """The steps of a run of migrations, which goes on after a try that failed where that one got.

    The way is laid down once: a relative target (`+2`) would be another after each step.
    """

    def __init__(self, plan: Callable[..., Iterable[Any]]) -> None:
        self._plan = plan
        self._steps: list[Any] = []
        self._places: dict[frozenset[str], int] = {}

    def left(self, heads: Iterable[str], context: object) -> list[Any]:
        """What is still to do; Alembic's `fn`."""
        if frozenset(heads) not in self._places:
            # The first try; or somebody has meanwhile changed the revision by hand.
            self._steps = list(self._plan(heads, context))
            self._places = {frozenset(heads): 0}
        return self._steps[self._places[frozenset(heads)] :]

    def note(self, ctx: object, step: object, heads: Collection[str], run_args: object) -> None:
        """Remember what a step leads to; Alembic's `on_version_apply`, called before the step is committed."""
        del ctx, step, run_args
        self._places.setdefault(frozenset(heads), len(self._places))

    def reached(self) -> int:
        """How many steps were done at some time."""
        return len(self._places)


def upgrade(
    database: Engine | URL | str, revision: str = "head", *, waits: Waits = DEFAULT_WAITS, versions: Sequence[Path] = ()
) -> None:
    """Bring the schema to `revision`; any number of processes may call this at once.

    Args:
        database: An engine, or the URL of a direct connection.
        revision: A revision id, `head`, or a step like `+1`.
        waits: How long to wait for locks.
        versions: Folders of migrations beside our own.

    Raises:
        LockTimeout: Somebody held a lock all the time; what came before that revision is done.
        SchemaMismatch: There is no such revision, or no way to it.
        StoreUnavailable: The database cannot be used, or somebody else migrates it all the time.
    """
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.upgrade(config(connection, waits=waits, versions=versions), revision)
        _tell_invalid_indexes(connection)


def downgrade(
    database: Engine | URL | str, revision: str, *, waits: Waits = DEFAULT_WAITS, versions: Sequence[Path] = ()
) -> None:
    """Take the schema back to `revision` (`base` removes every table); as `upgrade` otherwise."""
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.downgrade(config(connection, waits=waits, versions=versions), revision)


def stamp(database: Engine | URL | str, revision: str, *, versions: Sequence[Path] = ()) -> None:
    """Say that the schema is at `revision`, and change nothing else; as `upgrade` otherwise."""
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.stamp(config(connection, versions=versions), revision)


def script(revision: str, *, down: bool = False, versions: Sequence[Path] = ()) -> list[str]:
    """The SQL of a way through the revisions, without a database.

    Args:
        revision: `FROM:TO`; upwards also `TO` alone, from nothing.
        down: Whether the way leads back.
        versions: Folders of migrations beside our own.

    Returns:
        The script in pieces, a statement or a comment each; joined, they are what psql can run. Empty when there is no
        revision on the way.

    Raises:
        SchemaMismatch: There is no such way.
    """
    settings = config(versions=versions)
    written = _Pieces()
    settings.output_buffer = written
    with _one_thread, _clear_errors():
        (command.downgrade if down else command.upgrade)(settings, revision, sql=True)
    # The environment writes its settings even then.
    return written.pieces if any(piece.startswith("-- Running") for piece in written.pieces) else []


class _Pieces(io.StringIO):
    """Alembic writes a statement at once, and a parser that is to find the ends of some it cannot read does not."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def _tell_invalid_indexes(connection: Connection) -> None:
    for name, owner in schema.invalid_indexes(connection):
        logger.warning(
            "index %s of %s is not valid, so nothing is read by it; run REINDEX INDEX CONCURRENTLY %s,"
            " or drop it if its name ends in _ccnew or _ccold",
            name,
            owner,
            name,
        )
    connection.rollback()


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
