"""What several tests of the store share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from sqlalchemy import create_engine, make_url, text

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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def connect(url: str) -> psycopg.Connection[Any]:
    """A bare connection in autocommit mode, by an URL in SQLAlchemy's form; close it, or use it as a context."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def lock_waits(conn: psycopg.Connection[Any]) -> int:
    """How many backends of the connection's database wait for a lock."""
    row = conn.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    return row[0] if row else 0


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
    engine = create_engine(url)
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
