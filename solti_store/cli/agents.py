"""The command that shows who works."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

from typing import Annotated

import typer

from solti_store.cli.render import Output
from solti_store.cli.session import open_store
from solti_store.cli.tasks import OutputOption

__all__ = ["agents"]


def agents(
    context: typer.Context,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that signed off or were lost.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List workers, with their state and how many attempts they run."""
    from solti_store.cli.views import show_agents  # noqa: PLC0415 - needs the model

    with open_store(context) as store:
        found = part = list(store.agents(closed=every))
        while part:
            part = list(store.agents(closed=every, after=part[-1].seq))
            found = found + part
    show_agents(found, output)
