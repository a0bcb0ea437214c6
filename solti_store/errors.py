"""Every error the package raises, as one hierarchy.

An error carries its facts as attributes; the message is for people. Database errors are mapped by
SQLSTATE and constraint name in `solti_store.faults`, never by their text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "AgentLost",
    "AlreadyExists",
    "AlreadyRunning",
    "Blocker",
    "EmbeddedError",
    "FeedExpired",
    "FeedUnavailable",
    "Invalid",
    "InvalidCursor",
    "InvalidSelector",
    "LeaseLost",
    "LockTimeout",
    "ModelError",
    "NotFound",
    "OutcomeUnknown",
    "SchemaMismatch",
    "SlotBusy",
    "SlotQueueFull",
    "SoltiStoreError",
    "StoreUnavailable",
    "TransactionAborted",
    "UnknownAdmissionPolicy",
    "UnknownJitterPolicy",
    "UnknownRestartPolicy",
    "UnknownTaskPhase",
    "VersionConflict",
]


class SoltiStoreError(Exception):
    """The root: `except SoltiStoreError` catches everything this package raises on purpose."""


# --- values -------------------------------------------------------------------------------------


class ModelError(SoltiStoreError, ValueError):
    """A value breaks a rule of the model.

    Attributes:
        field: Dotted JSON path of the offending field (`spec.kind.subprocess.mode`), empty when the
            value as a whole is meant.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Invalid(ModelError):
    """A field's value is not allowed; the message starts with `invalid model: `."""


class InvalidSelector(Invalid):
    """A text is no label selector.

    Attributes:
        position: Where in the text, in characters from 0; the text's length when its end came too soon.
    """

    def __init__(self, message: str, *, position: int = 0) -> None:
        super().__init__(message)
        self.position = position


class UnknownAdmissionPolicy(ModelError):
    """A text form names no admission policy."""


class UnknownRestartPolicy(ModelError):
    """A text form names no restart policy."""


class UnknownJitterPolicy(ModelError):
    """A text form names no jitter policy."""


class UnknownTaskPhase(ModelError):
    """A text form names no task phase."""


class InvalidCursor(SoltiStoreError, ValueError):
    """A page cursor is malformed, of another version, or belongs to another query."""


# --- the registry -------------------------------------------------------------------------------


class NotFound(SoltiStoreError, LookupError):
    """No task has this id.

    Attributes:
        task_id: The id asked for.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task '{task_id}' does not exist")
        self.task_id = task_id

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.task_id,)


class AlreadyExists(SoltiStoreError):
    """A task of this id exists already; nothing was written.

    Attributes:
        task_id: The id that is taken; of several, the first in the order they were given.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task '{task_id}' already exists")
        self.task_id = task_id

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.task_id,)


class VersionConflict(SoltiStoreError):
    """The task changed since the caller read it; nothing was written.

    Attributes:
        task_id: The task.
        expected: The `resourceVersion` the caller based its write on.
        current: The `resourceVersion` the task has now.
    """

    def __init__(self, task_id: str, *, expected: int, current: int) -> None:
        super().__init__(
            f"task '{task_id}' is at resourceVersion {current}, not {expected}"
            if current != expected
            else f"task '{task_id}' is not the one that was read: it was deleted and created again"
        )
        self.task_id = task_id
        self.expected = expected
        self.current = current

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), expected=self.expected, current=self.current), (self.task_id,)


class AlreadyRunning(SoltiStoreError):
    """The task has a running attempt, so another cannot start.

    Attributes:
        task_id: The task.
        attempt: The attempt that runs.
    """

    def __init__(self, task_id: str, *, attempt: int) -> None:
        super().__init__(f"task '{task_id}' is running already (attempt {attempt})")
        self.task_id = task_id
        self.attempt = attempt

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), attempt=self.attempt), (self.task_id,)


class SlotBusy(SoltiStoreError):
    """The slot has an owner, and the task may not wait for it; nothing was written.

    Attributes:
        task_id: The task that was refused.
        slot: The slot.
        owner: The task that owns it, from its admission to its final phase.
    """

    def __init__(self, task_id: str, *, slot: str, owner: str) -> None:
        super().__init__(f"slot '{slot}' is taken by task '{owner}', so task '{task_id}' is refused")
        self.task_id = task_id
        self.slot = slot
        self.owner = owner

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), slot=self.slot, owner=self.owner), (self.task_id,)


