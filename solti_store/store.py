"""The registry: `TaskStore`, and `AsyncTaskStore` beside it, over the same ops.

Here is what each operation means and whether it may be run twice. Transactions, retries and the translation of
errors are the runner's (`solti_store.running`), the work is the op's (`solti_store.ops`).

Any method may raise `StoreUnavailable` (no connection, after some patience), `SchemaMismatch` (this code does not
work on the database's schema) and `Invalid` (an argument breaks a rule of the model). A method that changes something
may raise `OutcomeUnknown`: the connection broke during COMMIT, and the change may or may not be there. Where a second
run is harmless, because it names an incarnation (`finish`, `heartbeat`, …), the store has tried before it gives up.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext, suppress
from datetime import timedelta
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Self

from solti_store import engine as engines
from solti_store.errors import Invalid, SoltiStoreError, VersionConflict
from solti_store.listening import Ear
from solti_store.model import DEFAULT_LIMIT, MAX_LIMIT, TASK_KINDS, Bookmark, TaskQuery
from solti_store.ops import agents, arguments, claims, closing, feed, label_index, listing, rollups, rows, tasks, waking
from solti_store.ops import doctor as doctoring
from solti_store.ops import retention as retaining
from solti_store.ops import schema as fitness
from solti_store.ops import why as explaining
from solti_store.ops.closing import Finishing
from solti_store.retry import Effect, RetryPolicy
from solti_store.rules import watching
from solti_store.rules.doctor import DoctorLimits
from solti_store.rules.retention import Retention
from solti_store.rules.slots import MAX_SLOT_QUEUE
from solti_store.rules.watching import DEFAULT_POLL
from solti_store.running import AsyncBound, AsyncPooled, AsyncRunner, Bound, Mode, Pooled, Runner
from solti_store.schema_name import resolve_schema
from solti_store.sql.naming import engine_in
from solti_store.url import is_embedded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import date
    from types import TracebackType

    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from solti_store.errors import LeaseLost
    from solti_store.model import AgentStatus, KindName, Task, TaskChange, TaskPage, TaskRun, TaskSpec
    from solti_store.ops.agents import Agent, CancelRequest
    from solti_store.ops.closing import Reaped
    from solti_store.ops.feed import Changes
    from solti_store.ops.retention import Pruned
    from solti_store.ops.rows import Claim
    from solti_store.rules.doctor import Diagnosis
    from solti_store.rules.outcome import Outcome
    from solti_store.rules.why import Why

__all__ = ["DEFAULT_LEASE", "AsyncTaskStore", "TaskStore"]

DEFAULT_LEASE = timedelta(seconds=30)
DEFAULT_GRACE = timedelta(seconds=10)

# An `update` that lost so often against others is given up.
UPDATE_ATTEMPTS = 50
_UPDATE_RETRY = RetryPolicy(first_s=0.001, max_s=0.05)

# Single statements commit themselves; FENCED and ONCE say what may be repeated when nobody knows whether they did.
READ = Mode(Effect.READ, single=True)
SNAPSHOT = Mode(Effect.READ, single=False, snapshot=True)
EXAMINATION = Mode(Effect.READ, single=False)
FENCED = Mode(Effect.FENCED, single=True)
ONCE = Mode(Effect.ONCE, single=True)
BATCH_FENCED = Mode(Effect.FENCED, single=False)
BATCH_ONCE = Mode(Effect.ONCE, single=False)
# After these there is, or may be, something to do.
ADMITTING_FENCED = Mode(Effect.FENCED, single=False, wakes=bool)
ADMITTING_ONCE = Mode(Effect.ONCE, single=False, wakes=bool)
LEAVING_ONCE = Mode(Effect.ONCE, single=False, wakes=itemgetter(1))


def _migrate(url: URL, schema: str) -> None:
    # Imported here: Alembic costs 0.3 s of imports, and only a new or an outdated embedded server needs it.
    from solti_store.migrate import upgrade  # noqa: PLC0415

    upgrade(url, schema=schema)


class TaskStore:
    """The registry, for synchronous code. Safe to share between threads.

    Args:
        engine: An engine of the caller's, who also disposes of it; `open` makes one itself.
        schema: The schema of the tables (`solti_store.schema_name`); None means SOLTI_STORE_SCHEMA, or else `solti`.
        retry: How patient the store is with a database that fails.
        max_slot_queue: How many tasks may wait for one slot, counted at each creation that would wait.

    Raises:
        Invalid: `schema` cannot be one, or `max_slot_queue` is negative.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        schema: str | None = None,
        retry: RetryPolicy = RetryPolicy(),
        max_slot_queue: int = MAX_SLOT_QUEUE,
    ) -> None:
        self._schema = resolve_schema(schema)
        self._run: Runner = Pooled(engine_in(engine, self._schema), retry)
        self._owned: Engine | None = None
        self._max_slot_queue = arguments.max_slot_queue(max_slot_queue)

    @classmethod
    def open(
        cls,
        url: str | URL | None = None,
        *,
        schema: str | None = None,
        retry: RetryPolicy = RetryPolicy(),
        max_slot_queue: int = MAX_SLOT_QUEUE,
        **engine_options: Any,  # noqa: ANN401 - whatever SQLAlchemy takes
    ) -> Self:
        """Connect to a database, and own the engine: use as a context manager, or call `close`.

        Args:
            url: `postgresql://…`; None means SOLTI_STORE_URL, and without that the user's private embedded
                server, which is started and migrated as needed. A server of your own is migrated only when told.
            schema: The schema of the tables: any name of up to 56 bytes. None means SOLTI_STORE_SCHEMA, and without
                that `solti`. Stores of several schemas may share a database, an engine and a transaction.
            retry: How patient the store is with a database that fails.
            max_slot_queue: How many tasks may wait for one slot, counted at each creation that would wait.
            **engine_options: Passed to `sqlalchemy.create_engine`.

        Raises:
            Invalid: `schema` cannot be one.
            SchemaMismatch: This code does not work on the schema; the message names the command.
            EmbeddedError: The embedded server cannot be started.
        """
        # Checked before an engine is made, or a server started.
        schema = resolve_schema(schema)
        engine = engines.open_engine(url, **engine_options)
        store = cls(engine, schema=schema, retry=retry, max_slot_queue=max_slot_queue)
        store._owned = engine
        try:
            applied = store._run(fitness.applied, READ)
            if is_embedded(url) and fitness.WINDOW.lags(applied):
                _migrate(engine.url, schema)
                applied = store._run(fitness.applied, READ)
            fitness.require(applied, schema)
        except BaseException:
            store.close()
            raise
        return store

    def using(self, connection: Connection) -> TaskStore:
        """The same registry inside the transaction that `connection` holds.

        Nothing is committed or retried; what an operation refuses (a taken id, another version) leaves the
        transaction usable. `TransactionAborted` says that it is not.

        Args:
            connection: From any engine, or `session.connection()` of an ORM session; not in AUTOCOMMIT mode.
        """
        bound = object.__new__(type(self))
        bound._schema = self._schema
        bound._run = Bound(connection, self._schema)
        bound._owned = None
        bound._max_slot_queue = self._max_slot_queue
        return bound

    def _require_pool(self, what: str) -> Pooled:
        if not isinstance(self._run, Pooled):
            raise Invalid(f"invalid model: {what} needs transactions of its own", field="connection")
        return self._run

    def close(self) -> None:
        """Close the connections that `open` made."""
        if self._owned is not None:
            self._owned.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- tasks ---

    def create(self, task_id: str, spec: TaskSpec) -> Task:
        """Create a task: due at once if its slot is free, else as its admission policy says.

        Raises:
            AlreadyExists: The id is taken.
            SlotBusy: The slot has an owner, and the policy is `dropIfRunning`.
            SlotQueueFull: The policy is `queue`, and as many as may wait already.
        """
        task = self._run(tasks.create, ONCE, task_id, spec, max_slot_queue=self._max_slot_queue)
        if task is None:
            task = self._run(tasks.enter, ADMITTING_ONCE, task_id, spec, max_slot_queue=self._max_slot_queue)
        return task

    def create_many(self, items: Iterable[tuple[str, TaskSpec]]) -> Sequence[Task]:
        """Create all of these tasks, in this order, or none.

        What they are then: one that a later one of the batch replaces is canceled already.

        Raises:
            AlreadyExists: One of the ids is taken; the error names the first.
            SlotBusy: One of the slots has an owner, which may be of this batch, and the policy is `dropIfRunning`.
            SlotQueueFull: One of the tasks would wait, and as many as may wait already.
            Invalid: An id occurs twice.
        """
        return self._run(tasks.create_many, ADMITTING_ONCE, list(items), max_slot_queue=self._max_slot_queue)

    def wake(self) -> None:
        """Have the workers that wait look for tasks now: for after the commit of a transaction that created some.

        What this store commits itself, it tells them. Inside a transaction (`using`) this takes effect with its commit,
        and then all that do so commit one after the other.
        """
        self._run(waking.wake, READ)

    def get(self, task_id: str) -> Task:
        """Read a task.

        Raises:
            NotFound: There is none of this id.
        """
        return self._run(tasks.get, READ, task_id)

    def list(self, query: TaskQuery = TaskQuery()) -> TaskPage:
        """One page of the tasks that meet a query.

        In order of creation, a task that meets it all the while is on exactly one page, whatever is created, changed
        or deleted in between. In order of the last change, one that is changed moves: it may be seen again ascending,
        and be missed descending.

        Raises:
            InvalidCursor: The query's cursor is damaged or belongs to another query.
            FeedUnavailable: The query asks for a token, and this is a standby.
            Invalid: It asks for a token, and the store was made by `using`.
        """
        if query.with_token:
            self._require_pool("a token of the feed")
        mode = SNAPSHOT if query.with_token else READ
        listed = self._run(listing.list_page, mode, query)
        if listed.feed_is_stale:
            self._run(feed.renew, BATCH_FENCED)
            listed = self._run(listing.list_page, mode, query)
        if listed.index_lags and isinstance(self._run, Pooled):
            # It has fallen behind so far that no worker seems to keep it. The page is made, whatever comes of this.
            with suppress(SoltiStoreError):
                self._run(label_index.step, BATCH_FENCED, segments_max=label_index.SEGMENTS_MAX)
        return listed.page

    def pages(self, query: TaskQuery = TaskQuery()) -> Iterator[TaskPage]:
        """This page and all that follow it, as `list` has them; totals on the first one only.

        Raises:
            InvalidCursor: The query's cursor is damaged or belongs to another query.
        """
        following: TaskQuery | None = query
        while following:
            page = self.list(following)
            yield page
            following = listing.following(query, page)

    def index_labels(self, *, eager: bool = True) -> None:
        """Bring the index of labels up to date, which workers otherwise do: worth it after a load of many tasks.

        Takes 10 to 60 µs a task, the more of its labels no other task has, in several transactions. Ends early when
        another process is at it.

        Args:
            eager: Whether to take in even a few tasks; listings find those quickly without.

        Raises:
            Invalid: The store was made by `using`.
        """
        self._require_pool("index_labels()")
        while self._run(label_index.step, BATCH_FENCED, eager=eager):
            pass
        if eager:
            self._run(label_index.sweep, BATCH_FENCED)

    def replace(self, task_id: str, spec: TaskSpec, *, expected_version: int | Task) -> Task:
        """Replace a task's spec, if the task is still at `expected_version`.

        A running attempt is not touched; the new spec applies from the next. The same spec again changes nothing,
        the version included.

        Args:
            task_id: The task.
            spec: Its new spec.
            expected_version: The `resourceVersion` it must be at. Given a task as it was read, also the incarnation
                must be that one's: versions start at 1 again when an id is deleted and created anew.

        Raises:
            NotFound: There is no task of this id.
            VersionConflict: The task has changed since; the error has its current version.
            Invalid: The spec names another slot: a task stays in its own.
        """
        return self._run(tasks.replace, ONCE, task_id, spec, expected=expected_version)

    def update(self, task_id: str, change: Callable[[TaskSpec], TaskSpec]) -> Task:
        """Read a task's spec, change it, and write it back; again from the start if somebody else was quicker.

        Args:
            task_id: The task.
            change: From the spec as it is to the spec as it should be; may run several times.

        Raises:
            NotFound: There is no task of this id.
            VersionConflict: Others were quicker fifty times in a row.
        """
        for failures in range(1, UPDATE_ATTEMPTS + 1):
            task = self.get(task_id)
            try:
                return self.replace(task_id, change(task.spec), expected_version=task)
            except VersionConflict:
                if failures == UPDATE_ATTEMPTS:
                    raise
            time.sleep(_UPDATE_RETRY.wait_s(failures))
        raise AssertionError  # pragma: no cover - the last round returns or raises

    def cancel(self, task_id: str) -> Task:
        """Cancel a task: at once if it is not running, else by a request its worker sees at its next heartbeat.

        A task that is final already stays as it is. If the task owned its slot, the next one is admitted.

        Raises:
            NotFound: There is no task of this id.
            Invalid: The id is none; or the task is canceled, and cannot be shown, for somebody wrote its spec by hand.
        """
        row, _ = self._run(tasks.cancel, LEAVING_ONCE, task_id)
        return rows.task(row)

    def delete(self, task_id: str, *, expected_version: int | Task | None = None) -> bool:
        """Delete a task with its runs, whatever its phase. If it owned its slot, the next one is admitted.

        Args:
            task_id: The task.
            expected_version: Delete only at this version; or, given a task as it was read, only that incarnation
                at that version.

        Returns:
            Whether there was one to delete.

        Raises:
            NotFound: There is none, and a version was expected.
            VersionConflict: The task has changed since.
        """
        was_there, _ = self._run(tasks.delete, LEAVING_ONCE, task_id, expected=expected_version)
        return was_there

    def runs(self, task_id: str, *, limit: int = MAX_LIMIT) -> Sequence[TaskRun]:
        """The latest runs of a task, at most `limit` (1000), the oldest of them first.

        Raises:
            NotFound: There is no task of this id.
        """
        return self._run(tasks.runs, READ, task_id, limit=limit)

    def why(self, task_id: str) -> Why:
        """Why a task does not run, or that it does: one reason, as a value and as a sentence.

        Raises:
            NotFound: There is no task of this id.
        """
        return self._run(explaining.why, READ, task_id)

    def doctor(
        self, *, limits: DoctorLimits = DoctorLimits(), statement_timeout: timedelta = doctoring.TIMEOUT
    ) -> Diagnosis:
        """What ails the store and its server, what comes of it, and what mends it. Only reads.

        What this role may not see, or what takes too long, is not an error: `unchecked` says so.

        Args:
            limits: Past what something is a finding.
            statement_timeout: How long each of its statements may take; there are some thirty.

        Raises:
            Invalid: The store was made by `using`.
        """
        self._require_pool("doctor()")
        return self._run(doctoring.examine, EXAMINATION, limits=limits, timeout=statement_timeout)

    # --- the change feed ---

    def token(self) -> str:
        """Where the change feed goes on from now.

        Raises:
            FeedUnavailable: This is a standby.
            Invalid: The store was made by `using`.
        """
        self._require_pool("a token of the feed")
        while (token := self._run(feed.token, READ)) is None:
            self._run(feed.renew, BATCH_FENCED)
        return token

    def changes(self, since: str, query: TaskQuery = TaskQuery(), *, limit: int = MAX_LIMIT) -> Changes:
        """What has happened since a token: once, without waiting for more.

        Args:
            since: A token: of a page of `list`, of a change, or of the `Changes` before.
            query: Which tasks are watched: by `selector` and `phases` and nothing else.
            limit: The most events to read, up to 1000; those of other tasks count.

        Raises:
            FeedExpired: Events that come next have been pruned, or the database is not the one that it was.
            FeedUnavailable: This is a standby.
            Invalid: The token is damaged, the query has other filters, or the store was made by `using`.
        """
        self._require_pool("the change feed")
        return self._run(feed.changes, READ, since, watching.checked(query), limit=limit)

    def watch(
        self,
        query: TaskQuery = TaskQuery(),
        *,
        since: str | None = None,
        poll: timedelta = DEFAULT_POLL,
        bookmarks: timedelta | None = None,
    ) -> Iterator[TaskChange | Bookmark]:
        """Changes as they happen, without end: in order for each task, none missed and none twice.

        Args:
            query: Which tasks are watched: by `selector` and `phases` and nothing else.
            since: A token to go on from; without one, from when the first change is asked for.
            poll: How long to wait when there is nothing new, a fifth more or less.
            bookmarks: After how long without a change to give a `Bookmark` instead; None is never.

        Raises:
            FeedExpired: As for `changes`; so are the others.
        """
        wait = watching.Wait(poll, bookmarks)
        token = self.token() if since is None else since
        while True:
            found = self.changes(token, query)
            yield from found.changes
            token = found.token
            if wait.bookmark_is_due(had_changes=bool(found.changes)):
                yield Bookmark(token=token)
            if found.is_all:
                time.sleep(wait.seconds())

    # --- agents and attempts ---

    def register(
        self,
        agent_id: str,
        *,
        kinds: Collection[KindName] = TASK_KINDS,
        labels: Mapping[str, str] = {},
        lease: timedelta = DEFAULT_LEASE,
        capacity: int | None = None,
    ) -> Agent:
        """Open a new incarnation of an agent, which may then claim.

        Args:
            agent_id: The worker's name; another incarnation of the same name is not affected.
            kinds: The kinds of task it runs.
            labels: What runner selectors see of it.
            lease: How long it may go without a heartbeat before its attempts are taken away.
            capacity: How many attempts it takes on at the same time: for those who look. It is the worker's to keep.
        """
        return self._run(agents.register, FENCED, agent_id, kinds=kinds, labels=labels, lease=lease, capacity=capacity)

    def agents(self, *, closed: bool = False, after: int = 0, limit: int = MAX_LIMIT) -> Sequence[AgentStatus]:
        """The agents, in the order in which they registered, with how many attempts each runs.

        Args:
            closed: Also those that signed off or were lost, while retention keeps them.
            after: Only incarnations past this one: the `seq` of the last agent of the page before.
            limit: The most agents, up to 1000.
        """
        return self._run(agents.list_agents, READ, closed=closed, after=after, limit=limit)

    def heartbeat(self, agent: Agent) -> Sequence[CancelRequest]:
        """Prolong the agent's lease by its length from now; what the agent should stop.

        Raises:
            AgentLost: This incarnation was closed, and its attempts with it.
        """
        return self._run(agents.heartbeat, FENCED, agent)

    def drain(self, agent: Agent | AgentStatus) -> None:
        """Hand the agent no more tasks, for good: it runs what it has, and signs off. By itself or by an operator.

        Raises:
            AgentLost: This incarnation was closed.
        """
        self._run(agents.drain, FENCED, agent)

    def claim(self, agent: Agent, *, limit: int = 1) -> Sequence[Claim]:
        """Start up to `limit` (1000) due tasks that the agent may run, the longest due first; none if it drains.

        Begins where the agent's last claim got to, and looks at all that is due for a twentieth of the time: a task
        that became due late, by a transaction that took long, may have to wait for that.

        Raises:
            AgentLost: This incarnation was closed, or its lease is over.
            OutcomeUnknown: Attempts may have been started that the answer did not reach; `held` has them.
        """
        while True:
            claimed = self._run(claims.claim, ONCE, agent, limit=limit)
            if not claimed.unreadable:
                return claimed.claims
            # Should that fail, they end at their deadlines; what can be run is started in any case.
            # In a caller's transaction nothing is started any more when that failed.
            with suppress(SoltiStoreError) if claimed.claims and isinstance(self._run, Pooled) else nullcontext():
                self._run(closing.fail, BATCH_FENCED, claimed.unreadable)
            if claimed.claims:
                return claimed.claims

    def held(self, agent: Agent) -> Sequence[Claim]:
        """The attempts that the agent runs, by the store's books, with their tasks' present specs.

        One whose spec cannot be read is left out; it ends at its deadline.
        """
        return self._run(claims.held, READ, agent)

    def held_keys(self, agent: Agent) -> frozenset[tuple[int, int]]:
        """The `seq` and `attempt` of what the agent runs, by the store's books: `held` without the specs."""
        return self._run(claims.held_keys, READ, agent)

    def start(self, task_id: str, agent: Agent | None = None) -> Claim:
        """Start an attempt of this task, whatever its phase and policies.

        Args:
            task_id: The task.
            agent: Who runs it. Without one, nothing but the timeout guards the attempt.

        Raises:
            NotFound: There is no task of this id.
            AlreadyRunning: An attempt is running.
            SlotBusy: Another task owns the slot.
            AgentLost: This incarnation was closed, or its lease is over.
        """
        return self._run(claims.start, BATCH_ONCE, task_id, agent)

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """Report how an attempt ended; the restart policy decides what follows. The same again is a no-op.

        Raises:
            LeaseLost: The attempt is over already, in another way; nothing was changed.
        """
        (refusal,) = self.finish_many([(claim, outcome)])
        if refusal is not None:
            raise refusal

    def finish_many(self, results: Sequence[tuple[Claim, Outcome]]) -> Sequence[LeaseLost | None]:
        """Report a batch of attempts; for each, in order, None or why its report was refused."""
        if not isinstance(self._run, Pooled):
            return self._run(closing.finish_many, BATCH_FENCED, results)
        finishing = Finishing(results)
        if left := finishing.left:
            finishing.decided(self._run(closing.finish_untouched, FENCED, left))
        if left := finishing.left:
            finishing.decided(self._run(closing.finish_free, ADMITTING_FENCED, left))
        if left := finishing.left:
            finishing.decided(dict(enumerate(self._run(closing.finish_many, ADMITTING_FENCED, left))))
        return finishing.answers

    def reap(self, *, limit: int = DEFAULT_LIMIT, grace: timedelta = DEFAULT_GRACE) -> Sequence[Reaped]:
        """Close the attempts of agents that fell silent, and those whose timeout nobody enforced.

        Any process may call this, at any time, also several at once. Of some slots each time, it also lets the next one
        in where the owner was deleted by hand.

        Args:
            limit: The most agents, the most overdue attempts, and the most queues, of one call.
            grace: How long past its deadline an attempt is left to its worker, to stop and report it.
        """
        return self._run(closing.reap, ADMITTING_FENCED, limit=limit, grace=grace)

    def prune(self, retention: Retention = Retention(), *, limit: int = MAX_LIMIT) -> Pruned:
        """Delete what is over and kept no longer: final tasks, runs, agents. Never what is active.

        Any process may call this, at any time, also several at once; what others hold is left to the next call. Runs
        whose day is over are rolled up first; see `roll_up`.

        Args:
            retention: How long what is kept.
            limit: The most of each to delete, up to 1000; the result says whether there is more.
        """
        return self._run(retaining.prune, BATCH_FENCED, retention, limit=limit)

    def roll_up(self) -> date | None:
        """Keep what the attempts of a day came to, for trends that outlive retention: the first that is not kept yet.

        A day is kept once, an hour after it is over. Any process may call this, at any time, also several at once.
        Workers do.

        Returns:
            The day, in UTC; None when there is nothing to do, or somebody else is at it.
        """
        return self._run(rollups.roll_up, BATCH_FENCED)

    def sign_off(self, agent: Agent) -> Sequence[Reaped]:
        """Close the agent; what it still runs ends as if it had fallen silent."""
        return self._run(closing.sign_off, ADMITTING_FENCED, agent)


