"""The registry as `domain.md` has it: a pure model, single-threaded, without a database.

Written from the contract and not from the code. It takes specs and outcomes as values of the package, for their fields
only; what follows from them is decided here anew.

Time is microseconds since the epoch, and every moment is a `Span`: the model knows of a wait with jitter, or of a
statement that took the database's clock, only its bounds. What is read from the database must lie within them, and
takes their place (`Span.narrow`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from solti_store import Outcome, TaskSpec

__all__ = ["MS", "Disagreement", "Model", "ModelAgent", "ModelRun", "ModelTask", "Refused", "Span"]

MS: Final = 1000  # microseconds


class Disagreement(AssertionError):
    """The registry did what the contract does not allow."""


class Refused(Exception):
    """The contract refuses this: the error's name and what it must carry."""

    def __init__(self, name: str, **facts: Any) -> None:
        super().__init__(f"{name} {facts}")
        self.name = name
        self.facts = facts


@dataclass(frozen=True)
class Span:
    """A moment between two, in microseconds."""

    lo: int
    hi: int

    def plus(self, lo: int, hi: int | None = None) -> Span:
        return Span(self.lo + lo, self.hi + (lo if hi is None else hi))

    def latest(self, other: Span) -> Span:
        return Span(max(self.lo, other.lo), max(self.hi, other.hi))

    def narrow(self, found: int, what: str) -> Span:
        if not self.lo <= found <= self.hi:
            raise Disagreement(f"{what} is {found}, outside {self.lo} … {self.hi}")
        return Span(found, found)


@dataclass
class ModelRun:
    """One attempt of a task, over or not."""

    attempt: int
    phase: str
    started: Span
    timeout_us: int
    agent: int | None
    finished: Span | None = None
    error: str | None = None
    exit_code: int | None = None

    @property
    def record(self) -> tuple[str, int | None, str | None]:
        return self.phase, self.exit_code, self.error


@dataclass
class ModelAgent:
    """One incarnation of a worker."""

    seq: int
    id: str
    kinds: frozenset[str]
    labels: dict[str, str]
    lease_us: int
    expires: Span
    closed: Span | None = None
    state: str = "active"

    def serves(self, spec: TaskSpec) -> bool:
        selector = spec.runner_selector
        wanted = {} if selector is None else dict(selector.match_labels)
        return spec.kind.name in self.kinds and all(self.labels.get(key) == value for key, value in wanted.items())


@dataclass
class ModelTask:
    """A task and all that became of it. Events are (type, resource version, phase, attempt)."""

    id: str
    spec: TaskSpec
    created: Span
    updated: Span
    seq: int | None = None
    generation: int = 1
    version: int = 1
    phase: str = "pending"
    attempt: int = 0
    failures: int = 0
    error: str | None = None
    exit_code: int | None = None
    due: Span | None = None
    agent: int | None = None
    cancel_requested: bool = False
    runs: dict[int, ModelRun] = field(default_factory=dict)
    events: list[tuple[str, int, str, int]] = field(default_factory=list)

    @property
    def slot(self) -> str:
        return str(self.spec.slot)

    @property
    def is_running(self) -> bool:
        return self.phase == "running"

    @property
    def owns_slot(self) -> bool:
        return self.due is not None or self.is_running

    @property
    def is_final(self) -> bool:
        return self.phase not in {"pending", "running"} and self.due is None

    def step(self, kind: str, now: Span) -> None:
        """One committed change: one version, one event."""
        self.version += 1
        self.updated = self.updated.latest(now)
        self.note(kind)

    def note(self, kind: str) -> None:
        self.events.append((kind, self.version, self.phase, self.attempt))

    def copy(self) -> ModelTask:
        runs = {attempt: replace(run) for attempt, run in self.runs.items()}
        return replace(self, runs=runs, events=list(self.events))


