"""The command `watch`: changes as they happen."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli.exits import UsageError
from solti_store.cli.render import Output, emit, one_line
from solti_store.cli.session import open_store
from solti_store.cli.tasks import PhaseOption, SelectorOption

if TYPE_CHECKING:
    from solti_store.model import TaskChange

__all__ = ["watch"]

_DAY_S = 86_400


def watch(
    context: typer.Context,
    *,
    selector: SelectorOption = None,
    phase: PhaseOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TOKEN", help="Go on from a token; from now on without one.", show_default=False
        ),
    ] = None,
    bookmarks: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="After so long without a change, say where to go on from.", show_default=False
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End after so many lines.", show_default=False)
    ] = None,
    output: Annotated[Output, typer.Option("--output", "-o", help="How to print a change.")] = Output.JSON,
) -> None:
    """Print changes as they happen, a line each: in order for each task, none missed and none twice.

    Each has a `token` that `--from` takes. `kind` says what it means for who watches these tasks: added, modified,
    deleted; `type` says what happened.
    """
    from datetime import timedelta  # noqa: PLC0415 - for this command only
    from itertools import islice  # noqa: PLC0415

    from solti_store.model import Bookmark, Selector, TaskPhase, TaskQuery  # noqa: PLC0415 - needs the model

    query = TaskQuery(
        selector=None if selector is None else Selector.parse(selector),
        phases=frozenset(TaskPhase.parse(one) for one in phase or ()),
    )
    if bookmarks is not None and not 0 < bookmarks <= _DAY_S:
        raise UsageError(f"--bookmarks must be more than 0 and at most {_DAY_S} seconds, got {bookmarks:g}")
    with open_store(context) as store:
        pause = None if bookmarks is None else timedelta(seconds=bookmarks)
        for change in islice(store.watch(query, since=since, bookmarks=pause), count):
            if output is Output.JSON:
                emit(f"{change.to_json()}\n")
            else:
                emit(f"bookmark {change.token}\n" if isinstance(change, Bookmark) else _line(change))
            # Whoever reads a pipe waits for each line.
            sys.stdout.flush()


def _line(change: "TaskChange") -> str:
    moved = change.phase if change.phase_before in (None, change.phase) else f"{change.phase_before} → {change.phase}"
    error = (change.detail or {}).get("error")
    why = f": {one_line(error)}" if error else ""
    at = change.at.datetime.isoformat(timespec="milliseconds")
    return f"{at} {change.kind:8} {change.type:15} {change.task_id} attempt {change.attempt} {moved}{why}\n"
