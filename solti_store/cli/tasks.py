"""The commands that read and change tasks: get, list, runs, cancel, delete."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from solti_store.cli.exits import Exit, UsageError, report
from solti_store.cli.render import Column, Output, Table, emit, note, show_table
from solti_store.cli.session import open_store
from solti_store.errors import SoltiStoreError

if TYPE_CHECKING:
    from solti_store.model import Task, TaskPage, TaskQuery
    from solti_store.store import TaskStore

__all__ = [
    "OutputOption",
    "SelectorOption",
    "TaskArgument",
    "cancel",
    "delete",
    "get",
    "list_",
    "runs",
    "why",
]

PHASES = ("pending", "running", "succeeded", "failed", "timeout", "canceled", "exhausted")
KINDS = ("subprocess", "wasm", "container", "embedded")
ORDERS = ("created", "updated")


def _completion_of(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


SelectorOption = Annotated[
    str | None,
    typer.Option(
        "--selector",
        "-l",
        metavar="SELECTOR",
        help="Only tasks whose labels match, such as 'env in (prod,dev),!canary,prio>3'.",
        show_default=False,
    ),
]
PhaseOption = Annotated[
    list[str] | None,
    typer.Option(
        "--phase",
        metavar="PHASE",
        help="Only tasks in this phase; may be repeated.",
        autocompletion=_completion_of(PHASES),
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]


def _time(text: str) -> Any:  # noqa: ANN401 - Typer's option
    return typer.Option(metavar="TIME", help=text, show_default=False)


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
    selector: SelectorOption = None,
    phase: PhaseOption = None,
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
    agent: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only tasks that this worker runs now.", show_default=False)
    ] = None,
    created_since: Annotated[str | None, _time("Only tasks created then or later: ISO 8601, or how long ago.")] = None,
    created_before: Annotated[str | None, _time("Only tasks created before then.")] = None,
    updated_since: Annotated[str | None, _time("Only tasks changed last then or later.")] = None,
    updated_before: Annotated[str | None, _time("Only tasks changed last before then.")] = None,
    order: Annotated[
        str,
        typer.Option(
            metavar="ORDER", help="By creation, or by the last change.", autocompletion=_completion_of(ORDERS)
        ),
    ] = "created",
    descending: Annotated[bool, typer.Option("--desc", help="The latest first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="The most tasks to show, up to 1000; 100 if not given.", show_default=False
        ),
    ] = None,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="Go on from another page, by its cursor.", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every page.")] = False,
    total: Annotated[bool, typer.Option("--total", help="Count all the tasks that meet the filters.")] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say about how many there are.")] = False,
    token: Annotated[bool, typer.Option("--token", help="Say where `watch --from` goes on from here.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List tasks, in order of creation or of their last change."""
    if every and (limit is not None or cursor is not None):
        raise UsageError("--all shows every page; it goes with neither --limit nor --cursor")
    if order not in ORDERS:
        raise UsageError(f"--order: expected created or updated, got {order[:40]!r}")
    from solti_store.cli.parsing import moment  # noqa: PLC0415
    from solti_store.cli.views import page_as_json, show_tasks  # noqa: PLC0415
    from solti_store.model import (  # noqa: PLC0415
        ACTIVE_PHASES,
        DEFAULT_LIMIT,
        MAX_LIMIT,
        TERMINAL_PHASES,
        Selector,
        TaskPhase,
        TaskQuery,
        Timestamp,
    )

    times = (
        ("createdSince", "--created-since", created_since),
        ("createdBefore", "--created-before", created_before),
        ("updatedSince", "--updated-since", updated_since),
        ("updatedBefore", "--updated-before", updated_before),
    )
    phases = {TaskPhase.parse(name) for name in phase or ()}
    phases |= (ACTIVE_PHASES if active else frozenset()) | (TERMINAL_PHASES if terminal else frozenset())
    query = TaskQuery.from_dict(
        {
            "phases": sorted(phases),
            "slot": slot,
            "kind": kind,
            "agent": agent,
            # Here and not by the model, whose error would name the field and not the place in the text.
            "selector": selector and str(Selector.parse(selector)),
            **{
                field: Timestamp.from_datetime(moment(text, option))
                for field, option, text in times
                if text is not None
            },
            "orderBy": order,
            "descending": descending,
            "limit": MAX_LIMIT if every else limit or DEFAULT_LIMIT,
            "cursor": cursor,
            "withTotal": total,
            "withEstimate": estimate,
            "withToken": token,
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
    for line in found.notes():
        note(line)


class _Listing:
    """What a listing has to say beside its tasks; complete after the last page."""

    def __init__(self) -> None:
        self._pages: list[TaskPage] = []

    def pages(self, store: "TaskStore", query: "TaskQuery", *, every: bool) -> Iterator[list["Task"]]:
        """The page asked for, or all of them."""
        for page in store.pages(query):
            yield list(page)
            # Of the first one the totals, of the last one the cursors: the tasks of all of them may be many.
            self._pages = [*self._pages[:1], page.replace(items=())]
            if not every:
                return

    def members(self) -> list[str]:
        """The same, as members of the JSON document."""
        first, last = self._pages[0], self._pages[-1]
        totals = {"total": first.total, "estimatedTotal": first.estimated_total}
        # A cursor is base64 for URLs, so it needs no escapes.
        cursors = {"nextCursor": last.next_cursor, "prevCursor": first.prev_cursor, "token": first.token}
        return [
            *(f'"{name}":{count}' for name, count in totals.items() if count is not None),
            *(f'"{name}":"{cursor}"' for name, cursor in cursors.items() if cursor is not None),
        ]

    def notes(self) -> list[str]:
        """The same, as lines."""
        first, last = self._pages[0], self._pages[-1]
        return [
            *([] if first.total is None else [f"{first.total} in all"]),
            *([] if first.estimated_total is None else [f"about {first.estimated_total} in all"]),
            *([] if first.prev_cursor is None else [f"there are others before: --cursor {first.prev_cursor}"]),
            *([] if last.next_cursor is None else [f"there are more: --cursor {last.next_cursor}"]),
            *([] if first.token is None else [f"what comes next: watch --from {first.token}"]),
        ]


def why(context: typer.Context, task_id: TaskArgument, output: OutputOption = Output.TABLE) -> None:
    """Say why a task does not run, or that it does."""
    from solti_store.cli.render import one_line  # noqa: PLC0415

    with open_store(context) as store:
        found = store.why(task_id)
    if output is Output.JSON:
        emit(found.to_json() + "\n")
    else:
        emit(f"{found.reason if output is Output.NAME else one_line(found.message)}\n")


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