class Model:
    """All tasks, queues and agents.

    Args:
        max_slot_queue: How many tasks may wait for one slot.
    """

    def __init__(self, max_slot_queue: int) -> None:
        self.max_slot_queue = max_slot_queue
        self.tasks: dict[str, ModelTask] = {}
        self.queues: dict[str, list[str]] = {}
        self.agents: dict[int, ModelAgent] = {}
        self.gone: list[ModelTask] = []

    # --- what is so -------------------------------------------------------------------------------

    def owner(self, slot: str) -> ModelTask | None:
        owners = [task for task in self.tasks.values() if task.slot == slot and task.owns_slot]
        assert len(owners) <= 1, "the model itself is wrong"
        return owners[0] if owners else None

    def queue(self, slot: str) -> list[str]:
        return self.queues.setdefault(slot, [])

    def is_queued(self, task: ModelTask) -> bool:
        return task.id in self.queue(task.slot)

    def find(self, task_id: str) -> ModelTask:
        if task_id not in self.tasks:
            raise Refused("NotFound", task_id=task_id)
        return self.tasks[task_id]

    def by_seq(self, seq: int) -> ModelTask | None:
        return next((task for task in self.tasks.values() if task.seq == seq), None)

    # --- tasks ------------------------------------------------------------------------------------

    def create_many(self, items: Sequence[tuple[str, TaskSpec]], now: Span) -> None:
        """All or none, each admitted as if it came alone and in this order."""
        ids = [task_id for task_id, _ in items]
        if len(set(ids)) < len(ids):
            raise Refused("Invalid", field="id")
        for task_id in ids:
            if task_id in self.tasks:
                raise Refused("AlreadyExists", task_id=task_id)
        tasks = {task_id: task.copy() for task_id, task in self.tasks.items()}
        queues = {slot: list(queue) for slot, queue in self.queues.items()}
        try:
            for task_id, spec in items:
                self._admit_new(task_id, spec, now)
        except Refused:
            self.tasks, self.queues = tasks, queues
            raise

    def _admit_new(self, task_id: str, spec: TaskSpec, now: Span) -> None:
        task = ModelTask(task_id, spec, now, now)
        queue, owner = self.queue(task.slot), self.owner(task.slot)
        if owner is None:
            task.due = now
        elif spec.admission == "dropIfRunning":
            raise Refused("SlotBusy", task_id=task_id, slot=task.slot, owner=owner.id)
        elif spec.admission == "queue":
            if len(queue) >= self.max_slot_queue:
                raise Refused("SlotQueueFull", task_id=task_id, slot=task.slot, limit=self.max_slot_queue)
            queue.append(task_id)
        else:
            if queue:
                displaced = self.tasks[queue.pop(0)]
                displaced.phase, displaced.error = "canceled", "superseded_by_replace"
                displaced.step("finished", now)
            if owner.is_running:
                self._request_cancel(owner, now)
                queue.insert(0, task_id)
            else:
                self._cancel_at_once(owner, now)
                task.due = now
        task.note("created")
        self.tasks[task_id] = task

    def replace(self, task_id: str, spec: TaskSpec, expected: tuple[int, int | None], now: Span) -> None:
        task = self._expect(task_id, expected)
        if spec.slot != task.spec.slot:
            raise Refused("Invalid", field="slot")
        if spec == task.spec:
            return
        task.spec = spec
        task.generation += 1
        task.step("specChanged", now)

    def _expect(self, task_id: str, expected: tuple[int, int | None]) -> ModelTask:
        """The task, if it has this version; and, where a creation time (ms) is given, is that incarnation."""
        task, (version, created_ms) = self.find(task_id), expected
        if task.version != version or created_ms not in {None, task.created.lo // MS}:
            raise Refused("VersionConflict", task_id=task_id, expected=version, current=task.version)
        return task

    def cancel(self, task_id: str, now: Span) -> None:
        task = self.find(task_id)
        if task.is_running:
            self._request_cancel(task, now)
        elif self.is_queued(task):
            self.queue(task.slot).remove(task.id)
            self._cancel_at_once(task, now)
        elif task.owns_slot:
            self._cancel_at_once(task, now)
            self._admit_next(task.slot, now)

    def _request_cancel(self, task: ModelTask, now: Span) -> None:
        if not task.cancel_requested:
            task.cancel_requested = True
            task.step("cancelRequested", now)

    def _cancel_at_once(self, task: ModelTask, now: Span) -> None:
        task.phase, task.due, task.error, task.exit_code = "canceled", None, None, None
        task.step("finished", now)

    def _admit_next(self, slot: str, now: Span) -> None:
        """The slot's owner is done: the head of the queue is next, in the same transaction."""
        queue = self.queue(slot)
        if queue and self.owner(slot) is None:
            task = self.tasks[queue.pop(0)]
            task.due = now
            task.step("admitted", now)

    def delete(self, task_id: str, expected: tuple[int, int | None] | None, now: Span) -> bool:
        if expected is not None:
            self._expect(task_id, expected)
        if task_id not in self.tasks:
            return False
        self._remove(self.tasks[task_id], now)
        return True

    def _remove(self, task: ModelTask, now: Span) -> None:
        if self.is_queued(task):
            self.queue(task.slot).remove(task.id)
        task.note("deleted")
        del self.tasks[task.id]
        self.gone.append(task)
        self._admit_next(task.slot, now)

    # --- agents -----------------------------------------------------------------------------------

    def register(self, agent: ModelAgent) -> None:
        if agent.seq <= max(self.agents, default=0):
            raise Disagreement(f"agent {agent.seq} is not new")
        self.agents[agent.seq] = agent

    def heartbeat(self, seq: int, now: Span) -> set[tuple[int, int]]:
        agent = self.agents[seq]
        if agent.closed is not None:
            raise Refused("AgentLost", agent_id=agent.id)
        agent.expires = agent.expires.latest(now.plus(agent.lease_us))
        return {key for key in self.held(seq) if self._by_key(key).cancel_requested}

    def held(self, seq: int) -> set[tuple[int, int]]:
        return {(task.seq or 0, task.attempt) for task in self.tasks.values() if task.is_running and task.agent == seq}

    def _by_key(self, key: tuple[int, int]) -> ModelTask:
        task = self.by_seq(key[0])
        assert task is not None
        return task

    def _require_open(self, seq: int, now: Span) -> ModelAgent:
        agent = self.agents[seq]
        if agent.closed is not None or agent.expires.lo < now.lo:
            raise Refused("AgentLost", agent_id=agent.id)
        return agent

    # --- attempts ---------------------------------------------------------------------------------

    def claim(self, seq: int, limit: int, taken: Sequence[str], now: Span) -> None:
        """Judge which tasks a claim took, and start them.

        The longest due first; of those due at the same moment, any. One that came due while the statement ran may
        be taken or not.
        """
        agent = self._require_open(seq, now)
        fit = {task.id: task.due for task in self.tasks.values() if task.due and agent.serves(task.spec)}
        for task_id in taken:
            if task_id not in fit or fit[task_id].lo > now.hi:
                raise Disagreement(f"claimed {task_id}, which may not start")
        if len(set(taken)) < len(taken) or len(taken) > limit:
            raise Disagreement(f"claimed {taken} with limit {limit}")
        moments = [fit[task_id].lo for task_id in taken]
        if moments != sorted(moments):
            raise Disagreement(f"claimed {taken} out of their order {moments}")
        left = [due.lo for task_id, due in fit.items() if task_id not in taken and due.hi <= now.lo]
        if left and (len(taken) < limit or min(left) < max(moments)):
            raise Disagreement(f"claimed {taken} with limit {limit}, and left what was due {left}")
        for task_id in taken:
            self._start(self.tasks[task_id], seq, now)

    def start(self, task_id: str, seq: int | None, now: Span) -> None:
        if seq is not None:
            self._require_open(seq, now)
        task = self.find(task_id)
        if task.is_running:
            raise Refused("AlreadyRunning", task_id=task_id, attempt=task.attempt)
        owner = self.owner(task.slot)
        if owner is not None and owner is not task:
            raise Refused("SlotBusy", task_id=task_id, slot=task.slot, owner=owner.id)
        self._start(task, seq, now)

    def _start(self, task: ModelTask, agent: int | None, now: Span) -> None:
        task.attempt += 1
        task.phase, task.due, task.agent, task.error, task.exit_code = "running", None, agent, None, None
        task.step("started", now)
        timeout_us = int(task.spec.timeout) * MS
        task.runs[task.attempt] = ModelRun(task.attempt, "running", task.updated, timeout_us, agent)

    def finish_many(
        self, results: Iterable[tuple[int, int, Outcome]], now: Span
    ) -> list[tuple[int | None, str | None] | None]:
        """For each report None, or who has the task instead: the latest attempt and its agent's name."""
        results = list(results)
        answers: dict[int, tuple[int | None, str | None] | None] = {}
        seen: set[int] = set()
        late = []
        for index, (seq, attempt, outcome) in enumerate(results):
            task = self.by_seq(seq)
            if task is not None and task.is_running and task.attempt == attempt and seq not in seen:
                seen.add(seq)
                answers[index] = None
                self._finish(task, (outcome.phase.value, outcome.exit_code, outcome.error), now, fatal=outcome.fatal)
            else:
                late.append(index)
        for index in late:
            seq, attempt, outcome = results[index]
            task = self.by_seq(seq)
            run = None if task is None else task.runs.get(attempt)
            if run is not None and run.record == (outcome.phase.value, outcome.exit_code, outcome.error):
                answers[index] = None
            elif task is None:
                answers[index] = (None, None)
            else:
                answers[index] = (task.attempt, None if task.agent is None else self.agents[task.agent].id)
                task.note("refused")
        return [answers[index] for index in range(len(results))]

    def _finish(
        self, task: ModelTask, record: tuple[str, int | None, str | None], now: Span, *, fatal: bool = False
    ) -> bool:
        """Close the running attempt; whether another follows."""
        outcome, exit_code, error = record
        n = task.failures
        if outcome == "succeeded":
            task.failures = 0
        elif outcome != "canceled":
            task.failures += 1
        phase, wait = self._next(task, outcome, n, fatal=fatal)
        if task.cancel_requested and (wait is not None or phase == "exhausted"):
            phase, wait = "canceled", None
        task.phase, task.exit_code, task.error = phase, exit_code, error
        task.agent, task.cancel_requested = None, False
        task.due = None if wait is None else now.plus(*wait)
        task.step("finished", now)
        run = task.runs[task.attempt]
        run.phase, run.exit_code, run.error = record
        run.finished = run.started.latest(task.updated)
        self._admit_next(task.slot, now)
        return wait is not None

    def _next(self, task: ModelTask, outcome: str, n: int, *, fatal: bool) -> tuple[str, tuple[int, int] | None]:
        """The phase that follows, and the bounds of the wait for the next start, None when there is none."""
        restart, retries = task.spec.restart, task.spec.max_retries
        if outcome == "canceled" or fatal:
            return outcome, None
        if outcome == "succeeded":
            interval = (restart.interval_ms or 0) * MS
            return "succeeded", (interval, interval) if restart.type == "always" else None
        if restart.type == "never":
            return outcome, None
        if retries is not None and task.failures > retries:
            return "exhausted", None
        return outcome, self._backoff(task.spec, n)

    def _backoff(self, spec: TaskSpec, n: int) -> tuple[int, int]:
        backoff = spec.backoff
        base = int(min(backoff.first_ms * backoff.factor**n, backoff.max_ms))
        match str(backoff.jitter.value):
            case "none":
                lo, hi = base, base
            case "full":
                lo, hi = 0, base
            case "equal":
                lo, hi = base // 2, base
            case _:
                lo, hi = backoff.first_ms, max(backoff.first_ms, min(3 * base, backoff.max_ms))
        return max(1, lo) * MS, max(1, hi) * MS

    def reap(self, grace_us: int, now: Span) -> set[tuple[str, int, str | None, str, bool]]:
        """Close silent agents and what nobody will finish. As `Reaped`: id, attempt, agent, phase, retry."""
        for agent in self.agents.values():
            if agent.closed is None and agent.expires.hi < now.lo:
                agent.closed, agent.state = now, "lost"
        return self._abandon([task for task in self.tasks.values() if self._is_abandoned(task, grace_us, now)], now)

    def _is_abandoned(self, task: ModelTask, grace_us: int, now: Span) -> bool:
        if not task.is_running:
            return False
        if task.agent is not None and self.agents[task.agent].closed is not None:
            return True
        run = task.runs[task.attempt]
        return run.started.hi + run.timeout_us < now.lo - grace_us

    def sign_off(self, seq: int, now: Span) -> set[tuple[str, int, str | None, str, bool]]:
        agent = self.agents[seq]
        if agent.closed is None:
            agent.closed, agent.state = now, "stopped"
        return self._abandon([task for task in self.tasks.values() if task.is_running and task.agent == seq], now)

    def _abandon(self, tasks: Iterable[ModelTask], now: Span) -> set[tuple[str, int, str | None, str, bool]]:
        closed = set()
        for task in tasks:
            agent = None if task.agent is None else self.agents[task.agent]
            record: tuple[str, int | None, str | None]
            if task.cancel_requested:
                record = "canceled", None, None
            elif agent is not None and agent.state == "lost":
                record = "failed", None, f"lease expired: agent {agent.id} stopped reporting"
            elif agent is not None and agent.state == "stopped":
                record = "failed", None, f"agent {agent.id} signed off"
            else:
                record = "timeout", None, f"timed out after {task.runs[task.attempt].timeout_us // MS}ms"
            retries = self._finish(task, record, now)
            closed.add((task.id, task.attempt, None if agent is None else agent.id, record[0], retries))
        return closed

    # --- retention --------------------------------------------------------------------------------

    def prune(
        self, tasks_us: int | None, runs_us: int | None, agents_us: int | None, now: Span
    ) -> tuple[int, int, int]:
        """Delete final tasks, ended runs and closed agents older than that; how many of each."""
        old = [
            task
            for task in self.tasks.values()
            if tasks_us is not None and task.is_final and task.updated.hi < now.lo - tasks_us
        ]
        for task in old:
            self._remove(task, now)
        runs = 0
        for task in self.tasks.values():
            for run in list(task.runs.values()):
                if runs_us is not None and run.finished is not None and run.finished.hi < now.lo - runs_us:
                    del task.runs[run.attempt]
                    runs += 1
        gone = [
            agent
            for agent in self.agents.values()
            if agents_us is not None
            and agent.state in {"lost", "stopped"}
            and agent.closed is not None
            and agent.closed.hi < now.lo - agents_us
            and not self.held(agent.seq)
        ]
        for agent in gone:
            agent.state = "gone"
        return len(old), runs, len(gone)
