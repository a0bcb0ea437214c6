"""How a worker that waits is woken."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from solti_store.errors import SoltiStoreError
from solti_store.worker.lease import jittered

if TYPE_CHECKING:
    from collections.abc import Callable

    from solti_store.listening import Ear
    from solti_store.store import AsyncTaskStore

__all__ = ["Waking"]

logger = logging.getLogger(__name__)

# As often a quiet connection is asked whether it still lives: a network may have forgotten it.
_CHECK_S: Final = 30.0
# A task whose creator saw nobody wait may be committed a little after the look that followed: looks follow at these
# intervals, in seconds, before those at the worker's own.
_AFTERWARDS_S: Final = (0.01, 0.04, 0.16)


class Waking:
    """Listens while the worker waits.

    Args:
        store: The worker's store.
        patience_s: How long a statement may take, and how long to wait before the next try after a failure.
        on_news: Called when it is time to look: a task was created, or may have been before anybody knew that we wait.
    """

    def __init__(self, store: AsyncTaskStore, *, patience_s: float, on_news: Callable[[], None]) -> None:
        self._store = store
        self._patience_s = patience_s
        self._on_news = on_news
        self._is_wanted = asyncio.Event()
        self._is_open = False
        self._quiet = 0

    def wait_s(self, poll_s: float, *, found: bool) -> float:
        """How long to wait for news after a look that left nothing; from now on somebody listens.

        Args:
            poll_s: How long at most.
            found: Whether the look found something.
        """
        self._is_wanted.set()
        self._quiet = 0 if found else self._quiet + 1
        if not self._is_open or self._quiet >= len(_AFTERWARDS_S):
            return poll_s
        return min(poll_s, _AFTERWARDS_S[self._quiet])

    async def keep(self) -> None:
        """Listen, until cancelled; or not at all, where a pooler is in between."""
        while True:
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(self._patience_s):
                        ear = await stack.enter_async_context(self._store.listen())
                    if not ear.can_hear:
                        logger.info("not woken by new tasks: a pooler in transaction mode is in between")
                        return
                    await self._listen(ear)
            except (psycopg.Error, SQLAlchemyError, SoltiStoreError, TimeoutError, OSError) as error:
                logger.debug("does not hear of new tasks for a while: %s", error)
            finally:
                self._is_open = False
            await asyncio.sleep(jittered(self._patience_s))

    async def _listen(self, ear: Ear) -> None:
        while True:
            await self._is_wanted.wait()
            async with asyncio.timeout(self._patience_s):
                await ear.open()
            self._is_open = True
            self._quiet = -1
            self._on_news()
            # The lock is kept while the worker works, should nobody call: to let go is a round trip, and a call that
            # comes meanwhile is heard, and ends it.
            if await ear.hear(_CHECK_S):
                self._is_wanted.clear()
                self._on_news()
            self._is_open = False
            async with asyncio.timeout(self._patience_s):
                await ear.close()
