"""Output: tables, JSON and names on stdout, messages on stderr.

On a terminal a table is drawn by rich and cut to its width. Anywhere else it is plain aligned text, one row a line
and nothing cut off, for `grep` and `awk`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from solti_store.cli.exits import PipeClosedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

__all__ = [
    "PHASE_STYLES",
    "Column",
    "Output",
    "Table",
    "ago",
    "console",
    "elapsed",
    "emit",
    "is_fancy",
    "note",
    "one_line",
    "show_details",
    "show_table",
    "span",
]

_GAP = 2
_LEAST_FLEXIBLE = 8
_LEAST_NAME = 16

PHASE_STYLES = {
    "pending": "yellow",
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "timeout": "magenta",
    "canceled": "bright_black",
    "exhausted": "bold red",
}


class Output(StrEnum):
    """The choices of `-o`."""

    TABLE = "table"
    JSON = "json"
    NAME = "name"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        is_flexible: Whether it gives way first when the terminal is narrow.
        is_name: Whether it gives way next.
        is_number: Whether it is aligned to the right.
        styles: The style of a cell, by its text.
    """

    title: str
    is_flexible: bool = False
    is_name: bool = False
    is_number: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """What to show; cells are single lines already.

    Attributes:
        columns: The columns.
        rows: For each row a cell a column.
        title: What it is, if that is not plain.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""


# --- where it goes ------------------------------------------------------------------------------


def emit(text: str) -> None:
    """Write data to stdout.

    Raises:
        PipeClosedError: The reader is gone.
    """
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise PipeClosedError from None


def note(text: str) -> None:
    """Write a message to stderr."""
    print(text, file=sys.stderr)  # noqa: T201 - this is where messages go


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr; NO_COLOR, FORCE_COLOR and TERM decide on colour."""
    from rich.console import Console  # noqa: PLC0415 - plain output does without

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def is_fancy(*, stderr: bool = False) -> bool:
    """Whether a person looks at stdout (or stderr) as it is written."""
    return (sys.stderr if stderr else sys.stdout).isatty()


# --- tables ---------------------------------------------------------------------------------------


def show_table(table: Table) -> None:
    """Write a table to stdout."""
    emit(_drawn(table) if is_fancy() else _plain(table))


def show_details(pairs: Sequence[tuple[str, str]], styles: Mapping[str, str] = {}) -> None:
    """Write names and values below each other."""
    width = max(len(name) for name, _ in pairs)
    if not is_fancy():
        emit("".join(f"{name:{width}}  {value}\n" for name, value in pairs))
        return
    from rich.text import Text  # noqa: PLC0415

    target = console()
    with target.capture() as captured:
        for name, value in pairs:
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(f"{name:{width}}  ", "bold")
            line.append(value, styles.get(value, ""))
            target.print(line)
    emit(captured.get())


def _plain(table: Table) -> str:
    lines = [[column.title for column in table.columns], *table.rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(table.columns))]
    text = f"{table.title}\n" if table.title else ""
    for line in lines:
        cells = [
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        ]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def _drawn(table: Table) -> str:
    from rich import box  # noqa: PLC0415 - only terminals need it
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        title=table.title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    target = console()
    for column, width in zip(table.columns, _fitting_widths(table, target.width), strict=True):
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        drawn.add_column(column.title, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
    for row in table.rows:
        drawn.add_row(
            *(
                Text(cell, style=column.styles.get(cell, ""), no_wrap=True, overflow="ellipsis")
                for cell, column in zip(row, table.columns, strict=True)
            )
        )
    with target.capture() as captured:
        target.print(drawn)
    return captured.get()


def _fitting_widths(table: Table, available: int) -> list[int]:
    """The widths of the columns; rich itself would cut a phase to spare a long id."""
    from rich.cells import cell_len  # noqa: PLC0415

    widths = [
        max(cell_len(text) for text in (column.title, *(row[index] for row in table.rows)))
        for index, column in enumerate(table.columns)
    ]
    excess = sum(widths) + _GAP * (len(widths) - 1) - available
    for least, group in (
        (_LEAST_FLEXIBLE, [index for index, column in enumerate(table.columns) if column.is_flexible]),
        (_LEAST_NAME, [index for index, column in enumerate(table.columns) if column.is_name]),
    ):
        while excess > 0 and group:
            widest = max(group, key=widths.__getitem__)
            if widths[widest] <= least:
                break
            widths[widest] -= 1
            excess -= 1
    return widths


# --- cells ----------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """The text as it may stand in a line on a terminal: no line breaks, no control characters."""
    text = " ".join(text.split())
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def elapsed(milliseconds: float) -> str:
    """A length of time, to two figures or so: `85ms`, `1.2s`, `3m05s`, `2h10m`, `4d`."""
    if milliseconds < 1000:  # noqa: PLR2004 - units of time
        return f"{max(milliseconds, 0):.0f}ms"
    seconds = milliseconds / 1000
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole}s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:  # noqa: PLR2004
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d"


def span(milliseconds: int) -> str:
    """A length of time exactly, in the largest unit that measures it: `1500ms`, `30s`, `5m`, `2h`."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds >= size and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def ago(then_ms: int, now_ms: float) -> str:
    """How long ago a moment was, coarsely: `now`, `5s`, `3m`, `2h`, `4d`."""
    seconds = int((now_ms - then_ms) / 1000)
    if seconds < 1:
        return "now"
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} ago"
    return f"{seconds}s ago"
