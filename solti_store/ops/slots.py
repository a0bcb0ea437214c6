"""Bring tasks into slots that others may own, and let in who waits first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from solti_store.errors import SlotBusy, SlotQueueFull, TransactionAborted
from solti_store.rules.slots import SUPERSEDED, Admission, admission
from solti_store.sql import slots as sql
from solti_store.sql.tasks import CANCEL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.model import TaskId, TaskSpec
    from solti_store.sql.driver import Row

__all__ = ["Newcomer", "Place", "admit", "cancel", "look", "look_again", "owner", "places", "rounds"]

Newcomer: TypeAlias = "tuple[TaskId, TaskSpec, str]"
"""A task to be created, its spec, and that as JSON."""


@dataclass(slots=True)
class Slot:
    """A slot as it is while the transaction holds its owner.

    Attributes:
        owner: The owner's id, None when there is none.
        seq: The owner's incarnation, None as well while it is not written yet.
        waiting: How many wait.
    """

    owner: TaskId | str | None
    seq: int | None
    waiting: int


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


def look(conn: Connection, names: Sequence[str], *, max_waiting: int) -> dict[str, Slot]:
    """Lock the owners of these slots, and say what is in each; who has none may get one any moment."""
    locked: set[int] = set()
    while True:
        locked |= {row.seq for row in sql.LOCK_OWNERS.all(conn, {"slots": names})}
        found = sql.SELECT_SLOTS.all(conn, {"slots": names, "limit": max_waiting})
        # While one owner was waited for, another may have come after it.
        if all(row.seq is None or row.seq in locked for row in found):
            return {row.slot: Slot(row.id, row.seq, row.waiting) for row in found}


def look_again(conn: Connection) -> None:
    """After a slot had an owner that nobody saw coming: the next statement sees it, if one ever will.

    Raises:
        TransactionAborted: The transaction keeps to a snapshot in which there is no owner.
    """
    if sql.SELECT_ISOLATION.one(conn, {}).level != "read committed":
        raise TransactionAborted("the transaction lost against a concurrent one in the same slot; run it again")


def owner(conn: Connection, name: str) -> str | None:
    """The id of the task that owns the slot."""
    found: str | None = sql.SELECT_SLOTS.one(conn, {"slots": [name], "limit": 0}).id
    return found


def places(
    conn: Connection,
    newcomers: Sequence[Newcomer],
    slots: dict[str, Slot],
    *,
    max_waiting: int,
    now: datetime | None,
) -> list[Place]:
    """Judge one round of newcomers, in order; who is replaced gives way at once.

    Raises:
        SlotBusy: A slot has an owner, and the task does not wait for it.
        SlotQueueFull: As many as may wait for a slot already.
    """
    result: list[Place] = []
    for task_id, spec, _ in newcomers:
        slot = slots[spec.slot]
        owned = slot.owner is not None
        match admission(spec.admission, owned=owned, waiting=slot.waiting, max_waiting=max_waiting):
            case Admission.OWNER:
                slot.owner = task_id
                result.append(Place(queued=False))
            case Admission.QUEUED:
                slot.waiting += 1
                result.append(Place(queued=True))
            case Admission.SUCCESSOR:
                result.append(_succeed(conn, task_id, spec.slot, slot, now))
            case Admission.REFUSED_BUSY:
                raise SlotBusy(task_id, slot=spec.slot, owner=str(slot.owner))
            case Admission.REFUSED_FULL:
                raise SlotQueueFull(task_id, slot=spec.slot, limit=max_waiting)
    return result


def _succeed(conn: Connection, task_id: TaskId, name: str, slot: Slot, now: datetime | None) -> Place:
    """Cancel the owner and who waits first, and take the place that this leaves."""
    heads = sql.LOCK_HEADS.all(conn, {"slots": [name]})
    leaving = [(slot.seq, None), *((head.seq, SUPERSEDED) for head in heads)]
    canceled = cancel(conn, leaving, successor=task_id, now=now)
    slot.waiting -= len(heads)
    if any(row.seq == slot.seq and row.phase == "canceled" for row in canceled):
        slot.owner, slot.seq = task_id, None
        return Place(queued=False)
    slot.waiting += 1
    return Place(queued=True, key=heads[0].queue_key if heads else None)


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


def admit(conn: Connection, names: Sequence[str], *, now: datetime | None = None) -> None:
    """Let in who waits first for each of these slots, whose owners the transaction has ended."""
    if names:
        sql.ADMIT.all(conn, {"slots": names, "now": now})
