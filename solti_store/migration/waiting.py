"""Waits for locks that hold up nobody else: short ones, given up and tried again."""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import DBAPIError

from solti_store.errors import Blocker, Invalid, LockTimeout
from solti_store.faults import sqlstate
from solti_store.sql.migrating import BLOCKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from sqlalchemy import Connection

__all__ = ["DEFAULT_WAITS", "Steps", "Waits", "patiently"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOCK_NOT_AVAILABLE = "55P03"
_DEADLOCK = "40P01"
_LONGEST_PAUSE_S = 30.0
# Of a timeout of PostgreSQL's. Zero is none at all.
_SHORTEST = timedelta(milliseconds=1)
_LONGEST = timedelta(milliseconds=2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long a migration waits for others.

    Attributes:
        lock_timeout: The longest that a statement waits for a lock. Whoever comes after it waits as long.
        patience: How long to try again and again, for each revision or batch, and for the right to migrate.

    Raises:
        Invalid: One of them is shorter than a millisecond, or longer than PostgreSQL takes: 24.8 days.
    """

    lock_timeout: timedelta = timedelta(seconds=3)
    patience: timedelta = timedelta(minutes=5)

    def __post_init__(self) -> None:
        for name, value in (("lock_timeout", self.lock_timeout), ("patience", self.patience)):
            if not _SHORTEST <= value <= _LONGEST:
                raise Invalid(f"invalid model: {name} must be from 1 ms to {_LONGEST}, got {value}", field=name)

    @property
    def lock_timeout_ms(self) -> int:
        """The timeout as PostgreSQL takes it."""
        return round(self.lock_timeout.total_seconds() * 1000)


DEFAULT_WAITS = Waits()


def patiently(
    connection: Connection, waits: Waits, run: Callable[[], T], *, progress: Callable[[], object] = lambda: None
) -> T:
    """Do something again until it gets its locks.

    Args:
        connection: Of the migrator; it is rolled back before another try.
        waits: How long.
        run: What to do. It may be done again, from wherever the database then is.
        progress: What it has come to; when that is another than before, patience begins anew.

    Raises:
        LockTimeout: There was always somebody in the way.
    """
    reached, begun, first_pause = progress(), time.monotonic(), waits.lock_timeout.total_seconds() / 2
    pause = first_pause
    with _watching(connection, waits.lock_timeout.total_seconds() / 4) as found:
        while True:
            tried = time.monotonic()
            try:
                return run()
            except DBAPIError as error:
                if sqlstate(error) not in {_LOCK_NOT_AVAILABLE, _DEADLOCK}:
                    raise
                # Looked up in the options: to ask the server takes a transaction that has not failed.
                if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
                    connection.rollback()
                if progress() != reached:
                    reached, begun, pause = progress(), tried, first_pause
                # With jitter, so that it does not meet a periodic job each time.
                pause = min(pause * random.uniform(1.5, 2), _LONGEST_PAUSE_S)  # noqa: S311
                waited = timedelta(seconds=time.monotonic() - begun)
                failure = LockTimeout(found.relation, waited=waited, blockers=found.blockers)
                if waited.total_seconds() + pause > waits.patience.total_seconds():
                    raise failure from error
                logger.warning("%s; trying again in %.1f s", failure, pause)
            time.sleep(pause)


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


class _Found:
    """Who was last seen in the way."""

    relation: str | None = None
    blockers: tuple[Blocker, ...] = ()

    def look(self, driver: Any, pid: int) -> None:  # noqa: ANN401 - psycopg's connection, or another driver's
        rows = driver.execute(BLOCKERS, (pid,)).fetchall()
        if rows:
            relation, kind, *_ = rows[0]
            self.relation = relation or f"a {kind}"
            self.blockers = tuple(Blocker(*row[2:]) for row in rows)


@contextmanager
def _watching(connection: Connection, period: float) -> Iterator[_Found]:
    """Look from a second connection who is in the way: after the wait nobody knows any more.

    Without a second connection it goes without an answer.
    """
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 - the connection is open
    pid, found, over = driver.info.backend_pid, _Found(), threading.Event()
    # The engine's own way to connect, but not its pool, which may be as small as one.
    pool = connection.engine.pool.recreate()

    def watch() -> None:
        # Most of what is watched is over before anybody has to look.
        if over.wait(period):
            return
        try:
            second = pool.connect()
            try:
                assert second.driver_connection is not None  # noqa: S101 - as above
                second.driver_connection.autocommit = True
                while True:
                    found.look(second.driver_connection, pid)
                    if over.wait(period):
                        break
            finally:
                second.invalidate()
        except Exception as error:  # noqa: BLE001 - whatever it is, the migration goes on without
            logger.debug("cannot look who holds locks: %s", error)

    thread = threading.Thread(target=watch, name="solti-lock-watch", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        pool.dispose()
