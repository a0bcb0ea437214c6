"""The command that says what ails a store."""

# No `from __future__ import annotations` in modules of commands: Typer reads the annotations.

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from solti_store.cli import parsing
from solti_store.cli.exits import Exit
from solti_store.cli.render import Output, emit, is_fancy, note, one_line
from solti_store.cli.session import open_connection, open_store, session_of
from solti_store.cli.tasks import OutputOption

if TYPE_CHECKING:
    from solti_store.rules.doctor import Diagnosis, Finding

__all__ = ["doctor"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def doctor(
    context: typer.Context,
    *,
    timeout: Annotated[str, typer.Option("--timeout", metavar="TIME", help="How long each question may take.")] = "3s",
    output: OutputOption = Output.TABLE,
) -> int:
    """Say what ails the store and its server, what comes of it, and what mends it. Exit code 7 if anything does."""
    bound = parsing.duration(timeout, "--timeout")
    from solti_store.ops.doctor import examine  # noqa: PLC0415 - half a second that help does not need
    from solti_store.url import is_embedded  # noqa: PLC0415

    if is_embedded(session_of(context).url):
        # A store starts the private server, and migrates it.
        open_store(context).close()
    # Not by a store, which refuses what is not migrated: that is a finding.
    with open_connection(context) as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        found = examine(connection, timeout=bound)
        connection.rollback()
    _show(found, output)
    return Exit.OK if found.is_well else Exit.AILING


def _show(found: "Diagnosis", output: Output) -> None:
    if output is Output.JSON:
        emit(found.to_json() + "\n")
        return
    if output is Output.NAME:
        emit("".join(f"{one.code}\n" for one in found.findings))
    else:
        emit("\n".join(map(_block, found.findings)))
    for text in found.unchecked:
        note(f"not checked: {one_line(text)}")
    counts = Counter(one.severity for one in found.findings)
    note(
        ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
        or "all is well"
    )


def _block(one: "Finding") -> str:
    head = f"{one.severity}: {one.code}: {one_line(one.subject)}"
    if is_fancy():
        head = _styled(head, _STYLES[one.severity])
    # A name in it may have two spaces in a row, and is to be pasted.
    remedy = one.remedy if one.remedy.isprintable() else one_line(one.remedy)
    lines = (("found", one_line(one.found)), ("so", one.consequence), ("mend", remedy))
    return f"{head}\n" + "".join(f"  {name:6}{text}\n" for name, text in lines)


def _styled(text: str, style: str) -> str:
    from rich.text import Text  # noqa: PLC0415 - only terminals need it

    from solti_store.cli.render import console  # noqa: PLC0415

    target = console()
    with target.capture() as captured:
        target.print(Text(text, style), end="")
    return captured.get()
