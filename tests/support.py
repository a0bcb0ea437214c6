"""What several tests of the store share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from sqlalchemy import create_engine, event, make_url, text

from solti_store import (
    AdmissionPolicy,
    Agent,
    AsyncTaskStore,
    RestartPolicy,
    Retention,
    RunnerSelector,
    Subprocess,
    TaskSpec,
    TaskStore,
)
from solti_store.model import Labels
from solti_store.schema_name import resolve_schema
from solti_store.sql.naming import renamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from sqlalchemy import Engine

T = TypeVar("T")

_numbers = itertools.count(1)


def spec(slot: str | None = None, **changes: Any) -> TaskSpec:
    """A small task; in a slot of its own, unless one is given."""
    return (
        TaskSpec.builder(slot or f"slot-{next(_numbers)}", Subprocess.command("true"), 5000).build().replace(**changes)
    )


def queued(slot: str, **changes: Any) -> TaskSpec:
    """A small task that waits for its turn in the slot."""
    return spec(slot, admission=AdmissionPolicy.QUEUE, **changes)


def retrying(slot: str | None = None, **changes: Any) -> TaskSpec:
    """A small task that restarts on failure, at once."""
    backoff = spec().backoff.replace(first_ms=1, max_ms=1)
    return spec(slot, **({"restart": RestartPolicy.on_failure(), "backoff": backoff} | changes))


#: A name that has to be quoted everywhere, in literals, and in each of the layers that read a statement.
ODD_SCHEMA = "Odd \"Name's: :x $$100%s \\"


class _Renaming(psycopg.Connection[Any]):
    """A connection whose statements find our tables where SOLTI_STORE_SCHEMA says, though they name `solti`."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> psycopg.Cursor[Any]:
        schema = resolve_schema()
        if isinstance(query, (str, bytes)):
            plain = query if isinstance(query, str) else query.decode()
            query = renamed(plain, schema if params is None else schema.replace("%", "%%")).encode()
        return super().execute(query, params, **options)


def connect(url: str) -> psycopg.Connection[Any]:
    """A bare connection in autocommit mode, by an URL in SQLAlchemy's form; close it, or use it as a context."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return _Renaming.connect(plain, autocommit=True)


def bare_engine(url: str, **options: Any) -> Engine:
    """An engine for statements of a test's own, which name `solti`, wherever SOLTI_STORE_SCHEMA says our tables are."""
    engine = create_engine(url, **options)

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def rename(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: Any) -> tuple[str, Any]:
        return renamed(statement, resolve_schema().replace("%", "%%")), parameters

    return engine


def lock_waits(conn: psycopg.Connection[Any]) -> int:
    """How many backends of the connection's database wait for a lock."""
    row = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return row[0] if row else 0


def without_waiting(call: Future[T], conn: psycopg.Connection[Any], *, others: int = 0) -> T:
    """The result of what waits for no lock, though so many others of the connection's database do."""
    # By who was granted what: a backend that got its lock still counts as one that waits until it runs again.
    waiting = (
        "SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE NOT granted AND datname = current_database()"
    )
    while not call.done():
        (found,) = conn.execute(waiting).fetchone() or (0,)
        assert found <= others, "it waits for a lock"
    return call.result()


class BlockingStore:
    """An `AsyncTaskStore` behind plain calls, so that one suite of tests runs over both stores."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._store = self._runner.run(AsyncTaskStore.open(url, **options))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            return self._each(result) if isinstance(result, AsyncIterator) else self._runner.run(result)

        return call

    def _each(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(items)

        while True:
            try:
                yield self._runner.run(step())
            except StopAsyncIteration:
                return

    def close(self) -> None:
        self._runner.run(self._store.close())
        self._runner.close()


def selecting(**labels: str) -> RunnerSelector:
    """Only workers with these labels."""
    return RunnerSelector(match_labels=Labels(labels))


def silence(url: str, agent: Agent) -> None:
    """Let an agent's lease be over, as if it had not reported for long."""
    engine = bare_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE solti.agents SET expires_at = now() - interval '1 hour' WHERE seq = :seq"), {"seq": agent.seq}
        )
    engine.dispose()


def prune_events(store: TaskStore, count: int, *, limit: int = 1000) -> None:
    """Prune so many events that are older than a day, once no older transaction goes on in all of the server."""
    gone = 0
    while gone < count:
        gone += store.prune(Retention(events=timedelta(days=1)), limit=min(limit, count - gone)).events
    assert gone == count
