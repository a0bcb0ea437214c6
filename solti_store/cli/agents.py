"""The commands that show who works, and send workers home."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli.render import Output
from solti_store.cli.session import open_store
from solti_store.cli.tasks import OutputOption

if TYPE_CHECKING:
    from solti_store.model import AgentStatus
    from solti_store.store import TaskStore

__all__ = ["agents", "drain"]


def agents(
    context: typer.Context,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that signed off or were lost.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List workers, with their state and how many attempts they run."""
    from solti_store.cli.views import show_agents  # noqa: PLC0415 - needs the model

    with open_store(context) as store:
        found = _all(store, closed=every)
    show_agents(found, output)


def drain(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The workers' names.", show_default=False)],
) -> None:
    """Hand these workers no more tasks: they finish what they run, and do nothing until they are stopped."""
    from solti_store.cli.exits import UsageError  # noqa: PLC0415
    from solti_store.errors import AgentLost  # noqa: PLC0415

    with open_store(context) as store:
        found = [agent for agent in _all(store, closed=False) if agent.id in names]
        if missing := sorted(set(names).difference(agent.id for agent in found)):
            raise UsageError(f"no worker is named '{missing[0]}'; see '{context.find_root().info_name} agents'")
        for agent in found:
            # Who has left in the meantime takes on no more either.
            with suppress(AgentLost):
                store.drain(agent)


def _all(store: "TaskStore", *, closed: bool) -> "list[AgentStatus]":
    found = part = list(store.agents(closed=closed))
    while part:
        part = list(store.agents(closed=closed, after=part[-1].seq))
        found = found + part
    return found
