"""One run of a worker: the agent loop that claims, runs and reports."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from solti_store.errors import AgentLost, OutcomeUnknown, SchemaMismatch, SoltiStoreError
from solti_store.rules.outcome import Outcome
from solti_store.worker.events import Started
from solti_store.worker.lease import OUTAGES, Lease, jittered
from solti_store.worker.places import Places
from solti_store.worker.reporting import Reporter
from solti_store.worker.runners.base import Control, Terms
from solti_store.worker.waking import Waking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future
    from datetime import timedelta

    from solti_store.model import AgentId, KindName, Labels, RunnerEnv
    from solti_store.ops.agents import Agent, CancelRequest
    from solti_store.ops.rows import Claim
    from solti_store.rules.retention import Retention
    from solti_store.store import AsyncTaskStore
    from solti_store.worker.events import WorkerEvent, WorkerReport
    from solti_store.worker.runners.base import Runner

__all__ = ["Session", "Settings"]

logger = logging.getLogger(__name__)

_MAX_GOODBYE_S = 5.0
# A thousand tasks a second are well within what a listing looks at without the index.
_INDEX_S = 1.0

_STOPPED = Outcome.failed("worker stopped")


@dataclass(frozen=True, slots=True)
class Settings:
    """What `Worker` was made with, and what outlives a run of it; durations in seconds where the name ends so."""

    agent_id: AgentId
    labels: Labels
    runners: Mapping[KindName, Runner]
    concurrency: int
    prefetch: int
    lease: timedelta
    poll_s: float
    listen: bool
    grace_s: float
    env: RunnerEnv
    output_tail: int
    retention: Retention | None
    on_event: Callable[[WorkerEvent], None] | None
    abandoned: set[Future[None]] = field(default_factory=set)


class Session:
    """One run.

    Args:
        store: The store.
        settings: How to work.
    """

    def __init__(self, store: AsyncTaskStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._draining = False
        self._stopping = False
        # Those that wait for a place, too. More may be known than were asked for: the attempts of a claim whose
        # answer was lost are found later.
        self._running: dict[tuple[int, int], Control] = {}
        self._changed = asyncio.Event()
        self._places = Places(settings.concurrency, settings.abandoned, self._changed.set)
        # Claims and the comparison with the store's books exclude each other: an attempt whose claim is still on
        # its way would look like one that nobody runs.
        self._books = asyncio.Lock()
        self._books_suspect = False
        self._reaped = 0
        self._lease = Lease(
            store,
            settings.agent_id,
            kinds=tuple(settings.runners),
            labels=settings.labels,
            lease=settings.lease,
            capacity=settings.concurrency + settings.prefetch,
            on_end=self._kill_all,
            on_cancel=self._cancel,
            on_change=self._changed.set,
        )
        self._has_news = False
        self._waking = Waking(store, patience_s=self._lease.seconds, on_news=self._hear)
        self._reporter = Reporter(store, patience_s=self._lease.seconds, tell=self._tell, on_change=self._changed.set)

    async def run(self, *, until_idle: bool) -> WorkerReport:
        """Work until drained, or until there is nothing to do."""
        try:
            await self._lease.open()
            await self._reap()
            async with asyncio.TaskGroup() as self._group:
                keeping = [self._lease.keep(), self._reporter.keep(), self._keep_house(), self._keep_index()]
                keeping.append(self._keep_rolled_up())
                if self._settings.retention is not None:
                    keeping.append(self._keep_pruned(self._settings.retention))
                keepers = [self._group.create_task(keep) for keep in keeping]
                listens = self._settings.listen and not until_idle
                listening = self._group.create_task(self._waking.keep()) if listens else None
                await self._claim_all(until_idle=until_idle)
                if listening is not None:
                    listening.cancel()
                await self._show_draining()
                await self._until(self._is_done)
                for keeper in keepers:
                    keeper.cancel()
        except BaseExceptionGroup as group:
            # What went wrong first is what the caller can name and handle; the rest followed from it.
            raise group.exceptions[0] from group
        finally:
            self._lease.close()
            await self._leave()
        return self._reporter.report(reaped=self._reaped)

    def drain(self) -> None:
        """Claim no more."""
        self._draining = True
        self._changed.set()

    def stop(self) -> None:
        """Claim no more, and terminate what runs."""
        self._stopping = True
        for control in self._running.values():
            control.stop(_STOPPED)
        self.drain()

    # --- waiting ---

    def _is_idle(self) -> bool:
        return not self._running and not self._reporter.waiting

    def _is_done(self) -> bool:
        # With the lease gone the store closes the attempts itself, and may be out of reach for ever.
        return self._is_idle() or (not self._running and self._lease.agent is None)

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._changed.clear()
            await self._changed.wait()

    async def _pause(self, seconds: float, *, early: bool) -> None:
        try:
            async with asyncio.timeout(jittered(seconds)):
                await self._until(lambda: self._draining or self._has_news or (early and self._is_idle()))
        except TimeoutError:
            return

    def _hear(self) -> None:
        self._has_news = True
        self._changed.set()

    # --- claiming ---

    async def _claim_all(self, *, until_idle: bool) -> None:
        while True:
            await self._until(self._may_claim)
            if self._draining:
                return
            # Looked at before the claim: what ends while it is under way may leave its task due again.
            idle = self._is_idle()
            free = self._room()
            self._has_news = False
            claims = await self._claim(free)
            if until_idle and idle and claims == 0:
                return
            if claims != free:
                # Who waits for idleness looks again as soon as all is reported, unless the store is in trouble.
                seconds = self._waking.wait_s(self._settings.poll_s, found=bool(claims))
                await self._pause(seconds, early=until_idle and claims is not None)

    def _room(self) -> int:
        """How many more attempts to claim. None ahead, if there is no place in which they could ever begin."""
        places = self._places.usable
        return places + self._settings.prefetch - len(self._running) if places else 0

    def _may_claim(self) -> bool:
        room = self._room()
        # A claim for every place that becomes free would cost as many round trips as without any prefetch: wait until
        # half of what may wait has begun.
        due = len(self._running) < self._places.usable or 2 * room >= self._settings.prefetch
        return self._draining or (room > 0 and due and self._lease.agent is not None)

    async def _claim(self, limit: int) -> int | None:
        """Claim and start; how many, None when nobody knows."""
        async with self._books:
            agent = self._lease.agent
            if agent is None:
                return None
            if self._books_suspect and not await self._compare(agent):
                return None
            try:
                async with asyncio.timeout(self._lease.seconds):
                    claims = await self._store.claim(agent, limit=limit)
            except AgentLost:
                self._lease.lost(agent)
                return None
            except OUTAGES as error:
                logger.warning("could not claim: %s", error)
                self._books_suspect = isinstance(error, OutcomeUnknown | TimeoutError)
                return None
            for claim in claims:
                self._start(agent, claim)
            return len(claims)

    async def _compare(self, agent: Agent) -> bool:
        """Take on what the store says this agent runs, and end what it says it does not; whether that is done."""
        mine = set(self._running)
        try:
            async with asyncio.timeout(self._lease.seconds):
                held = await self._store.held_keys(agent)
                unknown = {key for key in held - mine if not self._reporter.holds(*key)}
                claims = await self._store.held(agent) if unknown else ()
        except OUTAGES as error:
            logger.warning("could not compare with the store's books: %s", error)
            return False
        self._books_suspect = False
        for claim in claims:
            key = (claim.seq, claim.attempt)
            if key not in mine and key not in self._running and not self._reporter.holds(*key):
                logger.warning("attempt %d of '%s' is taken on late", claim.attempt, claim.task_id)
                self._start(agent, claim)
        for key in mine - held:
            if key in self._running:
                # Its task was deleted, or the store ended it at its deadline.
                self._running[key].kill(Outcome.failed("the attempt is over for the store"))
        return True

    # --- running ---

    def _start(self, agent: Agent, claim: Claim) -> None:
        control = self._running[claim.seq, claim.attempt] = Control()
        if self._stopping:
            control.stop(_STOPPED)
        if self._lease.agent is not agent:
            control.kill(Outcome.failed("the claim came too late"))
        self._group.create_task(self._attempt(claim, control))

    async def _attempt(self, claim: Claim, control: Control) -> None:
        try:
            outcome = await self._in_place(claim, control)
        except Exception as error:
            # A fault in here must not take the other attempts down with it.
            logger.exception("attempt %d of '%s' broke the runner", claim.attempt, claim.task_id)
            outcome = Outcome.failed(f"worker error: {type(error).__name__}")
        finally:
            del self._running[claim.seq, claim.attempt]
        self._reporter.add(claim, outcome)
        self._changed.set()

    async def _in_place(self, claim: Claim, control: Control) -> Outcome:
        clock = asyncio.get_running_loop().time
        # From the claim, as the store counts: an attempt that waits here uses up its own time.
        end = clock() + claim.spec.timeout / 1000
        has_place = await self._places.take(control, end - clock())
        try:
            if control.outcome is not None:
                return control.outcome
            if not has_place:
                return Outcome.timed_out(claim.spec.timeout)
            return await self._run_one(claim, control, end - clock())
        finally:
            if has_place:
                self._places.give_back(control.remains)
                if control.remains is not None and not control.remains.done():
                    logger.warning(
                        "attempt %d of '%s' could not be ended, and takes up one of %d places until it is over",
                        claim.attempt,
                        claim.task_id,
                        self._settings.concurrency,
                    )

    async def _run_one(self, claim: Claim, control: Control, left_s: float) -> Outcome:
        # The agent registered for no other kinds.
        runner = self._settings.runners[claim.spec.kind.name]
        self._tell(Started(claim.task_id, claim.attempt))
        terms = Terms(
            left_s=left_s,
            grace_s=self._settings.grace_s,
            env=self._settings.env,
            output_tail=self._settings.output_tail,
        )
        return await runner.run(claim, control, terms)

    def _cancel(self, requests: Sequence[CancelRequest]) -> None:
        for request in requests:
            if (control := self._running.get((request.seq, request.attempt))) is not None:
                control.stop(Outcome.canceled())

    def _kill_all(self, reason: str) -> None:
        for control in self._running.values():
            control.kill(Outcome.failed(reason))

    # --- the rest ---

    async def _keep_house(self) -> None:
        """Reap, and compare with the store's books, now and then; until cancelled."""
        while True:
            await asyncio.sleep(jittered(self._lease.seconds / 2))
            await self._reap()
            async with self._books:
                # Not only after a claim without an answer: its COMMIT may take effect later than the look at the
                # books that follows it.
                if (agent := self._lease.agent) is not None:
                    await self._compare(agent)

    async def _keep_pruned(self, retention: Retention) -> None:
        """Delete what is over and old; until cancelled. Apart from the rest, which a long backlog would hold up."""
        while True:
            await asyncio.sleep(jittered(self._lease.seconds / 2))
            try:
                is_complete = False
                while not is_complete:
                    async with asyncio.timeout(self._lease.seconds):
                        is_complete = (await self._store.prune(retention)).is_complete
            except OUTAGES as error:
                logger.warning("could not prune: %s", error)

    async def _keep_rolled_up(self) -> None:
        """Count the runs of days that are over, for when they are deleted; until cancelled.

        Without a timeout: a day of millions of runs takes minutes, and who deletes them waits for that day to be done.
        """
        while True:
            await asyncio.sleep(jittered(self._lease.seconds / 2))
            try:
                while await self._store.roll_up() is not None:
                    pass
            except (*OUTAGES, SchemaMismatch) as error:
                # The schema before has no trends, and all that work needs.
                logger.warning("could not roll up: %s", error)

    async def _keep_index(self) -> None:
        """Have the index of labels follow the tasks; until cancelled."""
        while True:
            await asyncio.sleep(jittered(_INDEX_S))
            try:
                await self._store.index_labels(eager=False)
            except OUTAGES as error:
                # Nobody waits for it: a listing without it is slower, not wrong.
                logger.debug("could not bring the index of labels up to date: %s", error)

    async def _reap(self) -> None:
        try:
            async with asyncio.timeout(self._lease.seconds):
                reaped = await self._store.reap()
        except OUTAGES as error:
            logger.warning("could not reap: %s", error)
            return
        for attempt in reaped:
            self._reaped += 1
            self._tell(attempt)

    async def _show_draining(self) -> None:
        """Let others see that this worker takes on no more; that it does not, needs nobody's leave."""
        if (agent := self._lease.agent) is None or not self._running:
            return
        try:
            async with asyncio.timeout(self._lease.seconds):
                await self._store.drain(agent)
        except AgentLost:
            self._lease.lost(agent)
        except OUTAGES as error:
            logger.warning("could not show that it drains: %s", error)

    async def _leave(self) -> None:
        """Report what is left and sign off, if that is possible soon."""
        try:
            async with asyncio.timeout(_MAX_GOODBYE_S):
                while self._reporter.waiting:
                    await self._reporter.send()
                if (agent := self._lease.registered) is not None:
                    await self._store.sign_off(agent)
        except (SoltiStoreError, TimeoutError) as error:
            logger.warning("could not sign off: %s", error)

    def _tell(self, event: WorkerEvent) -> None:
        if self._settings.on_event is None:
            return
        try:
            self._settings.on_event(event)
        except Exception:
            logger.exception("on_event failed")
