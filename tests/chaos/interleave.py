"""Two operations in one fixed order: the first is held right after one of its statements, or in the middle of one."""

from __future__ import annotations

import re
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from support import lock_waits

from solti_store.sql.driver import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

__all__ = ["interleave", "within"]

_PATIENCE_S = 30.0
_LOCK = 4711
# Behind what says which rows to lock: of a claim, and of a finish.
_LOCKING = re.compile(r" ORDER BY [\w., ]+\s+LIMIT 1000| FOR UPDATE OF")


class _Pause:
    """Holds one thread, once, after it ran a statement."""

    def __init__(self, after: Prepared | int) -> None:
        self.after = after
        self.reached: Future[None] = Future()
        self.go_on = threading.Event()
        self.thread: int | None = None
        self.run = 0

    def start(self, call: Callable[[], Any]) -> Any:
        self.thread = threading.get_ident()
        return call()

    def ran(self, statement: Prepared) -> None:
        if threading.get_ident() != self.thread or self.reached.done():
            return
        self.run += 1
        if self.after in {statement, self.run}:
            self.reached.set_result(None)
            assert self.go_on.wait(_PATIENCE_S)

    @contextmanager
    def watching(self) -> Iterator[None]:
        original = Prepared.all

        def watched(statement: Prepared, *args: Any) -> Any:
            rows = original(statement, *args)
            self.ran(statement)
            return rows

        with patch.object(Prepared, "all", watched):
            yield


def interleave(
    conn: psycopg.Connection[Any], first: Callable[[], Any], after: Prepared | int, second: Callable[[], Any]
) -> bool:
    """Run `first` up to and with a statement, then `second` until it is done or waits for a lock, then the rest.

    Args:
        conn: To the database, which nobody else uses.
        first: In a thread.
        after: The statement, or the how manieth of `first`, from 1.
        second: In another thread.

    Returns:
        Whether `first` came to that statement; if not, the two ran one after the other.
    """
    pause = _Pause(after)
    # A pool each: one of two threads was seen to start no second thread while the first was held.
    with pause.watching(), ThreadPoolExecutor(1) as here, ThreadPoolExecutor(1) as there:
        one = here.submit(pause.start, first)
        try:
            wait([pause.reached, one], timeout=_PATIENCE_S, return_when=FIRST_COMPLETED)
            other = there.submit(second)
            _settled(conn, other)
        finally:
            pause.go_on.set()
        one.result()
        other.result()
    return pause.reached.done()


def within(
    conn: psycopg.Connection[Any], statement: Prepared, first: Callable[[], Any], second: Callable[[], Any]
) -> None:
    """Run `first` into a statement that locks, until it has its snapshot and no lock; then `second`; then the rest.

    Args:
        conn: To the database, which nobody else uses.
        statement: Claims or closes: whoever runs it waits for a lock of ours before it takes one.
        first: In a thread.
        second: Here, until it is done.
    """
    held, found = _LOCKING.subn(f" AND pg_advisory_xact_lock({_LOCK})::text IS NOT NULL" + r"\g<0>", statement.text)
    assert found == 1, statement.text
    conn.execute("SELECT pg_advisory_lock(%s)", [_LOCK])
    with ThreadPoolExecutor(1) as there:
        try:
            with patch.object(statement, "text", held):
                one = there.submit(first)
                _settled(conn, one)
            assert not one.done()
            second()
        finally:
            conn.execute("SELECT pg_advisory_unlock(%s)", [_LOCK])
        one.result()


def _settled(conn: psycopg.Connection[Any], call: Future[Any]) -> None:
    while not call.done() and not lock_waits(conn):
        pass
