"""What ails the work: slots that do not move, work that nobody may do, workers that are gone, what is kept too long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from solti_store.model import AgentState
from solti_store.rules.doctor import OPEN_STORE, Code, Finding, Severity, amount, finding, span
from solti_store.rules.routing import serves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from solti_store.model import AgentStatus
    from solti_store.rules.doctor import DoctorLimits

__all__ = [
    "PRUNE",
    "REAP",
    "Backlog",
    "FeedHead",
    "Overdue",
    "Queue",
    "agents",
    "feed",
    "future",
    "label_index",
    "overdue",
    "queues",
    "retention",
    "routes",
]

REAP: Final = f'{OPEN_STORE}.reap()"'
PRUNE: Final = f'{OPEN_STORE}.prune()"'
INDEX: Final = f'{OPEN_STORE}.index_labels()"'
_COUNTED: Final = 100
_OLDEST_WRITER: Final = (
    "SELECT pid FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY age(backend_xid) DESC LIMIT 1"
)
_OVERFULL: Final = 2
# A worker that was killed and started again a few times is nothing to tell of.
_SPARE: Final = 10


# --- slots --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Queue:
    """A slot in which tasks wait, and what its owner does.

    Attributes:
        slot: The slot.
        head: The task that waits first.
        owner: The task that owns it; None when there is none.
        due_seconds: For how long that has been due; negative while it is not yet. None while it runs.
        over_seconds: How long it is past its attempt's deadline; None while it does not run.
        agent: Who runs it.
        silent_seconds: How long that agent is past its lease; None when it is alive, or there is none.
        is_gone: Whether the agent was closed, and the attempt is still there.
    """

    slot: str
    head: str
    owner: str | None
    due_seconds: float | None
    over_seconds: float | None
    agent: str | None
    silent_seconds: float | None
    is_gone: bool


def queues(found: Iterable[Queue], limits: DoctorLimits, why: Callable[[str], str]) -> Iterator[Finding]:
    """Those that do not move; `why` says what keeps a task from running."""
    late, over = limits.late.total_seconds(), limits.overdue.total_seconds()
    for one in found:
        subject = f"slot {one.slot}"
        if one.owner is None:
            yield finding(
                Code.SLOT_OWNERLESS,
                Severity.ERROR,
                subject,
                f"'{one.head}' waits first, and nobody owns the slot",
                REAP,
            )
            continue
        owner = f"its owner '{one.owner}'"
        stalled, remedy = None, REAP
        if one.is_gone:
            stalled = f"{owner} runs on '{one.agent}', which was closed"
        elif one.silent_seconds is not None and one.silent_seconds >= over:
            stalled = (
                f"{owner} runs on '{one.agent}', which has been silent for {span(one.silent_seconds)} past its lease"
            )
        elif one.over_seconds is not None and one.over_seconds >= over:
            stalled = f"{owner} is {span(one.over_seconds)} past its deadline"
        elif one.due_seconds is not None and one.due_seconds >= late:
            stalled = f"{owner} has been due for {span(one.due_seconds)}: {why(one.owner)}"
            remedy = (
                f"solti-store why {one.owner}  # start a worker that may run it, or: solti-store cancel {one.owner}"
            )
        elif one.due_seconds is not None and -one.due_seconds >= limits.far.total_seconds():
            stalled = f"{owner} does not start again for {span(-one.due_seconds)}"
            remedy = f"solti-store cancel {one.owner}  # if that is not meant"
        if stalled is not None:
            yield finding(
                Code.SLOT_STALLED, Severity.WARNING, subject, f"'{one.head}' waits first, and {stalled}", remedy
            )


@dataclass(frozen=True, slots=True)
class Overdue:
    """An attempt past its deadline by so many seconds."""

    task: str
    attempt: int
    agent: str | None
    seconds: float


def overdue(found: Iterable[Overdue], limits: DoctorLimits) -> Iterator[Finding]:
    """Attempts that nobody has ended."""
    limit = limits.overdue.total_seconds()
    for one in found:
        if one.seconds >= limit:
            yield finding(
                Code.ATTEMPT_OVERDUE,
                amount(one.seconds, limit),
                f"task {one.task}",
                f"attempt {one.attempt} on '{one.agent or 'nobody'}' is {span(one.seconds)} past its deadline",
                REAP,
            )


# --- routes and agents --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is due of one kind and runner selector.

    Attributes:
        kind: The kind; None when the route is missing.
        selector: The selector's JSON.
        task: The task that is due longest.
        seconds: For how long.
        waiting: How many are due, counted to 100.
    """

    kind: str | None
    selector: str | None
    task: str
    seconds: float
    waiting: int


def routes(
    found: Iterable[Backlog], workers: Sequence[AgentStatus], limits: DoctorLimits, why: Callable[[str], str]
) -> Iterator[Finding]:
    """Work that nobody may do, or that nobody gets to."""
    live = [one for one in workers if one.state is AgentState.ACTIVE]
    limit = limits.late.total_seconds()
    for one in found:
        if one.seconds < limit:
            continue
        some = f"{one.waiting}{'' if one.waiting < _COUNTED else ' or more'}"
        subject = f"{one.kind or 'unknown kind'} {one.selector or ''}"
        if one.kind is not None and any(_may_run(one, worker) for worker in live):
            yield finding(
                Code.WORK_LATE,
                Severity.WARNING,
                subject,
                f"{some} due, '{one.task}' for {span(one.seconds)}, though live workers may run it",
                "solti-store work --until-idle  # or as many more workers, for good",
            )
        else:
            yield finding(
                Code.ROUTE_UNSERVED,
                Severity.ERROR,
                subject,
                f"{some} due, '{one.task}' for {span(one.seconds)}: {why(one.task)}",
                f"solti-store work{_for(one)}  # or change the tasks, or cancel them",
            )


