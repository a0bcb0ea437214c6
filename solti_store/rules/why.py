"""Why a task does not run: one reason, in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from pydantic import Field

from solti_store.model import AgentId, LabelRequirement, Slot, TaskId, TaskPhase, Timestamp, Value, requirements_of
from solti_store.model._base import is_empty, is_none
from solti_store.model.scalars import U64, Text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from solti_store.model import RunnerSelector

__all__ = ["Facts", "Unfit", "Why", "WhyReason", "Worker", "why"]

# How many workers a message names; the value has them all.
_NAMED: Final = 5


class WhyReason(StrEnum):
    """What keeps a task from running, or that nothing does."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    RESTARTING = "restarting"
    NO_WORKER = "noWorker"
    DUE = "due"
    FINAL = "final"


class Unfit(Value):
    """A live worker that may not run a task.

    Attributes:
        agent: Its name.
        lacks: The first thing that it lacks: the kind, the requirement on its labels with what it has instead, or
            time, when it drains.
    """

    agent: AgentId
    lacks: Text


class Why(Value):
    """Why a task does not run, or that it does.

    Attributes:
        id: The task.
        reason: The reason.
        message: The same as a sentence.
        at: `queued`, `running`, `canceling`: since when; `restarting`, `due`: when it is due; `final`: when it ended.
        agent: Who runs it; None when it was started by hand.
        ahead: `due`: how many tasks of its kind and runner selector were due before it; `queued`: how many wait for
            its slot before it; counted up to 1000.
        slot: `queued`: its slot.
        owner: `queued`: the task that owns the slot.
        unfit: `noWorker`: the live workers, and what each lacks; at most 100.
    """

    id: TaskId
    reason: WhyReason
    message: Text
    at: Timestamp
    agent: AgentId | None = Field(default=None, exclude_if=is_none)
    ahead: U64 | None = Field(default=None, exclude_if=is_none)
    slot: Slot | None = Field(default=None, exclude_if=is_none)
    owner: TaskId | None = Field(default=None, exclude_if=is_none)
    unfit: tuple[Unfit, ...] = Field(default=(), exclude_if=is_empty)


