"""How attempts ended: told to the store in batches, and kept until it has heard."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING

from solti_store.model import MAX_LIMIT, TaskPhase
from solti_store.worker.events import Finished, Refused, WorkerReport
from solti_store.worker.lease import OUTAGES, jittered

if TYPE_CHECKING:
    from collections.abc import Callable

    from solti_store.ops.rows import Claim
    from solti_store.rules.outcome import Outcome
    from solti_store.store import AsyncTaskStore
    from solti_store.worker.events import WorkerEvent

__all__ = ["Reporter"]

logger = logging.getLogger(__name__)

_RETRY_S = 0.5
# Of output in one batch, in characters: a thousand of the longest tails would be 400 MB in one statement.
_MAX_OUTPUT = 4_000_000


class Reporter:
    """A queue of outcomes, sent as one batch as soon as the batch before was answered.

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
        self._queue: deque[tuple[Claim, Outcome]] = deque()
        self._filled = asyncio.Event()
        self._counts: Counter[TaskPhase] = Counter()
        self._refused = 0

    @property
    def waiting(self) -> bool:
        """Whether any outcome waits to be reported."""
        return bool(self._queue)

    def holds(self, seq: int, attempt: int) -> bool:
        """Whether this attempt's outcome waits to be reported."""
        return any(claim.seq == seq and claim.attempt == attempt for claim, _ in self._queue)

    def add(self, claim: Claim, outcome: Outcome) -> None:
        """Report this soon."""
        self._queue.append((claim, outcome))
        self._filled.set()

    async def keep(self) -> None:
        """Report what is added; until cancelled."""
        while True:
            await self._filled.wait()
            try:
                await self.send()
            except OUTAGES as error:
                # To send it again is safe: what the store heard already it answers in the same way.
                logger.warning("%d outcomes wait to be reported: %s", len(self._queue), error)
                await asyncio.sleep(jittered(_RETRY_S))

    async def send(self) -> None:
        """Report one batch.

        Raises:
            StoreUnavailable: It is kept, as with the two below.
            TransactionAborted: The same.
            TimeoutError: The same.
        """
        batch = self._batch()
        if batch:
            async with asyncio.timeout(self._patience_s):
                answers = await self._store.finish_many(batch)
            for (claim, outcome), refusal in zip(batch, answers, strict=True):
                self._queue.popleft()
                if refusal is None:
                    self._counts[outcome.phase] += 1
                    self._tell(Finished(claim.task_id, claim.attempt, outcome))
                else:
                    self._refused += 1
                    logger.warning("a late report was refused: %s", refusal)
                    self._tell(Refused(claim.task_id, claim.attempt, outcome, refusal))
        if not self._queue:
            self._filled.clear()
        self._on_change()

    def _batch(self) -> list[tuple[Claim, Outcome]]:
        batch: list[tuple[Claim, Outcome]] = []
        output = 0
        for claim, outcome in islice(self._queue, MAX_LIMIT):
            output += len(outcome.stdout or "") + len(outcome.stderr or "")
            if batch and output > _MAX_OUTPUT:
                break
            batch.append((claim, outcome))
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
