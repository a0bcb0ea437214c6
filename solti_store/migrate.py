"""Moves the schema, one migrator at a time: the way in, from Python and for a host application's Alembic.

`alembic` on the command line and the functions here go through the same environment (`migrations/env.py`).
"""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError

from solti_store.errors import Invalid, SchemaMismatch
from solti_store.faults import translate
from solti_store.migration.hosts import branch, theirs
from solti_store.migration.locking import holding_lock
from solti_store.migration.statements import create_function, create_schemas, execute, execute_block
from solti_store.migration.waiting import DEFAULT_WAITS, Waits
from solti_store.ops import schema as fitness
from solti_store.schema_name import resolve_schema
from solti_store.sql.naming import in_schema
from solti_store.url import resolve_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import URL, Connection

__all__ = [
    "Waits",
    "branch",
    "create_function",
    "create_schemas",
    "downgrade",
    "execute",
    "execute_block",
    "holding_lock",
    "script",
    "script_location",
    "stamp",
    "theirs",
    "upgrade",
]

logger = logging.getLogger(__name__)

# What Alembic reads as a revision: an id or a name, perhaps of a branch, and steps from it. On others it stumbles.
_REVISION = re.compile(r"(?:[^@:+\s-]+@)?(?:(?!heads?\+)[^@:+\s-]+(?:[+-][0-9]+)?|[+-][0-9]+)")

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
    connection: Connection | None = None,
    *,
    schema: str | None = None,
    waits: Waits = DEFAULT_WAITS,
    versions: Sequence[Path] = (),
) -> Config:
    """Alembic's configuration, as `alembic.ini` has it.

    Args:
        connection: What to migrate; without one, the environment connects.
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.
        waits: How long to wait for locks.
        versions: Folders of migrations beside our own.
    """
    result = Config()
    location = script_location()
    folders = os.pathsep.join(map(str, (location / "versions", *versions)))
    result.set_main_option("script_location", str(location).replace("%", "%%"))
    result.set_main_option("version_locations", folders.replace("%", "%%"))
    result.set_main_option("path_separator", "os")
    result.attributes.update(schema=schema, waits=waits)
    if connection is not None:
        result.attributes["connection"] = connection
    return result


def upgrade(
    database: Engine | URL | str,
    revision: str = "head",
    *,
    schema: str | None = None,
    waits: Waits = DEFAULT_WAITS,
    versions: Sequence[Path] = (),
) -> None:
    """Bring the schema to `revision`; any number of processes may call this at once.

    Args:
        database: An engine, or the URL of a direct connection.
        revision: A revision id, `head`, or a step like `+1`.
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.
        waits: How long to wait for locks.
        versions: Folders of migrations beside our own.

    Raises:
        Invalid: `schema` or `revision` cannot be one.
        LockTimeout: Somebody held a lock all the time; what came before that revision is done.
        SchemaMismatch: The revision, or the one that the schema is at, is not among ours, or there is no way between
            them; or a host application migrates the schema.
        StoreUnavailable: The database cannot be used, or somebody else migrates it all the time.
    """
    _require_revision(revision)
    name = resolve_schema(schema)
    with _one_thread, _clear_errors(), _connect(database) as connection:
        try:
            command.upgrade(config(connection, schema=name, waits=waits, versions=versions), revision)
        except CommandError:
            # As when old code starts anew while a newer release is being deployed, which has migrated.
            if revision != "head" or not _is_ahead(connection, name):
                raise
            logger.info("the schema is ahead of this code, which works on it")
        _tell_invalid_indexes(connection, name)


def downgrade(
    database: Engine | URL | str,
    revision: str,
    *,
    schema: str | None = None,
    waits: Waits = DEFAULT_WAITS,
    versions: Sequence[Path] = (),
) -> None:
    """Take the schema back to `revision` (`base` removes every table); otherwise as `upgrade`."""
    _require_revision(revision)
    name = resolve_schema(schema)
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.downgrade(config(connection, schema=name, waits=waits, versions=versions), revision)


def stamp(
    database: Engine | URL | str,
    revision: str,
    *,
    schema: str | None = None,
    waits: Waits = DEFAULT_WAITS,
    versions: Sequence[Path] = (),
) -> None:
    """Say that the schema is at `revision`, and change nothing else; otherwise as `upgrade`."""
    _require_revision(revision)
    name = resolve_schema(schema)
    with _one_thread, _clear_errors(), _connect(database) as connection:
        command.stamp(config(connection, schema=name, waits=waits, versions=versions), revision)


def script(
    revision: str,
    *,
    down: bool = False,
    schema: str | None = None,
    waits: Waits = DEFAULT_WAITS,
    versions: Sequence[Path] = (),
) -> list[str]:
    """The SQL of a way through the revisions, without a database.

    Args:
        revision: `FROM:TO`; upwards also `TO` alone, from nothing.
        down: Whether the way leads back.
        schema: The schema; None means SOLTI_STORE_SCHEMA, or else `solti`.
        waits: Of these, the script sets the timeout of its statements.
        versions: Folders of migrations beside our own.

    Returns:
        The script in pieces, a statement or a comment each; joined, they are what psql can run. Empty when there is no
        revision on the way.

    Raises:
        Invalid: `schema` or `revision` cannot be one.
        SchemaMismatch: There is no such way.
    """
    _require_revision(revision, most=2)
    settings = config(schema=resolve_schema(schema), waits=waits, versions=versions)
    written = _Pieces()
    settings.output_buffer = written
    with _one_thread, _clear_errors():
        (command.downgrade if down else command.upgrade)(settings, revision, sql=True)
    # The environment writes its settings even then.
    return written.pieces if any(piece.startswith("-- Running") for piece in written.pieces) else []


def _require_revision(text: str, *, most: int = 1) -> None:
    parts = text.split(":")
    if len(parts) > most or not all(map(_REVISION.fullmatch, parts)):
        form = "a revision, head, base or a step like +1" + (", or two of them as FROM:TO" if most > 1 else "")
        raise Invalid(f"invalid model: revision must be {form}, got {text!r:.80}", field="revision")


class _Pieces(io.StringIO):
    """Alembic writes a statement at once, and a parser that is to find the ends of some it cannot read does not."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return len(text)


def _is_ahead(connection: Connection, schema: str) -> bool:
    """Whether the schema is of newer code, and this code works on it all the same.

    Raises:
        SchemaMismatch: It does not.
    """
    with in_schema(connection, schema):
        applied = fitness.applied(connection)
    connection.rollback()
    return fitness.is_ahead(applied, schema)


def _tell_invalid_indexes(connection: Connection, schema: str) -> None:
    with in_schema(connection, schema):
        found = fitness.invalid_indexes(connection)
    connection.rollback()
    for one in found:
        logger.warning("index %s %s, so nothing is read by it; run %s", one.subject, one.found, one.remedy)


@contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise SchemaMismatch(f"{error}") from error
    except AssertionError as error:
        # The way up to `solti_0001-1`: Alembic takes for a revision what is before the first.
        if traceback.extract_tb(error.__traceback__)[-1].name != "is_revision":
            raise
        raise SchemaMismatch("there is no revision so far back") from error
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
