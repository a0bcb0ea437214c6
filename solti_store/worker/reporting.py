"""How attempts ended: told to the store in batches, and kept until it has heard."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from solti_store.model import MAX_LIMIT, TaskPhase
from solti_store.worker.events import Finished, Refused, WorkerReport
from solti_store.worker.lease import OUTAGES, jittered

if TYPE_CHECKING:
    from collections.abc import Callable

    from solti_store.errors import LeaseLost
    from solti_store.ops.rows import Claim
    from solti_store.rules.outcome import Outcome
    from solti_store.store import AsyncTaskStore
    from solti_store.worker.events import WorkerEvent

__all__ = ["Reporter"]

logger = logging.getLogger(__name__)

_RETRY_S = 0.5
_SLOW_S = 0.5
_MOST_BATCHES = 4
# Of output in one batch, in characters: a thousand of the longest tails would be 400 MB in one statement.
_MAX_OUTPUT = 4_000_000


class Reporter:
    """A queue of outcomes, sent in batches: the next as soon as the one before was answered, or takes long.

    Args:
        store: Where to report.
        patience_s: Seconds after which an unanswered call is given up and tried again.
        tell: Called with each event.
        on_change: Called when outcomes were reported.
    """

    def __init__(
        self,
        store: AsyncTaskStore,
        *,
        patience_s: float,
        tell: Callable[[WorkerEvent], None],
        on_change: Callable[[], None],
    ) -> None:
        self._store = store
        self._patience_s = patience_s
        self._tell = tell
        self._on_change = on_change
        self._queue: dict[tuple[int, int], tuple[Claim, Outcome]] = {}
        self._on_their_way: set[tuple[int, int]] = set()
        self._filled = asyncio.Event()
        self._counts: Counter[TaskPhase] = Counter()
        self._refused = 0

    @property
    def waiting(self) -> bool:
        """Whether any outcome waits to be reported."""
        return bool(self._queue)

    def holds(self, seq: int, attempt: int) -> bool:
        """Whether this attempt's outcome waits to be reported."""
        return (seq, attempt) in self._queue

    def add(self, claim: Claim, outcome: Outcome) -> None:
        """Report this soon."""
        self._queue[claim.seq, claim.attempt] = (claim, outcome)
        self._filled.set()

    async def keep(self) -> None:
        """Report what is added; until cancelled."""
        async with asyncio.TaskGroup() as group:
            sending: set[asyncio.Task[None]] = set()
            while True:
                await self._filled.wait()
                sending.add(group.create_task(self._try()))
                # Somebody's transaction may hold a task of the batch for long, and what ends meanwhile need not wait.
                most = None if len(sending) == _MOST_BATCHES else _SLOW_S
                _, sending = await asyncio.wait(sending, timeout=most, return_when=asyncio.FIRST_COMPLETED)

    async def _try(self) -> None:
        try:
            await self.send()
        except OUTAGES as error:
            # To send it again is safe: what the store heard already it answers in the same way.
            logger.warning("%d outcomes wait to be reported: %s", len(self._queue), error)
            await asyncio.sleep(jittered(_RETRY_S))

    async def send(self) -> None:
        """Report one batch of what is not on its way yet.

        Raises:
            StoreUnavailable: It is kept, as with the two below.
            TransactionAborted: The same.
            TimeoutError: The same.
        """
        batch = self._batch()
        self._on_their_way |= batch.keys()
        self._note_filled()
        try:
            if batch:
                async with asyncio.timeout(self._patience_s):
                    answers = await self._store.finish_many(list(batch.values()))
                for key, refusal in zip(batch, answers, strict=True):
                    self._answered(*self._queue.pop(key), refusal)
        finally:
            self._on_their_way -= batch.keys()
            self._note_filled()
        self._on_change()

    def _answered(self, claim: Claim, outcome: Outcome, refusal: LeaseLost | None) -> None:
        if refusal is None:
            self._counts[outcome.phase] += 1
            self._tell(Finished(claim.task_id, claim.attempt, outcome))
        else:
            self._refused += 1
            logger.warning("a late report was refused: %s", refusal)
            self._tell(Refused(claim.task_id, claim.attempt, outcome, refusal))

    def _note_filled(self) -> None:
        if len(self._queue) > len(self._on_their_way):
            self._filled.set()
        else:
            self._filled.clear()

    def _batch(self) -> dict[tuple[int, int], tuple[Claim, Outcome]]:
        batch: dict[tuple[int, int], tuple[Claim, Outcome]] = {}
        output = 0
        for key, (claim, outcome) in self._queue.items():
            if key in self._on_their_way:
                continue
            output += len(outcome.stdout or "") + len(outcome.stderr or "")
            if len(batch) == MAX_LIMIT or (batch and output > _MAX_OUTPUT):
                break
            batch[key] = (claim, outcome)
        return batch

    def report(self, *, reaped: int) -> WorkerReport:
        """What was reported so far."""
        return WorkerReport(
            succeeded=self._counts[TaskPhase.SUCCEEDED],
            failed=self._counts[TaskPhase.FAILED],
            timed_out=self._counts[TaskPhase.TIMEOUT],
            canceled=self._counts[TaskPhase.CANCELED],
            refused=self._refused,
            unreported=len(self._queue),
            reaped=reaped,
        )
