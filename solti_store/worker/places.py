"""The places that attempts run in: as many as the worker's concurrency, first come, first served."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from solti_store.worker.runners.base import Control

__all__ = ["Places"]


class Places:
    """Hands out places; what an attempt leaves behind keeps its own until it ends.

    Args:
        count: How many there are.
        abandoned: What was left behind, and still goes on. The worker's, for it outlives a run.
        on_change: Called when a place that was lost has come back.
    """

    def __init__(self, count: int, abandoned: set[Future[None]], on_change: Callable[[], None]) -> None:
        self._count = count
        self._abandoned = abandoned
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._lost = 0
        # First the places, then the watch: what ends in between gives its place back at once.
        left = list(abandoned)
        self._free = max(count - len(left), 0)
        # Who waits, the longest first; nobody while a place is free. A dict, because who stops waiting may be anywhere.
        self._turns: dict[asyncio.Future[None], None] = {}
        for one in left:
            self._watch(one)

    @property
    def usable(self) -> int:
        """How many places are not taken by what was left behind."""
        return max(self._count - self._lost, 0)

    async def take(self, control: Control, wait_s: float) -> bool:
        """Wait for a place, until the attempt is asked to end or its time is up; whether it has one."""
        if self._free:
            self._free -= 1
            return True
        turn: asyncio.Future[None] = self._loop.create_future()
        self._turns[turn] = None
        try:
            await control.wait(turn, wait_s)
        except asyncio.CancelledError:
            # Cancelled in the same moment in which it got the place, it passes it on.
            if turn.done():
                self._release()
            raise
        finally:
            self._turns.pop(turn, None)
        return turn.done()

    def give_back(self, remains: Future[None] | None) -> None:
        """Free the place, unless something of its attempt remains: then once that has ended."""
        if remains is None or remains.done():
            self._release()
            return
        self._abandoned.add(remains)
        self._watch(remains)

    def _release(self) -> None:
        if self._turns:
            turn = next(iter(self._turns))
            del self._turns[turn]
            turn.set_result(None)
        else:
            self._free += 1

    def _watch(self, remains: Future[None]) -> None:
        self._lost += 1
        remains.add_done_callback(self._ended)

    def _ended(self, remains: Future[None]) -> None:
        self._abandoned.discard(remains)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._come_back)

    def _come_back(self) -> None:
        self._lost -= 1
        self._release()
        self._on_change()