class SlotQueueFull(SoltiStoreError):
    """As many tasks as may wait for the slot already; nothing was written.

    Attributes:
        task_id: The task that was refused.
        slot: The slot.
        limit: How many may wait.
    """

    def __init__(self, task_id: str, *, slot: str, limit: int) -> None:
        super().__init__(f"{limit} tasks wait for slot '{slot}' already, so task '{task_id}' is refused")
        self.task_id = task_id
        self.slot = slot
        self.limit = limit

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), slot=self.slot, limit=self.limit), (self.task_id,)


class LeaseLost(SoltiStoreError):
    """A worker wrote for an attempt that is no longer the running one; nothing was changed.

    Attributes:
        task_id: The task.
        attempt: The attempt the worker believed to hold.
        current_attempt: The task's latest attempt, None when the task (or its incarnation) is gone.
        holder: The agent that runs the task now, None when nobody does.
    """

    def __init__(self, task_id: str, *, attempt: int, current_attempt: int | None, holder: str | None) -> None:
        if current_attempt is None:
            now = "the task is gone"
        elif holder is None:
            now = f"attempt {current_attempt} is the latest, and nobody runs it"
        else:
            now = f"attempt {current_attempt} runs on agent '{holder}'"
        super().__init__(f"attempt {attempt} of task '{task_id}' is over: {now}")
        self.task_id = task_id
        self.attempt = attempt
        self.current_attempt = current_attempt
        self.holder = holder

    def __reduce__(self) -> tuple[object, ...]:
        again = partial(type(self), attempt=self.attempt, current_attempt=self.current_attempt, holder=self.holder)
        return again, (self.task_id,)


class AgentLost(SoltiStoreError):
    """This agent incarnation is closed: it was silent past its lease, or it signed off.

    Attributes:
        agent_id: The agent's name.
    """

    def __init__(self, agent_id: str) -> None:
        super().__init__(f"agent '{agent_id}' is no longer registered: its lease ended")
        self.agent_id = agent_id

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.agent_id,)


# --- the database -------------------------------------------------------------------------------


class StoreUnavailable(SoltiStoreError):
    """The database cannot be reached, or refuses to serve; nothing was committed."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session that holds a lock that somebody waits for.

    Attributes:
        pid: Its process id on the server.
        state: `active`, `idle in transaction` and so on; None where this role may not know.
        query: The start of what it runs, or ran last.
        seconds: How old its transaction is; None when it is in none.
    """

    pid: int
    state: str | None
    query: str | None
    seconds: float | None

    def __str__(self) -> str:
        age = "" if self.seconds is None else f", its transaction {self.seconds:.0f} s old"
        return f"pid {self.pid} ({self.state or 'unknown'}{age}: {' '.join((self.query or '').split())[:80]})"


class LockTimeout(StoreUnavailable):
    """A migration did not get a lock in the time it was given; the revision it was at is rolled back.

    Attributes:
        relation: The table, as far as it is known; of a wait for a row or a snapshot, what is waited for.
        waited: For how long, over all tries.
        blockers: Who held it when last seen.
    """

    def __init__(self, relation: str | None, *, waited: timedelta, blockers: tuple[Blocker, ...]) -> None:
        holders = " and ".join(map(str, blockers)) or "somebody who was not seen"
        super().__init__(
            f"no lock on {relation or 'a relation'} after {waited.total_seconds():.1f} s: it is held by {holders}"
        )
        self.relation = relation
        self.waited = waited
        self.blockers = blockers

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), waited=self.waited, blockers=self.blockers), (self.relation,)


class TransactionAborted(SoltiStoreError):
    """The caller's transaction lost against another one: roll it back and run it again from the start."""


class OutcomeUnknown(SoltiStoreError):
    """The connection broke during COMMIT, so the change may or may not be there: read before retrying."""


class SchemaMismatch(SoltiStoreError):
    """The database's schema is none that this code works on; the message names the command.

    Attributes:
        revision: The schema's newest revision; None when it has none, or is not known.
    """

    def __init__(self, message: str, *, revision: str | None = None) -> None:
        super().__init__(message)
        self.revision = revision

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), revision=self.revision), (str(self),)


class FeedExpired(SoltiStoreError):
    """The feed cannot go on from this token without a gap: list the tasks anew, and go on from that page's token."""


class FeedUnavailable(SoltiStoreError):
    """The feed cannot be read here: a standby does not know which transactions go on."""


class EmbeddedError(StoreUnavailable):
    """The private PostgreSQL server cannot be started or used."""