@dataclass(frozen=True, slots=True)
class Worker:
    """A live worker: name, kinds and labels, and whether it takes on no more."""

    id: str
    kinds: Collection[str]
    labels: Mapping[str, str]
    drains: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """What a task waits for that does not own its slot.

    Attributes:
        slot: The slot.
        ahead: How many wait before it.
        owner: The task that owns the slot; None when the books are damaged.
        owner_due_at: When that may start, or start again; None while it runs.
        owner_started_at: When its running attempt began.
        owner_agent: Who runs it.
    """

    slot: str
    ahead: int
    owner: str | None
    owner_due_at: datetime | None
    owner_started_at: datetime | None
    owner_agent: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store knows of a task at one moment.

    Attributes:
        id: Its id.
        phase: Its phase.
        attempt: Its attempt.
        error: The error of that.
        updated_at: When it was changed last.
        due_at: When it may start; None when it may not.
        started_at: When the running attempt began.
        agent: Who runs it.
        cancel_requested_at: When somebody asked for it to be stopped.
        now: The database's time.
        kind: Its kind.
        selector: Which workers may run it.
        ahead: How many tasks of its route are due before it.
        queue: What it waits for before it is due; None when it does not.
        workers: The live workers.
    """

    id: str
    phase: TaskPhase
    attempt: int
    error: str | None
    updated_at: datetime
    due_at: datetime | None
    started_at: datetime | None
    agent: str | None
    cancel_requested_at: datetime | None
    now: datetime
    kind: str
    selector: RunnerSelector
    ahead: int
    queue: Queue | None
    workers: Sequence[Worker]


def why(facts: Facts) -> Why:
    """The reason, from the facts."""
    if facts.started_at is not None:
        return _running(facts, facts.started_at)
    if facts.queue is not None:
        return _queued(facts, facts.queue)
    if facts.due_at is None:
        attempts = "1 attempt" if facts.attempt == 1 else f"{facts.attempt} attempts"
        message = f"final: {facts.phase} at {_at(facts.updated_at)} after {attempts}{_error(facts)}"
        return _why(facts, WhyReason.FINAL, message, facts.updated_at)
    if facts.due_at > facts.now and facts.attempt:
        ended = f"attempt {facts.attempt} ended {facts.phase}{_error(facts)}"
        message = f"waits until {_at(facts.due_at)} for its restart: {ended}"
        return _why(facts, WhyReason.RESTARTING, message, facts.due_at)
    unfit = tuple(Unfit(agent=AgentId(one.id), lacks=lacks) for one in facts.workers if (lacks := _lacks(facts, one)))
    if len(unfit) == len(facts.workers):
        named = "; ".join(f"{one.agent} lacks {one.lacks}" for one in unfit[:_NAMED])
        others = f"; and {len(unfit) - _NAMED} others" if len(unfit) > _NAMED else ""
        message = f"no live worker may run it: {named}{others}" if unfit else "no worker is live"
        return _why(facts, WhyReason.NO_WORKER, message, facts.due_at, unfit=unfit)
    before = "it is the next of its kind and selector" if not facts.ahead else f"{facts.ahead} like it are before it"
    message = f"due since {_at(facts.due_at)}, waits for a free worker; {before}"
    return _why(facts, WhyReason.DUE, message, facts.due_at, ahead=facts.ahead)


def _queued(facts: Facts, queue: Queue) -> Why:
    before = "it is the next" if not queue.ahead else f"{queue.ahead} wait before it"
    message = f"queued behind {queue.owner} in slot {queue.slot}, which {_owner_state(facts, queue)}; {before}"
    return _why(
        facts,
        WhyReason.QUEUED,
        message,
        facts.updated_at,
        ahead=queue.ahead,
        slot=Slot(queue.slot),
        owner=None if queue.owner is None else TaskId(queue.owner),
    )


def _owner_state(facts: Facts, queue: Queue) -> str:
    if queue.owner_started_at is not None:
        return f"runs {_where(queue.owner_agent)} since {_at(queue.owner_started_at)}"
    if queue.owner_due_at is None:
        return "is nowhere to be found"
    if queue.owner_due_at > facts.now:
        return f"waits until {_at(queue.owner_due_at)} for its restart"
    return f"is due since {_at(queue.owner_due_at)}"


def _running(facts: Facts, started_at: datetime) -> Why:
    message = f"running {_where(facts.agent)} since {_at(started_at)}, attempt {facts.attempt}"
    agent = AgentId(facts.agent) if facts.agent else None
    if facts.cancel_requested_at is None:
        return _why(facts, WhyReason.RUNNING, message, started_at, agent=agent)
    message += f"; asked to stop at {_at(facts.cancel_requested_at)}"
    return _why(facts, WhyReason.CANCELING, message, started_at, agent=agent)


def _where(agent: str | None) -> str:
    return f"on {agent}" if agent else "by hand"


def _lacks(facts: Facts, worker: Worker) -> str | None:
    if facts.kind not in worker.kinds:
        return f"the kind {facts.kind}"
    for requirement in requirements_of(facts.selector):
        if not requirement.matches(worker.labels):
            return f"{requirement} ({_has(requirement, worker)})"
    return "time (it drains)" if worker.drains else None


def _has(requirement: LabelRequirement, worker: Worker) -> str:
    value = worker.labels.get(requirement.key)
    return f"no {requirement.key}" if value is None else f"has {requirement.key}={value}"


def _why(
    facts: Facts,
    reason: WhyReason,
    message: str,
    at: datetime,
    *,
    agent: AgentId | None = None,
    ahead: int | None = None,
    slot: Slot | None = None,
    owner: TaskId | None = None,
    unfit: tuple[Unfit, ...] = (),
) -> Why:
    return Why(
        id=TaskId(facts.id),
        reason=reason,
        message=message,
        at=Timestamp.from_datetime(at),
        agent=agent,
        ahead=ahead,
        slot=slot,
        owner=owner,
        unfit=unfit,
    )


def _error(facts: Facts) -> str:
    return "" if facts.error is None else f": {facts.error}"


def _at(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
