"""Create, read, replace, cancel and delete tasks."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from solti_store.errors import AlreadyExists, Invalid, NotFound, VersionConflict
from solti_store.faults import is_owner_conflict
from solti_store.model import TaskId, Timestamp
from solti_store.ops import arguments, rows, slots
from solti_store.ops.waking import wake_if_possible
from solti_store.rules.routing import route_of
from solti_store.sql import tasks as sql
from solti_store.sql.driver import is_autocommit
from solti_store.sql.runs import SELECT_RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.model import Task, TaskRun, TaskSpec
    from solti_store.sql.driver import Prepared, Row

__all__ = ["act", "cancel", "create", "create_many", "delete", "enter", "get", "read", "replace", "runs"]

# A batch goes out in pieces of at most so many rows and, roughly, bytes: the server holds a parameter whole.
_PIECE_ROWS = 20_000
_PIECE_BYTES = 32 * 1024 * 1024


def create(
    conn: Connection, task_id: str, spec: TaskSpec, *, max_slot_queue: int, now: datetime | None = None
) -> Task | None:
    """Create one task as the owner of its slot, due at once; None, and nothing, when it has to wait or to replace."""
    checked = TaskId(task_id)
    route = route_of(spec)
    text = spec.to_json()
    try:
        # A savepoint costs two round trips; a statement that is its own transaction needs none.
        with nullcontext() if is_autocommit(conn) else conn.begin_nested():
            row = sql.INSERT.one_or_none(
                conn,
                {
                    "task_id": str(checked),
                    "task_spec": text,
                    "route_id": route.id,
                    "task_kind": route.kind,
                    "route_selector": route.selector,
                    "task_slot": str(spec.slot),
                    "now": now,
                },
            )
    except DBAPIError as error:
        if is_owner_conflict(error):
            return None
        raise
    if row is not None:
        if row.somebody_waits and is_autocommit(conn):
            wake_if_possible(conn)
        return rows.new_task(checked, spec, Timestamp.from_datetime(row.created_at))
    slots.judge(conn, [(checked, spec, text)], max_waiting=max_slot_queue)
    return None


def enter(conn: Connection, task_id: str, spec: TaskSpec, *, max_slot_queue: int, now: datetime | None = None) -> Task:
    """Create one task that `create` did not: it waits for its slot, or replaces who owns it."""
    checked = TaskId(task_id)
    (created_at,) = _by_their_slots(conn, [(checked, spec, spec.to_json())], max_slot_queue, now)
    return rows.new_task(checked, spec, created_at)


def create_many(
    conn: Connection, tasks: Sequence[tuple[str, TaskSpec]], *, max_slot_queue: int, now: datetime | None = None
) -> Sequence[Task]:
    """Create all of `tasks`, in this order, or none of them."""
    given = [(TaskId(task_id), spec) for task_id, spec in tasks]
    _refuse_repeats(given)
    created_at: list[Timestamp] = []
    are_owners = True
    changed: list[Row] = []
    # A savepoint, so that in a caller's transaction a refused batch leaves nothing behind either.
    with conn.begin_nested():
        for piece in _pieces(given):
            if owners := _as_owners(conn, piece, now):
                created_at += owners
            else:
                are_owners = False
                slots.judge(conn, piece, max_waiting=max_slot_queue)
                created_at += _by_their_slots(conn, piece, max_slot_queue, now)
        if not are_owners and _may_replace_its_own(given):
            changed = sql.SELECT_CHANGED.all(conn, {"ids": [str(task_id) for task_id, _ in given]})
    return rows.NewTasks(given, created_at, {row.id: rows.task(row) for row in changed})


def _may_replace_its_own(tasks: Sequence[tuple[TaskId, TaskSpec]]) -> bool:
    """Whether a task may have replaced another of its batch, which then is not as it was created."""
    seen: set[str] = set()
    for _, spec in tasks:
        if spec.slot in seen and spec.admission is spec.admission.REPLACE:
            return True
        seen.add(spec.slot)
    return False


def _as_owners(conn: Connection, piece: list[slots.Newcomer], now: datetime | None) -> list[Timestamp] | None:
    """Create a piece as owners of as many slots; None, and nothing, when a slot or an id is taken."""
    if len({spec.slot for _, spec, _ in piece}) < len(piece):
        return None
    try:
        with conn.begin_nested() as savepoint:
            found = sql.INSERT_MANY.all(conn, _parameters(piece, now))
            if len(found) == len(piece):
                return _when_created(found)
            savepoint.rollback()
    except DBAPIError as error:
        if not is_owner_conflict(error):
            raise
    return None


def _by_their_slots(
    conn: Connection, piece: list[slots.Newcomer], max_waiting: int, now: datetime | None
) -> list[Timestamp]:
    """Create a piece with regard to who owns the slots, and who waits for them."""
    while True:
        try:
            with conn.begin_nested():
                # All owners before the first round: in one order, as everybody who locks several.
                found = slots.lock(conn, piece, max_waiting=max_waiting)
                return [
                    when
                    for newcomers in slots.rounds(piece)
                    for when in _let_in(conn, newcomers, found, max_waiting, now)
                ]
        except DBAPIError as error:
            if not is_owner_conflict(error):
                raise
        # A slot that was free has an owner now.
        slots.look_again(conn)
        slots.judge(conn, piece, max_waiting=max_waiting)


def _let_in(
    conn: Connection,
    newcomers: list[slots.Newcomer],
    found: dict[str, slots.Slot],
    max_waiting: int,
    now: datetime | None,
) -> list[Timestamp]:
    places = slots.places(conn, newcomers, found, max_waiting=max_waiting, now=now)
    joined = {found[spec.slot].seq for _, spec, _ in newcomers} - {None}
    entered = sql.INSERT_JUDGED.all(
        conn,
        _parameters(newcomers, now)
        | {
            "queued": [place.queued for place in places],
            "queue_keys": [place.key for place in places],
            "joined": list(joined),
        },
    )
    made = {row.id: row.seq for row in entered}
    for task_id, spec, _ in newcomers:
        if task_id not in made:
            raise AlreadyExists(task_id)
        if found[spec.slot].owner == task_id:
            found[spec.slot].seq = made[task_id]
    return _when_created(entered)


def _when_created(statement: list[Row]) -> list[Timestamp]:
    # All that one statement creates has one time.
    return [Timestamp.from_datetime(statement[0].created_at)] * len(statement)


def _parameters(piece: list[slots.Newcomer], now: datetime | None) -> dict[str, Any]:
    task_routes = [route_of(spec) for _, spec, _ in piece]
    routes = list({route.id: route for route in task_routes}.values())
    return {
        "ids": [str(task_id) for task_id, _, _ in piece],
        "specs": [text for _, _, text in piece],
        "task_routes": [route.id for route in task_routes],
        "task_slots": [str(spec.slot) for _, spec, _ in piece],
        "routes": [route.id for route in routes],
        "kinds": [route.kind for route in routes],
        "selectors": [route.selector for route in routes],
        "now": now,
    }


def _refuse_repeats(tasks: Sequence[tuple[TaskId, TaskSpec]]) -> None:
    if len({task_id for task_id, _ in tasks}) == len(tasks):
        return
    twice = next(task_id for task_id, times in Counter(task_id for task_id, _ in tasks).items() if times > 1)
    raise Invalid(f"invalid model: task_id '{twice}' occurs twice in one batch", field="id")


def _pieces(tasks: Sequence[tuple[TaskId, TaskSpec]]) -> Iterator[list[slots.Newcomer]]:
    piece: list[slots.Newcomer] = []
    size = 0
    for task_id, spec in tasks:
        text = spec.to_json()
        if piece and (len(piece) == _PIECE_ROWS or size + len(text) > _PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append((task_id, spec, text))
        size += len(text)
    if piece:
        yield piece


def get(conn: Connection, task_id: str) -> Task:
    """Read one task."""
    return rows.task(read(conn, TaskId(task_id)))


def read(conn: Connection, task_id: TaskId) -> Row:
    """The row of one task, whose spec may be such that no task can be made of it."""
    row = sql.SELECT.one_or_none(conn, {"task_id": str(task_id)})
    if row is None:
        raise NotFound(task_id)
    return row


def replace(
    conn: Connection, task_id: str, spec: TaskSpec, *, expected: int | Task, now: datetime | None = None
) -> Task:
    """Replace the spec of the task as `expected`; the same spec again changes nothing."""
    checked, (version, created) = TaskId(task_id), arguments.precondition(expected)
    route = route_of(spec)
    row = act(
        conn,
        sql.REPLACE_SPEC,
        {
            "task_id": str(checked),
            "task_spec": spec.to_json(),
            "expected": version,
            "created": created,
            "route_id": route.id,
            "task_kind": route.kind,
            "route_selector": route.selector,
            "task_slot": str(spec.slot),
            "now": now,
        },
    )
    if row is not None:
        return rows.respecified(row, checked, spec)
    current = get(conn, checked)
    if _is_as_expected(current, expected):
        if current.spec == spec:
            return current
        if current.spec.slot != spec.slot:
            raise Invalid(
                f"invalid model: slot of task '{checked}' is '{current.spec.slot}' for good, not '{spec.slot}'",
                field="slot",
            )
    raise VersionConflict(checked, expected=version, current=current.metadata.resource_version)


def _is_as_expected(current: Task, expected: int | Task) -> bool:
    if isinstance(expected, int):
        return current.metadata.resource_version == expected
    return (current.metadata.resource_version, current.metadata.created_at) == (
        expected.metadata.resource_version,
        expected.metadata.created_at,
    )


def cancel(conn: Connection, task_id: str, *, now: datetime | None = None) -> tuple[Row, bool]:
    """Cancel a task that is not running, ask for it if it is; of a final task, nothing.

    The row, and whether the next of its slot was let in. Only `rows.task` may refuse the row: a task whose spec cannot
    be read has to leave its slot all the same, and so must not be read before the commit.
    """
    checked = TaskId(task_id)
    locked = act(conn, sql.LOCK_BY_ID, {"task_id": str(checked)})
    if locked is None:
        raise NotFound(checked)
    canceled = slots.cancel(conn, [(locked.seq, None)], now=now)
    admits = False
    if locked.owns and any(row.phase == "canceled" for row in canceled):
        admits = slots.admit(conn, [locked.slot], now=now)
    return read(conn, checked), admits


def delete(
    conn: Connection, task_id: str, *, expected: int | Task | None = None, now: datetime | None = None
) -> tuple[bool, bool]:
    """Delete a task and its runs; whether there was one, and whether the next of its slot was let in."""
    checked = TaskId(task_id)
    version, created = (None, None) if expected is None else arguments.precondition(expected)
    locked = act(conn, sql.LOCK_BY_ID, {"task_id": str(checked)})
    deleting = {"task_id": str(checked), "expected": version, "created": created, "now": now}
    if locked is not None and sql.DELETE.one_or_none(conn, deleting) is not None:
        return True, locked.owns and slots.admit(conn, [locked.slot], now=now)
    if version is None:
        return False, False
    raise VersionConflict(checked, expected=version, current=read(conn, checked).resource_version)


def act(conn: Connection, statement: Prepared, parameters: dict[str, Any]) -> Row | None:
    """Run a statement on one task, once more if it found nothing to do.

    It may have waited for a row that was deleted and created anew by the time it looked; the new one is not in its
    snapshot. It is in a second one's.
    """
    for _ in range(2):
        if (row := statement.one_or_none(conn, parameters)) is not None:
            return row
    return None


def runs(conn: Connection, task_id: str, *, limit: int) -> tuple[TaskRun, ...]:
    """The latest runs of a task, oldest of them first."""
    checked = TaskId(task_id)
    found = SELECT_RUNS.all(conn, {"task_id": str(checked), "limit": arguments.limit(limit)})
    if not found:
        raise NotFound(checked)
    return tuple(rows.run(row) for row in found if row.attempt is not None)
