"""The commands that read and change tasks: get, list, runs, cancel, delete."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli.exits import Exit, UsageError, report
from solti_store.cli.render import Column, Output, Table, emit, note, show_table
from solti_store.cli.session import open_store
from solti_store.errors import SoltiStoreError

if TYPE_CHECKING:
    from solti_store.model import Task, TaskQuery
    from solti_store.store import TaskStore

__all__ = ["OutputOption", "cancel", "delete", "get", "list_", "runs"]

PHASES = ("pending", "running", "succeeded", "failed", "timeout", "canceled", "exhausted")
KINDS = ("subprocess", "wasm", "container", "embedded")


def _completion_of(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]
TaskArgument = Annotated[str, typer.Argument(metavar="ID", help="The task's id.", show_default=False)]
TasksArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="The tasks' ids.", show_default=False)]


def get(context: typer.Context, task_id: TaskArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one task."""
    from solti_store.cli.views import show_task  # noqa: PLC0415 - needs the model
    from solti_store.model import TaskId  # noqa: PLC0415 - the same

    TaskId(task_id)  # Before a database is looked for, or a private one started.
    with open_store(context) as store:
        show_task(store.get(task_id), output)


def list_(
    context: typer.Context,
    *,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHASE",
            help="Only tasks in this phase; may be repeated.",
            autocompletion=_completion_of(PHASES),
            show_default=False,
        ),
    ] = None,
    active: Annotated[bool, typer.Option("--active", help="Only pending and running tasks.")] = False,
    terminal: Annotated[bool, typer.Option("--terminal", help="Only tasks in one of the five end phases.")] = False,
    slot: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only tasks of this slot.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Only tasks of this kind.", autocompletion=_completion_of(KINDS), show_default=False
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="The most tasks to show, up to 1000; 100 if not given.", show_default=False
        ),
    ] = None,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Go on after an earlier page, by its cursor.", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every page.")] = False,
    total: Annotated[bool, typer.Option("--total", help="Count all the tasks that meet the filters.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List tasks, in order of creation."""
    if every and (limit is not None or cursor is not None):
        raise UsageError("--all shows every page; it goes with neither --limit nor --cursor")
    from solti_store.cli.views import page_as_json, show_tasks  # noqa: PLC0415
    from solti_store.model import (  # noqa: PLC0415
        ACTIVE_PHASES,
        DEFAULT_LIMIT,
        MAX_LIMIT,
        TERMINAL_PHASES,
        TaskPhase,
        TaskQuery,
    )

    phases = {TaskPhase.parse(name) for name in phase or ()}
    phases |= (ACTIVE_PHASES if active else frozenset()) | (TERMINAL_PHASES if terminal else frozenset())
    query = TaskQuery.from_dict(
        {
            "phases": sorted(phases),
            "slot": slot,
            "kind": kind,
            "limit": MAX_LIMIT if every else limit or DEFAULT_LIMIT,
            "cursor": cursor,
            "withTotal": total,
        }
    )
    found = _Listing()
    with open_store(context) as store:
        pages = found.pages(store, query, every=every)
        if output is Output.JSON:
            for part in page_as_json(pages, found.members):
                emit(part)
            return
        if output is Output.NAME:
            for page in pages:
                show_tasks(page, output)
        else:
            # A table's widths depend on all its rows.
            show_tasks([task for page in pages for task in page], output)
    if found.total is not None:
        note(f"{found.total} in all")
    if found.cursor is not None:
        note(f"there are more: --cursor {found.cursor}")


class _Listing:
    """What a listing has to say beside its tasks; complete after the last page."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.cursor: str | None = None

    def pages(self, store: "TaskStore", query: "TaskQuery", *, every: bool) -> Iterator[list["Task"]]:
        """The page asked for, or all of them."""
        while True:
            page = store.list(query)
            yield list(page)
            self.total = page.total if self.total is None else self.total
            if page.next_cursor is None:
                return
            if not every:
                self.cursor = page.next_cursor
                return
            query = query.replace(cursor=page.next_cursor, with_total=False)

    def members(self) -> list[str]:
        """The same, as members of the JSON document."""
        result = [] if self.total is None else [f'"total":{self.total}']
        # A cursor is base64 for URLs, so it needs no escapes.
        return result if self.cursor is None else [*result, f'"nextCursor":"{self.cursor}"']


def runs(
    context: typer.Context,
    task_id: TaskArgument,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="The most runs to show, the latest.")] = 1000,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the attempts of a task, the oldest first."""
    from solti_store.cli.views import show_runs  # noqa: PLC0415

    with open_store(context) as store:
        show_runs(store.runs(task_id, limit=limit), output)


def cancel(context: typer.Context, task_ids: TasksArgument, output: OutputOption = Output.TABLE) -> int:
    """Cancel tasks.

    At once if they are not running, else as soon as their worker hears of it. A task that is final already stays as
    it is.
    """
    from solti_store.cli.views import show_tasks  # noqa: PLC0415

    done: list[Task] = []
    with open_store(context) as store:
        code = _each(task_ids, lambda task_id: done.append(store.cancel(task_id)))
    for task in done:
        if task.phase.is_active:
            note(f"{task.id}: cancellation requested, its worker will see it at its next heartbeat")
    if done or output is Output.JSON:
        show_tasks(done, output)
    return code


def delete(
    context: typer.Context,
    task_ids: TasksArgument,
    *,
    version: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Delete only if the task is at this resourceVersion.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: OutputOption = Output.NAME,
) -> int:
    """Delete tasks with their runs.

    Whatever their phase. Prints the ids of those that were there.
    """
    if version is not None and len(task_ids) > 1:
        raise UsageError("--version is one task's: give one id")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("give -y to delete without being asked")
        named = task_ids[0] if len(task_ids) == 1 else f"{len(task_ids)} tasks"
        if not typer.confirm(f"Delete {named} with all runs?", err=True):
            note("nothing was deleted")
            return Exit.FAILED
    there: list[str] = []

    with open_store(context) as store:

        def remove(task_id: str) -> None:
            if store.delete(task_id, expected_version=version):
                there.append(task_id)
            else:
                note(f"there is no task '{task_id}'")

        code = _each(task_ids, remove)
    if output is Output.JSON:
        # Ids are plain ASCII, which the store has checked.
        emit('{"deleted":[' + ",".join(f'"{task_id}"' for task_id in there) + "]}\n")
    elif output is Output.NAME:
        emit("".join(f"{task_id}\n" for task_id in there))
    else:
        show_table(Table([Column("DELETED")], [(task_id,) for task_id in there]))
    return code


def _each(task_ids: list[str], action: Callable[[str], object]) -> int:
    """Do it for every id; the exit code is the first refusal's, and what is refused stops nothing else."""
    code = int(Exit.OK)
    for task_id in dict.fromkeys(task_ids):
        try:
            action(task_id)
        except SoltiStoreError as error:
            refused = report(error)
            if refused in (Exit.UNAVAILABLE, Exit.UNKNOWN):
                return refused
            code = code or refused
    return code
