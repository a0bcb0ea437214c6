"""The worker's registration: kept alive, guarded, and made anew when it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from solti_store.errors import AgentLost, OutcomeUnknown, StoreUnavailable, TransactionAborted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import timedelta

    from solti_store.model import KindName
    from solti_store.ops.agents import Agent, CancelRequest
    from solti_store.store import AsyncTaskStore

__all__ = ["OUTAGES", "Lease", "jittered"]

logger = logging.getLogger(__name__)

#: What passes: the next try may succeed. TimeoutError is the worker's own bound on a call, for a network that
#: swallows packets instead of refusing them.
OUTAGES = (StoreUnavailable, TransactionAborted, OutcomeUnknown, TimeoutError)

_BEATS_PER_LEASE = 3
# The part of the lease that is left for killing: what runs is killed after five sixths without a heartbeat.
_MARGIN = 1 / 6


def _clock() -> float:
    """Seconds that go on while the machine sleeps, as the lease in the database does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def jittered(seconds: float) -> float:
    """Between four and six fifths of it, at random, so that workers started together do not stay in step."""
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311 - jitter


class Lease:
    """One agent incarnation after another, at most one at a time.

    Args:
        store: Where to register.
        agent_id: The worker's name.
        kinds: The kinds of task it runs.
        labels: What runner selectors see of it.
        lease: How long it may be silent.
        on_end: Called when what runs must be killed at once, with the reason.
        on_cancel: Called with what a heartbeat says should be stopped.
        on_change: Called when `agent` has become usable or ceased to be.
    """

    def __init__(
        self,
        store: AsyncTaskStore,
        agent_id: str,
        *,
        kinds: Collection[KindName],
        labels: Mapping[str, str],
        lease: timedelta,
        on_end: Callable[[str], None],
        on_cancel: Callable[[Sequence[CancelRequest]], None],
        on_change: Callable[[], None],
    ) -> None:
        self._store = store
        self._agent_id = agent_id
        self._kinds = kinds
        self._labels = labels
        self._lease = lease
        self._on_end = on_end
        self._on_cancel = on_cancel
        self._on_change = on_change
        self._agent: Agent | None = None
        self._good_until = 0.0
        self._guard: asyncio.TimerHandle | None = None
        self._hurry = asyncio.Event()

    @property
    def agent(self) -> Agent | None:
        """The incarnation, while its lease is certain to hold."""
        return self._agent if _clock() < self._good_until else None

    @property
    def registered(self) -> Agent | None:
        """The incarnation, whatever became of its lease."""
        return self._agent

    @property
    def seconds(self) -> float:
        """The lease's length."""
        return self._lease.total_seconds()

    async def open(self) -> None:
        """Register.

        Raises:
            StoreUnavailable: The store cannot be reached, or does not answer.
        """
        # The lease counts from the statement, which is no earlier than this; measured from the answer it would
        # seem to hold for as long as the answer took to come.
        sent = _clock()
        try:
            async with asyncio.timeout(self.seconds):
                self._agent = await self._store.register(
                    self._agent_id, kinds=self._kinds, labels=self._labels, lease=self._lease
                )
        except TimeoutError as error:
            raise StoreUnavailable(f"no answer to the registration within {self._lease}") from error
        logger.info("agent '%s' registered as incarnation %d", self._agent.id, self._agent.seq)
        self._renewed(sent)

    async def keep(self) -> None:
        """Send heartbeats, and register again when they find the agent closed; until cancelled."""
        interval = self.seconds / _BEATS_PER_LEASE
        # Never later than the interval: of three beats, two may fail.
        pause = jittered(interval / 1.2)
        while True:
            await self._pause(pause)
            try:
                await self._beat(interval)
            except OUTAGES as error:
                logger.warning("agent '%s' could not send a heartbeat: %s", self._agent_id, error)
                pause = jittered(interval / 5)
            else:
                pause = jittered(interval / 1.2)

    def lost(self, agent: Agent) -> None:
        """Take note that this incarnation is closed; `keep` then registers another."""
        if self._agent is not agent:
            return
        logger.warning("agent '%s' lost its incarnation %d", agent.id, agent.seq)
        self._agent = None
        self._good_until = 0.0
        self.close()
        self._hurry.set()
        self._on_end("the worker lost its registration")
        self._on_change()

    def close(self) -> None:
        """Stop guarding."""
        if self._guard is not None:
            self._guard.cancel()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
        self._hurry.clear()

    async def _beat(self, patience_s: float) -> None:
        if self._agent is None:
            await self.open()
            return
        agent = self._agent
        sent = _clock()
        try:
            async with asyncio.timeout(patience_s):
                requests = await self._store.heartbeat(agent)
        except AgentLost:
            self.lost(agent)
            return
        if self._agent is agent:
            self._renewed(sent)
            self._on_cancel(requests)

    def _renewed(self, sent: float) -> None:
        self._good_until = sent + self.seconds * (1 - _MARGIN)
        self.close()
        self._set_guard()
        self._on_change()

    def _set_guard(self) -> None:
        left = self._good_until - _clock()
        self._guard = asyncio.get_running_loop().call_later(max(left, 0.0), self._check)

    def _check(self) -> None:
        if self.agent is not None:  # the timer was a little early
            self._set_guard()
            return
        logger.warning("agent '%s' could not renew its lease in time; killing what it runs", self._agent_id)
        self._on_end("the worker could not renew its lease in time")
        self._on_change()