class AsyncTaskStore:
    """The registry, for asyncio: `TaskStore` method for method.

    A cancelled call rolls back and leaves nothing checked out, unless it was in its COMMIT.

    Args:
        engine: An engine of the caller's, who also disposes of it; `open` makes one itself.
        schema: The schema of the tables (`solti_store.schema_name`); None means SOLTI_STORE_SCHEMA, or else `solti`.
        retry: How patient the store is with a database that fails.
        max_slot_queue: How many tasks may wait for one slot, counted at each creation that would wait.

    Raises:
        Invalid: `schema` cannot be one, or `max_slot_queue` is negative.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        schema: str | None = None,
        retry: RetryPolicy = RetryPolicy(),
        max_slot_queue: int = MAX_SLOT_QUEUE,
    ) -> None:
        self._schema = resolve_schema(schema)
        self._run: AsyncRunner = AsyncPooled(engine_in(engine, self._schema), retry)
        self._owned: AsyncEngine | None = None
        self._max_slot_queue = arguments.max_slot_queue(max_slot_queue)

    @classmethod
    async def open(
        cls,
        url: str | URL | None = None,
        *,
        schema: str | None = None,
        retry: RetryPolicy = RetryPolicy(),
        max_slot_queue: int = MAX_SLOT_QUEUE,
        **engine_options: Any,  # noqa: ANN401 - whatever SQLAlchemy takes
    ) -> Self:
        """As `TaskStore.open`."""
        schema = resolve_schema(schema)
        # In a thread: to start the embedded server takes a second.
        engine = await asyncio.to_thread(engines.open_async_engine, url, **engine_options)
        store = cls(engine, schema=schema, retry=retry, max_slot_queue=max_slot_queue)
        store._owned = engine
        try:
            applied = await store._run(fitness.applied, READ)
            if is_embedded(url) and fitness.WINDOW.lags(applied):
                await asyncio.to_thread(_migrate, engine.url, schema)
                applied = await store._run(fitness.applied, READ)
            fitness.require(applied, schema)
        except BaseException:
            await store.close()
            raise
        return store

    def using(self, connection: AsyncConnection) -> AsyncTaskStore:
        """As `TaskStore.using`."""
        bound = object.__new__(type(self))
        bound._schema = self._schema
        bound._run = AsyncBound(connection, self._schema)
        bound._owned = None
        bound._max_slot_queue = self._max_slot_queue
        return bound

    def _require_pool(self, what: str) -> AsyncPooled:
        if not isinstance(self._run, AsyncPooled):
            raise Invalid(f"invalid model: {what} needs transactions of its own", field="connection")
        return self._run

    async def close(self) -> None:
        """As `TaskStore.close`."""
        if self._owned is not None:
            await self._owned.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- tasks ---

    async def create(self, task_id: str, spec: TaskSpec) -> Task:
        """As `TaskStore.create`."""
        task = await self._run(tasks.create, ONCE, task_id, spec, max_slot_queue=self._max_slot_queue)
        if task is None:
            task = await self._run(tasks.enter, ADMITTING_ONCE, task_id, spec, max_slot_queue=self._max_slot_queue)
        return task

    async def create_many(self, items: Iterable[tuple[str, TaskSpec]]) -> Sequence[Task]:
        """As `TaskStore.create_many`."""
        return await self._run(tasks.create_many, ADMITTING_ONCE, list(items), max_slot_queue=self._max_slot_queue)

    async def wake(self) -> None:
        """As `TaskStore.wake`."""
        await self._run(waking.wake, READ)

    def listen(self) -> Ear:
        """What a worker hears on that tasks were created: a context manager, with a connection of its own.

        Raises:
            Invalid: The store was made by `using`.
        """
        return Ear(self._require_pool("listen()").engine)

    async def get(self, task_id: str) -> Task:
        """As `TaskStore.get`."""
        return await self._run(tasks.get, READ, task_id)

    async def list(self, query: TaskQuery = TaskQuery()) -> TaskPage:
        """As `TaskStore.list`."""
        if query.with_token:
            self._require_pool("a token of the feed")
        mode = SNAPSHOT if query.with_token else READ
        listed = await self._run(listing.list_page, mode, query)
        if listed.feed_is_stale:
            await self._run(feed.renew, BATCH_FENCED)
            listed = await self._run(listing.list_page, mode, query)
        if listed.index_lags and isinstance(self._run, AsyncPooled):
            # It has fallen behind so far that no worker seems to keep it. The page is made, whatever comes of this.
            with suppress(SoltiStoreError):
                await self._run(label_index.step, BATCH_FENCED, segments_max=label_index.SEGMENTS_MAX)
        return listed.page

    async def pages(self, query: TaskQuery = TaskQuery()) -> AsyncIterator[TaskPage]:
        """As `TaskStore.pages`."""
        following: TaskQuery | None = query
        while following:
            page = await self.list(following)
            yield page
            following = listing.following(query, page)

    async def index_labels(self, *, eager: bool = True) -> None:
        """As `TaskStore.index_labels`."""
        self._require_pool("index_labels()")
        while await self._run(label_index.step, BATCH_FENCED, eager=eager):
            pass
        if eager:
            await self._run(label_index.sweep, BATCH_FENCED)

    async def replace(self, task_id: str, spec: TaskSpec, *, expected_version: int | Task) -> Task:
        """As `TaskStore.replace`."""
        return await self._run(tasks.replace, ONCE, task_id, spec, expected=expected_version)

    async def update(self, task_id: str, change: Callable[[TaskSpec], TaskSpec]) -> Task:
        """As `TaskStore.update`."""
        for failures in range(1, UPDATE_ATTEMPTS + 1):
            task = await self.get(task_id)
            try:
                return await self.replace(task_id, change(task.spec), expected_version=task)
            except VersionConflict:
                if failures == UPDATE_ATTEMPTS:
                    raise
            await asyncio.sleep(_UPDATE_RETRY.wait_s(failures))
        raise AssertionError  # pragma: no cover - the last round returns or raises

    async def cancel(self, task_id: str) -> Task:
        """As `TaskStore.cancel`."""
        row, _ = await self._run(tasks.cancel, LEAVING_ONCE, task_id)
        return rows.task(row)

    async def delete(self, task_id: str, *, expected_version: int | Task | None = None) -> bool:
        """As `TaskStore.delete`."""
        was_there, _ = await self._run(tasks.delete, LEAVING_ONCE, task_id, expected=expected_version)
        return was_there

    async def runs(self, task_id: str, *, limit: int = MAX_LIMIT) -> Sequence[TaskRun]:
        """As `TaskStore.runs`."""
        return await self._run(tasks.runs, READ, task_id, limit=limit)

    async def why(self, task_id: str) -> Why:
        """As `TaskStore.why`."""
        return await self._run(explaining.why, READ, task_id)

    async def doctor(
        self, *, limits: DoctorLimits = DoctorLimits(), statement_timeout: timedelta = doctoring.TIMEOUT
    ) -> Diagnosis:
        """As `TaskStore.doctor`."""
        self._require_pool("doctor()")
        return await self._run(doctoring.examine, EXAMINATION, limits=limits, timeout=statement_timeout)

    # --- the change feed ---

    async def token(self) -> str:
        """As `TaskStore.token`."""
        self._require_pool("a token of the feed")
        while (token := await self._run(feed.token, READ)) is None:
            await self._run(feed.renew, BATCH_FENCED)
        return token

    async def changes(self, since: str, query: TaskQuery = TaskQuery(), *, limit: int = MAX_LIMIT) -> Changes:
        """As `TaskStore.changes`."""
        self._require_pool("the change feed")
        return await self._run(feed.changes, READ, since, watching.checked(query), limit=limit)

    async def watch(
        self,
        query: TaskQuery = TaskQuery(),
        *,
        since: str | None = None,
        poll: timedelta = DEFAULT_POLL,
        bookmarks: timedelta | None = None,
    ) -> AsyncIterator[TaskChange | Bookmark]:
        """As `TaskStore.watch`."""
        wait = watching.Wait(poll, bookmarks)
        token = await self.token() if since is None else since
        while True:
            found = await self.changes(token, query)
            for change in found.changes:
                yield change
            token = found.token
            if wait.bookmark_is_due(had_changes=bool(found.changes)):
                yield Bookmark(token=token)
            if found.is_all:
                await asyncio.sleep(wait.seconds())

    # --- agents and attempts ---

    async def register(
        self,
        agent_id: str,
        *,
        kinds: Collection[KindName] = TASK_KINDS,
        labels: Mapping[str, str] = {},
        lease: timedelta = DEFAULT_LEASE,
        capacity: int | None = None,
    ) -> Agent:
        """As `TaskStore.register`."""
        return await self._run(
            agents.register, FENCED, agent_id, kinds=kinds, labels=labels, lease=lease, capacity=capacity
        )

    async def agents(self, *, closed: bool = False, after: int = 0, limit: int = MAX_LIMIT) -> Sequence[AgentStatus]:
        """As `TaskStore.agents`."""
        return await self._run(agents.list_agents, READ, closed=closed, after=after, limit=limit)

    async def heartbeat(self, agent: Agent) -> Sequence[CancelRequest]:
        """As `TaskStore.heartbeat`."""
        return await self._run(agents.heartbeat, FENCED, agent)

    async def drain(self, agent: Agent | AgentStatus) -> None:
        """As `TaskStore.drain`."""
        await self._run(agents.drain, FENCED, agent)

    async def claim(self, agent: Agent, *, limit: int = 1) -> Sequence[Claim]:
        """As `TaskStore.claim`."""
        while True:
            claimed = await self._run(claims.claim, ONCE, agent, limit=limit)
            if not claimed.unreadable:
                return claimed.claims
            # Should that fail, they end at their deadlines; what can be run is started in any case.
            with suppress(SoltiStoreError) if claimed.claims and isinstance(self._run, AsyncPooled) else nullcontext():
                await self._run(closing.fail, BATCH_FENCED, claimed.unreadable)
            if claimed.claims:
                return claimed.claims

    async def held(self, agent: Agent) -> Sequence[Claim]:
        """As `TaskStore.held`."""
        return await self._run(claims.held, READ, agent)

    async def held_keys(self, agent: Agent) -> frozenset[tuple[int, int]]:
        """As `TaskStore.held_keys`."""
        return await self._run(claims.held_keys, READ, agent)

    async def start(self, task_id: str, agent: Agent | None = None) -> Claim:
        """As `TaskStore.start`."""
        return await self._run(claims.start, BATCH_ONCE, task_id, agent)

    async def finish(self, claim: Claim, outcome: Outcome) -> None:
        """As `TaskStore.finish`."""
        (refusal,) = await self.finish_many([(claim, outcome)])
        if refusal is not None:
            raise refusal

    async def finish_many(self, results: Sequence[tuple[Claim, Outcome]]) -> Sequence[LeaseLost | None]:
        """As `TaskStore.finish_many`."""
        if not isinstance(self._run, AsyncPooled):
            return await self._run(closing.finish_many, BATCH_FENCED, results)
        finishing = Finishing(results)
        if left := finishing.left:
            finishing.decided(await self._run(closing.finish_untouched, FENCED, left))
        if left := finishing.left:
            finishing.decided(await self._run(closing.finish_free, ADMITTING_FENCED, left))
        if left := finishing.left:
            finishing.decided(dict(enumerate(await self._run(closing.finish_many, ADMITTING_FENCED, left))))
        return finishing.answers

    async def reap(self, *, limit: int = DEFAULT_LIMIT, grace: timedelta = DEFAULT_GRACE) -> Sequence[Reaped]:
        """As `TaskStore.reap`."""
        return await self._run(closing.reap, ADMITTING_FENCED, limit=limit, grace=grace)

    async def prune(self, retention: Retention = Retention(), *, limit: int = MAX_LIMIT) -> Pruned:
        """As `TaskStore.prune`."""
        return await self._run(retaining.prune, BATCH_FENCED, retention, limit=limit)

    async def roll_up(self) -> date | None:
        """As `TaskStore.roll_up`."""
        return await self._run(rollups.roll_up, BATCH_FENCED)

    async def sign_off(self, agent: Agent) -> Sequence[Reaped]:
        """As `TaskStore.sign_off`."""
        return await self._run(closing.sign_off, ADMITTING_FENCED, agent)
