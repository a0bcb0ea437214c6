"""Checks a recorded history: a pure function over what a registry's clients saw and what its tables hold.

Two sources that know nothing of each other are held together: the acts that worker processes wrote down (what they
tried, what was accepted, what refused), and the registry's own events, rows and runs. The events are replayed against
the contract, slot by slot.

**In which order?** Not by event number: it is drawn before the commit, and a creation may draw it and then wait for
another's commit. Not by transaction id either, for the same reason. By the time of the commit, which the server keeps
with `track_commit_timestamp`, and which a transaction takes before it lets go of its locks: of two that meet at a row
or a unique index, the second commits later. Transactions that do not meet concern different tasks of different slots,
and their order is of no matter. Within one transaction the events have no order among themselves, and are judged as
one change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from chaos.plan import Plan, plan_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Act", "Event", "History", "RunRow", "TaskRow", "Violation", "check"]

#: The store forgets a task's runs past so many.
MAX_RUNS = 256
SUPERSEDED = "superseded_by_replace"

# In which order the changes of one transaction to one slot are judged: what ends makes room for what begins.
_ORDER = ("finished", "deleted", "cancelRequested", "specChanged", "admitted", "created", "started", "refused")


@dataclass(frozen=True)
class Event:
    """A row of `task_events`, with its transaction's commit time in microseconds."""

    number: int
    committed: int
    xid: int
    seq: int
    id: str
    type: str
    version: int
    phase: str
    attempt: int
    outcome: str | None = None
    exit_code: int | None = None
    error: str | None = None

    @property
    def record(self) -> tuple[str | None, int | None, str | None]:
        return self.outcome, self.exit_code, self.error


@dataclass(frozen=True)
class TaskRow:
    """A task as it is in the end."""

    seq: int
    id: str
    version: int
    phase: str
    attempt: int
    error: str | None
    owns: bool
    queue_key: int | None


@dataclass(frozen=True)
class RunRow:
    """A run as it is in the end, and whether it was taken from an agent that was not closed before."""

    seq: int
    attempt: int
    phase: str
    exit_code: int | None
    error: str | None
    agent: int | None
    taken_early: bool = False

    @property
    def record(self) -> tuple[str, int | None, str | None]:
        return self.phase, self.exit_code, self.error


@dataclass(frozen=True)
class Act:
    """What a client wrote down.

    Attributes:
        op: `create`, `claim`, `start` (a claim by hand), `finish` or `delete`.
        state: `try` before the call; then `ok` or `refused`, or nothing when the client never knew.
        id: The task.
        error: The refusal's name.
        seq: `claim`, `start`, `finish`: the incarnation.
        attempt: `claim`, `start`, `finish`: the attempt.
        agent: `claim`, `start`: the agent's incarnation, None of nobody.
        record: `finish`: the outcome, exit code and error that it reported.
        owner: `SlotBusy`: who it named.
    """

    op: str
    state: str
    id: str
    error: str | None = None
    seq: int = 0
    attempt: int = 0
    agent: int | None = 0
    record: tuple[str | None, int | None, str | None] = (None, None, None)
    owner: str | None = None


@dataclass(frozen=True)
class History:
    """All that was recorded.

    Attributes:
        events: In any order.
        tasks: In any order.
        runs: In any order.
        acts: In any order.
        max_slot_queue: How many tasks may wait for one slot.
        drained: Whether the registry was worked until there was nothing to do.
    """

    events: Sequence[Event]
    tasks: Sequence[TaskRow]
    runs: Sequence[RunRow]
    acts: Sequence[Act]
    max_slot_queue: int = 100
    drained: bool = True


