"""Statements on slots: lock owners, look at queues, end what gives way, admit the next.

The status row of a slot's owner is the slot's lock. Whoever joins the queue holds it, and so does whoever makes the
owner leave: neither can miss the other. Slots never wait for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Text, bindparam, cast, column, func, literal, select, true, update

from solti_store.sql.driver import Prepared
from solti_store.sql.events import CHANGED, event
from solti_store.sql.tables import LATEST, OWNER, task_status, tasks
from solti_store.sql.types import array_param

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

__all__ = [
    "ADMIT",
    "LOCK_HEADS",
    "LOCK_OWNERS",
    "SELECT_BLOCKED",
    "SELECT_ISOLATION",
    "SELECT_ORPHANED",
    "SELECT_OWNER",
    "SELECT_SLOTS",
    "is_waited_for",
]

_slots = array_param("slots", "text")
_slot = func.unnest(_slots).table_valued(column("slot", Text), name="asked").render_derived()
_waits = task_status.c.queue_key.is_not(None)

#: Locks the owners of `slots`, in order of seq as everybody who locks several.
LOCK_OWNERS = Prepared(
    select(task_status.c.seq)
    .where(task_status.c.slot == func.any(_slots), OWNER)
    .order_by(task_status.c.seq)
    .with_for_update()
)

_owner = (
    select(task_status.c.seq, task_status.c.phase, tasks.c.id)
    .join(tasks, tasks.c.seq == task_status.c.seq)
    .where(task_status.c.slot == _slot.c.slot, OWNER)
    # There is but one, and for one it takes the index: joined as a whole, by a plan from when the table was empty, it
    # reads all owners there are (100,000: 140 ms).
    .limit(1)
    .lateral("owner")
)
_place = (
    select(task_status.c.seq)
    .where(task_status.c.slot == _slot.c.slot, _waits)
    .limit(bindparam("limit", type_=BigInteger()))
    .correlate(_slot)
    .lateral("place")
)
_waiting = select(func.count().label("waiting")).select_from(_place).lateral("line")

_newcomer = (
    func.unnest(array_param("ids", "text"))
    .table_valued(column("id", Text), with_ordinality="ord", name="newcomer")
    .render_derived()
)
_namesake = select(tasks.c.seq).where(tasks.c.id == _newcomer.c.id).limit(1).scalar_subquery()
_taken = select(_newcomer.c.id).where(_namesake.is_not(None)).order_by(_newcomer.c.ord).limit(1).scalar_subquery()

#: For each of `slots` its owner, all NULL if it has none, and how many wait for it, counted up to `limit`; and the
#: first of `ids` that is taken. All of one moment: else a task that was deleted and created again in between would be
#: in its own way. Locks nothing. Where the owners have to be locked, a statement of its own: one that waits for a lock
#: has the queue from before the wait.
SELECT_SLOTS = Prepared(
    select(
        _slot.c.slot, _owner.c.seq, _owner.c.phase, _owner.c.id, _waiting.c.waiting, _taken.label("taken")
    ).select_from(_slot.outerjoin(_owner, true()).join(_waiting, true()))
)

_of = tasks.alias("of")

#: The `slot` of the task `task_id`, and who owns it; no row when nobody does. Locks nothing.
SELECT_OWNER = Prepared(
    select(task_status.c.slot, tasks.c.id.label("owner"))
    .join(tasks, tasks.c.seq == task_status.c.seq)
    .where(
        task_status.c.slot
        == select(_of.c.slot).where(_of.c.id == bindparam("task_id", type_=Text())).scalar_subquery(),
        OWNER,
    )
    .limit(1)
)

#: The isolation level of the transaction.
SELECT_ISOLATION = Prepared(select(func.current_setting("transaction_isolation").label("level")))

_head = (
    select(task_status.c.seq, task_status.c.queue_key)
    .where(task_status.c.slot == _slot.c.slot, _waits)
    .order_by(task_status.c.queue_key)
    .limit(1)
    # One that is canceled or deleted just then is waited for, and passed over for the one behind it.
    .with_for_update()
    .lateral("head")
)

#: Locks who waits first in each of `slots`, whose owners the transaction has locked.
LOCK_HEADS = Prepared(select(_slot.c.slot, _head.c.seq, _head.c.queue_key).select_from(_slot.join(_head, true())))

_next = select(_head.c.seq).select_from(_slot.join(_head, true())).cte("next")
_admitted = (
    update(task_status)
    .where(task_status.c.seq == _next.c.seq, tasks.c.seq == _next.c.seq, _waits)
    .values(
        resource_version=task_status.c.resource_version + 1,
        updated_at=LATEST,
        due_at=LATEST,
        queue_key=None,
    )
    .returning(*CHANGED)
    .cte("admitted")
)

#: Makes who waits first the owner of each of `slots`, whose last owners this transaction has ended.
ADMIT = Prepared(select(_admitted.c.seq).add_cte(event(_admitted, "admitted", before="pending")))

_owned = (
    func.unnest(array_param("seqs", "bigint")).table_valued(column("seq", BigInteger), name="owned").render_derived()
)
_leaver = task_status.alias("leaver")
_first = (
    select(task_status.c.seq)
    .where(task_status.c.slot == _leaver.c.slot, _waits)
    .order_by(task_status.c.queue_key)
    .limit(1)
    .correlate(_leaver)
    .lateral("first")
)
_free = (
    select(task_status.c.seq)
    # Said again: one that was canceled just then is not who waits first, and who does may be held.
    .where(task_status.c.seq == _first.c.seq, _waits)
    .with_for_update(skip_locked=True)
    .lateral("free")
)

#: Those owners among `seqs`, whom the transaction has locked, behind whom somebody else has locked who waits first; the
#: others of those it locks itself.
SELECT_BLOCKED = Prepared(
    select(_leaver.c.seq)
    .select_from(_owned.join(_leaver, _leaver.c.seq == _owned.c.seq).join(_first, true()).outerjoin(_free, true()))
    .where(_free.c.seq.is_(None))
)

_other = task_status.alias("other")


def is_waited_for(slot: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether anybody waits for the slot: a look at an index, which spares those that nobody waits for `ADMIT`."""
    first = select(_other.c.seq).where(_other.c.slot == slot, _other.c.queue_key.is_not(None)).limit(1)
    # Not EXISTS, for which the planner may read all that wait for any slot.
    return first.scalar_subquery().is_not(None)