def _may_run(one: Backlog, worker: AgentStatus) -> bool:
    try:
        return serves(worker.kinds, worker.labels, kind=one.kind or "", selector=one.selector or "{}")
    except ValueError:
        # Of a newer version; for its workers.
        return False


def _for(one: Backlog) -> str:
    kinds = f" --kinds {one.kind}" if one.kind not in (None, "subprocess") else ""
    return kinds if one.selector in (None, "{}") else f"{kinds} --label KEY=VALUE"


def agents(found: Iterable[AgentStatus], limits: DoctorLimits, *, now_ms: float) -> Iterator[Finding]:
    """Workers that are gone, done, or overfull."""
    limit = limits.overdue.total_seconds()
    for one in found:
        silent = (now_ms - one.heartbeat_at - one.lease) / 1000
        if one.state is AgentState.SILENT and silent >= limit:
            yield finding(
                Code.AGENT_SILENT,
                Severity.ERROR if one.running else Severity.WARNING,
                f"agent {one.id}",
                f"silent for {span(silent)} past its lease, with {one.running} running attempts that nobody has reaped",
                REAP,
            )
        if one.state is AgentState.DRAINING and not one.running:
            yield finding(
                Code.AGENT_DRAINED,
                Severity.NOTE,
                f"agent {one.id}",
                f"drains, runs nothing, and has been there for {span((now_ms - one.registered_at) / 1000)}",
                f"solti-store agents  # then end the process of {one.id}, or start it again",
            )
        if one.capacity is not None and one.running > _OVERFULL * one.capacity and one.running > one.capacity + _SPARE:
            yield finding(
                Code.AGENT_OVERFULL,
                Severity.WARNING,
                f"agent {one.id}",
                f"has {one.running} running attempts, and says that it takes on {one.capacity}",
                f"solti-store drain {one.id}  # and claim no more than is run at once",
            )


# --- time, feed, retention, label index ---------------------------------------------------------


def future(found: Iterable[tuple[str, str, float, str]], limits: DoctorLimits) -> Iterator[Finding]:
    """Rows that are dated in the future: table, what of it, by how many seconds at most, and the SQL that mends it."""
    for table, what, seconds, remedy in found:
        if seconds >= limits.skew.total_seconds():
            yield finding(
                Code.CLOCK_FUTURE,
                Severity.WARNING,
                table,
                f"{what} is up to {span(seconds)} ahead of the clock",
                remedy,
            )


@dataclass(frozen=True, slots=True)
class FeedHead:
    """The oldest events, up to a thousand.

    Attributes:
        old: How many of them are older than they are kept.
        held: How many of these a transaction holds that may still be going on.
        ahead: How many are dated in the future.
        oldest_seconds: How old the oldest is; None when there are none.
        live: How many workers are alive.
    """

    old: int
    held: int
    ahead: int
    oldest_seconds: float | None
    live: int


def feed(found: FeedHead, limits: DoctorLimits) -> Iterator[Finding]:
    """Whether events are kept longer than they should be, and why."""
    if not found.old or found.oldest_seconds is None:
        return
    if found.held:
        why, remedy = (
            f"{found.held} of them came after the start of a transaction that goes on",
            f"SELECT pg_terminate_backend(pid) FROM ({_OLDEST_WRITER}) AS oldest;  -- workers prune then",  # noqa: S608 - for people to run
        )
    elif found.ahead:
        why, remedy = f"{found.ahead} before or among them are dated in the future", PRUNE
    elif not found.live:
        why, remedy = "no worker is alive to prune", PRUNE
    else:
        why, remedy = "no worker prunes: they run with --retention forever, or cannot keep up", PRUNE
    yield finding(
        Code.FEED_LAG,
        Severity.WARNING,
        "task_events",
        f"the oldest event is {span(found.oldest_seconds)} old, where they are kept"
        f" {span(limits.events.total_seconds())} at most: {why}",
        remedy,
    )


def retention(found: Iterable[tuple[str, float]], limits: DoctorLimits) -> Iterator[Finding]:
    """What is over and older than it is kept, if retention is the default: what, and for how many seconds."""
    for what, seconds in found:
        if seconds >= limits.history.total_seconds():
            yield finding(
                Code.RETENTION_LAG,
                Severity.NOTE,
                what,
                f"the oldest is over for {span(seconds)}, by default {span(limits.history.total_seconds())} at most",
                f"{PRUNE}  # or nothing, if workers run with --retention forever on purpose",
            )


def label_index(*, is_valid: bool, unknown: int, most: int) -> Iterator[Finding]:
    """Whether the index of labels has fallen behind; `most` is what listings put up with."""
    if not is_valid or unknown > most:
        yield finding(
            Code.LABEL_INDEX_LAG,
            Severity.WARNING,
            "label_index",
            f"it does not know {most} tasks or more"
            if is_valid
            else "it is of another database: this one was restored",
            INDEX,
        )
