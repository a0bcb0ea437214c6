"""What the global options say, and the store they lead to."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from solti_store.store import TaskStore

__all__ = ["Session", "open_connection", "open_store", "session_of"]


@dataclass(frozen=True, slots=True)
class Session:
    """The global options.

    Attributes:
        url: The database, from `--url` or the environment; None means the private server.
        schema: The schema, from `--schema` or the environment; None means the default.
    """

    url: str | None
    schema: str | None


def session_of(context: Any) -> Session:  # noqa: ANN401 - Typer's context
    """The global options of this invocation."""
    found = context.find_root().obj
    assert isinstance(found, Session)  # noqa: S101 - the app's callback has put it there
    return found


def open_store(context: Any) -> TaskStore:  # noqa: ANN401
    """Open the store that the global options name; a context manager."""
    from solti_store.store import TaskStore  # noqa: PLC0415 - half a second that help does not need

    session = session_of(context)
    return TaskStore.open(session.url, schema=session.schema)


@contextmanager
def open_connection(context: Any) -> Iterator[Connection]:  # noqa: ANN401
    """A connection to a database that a store would refuse: it may not be migrated, or not let this role see tasks."""
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415

    from solti_store.engine import open_engine  # noqa: PLC0415
    from solti_store.faults import translate  # noqa: PLC0415
    from solti_store.schema_name import resolve_schema  # noqa: PLC0415
    from solti_store.sql.naming import engine_in  # noqa: PLC0415

    session = session_of(context)
    schema = resolve_schema(session.schema)
    engine = open_engine(session.url)
    try:
        with engine_in(engine, schema).connect() as connection:
            yield connection
    except DBAPIError as error:
        raise translate(error) from error
    finally:
        engine.dispose()
