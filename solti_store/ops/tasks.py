"""Create, read, replace, cancel and delete tasks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from solti_store.errors import AlreadyExists, Invalid, NotFound, VersionConflict
from solti_store.model import TaskId, Timestamp
from solti_store.ops import arguments, rows
from solti_store.rules.routing import route_of
from solti_store.sql import tasks as sql
from solti_store.sql.attempts import SELECT_RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import Connection

    from solti_store.model import Task, TaskRun, TaskSpec
    from solti_store.sql.driver import Prepared, Row

__all__ = ["act", "cancel", "create", "create_many", "delete", "get", "replace", "runs"]

# A batch goes out in pieces of at most so many rows and, roughly, bytes: the server holds a parameter whole.
_PIECE_ROWS = 20_000
_PIECE_BYTES = 32 * 1024 * 1024


def create(conn: Connection, task_id: str, spec: TaskSpec, *, now: datetime | None = None) -> Task:
    """Create one task, due at once."""
    checked = TaskId(task_id)
    route = route_of(spec)
    row = sql.INSERT.one_or_none(
        conn,
        {
            "task_id": str(checked),
            "task_spec": spec.to_json(),
            "route_id": route.id,
            "task_kind": route.kind,
            "route_selector": route.selector,
            "now": now,
        },
    )
    if row is None:
        raise AlreadyExists(checked)
    return rows.new_task(checked, spec, Timestamp.from_datetime(row.created_at))


def create_many(
    conn: Connection, tasks: Sequence[tuple[str, TaskSpec]], *, now: datetime | None = None
) -> Sequence[Task]:
    """Create all of `tasks`, in this order, or none of them."""
    given = [(TaskId(task_id), spec) for task_id, spec in tasks]
    _refuse_repeats(given)
    created_at: list[Timestamp] = []
    # A savepoint, so that in a caller's transaction a refused batch leaves nothing behind either.
    with conn.begin_nested():
        for piece in _pieces(given):
            found = _insert(conn, piece, now)
            if len(found) < len(piece):
                made = {row.id for row in found}
                raise AlreadyExists(next(task_id for task_id, _, _ in piece if task_id not in made))
            created_at += [Timestamp.from_datetime(found[0].created_at)] * len(piece)
    return rows.NewTasks(given, created_at)


def _insert(conn: Connection, piece: list[tuple[str, TaskSpec, str]], now: datetime | None) -> list[Row]:
    task_routes = [route_of(spec) for _, spec, _ in piece]
    routes = list({route.id: route for route in task_routes}.values())
    return sql.INSERT_MANY.all(
        conn,
        {
            "ids": [task_id for task_id, _, _ in piece],
            "specs": [text for _, _, text in piece],
            "task_routes": [route.id for route in task_routes],
            "routes": [route.id for route in routes],
            "kinds": [route.kind for route in routes],
            "selectors": [route.selector for route in routes],
            "now": now,
        },
    )


def _refuse_repeats(tasks: Sequence[tuple[TaskId, TaskSpec]]) -> None:
    if len({task_id for task_id, _ in tasks}) == len(tasks):
        return
    twice = next(task_id for task_id, times in Counter(task_id for task_id, _ in tasks).items() if times > 1)
    raise Invalid(f"invalid model: task_id '{twice}' occurs twice in one batch", field="id")


def _pieces(tasks: Sequence[tuple[TaskId, TaskSpec]]) -> Iterator[list[tuple[str, TaskSpec, str]]]:
    piece: list[tuple[str, TaskSpec, str]] = []
    size = 0
    for task_id, spec in tasks:
        text = spec.to_json()
        if piece and (len(piece) == _PIECE_ROWS or size + len(text) > _PIECE_BYTES):
            yield piece
            piece, size = [], 0
        piece.append((str(task_id), spec, text))
        size += len(text)
    if piece:
        yield piece


def get(conn: Connection, task_id: str) -> Task:
    """Read one task."""
    checked = TaskId(task_id)
    row = sql.SELECT.one_or_none(conn, {"task_id": str(checked)})
    if row is None:
        raise NotFound(checked)
    return rows.task(row)


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
            "now": now,
        },
    )
    if row is not None:
        return rows.task(row)
    current = get(conn, checked)
    if _is_as_expected(current, expected) and current.spec == spec:
        return current
    raise VersionConflict(checked, expected=version, current=current.metadata.resource_version)


def _is_as_expected(current: Task, expected: int | Task) -> bool:
    if isinstance(expected, int):
        return current.metadata.resource_version == expected
    return (current.metadata.resource_version, current.metadata.created_at) == (
        expected.metadata.resource_version,
        expected.metadata.created_at,
    )


def cancel(conn: Connection, task_id: str, *, now: datetime | None = None) -> Task:
    """Cancel a task that is not running, ask for it if it is; of a final task, nothing."""
    checked = TaskId(task_id)
    act(conn, sql.CANCEL, {"task_id": str(checked), "now": now})
    return get(conn, checked)


def delete(conn: Connection, task_id: str, *, expected: int | Task | None = None, now: datetime | None = None) -> bool:
    """Delete a task and its runs; whether there was one."""
    checked = TaskId(task_id)
    version, created = (None, None) if expected is None else arguments.precondition(expected)
    if (
        act(conn, sql.DELETE, {"task_id": str(checked), "expected": version, "created": created, "now": now})
        is not None
    ):
        return True
    if version is None:
        return False
    raise VersionConflict(checked, expected=version, current=get(conn, checked).metadata.resource_version)


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
