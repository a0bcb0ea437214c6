"""The command that shows what goes on, and keeps showing it."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

import time
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli import parsing
from solti_store.cli.render import Output, emit, is_fancy
from solti_store.cli.session import open_store

if TYPE_CHECKING:
    from solti_store.store import TaskStore

__all__ = ["top"]

# Home, and clear what was there: a frame is drawn over the last one.
_CLEAR = "\x1b[H\x1b[2J"
_TASKS = 15


def top(
    context: typer.Context,
    *,
    interval: Annotated[str, typer.Option("--interval", metavar="TIME", help="The pause between two looks.")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="Look once; so does output that is no terminal.")] = False,
) -> None:
    """Watch how many tasks are in which phase, who works, and what changed last."""
    pause = parsing.duration(interval, "--interval").total_seconds()
    is_live = is_fancy() and not once
    with open_store(context) as store:
        while True:
            if is_live:
                emit(_CLEAR)
            _show(store)
            if not is_live:
                return
            time.sleep(pause)


def _show(store: "TaskStore") -> None:
    from solti_store.cli.views import show_agents, show_phases, show_tasks  # noqa: PLC0415 - needs the model
    from solti_store.model import TaskOrder, TaskPhase, TaskQuery  # noqa: PLC0415

    counts = {
        phase: store.list(TaskQuery(phases=frozenset({phase}), limit=1, with_estimate=True)).estimated_total
        for phase in TaskPhase
    }
    show_phases(counts)
    emit("\n")
    show_agents(store.agents(), Output.TABLE)
    emit("\n")
    latest = TaskQuery(order_by=TaskOrder.UPDATED, descending=True, limit=_TASKS)
    show_tasks(store.list(latest).items, Output.TABLE)