@dataclass(frozen=True)
class Violation:
    """A rule that was broken, and how."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


@dataclass
class _Task:
    """A task during the replay."""

    id: str
    plan: Plan
    version: int = 0
    phase: str = "pending"
    attempt: int = 0
    failures: int = 0
    error: str | None = None
    running: bool = False
    waits: bool = False
    cancel_requested: bool = False
    deleted: bool = False
    runs: dict[int, tuple[str | None, int | None, str | None]] = field(default_factory=dict)


@dataclass
class _Slot:
    """A slot during the replay: incarnations."""

    owner: int | None = None
    queue: list[int] = field(default_factory=list)


def check(history: History) -> list[Violation]:
    """All violations; an empty list is what a correct registry has."""
    replay = _Replay(history)
    replay.run()
    return [*replay.violations, *_check_books(history, replay), *_check_acts(history, replay)]


class _Replay:
    def __init__(self, history: History) -> None:
        self.history = history
        self.tasks: dict[int, _Task] = {}
        self.slots: defaultdict[str, _Slot] = defaultdict(_Slot)
        self.violations: list[Violation] = []
        # Who starts a task by hand asks no policy.
        self.by_hand = {(act.seq, act.attempt) for act in history.acts if act.op == "start"}

    def run(self) -> None:
        ordered = sorted(self.history.events, key=lambda event: (event.committed, event.xid, event.number))
        for _, transaction in groupby(ordered, key=lambda event: (event.committed, event.xid)):
            of_slots: defaultdict[str, list[Event]] = defaultdict(list)
            for event in transaction:
                of_slots[plan_of(event.id).slot].append(event)
            for name, events in of_slots.items():
                self._transaction(name, sorted(events, key=lambda event: _ORDER.index(event.type)))

    def blame(self, rule: str, event: Event, message: str) -> None:
        self.violations.append(
            Violation(rule, f"{message} (event {event.number}: {event.type} of {event.id}, attempt {event.attempt})")
        )

    def _transaction(self, name: str, events: Sequence[Event]) -> None:
        slot = self.slots[name]
        before = _Slot(slot.owner, list(slot.queue))
        for event in events:
            if event.type == "created":
                self._created(slot, before, event)
                continue
            task = self.tasks.get(event.seq)
            if task is None or task.deleted:
                self.blame("lost", event, "of a task that was never created, or is deleted")
                continue
            self._step(task, event)
            if event.type in {"finished", "deleted"}:
                self._ended(slot, before, task, event, events)
            elif event.type == "admitted":
                self._admitted(slot, task, event)
            elif event.type == "started":
                self._started(slot, task, event)
            elif event.type == "cancelRequested":
                if not task.running or task.cancel_requested:
                    self.blame("cancel", event, "asked of what is not running, or a second time")
                task.cancel_requested = True
        if slot.queue and slot.owner is None:
            self.blame("stalled", events[-1], f"slot {name} has a queue and no owner")

    def _step(self, task: _Task, event: Event) -> None:
        """One committed change is one version; a deletion and a refusal are none."""
        step = event.type not in {"deleted", "refused"}
        if event.version != task.version + step:
            self.blame("version", event, f"version {event.version} after {task.version}")
        task.version = event.version

    # --- slots --------------------------------------------------------------------------------------

    def _own(self, slot: _Slot, event: Event) -> None:
        if slot.owner is not None and slot.owner != event.seq:
            self.blame("owner", event, f"the slot has an owner already, {self.tasks[slot.owner].id}")
        slot.owner = event.seq

    def _created(self, slot: _Slot, before: _Slot, event: Event) -> None:
        if event.seq in self.tasks:
            self.blame("lost", event, "created twice")
        task = self.tasks[event.seq] = _Task(event.id, plan_of(event.id), event.version, event.phase, event.attempt)
        if (event.version, event.phase, event.attempt) != (1, "pending", 0):
            self.blame("version", event, f"created at version {event.version}, {event.phase}")
        admission = task.plan.admission
        if before.owner is None:
            self._own(slot, event)
        elif admission == "dropIfRunning":
            self.blame("owner", event, f"admitted to a slot that is owned by {self.tasks[before.owner].id}")
        elif admission == "queue":
            if len(slot.queue) >= self.history.max_slot_queue:
                self.blame("queue", event, f"appended to a queue of {len(slot.queue)}")
            slot.queue.append(event.seq)
        else:
            self._replaced(slot, before, event)

    def _replaced(self, slot: _Slot, before: _Slot, event: Event) -> None:
        """The newcomer heads the queue, whoever did is superseded, and the owner is canceled."""
        if before.queue and before.queue[0] in slot.queue:
            self.blame("replace", event, f"{self.tasks[before.queue[0]].id} heads the queue still")
        if slot.owner is None:
            self._own(slot, event)
            return
        if not self.tasks[slot.owner].cancel_requested:
            self.blame("replace", event, f"the owner {self.tasks[slot.owner].id} was not canceled")
        slot.queue.insert(0, event.seq)

    def _admitted(self, slot: _Slot, task: _Task, event: Event) -> None:
        if event.seq not in slot.queue:
            self.blame("queue", event, "admitted, but not from the queue")
        elif slot.queue[0] != event.seq:
            self.blame("fifo", event, f"admitted before {self.tasks[slot.queue[0]].id}")
        slot.queue = [seq for seq in slot.queue if seq != event.seq]
        if task.attempt or task.phase != "pending":
            self.blame("queue", event, f"admitted when {task.phase}")
        self._own(slot, event)

    def _started(self, slot: _Slot, task: _Task, event: Event) -> None:
        if (event.seq, event.attempt) in self.by_hand:
            slot.queue = [seq for seq in slot.queue if seq != event.seq]
            self._own(slot, event)
        elif task.phase != "pending" and not task.waits and not task.running:
            self.blame("policy", event, f"started when {task.phase} and final")
        if slot.owner != event.seq:
            self.blame("owner", event, "started without the slot")
        if task.running:
            self.blame("attempts", event, f"started while attempt {task.attempt} runs")
        if event.attempt != task.attempt + 1:
            self.blame("attempts", event, f"attempt {event.attempt} after {task.attempt}")
        if event.attempt in task.runs:
            self.blame("attempts", event, "started twice")
        task.attempt, task.phase, task.error = event.attempt, "running", None
        task.running, task.waits = True, False
        task.runs[event.attempt] = ("running", None, None)

    def _ended(self, slot: _Slot, before: _Slot, task: _Task, event: Event, events: Sequence[Event]) -> None:
        if event.type == "deleted":
            task.deleted = True
        elif not task.running and event.outcome in {None, "canceled"}:
            self._canceled_at_once(slot, before, task, event, events)
        else:
            self._finished(task, event)
        if task.waits and not task.deleted:
            return
        slot.queue = [seq for seq in slot.queue if seq != event.seq]
        if slot.owner == event.seq:
            slot.owner = None

    def _canceled_at_once(self, slot: _Slot, before: _Slot, task: _Task, event: Event, events: Sequence[Event]) -> None:
        if task.phase != "pending" and not task.waits:
            self.blame("policy", event, f"ended when {task.phase} and final")
        if event.phase != "canceled" or event.attempt != task.attempt:
            self.blame("policy", event, f"ended {event.phase} without an attempt")
        # Of all that ends in the transaction of a replacing task, only the head of the queue and the owner may.
        replaced = any(one.type == "created" and plan_of(one.id).admission == "replace" for one in events)
        if replaced and event.seq not in {before.owner, *before.queue[:1]}:
            self.blame("replace", event, "displaced, but neither owner nor head")
        superseded = replaced and event.seq in before.queue
        task.phase, task.waits, task.error = event.phase, False, SUPERSEDED if superseded else None

    def _finished(self, task: _Task, event: Event) -> None:
        if not task.running or event.attempt != task.attempt:
            self.blame("attempts", event, f"an outcome for attempt {event.attempt} in {task.phase} {task.attempt}")
        if task.runs.get(event.attempt, ("running",))[0] != "running":
            self.blame("attempts", event, "a second outcome")
        phase, waits = follow(task, event.outcome, event.error)
        if event.phase != phase:
            self.blame("policy", event, f"{event.outcome} of {task.plan} leads to {phase}, not {event.phase}")
        task.runs[event.attempt] = event.record
        task.phase, task.error, task.waits = event.phase, event.error, waits
        task.running = task.cancel_requested = False


def follow(task: _Task, outcome: str | None, error: str | None) -> tuple[str, bool]:
    """The phase after an outcome, and whether the task waits for another attempt; counts the failures."""
    plan = task.plan
    if outcome == "succeeded":
        task.failures = 0
    elif outcome != "canceled":
        task.failures += 1
    again = {"always"} if outcome == "succeeded" else {"always", "onFailure"}
    if outcome == "canceled" or (error or "").startswith("fatal") or plan.restart not in again:
        return str(outcome), False
    if task.cancel_requested:
        return "canceled", False
    if outcome != "succeeded" and plan.retries is not None and task.failures > plan.retries:
        return "exhausted", False
    return str(outcome), True


# --- the tables against the replay -----------------------------------------------------------------


def _check_books(history: History, replay: _Replay) -> Iterable[Violation]:
    rows = {row.seq: row for row in history.tasks}
    for seq in rows.keys() - replay.tasks.keys():
        yield Violation("lost", f"{rows[seq].id} exists and was never created")
    for seq, task in replay.tasks.items():
        if (row := rows.get(seq)) is None:
            if not task.deleted:
                yield Violation("lost", f"{task.id} was created, not deleted, and is not there")
            continue
        if task.deleted:
            yield Violation("lost", f"{task.id} was deleted and is there")
        if (row.version, row.phase, row.attempt, row.error) != (task.version, task.phase, task.attempt, task.error):
            yield Violation("books", f"{row} is not what its events say: {task}")
        if history.drained and (row.owns or row.queue_key is not None or row.phase in {"pending", "running"}):
            yield Violation("stuck", f"{row} is not final")
    yield from _check_slots(history, replay)
    yield from _check_runs(history, replay)


def _check_slots(history: History, replay: _Replay) -> Iterable[Violation]:
    owners, queues = defaultdict(list), defaultdict(list)
    for row in history.tasks:
        if row.owns:
            owners[plan_of(row.id).slot].append(row.seq)
        if row.queue_key is not None:
            queues[plan_of(row.id).slot].append((row.queue_key, row.seq))
    for name in owners.keys() | queues.keys() | replay.slots.keys():
        slot = replay.slots.get(name, _Slot())
        if len(owners[name]) > 1:
            yield Violation("owner", f"slot {name} has the owners {owners[name]}")
        if owners[name] != ([] if slot.owner is None else [slot.owner]):
            yield Violation("books", f"slot {name} is owned by {owners[name]}, by its events {slot.owner}")
        if [seq for _, seq in sorted(queues[name])] != slot.queue:
            yield Violation("books", f"the queue of {name} is {sorted(queues[name])}, by its events {slot.queue}")


def _check_runs(history: History, replay: _Replay) -> Iterable[Violation]:
    found: defaultdict[int, dict[int, RunRow]] = defaultdict(dict)
    for run in history.runs:
        if run.attempt in found[run.seq]:
            yield Violation("attempts", f"{run} is there twice")
        if run.taken_early:
            yield Violation("fence", f"{run} was taken from a living agent")
        found[run.seq][run.attempt] = run
    for seq, task in replay.tasks.items():
        kept = {attempt: record for attempt, record in task.runs.items() if attempt > task.attempt - MAX_RUNS}
        runs = {attempt: run.record for attempt, run in found[seq].items()}
        if not task.deleted and runs != kept:
            yield Violation("attempts", f"{task.id} has the runs {runs}, by its events {kept}")


# --- what clients saw against the replay --------------------------------------------------------------


def _check_acts(history: History, replay: _Replay) -> Iterable[Violation]:
    runs = {(run.seq, run.attempt): run for run in history.runs}
    claims = [act for act in history.acts if act.op in {"claim", "start"}]
    for (seq, attempt), times in Counter((act.seq, act.attempt) for act in claims).items():
        if times > 1:
            yield Violation("claim", f"attempt {attempt} of {seq} was handed out {times} times")
    for act in claims:
        yield from _check_claim(act, replay, runs)
    yield from _check_reports([act for act in history.acts if act.op == "finish"], replay)
    yield from _check_creations(history)


def _check_reports(acts: Sequence[Act], replay: _Replay) -> Iterable[Violation]:
    reported: defaultdict[tuple[int, int], set[Any]] = defaultdict(set)
    for act in acts:
        reported[act.seq, act.attempt].add(act.record)
        if act.state != "try":
            yield from _check_report(act, replay)
    for seq, task in replay.tasks.items():
        for attempt, record in task.runs.items():
            if record[0] != "running" and record not in reported[seq, attempt] and not _of_the_store(record):
                yield Violation("fence", f"{task.id} has for attempt {attempt} {record}, which nobody reported")


def _of_the_store(record: tuple[str | None, int | None, str | None]) -> bool:
    """Whether the store itself writes such an outcome, for a worker that did not report."""
    outcome, exit_code, error = record
    own = {
        "canceled": error is None,
        "failed": (error or "").startswith(("lease expired: agent ", "agent ")),
        "timeout": (error or "").startswith("timed out after "),
    }
    return exit_code is None and own.get(str(outcome), False)


def _check_claim(act: Act, replay: _Replay, runs: Mapping[tuple[int, int], RunRow]) -> Iterable[Violation]:
    task = replay.tasks.get(act.seq)
    if task is None or act.attempt not in task.runs:
        yield Violation("claim", f"{act} is of an attempt that never started")
    run = runs.get((act.seq, act.attempt))
    if run is not None and run.agent != act.agent:
        yield Violation("claim", f"{act}, but the run is agent {run.agent}'s")


def _check_report(act: Act, replay: _Replay) -> Iterable[Violation]:
    """What was accepted is on record; what was refused is not, and something else is, or the task is gone."""
    task = replay.tasks.get(act.seq)
    record = None if task is None else task.runs.get(act.attempt)
    if task is None or record is None:
        yield Violation("fence", f"{act} is of an attempt that never started")
    elif act.state == "ok" and record != act.record:
        yield Violation("fence", f"{act} was accepted, and on record is {record}")
    elif act.state == "refused" and not task.deleted and record[0] == "running":
        yield Violation("fence", f"{act} was refused while the attempt runs")
    elif act.state == "refused" and not task.deleted and record == act.record:
        yield Violation("fence", f"{act} was refused and is on record")


def _check_creations(history: History) -> Iterable[Violation]:
    created = Counter(event.id for event in history.events if event.type == "created")
    deleted = Counter(event.id for event in history.events if event.type == "deleted")
    tried = {act.id for act in history.acts if act.op == "create"}
    slots = {event.id: plan_of(event.id).slot for event in history.events}
    for act in history.acts:
        if act.op == "create" and act.state == "ok" and created[act.id] != 1:
            yield Violation("lost", f"{act.id} was created, by {created[act.id]} events")
        if act.op == "create" and act.state == "refused":
            if created[act.id]:
                yield Violation("refusal", f"{act.id} was refused ({act.error}) and created")
            if act.error == "SlotBusy" and slots.get(act.owner or "") != plan_of(act.id).slot:
                yield Violation("refusal", f"{act.id} was refused for {act.owner}, which is none of its slot")
        if act.op == "delete" and act.state == "ok" and not deleted[act.id]:
            yield Violation("lost", f"{act.id} was deleted, without an event")
    for task_id in created.keys() - tried:
        yield Violation("lost", f"{task_id} was created by nobody")
