"""The command `logs`: the end of what an attempt wrote."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli.exits import Exit, UsageError
from solti_store.cli.render import emit, is_fancy, note
from solti_store.cli.session import open_store
from solti_store.cli.tasks import TaskArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from solti_store.model import TaskRun

__all__ = ["logs"]


def logs(
    context: typer.Context,
    task_id: TaskArgument,
    *,
    attempt: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="The attempt; the latest that has ended if not given.", show_default=False
        ),
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Only standard output.")] = False,
    stderr: Annotated[bool, typer.Option("--stderr", help="Only standard error, which then goes to stdout.")] = False,
) -> int:
    """Show the end of what an attempt wrote.

    Its standard output goes to stdout and its standard error to stderr. Workers keep the last 4 KiB of each.
    """
    if stdout and stderr:
        raise UsageError("--stdout and --stderr exclude each other: without them both are shown")
    with open_store(context) as store:
        # Of the latest two at least one has ended, if any has. More only if need be: their output comes along.
        runs = store.runs(task_id, limit=2 if attempt is None else 1000)
    run = next((run for run in reversed(runs) if not run.is_active and attempt in (None, run.attempt)), None)
    if run is None:
        return _without(task_id, runs, attempt)
    if not run.stdout and not run.stderr:
        note(f"attempt {run.attempt} wrote nothing that was kept")
    if not stderr:
        emit(_for_reader(run.stdout or "", terminal=is_fancy()))
    if stderr:
        emit(_for_reader(run.stderr or "", terminal=is_fancy()))
    elif not stdout:
        sys.stdout.flush()
        sys.stderr.write(_for_reader(run.stderr or "", terminal=is_fancy(stderr=True)))
    return Exit.OK


def _without(task_id: str, runs: "Sequence[TaskRun]", attempt: int | None) -> int:
    """Say why there is nothing to show."""
    if attempt is not None and all(run.attempt != attempt for run in runs):
        note(f"error: task '{task_id}' has no attempt {attempt}, or keeps it no more")
        return Exit.NOT_FOUND
    note(
        "no attempt has begun"
        if not runs
        else f"attempt {runs[-1].attempt} still runs: its output is kept when it ends"
    )
    return Exit.OK


def _for_reader(text: str, *, terminal: bool) -> str:
    """As it is for a file or a pipe; for a terminal whole lines, and nothing that would play tricks on it."""
    if not terminal or not text:
        return text
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    safe = ("".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line) for line in lines)
    return "\n".join(safe) + "\n"
