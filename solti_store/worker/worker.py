"""The worker as its users see it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from solti_store.errors import Invalid
from solti_store.model import MAX_LIMIT, TASK_KINDS, AgentId, Labels, RunnerEnv
from solti_store.rules.outcome import MAX_OUTPUT_TAIL
from solti_store.rules.retention import Retention
from solti_store.store import DEFAULT_LEASE
from solti_store.worker.runners.base import DEFAULT_OUTPUT_TAIL
from solti_store.worker.runners.subprocess import SubprocessRunner
from solti_store.worker.session import Session, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from solti_store.model import KindName
    from solti_store.store import AsyncTaskStore
    from solti_store.worker.events import WorkerEvent, WorkerReport
    from solti_store.worker.runners.base import Runner

__all__ = ["Worker"]

_NOTHING = timedelta(0)


class Worker:
    """Runs the tasks of a store, several at once, until told to stop.

    Args:
        store: The store; the worker uses up to four of its connections.
        agent_id: The worker's name; it need not be unique.
        labels: What runner selectors see of it.
        runners: One for each kind of task that it takes; subprocess tasks alone if not given.
        concurrency: The most attempts at once, from 1 to 1000.
        prefetch: How many attempts more it claims, which wait in the worker for others to end; with `concurrency` at
            most 1000. Their timeouts run from the claim.
        lease: How long it may be out of touch before its attempts are taken away. It kills them itself before.
        poll: The pause between two looks for due tasks when there were none.
        listen: Whether new tasks wake it from that pause, by one connection more than the store's.
        kill_grace: From SIGTERM to SIGKILL. Keep it below the ten seconds that the store waits for the report of an
            attempt past its timeout.
        env: Variables for every task; they win over the task's own.
        output_tail: How many bytes of each output stream are kept with the run, from the end; at most 65536, 0 is
            none.
        retention: What it deletes beside its work, because it is over and old; None is nothing.
        on_event: Called in the event loop with what happens. An exception of its is logged, and ignored.

    Raises:
        Invalid: An argument breaks its rule.
    """

    def __init__(
        self,
        store: AsyncTaskStore,
        agent_id: str,
        *,
        labels: Mapping[str, str] = {},
        runners: Iterable[Runner] = (SubprocessRunner(),),
        concurrency: int = 4,
        prefetch: int = 0,
        lease: timedelta = DEFAULT_LEASE,
        poll: timedelta = timedelta(milliseconds=500),
        listen: bool = True,
        kill_grace: timedelta = timedelta(seconds=5),
        env: RunnerEnv | Mapping[str, str] = RunnerEnv(),
        output_tail: int = DEFAULT_OUTPUT_TAIL,
        retention: Retention | None = Retention(),
        on_event: Callable[[WorkerEvent], None] | None = None,
    ) -> None:
        if not 1 <= concurrency <= MAX_LIMIT:
            raise _invalid("concurrency", f"be from 1 to {MAX_LIMIT}", concurrency)
        if not 0 <= prefetch <= MAX_LIMIT - concurrency:
            raise _invalid("prefetch", f"be from 0 to {MAX_LIMIT} less the concurrency", prefetch)
        if not 0 <= output_tail <= MAX_OUTPUT_TAIL:
            raise _invalid("output_tail", f"be from 0 to {MAX_OUTPUT_TAIL}", output_tail)
        if poll <= _NOTHING:
            raise _invalid("poll", "be positive", poll)
        if lease <= _NOTHING:
            raise _invalid("lease", "be positive", lease)
        if kill_grace < _NOTHING:
            raise _invalid("kill_grace", "not be negative", kill_grace)
        self._store = store
        self._settings = Settings(
            agent_id=AgentId(agent_id),
            labels=Labels(labels),
            runners=_by_kind(runners),
            concurrency=concurrency,
            prefetch=prefetch,
            lease=lease,
            poll_s=poll.total_seconds(),
            listen=listen,
            grace_s=kill_grace.total_seconds(),
            env=env if isinstance(env, RunnerEnv) else RunnerEnv(env),
            output_tail=output_tail,
            retention=retention,
            on_event=on_event,
        )
        self._draining = False
        self._stopping = False
        self._running: tuple[asyncio.AbstractEventLoop, Session] | None = None

    async def run(self, *, until_idle: bool = False) -> WorkerReport:
        """Claim, run and report tasks until `drain` or `stop`; one run at a time.

        A database that goes away is waited for. Cancelling this kills what runs; the store then closes those
        attempts as those of an agent that signed off.

        Args:
            until_idle: Also return once nothing is due for this worker and nothing runs. A task that waits for its
                next start does not count, nor does one that another worker runs.

        Returns:
            What was done.

        Raises:
            StoreUnavailable: The worker could not even register.
            SchemaMismatch: The database was migrated to a version that this code does not know.
            RuntimeError: It runs already.
        """
        if self._running is not None:
            raise RuntimeError("the worker runs already")
        session = Session(self._store, self._settings)
        self._running = asyncio.get_running_loop(), session
        # After it is published, so that a call from another thread meanwhile is seen here or wakes the session.
        self._pass_on(session)
        try:
            return await session.run(until_idle=until_idle)
        finally:
            self._running = None

    def drain(self) -> None:
        """Claim no more, and let what runs come to its end; for good. From any thread or signal handler."""
        self._draining = True
        self._wake()

    def stop(self) -> None:
        """Drain, and terminate what runs; those attempts fail with `worker stopped`. From any thread too."""
        self._draining = self._stopping = True
        self._wake()

    def _wake(self) -> None:
        if self._running is None:
            return
        loop, session = self._running
        try:
            loop.call_soon_threadsafe(self._pass_on, session)
        except RuntimeError:  # the loop was closed meanwhile, so nothing runs any more
            return

    def _pass_on(self, session: Session) -> None:
        if self._stopping:
            session.stop()
        elif self._draining:
            session.drain()


def _by_kind(runners: Iterable[Runner]) -> dict[KindName, Runner]:
    found: dict[KindName, Runner] = {}
    for runner in runners:
        if runner.kind not in TASK_KINDS:
            raise _invalid("runners", f"be of the kinds {', '.join(TASK_KINDS)}", runner.kind)
        if runner.kind in found:
            raise _invalid("runners", "be one a kind", f"two of the kind {runner.kind}")
        found[runner.kind] = runner
    if not found:
        raise _invalid("runners", "be at least one", "none")
    return found


def _invalid(name: str, rule: str, value: object) -> Invalid:
    return Invalid(f"invalid model: {name} must {rule}, got {value}", field=name)
