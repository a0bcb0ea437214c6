"""Two operations in one fixed order of their statements: the first is held right after one of them."""

from __future__ import annotations

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from support import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from solti_store.sql.driver import Prepared

__all__ = ["interleave"]

_PATIENCE_S = 30.0


class _Pause:
    """Holds one thread after its first run of a statement."""

    def __init__(self) -> None:
        self.reached: Future[None] = Future()
        self.go_on = threading.Event()
        self.thread: int | None = None

    def run(self, call: Callable[[], Any]) -> Any:
        self.thread = threading.get_ident()
        return call()

    @contextmanager
    def after(self, prepared: Prepared) -> Iterator[None]:
        run = prepared.all

        def held(*args: Any) -> Any:
            rows = run(*args)
            if threading.get_ident() == self.thread and not self.reached.done():
                self.reached.set_result(None)
                assert self.go_on.wait(_PATIENCE_S)
            return rows

        # On the object, where it hides the class's.
        prepared.__dict__["all"] = held
        try:
            yield
        finally:
            del prepared.__dict__["all"]


def interleave(url: str, first: Callable[[], Any], after: Prepared, second: Callable[[], Any]) -> None:
    """Run `first` up to and with statement `after`, then `second` until it is done or waits for a lock, then the rest.

    Args:
        url: The database, which nobody else uses.
        first: In a thread; may not reach the statement.
        after: The statement.
        second: In another thread.
    """
    pause = _Pause()
    with pause.after(after), ThreadPoolExecutor(2) as pool:
        one = pool.submit(pause.run, first)
        try:
            wait([pause.reached, one], timeout=_PATIENCE_S, return_when=FIRST_COMPLETED)
            other = pool.submit(second)
            _settled(url, other)
        finally:
            pause.go_on.set()
        one.result()
        other.result()


def _settled(url: str, call: Future[Any]) -> None:
    with connect(url) as conn:
        while not call.done():
            (waiting,) = conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone() or (0,)
            if waiting:
                return