_pending, _queued = task_status.alias("pending"), task_status.alias("queued")
_is_pending = _pending.c.phase == "pending"
_lowest, _highest = func.min(_pending.c.seq), func.max(_pending.c.seq)
_somewhere = select(cast(_lowest + func.random() * (_highest - _lowest), BigInteger)).where(_is_pending)
_random_slot = (
    select(_pending.c.slot)
    .where(_is_pending, _pending.c.seq >= _somewhere.scalar_subquery())
    .order_by(_pending.c.seq)
    .limit(1)
)


def _first_queue(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    queues = select(_queued.c.slot).where(condition, _queued.c.queue_key.is_not(None))
    return queues.order_by(_queued.c.slot).limit(1).scalar_subquery()


_queue = select(
    _first_queue(_queued.c.slot >= _random_slot.scalar_subquery()).label("slot"), literal(1).label("number")
).cte("queue", recursive=True)
_queue = _queue.union_all(
    select(_first_queue(_queued.c.slot > _queue.c.slot), _queue.c.number + 1).where(
        _queue.c.slot.is_not(None), _queue.c.number < bindparam("limit", type_=BigInteger())
    )
)
_owner_of_queue = select(task_status.c.seq).where(task_status.c.slot == _queue.c.slot, OWNER).limit(1)

#: Slots that somebody waits for and nobody owns, of `limit` with a queue, from a random one on: a step of the index
#: each, however many wait for it.
SELECT_ORPHANED = Prepared(
    # A subquery for each and not an anti-join, for which the planner may read all owners there are.
    select(_queue.c.slot).where(_queue.c.slot.is_not(None), _owner_of_queue.scalar_subquery().is_(None))
)
