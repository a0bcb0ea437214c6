"""Bring tasks into slots that others may own, and let in who waits first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy.exc import DBAPIError

from solti_store.errors import AlreadyExists, SlotBusy, SlotQueueFull, TransactionAborted
from solti_store.faults import is_owner_conflict
from solti_store.rules.slots import SUPERSEDED, Admission, admission
from solti_store.sql import slots as sql
from solti_store.sql.tasks import CANCEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.model import TaskId, TaskSpec
    from solti_store.sql.driver import Row

__all__ = [
    "Newcomer",
    "Place",
    "admit",
    "admit_orphans",
    "cancel",
    "judge",
    "lock",
    "look_again",
    "owner_of",
    "places",
    "rounds",
]

Newcomer: TypeAlias = "tuple[TaskId, TaskSpec, str]"
"""A task to be created, its spec, and that as JSON."""


@dataclass(slots=True)
class Slot:
    """A slot as it was found, and then as those leave it who enter.

    Attributes:
        owner: The owner's id, None when there is none.
        seq: The owner's incarnation, None as well while it is not written yet.
        runs: Whether the owner runs: then it can only be asked to leave.
        waiting: How many wait; as many as matter to the newcomers, if there are more.
    """

    owner: TaskId | str | None
    seq: int | None
    runs: bool
    waiting: int

    def enter(self, task_id: TaskId, spec: TaskSpec, *, max_waiting: int) -> Admission:
        """Judge one newcomer.

        Raises:
            SlotBusy: The slot has an owner, and the task does not wait for it.
            SlotQueueFull: As many as may wait for the slot already.
        """
        owned = self.owner is not None
        verdict = admission(spec.admission, owned=owned, waiting=self.waiting, max_waiting=max_waiting)
        match verdict:
            case Admission.OWNER:
                self.owner, self.seq, self.runs = task_id, None, False
            case Admission.QUEUED:
                self.waiting += 1
            case Admission.SUCCESSOR if self.runs:
                # In the place of whoever waits first, if anybody does.
                self.waiting = max(self.waiting, 1)
            case Admission.SUCCESSOR:
                self.owner, self.seq, self.waiting = task_id, None, max(self.waiting - 1, 0)
            case Admission.REFUSED_BUSY:
                raise SlotBusy(task_id, slot=spec.slot, owner=str(self.owner))
            case Admission.REFUSED_FULL:
                raise SlotQueueFull(task_id, slot=spec.slot, limit=max_waiting)
        return verdict


@dataclass(frozen=True, slots=True)
class Place:
    """Where a new task goes.

    Attributes:
        queued: Whether it waits.
        key: Its place among those that wait; None is behind all others.
    """

    queued: bool
    key: int | None = None


def rounds(newcomers: Sequence[Newcomer]) -> Iterator[list[Newcomer]]:
    """Cut a batch so that whoever replaces comes first of its slot in its round.

    What it replaces must be written by then, though it is of the same batch.
    """
    round_: list[Newcomer] = []
    seen: set[str] = set()
    for newcomer in newcomers:
        _, spec, _ = newcomer
        if spec.slot in seen and spec.admission is spec.admission.REPLACE:
            yield round_
            round_, seen = [], set()
        round_.append(newcomer)
        seen.add(spec.slot)
    if round_:
        yield round_


def judge(conn: Connection, newcomers: Sequence[Newcomer], *, max_waiting: int) -> None:
    """Refuse newcomers that would not be let in as things stand at this moment; locks nothing.

    A lock on an owner hides it from claims: a creator that is refused, and tries again, would keep it from running.

    Raises:
        AlreadyExists: An id is taken, whatever its slot.
        SlotBusy: A slot has an owner, and the task does not wait for it.
        SlotQueueFull: As many as may wait for a slot already.
    """
    slots = {row.slot: _slot(row) for row in _look(conn, newcomers, max_waiting)}
    for task_id, spec, _ in newcomers:
        slots[spec.slot].enter(task_id, spec, max_waiting=max_waiting)


def lock(conn: Connection, newcomers: Sequence[Newcomer], *, max_waiting: int) -> dict[str, Slot]:
    """Lock the owners of the newcomers' slots, and say what is in each; who has none may get one any moment.

    Raises:
        AlreadyExists: An id is taken.
    """
    locked: set[int] = set()
    while True:
        locked |= {row.seq for row in sql.LOCK_OWNERS.all(conn, {"slots": _names(newcomers)})}
        found = _look(conn, newcomers, max_waiting)
        # While one owner was waited for, another may have come after it. Its lock is out of order. To let go of the
        # others first would be in order, and might never end where owners come and go.
        if all(row.seq is None or row.seq in locked for row in found):
            return {row.slot: _slot(row) for row in found}


def _look(conn: Connection, newcomers: Sequence[Newcomer], max_waiting: int) -> list[Row]:
    # Each that replaces may take one away from those that wait, of which there may be more than may: another store,
    # or this one's last, had another limit.
    replacing = sum(spec.admission is spec.admission.REPLACE for _, spec, _ in newcomers)
    asked = {
        "slots": _names(newcomers),
        "limit": max_waiting + replacing,
        "ids": [str(task_id) for task_id, _, _ in newcomers],
    }
    found = sql.SELECT_SLOTS.all(conn, asked)
    if found[0].taken is not None:
        raise AlreadyExists(found[0].taken)
    return found


def _names(newcomers: Sequence[Newcomer]) -> list[str]:
    return list({str(spec.slot): None for _, spec, _ in newcomers})


def _slot(row: Row) -> Slot:
    return Slot(row.id, row.seq, row.phase == "running", row.waiting)


def look_again(conn: Connection) -> None:
    """After a slot had an owner that nobody saw coming: the next statement sees it, if one ever will.

    Raises:
        TransactionAborted: The transaction keeps to a snapshot in which there is no owner.
    """
    if sql.SELECT_ISOLATION.one(conn, {}).level != "read committed":
        raise TransactionAborted("the transaction lost against a concurrent one in the same slot; run it again")


def owner_of(conn: Connection, task_id: TaskId) -> Row | None:
    """The `slot` of a task, and the `owner` of that; None when there is no owner, or no such task."""
    return sql.SELECT_OWNER.one_or_none(conn, {"task_id": str(task_id)})


def places(
    conn: Connection,
    newcomers: Sequence[Newcomer],
    slots: dict[str, Slot],
    *,
    max_waiting: int,
    now: datetime | None,
) -> list[Place]:
    """Let one round of newcomers in, in order, where the transaction has the owners locked; who is replaced gives way.

    Raises:
        SlotBusy: A slot has an owner, and the task does not wait for it.
        SlotQueueFull: As many as may wait for a slot already.
    """
    result: list[Place] = []
    for task_id, spec, _ in newcomers:
        slot = slots[spec.slot]
        owner = slot.seq
        match slot.enter(task_id, spec, max_waiting=max_waiting):
            case Admission.SUCCESSOR:
                key = _supersede(conn, spec.slot, owner, task_id, now)
                result.append(Place(queued=True, key=key) if slot.runs else Place(queued=False))
            case verdict:
                result.append(Place(queued=verdict is Admission.QUEUED))
    return result


def _supersede(conn: Connection, name: str, owner: int | None, successor: TaskId, now: datetime | None) -> int | None:
    """Cancel the owner and who waits first; the place of the latter, None when nobody waits."""
    heads = sql.LOCK_HEADS.all(conn, {"slots": [name]})
    leaving = [(owner, None), *((head.seq, SUPERSEDED) for head in heads)]
    cancel(conn, leaving, successor=successor, now=now)
    return heads[0].queue_key if heads else None


def cancel(
    conn: Connection,
    leaving: Sequence[tuple[int | None, str | None]],
    *,
    successor: str | None = None,
    now: datetime | None = None,
) -> list[Row]:
    """Cancel tasks whose statuses are locked, or ask for it; the seq and phase of those that this changed."""
    return CANCEL.all(
        conn,
        {
            "seqs": [seq for seq, _ in leaving],
            "errors": [error for _, error in leaving],
            "successors": [successor] * len(leaving),
            "now": now,
        },
    )


def admit(conn: Connection, names: Sequence[str], *, now: datetime | None = None) -> bool:
    """Let in who waits first for each of these slots, whose owners the transaction has ended; whether anybody did."""
    return bool(names and sql.ADMIT.all(conn, {"slots": names, "now": now}))


def admit_orphans(conn: Connection, *, limit: int, now: datetime | None = None) -> None:
    """Let in who waits first for some of the slots that have lost their owner to a hand that went past the store."""
    if names := [row.slot for row in sql.SELECT_ORPHANED.all(conn, {"limit": limit})]:
        try:
            with conn.begin_nested():
                admit(conn, names, now=now)
        except DBAPIError as error:
            # In one of them somebody was quicker. The others are found again.
            if not is_owner_conflict(error):
                raise
